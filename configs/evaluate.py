"""Evaluation: the scores of a finished fine-tuning or probing, on any split and with any patch sizes.

python -m anysat_jax.main --config=configs/evaluate.py:NAME --config.init=RUN --config.data.root=DIR

NAME is one of configs/finetune.py (mini_flair by default), or prepared,DATASET[,dense]; RUN is the workdir of the run,
or its model.safetensors. Hardware: that of the run, or less; time: that of one pass over the split. Expect the score
that the run wrote into its summary.json. --config.evaluate.patch_sizes="(10, 20)" averages the logits of two sizes.

",smoke" behind a name measures a tiny random model, within a minute on a CPU, on an archive that is made on the spot.
"""

from ml_collections import ConfigDict

from anysat_jax.configs import tasks

NAMES = tuple(tasks.TASKS)


def get_config(arg: str = "mini_flair") -> ConfigDict:
    """The config of a name, one of `NAMES` or prepared,DATASET.

    Raises:
      ValueError: there is no such name.
    """
    config, name, options = tasks.make("evaluate", arg, NAMES)
    if "test" in config.evaluate.splits:
        config.evaluate.splits = ("test",)
    return tasks.finish(config, name, options)
