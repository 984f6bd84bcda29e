"""Fields of configs/finetune.py, probe.py and evaluate.py with their defaults, and the two schedules of the paper."""

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder


def common(job: str, name: str) -> ConfigDict:
    """Returns every field with its default: the paper's value, where the paper has one."""
    config = ConfigDict()
    config.job = job
    config.name = name
    config.row = ""  # row of the paper's tables to compare the result with, such as A/flair/finetune; "": none
    config.seed = 0
    config.init = ""  # a workdir, an exported .safetensors, a published .pth, or none
    config.mode = "finetune"  # or probe, last_block, projector, scratch: which parameters train
    config.new_sensors = ()  # not in pretraining: their projectors start at random
    config.dtype = "float32"  # of the computation; parameters are always float32
    config.epochs = 100
    config.checkpoint_every = 1000  # steps; a checkpoint is also written after each evaluation
    config.log_every = 1
    config.max_nonfinite_steps = 1  # successive non-finite steps that end the run; their updates are not applied
    config.watchdog_seconds = 1800.0  # time without a finished step or batch after which the run ends as hung; 0: never

    config.model = ConfigDict()  # None: as in the weights; with init = none, as in the base model
    config.model.preset = placeholder(str)  # tiny, small, base
    config.model.dim = placeholder(int)
    config.model.depth = placeholder(int)
    config.model.num_heads = placeholder(int)
    config.model.predictor_depth = placeholder(int)
    config.model.predictor_heads = placeholder(int)
    config.model.positions = placeholder(str)  # paper or released
    config.model.remat = "none"  # dots: less memory, little more compute; full: least memory, about a third more
    config.model.dropout = True  # in the projectors that train
    config.model.drop_path = 0.0  # rate of the last block; 0: off

    config.data = ConfigDict()
    config.data.root = ""
    config.data.num_workers = 0
    config.data.skip_corrupt = False  # skips and counts tiles whose records are damaged
    config.data.fake_tiles = 0  # fake tiles per split, in place of data.root; 0: none
    config.data.datasets = ConfigDict()

    config.task = ConfigDict()
    config.task.level = "tile"  # or dense: a prediction for each pixel of the label map
    config.task.metric = ""  # selects the best checkpoint; "": the default of the task
    config.task.sensor = ""  # its sub-patches make a dense prediction; "": the one that fits the label map
    config.task.class_weights = FieldReference("none", field_type=object)  # or balanced, or a number for each class
    config.task.label_smoothing = 0.0
    config.task.allow_absent_classes = False  # whether val or test may have a class that train lacks

    config.head = ConfigDict()
    config.head.kind = "linear"  # LayerNorm and Linear, the paper's; or mlp
    config.head.input = "tile"  # or dense (sub-patches), or mean (of the sub-patches over the tile)
    config.head.hidden = 512  # width of the mlp
    config.head.upsample = "shuffle"  # or bilinear, where a sub-patch has several label pixels
    config.head_init = "random"  # or probe: a linear head starts as the best probe of frozen features

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 5e-5
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = placeholder(float)  # None: gradients are not clipped
    config.optimizer.schedule = "cosine"  # or plateau
    config.optimizer.warmup_epochs = 0
    config.optimizer.layer_decay = 1.0  # learning rate of a block as a fraction of that of the block above it
    config.optimizer.plateau = ConfigDict(dict(factor=0.1, patience=10))  # patience: evaluations
    config.average_decay = 0.0  # decay of the moving average of the weights that is evaluated and saved; 0: no average
    config.early_stopping = placeholder(int)  # evaluations without improvement; None: all epochs

    config.evaluate = ConfigDict()
    config.evaluate.every = 1  # epochs
    config.evaluate.splits = ("val", "test")  # evaluated at the end, with the best checkpoint
    config.evaluate.patch_sizes = placeholder(tuple)  # metres; logits are averaged over several. None: as in training
    config.evaluate.batch_size = 16
    config.evaluate.panels = 4  # tiles in the report

    config.cache = ConfigDict()  # features of a frozen encoder, in mode probe
    config.cache.folder = ""  # "": the user's cache
    config.cache.max_gb = 50.0  # per split; larger ones are an error, see pixels_per_tile
    config.cache.pixels_per_tile = placeholder(int)  # sampled from each tile; None: all
    config.knn = ConfigDict(dict(neighbours=0))  # nearest training tiles that vote on frozen features; 0: none

    config.profile = ConfigDict()
    config.profile.steps = placeholder(tuple)  # first and last step of a trace, such as (20, 24); None: no trace

    config.mesh = ConfigDict()
    config.mesh.data = placeholder(int)  # None: all remaining devices
    config.mesh.fsdp = 1  # devices over which parameters are sharded
    config.mesh.tensor = 1  # devices over which attention heads and hidden channels of each tile are sharded
    return config


def dataset(batch_size: int, patch_sizes: tuple[int, ...] | None = None, max_dates: int | None = None) -> ConfigDict:
    """Returns a dataset: batch size over all devices, patch sizes in metres, maximum number of dates of a series."""
    section = ConfigDict(dict(batch_size=batch_size))
    section.patch_sizes = placeholder(tuple)  # one is drawn for each batch; None: all of the dataset's card
    section.max_dates = placeholder(int)  # None: all
    section.temporal_dropout = 0.0  # fraction of the dates dropped at random in training
    section.max_cloud = placeholder(float)  # percent; cloudier dates are dropped, where the archive has cloud cover
    section.date_buckets = ()  # lengths that series are padded to; (): one length
    section.extent = placeholder(float)  # metres; smaller tiles are cut from the dataset's
    section.dates = "day_of_year"  # or published: days since the card's date_origin
    section.augment = True  # flips and quarter turns
    section.noise = 0.0  # standard deviation of noise on standardised values in training, against overfitting
    section.fraction = 1.0  # of the training tiles; smaller fractions are subsets of larger ones
    section.fraction_seed = 0  # another seed selects other tiles
    section.update(dict(patch_sizes=patch_sizes, max_dates=max_dates))
    return section


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
    config.early_stopping = 25  # after the rate was reduced twice


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
    config.task.allow_absent_classes = True  # so few tiles cannot have all classes
    config.optimizer.warmup_epochs = 0
    config.evaluate.update(dict(every=1, batch_size=4, patch_sizes=None, panels=2))
    config.model.dropout = False  # a quarter of the compile time
    config.mesh.data = 1  # the same on any number of devices
