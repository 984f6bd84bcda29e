"""Parameters from a seed, and how many there are.

Every leaf is drawn by itself from (seed, its path) with numpy: nothing to compile, the same values on any backend
and mesh, and a model with one more sensor starts from the same values everywhere else.
"""

import math
import zlib
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from anysat_jax.batch import Batch, fake_batch
from anysat_jax.model.combiner import OWN_PATCH_LOGIT
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.encoder import is_context
from anysat_jax.model.positions import OWN_PATCH_BUCKET
from anysat_jax.model.predictor import Student
from anysat_jax.model.projectors import FIRST_BIAS_SPREAD, KEY_WIDTH
from anysat_jax.sensors import get_sensor

Params = dict[str, Any]
TOKEN_SPREAD = 0.02  # of learned tokens and relative tables


class _EveryProjector(nn.Module):
    """A student run on one tile for each sensor, so that every projector gets parameters."""

    config: ModelConfig

    def setup(self) -> None:
        self.student = Student(self.config)

    def __call__(self, batches: list[Batch]) -> None:
        for batch in batches:
            place = jnp.zeros((batch.batch_size, 1), jnp.int32)
            self.student(batch, place, place[None], deterministic=True)


def _one_patch_batches(config: ModelConfig) -> list[Batch]:
    """For each sensor the smallest tile it can see: one patch of one sub-patch, a context sensor beside another."""
    spatial = next((name for name in config.sensors if not is_context(name)), None)
    if spatial is None:
        raise ValueError(f"model.sensors = {config.sensors} are context sensors only; add an image or a series")
    batches = []
    for name in config.sensors:
        names = (spatial, name) if is_context(name) else (name,)
        side = get_sensor(names[0]).subpatch_metres
        batches.append(fake_batch(names, batch_size=1, extent=side, patch_size=side, num_dates=1))
    return batches


def student_shapes(config: ModelConfig) -> Params:
    """Shapes and dtypes of the student's parameters, without allocating any."""
    init = _EveryProjector(config).init
    return jax.eval_shape(init, jax.random.key(0), _one_patch_batches(config))["params"]["student"]


def initial_value(path: tuple[str, ...], shape: tuple[int, ...], seed: int) -> np.ndarray:
    """A leaf's start: zeros for biases (but for the projectors' first layers), ones for norms, LeCun normal for
    matrices, small normal for tokens and tables.
    """
    rng = np.random.default_rng((seed, zlib.crc32("/".join(path).encode())))
    kind = path[-1]
    if kind == "bias" and _is_first(path):
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(FIRST_BIAS_SPREAD)
    if kind in ("bias", "pad_value"):
        return np.zeros(shape, np.float32)
    if kind == "scale":
        return np.ones(shape, np.float32)
    if "attention" in path and (kind == "query" or path[-2] == "key"):  # temporal attention, as in L-TAE
        spread = math.sqrt(2 / KEY_WIDTH)
    elif kind == "kernel":
        inputs = shape[1:-1] if "blocks" in path else shape[:-1]
        spread = 1 / math.sqrt(math.prod(inputs))
    else:
        spread = TOKEN_SPREAD
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(spread)


def _is_first(path: tuple[str, ...]) -> bool:
    """Whether a leaf belongs to the first hidden layer of a projector."""
    return path[-2] == "hidden_0" and any(name.startswith("projector_") for name in path)


def _initial_tree(shapes: Params, seed: int) -> Params:
    """Starts of a tree of shapes that holds "encoder"."""
    flat = flax.traverse_util.flatten_dict(shapes)
    tree = flax.traverse_util.unflatten_dict(
        {path: initial_value(path, leaf.shape, seed) for path, leaf in flat.items()}
    )
    cross = tree["encoder"]["combiner"]["cross"]
    head_dim = cross["relative"].shape[0]
    cross["query"][:head_dim] += 1  # see own_patch_table
    cross["relative"][:, OWN_PATCH_BUCKET] += OWN_PATCH_LOGIT / head_dim
    return tree


def init_student(config: ModelConfig, seed: int) -> Params:
    """Fresh parameters of the student, {"encoder", "predictor", "mask_token"}: float32 numpy arrays."""
    return _initial_tree(student_shapes(config), seed)


def init_encoder(config: ModelConfig, seed: int) -> Params:
    """Fresh parameters of the encoder alone: those that the student of this seed starts from."""
    return _initial_tree({"encoder": student_shapes(config)["encoder"]}, seed)["encoder"]


def count_parameters(params: Params) -> int:
    """Number of scalars in a parameter tree (of arrays or shapes)."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def parameter_table(config: ModelConfig) -> dict[str, int]:
    """Parameters of each part, without allocating any: each projector, then the sums that `describe` shows."""
    student = student_shapes(config)
    encoder = student["encoder"]
    table = {name: count_parameters(encoder[name]) for name in sorted(encoder) if name.startswith("projector_")}
    table["projectors"] = sum(table.values())
    table["spatial"] = count_parameters(encoder["spatial"])
    table["combiner"] = count_parameters(encoder["combiner"])
    table["encoder"] = count_parameters(encoder)
    table["predictor"] = count_parameters(student["predictor"])
    return table


def flat_names(params: Params) -> dict[str, Any]:
    """A parameter tree as {"a/b/c": leaf}, for messages."""
    return flax.traverse_util.flatten_dict(params, sep="/")
