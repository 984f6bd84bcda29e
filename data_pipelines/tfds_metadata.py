"""The description that TFDS reads: `dataset_info.json` and `features.json`."""

import os
import pathlib
from collections.abc import Mapping, Sequence

from data_pipelines.blocks import block_card
from data_pipelines.card import DatasetCard
from data_pipelines.features import tfds_features


def write_metadata(
    folder: pathlib.Path,
    card: DatasetCard,
    version: str,
    shard_lengths: Mapping[str, Sequence[int]],
    record_bytes: Mapping[str, int],
    limit: int | None = None,
) -> None:
    """Writes the description of ArrayRecord files, so that `tfds.builder_from_directory` opens them.

    Args:
      folder: gets the two files.
      card: the dataset's facts.
      version: "major.minor.patch".
      shard_lengths: tiles of each file, by split; TFDS sees each block of a tile as an example.
      record_bytes: of each split.
      limit: how many tiles of each split were taken, to be said in the description; None: all.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.dataset_info import DatasetIdentity
    from tensorflow_datasets.core.naming import ShardedFileTemplate

    identity = DatasetIdentity(
        name=card.name, version=tfds.core.Version(version), data_dir=os.fspath(folder), module_name="data_pipelines"
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        description=card.title if limit is None else f"{card.title}: the first {limit} tiles of each split",
        features=tfds.features.FeaturesDict(tfds_features(block_card(card))),
        homepage=card.url or None,
        citation=card.citation or None,
        license=card.licence or None,
    )
    info.set_file_format("array_record")
    splits = []
    for split, lengths in shard_lengths.items():
        template = ShardedFileTemplate(
            data_dir=folder, dataset_name=card.name, split=split, filetype_suffix="array_record"
        )
        splits.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[length * card.blocks**2 for length in lengths],
                num_bytes=record_bytes[split],
                filename_template=template,
            )
        )
    info.set_splits(tfds.core.splits.SplitDict(splits))
    info.write_to_directory(folder)
