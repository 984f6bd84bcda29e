"""Every tensor, loss and gradient norm of a published pretraining step, case by case."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anysat_jax.model.encoder import Encoder
from anysat_jax.model.predictor import Student
from anysat_jax.pretrain.contrastive import contrastive_loss
from anysat_jax.pretrain.objective import gather_targets, normalise, predictive_loss
from anysat_jax.weights.convert import pretraining_entries, to_published
from tests.parity.cases import NUM_PRETRAIN, QUICK, TOLERANCE, assert_close, make_batch, read_case, read_index

LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-3
ROUNDING = 1e-10  # the norms run from 1e-10 to 0.8; those that are zero on paper are below 1e-11


def run_step(params, teacher, batch, context_index, target_index, keep, *, config):
    """The sum of the two losses, and all that leads to it. All dates are kept and nothing is dropped."""
    patches = Encoder(config).apply({"params": teacher}, batch, "all")[:, 1:]
    target = gather_targets(patches, target_index)
    student = Student(config).apply(
        {"params": params}, batch, context_index, target_index, keep=keep, deterministic=True
    )
    tokens = {name: value for name, value in student.embedded.patches.items() if name != "modis"}
    losses = {
        "predictive": predictive_loss(student.predicted, target),
        "contrastive": contrastive_loss(jnp.stack(list(tokens.values()), axis=1)),
    }
    found = {
        "teacher": normalise(patches),
        "target": target,
        "context": student.context,
        "predicted": student.predicted,
    }
    return sum(losses.values()), (losses, tokens, found)


def read_masks(case: dict, golden: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Context and target places as the student takes them, and the kept tokens with the sensors in sorted order."""
    names = [name for name in case["sensors"] if name != "modis"]
    context = golden["context_patches"].astype(np.int32)
    keep = golden["keep"].reshape(len(context), len(names), -1)[:, np.argsort(names)]
    return context, golden["target_patches"].astype(np.int32), keep


def flat_blocks(blocks: jax.Array) -> np.ndarray:
    """(k, B, m, D) as the golden (k * B, m, D)."""
    return np.asarray(blocks).reshape(-1, *blocks.shape[2:])


def has_no_gradient(name: str, depth: int) -> bool:
    """Parameters that add one number to all logits of a softmax, which changes nothing: what remains is rounding.

    Biases of keys; and the relative table of the spatial transformer's last block: only its class token's output is
    used, whose distance to every token is in one bucket.
    """
    last_table = f"spatial_encoder.predictor_blocks.{depth - 1}.attn.rpe_k.lookup_table_weight"
    return name.endswith(("fc1_k.bias", "attn.wk.bias", last_table))


def compare_gradients(golden: dict, grads: dict, depth: int) -> None:
    """The norm of every parameter's gradient; parameters that golden leaves out have none."""
    norms = {name: np.linalg.norm(grad) for name, grad in grads.items()}
    expected = {name.removeprefix("grad_norm/"): norm for name, norm in golden.items() if name.startswith("grad_norm/")}
    assert expected
    assert set(expected) <= set(norms)
    wrong = []
    for name, norm in norms.items():
        if name not in expected:
            right = norm == 0
        elif has_no_gradient(name, depth):
            right = max(norm, expected[name]) < ROUNDING
        else:
            right = abs(norm - expected[name]) <= GRADIENT_TOLERANCE * expected[name]
        if not right:
            wrong.append(f"{name}: {norm:.6e}, golden {expected.get(name)}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("number", range(NUM_PRETRAIN))
def test_pretraining_step(golden_folder, pretrain, pretrain_weights, number):
    index = read_index(golden_folder)["pretrain"]
    assert len(index) == NUM_PRETRAIN
    case, golden = index[number], read_case(pretrain, number)
    weights = pretrain_weights
    student = {
        "encoder": weights.encoder_params,
        "predictor": weights.predictor_params,
        "mask_token": weights.mask_token,
    }
    gradient = jax.value_and_grad(functools.partial(run_step, config=weights.config), has_aux=True)
    (_, (losses, tokens, found)), grads = jax.jit(gradient, compiler_options=QUICK)(
        student, weights.teacher_params, make_batch(case, golden), *read_masks(case, golden)
    )
    for name, value in tokens.items():
        assert_close(value, golden[f"patch_tokens/{name}"], TOLERANCE, f"case {number}, patch tokens of {name}")
    for name, value in found.items():
        value = value if value.ndim == 3 else flat_blocks(value)
        assert_close(value, golden[name], TOLERANCE, f"case {number}, {name}")
    for name, value in losses.items():
        assert_close(value, golden[f"loss/{name}"], LOSS_TOLERANCE, f"case {number}, {name} loss")
    grads = to_published(pretraining_entries(weights.config, teacher=False), grads)
    compare_gradients(golden, grads, weights.config.depth)
