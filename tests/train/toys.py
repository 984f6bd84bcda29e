"""A toy state and a toy config, so that the machinery of training is tested without a model."""

import flax.struct
import jax
import numpy as np
import optax
from jax.sharding import Mesh

from anysat_jax.pretrain import step as state_module
from anysat_jax.pretrain.step import TrainState, initial_state
from anysat_jax.train.config import OptimizerConfig
from anysat_jax.train.optimizer import make_optimizer
from anysat_jax.train.sharding import state_shardings

WIDE = 128  # of the toy matrices: above the size under which nothing is cut


@flax.struct.dataclass
class ToyMasks:
    """Stands for PatchMasks."""

    context_index: np.ndarray
    context_mask: np.ndarray
    target_index: np.ndarray
    target_mask: np.ndarray


def toy_masks(batch_size: int = 8) -> ToyMasks:
    index = np.arange(batch_size * 3, dtype=np.int32).reshape(batch_size, 3)
    return ToyMasks(index, index % 2 == 0, np.stack([index[:, :2]] * 4), np.array([True, False]))


def toy_params(seed: int = 0, width: int = WIDE) -> dict:
    """A tree with the names that matter: kernels, biases, a scanned stack, a token."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.standard_normal(shape, dtype=np.float32)

    encoder = {
        "spatial": {
            "class_token": draw(width),
            "blocks": {"mlp": {"up": {"kernel": draw(2, width, 2 * width), "bias": draw(2, 2 * width)}}},
            "norm": {"scale": draw(width), "bias": draw(width)},
        },
        "projector_s2": {"pad_value": draw(), "query": draw(16, 8), "key": {"kernel": draw(width, width)}},
    }
    return {"encoder": encoder, "mask_token": draw(width), "predictor": {"out": {"kernel": draw(width, width)}}}


def toy_optimizer_config(**changes) -> OptimizerConfig:
    return OptimizerConfig(**dict(learning_rate=1e-2, weight_decay=0.05, clip_norm=1.0) | changes)


def toy_optimizer(**changes) -> optax.GradientTransformationExtraArgs:
    config = toy_optimizer_config(**changes)
    plateau = config.plateau if config.schedule == "plateau" else None
    return make_optimizer(config, warmup_steps=2, total_steps=20, loss_plateau=plateau)


def toy_state(mesh: Mesh, seed: int = 0, **optimizer) -> TrainState:
    return state_module.state_from_params(toy_params(seed), None, toy_optimizer(**optimizer), mesh)


def toy_abstract(mesh: Mesh, width: int = WIDE, **optimizer) -> TrainState:
    shapes = jax.eval_shape(lambda: initial_state(toy_params(width=width), toy_optimizer(**optimizer)))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(mesh, shapes),
    )


def assert_same(first, second) -> None:
    """Equal to the last bit, leaf by leaf."""
    a, b = jax.tree_util.tree_leaves_with_path(first), jax.tree_util.tree_leaves_with_path(second)
    assert [path for path, _ in a] == [path for path, _ in b]
    for (path, x), (_, y) in zip(a, b, strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), jax.tree_util.keystr(path), strict=True)
