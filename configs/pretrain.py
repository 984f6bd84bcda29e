"""Pretraining: masked prediction and cross-sensor contrast.

python -m anysat_jax.main --config=configs/pretrain.py:NAME, with NAME one of

name               hardware     time       score
mini (default)     2 CPU cores  5-10 min   land cover: mIoU of probes about 10 points above random initial weights
treesatai_ts       2 CPU cores  minutes    both losses fall; one tile is enough for a trial
treesatai_ts,base  8 x H100     not run    aims at the paper's wF1 75.1 after fine-tuning
geoplex            8 x H100     not run    aims at the paper's tables
fuel_moisture      2 CPU cores  minutes    land cover of single pixels from three dates, see docs/RESULTS.md
sen1floods11_chip  2 CPU cores  minutes    water on one real chip, see docs/RESULTS.md
prepared,NAME      2 CPU cores  minutes    depends on the data: NAME is any prepared dataset, also your own

docs/RESULTS.md has the measured results. All but mini need --config.data.root=DIR, the folder of the downloads or the
--out of `python -m data_pipelines prepare`. `prepared` takes several names: prepared,fields,forests. Any value can be
overridden, for instance --config.model.dim=128 --config.total_steps=1000. The same command and --workdir resume a run.
"""

from anysat_jax.configs.common import dataset
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from anysat_jax.configs import common as shared

NAMES = ("mini", "geoplex", "treesatai_ts", "treesatai_ts,base", "fuel_moisture", "sen1floods11_chip")


def get_config(arg: str = "mini") -> ConfigDict:
    """Returns the config of a name in `NAMES`, or of prepared,NAME,...

    Raises:
      ValueError: the name is unknown.
    """
    makers = dict(zip(NAMES, (mini, geoplex, treesatai_ts, treesatai_ts_base, fuel_moisture, sen1floods11_chip)))
    if arg.startswith("prepared,") and (names := [name for name in arg.split(",")[1:] if name]):
        return prepared(*names)
    if arg not in makers:
        raise ValueError(f"configs/pretrain.py has no {arg!r}; it has {' | '.join(NAMES)} | prepared,NAME,...")
    return makers[arg]()


def common() -> ConfigDict:
    """Returns every field with its default: the paper's value, where the paper has one."""
    config = shared.common("pretrain")  # job: or describe
    config.update({section: ConfigDict() for section in ("pretrain", "health", "evaluate")})
    config.total_steps = 1000
    config.checkpoint_every = 100
    config.accumulate = 1  # micro-batches per step: less memory; each has its own contrastive negatives
    config.model.update(dict(preset="tiny", positions="paper", norm_groups="width"))
    config.model.sensors = placeholder(tuple)  # None: those of the datasets

    config.pretrain.ema_start = 0.996
    config.pretrain.objective = "paper"  # or reconstruction: of raw values, without a teacher
    config.pretrain.temperature = 0.1
    config.pretrain.predictive_weight = 1.0
    config.pretrain.contrastive_weight = 1.0
    config.pretrain.mask_dates = True  # the student sees half of the dates
    config.pretrain.mask_sensors = True  # the student sees few of a patch's sensors
    config.pretrain.num_target_blocks = 4
    config.pretrain.target_scale = (0.2, 0.8)
    config.pretrain.target_aspect = (0.75, 1.5)
    config.pretrain.context_scale = (0.85, 1.0)
    config.pretrain.mask_buckets = (2, 2)  # static sizes of targets and of contexts: at most a program for each pair
    config.pretrain.contrastive_block = 1024  # rows of the similarity matrix that are in memory at once
    config.pretrain.negatives = "global"  # from all devices; or device: from the token's own, as originally trained

    config.optimizer.update(dict(weight_decay=0.05, schedule="plateau", warmup_steps=0))
    config.optimizer.plateau.window = 100  # steps per mean loss

    # Limits for the teacher's features; beyond them the run warns of a collapse.
    config.health.min_rank_share = 0.2  # fraction of the initial rank between tiles
    config.health.max_cosine = 0.999  # between tiles at the same position
    config.health.min_variance = 1e-3  # over all patches, at most 1; 0: never warns

    config.evaluate.probe = True  # linear probes at the end; curves are always drawn
    config.evaluate.datasets = placeholder(tuple)  # None: all of data.datasets
    config.evaluate.patch_size = placeholder(float)  # in metres; None: the smallest of each dataset in training
    config.evaluate.batch_size = 16
    config.evaluate.max_tiles = 256  # per split
    config.evaluate.pixels_per_tile = 48  # per training tile, for the probe of dense features
    config.evaluate.pictures = 4  # tiles of each dataset in the report
    return config


def mini() -> ConfigDict:
    """Returns a tiny model on the embedded data: all parts of the large run, in minutes."""
    config = small_run("mini")
    config.total_steps = 300
    config.data.datasets = ConfigDict(
        dict(
            mini_treesatai_ts=dataset(8, (10,), 16),
            mini_pastis_hd=dataset(8, (20,), 16, weight=2.0),
            mini_flair=dataset(8, (10,), 12, weight=3.0),  # by far the cheapest
            mini_planted=dataset(8, (30,), 20),
            mini_s2naip=dataset(8, (20,), 14),
        )
    )
    config.evaluate.datasets = ("mini_pastis_hd", "mini_flair")  # tile classes and land cover, cheap to encode
    return config


def geoplex() -> ConfigDict:
    """Returns the paper's run: base, five datasets, its patch sizes (Table C), batch sizes and sampling weights."""
    config = large_run("geoplex")
    config.total_steps = 400_000
    config.checkpoint_every = 2000
    config.log_every = 50
    config.optimizer.plateau.window = 4000
    config.data.datasets = ConfigDict(
        dict(
            treesatai_ts=dataset(384, (10, 20, 30), 70),
            pastis_hd=dataset(8, (40, 80, 160), 20),
            flair=dataset(96, (10, 20, 50), 35),
            planted=dataset(2048, (30, 60), 60, weight=2.0),
            s2naip=dataset(16, (40, 80, 160), 32, weight=4.0),
        )
    )
    return config


def prepared(*names: str) -> ConfigDict:
    """Returns a tiny model on datasets below data.root, prepared or as published, with all patch sizes."""
    config = small_run("_".join(names))
    config.data.datasets = ConfigDict({name: dataset(4, max_dates=24) for name in names})
    return config


def treesatai_ts() -> ConfigDict:
    """Returns a tiny model on real data, for a laptop and any number of tiles."""
    config = small_run("treesatai_ts")
    config.model.sensors = ("aerial", "s2", "s1-asc")
    config.data.datasets = ConfigDict(dict(treesatai_ts=dataset(4, (10, 20, 30), 24)))
    # A single tile leaves no held-out tiles.
    config.evaluate.probe = False
    return config


def fuel_moisture() -> ConfigDict:
    """Returns a small model on real series of single pixels, Sentinel-1 and -2, for finetune.py:fuel_moisture."""
    config = small_run("fuel_moisture")
    config.total_steps = 600
    config.model.dim = 256
    config.checkpoint_every = 200
    config.data.datasets = ConfigDict(dict(fuel_moisture_land_cover=dataset(128)))
    return config


def sen1floods11_chip() -> ConfigDict:
    """Returns a small model on the left half of one real chip, single dates of Sentinel-1 and -2."""
    config = small_run("sen1floods11_chip")
    config.total_steps = 150
    config.checkpoint_every = 50
    config.model.update(dict(dim=256, depth=1))
    config.data.datasets = ConfigDict(dict(sen1floods11_chip=dataset(8, (40,))))
    return config


def small_run(name: str) -> ConfigDict:
    """Returns the fields with which a tiny model learns within minutes."""
    config = common()
    config.name = name
    config.total_steps = 150
    config.checkpoint_every = 50
    # Half of the preset's width gives twice the steps on two cores; the run is too short to overfit.
    config.model.dim = 128
    config.model.dropout = False
    # Fewer programs: compilation takes about half of the time.
    config.pretrain.mask_buckets = (1, 1)
    # In so few steps the paper's objective learns little, see docs/RESULTS.md; with it, the contrastive weight is 1.
    config.pretrain.objective = "reconstruction"
    config.pretrain.contrastive_weight = 0.0
    # At 0.996, half of the teacher after so few steps would be its initial values.
    config.pretrain.ema_start = 0.97
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = config.get_ref("total_steps") // 10
    config.optimizer.clip_norm = 1.0
    return config


def large_run(name: str) -> ConfigDict:
    """Returns the fields of the paper's model on several accelerators."""
    config = common()
    config.name = name
    config.dtype = "bfloat16"
    config.model.update(dict(preset="base", remat="full"))
    config.data.num_workers = 8
    return config


def treesatai_ts_base() -> ConfigDict:
    """Returns the paper's model on one dataset."""
    config = large_run("treesatai_ts_base")
    config.total_steps = 50_000
    config.checkpoint_every = 1000
    config.log_every = 20
    config.model.sensors = ("aerial", "s2", "s1-asc")
    config.optimizer.plateau.window = 130  # an epoch
    config.data.datasets = ConfigDict(dict(treesatai_ts=dataset(384, (10, 20, 30), 70)))
    return config
