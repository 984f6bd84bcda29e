"""A made-up BraDD-S1TS: forest whose radar echo drops where it is felled."""

import csv
import datetime
import pathlib
from collections.abc import Mapping

import numpy as np

from data_pipelines.fakes.common import smooth, some_days

SIDE = 48
LEVELS = ((-9.0, -6.0), (-15.0, -12.0))  # decibels of forest, VV and VH
COLUMNS = ("", "alert_idx", "center_idx", "date", "sampling_type", "state", "file", "close_set")
START, END = datetime.date(2020, 7, 1), datetime.date(2021, 11, 30)


def write_archive(folder: pathlib.Path, tiles: Mapping[str, int], seed: int = 0) -> None:
    """Writes meta.csv and Samples/*.pt; raises ImportError without torch."""
    import torch

    (folder / "Samples").mkdir(parents=True, exist_ok=True)
    splits = [name for name, count in tiles.items() for _ in range(count)]
    with (folder / "meta.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for number, split in enumerate(splits):
            rng = np.random.default_rng((seed, number))
            days = some_days(rng, int(rng.integers(20, 67)), START, END)
            label_days = [days[len(days) // 3], days[2 * len(days) // 3]]
            lost = smooth(rng, (SIDE, SIDE), 0, 1) > 0.6
            before = smooth(rng, (SIDE, SIDE), 0, 1) > 0.8
            # Speckled decibels, 4 dB darker where the forest is gone at both days.
            image = np.stack([smooth(rng, (len(days), SIDE, SIDE), *level) for level in LEVELS], axis=1)
            image += rng.normal(0, 1, image.shape).astype(np.float32)
            for day, where in zip(label_days, (before, before | lost), strict=True):
                image -= np.float32(2) * (np.asarray([d >= day for d in days])[:, None, None, None] & where)
            content = {
                "image": torch.from_numpy(image.astype(np.float32)),
                "image_dates": days,
                "label": torch.from_numpy(np.stack([before, before | lost]).astype(np.uint8)),
                "label_dates": label_days,
            }
            name = f"{number:07d}_{label_days[1].isoformat()}.pt"
            torch.save(content, folder / "Samples" / name)
            kind = "positive" if number % 2 else "boundary"
            close_set = "validation" if split == "val" else split
            table.writerow([number, number, number, label_days[1].isoformat(), kind, "PA", name, close_set])
