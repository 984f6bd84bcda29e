"""Made-up archives in the published layouts, to try the whole way from a download to batches without a download."""

import importlib
import pathlib

from data_pipelines.registry import get_entry


def write_fake(name: str, folder: pathlib.Path, tiles: int, seed: int = 0) -> None:
    """Writes a dataset's made-up archive with `tiles` tiles in each split."""
    splits = get_entry(name).card.splits
    folder.mkdir(parents=True, exist_ok=True)
    importlib.import_module(f"data_pipelines.fakes.{name}").write_archive(folder, dict.fromkeys(splits, tiles), seed)
