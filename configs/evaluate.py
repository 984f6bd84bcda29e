"""Evaluation: scores of a finished fine-tuning or probing run, on any split and with any patch sizes.

python -m anysat_jax.main --config=configs/evaluate.py:NAME --config.init=RUN --config.data.root=DIR

NAME is a name of configs/finetune.py (default mini_flair), or prepared,DATASET[,dense]; RUN is the workdir of the run,
or its model.safetensors. Hardware: that of the run, or less; time: one pass over the split. The expected score is that
of the run's summary.json. --config.evaluate.patch_sizes="(10, 20)" averages the logits of two sizes.

The suffix ",smoke" evaluates a tiny random model within a minute on a CPU, on a fake archive in place of a download.
"""

from ml_collections import ConfigDict

from anysat_jax.configs import tasks

NAMES = tuple(tasks.TASKS)


def get_config(arg: str = "mini_flair") -> ConfigDict:
    """Returns the config of a name in `NAMES`, or of prepared,DATASET.

    Raises:
      ValueError: the name is unknown.
    """
    config, name, options = tasks.make("evaluate", arg, NAMES)
    # The best parameters were chosen on val, so its score is optimistic.
    if "test" in config.evaluate.splits:
        config.evaluate.splits = ("test",)
    return tasks.finish(config, name, options)
