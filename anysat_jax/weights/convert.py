"""Table of the published names of all parameters beside ours, and conversion in both directions.

A table row is (published name, our path, how the array changes). The tables of the modules make one list of
`Entry` for a model; `from_published` and `to_published` both read that list.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax.traverse_util
import numpy as np

from anysat_jax.model.config import ModelConfig
from anysat_jax.sensors import get_sensor

Params = dict[str, Any]


class Transform(NamedTuple):
    """Conversion of a published array to ours, and back."""

    ours: Callable[[np.ndarray], np.ndarray]
    published: Callable[[np.ndarray], np.ndarray]


SAME = Transform(lambda x: x, lambda x: x)
LINEAR = Transform(np.transpose, np.transpose)  # (out, in) and (in, out)
# (D, C, k, k) and (k, k, C, D)
CONVOLUTION = Transform(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
TOKEN = Transform(lambda x: x.reshape(x.shape[-1:]), lambda x: x[None, None])  # (1, 1, D) and (D,)
RELATIVE = Transform(lambda x: x.reshape(x.shape[-2:]), lambda x: x[None])  # (1, head_dim, 8) and (head_dim, 8)

Row = tuple[str, str, Transform]


def _linear(published: str, ours: str) -> tuple[Row, ...]:
    return ((f"{published}.weight", f"{ours}/kernel", LINEAR), (f"{published}.bias", f"{ours}/bias", SAME))


def _norm(published: str, ours: str) -> tuple[Row, ...]:
    return ((f"{published}.weight", f"{ours}/scale", SAME), (f"{published}.bias", f"{ours}/bias", SAME))


IMAGE_PROJECTOR: tuple[Row, ...] = (
    ("patch_embed.weight", "embed/kernel", CONVOLUTION),
    *_linear("mlp.0", "hidden_0"),
    *_norm("mlp.1", "norm_0"),
    *_linear("mlp.3", "hidden_1"),
    *_norm("mlp.4", "norm_1"),
)

SERIES_PROJECTOR: tuple[Row, ...] = (
    ("pad_parameter", "pad_value", SAME),
    *(row for layer in range(5) for row in _linear(f"patch_embed.inconv.{4 * layer}", f"hidden_{layer}")),
    *(row for layer in range(5) for row in _norm(f"patch_embed.inconv.{4 * layer + 1}", f"norm_{layer}")),
    ("patch_embed.attention_heads.Q", "attention/query", SAME),
    *_linear("patch_embed.attention_heads.fc1_k", "attention/key"),
    *_linear("patch_embed.mlp.0", "out"),
    *_norm("patch_embed.mlp.1", "out_hidden_norm"),
    *_norm("patch_embed.out_norm", "out_norm"),
)

NORM_OVER_DATES: tuple[Row, ...] = _norm("patch_embed.in_norm", "date_norm")

_MLP: tuple[Row, ...] = (*_norm("norm2", "norm_mlp"), *_linear("mlp.fc1", "mlp/up"), *_linear("mlp.fc2", "mlp/down"))

BLOCK: tuple[Row, ...] = (
    *_norm("norm1", "norm_attention"),
    *_linear("attn.qkv", "attention/qkv"),
    *_linear("attn.proj", "attention/out"),
    *_MLP,
)

RELATIVE_BLOCK: tuple[Row, ...] = (
    *BLOCK,
    ("attn.rpe_k.lookup_table_weight", "attention/relative", RELATIVE),
)

CROSS_ATTENTION: tuple[Row, ...] = (
    *_norm("norm1", "norm_attention"),
    ("attn.q_learned", "query", TOKEN),
    *_linear("attn.wk", "key"),
    *_linear("attn.wv", "value"),
    ("attn.rpe_k.lookup_table_weight", "relative", RELATIVE),
    *_linear("attn.proj", "out"),
    *_MLP,
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One published array."""

    published: str  # its name, without the prefix of the layout
    path: tuple[str, ...]  # in our tree
    transform: Transform  # of the array
    layer: int | None = None  # index on the leading axis of our array, for the blocks of a scan


def _entries(rows: Iterable[Row], published: str, ours: str, depth: int | None = None) -> list[Entry]:
    """Lists the arrays of a module, or of `depth` blocks, which the original numbers and our scan stacks."""
    layers = [("", None)] if depth is None else [(f"{layer}.", layer) for layer in range(depth)]
    return [
        Entry(published + index + name, tuple((ours + path).split("/")), transform, layer)
        for index, layer in layers
        for name, path, transform in rows
    ]


def _projector_rows(name: str) -> tuple[Row, ...]:
    sensor = get_sensor(name)
    if sensor.kind == "image":
        return IMAGE_PROJECTOR
    return SERIES_PROJECTOR + NORM_OVER_DATES if sensor.normalise_over_dates else SERIES_PROJECTOR


def encoder_entries(config: ModelConfig) -> list[Entry]:
    """Lists every array of the published encoder, with our paths from the encoder's root."""
    entries = _entries([("cls_token", "class_token", TOKEN)], "", "combiner/")
    for name in config.sensors:
        entries += _entries(_projector_rows(name), f"projector_{name}.", f"projector_{name}/")
    entries += _entries([("cls_token", "class_token", TOKEN)], "spatial_encoder.", "spatial/")
    entries += _entries(RELATIVE_BLOCK, "spatial_encoder.predictor_blocks.", "spatial/blocks/", config.depth)
    entries += _entries(_norm("predictor_norm", "norm"), "spatial_encoder.", "spatial/")
    entries += _entries(BLOCK, "blocks.", "combiner/blocks/", config.depth)
    # The original's list of blocks ends in one of another class, which our scan cannot hold.
    entries += _entries(CROSS_ATTENTION, f"blocks.{config.depth}.", "combiner/cross/")
    return entries


def predictor_entries(config: ModelConfig) -> list[Entry]:
    """Lists every array of the published predictor, with our paths from the predictor's root."""
    rows = (
        ("cls_token", "class_token", TOKEN),
        ("mask_token", "mask_token", TOKEN),
        *_linear("predictor_embed", "embed"),
        *_norm("predictor_norm", "norm"),
        *_linear("predictor_proj", "out"),
    )
    return _entries(rows, "", "") + _entries(BLOCK, "predictor_blocks.", "blocks/", config.predictor_depth)


def bare_entries(config: ModelConfig) -> list[Entry]:
    """Lists the arrays of the feature extractor alone; our paths are below "encoder"."""
    return _placed(encoder_entries(config), "", "encoder")


def pretraining_entries(config: ModelConfig, predictor: bool = True, teacher: bool = True) -> list[Entry]:
    """Lists the arrays of a pretraining run; our paths are below "encoder", "predictor", "mask_token" and "teacher".

    Args:
      predictor: whether the student's predictor and mask token are there.
      teacher: whether the teacher is there.
    """
    entries = _placed(encoder_entries(config), "model.encoder.", "encoder")
    if predictor:
        entries += _placed(predictor_entries(config), "model.predictor.", "predictor")
        entries.append(Entry("model.masked_token", ("mask_token",), TOKEN))
    if teacher:
        entries += _placed(encoder_entries(config), "target_encoder.", "teacher")
    return entries


def _placed(entries: Iterable[Entry], prefix: str, root: str) -> list[Entry]:
    return [dataclasses.replace(e, published=prefix + e.published, path=(root, *e.path)) for e in entries]


def from_published(entries: Iterable[Entry], arrays: Mapping[str, np.ndarray]) -> Params:
    """Converts published arrays by name to our parameter tree, float32.

    Raises:
      KeyError: an array is missing; compare names first for a message that lists all.
    """
    layers: dict[tuple[str, ...], list[np.ndarray]] = {}
    single: dict[tuple[str, ...], np.ndarray] = {}
    for entry in entries:
        array = entry.transform.ours(np.asarray(arrays[entry.published], np.float32))
        if entry.layer is None:
            single[entry.path] = np.array(array, order="C")  # a copy: a view would keep the file's arrays in memory
        else:
            layers.setdefault(entry.path, []).append(array)
    stacked = {path: np.stack(blocks) for path, blocks in layers.items()}
    return flax.traverse_util.unflatten_dict(single | stacked)


def to_published(entries: Iterable[Entry], params: Params) -> dict[str, np.ndarray]:
    """Converts our parameter tree, or gradients of its shape, to published arrays by name."""
    leaves = flax.traverse_util.flatten_dict(params)
    arrays = {}
    for entry in entries:
        leaf = np.asarray(leaves[entry.path])
        arrays[entry.published] = entry.transform.published(leaf if entry.layer is None else leaf[entry.layer])
    return arrays


def published_shapes(entries: Iterable[Entry], shapes: Params) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each published array, from a tree of our shapes, without allocating arrays."""
    leaves = flax.traverse_util.flatten_dict(shapes)
    # Broadcast from one number: the transforms only look at shapes, and reshape and transpose allocate nothing.
    nothing = {path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in leaves.items()}
    arrays = to_published(entries, flax.traverse_util.unflatten_dict(nothing))
    return {name: array.shape for name, array in arrays.items()}
