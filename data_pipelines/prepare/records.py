"""Records of prepared examples: their schema, checks before writing, decoding, and the metadata that TFDS reads."""

import contextlib
import dataclasses
import errno
import functools
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from anysat_jax.sensors import CELL_METRES, get_sensor
from data_pipelines.card import DatasetCard, Example, Spec, _sensor_spec, example_spec
from data_pipelines.prepare.plan import PlanFacts
from data_pipelines.units import UNKNOWN
from data_pipelines.windows import alignment, block_card


def tfds_features(card: DatasetCard) -> dict[str, Any]:
    """Returns the TFDS features of a card's examples."""
    import tensorflow_datasets as tfds

    features: dict[str, Any] = {"id": tfds.features.Text()}
    if card.georeferenced:
        features["crs"] = tfds.features.Text()
    for key, (shape, dtype) in example_spec(card).items():
        # As bytes arrays are exact and ten times faster than as protobuf's lists.
        features[key] = tfds.features.Tensor(shape=shape, dtype=dtype.type, encoding="bytes" if shape else "none")
    return features


def complete_example(card: DatasetCard, example: Example) -> Example:
    """Adds `<sensor>_present` for the card's `optional` sensors; absent ones get arrays without dates, or of zeros."""
    spec, complete = example_spec(card), dict(example)
    for name in card.optional:
        present = bool(example.get(f"{name}_present", name in example))
        complete[f"{name}_present"] = np.asarray(present)
        if not present:
            fields = [key for key in _sensor_spec(card, name) if key in spec]
            complete |= {key: np.zeros([0 if n is None else n for n in spec[key][0]], spec[key][1]) for key in fields}
    return complete


def check_example(card: DatasetCard, key: str, example: Example) -> None:
    """Checks an example, complete or as its reader returned it, against its card.

    Raises:
      ValueError: an array is missing, has another shape or dtype, or is not finite where valid, or a label is not a
        class; the message names dataset, tile and array.
    """
    where, complete = f"dataset {card.name!r}, tile {key!r}", complete_example(card, example)
    spec = example_spec(card)
    texts = {"id", "crs"} if card.georeferenced else {"id"}
    for name in card.sensors:  # counts, which are not stored
        complete.pop(f"{name}_empty", None)
    if set(complete) != set(spec) | texts:
        lacking, more = sorted((set(spec) | texts) - set(complete)), sorted(set(complete) - set(spec) - texts)
        raise ValueError(f"{where}: lacks {lacking} and has {more} besides, against the dataset's card")
    for name, (shape, dtype) in spec.items():
        array = np.asarray(complete[name])
        fits = array.ndim == len(shape) and all(want in (None, got) for got, want in zip(array.shape, shape))
        if not fits or array.dtype != dtype:
            raise ValueError(f"{where}: {name!r} is {array.dtype} {array.shape}, expected {dtype} {shape}")
    present = [name for name in card.sensors if name not in card.optional or complete[f"{name}_present"]]
    if not present:
        raise ValueError(f"{where}: has none of its sensors {card.sensors}")
    for name in present:
        _check_sensor(name, where, complete)
    _check_labels(card, where, complete)


def _check_sensor(name: str, where: str, example: Example) -> None:
    values, valid = example[name], example.get(f"{name}_mask", np.True_)
    wrong = 0 if values.dtype.kind in "iub" else int((~np.isfinite(values) & valid).sum())
    if wrong:
        raise ValueError(f"{where}: {wrong} valid values of {name!r} are NaN or infinite; mark them in '{name}_mask'")
    if f"{name}_cloud" in example and example[f"{name}_cloud"].max(initial=0) > 100:
        raise ValueError(f"{where}: '{name}_cloud' holds {example[f'{name}_cloud'].max()}, expected percent, 0 to 100")
    if not get_sensor(name).has_dates:
        return
    count, dates, years = len(values), example[f"{name}_dates"], example[f"{name}_years"]
    others = [f"{name}_{field}" for field in ("dates", "years", "mask", "cloud") if f"{name}_{field}" in example]
    lengths = {key: len(example[key]) for key in others}
    if not count or set(lengths.values()) != {count}:
        raise ValueError(f"{where}: {name!r} has {count} dates and {lengths}; expected as many of each, at least one")
    if dates.min() < 0 or dates.max() > 365:
        wrong = int(dates.min() if dates.min() < 0 else dates.max())
        raise ValueError(f"{where}: '{name}_dates' holds {wrong}; days count from 0, the 1 January, to 365")
    if (np.diff(years.astype(np.int64) * 366 + dates) < 0).any():
        raise ValueError(f"{where}: the dates of {name!r} are not in time order")


def _check_labels(card: DatasetCard, where: str, example: Example) -> None:
    if card.tile_label == "class" and not 0 <= int(example["tile"]) < len(card.tile_classes):
        raise ValueError(f"{where}: 'tile' is {example['tile']}, expected a class below {len(card.tile_classes)}")
    if card.tile_label == "multi_label" and not np.isin(example["tile"], (0, 1)).all():
        raise ValueError(f"{where}: 'tile' is {example['tile']}, expected {len(card.tile_classes)} zeros and ones")
    if card.tile_label == "regression" and not abs(example["tile"]) < UNKNOWN.most:
        raise ValueError(f"{where}: 'tile' is {example['tile']}, expected a finite number below {UNKNOWN.most:g}")
    if card.dense_label in ("segmentation", "change"):
        found = np.unique(example["dense"])
        wrong = found[(found != card.ignore_label) & ((found < 0) | (found >= len(card.dense_classes)))]
        if wrong.size:
            raise ValueError(
                f"{where}: 'dense' holds {wrong.tolist()}, expected classes below {len(card.dense_classes)} or "
                f"{card.ignore_label} for no label"
            )
    if card.dense_label == "regression" and (np.abs(example["dense"]) >= UNKNOWN.most).any():
        what = f"values beyond {UNKNOWN.most:g}, expected numbers, and NaN where there is no label"
        raise ValueError(f"{where}: 'dense' holds {what}")


def check_card(card: DatasetCard) -> None:
    """Checks a card for contradictions in itself or with its sensors.

    Raises:
      ValueError: the message names the dataset and the field.
    """
    where = f"card of dataset {card.name!r}"
    for name in card.sensors:
        sensor = get_sensor(name)
        margin = (card.side(name) - sensor.pixels(card.extent)) * sensor.metres_per_pixel
        if sensor.kind != "context" and not 0 <= margin < CELL_METRES:
            raise ValueError(f"{where}: {name!r} is stored with a margin of {margin:g} m; it must stay below a cell")
        for size in card.patch_sizes:
            sensor.subpatches_per_side(size)
    for size in card.patch_sizes:
        if abs(card.extent / size - round(card.extent / size)) > 1e-6:
            raise ValueError(f"{where}: a tile of {card.extent:g} m is not a whole number of patches of {size:g} m")
    if card.blocks < 1 or (card.blocks > 1 and (card.sides or card.extent / card.blocks % alignment(card))):
        raise ValueError(
            f"{where}: blocks is {card.blocks}; tiles of {card.extent:g} m are cut where pixels of all arrays begin, "
            "and not if any is stored with a margin"
        )
    for field in ("masks", "clouds", "optional", "file_bands", "units", "dates", "date_precision", "natural_colour"):
        if strangers := set(getattr(card, field)) - set(card.sensors):
            raise ValueError(f"{where}: {field} names {sorted(strangers)}, which are not among its sensors")
    if (card.dense_label in ("segmentation", "change")) != bool(card.dense_colours):
        raise ValueError(f"{where}: dense_colours belong to class maps, and class maps need them")
    if (not card.label_unit) == ("regression" in (card.tile_label, card.dense_label)):
        raise ValueError(f"{where}: label_unit is {card.label_unit!r}; regressions have one, other labels none")
    if card.dense_colours and len(card.dense_colours) != len(card.dense_classes):
        raise ValueError(f"{where}: {len(card.dense_colours)} colours for {len(card.dense_classes)} dense classes")


class Serialiser:
    """Encodes an example, or a block of one, as TFDS does, without TensorFlow; equal examples give equal bytes."""

    def __init__(self, card: DatasetCard) -> None:
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core import example_serializer

        self._features = tfds.features.FeaturesDict(tfds_features(block_card(card)))
        self._serialiser = example_serializer.ExampleSerializer(self._features.get_serialized_info())

    def __call__(self, example: Example) -> bytes:
        stored = {key: example[key] for key in self._features}  # without counts for the report
        message = self._serialiser.get_tf_example(self._features.encode_example(stored))
        # Otherwise the order of the fields, which are a map, differs between processes.
        return message.SerializeToString(deterministic=True)


def check_written(path: pathlib.Path, count: int) -> None:
    """Counts the records and reads the last one, as the writer may fail without an error."""
    from array_record.python.array_record_module import ArrayRecordReader

    with record_errors():
        reader = ArrayRecordReader(os.fspath(path))
        try:
            found = reader.num_records()
            if found == count and count:
                reader.read([count - 1])
        finally:
            reader.close()
    if found != count:
        raise OSError(errno.EIO, f"wrote {count} tiles to {path.name} but only {found} can be read back")


@contextlib.contextmanager
def record_errors() -> Iterator[None]:
    """Converts the RuntimeErrors of the record writer and reader, also of a full disk, to OSErrors."""
    try:
        yield
    except RuntimeError as error:
        # ArrayRecord passes on the system's words, not its number.
        codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOENT)
        code = next((code for code in codes if os.strerror(code) in str(error)), errno.EIO)
        raise OSError(code, str(error)) from error


class UnreadableTileError(ValueError):
    """A tile of a prepared dataset cannot be read: its file is missing, or its record is damaged (CorruptTileError)."""


class CorruptTileError(UnreadableTileError):
    """A record of the tile is damaged; other tiles can be read."""


@dataclasses.dataclass(frozen=True)
class RecordParser:
    """Decodes records of the features `tfds_features(card)`, of a dataset or of its blocks, without TFDS."""

    card: DatasetCard

    @functools.cached_property
    def spec(self) -> Spec:
        return example_spec(self.card)

    def __call__(self, record: bytes) -> Example:
        """Returns the arrays of a record, read-only, and its strings as bytes.

        Raises:
          ValueError: the bytes are something else.
        """
        from google.protobuf.message import DecodeError
        from tensorflow_datasets.proto import tf_example_pb2

        try:
            fields = tf_example_pb2.Example.FromString(record).features.feature
            texts = ("id", "crs") if self.card.georeferenced else ("id",)
            example: Example = {key: fields[key].bytes_list.value[0] for key in texts}
            for key, (shape, dtype) in self.spec.items():
                if shape:
                    sides = [-1 if n is None else n for n in shape]
                    example[key] = np.frombuffer(fields[key].bytes_list.value[0], dtype).reshape(sides)
                else:
                    example[key] = np.asarray([*fields[key].int64_list.value, *fields[key].float_list.value][0], dtype)
            return example
        except (DecodeError, IndexError, ValueError) as error:
            raise ValueError(f"not an example of the dataset: {type(error).__name__} {error}") from error


def write_metadata(
    folder: pathlib.Path, card: DatasetCard, facts: PlanFacts, lengths: dict[str, list[int]], sizes: dict[str, int]
) -> None:
    """Writes `dataset_info.json` and `features.json`, so that `tfds.builder_from_directory` opens ArrayRecord files.

    By split, `lengths` are the tiles of each file, and `sizes` the bytes of all records.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.dataset_info import DatasetIdentity
    from tensorflow_datasets.core.naming import ShardedFileTemplate

    version, about = tfds.core.Version(facts.version), card.title
    identity = DatasetIdentity(
        name=card.name, version=version, data_dir=os.fspath(folder), module_name="data_pipelines"
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        description=about if facts.limit is None else f"{about}: the first {facts.limit} tiles of each split",
        features=tfds.features.FeaturesDict(tfds_features(block_card(card))),
        homepage=card.url or None,
        citation=card.citation or None,
        license=card.licence or None,
    )
    info.set_file_format("array_record")
    common = dict(data_dir=folder, dataset_name=card.name, filetype_suffix="array_record")
    splits = [
        tfds.core.SplitInfo(
            name=split,
            # To TFDS each block of a tile is an example.
            shard_lengths=[tiles * card.blocks**2 for tiles in lengths[split]],
            num_bytes=sizes[split],
            filename_template=ShardedFileTemplate(split=split, **common),
        )
        for split in lengths
    ]
    info.set_splits(tfds.core.splits.SplitDict(splits))
    info.write_to_directory(folder)
