"""Labels of the share of the training tiles that a run uses, in the place of those of the whole split."""

import contextlib
from collections.abc import Sequence
from typing import Any

from data_pipelines.preparation_report import labels_report
from data_pipelines.prepared import PreparedDataset
from data_pipelines.records import CorruptTileError
from data_pipelines.tally import Tally

TRAIN = "train"


def with_share(
    report: dict[str, Any], prepared: PreparedDataset, tiles: Sequence[int], skip_corrupt: bool = False
) -> dict[str, Any]:
    """The report of a preparation as if its training split had these tiles only. Reads them.

    Args:
      report: as `data_pipelines.preparation_report.read_report` gives it; left as it is.
      prepared: the dataset.
      tiles: positions in its training split.
      skip_corrupt: whether corrupt tiles are passed over; training will name them.

    Raises:
      ValueError: a tile cannot be read.
    """
    records, tally = prepared.records(TRAIN), Tally(prepared.card)
    for tile in tiles:
        with contextlib.suppress(CorruptTileError) if skip_corrupt else contextlib.nullcontext():
            tally.update(records[int(tile)])
    share = {"examples": len(tiles), "labels": labels_report(prepared.card, tally)}
    return {**report, "splits": {**report["splits"], TRAIN: {**report["splits"][TRAIN], **share}}}
