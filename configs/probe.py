"""Linear probing: a LayerNorm and a linear layer on frozen features, which are computed once and cached.

python -m anysat_jax.main --config=configs/probe.py:NAME --config.init=WEIGHTS --config.data.root=DIR

NAME                      hardware     time     score of the paper, or expected score
mini_flair (default)      2 CPU cores  minutes  accuracy, against mini_flair,random
mini_pastis_hd_semseg     2 CPU cores  minutes  mIoU, against ...,random
mini_pastis_hd_classif    2 CPU cores  minutes  wF1, against ...,random
fuel_moisture_land_cover  2 CPU cores  minutes  accuracy 0.65, macro-F1 0.31 (Presto's encoder 0.654, 0.364)
fuel_moisture             2 CPU cores  minutes  R2 0.33 to 0.36 (ridge regression 0.23)
sen1floods11_chip         2 CPU cores  minutes  accuracy, beside 0.922 of logistic regression
pastis_hd_semseg          1 x H100     not run  mIoU 42.7
sickle                    1 x H100     not run  mIoU 82.0, 6.1K parameters
bradd_s1ts                1 x H100     not run  mIoU 78.9, 6.1K
timesen2crop              1 x H100     not run  OA 70.3, 14K
sen1floods11              1 x H100     not run  mIoU 91.1, 6.1K
hls_burn_scars            8 x H100     not run  mIoU 87.7, 3M: the new sensor's projector is trained too
so2sat                    1 x H100     not run  OA 59.1, 29K
prepared,DATASET          2 CPU cores  minutes  any prepared dataset, also your own: one prediction per tile
prepared,DATASET,dense    2 CPU cores  minutes  the same, one prediction per pixel of its mask

Suffixes of a name: ",random" probes a randomly initialised encoder, as a baseline; ",smoke" trains a tiny random model
within a minute on a CPU, on a fake archive in place of a download. WEIGHTS is the workdir of a run, an exported
.safetensors, a published .pth, or none. docs/TASKS.md explains the options. The first epoch computes the features; all
others take seconds.
"""

from ml_collections import ConfigDict

from anysat_jax.configs import tasks

TABLE_B = ("sickle", "bradd_s1ts", "timesen2crop", "sen1floods11", "hls_burn_scars", "so2sat")
PAPER_TABLES = {"pastis_hd_semseg": "A"} | dict.fromkeys(TABLE_B, "B")  # where the paper has a row for a name
NAMES = (
    "mini_flair",
    "mini_pastis_hd_semseg",
    "mini_pastis_hd_classif",
    "fuel_moisture_land_cover",
    "fuel_moisture",
    "sen1floods11_chip",
    *PAPER_TABLES,
)


def get_config(arg: str = "mini_flair") -> ConfigDict:
    """Returns the config of a name in `NAMES`, or of prepared,DATASET.

    Raises:
      ValueError: the name is unknown.
    """
    config, name, options = tasks.make("probe", arg, NAMES, ("random",))
    config.mode = "probe"
    if name == "hls_burn_scars":
        # Frozen features lack its sensor, which pretraining did not have.
        config.mode = "projector"
    if name in PAPER_TABLES:
        config.row = f"{PAPER_TABLES[name]}/{name}/probe"
    else:
        # The solver finds the optimum: nothing is left to train. The paper's rows are trained, as in the paper.
        config.head_init, config.epochs, config.optimizer.warmup_epochs = "probe", 0, 0
        config.average_decay = 0.0
    # Neighbours compare tiles: all pixels of a dense task would be too many.
    if config.task.level == "tile":
        config.knn.neighbours = 20
    if "random" in options:
        config.row = ""
        tasks.at_random(config, name)
    return tasks.finish(config, name, options)
