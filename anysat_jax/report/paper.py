"""The paper's results: tables A and B of its supplement, every row and every number, in percent.

None of these numbers is ever shown as one of ours.
"""

import dataclasses
from collections.abc import Iterator

METRIC_NAMES = {"weighted_f1": "wF1", "macro_f1": "maF1", "mean_iou": "mIoU", "accuracy": "OA"}
"""Names of our metrics in the paper."""


@dataclasses.dataclass(frozen=True)
class PaperRow:
    """A row of a table."""

    model: str  # the model, and in parentheses how it was used, with its trainable parameters
    pretraining: str  # what it was pretrained on; "" in table B, which has no such column
    # For each of the block's modalities "✓" used, "◦" used as one date or as seasonal medians, "" not used.
    inputs: tuple[str, ...]
    scores: tuple[float | None, ...]  # for each of the block's metrics, in percent; None for a dash of the paper
    row: str = ""  # the id that a run of ours has in its config if it repeats this row; "" for rows of other models


@dataclasses.dataclass(frozen=True)
class PaperBlock:
    """The rows of one task."""

    table: str  # "A" (test sets of GeoPlex) or "B" (external datasets)
    heading: str  # as the paper prints it, without the number of the reference
    axis: str  # short name, for the radar
    modalities: tuple[str, ...]  # names of the columns of inputs
    metrics: tuple[str, ...]  # names of our scores, keys of `METRIC_NAMES`
    rows: tuple[PaperRow, ...]  # in the paper's order

    def best(self, metric: int) -> float:
        """Returns the highest score of a metric, which the paper prints in bold."""
        return max(score for row in self.rows if (score := row.scores[metric]) is not None)


def _parse(table: str, text: str) -> tuple[PaperBlock, ...]:
    """Reads blocks: "== heading | axis | modalities | metrics", then "model | pretraining | inputs | scores [| id]"."""
    blocks = []
    for block in text.strip().removeprefix("== ").split("\n== "):
        (heading, axis, modalities, metrics), *rows = [line.split(" | ") for line in block.splitlines()]
        parsed = [
            PaperRow(
                model,
                pretraining.strip("-"),
                tuple(sign.strip("-") for sign in inputs),
                tuple(None if score == "-" else float(score) for score in scores.split()),
                *row,
            )
            for model, pretraining, inputs, scores, *row in rows
        ]
        columns = tuple(modalities.split()), tuple(metrics.split()), tuple(parsed)
        blocks.append(PaperBlock(table, heading, axis.replace("/", "\n"), *columns))
    return tuple(blocks)


TABLE_A = _parse(
    "A",
    """
== TSAI-TS - multilabel classif. | TSAI-TS | VHR S1 S2 | weighted_f1
AnySat (ours) | GeoPlex | ✓✓✓ | 75.1 | A/treesatai_ts/finetune
AnySat (ours) | None | ✓✓✓ | 72.7 | A/treesatai_ts/scratch
OmniSat | TSAI-TS | ✓✓✓ | 74.2
DOFA | DOFA | ✓◦◦ | 71.6
PSE+LTAE | None | -✓✓ | 71.2
PSE + ResNet | None | ✓◦◦ | 68.1
ScaleMAE | TSAI | ✓-◦ | 62.5
SatMAE | TSAI | ✓-◦ | 61.5
CROMA | TSAI | ✓-◦ | 61.0
UT&T | ImageNet | ✓✓✓ | 56.7
MOSAICS | TSAI | --◦ | 56.0
PRESTO | PRESTO | --◦ | 46.3
== PLANTED - classif. | PLANTED | S1 S2 LS AL MO | macro_f1
AnySat (ours) | GeoPlex | ✓✓✓✓✓ | 61.5 | A/planted/finetune
AnySat (ours) | None | ✓✓✓✓✓ | 61.2 | A/planted/scratch
ViViT | None | ✓✓--- | 62.2
ViViT | None | ✓✓✓✓✓ | 59.3
== FLAIR - semantic seg | FLAIR | VHR S2 | mean_iou
AnySat (ours) | GeoPlex | ✓✓ | 55.1 | A/flair/finetune
AnySat (ours) | None | ✓✓ | 55.6 | A/flair/scratch
UT&T | ImageNet | ✓✓ | 56.9
UNet | ImageNet | ✓- | 54.7
UTAE | None | -✓ | 36.1
== PASTIS-HD - multilabel classif. | PASTIS-HD/classification | VHR S1 S2 | macro_f1
AnySat (ours) | GeoPlex | ✓✓✓ | 72.8 | A/pastis_hd_classif/finetune
AnySat (ours) | None | ✓✓✓ | 65.5 | A/pastis_hd_classif/scratch
OmniSat | PASTIS-HD | ✓✓✓ | 69.9
CROMA | PASTIS-HD | -◦◦ | 60.1
DOFA | DOFA | ✓◦◦ | 55.7
UT&T | ImageNet | ✓✓✓ | 53.5
UTAE | None | -✓✓ | 46.9
ScaleMAE | PASTIS-HD | ✓-◦ | 42.2
== PASTIS-HD - semantic seg | PASTIS-HD/segmentation | VHR S1 S2 | accuracy mean_iou
AnySat (ours) | GeoPlex | ✓✓✓ | 85.0 66.5 | A/pastis_hd_semseg/finetune
AnySat (ours) | None | ✓✓✓ | 84.8 66.3 | A/pastis_hd_semseg/scratch
SkySense | SkySense | ✓✓✓ | 85.9 -
UTAE-MM | None | -✓✓ | 84.2 66.3
TSViT | None | --✓ | 83.4 65.4
UTAE | None | --✓ | - 63.1
== PASTIS-HD - semseg LP | PASTIS-HD/segmentation, LP | VHR S1 S2 | mean_iou
AnySat LP (ours) | GeoPlex | ✓✓✓ | 42.7 | A/pastis_hd_semseg/probe
S12-DINO LP | foundation | ✓✓✓ | 36.2
S12-MoCo LP | foundation | ✓✓✓ | 34.5
S12-D2V LP | foundation | ✓✓✓ | 34.3
SpectralGPT | foundation | ✓✓✓ | 35.4
Prithvi | foundation | ✓✓✓ | 33.9
""",
)

TABLE_B = _parse(
    "B",
    """
== SICKLE | SICKLE | L8 S1 S2 | mean_iou
AnySat (fine-tune) | - | ✓✓✓ | 89.3 | B/sickle/finetune
AnySat (linear 6.1K) | - | ✓✓✓ | 82.0 | B/sickle/probe
Unet3d | - | ✓✓✓ | 82.1
UTAE | - | ✓✓✓ | 51.4
== BraDD-S1TS | BraDD-S1TS | S1 | mean_iou
AnySat (fine-tune) | - | ✓ | 80.9 | B/bradd_s1ts/finetune
AnySat (linear 6.1K) | - | ✓ | 78.9 | B/bradd_s1ts/probe
UTAE | - | ✓ | 70.7
3D-UNet | - | ✓ | 68.1
Conv-LSTM | - | ✓ | 63.7
== TimeSen2Crop | TimeSen2Crop | S2 | accuracy
AnySat (fine-tune) | - | ✓ | 92.2 | B/timesen2crop/finetune
AnySat (linear 14K) | - | ✓ | 70.3 | B/timesen2crop/probe
OS-CNN | - | ✓ | 81.2
MLP+TAE | - | ✓ | 80.9
W.LSTM | - | ✓ | 78.2
Transformer | - | ✓ | 78.1
MSResNet | - | ✓ | 76.3
== Sen1Floods11 | Sen1Floods11/LP | S1 S2 | mean_iou
AnySat (linear 6.1K) | - | ◦◦ | 91.1 | B/sen1floods11/probe
CROMA (UperNet 47M) | - | ◦◦ | 90.9
CROMA (fine-tune 350M) | - | ◦◦ | 90.9
Prithvi (fine-tune 130M) | - | ◦◦ | 90.4
Prithvi (UperNet 39M) | - | ◦◦ | 88.3
Prithvi2 (fine-tune 630M) | - | ◦◦ | 90.4
SatlasNet (UperNet 33M) | - | ◦◦ | 90.3
== HLS Burn Scar | HLS Burn Scar | HLS | mean_iou
AnySat (fine-tune) | - | ✓ | 90.6 | B/hls_burn_scars/finetune
AnySat (linear 3M) | - | ✓ | 87.7 | B/hls_burn_scars/probe
Prithvi2 (fine-tune 630M) | - | ✓ | 90.5
Prithvi (fine-tune 130M) | - | ✓ | 86.9
Prithvi (UperNet 39M) | - | ✓ | 83.6
CROMA (UperNet 47M) | - | ✓ | 82.4
DOFA (UperNet 39M) | - | ✓ | 80.6
== So2Sat | So2Sat/LP | S1 S2 | accuracy
AnySat (linear 29k) | - | ◦◦ | 59.1 | B/so2sat/probe
DOFA (linear) | - | ◦◦ | 59.3
CROMA (linear) | - | ◦◦ | 49.2
SatMAE (linear) | - | ◦◦ | 46.9
""",
)

BLOCKS = (*TABLE_A, *TABLE_B)


def row_ids() -> Iterator[str]:
    """Yields the ids of AnySat's rows, in the paper's order."""
    return (row.row for block in BLOCKS for row in block.rows if row.row)
