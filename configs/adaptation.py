"""Fields of configs/finetune.py, probe.py and evaluate.py with their defaults, and the two schedules of the paper."""

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder

from anysat_jax.configs import common as shared


def common(job: str, name: str) -> ConfigDict:
    """Returns every field with its default: the paper's value, where the paper has one."""
    config = shared.common(job, name)  # init may be none, too; a field of model that is None is as in the weights
    config.update({section: ConfigDict() for section in ("task", "head", "evaluate", "cache", "knn")})
    config.row = ""  # row of the paper's tables to compare the result with, such as A/flair/finetune; "": none
    config.mode = "finetune"  # or probe, last_block, projector, scratch: which parameters train
    config.new_sensors = ()  # not in pretraining: their projectors start as the nearest sensors'
    config.epochs = 100
    config.model.drop_path = 0.0  # rate of the last block; 0: off
    config.model.input_gain = 1.0  # of the first weights of series at a random start; 0.01: nearly linear features
    config.data.fake_tiles = 0  # fake tiles per split, in place of data.root; 0: none

    config.task.level = "tile"  # or dense: a prediction for each pixel of the label map
    config.task.metric = ""  # selects the best checkpoint; "": the default of the task
    config.task.sensor = ""  # its sub-patches make a dense prediction; "": the one that fits the label map
    # A reference of any type, since a ConfigDict refuses numbers in place of text.
    config.task.class_weights = FieldReference("none", field_type=object)  # or balanced, or a number for each class
    config.task.label_smoothing = 0.0
    config.task.allow_absent_classes = False  # whether val or test may have a class that train lacks

    config.head.update(dict(kind="linear", hidden=512))  # LayerNorm and Linear, the paper's; or mlp, of that width
    config.head.input = "tile"  # or dense (sub-patches), or mean (of the sub-patches over the tile)
    config.head.upsample = "shuffle"  # or bilinear, where a sub-patch has several label pixels
    config.head_init = "random"  # or probe: a linear head starts as the best probe of frozen features

    config.optimizer.warmup_epochs = 0
    config.optimizer.layer_decay = 1.0  # learning rate of a block as a fraction of that of the block above it
    config.average_decay = 0.0  # decay of the moving average of the weights that is evaluated and saved; 0: no average
    config.early_stopping = placeholder(int)  # evaluations without improvement; None: all epochs

    config.evaluate.every = 1  # epochs
    config.evaluate.splits = ("val", "test")  # evaluated at the end, with the best checkpoint
    config.evaluate.patch_sizes = placeholder(tuple)  # metres; logits are averaged over several. None: as in training
    config.evaluate.batch_size = 16
    config.evaluate.panels = 4  # tiles in the report

    config.cache.folder = ""  # of the features of a frozen encoder, in mode probe; "": the user's cache
    config.cache.max_gb = 50.0  # per split; larger ones are an error, see pixels_per_tile
    config.cache.pixels_per_tile = placeholder(int)  # sampled from each tile; None: all
    config.knn.neighbours = 0  # nearest training tiles that vote on frozen features; 0: none
    return config


def classification(config: ConfigDict, metric: str) -> None:
    """Sets one prediction per tile, with the paper's schedule for it: linear warm-up, then cosine."""
    config.task.update(dict(level="tile", metric=metric))
    config.head.input = "tile"
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 20


def segmentation(config: ConfigDict, metric: str = "mean_iou") -> None:
    """Sets one prediction per pixel, with the paper's schedule for it: reduce on plateau of the validation metric."""
    config.task.update(dict(level="dense", metric=metric))
    config.head.input = "dense"
    config.optimizer.schedule = "plateau"
    config.optimizer.warmup_epochs = 0
    # After the rate was reduced twice: `plateau.patience` is 10 evaluations.
    config.early_stopping = 25


def large(config: ConfigDict) -> None:
    """Sets the fields for several accelerators."""
    config.dtype = "bfloat16"
    config.log_every = 20
    config.data.num_workers = 8
    config.model.remat = "full"


def smoke(config: ConfigDict, tiles: int, **data: object) -> None:
    """Sets a tiny random model, one epoch and fake tiles: a test of the whole job, in a minute on a CPU.

    Args:
      tiles: fake tiles per split; 0 for a generated or prepared dataset.
      **data: fields of the dataset that keep it small.
    """
    config.name += "_smoke"
    config.row = ""  # not a result to compare with the paper
    config.init = "none"
    config.epochs = 1
    config.dtype = "float32"
    config.log_every = 1
    config.early_stopping = None
    config.head_init = "random"
    config.model.update(
        dict(preset="tiny", dim=32, depth=1, num_heads=2, predictor_depth=1, predictor_heads=2, remat="none")
    )
    config.data.update(dict(num_workers=0, fake_tiles=tiles))
    for section in config.data.datasets.values():
        section.update(dict(batch_size=2, max_dates=4) | data)
    # So few tiles cannot have all classes.
    config.task.allow_absent_classes = True
    config.optimizer.warmup_epochs = 0
    config.evaluate.update(dict(every=1, batch_size=4, patch_sizes=None, panels=2))
    # Dropout is a quarter of the compile time; one device is the same on any machine.
    config.model.dropout = False
    config.mesh.data = 1
