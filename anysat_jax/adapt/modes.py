"""Modes: which of a network's parameters train, and what drops meanwhile."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import flax.traverse_util

Params = dict[str, Any]
Mode = Literal["finetune", "probe", "last_block", "projector", "scratch"]
"""What trains beside the head: "finetune" and "scratch" everything that the data pass through, "last_block" the
combiner's cross-attention block, "projector" the new sensors' projectors, "probe" nothing."""

WHOLE: tuple[Mode, ...] = ("finetune", "scratch")
LAST_BLOCK = "encoder/combiner/cross/"
PROJECTORS = "encoder/projector_"


def trainable_names(mode: Mode, params: Params, sensors: Sequence[str], new_sensors: Sequence[str]) -> tuple[str, ...]:
    """Names "encoder/a/b" or "head/a/b" of the leaves that train, in the order of `params`.

    Args:
      params: {"encoder", "head"}, of arrays or shapes.
      sensors: the sensors of the data. A projector of any other gets no gradient, so it is frozen in every mode and
        costs no optimizer memory.
      new_sensors: sensors whose projectors mode "projector" trains.

    Raises:
      ValueError: an unknown mode, a sensor without a projector, or mode "projector" with new sensors that are not in
        the data, or none.
    """
    _check(mode, params, sensors, new_sensors)
    trained = dropping_sensors(mode, sensors, new_sensors)
    prefixes = ("head/", *(f"{PROJECTORS}{name}/" for name in trained))
    if mode == "last_block":
        prefixes = (*prefixes, LAST_BLOCK)
    names = flax.traverse_util.flatten_dict(params, sep="/")
    return tuple(
        name for name in names if name.startswith(prefixes) or (mode in WHOLE and not name.startswith(PROJECTORS))
    )


def split(params: Params, mode: Mode, sensors: Sequence[str], new_sensors: Sequence[str] = ()) -> tuple[Params, Params]:
    """(trainable, frozen): two trees that share no leaf; see `trainable_names`. Either may lack whole parts."""
    names = set(trainable_names(mode, params, sensors, new_sensors))
    leaves = flax.traverse_util.flatten_dict(params, sep="/")
    trainable = {name: leaf for name, leaf in leaves.items() if name in names}
    frozen = {name: leaf for name, leaf in leaves.items() if name not in names}
    return tuple(flax.traverse_util.unflatten_dict(part, sep="/") for part in (trainable, frozen))


def merge(trainable: Params, frozen: Params) -> Params:
    """The parameters that `split` took apart; traceable."""
    parts = flax.traverse_util.flatten_dict(trainable), flax.traverse_util.flatten_dict(frozen)
    return flax.traverse_util.unflatten_dict(parts[0] | parts[1])


def dropping_sensors(mode: Mode, sensors: Sequence[str], new_sensors: Sequence[str]) -> tuple[str, ...]:
    """The sensors whose projectors train, and so drop as in training: a frozen projector never drops."""
    if mode in WHOLE:
        return tuple(sensors)
    return tuple(name for name in sensors if name in new_sensors) if mode == "projector" else ()


def drop_path_rate(mode: Mode, rate: float) -> float:
    """The rate of a mode: blocks drop only where all of them train."""
    return rate if mode in WHOLE else 0.0


def _check(mode: Mode, params: Params, sensors: Sequence[str], new_sensors: Sequence[str]) -> None:
    if mode not in get_args(Mode):
        raise ValueError(f"mode = {mode!r} must be one of {', '.join(repr(choice) for choice in get_args(Mode))}")
    for name in sensors:
        if f"projector_{name}" not in params["encoder"]:
            has = (key.removeprefix("projector_") for key in params["encoder"] if key.startswith("projector_"))
            raise ValueError(f"sensor {name!r} of the data has no projector in the encoder; it has {', '.join(has)}")
    if mode == "projector" and not (new_sensors and set(new_sensors) <= set(sensors)):
        raise ValueError(
            f"mode 'projector' trains the projectors of new_sensors = {tuple(new_sensors)}; "
            f"name at least one of the data's sensors, {', '.join(sensors)}, and no other"
        )
