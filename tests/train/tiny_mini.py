"""The embedded datasets, all five, with the smallest model: a config for runs of several processes."""

from ml_collections import ConfigDict

from anysat_jax.configs import pretrain


def get_config(name: str = "all") -> ConfigDict:
    """Two blocks of the schedule; "all" five datasets, or the cheapest one, "flair".

    Every draw is there that depends on a tile's place in the batch: masks, dates, sensors, and in "all" dropout.
    """
    config = pretrain.mini()
    config.name = "tiny_mini"
    config.total_steps = 16
    config.checkpoint_every = 100
    config.model.update(dict(dim=32, depth=1, num_heads=2, predictor_depth=1, predictor_heads=2))
    config.model.dropout = name == "all"  # four times the compile time
    # AdamW moves a parameter whose gradient is nothing but rounding as far as any other: by this rate, either way.
    config.optimizer.learning_rate = 2e-5
    config.evaluate.probe = False
    config.evaluate.datasets = ("mini_flair",)
    config.evaluate.max_tiles = 8
    config.evaluate.pictures = 1
    for section in config.data.datasets.values():
        section.max_dates = 4
    if name == "flair":
        config.total_steps = 8
        config.data.datasets = ConfigDict(dict(mini_flair=config.data.datasets.mini_flair))
    return config
