"""Numbers of our own model, so that a checkout without a golden folder notices a changed forward or backward pass.

`own_numbers.json` was written by `python -m tests.parity.test_own_numbers` on a commit that passed the parity tests.
"""

import functools
import json
import pathlib

import jax
import numpy as np
import pytest

from anysat_jax.batch import Batch, fake_batch
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.encoder import Encoder
from anysat_jax.model.init import init_student
from anysat_jax.pretrain.masking import MaskConfig, sample_patch_masks
from anysat_jax.pretrain.objective import LossConfig, jepa_loss
from tests.parity.cases import QUICK

NUMBERS = pathlib.Path(__file__).with_name("own_numbers.json")
SENSORS = ("aerial", "s2", "s1-asc")
SERIES = SENSORS[1:]  # of the training step, whose program takes long to compile
TOLERANCE = 1e-4  # relative; compilers round differently


@functools.cache
def small_model(positions: str, sensors: tuple[str, ...] = SENSORS) -> tuple[ModelConfig, dict, Batch]:
    config = ModelConfig(
        dim=96, depth=1, num_heads=6, predictor_depth=1, predictor_heads=6, positions=positions, sensors=sensors
    )
    batch = fake_batch(sensors, batch_size=2, extent=40.0, patch_size=10.0, num_dates=3, seed=0)
    return config, init_student(config, seed=0), batch


def described(values: jax.Array) -> list[float]:
    """Returns the norm of an array and its first three numbers: enough to notice a change, few enough to read."""
    values = np.asarray(values, np.float64)
    return [float(np.linalg.norm(values)), *(float(value) for value in values.reshape(-1)[:3])]


def forward_numbers(positions: str) -> dict[str, list[float]]:
    config, params, batch = small_model(positions)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(params: dict) -> dict[str, jax.Array]:
        apply = functools.partial(Encoder(config).apply, {"params": params["encoder"]}, batch)
        return {"all": apply("all"), "dense": apply("dense", "aerial")}

    return {name: described(value) for name, value in run(params).items()}


def training_numbers() -> dict[str, list[float]]:
    config, params, batch = small_model("paper", SERIES)
    masks = sample_patch_masks(np.random.default_rng(0), batch.grid, batch.batch_size, MaskConfig())
    loss = functools.partial(jepa_loss, model=config, config=LossConfig())
    step = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK)
    (total, metrics), grads = step(params, params["encoder"], batch, masks, jax.random.key(0))
    numbers = {"loss": [float(total)]} | {name: [float(value)] for name, value in metrics.items()}
    return numbers | {f"gradient of {name}": described_tree(grads[name]) for name in grads}


def described_tree(tree: dict) -> list[float]:
    return [float(np.sqrt(sum(np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in jax.tree.leaves(tree))))]


def all_numbers() -> dict[str, dict[str, list[float]]]:
    return {
        "paper": forward_numbers("paper"),
        "released": forward_numbers("released"),
        "training": training_numbers(),
    }


@pytest.mark.parametrize("part", ["paper", "released", "training"])
def test_numbers_are_those_of_the_commit_that_passed_the_parity_tests(part):
    expected = json.loads(NUMBERS.read_text())[part]
    found = training_numbers() if part == "training" else forward_numbers(part)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=TOLERANCE, atol=1e-6, err_msg=f"{part}, {name}")


if __name__ == "__main__":
    NUMBERS.write_text(json.dumps(all_numbers(), indent=1) + "\n")
