"""The smallest model with the five embedded datasets or a fake one: a config for runs of several processes."""

from ml_collections import ConfigDict

from anysat_jax.configs import pretrain
from tests.train import fake_run


def get_config(name: str = "all") -> ConfigDict:
    """Two blocks of the schedule; "all" five datasets, or "fake", which compiles in a tenth of the time.

    Every draw is there that depends on a tile's place in the batch: masks, dates, sensors, and in "all" dropout.
    """
    if name == "fake":
        fake_run.register()
        config = fake_run.get_config()
        config.total_steps = 80  # a step takes 20 ms, and one of two processes is to be stopped on the way
        config.data.datasets.fake_run.patch_sizes = (20,)
    else:
        config = pretrain.mini()
        config.total_steps = 16
        config.model.update(dict(dim=32, depth=1, num_heads=2, predictor_depth=1, predictor_heads=2))
        config.model.dropout = True
        config.evaluate.probe = False
        for section in config.data.datasets.values():
            section.max_dates = 4
    config.name = "tiny_mini"
    config.checkpoint_every = 100
    # AdamW moves a parameter whose gradient is nothing but rounding as far as any other: by this rate, either way.
    config.optimizer.learning_rate = 2e-5
    return config
