"""Initial parameters from a seed, and parameter counts.

The one place of initial values: the modules declare names and shapes only. Each leaf is drawn by numpy from (seed, its
path): nothing is compiled, the values are the same on any backend and mesh, and a model with one more sensor has the
same values everywhere else.
"""

import dataclasses
import functools
import math
import zlib
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from anysat_jax.batch import Batch, fake_batch
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.encoder import is_context
from anysat_jax.model.positions import OWN_PATCH_BUCKET
from anysat_jax.model.predictor import Student
from anysat_jax.model.projectors import KEY_WIDTH
from anysat_jax.sensors import Sensor, get_sensor, nearest_bands, nearest_sensor

Params = dict[str, Any]

TOKEN_STD = 0.02  # of learned tokens, and of tables of relative positions
# Of the biases of a projector's first hidden layer. The norm behind the layer removes the length of its input, so that
# with zero biases dim and bright pixels of one colour would start as the same token.
FIRST_BIAS_STD = 1.0
# By which a patch's own tokens lead in the first cross-attention: they get half of the attention among 55 patches.
OWN_PATCH_LOGIT = 4.0


class _EveryProjector(nn.Module):
    """A student run on a tile of some sensors, and the projectors of all others."""

    config: ModelConfig

    def setup(self) -> None:
        self.student = Student(self.config)

    def __call__(self, batches: list[Batch]) -> None:
        first, *others = batches
        place = jnp.zeros((first.batch_size, 1), jnp.int32)
        self.student(first, place, place[None], deterministic=True)
        for batch in others:  # behind the projectors the sensors share all parameters
            self.student.encoder.project(batch)


def student_shapes(config: ModelConfig) -> Params:
    """Returns shapes and dtypes of the student's parameters, {"encoder", "predictor", "mask_token"}, without memory.

    Raises:
      ValueError: the model has context sensors only.
    """
    # These two change no parameter, and policies of rematerialisation take longer to trace.
    config = dataclasses.replace(config, remat="none", dropout=False)
    # A new tree for each caller, who may change it.
    return jax.tree.map(lambda leaf: leaf, _traced_shapes(config, tuple(map(get_sensor, config.sensors))))


# Tracing takes up to seconds, and a job asks several times: for initial values, a checkpoint, counts of parameters.
@functools.lru_cache(maxsize=16)
def _traced_shapes(config: ModelConfig, sensors: tuple[Sensor, ...]) -> Params:
    """Returns `student_shapes`; the records of the model's sensors belong to the cache's key."""
    # Sensors with sub-patches of one size share a tile of one patch: tracing the student takes most of the time here.
    groups: dict[float, list[str]] = {}
    for sensor in sensors:
        if not is_context(sensor.name):
            groups.setdefault(sensor.subpatch_metres, []).append(sensor.name)
    if not groups:
        raise ValueError(f"model.sensors = {config.sensors} are context sensors only; add an image or a series")
    # A context sensor alone would have no patches.
    next(iter(groups.values())).extend(name for name in config.sensors if is_context(name))
    batches = [
        fake_batch(tuple(names), batch_size=1, extent=side, patch_size=side, num_dates=1)
        for side, names in groups.items()
    ]
    return jax.eval_shape(_EveryProjector(config).init, jax.random.key(0), batches)["params"]["student"]


def initial_value(path: tuple[str, ...], shape: tuple[int, ...], seed: int) -> Float[np.ndarray, "..."]:
    """Draws a leaf, float32: zeros for biases (but for the projectors' first layers), ones for the scales of norms,
    LeCun normal for matrices, a small normal for tokens and tables.
    """
    # crc32 and not hash(), which Python salts anew in every process.
    rng = np.random.default_rng((seed, zlib.crc32("/".join(path).encode())))
    kind, module = path[-1], path[-2] if len(path) > 1 else ""
    first_of_projector = module == "hidden_0" and any(name.startswith("projector_") for name in path)
    if kind == "scale":
        return np.ones(shape, np.float32)
    # Of a decoder, so that its first outputs are the mean: with random ones the features would shrink around their mean
    # first, since that is the quickest way to less noise in the outputs.
    if kind == "pad_value" or path[0] == "decoder" or (kind == "bias" and not first_of_projector):
        return np.zeros(shape, np.float32)
    if kind == "bias":
        std = FIRST_BIAS_STD
    elif "attention" in path and (kind == "query" or module == "key"):
        # Of L-TAE, as its authors draw them.
        std = math.sqrt(2 / KEY_WIDTH)
    elif kind == "kernel":
        # Blocks of a scan are stacked along the first axis, which is not an input.
        inputs = shape[1:-1] if "blocks" in path else shape[:-1]
        std = 1 / math.sqrt(math.prod(inputs))
    else:
        std = TOKEN_STD
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(std)


def _initial_tree(shapes: Params, seed: int) -> Params:
    """Draws a tree of shapes that holds "encoder"."""
    flat = flax.traverse_util.flatten_dict(shapes)
    tree = flax.traverse_util.unflatten_dict(
        {path: initial_value(path, leaf.shape, seed) for path, leaf in flat.items()}
    )
    # The relative term is the first head's query times the table: ones in that query, and an offset in the bucket of a
    # patch and itself, let each patch attend to its own tokens first. With noise alone every patch would gather the
    # same mean of the tile; patch vectors would differ by their positions only, and predicting the teacher's would not
    # need a look at the tile.
    cross = tree["encoder"]["combiner"]["cross"]
    head_dim = cross["relative"].shape[0]
    cross["query"][:head_dim] += 1
    cross["relative"][:, OWN_PATCH_BUCKET] += OWN_PATCH_LOGIT / head_dim
    return tree


def init_student(config: ModelConfig, seed: int) -> Params:
    """Draws the student's parameters, {"encoder", "predictor", "mask_token"}: float32 numpy arrays."""
    return _initial_tree(student_shapes(config), seed)


def init_encoder(config: ModelConfig, seed: int, input_gain: float = 1.0) -> Params:
    """Draws the encoder's parameters alone: those of `init_student` with this seed.

    Args:
      input_gain: factor of the first kernel of each series. The biases of that layer have a deviation of 1: far below
        it, features start nearly linear in the values, and differ little until a probe standardises them.
    """
    encoder = _initial_tree({"encoder": student_shapes(config)["encoder"]}, seed)["encoder"]
    for name in config.sensors:
        if get_sensor(name).has_dates:
            encoder[f"projector_{name}"]["hidden_0"]["kernel"] *= np.float32(input_gain)
    return encoder


def init_projector(name: str, trained: Params, fresh: Params) -> tuple[Params, str | None]:
    """Returns the first values of a new sensor's projector: those of the sensor in `trained` that resembles it most.

    Each input row of the source's first layer moves to the new band nearest to its own, see `nearest_bands`; so the
    layer sees the values that it is used to, as far as the new sensor has them. A new band that is nearest to none
    starts at zero.

    Args:
      name: of the new sensor.
      trained: an encoder's parameters.
      fresh: initial values of the projector, for what the source lacks.

    Returns:
      float32 numpy arrays in the shapes of `fresh`, and the name of the source; `fresh` and None if no sensor in
      `trained` has a band like the new sensor's.
    """
    known = [key.removeprefix("projector_") for key in trained if key.startswith("projector_")]
    new, source = get_sensor(name), nearest_sensor(get_sensor(name), known)
    if source is None:
        return fresh, None
    first = ("hidden_0" if new.has_dates else "embed", "kernel")
    values = flax.traverse_util.flatten_dict(fresh)
    # A norm over dates is a leaf that the source may lack, or have in vain.
    old = flax.traverse_util.flatten_dict(trained[f"projector_{source.name}"])
    values |= {path: leaf for path, leaf in old.items() if path in values}
    before = np.asarray(old[first], np.float32)
    rows = np.asarray([-1 if row is None else row for row in nearest_bands(source, new)])
    kernel = np.zeros((*before.shape[:-2], new.num_bands, before.shape[-1]), np.float32)
    np.add.at(np.moveaxis(kernel, -2, 0), rows[rows >= 0], np.moveaxis(before, -2, 0)[rows >= 0])
    # The bands that are lost would have added to the size of the activations.
    kernel *= np.float32(np.linalg.norm(before) / np.linalg.norm(before[..., rows >= 0, :]))
    if not new.has_dates:
        pixels = new.subpatch_pixels
        # Of an even grey the activations stay the same, however many pixels a sub-patch has.
        resized = jax.image.resize(kernel, (pixels, pixels, *kernel.shape[2:]), "linear")
        kernel = np.asarray(resized) * np.float32((len(before) / pixels) ** 2)
    return flax.traverse_util.unflatten_dict(values | {first: kernel}), source.name


def count_parameters(params: Params) -> int:
    """Returns the number of scalars in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def parameter_table(config: ModelConfig) -> dict[str, int]:
    """Counts the parameters of each projector, then of "projectors", "spatial", "combiner", "encoder", "predictor"."""
    student = student_shapes(config)
    encoder = student["encoder"]
    table = {name: count_parameters(encoder[name]) for name in sorted(encoder) if name.startswith("projector_")}
    table["projectors"] = sum(table.values())
    table |= {name: count_parameters(encoder[name]) for name in ("spatial", "combiner")}
    return table | {"encoder": count_parameters(encoder), "predictor": count_parameters(student["predictor"])}


def flat_names(params: Params) -> dict[str, Any]:
    """Returns a parameter tree as {"a/b/c": leaf}, for messages and files."""
    return flax.traverse_util.flatten_dict(params, sep="/")
