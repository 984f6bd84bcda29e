"""The step: what it changes, what a bad batch leaves alone, and the same numbers on eight devices."""

import collections
import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from anysat_jax.configs.pretrain import common

from anysat_jax.batch import Batch, fake_batch
from anysat_jax.flops import step_flops
from anysat_jax.model.init import init_student, student_shapes
from anysat_jax.pretrain.config import PretrainConfig
from anysat_jax.pretrain.masking import MaskConfig, PatchMasks, put_masks, sample_patch_masks
from anysat_jax.pretrain.objective import LOSSES, LossConfig, jepa_loss
from anysat_jax.pretrain.step import (
    HEALTH,
    TrainState,
    initial_state,
    make_flops_counter,
    make_train_step,
    pretraining_optimizer,
)
from anysat_jax.train import sharding
from anysat_jax.train.config import MeshConfig, model_config
from anysat_jax.train.input import StepInput
from anysat_jax.train.optimizer import leaf_names
from anysat_jax.train.sharding import make_mesh, put_batch, replicated, state_shardings
from tests.jaxprs import equations

BATCH = 8
STEPS = 3


def small_config():
    config = common()
    config.total_steps = 10
    config.model.update(dim=32, depth=1, num_heads=8, predictor_depth=1, predictor_heads=8, dropout=False)
    config.model.sensors = ("spot", "s2")
    config.optimizer.update(learning_rate=1e-3, clip_norm=1.0)
    config.pretrain.mask_buckets = (1, 1)
    return config


def inputs(seed: int) -> tuple[Batch, PatchMasks]:
    batch = fake_batch(("spot", "s2"), batch_size=BATCH, extent=40.0, num_dates=4, seed=seed)
    return batch, sample_patch_masks(np.random.default_rng(seed), batch.grid, BATCH, MaskConfig(mask_buckets=(1, 1)))


@pytest.fixture(scope="module")
def step() -> Callable[..., tuple[TrainState, dict]]:
    """The step on one device, compiled once."""
    config = PretrainConfig.read(small_config())
    return jax.jit(make_train_step(config, pretraining_optimizer(config)))


@pytest.fixture(scope="module")
def single(step: Callable) -> tuple[list[TrainState], list[dict]]:
    """A few steps on one device, and the state before each and at the end; the third batch holds a NaN."""
    config = small_config()
    optimizer = pretraining_optimizer(PretrainConfig.read(config))
    start = jax.jit(lambda params: initial_state(params, optimizer))
    states, metrics = [start(init_student(model_config(config), 0))], []
    for index in range(STEPS):
        batch, masks = inputs(index)
        if index == 2:
            batch.observations["s2"].values[0, 0, 0, 0, 0] = np.nan
        state, one = step(states[-1], batch, masks)
        states.append(state)
        metrics.append(jax.device_get(one))
    return states, metrics


def test_a_step_moves_student_and_teacher(single: tuple) -> None:
    states, metrics = single
    before, after = jax.device_get((states[0], states[1]))
    assert metrics[0]["finite"] and not metrics[0]["nonfinite_leaves"].any()
    assert int(after.step) == 1
    assert metrics[0]["loss"] == pytest.approx(metrics[0]["loss_predictive"] + metrics[0]["loss_contrastive"], rel=1e-6)
    assert all(np.isfinite(metrics[0][name]) and metrics[0][name].shape == () for name in HEALTH)
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()), after.params["encoder"]["combiner"], before.params["encoder"]["combiner"]
    )
    assert all(jax.tree.leaves(moved["blocks"]))
    # The teacher follows the student after its update, by the decay of the step.
    expected = optax.incremental_update(after.params["encoder"], before.teacher, 1 - metrics[0]["ema"])
    chex.assert_trees_all_close(after.teacher, expected, atol=1e-7)


def test_a_bad_batch_changes_nothing_but_the_clock_and_names_the_leaf(single: tuple) -> None:
    states, metrics = single
    assert not metrics[2]["finite"]
    names = leaf_names(LOSSES, states[0].params)
    assert len(names) == len(metrics[2]["nonfinite_leaves"])
    bad = [name for name, is_bad in zip(names, metrics[2]["nonfinite_leaves"], strict=True) if is_bad]
    assert "loss" in bad and any(name.startswith("gradient of encoder/projector_s2") for name in bad)
    chex.assert_trees_all_equal(states[3].replace(step=0), states[2].replace(step=0))
    assert int(states[3].step) == 3


@pytest.mark.parametrize(
    ("data", "fsdp", "tensor"),
    [  # one with every axis; each takes as long to compile
        (2, 2, 2),
        *(pytest.param(*mesh, marks=pytest.mark.slow) for mesh in [(8, 1, 1), (1, 1, 8), (4, 2, 1), (1, 4, 2)]),
    ],
)
def test_eight_devices_give_the_numbers_of_one(
    single: tuple, monkeypatch: pytest.MonkeyPatch, data: int, fsdp: int, tensor: int
) -> None:
    monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 256)  # cuts even what is as small as here
    states, metrics = single
    config = small_config()
    optimizer = pretraining_optimizer(PretrainConfig.read(config))
    mesh = make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor))
    shardings = state_shardings(mesh, states[0])
    assert fsdp * tensor == 1 or sum(not one.is_fully_replicated for one in jax.tree.leaves(shardings)) > 50
    step = jax.jit(
        make_train_step(PretrainConfig.read(config), optimizer, mesh),
        donate_argnums=0,
        out_shardings=(shardings, replicated(mesh)),
    )
    state = jax.device_put(jax.device_get(states[0]), shardings)
    for index in range(2):
        batch, masks = inputs(index)
        state, one = step(state, put_batch(batch, mesh), put_masks(masks, mesh))
        for name in ("loss_predictive", "loss_contrastive", "grad_norm", *HEALTH):
            assert float(one[name]) == pytest.approx(float(metrics[index][name]), rel=1e-4), name
    # Adam divides by the root of small second moments: rounding in tiny gradients shows, up to a fraction of a step.
    chex.assert_trees_all_close(jax.device_get(state.params), jax.device_get(states[2].params), atol=2e-4)


def test_masking_can_be_switched_off(single: tuple, step: Callable) -> None:
    """Ablation B of the paper's supplement: without date and sensor masking the loss does not depend on the key."""
    states, metrics = single
    _, other_key = step(states[0].replace(step=jnp.int32(1)), *inputs(0))  # the key derives from the number of the step
    assert other_key["loss"] != metrics[0]["loss"]

    model = model_config(small_config())
    params = student_shapes(model)

    def random_numbers(config: LossConfig) -> int:
        loss = functools.partial(jepa_loss, model=model, config=config)
        program = jax.make_jaxpr(loss)(params, params["encoder"], *inputs(0), jax.random.key(0))
        return sum(equation.primitive.name == "random_bits" for equation in equations(program.jaxpr))

    assert random_numbers(LossConfig()) > 0
    assert random_numbers(LossConfig(mask_dates=False, mask_sensors=False)) == 0


def test_bfloat16_is_of_the_computation_alone() -> None:
    """Parameters, teacher, moments, losses, and softmax stay float32; the products are not."""
    config = small_config()
    config.dtype = "bfloat16"
    optimizer = pretraining_optimizer(PretrainConfig.read(config))
    shapes = student_shapes(model_config(config))
    state = jax.eval_shape(lambda params: initial_state(params, optimizer), shapes)
    traced = jax.jit(make_train_step(PretrainConfig.read(config), optimizer)).trace(state, *inputs(0))
    after, metrics = traced.out_info
    assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(lambda leaf: leaf.dtype, state)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((state.params, state.teacher)))
    assert {leaf.dtype for name, leaf in metrics.items() if "finite" not in name} == {jnp.dtype("float32")}
    found = collections.defaultdict(collections.Counter)
    for equation in equations(traced.jaxpr.jaxpr):
        found[equation.primitive.name].update(str(variable.aval.dtype) for variable in equation.invars[:1])
    assert set(found["reduce_max"]) == set(found["log"]) == {"float32"}  # softmax and the contrastive loss
    assert found["dot_general"]["bfloat16"] > 2 * found["dot_general"]["float32"] > 0


@pytest.mark.parametrize(("negatives", "parts"), [("global", 2), ("device", 4)])
def test_the_flops_of_a_run_are_those_of_its_model(negatives, parts):
    given = small_config()
    given.model.sensors = ("spot",)
    given.accumulate, given.pretrain.negatives = 2, negatives
    config = PretrainConfig.read(given)
    batch = fake_batch(("spot",), batch_size=4, extent=40.0)
    masks = sample_patch_masks(np.random.default_rng(0), batch.grid, 4, config.pretrain)
    count = make_flops_counter(config, make_mesh(MeshConfig(data=2, fsdp=1)))
    assert count(StepInput((batch, masks), {})) == step_flops(config.model, batch, masks, negative_parts=parts)
