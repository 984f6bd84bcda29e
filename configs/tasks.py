"""Tasks of each dataset: labels, metric and samples, the same for fine-tuning, probing and evaluation.

Patch sizes are the smallest of the paper's Table C. Batch sizes are the paper's for GeoPlex, and for the other datasets
estimates for eight accelerators of 80 GB. Epochs, patience and numbers of dates are ours; the paper does not give them.
"""

from collections.abc import Callable, Collection

from anysat_jax.configs.adaptation import classification, common, large, segmentation, smoke
from anysat_jax.configs.common import dataset
from ml_collections import ConfigDict

Setup = Callable[[ConfigDict], None]
TASKS: dict[str, tuple[Setup, Setup]] = {}
SMOKE: dict[str, dict[str, object]] = {}


def short(config: ConfigDict) -> None:
    """Sets fewer and larger steps, for small datasets and two CPU cores."""
    config.head_init = "probe"
    config.epochs = 40
    config.early_stopping = 10
    # Higher rates destroy the probe-initialised head before the encoder adapts.
    config.optimizer.learning_rate = 1e-4
    config.optimizer.clip_norm = 1.0
    config.evaluate.batch_size = 64


def mini(config: ConfigDict) -> None:
    """Sets the fields for the embedded data, which do not have a test split."""
    short(config)
    config.average_decay = 0.9
    config.epochs = 8
    config.evaluate.update(dict(every=2, splits=("val",)))


def task(size: Setup, **options: object) -> Callable[[Setup], Setup]:
    """Registers a task by the name of its function, which runs after `size` has set the fields of runs of its size.

    `options` are those of its smoke run, see `adaptation.smoke`.
    """

    def register(setup: Setup) -> Setup:
        TASKS[setup.__name__], SMOKE[setup.__name__] = (size, setup), options
        return setup

    return register


@task(large, tiles=4)
def treesatai_ts(config: ConfigDict) -> None:
    """Sets the multi-label classification of tree species, 15 classes."""
    classification(config, "weighted_f1")
    config.data.datasets.treesatai_ts = dataset(384, (10,), 70)


@task(large, tiles=4)
def planted(config: ConfigDict) -> None:
    """Sets the classification of the tree species of a plantation, 40 classes."""
    classification(config, "macro_f1")
    config.data.datasets.planted = dataset(2048, (30,))


@task(large, tiles=2, extent=20.0)
def flair(config: ConfigDict) -> None:
    """Sets the segmentation of land cover in 0.2 m pixels: each sub-patch of 2 m predicts its 10 x 10 pixels."""
    segmentation(config)
    config.data.datasets.flair = dataset(96, (10,), 35)


@task(large, tiles=2, extent=320.0, patch_sizes=(80,))
def pastis_hd_classif(config: ConfigDict) -> None:
    """Sets the multi-label classification of crops, 18 classes."""
    classification(config, "macro_f1")
    config.data.datasets.pastis_hd = dataset(8, (40,), 35)


@task(large, tiles=2, extent=320.0, patch_sizes=(80,))
def pastis_hd_semseg(config: ConfigDict) -> None:
    """Sets the segmentation of crops in 10 m pixels."""
    segmentation(config)
    config.data.datasets.pastis_hd = dataset(8, (40,), 35)
    config.cache.pixels_per_tile = 1024  # of 16,384


@task(large, tiles=2, extent=80.0)
def sickle(config: ConfigDict) -> None:
    """Sets the segmentation of paddy in 10 m pixels, evaluated on val as in the paper, without a test split."""
    segmentation(config)
    config.data.datasets.sickle = dataset(16, (10,), 32)
    config.evaluate.splits = ("val",)
    config.cache.pixels_per_tile = 256  # of 1,024


@task(large, tiles=2, extent=160.0)
def bradd_s1ts(config: ConfigDict) -> None:
    """Sets the segmentation of forest cut between the first and the last date, in 10 m pixels."""
    segmentation(config)
    config.data.datasets.bradd_s1ts = dataset(32, (10,))
    config.cache.pixels_per_tile = 512  # of 2,304


@task(large, tiles=4)
def timesen2crop(config: ConfigDict) -> None:
    """Sets the classification of the crop of a 10 m pixel, 16 classes."""
    classification(config, "accuracy")
    config.data.datasets.timesen2crop = dataset(2048, (10,))


@task(large, tiles=1, extent=640.0, patch_sizes=(40,))
def sen1floods11(config: ConfigDict) -> None:
    """Sets the segmentation of water in 10 m pixels, from one date."""
    segmentation(config)
    config.data.datasets.sen1floods11 = dataset(8, (80,))
    config.cache.pixels_per_tile = 8192  # of 262,144


@task(large, tiles=1, extent=1920.0, patch_sizes=(120,))
def hls_burn_scars(config: ConfigDict) -> None:
    """Sets the segmentation of burn scars in 30 m pixels, with a sensor that pretraining did not have."""
    segmentation(config)
    config.new_sensors = ("hls",)
    config.data.datasets.hls_burn_scars = dataset(8, (240,))


@task(large, tiles=4, patch_sizes=(80,))
def so2sat(config: ConfigDict) -> None:
    """Sets the classification of local climate zones, 17 classes, from the mean of the sub-patches."""
    classification(config, "accuracy")
    config.head.input = "mean"  # gives the 29K parameters of the paper's probe
    config.data.datasets.so2sat = dataset(256, (10,))


@task(large, tiles=1, extent=768.0)
def spacenet7(config: ConfigDict) -> None:
    """Sets the segmentation of buildings in 3 m pixels, with a sensor that pretraining did not have."""
    segmentation(config)
    config.new_sensors = ("planet",)
    config.data.datasets.spacenet7 = dataset(8, (48,))


@task(large, tiles=1, extent=640.0)
def biomassters(config: ConfigDict) -> None:
    """Sets the regression of above-ground biomass in 10 m pixels, in t/ha."""
    segmentation(config, "rmse")
    config.data.datasets.biomassters = dataset(8, (40,))


@task(short, tiles=8)
def fuel_moisture_land_cover(config: ConfigDict) -> None:
    """Sets the classification of the land cover of a 10 m pixel, from three dates.

    A linear model of the values predicts it about as well as anything, so the features start nearly linear in them.
    """
    classification(config, "macro_f1")
    config.data.datasets.fuel_moisture_land_cover = dataset(64)
    # Each site was visited in a season of its own, which tells nothing about other sites.
    config.data.datasets.fuel_moisture_land_cover.dates = "none"
    config.model.input_gain = 0.01
    config.head.input = "mean"  # a tile has a single sub-patch
    # The start is the probe, which is kept unless training improves on it; see docs/RESULTS.md for why it rarely does.
    config.epochs, config.early_stopping = 10, 5
    config.optimizer.update(dict(learning_rate=1e-5, warmup_epochs=1))


@task(short, tiles=8)
def fuel_moisture(config: ConfigDict) -> None:
    """Sets the regression of live fuel moisture in a 10 m pixel, in percent of dry weight."""
    classification(config, "r2")
    config.data.datasets.fuel_moisture = dataset(64)
    config.head.input = "mean"  # a tile has a single sub-patch
    # The encoder changes too much for the initial head to matter.
    config.head_init = "random"
    config.average_decay = 0.98
    config.early_stopping = 20
    config.evaluate.every = 2
    # Against overfitting, for about 1,200 series of single pixels.
    config.optimizer.update(dict(learning_rate=5e-4, warmup_epochs=4, weight_decay=0.05))
    config.data.datasets.fuel_moisture.update(dict(noise=0.3, temporal_dropout=0.3))


@task(short, tiles=1, patch_sizes=(80,))
def sen1floods11_chip(config: ConfigDict) -> None:
    """Sets the segmentation of water on one real chip: training on its left half, test on its right half."""
    segmentation(config)
    config.data.datasets.sen1floods11_chip = dataset(4, (40,))
    config.head_init = "random"
    config.optimizer.learning_rate = 5e-4
    config.epochs = 20
    config.evaluate.every = 2


@task(mini, tiles=0, fraction=0.05)
def mini_flair(config: ConfigDict) -> None:
    """Sets the classification of the land use of embedded tiles, 6 classes."""
    classification(config, "accuracy")
    config.data.datasets.mini_flair = dataset(8, (10,), 12)
    config.optimizer.warmup_epochs = 1


@task(mini, tiles=0, fraction=0.05)
def mini_pastis_hd_semseg(config: ConfigDict) -> None:
    """Sets the segmentation of land cover in 10 m pixels of embedded tiles."""
    segmentation(config)
    config.optimizer.update(dict(schedule="cosine", warmup_epochs=1))
    config.data.datasets.mini_pastis_hd = dataset(8, (20,), 16)


@task(mini, tiles=0, fraction=0.05)
def mini_pastis_hd_classif(config: ConfigDict) -> None:
    """Sets the multi-label classification of the land uses of embedded tiles, 6 classes."""
    classification(config, "weighted_f1")
    config.data.datasets.mini_pastis_hd = dataset(8, (20,), 16)
    config.optimizer.warmup_epochs = 1


def prepared(config: ConfigDict, name: str, dense: bool) -> None:
    """Sets a task on any dataset below data.root, prepared or as published, with all patch sizes."""
    short(config)
    segmentation(config, "") if dense else classification(config, "")
    config.data.datasets[name] = dataset(8, max_dates=24)
    config.optimizer.warmup_epochs = 0 if dense else 2
    # A dataset of one's own may have no test split.
    config.evaluate.splits = ("val",)


def at_random(config: ConfigDict, name: str) -> None:
    """Sets random initial weights: of the base model, or for small datasets of a tiny one as in configs/pretrain.py."""
    config.init = "none"
    if name in LITTLE or name == "prepared":
        config.model.update(dict(preset="tiny", dim=LITTLE.get(name, 128)))
    if name == "sen1floods11_chip":
        config.model.depth = 1


LITTLE = {name: 256 if size is short else 128 for name, (size, _) in TASKS.items() if size is not large}
"""Tasks for two CPU cores, and the width of their tiny model. Below a width of 128, the groups of a projector's first
norm have at most two channels, which removes most of a pixel's information."""


def make(job: str, arg: str, names: Collection[str], options: Collection[str] = ()) -> tuple[ConfigDict, str, set[str]]:
    """Returns a job's config for NAME[,OPTION...], or prepared,DATASET[,dense][,OPTION...].

    Args:
      job: finetune, probe or evaluate, also the name of the config file.
      arg: the text after the colon of --config.
      names: names of the tasks in the file.
      options: options besides smoke.

    Returns:
      The config, the name of the task, and the given options.

    Raises:
      ValueError: unknown name or option.
    """
    name, *words = arg.split(",")
    # The word behind `prepared` is a dataset, not an option.
    own = words.pop(0) if name == "prepared" and words else ""
    known = {"smoke", *options, *(["dense"] if own else [])}
    if not (own or name in names) or not set(words) <= known:
        after = "".join(f"[,{option}]" for option in (*options, "smoke"))
        raise ValueError(
            f"configs/{job}.py has no {arg!r}; it has NAME{after} with NAME one of {' | '.join(names)}, and "
            f"prepared,DATASET[,dense]{after}"
        )
    config = common(job, "_".join(word for word in (own or name, *words) if word != "smoke"))
    if own:
        prepared(config, own, "dense" in words)
    else:
        for setup in TASKS[name]:
            setup(config)
    return config, name, set(words)


def finish(config: ConfigDict, name: str, options: Collection[str]) -> ConfigDict:
    """Returns the config, changed to that of a smoke run if `options` has "smoke"."""
    if "smoke" in options:
        smoke(config, **SMOKE.get(name, dict(tiles=0)))
    return config
