"""FLOPs of fine-tuning on paper against the traced step."""

import jax
import numpy as np
import pytest

from anysat_jax.batch import fake_batch
from anysat_jax.downstream.network import HeadConfig, NetworkConfig, apply_network, head_shapes
from anysat_jax.downstream.task import LossConfig, task_loss
from anysat_jax.flops import finetune_flops
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.init import student_shapes
from tests.test_flops import masked, products

SENSORS = ("aerial-flair", "s1", "s2")
MODEL = ModelConfig(dim=64, depth=2, num_heads=2, predictor_heads=2, sensors=SENSORS, dropout=False, remat="none")


@pytest.mark.parametrize(
    ("name", "level", "head", "sensors"),
    [
        ("so2sat", "tile", HeadConfig(input="tile"), ("s1", "s2")),
        ("so2sat", "tile", HeadConfig(input="mean", kind="mlp", hidden=96), ("s1", "s2")),
        ("sen1floods11", "dense", HeadConfig(input="dense"), ("s1", "s2")),
        ("flair", "dense", HeadConfig(input="dense", kind="mlp"), ("aerial-flair", "s2")),
    ],
)
@pytest.mark.parametrize("with_masks", [False, True])
def test_every_product_of_the_traced_step_is_counted(task_of, name, level, head, sensors, with_masks):
    task = task_of(name, level)
    network = NetworkConfig(MODEL, head, task)
    batch = fake_batch(sensors, batch_size=4, extent=60.0, patch_size=20.0, num_dates=6)
    batch = masked(batch) if with_masks else batch
    side = round(60.0 / task.metres) if level == "dense" else 1
    labels = np.zeros((4, side, side) if level == "dense" else 4, np.int32)

    def loss(params, batch):
        return task_loss(task, LossConfig(), apply_network(network, params, batch), labels, None)[0]

    traced = products(
        jax.jit(jax.value_and_grad(loss))
        .trace({"encoder": student_shapes(network.model)["encoder"], "head": head_shapes(network)}, batch)
        .jaxpr.jaxpr
    )
    assert finetune_flops(network, batch) == pytest.approx(traced, rel=2e-3)
    abstract = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), batch)
    assert finetune_flops(network, abstract) == finetune_flops(network, batch)
