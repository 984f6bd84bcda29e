"""FLOPs on paper against the traced step, product by product, and against XLA's count of an unrolled step."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from anysat_jax import flops
from anysat_jax.batch import Batch, fake_batch
from anysat_jax.model import layers
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.init import student_shapes
from anysat_jax.peak import peak_flops
from anysat_jax.pretrain.masking import MaskConfig, sample_patch_masks
from anysat_jax.pretrain.objective import LossConfig, jepa_loss
from launch.chips import CHIPS
from tests.jaxprs import inner_jaxprs

SENSORS = ("aerial", "s2", "modis")
MODEL = ModelConfig(
    dim=64, depth=2, num_heads=2, predictor_depth=3, predictor_heads=4, sensors=SENSORS, dropout=False, remat="none"
)


@pytest.fixture(scope="module")
def batch():
    return fake_batch(SENSORS, batch_size=4, extent=60.0, patch_size=20.0, num_dates=6)


@pytest.fixture(scope="module")
def masks(batch):
    return sample_patch_masks(np.random.default_rng(0), batch.grid, batch.batch_size, MaskConfig())


def gradient(model, batch, masks, **loss):
    """The losses and gradients of a step, traced."""
    params = student_shapes(model)

    def step(params, teacher, batch, masks):
        config = LossConfig(**loss)
        return jax.value_and_grad(
            lambda params: jepa_loss(params, teacher, batch, masks, jax.random.key(0), model=model, config=config)[0]
        )(params)

    return jax.jit(step).trace(params, params["encoder"], batch, masks)


def products(jaxpr) -> float:
    """FLOPs of all matrix products of a program, those of a scan as often as it runs."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
            total += 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += times * sum(products(inner) for inner in inner_jaxprs(equation))
    return total


def masked(batch: Batch) -> Batch:
    """The batch with pixel masks and sensors that may be absent, as the datasets give it."""
    observations = {}
    for name, one in batch.observations.items():
        shape = (*one.values.shape[:-3], 1, *one.values.shape[-2:])
        present = None if name == "aerial" else np.ones(batch.batch_size, bool)
        observations[name] = dataclasses.replace(one, pixel_mask=np.ones(shape, bool), present=present)
    return batch.replace(observations=observations)


@pytest.fixture(scope="module")
def traced(batch, masks):
    """FLOPs of the products of the model's step."""
    return products(gradient(MODEL, batch, masks).jaxpr.jaxpr)


def test_every_product_of_the_traced_step_is_counted(batch, masks, traced):
    assert flops.step_flops(MODEL, batch, masks) == pytest.approx(traced, rel=2e-3)


def test_masks_of_pixels_and_all_dates_are_counted(batch, masks):
    batch = masked(batch)
    traced = products(gradient(MODEL, batch, masks, mask_dates=False).jaxpr.jaxpr)
    assert flops.step_flops(MODEL, batch, masks, mask_dates=False) == pytest.approx(traced, rel=2e-3)


@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_reconstruction_is_counted(batch, masks, weight):
    model = dataclasses.replace(MODEL, decoder=True)
    traced = products(gradient(model, batch, masks, objective="reconstruction", contrastive_weight=weight).jaxpr.jaxpr)
    assert flops.step_flops(model, batch, masks, contrast=weight > 0) == pytest.approx(traced, rel=2e-3)


def test_an_unrolled_step_counts_the_same(masks, monkeypatch):
    """XLA counts norms and activations too: the wider the model, the smaller their share."""
    monkeypatch.setattr(layers, "CPU_PART", 2**30)  # parts would be steps of a loop, which it counts once
    batch = fake_batch(("aerial", "s2"), batch_size=4, extent=60.0, patch_size=20.0, num_dates=2)
    model = dataclasses.replace(MODEL, dim=256, depth=1, predictor_depth=1)  # a scan of one step is no loop
    counted = gradient(model, batch, masks).lower().cost_analysis()["flops"]
    assert flops.step_flops(model, batch, masks) == pytest.approx(counted, rel=0.05)


def test_rematerialisation_adds_what_is_recomputed(batch, masks, traced):
    again = products(gradient(dataclasses.replace(MODEL, remat="full"), batch, masks).jaxpr.jaxpr)
    assert flops.recomputed_flops(MODEL, batch, masks) == pytest.approx(again - traced, rel=0.01)


def test_shapes_are_enough(batch, masks):
    abstract = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), (batch, masks))
    assert flops.step_flops(MODEL, *abstract) == flops.step_flops(MODEL, batch, masks)


def test_parts_grow_as_they_should(batch, masks):
    parts = flops.step_flops_by_part(MODEL, batch, masks)
    assert tuple(parts) == flops.PARTS and sum(parts.values()) == flops.step_flops(MODEL, batch, masks)
    twice = fake_batch(SENSORS, batch_size=8, extent=60.0, patch_size=20.0, num_dates=6)
    masks = sample_patch_masks(np.random.default_rng(0), twice.grid, 8, MaskConfig())
    more = flops.step_flops_by_part(MODEL, twice, masks)
    assert more["spatial"] == 2 * parts["spatial"]
    assert 3 < more["contrastive"] / parts["contrastive"] < 4  # pairs of tokens
    alone = flops.step_flops_by_part(MODEL, twice, masks, negative_parts=2)
    assert alone["contrastive"] == pytest.approx(2 * parts["contrastive"])


def test_encoder_is_a_third_of_its_training_or_less(masks):
    batch = fake_batch((*SENSORS, "s1-asc"), batch_size=4, extent=60.0, patch_size=20.0, num_dates=6)
    forward = flops.encoder_flops(MODEL, batch)
    step = flops.step_flops_by_part(MODEL, batch, masks, mask_dates=False)
    assert step["spatial"] == 4 * forward["spatial"]  # teacher 1, student 3
    assert 3.5 < step["projectors"] / forward["projectors"] < 4  # pixels need no gradient


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("cpu", None),
    ],
)
def test_what_chips_can_compute(kind, peak):
    assert peak_flops(kind) == peak


def test_rates_are_those_that_slices_are_planned_with():
    kinds = {"v5e": "TPU v5 lite", "v5p": "TPU v5p", "v6e": "TPU v6 lite", "h100": "NVIDIA H100 80GB HBM3"}
    kinds |= {"a100": "NVIDIA A100-SXM4-40GB", "h200": "NVIDIA H200"}
    assert {name: peak_flops(kind) for name, kind in kinds.items()} == {name: CHIPS[name].flops for name in kinds}
