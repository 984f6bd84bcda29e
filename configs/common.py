"""Fields that the configs of all jobs share."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def common(job: str, name: str = "") -> ConfigDict:
    """Returns the shared fields with their defaults: the paper's values, where the paper has one."""
    config = ConfigDict({section: ConfigDict() for section in ("model", "data", "optimizer", "mesh", "profile")})
    config.job = job
    config.name = name
    config.seed = 0
    config.init = ""  # initial weights: a workdir, .safetensors, .pth, hf:...
    config.dtype = "float32"  # of the computation; parameters are always float32
    config.checkpoint_every = 1000  # steps
    config.log_every = 1
    config.max_nonfinite_steps = 1  # successive non-finite steps that end the run; their updates are not applied
    config.watchdog_seconds = 1800.0  # time without a finished step or batch after which the run ends as hung; 0: never

    config.model.preset = placeholder(str)  # tiny, small, base: values of the fields below that are None
    config.model.dim = placeholder(int)
    config.model.depth = placeholder(int)
    config.model.num_heads = placeholder(int)
    config.model.predictor_depth = placeholder(int)
    config.model.predictor_heads = placeholder(int)
    config.model.positions = placeholder(str)  # paper, or released for the published weights
    config.model.norm_groups = placeholder(str)  # width, or published: of the norms of series, at widths below 96
    config.model.remat = "none"  # dots: less memory, little more compute; full: least memory, about a third more
    config.model.dropout = True  # in the projectors that train

    config.data.root = ""
    config.data.num_workers = 0
    config.data.skip_corrupt = False  # skips and counts tiles whose records are damaged
    config.data.datasets = ConfigDict()

    config.optimizer.learning_rate = 5e-5
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = placeholder(float)  # None: gradients are not clipped
    config.optimizer.schedule = "cosine"  # or plateau
    config.optimizer.plateau = ConfigDict(dict(factor=0.1, patience=10))  # patience: evaluations, or windows of steps

    config.mesh.data = placeholder(int)  # None: all remaining devices
    config.mesh.fsdp = 1  # devices over which parameters are sharded
    config.mesh.tensor = 1  # devices over which attention heads and hidden channels of each tile are sharded

    config.profile.steps = placeholder(tuple)  # first and last step of a trace, such as (20, 24); None: no trace
    return config


def dataset(
    batch_size: int, patch_sizes: tuple[int, ...] | None = None, max_dates: int | None = None, weight: float = 1.0
) -> ConfigDict:
    """Returns a dataset: batch size over all devices, patch sizes in metres, maximum number of dates of a series."""
    section = ConfigDict(dict(batch_size=batch_size))
    section.weight = weight  # number of steps, relative to the other datasets
    section.patch_sizes = placeholder(tuple)  # one is sampled for each batch; None: all of the dataset's card
    section.max_dates = placeholder(int)  # None: all
    section.temporal_dropout = 0.0  # fraction of the dates dropped at random in training
    section.max_cloud = placeholder(float)  # percent; cloudier dates are dropped, where the archive has cloud cover
    section.date_buckets = ()  # lengths that series are padded to; (): one length
    section.extent = placeholder(float)  # metres; smaller tiles are cut from the dataset's
    section.dates = "day_of_year"  # or published: days since the card's date_origin; or none: day 0 for all
    section.augment = True  # flips and quarter turns
    section.noise = 0.0  # standard deviation of noise on standardised values in training, against overfitting
    section.fraction = 1.0  # of the training tiles; smaller fractions are subsets of larger ones
    section.fraction_seed = 0  # another seed selects other tiles
    section.update(dict(patch_sizes=patch_sizes, max_dates=max_dates))
    return section
