"""A card as JSON beside the prepared data, so that they can be read where the dataset is not registered."""

import dataclasses
import json
import pathlib
import typing
from collections.abc import Mapping
from typing import Any

from anysat_jax.sensors import SENSORS, Sensor, get_sensor, register
from data_pipelines.card import DatasetCard
from data_pipelines.features import example_spec

FILE_NAME = "card.json"
FORMAT = 1
_REMEDY = "delete the folder that it is in and prepare the dataset again"


def to_json(card: DatasetCard) -> str:
    """A card, with the records of its sensors and the shapes of its arrays."""
    content = {
        "format": FORMAT,
        "card": dataclasses.asdict(card),
        "sensors": {name: dataclasses.asdict(get_sensor(name)) for name in card.sensors},
        "essentials": essentials(card),
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False, default=_plain) + "\n"


def from_json(text: str, where: str) -> tuple[DatasetCard, dict[str, Any]]:
    """Reads `to_json`'s text; sensors that are not known yet are registered.

    Args:
      text: the JSON.
      where: the file, for errors.

    Returns:
      The card, and its `essentials` when it was written.

    Raises:
      ValueError: it is no card, or one of another format.
    """
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, this release reads {FORMAT}")
        sensors = [_record(Sensor, fields) for fields in content["sensors"].values()]
        card, found = _record(DatasetCard, content["card"]), content["essentials"]
        unknown = [name for name in card.sensors if name not in {s.name for s in sensors}]
        if unknown or not isinstance(found, dict):
            raise ValueError(f"it lacks the records of {unknown}" if unknown else "its essentials are no table")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where} is no card of a dataset ({type(error).__name__}: {error}); {_REMEDY}") from error
    for sensor in sensors:
        if sensor.name not in SENSORS:
            register(sensor)
    return card, found


def read_card(folder: pathlib.Path) -> DatasetCard:
    """The card of a prepared folder; sensors that are not known yet are registered.

    Raises:
      FileNotFoundError, ValueError: there is none, or it cannot be read.
    """
    return _read(folder)[0]


def check_stored_card(folder: pathlib.Path, card: DatasetCard) -> None:
    """Refuses a prepared folder whose arrays and classes are not those of `card`.

    Raises:
      FileNotFoundError, ValueError: there is no card, it cannot be read, or it differs; the message names both sides.
    """
    _, stored = _read(folder)
    differences = differing(stored, essentials(card))
    if differences:
        raise ValueError(
            f"{folder} was prepared for another card of dataset {card.name!r}: {'; '.join(differences)}; delete it and "
            "prepare the dataset again, or use the release that prepared it"
        )


def differing(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What differs between `essentials`, with the values of both sides."""
    lines = []
    for field in sorted(set(stored) | set(wanted)):
        there, here = stored.get(field), wanted.get(field)
        if isinstance(there, dict) and isinstance(here, dict):
            lines += [
                f"{field} of {key!r} are {there.get(key)}, here {here.get(key)}"
                for key in sorted(set(there) | set(here))
                if there.get(key) != here.get(key)
            ]
        elif there != here:
            lines.append(f"{field} is {there}, here {here}")
    return lines


def essentials(card: DatasetCard) -> dict[str, Any]:
    """What of a card must not change while prepared data live: what decides how they are read."""
    fields = ("name", "sensors", "extent", "optional", "tile_label", "tile_classes", "dense_label", "dense_classes")
    facts = {field: getattr(card, field) for field in (*fields, "ignore_label", "dense_metres", "georeferenced")}
    facts |= {"blocks": card.blocks} if card.blocks > 1 else {}
    facts["bands"] = {name: get_sensor(name).bands for name in card.sensors}
    facts["arrays"] = {key: [str(dtype), *shape] for key, (shape, dtype) in example_spec(card).items()}
    return json.loads(json.dumps(facts, default=_plain))


def _read(folder: pathlib.Path) -> tuple[DatasetCard, dict[str, Any]]:
    path = folder / FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: it is no prepared dataset of this release; delete it and prepare it again")
    try:
        return from_json(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no card of a dataset ({error}); {_REMEDY}") from error


def _record(kind: type, fields: Mapping[str, Any]) -> Any:
    """A dataclass of JSON fields; lists become tuples, and fields that this release does not know are refused."""
    hints = typing.get_type_hints(kind)
    return kind(**{name: _restored(value, hints[name]) for name, value in fields.items()})


def _restored(value: Any, hint: Any) -> Any:
    origin = typing.get_origin(hint)
    wanted = {None: hint, tuple: list, Mapping: dict, typing.Literal: str}.get(origin, object)
    wanted = (int, float) if wanted is float else wanted
    if not isinstance(value, wanted):
        raise TypeError(f"{value!r} is no {hint}")
    if origin is tuple:
        item = typing.get_args(hint)[0]
        return tuple(_record(item, one) if dataclasses.is_dataclass(item) else one for one in value)
    if origin is Mapping:
        return {key: tuple(one) if isinstance(one, list) else one for key, one in value.items()}
    return value


def _plain(value: Any) -> Any:
    """Mappings that are no dicts, and numpy's numbers."""
    return dict(value) if isinstance(value, Mapping) else value.item()
