"""Speed: which laps count, and what is made of them."""

import numpy as np
import pytest

from anysat_jax.batch import fake_batch
from anysat_jax.configs import pretrain
from anysat_jax.flops import peak_flops, step_flops
from anysat_jax.model.config import ModelConfig
from anysat_jax.pretrain.masking import MaskConfig, sample_patch_masks
from anysat_jax.train import monitor as meter_module
from anysat_jax.train.config import MeshConfig
from anysat_jax.train.input import Fed
from anysat_jax.train.monitor import WINDOW, Finished, Meter, Throughput, make_meter
from anysat_jax.train.sharding import make_mesh
from launch.chips import CHIPS
from tests.train.toys import toy_masks


def test_laps_that_compile_do_not_count(monkeypatch):
    times = iter([0.0, 5.0, 7.0, 8.0])
    monkeypatch.setattr(meter_module.time, "monotonic", lambda: next(times))
    throughput = Throughput()
    throughput.compiled()
    assert throughput.lap(4) == (0, 0.0)
    assert throughput.lap(4) == (4, 2.0) and throughput.latest == 2.0
    assert throughput.lap(4) == (4, 1.0) and throughput.latest == 4.0


def test_what_is_done_between_two_steps_is_no_training(monkeypatch):
    times = iter([0.0, 5.0, 105.0, 107.0])
    monkeypatch.setattr(meter_module.time, "monotonic", lambda: next(times))
    throughput = Throughput()
    assert throughput.lap(4) == (4, 5.0)
    throughput.restart()
    assert throughput.lap(4) == (4, 2.0)


def finished(seconds, tiles=4, waited=0.0):
    batch = fake_batch(("spot",), batch_size=tiles, extent=20.0)
    return Finished(1, Fed(batch, toy_masks(tiles), {}, waited=waited), {}, seconds)


def test_speed_is_a_mean_over_the_latest_steps():
    meter = Meter(lambda fed: 100.0 * fed.batch.batch_size, peak=1000.0)
    assert meter.values() == {"tiles_per_second": None, "mfu": None, "input_wait_share": None}
    meter(finished(1.0, tiles=4, waited=0.5))
    meter(finished(3.0, tiles=8, waited=0.5))
    meter(finished(0.0))  # beside a compilation
    assert meter.values() == {"tiles_per_second": 3.0, "mfu": 1200 / 4 / 1000, "input_wait_share": 0.25}
    for _ in range(WINDOW):
        meter(finished(1.0, tiles=2))
    assert meter.values()["tiles_per_second"] == 2.0


def test_flops_are_counted_once_for_each_kind_of_batch():
    counted = []
    meter = Meter(lambda fed: counted.append(fed) or 1.0, peak=None)
    for tiles in (2, 2, 4, 2):
        meter(finished(1.0, tiles=tiles))
    assert [fed.batch.batch_size for fed in counted] == [2, 4]
    assert meter.values()["mfu"] is None  # nothing is known of the devices' rate


def test_where_flops_are_not_known_there_is_no_utilisation():
    meter = Meter()
    meter(finished(2.0, tiles=4, waited=0.5))
    meter.add(4, 0.0, 2.0, 0.5)
    assert meter.values() == {"tiles_per_second": 2.0, "mfu": None, "input_wait_share": 0.25}


@pytest.mark.parametrize(("negatives", "parts"), [("global", 2), ("device", 4)])
def test_a_run_counts_the_flops_of_its_model(monkeypatch, negatives, parts):
    monkeypatch.setattr(meter_module, "peak_flops", lambda kind: 1e12)
    config = pretrain.get_config()
    config.accumulate, config.pretrain.negatives = 2, negatives
    model = ModelConfig(dim=32, depth=1, num_heads=2, predictor_depth=1, predictor_heads=2, sensors=("spot",))
    meter = make_meter(config, model, make_mesh(MeshConfig(data=2, fsdp=1)))
    batch = fake_batch(("spot",), batch_size=4, extent=40.0)
    masks = sample_patch_masks(
        np.random.default_rng(0), batch.grid, 4, MaskConfig(mask_buckets=config.pretrain.mask_buckets)
    )
    meter(Finished(1, Fed(batch, masks, {}), {}, 0.5))
    expected = step_flops(model, batch, masks, negative_parts=parts)
    assert meter.values()["mfu"] == pytest.approx(expected / 0.5 / 2e12)


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
