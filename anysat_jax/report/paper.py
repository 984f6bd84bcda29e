"""The paper's results: tables A and B of its supplement, every row and every number, in percent.

None of these numbers is ever shown as one of ours.
"""

import dataclasses
from collections.abc import Iterator

METRIC_NAMES = {"weighted_f1": "wF1", "macro_f1": "maF1", "mean_iou": "mIoU", "accuracy": "OA"}
"""Names of our metrics in the paper."""


@dataclasses.dataclass(frozen=True)
class PaperRow:
    """A row of a table.

    Attributes:
      model: the model, and in parentheses how it was used, with its trainable parameters.
      pretraining: what it was pretrained on; "" in table B, which has no such column.
      inputs: for each of the block's modalities "✓" used, "◦" used as one date or as seasonal medians, "" not used.
      scores: for each of the block's metrics, in percent; None for a dash of the paper.
      row: the id that a run of ours has in its config if it repeats this row; "" for rows of other models.
    """

    model: str
    pretraining: str
    inputs: tuple[str, ...]
    scores: tuple[float | None, ...]
    row: str = ""


@dataclasses.dataclass(frozen=True)
class PaperBlock:
    """The rows of one task.

    Attributes:
      table: "A" (test sets of GeoPlex) or "B" (external datasets).
      heading: as the paper prints it, without the number of the reference.
      axis: short name, for the radar.
      modalities: names of the columns of inputs.
      metrics: names of our scores, keys of `METRIC_NAMES`.
      rows: in the paper's order.
    """

    table: str
    heading: str
    axis: str
    modalities: tuple[str, ...]
    metrics: tuple[str, ...]
    rows: tuple[PaperRow, ...]

    def best(self, metric: int) -> float:
        """Returns the highest score of a metric, which the paper prints in bold."""
        return max(score for row in self.rows if (score := row.scores[metric]) is not None)


def _row(model: str, pretraining: str, inputs: str, *scores: float | None, row: str = "") -> PaperRow:
    """Returns a row, with its inputs as one character each, "-" for those that are not used."""
    return PaperRow(model, pretraining, tuple("" if sign == "-" else sign for sign in inputs), scores, row)


TABLE_A = (
    PaperBlock(
        table="A",
        heading="TSAI-TS - multilabel classif.",
        axis="TSAI-TS",
        modalities=("VHR", "S1", "S2"),
        metrics=("weighted_f1",),
        rows=(
            _row("AnySat (ours)", "GeoPlex", "✓✓✓", 75.1, row="A/treesatai_ts/finetune"),
            _row("AnySat (ours)", "None", "✓✓✓", 72.7, row="A/treesatai_ts/scratch"),
            _row("OmniSat", "TSAI-TS", "✓✓✓", 74.2),
            _row("DOFA", "DOFA", "✓◦◦", 71.6),
            _row("PSE+LTAE", "None", "-✓✓", 71.2),
            _row("PSE + ResNet", "None", "✓◦◦", 68.1),
            _row("ScaleMAE", "TSAI", "✓-◦", 62.5),
            _row("SatMAE", "TSAI", "✓-◦", 61.5),
            _row("CROMA", "TSAI", "✓-◦", 61.0),
            _row("UT&T", "ImageNet", "✓✓✓", 56.7),
            _row("MOSAICS", "TSAI", "--◦", 56.0),
            _row("PRESTO", "PRESTO", "--◦", 46.3),
        ),
    ),
    PaperBlock(
        table="A",
        heading="PLANTED - classif.",
        axis="PLANTED",
        modalities=("S1", "S2", "LS", "AL", "MO"),
        metrics=("macro_f1",),
        rows=(
            _row("AnySat (ours)", "GeoPlex", "✓✓✓✓✓", 61.5, row="A/planted/finetune"),
            _row("AnySat (ours)", "None", "✓✓✓✓✓", 61.2, row="A/planted/scratch"),
            _row("ViViT", "None", "✓✓---", 62.2),
            _row("ViViT", "None", "✓✓✓✓✓", 59.3),
        ),
    ),
    PaperBlock(
        table="A",
        heading="FLAIR - semantic seg",
        axis="FLAIR",
        modalities=("VHR", "S2"),
        metrics=("mean_iou",),
        rows=(
            _row("AnySat (ours)", "GeoPlex", "✓✓", 55.1, row="A/flair/finetune"),
            _row("AnySat (ours)", "None", "✓✓", 55.6, row="A/flair/scratch"),
            _row("UT&T", "ImageNet", "✓✓", 56.9),
            _row("UNet", "ImageNet", "✓-", 54.7),
            _row("UTAE", "None", "-✓", 36.1),
        ),
    ),
    PaperBlock(
        table="A",
        heading="PASTIS-HD - multilabel classif.",
        axis="PASTIS-HD\nclassification",
        modalities=("VHR", "S1", "S2"),
        metrics=("macro_f1",),
        rows=(
            _row("AnySat (ours)", "GeoPlex", "✓✓✓", 72.8, row="A/pastis_hd_classif/finetune"),
            _row("AnySat (ours)", "None", "✓✓✓", 65.5, row="A/pastis_hd_classif/scratch"),
            _row("OmniSat", "PASTIS-HD", "✓✓✓", 69.9),
            _row("CROMA", "PASTIS-HD", "-◦◦", 60.1),
            _row("DOFA", "DOFA", "✓◦◦", 55.7),
            _row("UT&T", "ImageNet", "✓✓✓", 53.5),
            _row("UTAE", "None", "-✓✓", 46.9),
            _row("ScaleMAE", "PASTIS-HD", "✓-◦", 42.2),
        ),
    ),
    PaperBlock(
        table="A",
        heading="PASTIS-HD - semantic seg",
        axis="PASTIS-HD\nsegmentation",
        modalities=("VHR", "S1", "S2"),
        metrics=("accuracy", "mean_iou"),
        rows=(
            _row("AnySat (ours)", "GeoPlex", "✓✓✓", 85.0, 66.5, row="A/pastis_hd_semseg/finetune"),
            _row("AnySat (ours)", "None", "✓✓✓", 84.8, 66.3, row="A/pastis_hd_semseg/scratch"),
            _row("SkySense", "SkySense", "✓✓✓", 85.9, None),
            _row("UTAE-MM", "None", "-✓✓", 84.2, 66.3),
            _row("TSViT", "None", "--✓", 83.4, 65.4),
            _row("UTAE", "None", "--✓", None, 63.1),
        ),
    ),
    PaperBlock(
        table="A",
        heading="PASTIS-HD - semseg LP",
        axis="PASTIS-HD\nsegmentation, LP",
        modalities=("VHR", "S1", "S2"),
        metrics=("mean_iou",),
        rows=(
            _row("AnySat LP (ours)", "GeoPlex", "✓✓✓", 42.7, row="A/pastis_hd_semseg/probe"),
            _row("S12-DINO LP", "foundation", "✓✓✓", 36.2),
            _row("S12-MoCo LP", "foundation", "✓✓✓", 34.5),
            _row("S12-D2V LP", "foundation", "✓✓✓", 34.3),
            _row("SpectralGPT", "foundation", "✓✓✓", 35.4),
            _row("Prithvi", "foundation", "✓✓✓", 33.9),
        ),
    ),
)

TABLE_B = (
    PaperBlock(
        table="B",
        heading="SICKLE",
        axis="SICKLE",
        modalities=("L8", "S1", "S2"),
        metrics=("mean_iou",),
        rows=(
            _row("AnySat (fine-tune)", "", "✓✓✓", 89.3, row="B/sickle/finetune"),
            _row("AnySat (linear 6.1K)", "", "✓✓✓", 82.0, row="B/sickle/probe"),
            _row("Unet3d", "", "✓✓✓", 82.1),
            _row("UTAE", "", "✓✓✓", 51.4),
        ),
    ),
    PaperBlock(
        table="B",
        heading="BraDD-S1TS",
        axis="BraDD-S1TS",
        modalities=("S1",),
        metrics=("mean_iou",),
        rows=(
            _row("AnySat (fine-tune)", "", "✓", 80.9, row="B/bradd_s1ts/finetune"),
            _row("AnySat (linear 6.1K)", "", "✓", 78.9, row="B/bradd_s1ts/probe"),
            _row("UTAE", "", "✓", 70.7),
            _row("3D-UNet", "", "✓", 68.1),
            _row("Conv-LSTM", "", "✓", 63.7),
        ),
    ),
    PaperBlock(
        table="B",
        heading="TimeSen2Crop",
        axis="TimeSen2Crop",
        modalities=("S2",),
        metrics=("accuracy",),
        rows=(
            _row("AnySat (fine-tune)", "", "✓", 92.2, row="B/timesen2crop/finetune"),
            _row("AnySat (linear 14K)", "", "✓", 70.3, row="B/timesen2crop/probe"),
            _row("OS-CNN", "", "✓", 81.2),
            _row("MLP+TAE", "", "✓", 80.9),
            _row("W.LSTM", "", "✓", 78.2),
            _row("Transformer", "", "✓", 78.1),
            _row("MSResNet", "", "✓", 76.3),
        ),
    ),
    PaperBlock(
        table="B",
        heading="Sen1Floods11",
        axis="Sen1Floods11\nLP",
        modalities=("S1", "S2"),
        metrics=("mean_iou",),
        rows=(
            _row("AnySat (linear 6.1K)", "", "◦◦", 91.1, row="B/sen1floods11/probe"),
            _row("CROMA (UperNet 47M)", "", "◦◦", 90.9),
            _row("CROMA (fine-tune 350M)", "", "◦◦", 90.9),
            _row("Prithvi (fine-tune 130M)", "", "◦◦", 90.4),
            _row("Prithvi (UperNet 39M)", "", "◦◦", 88.3),
            _row("Prithvi2 (fine-tune 630M)", "", "◦◦", 90.4),
            _row("SatlasNet (UperNet 33M)", "", "◦◦", 90.3),
        ),
    ),
    PaperBlock(
        table="B",
        heading="HLS Burn Scar",
        axis="HLS Burn Scar",
        modalities=("HLS",),
        metrics=("mean_iou",),
        rows=(
            _row("AnySat (fine-tune)", "", "✓", 90.6, row="B/hls_burn_scars/finetune"),
            _row("AnySat (linear 3M)", "", "✓", 87.7, row="B/hls_burn_scars/probe"),
            _row("Prithvi2 (fine-tune 630M)", "", "✓", 90.5),
            _row("Prithvi (fine-tune 130M)", "", "✓", 86.9),
            _row("Prithvi (UperNet 39M)", "", "✓", 83.6),
            _row("CROMA (UperNet 47M)", "", "✓", 82.4),
            _row("DOFA (UperNet 39M)", "", "✓", 80.6),
        ),
    ),
    PaperBlock(
        table="B",
        heading="So2Sat",
        axis="So2Sat\nLP",
        modalities=("S1", "S2"),
        metrics=("accuracy",),
        rows=(
            _row("AnySat (linear 29k)", "", "◦◦", 59.1, row="B/so2sat/probe"),
            _row("DOFA (linear)", "", "◦◦", 59.3),
            _row("CROMA (linear)", "", "◦◦", 49.2),
            _row("SatMAE (linear)", "", "◦◦", 46.9),
        ),
    ),
)

BLOCKS = (*TABLE_A, *TABLE_B)


def row_ids() -> Iterator[str]:
    """Yields the ids of AnySat's rows, in the paper's order."""
    return (row.row for block in BLOCKS for row in block.rows if row.row)
