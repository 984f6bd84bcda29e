"""Fine-tuning of all or some of the weights on the labels of one dataset.

python -m anysat_jax.main --config=configs/finetune.py:NAME --config.init=WEIGHTS --config.data.root=DIR

NAME                      hardware     time     score of the paper, or expected score
mini_flair (default)      2 CPU cores  minutes  accuracy, against mini_flair,scratch
mini_pastis_hd_semseg     2 CPU cores  minutes  mIoU, against ...,scratch
mini_pastis_hd_classif    2 CPU cores  minutes  wF1, against ...,scratch
fuel_moisture_land_cover  2 CPU cores  minutes  accuracy 0.65, macro-F1 0.31 (logistic regression 0.64, 0.32)
fuel_moisture             2 CPU cores  minutes  R2 0.35 to 0.37 (ridge regression 0.23)
sen1floods11_chip         2 CPU cores  minutes  accuracy 0.925, mIoU 0.854 (logistic regression 0.924, 0.850)
treesatai_ts              8 x H100     not run  wF1 75.1; scratch 72.7
planted                   8 x H100     not run  maF1 61.5; scratch 61.2
flair                     8 x H100     not run  mIoU 55.1; scratch 55.6
pastis_hd_classif         8 x H100     not run  maF1 72.8; scratch 65.5
pastis_hd_semseg          8 x H100     not run  mIoU 66.5, OA 85.0; scratch 66.3, 84.8
sickle                    8 x H100     not run  mIoU 89.3
bradd_s1ts                8 x H100     not run  mIoU 80.9
timesen2crop              8 x H100     not run  OA 92.2
hls_burn_scars            8 x H100     not run  mIoU 90.6
so2sat, sen1floods11      8 x H100     not run  the paper only probes these
spacenet7, biomassters    8 x H100     not run  not in the paper
prepared,DATASET          2 CPU cores  minutes  any prepared dataset, also your own: one prediction per tile
prepared,DATASET,dense    2 CPU cores  minutes  the same, one prediction per pixel of its mask

Suffixes of a name: ",scratch" starts from random weights, without --config.init; ",smoke" trains a tiny random model
within a minute on a CPU, on a fake archive in place of a download. WEIGHTS is the workdir of a run, an exported
.safetensors, a published .pth, or none. docs/TASKS.md explains the options, docs/RESULTS.md has measured scores. The
same command on the same --workdir resumes.
"""

from ml_collections import ConfigDict

from anysat_jax.configs import tasks

NAMES = tuple(tasks.TASKS)
TABLE_A = ("treesatai_ts", "planted", "flair", "pastis_hd_classif", "pastis_hd_semseg")
TABLE_B = ("sickle", "bradd_s1ts", "timesen2crop", "hls_burn_scars")


def get_config(arg: str = "mini_flair") -> ConfigDict:
    """Returns the config of a name in `NAMES`, or of prepared,DATASET.

    Raises:
      ValueError: the name is unknown.
    """
    config, name, options = tasks.make("finetune", arg, NAMES, ("scratch",))
    if name in TABLE_A + TABLE_B:
        config.row = f"{'A' if name in TABLE_A else 'B'}/{name}/finetune"
    if "scratch" in options:
        config.mode = "scratch"
        tasks.at_random(config, name)
        config.row = f"A/{name}/scratch" if name in TABLE_A else ""
    return tasks.finish(config, name, options)
