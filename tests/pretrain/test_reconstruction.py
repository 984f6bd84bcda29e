"""Reconstruction of raw values: summaries by hand, what does not count, and the same loss over devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anysat_jax.batch import Batch, Observation, fake_batch
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.init import student_shapes
from anysat_jax.model.predictor import Decoded, summary_size
from anysat_jax.pretrain.masking import MaskConfig, PatchMasks, sample_patch_masks
from anysat_jax.pretrain.objective import LossConfig, jepa_loss
from anysat_jax.pretrain.reconstruction import cosine_basis, moments, reconstruction_loss, standardise, summarise
from anysat_jax.sensors import get_sensor
from anysat_jax.train.config import MeshConfig
from anysat_jax.train.sharding import make_mesh, put_batch

SENSORS = ("s1-asc", "spot")


def make_batch(seed: int = 0, batch_size: int = 2) -> Batch:
    return fake_batch(SENSORS, batch_size=batch_size, extent=40.0, patch_size=20.0, num_dates=5, seed=seed)


def make_masks(batch: Batch) -> PatchMasks:
    masks = sample_patch_masks(np.random.default_rng(0), batch.grid, batch.batch_size, MaskConfig(mask_buckets=(1, 1)))
    return jax.tree.map(jnp.asarray, masks)


def random_output(batch: Batch, masks: PatchMasks, seed: int = 0) -> Decoded:
    rng, found = np.random.default_rng(seed), {}
    for kind in ("hidden", "seen", "tile"):
        found[kind] = {}
        for name in batch.sensors:
            size, count = summary_size(get_sensor(name)), get_sensor(name).subpatches_per_side(batch.patch_size) ** 2
            shapes = {
                "hidden": (*masks.target_index.shape, size),
                "seen": (*masks.context_index.shape, count, size),
                "tile": (batch.batch_size, 2 * size),
            }
            found[kind][name] = jnp.asarray(rng.standard_normal(shapes[kind], dtype=np.float32))
    return Decoded(whole=jnp.zeros((batch.batch_size, 4, 8)), **found)


def test_a_series_is_summarised_by_medians_of_year_and_seasons() -> None:
    values = np.zeros((1, 6, 2, 1, 1), np.float32)
    values[0, :, 0, 0, 0] = [1, 9, 2, 5, 7, 100]
    values[0, :, 1, 0, 0] = [3, 3, 3, 4, 8, 100]
    # Two dates in the first season, the last of them in the next year, none in the third; the last one is padding.
    dates = np.array([[10, 100, 120, 300, 380, 50]])
    real = np.array([[True] * 5 + [False]])
    found = summarise(Observation(values, dates, real), get_sensor("s1-asc"), (1, 1))
    basis = cosine_basis(2)
    expected = [(5, 3), (1 - 5, 3 - 3), (2 - 5, 3 - 3), None, (5 - 5, 4 - 3)]
    np.testing.assert_array_equal(found.weights[0, 0, 0].reshape(5, 2), [[1] * 2] * 3 + [[0] * 2] + [[1] * 2])
    for part, bands in zip(found.values[0, 0, 0].reshape(5, 2), expected, strict=True):
        if bands is not None:
            np.testing.assert_allclose(part, np.array(bands) @ basis, atol=1e-5)


def test_an_image_is_summarised_by_means_and_deviations() -> None:
    batch = make_batch()
    found = summarise(batch.observations["spot"], get_sensor("spot"), batch.grid)
    pixels = batch.observations["spot"].values[1, :, 30:40, 20:30]  # of the last patch the third sub-patch
    for part, moment in zip(
        found.values[1, 3, 2].reshape(2, 3), (pixels.mean((1, 2)), pixels.std((1, 2))), strict=True
    ):
        np.testing.assert_allclose(part, moment @ cosine_basis(3), atol=1e-3)
    assert found.weights.all()


def test_the_cosines_are_orthogonal() -> None:
    product = cosine_basis(7).T @ cosine_basis(7)
    np.testing.assert_allclose(product, np.diag(np.diag(product)), atol=1e-5)


def test_coefficients_are_standardised_over_what_is_known() -> None:
    found = summarise(make_batch().observations["spot"], get_sensor("spot"), (2, 2))
    weights = found.weights.at[0, 1].set(0)
    scaled = standardise(found.replace(values=found.values.at[0, 1].set(jnp.nan), weights=weights))
    mean, std = moments(scaled, (0, 1, 2))
    np.testing.assert_allclose(mean.values, 0, atol=1e-5)
    np.testing.assert_allclose(std, 1, atol=0.05)


def exact(batch: Batch, masks: PatchMasks) -> Decoded:
    """The output that reconstructs everything."""
    out = random_output(batch, masks)
    for name in batch.sensors:
        found = standardise(summarise(batch.observations[name], get_sensor(name), batch.grid))
        tile, spread = moments(found, (1, 2))
        patches = moments(found, (2,))[0].values
        out.tile[name] = jnp.concatenate([tile.values, spread], axis=-1)
        out.hidden[name] = jnp.stack([jax.vmap(lambda x, i: x[i])(patches, index) for index in masks.target_index])
        out.seen[name] = jax.vmap(lambda x, i: x[i])(found.values, masks.context_index)
    return out


def test_an_exact_reconstruction_has_no_loss() -> None:
    batch = make_batch()
    masks = make_masks(batch)
    assert float(reconstruction_loss(exact(batch, masks), batch, masks)) == pytest.approx(0, abs=1e-9)
    assert float(reconstruction_loss(random_output(batch, masks), batch, masks)) > 0.5


def hidden_parts(batch: Batch, value: float) -> Batch:
    """The batch with clouds, a padded date and a sensor that the second tile lacks, all of them filled with a value."""
    s1, spot = batch.observations["s1-asc"], batch.observations["spot"]
    clear = np.ones((2, 5, 1, 4, 4), bool)
    clear[0, :, :, :2, :2] = False  # the whole first patch of the first tile
    clear[0, 1] = False
    real = np.array([[True] * 5, [True] * 4 + [False]])
    present = np.array([True, False])
    radar = np.where(clear & real[:, :, None, None, None], s1.values, value).astype(np.float32)
    image = np.where(present[:, None, None, None], spot.values, value).astype(np.float32)
    s1 = dataclasses.replace(s1, values=radar, pixel_mask=clear, date_mask=real)
    return batch.replace(observations={"s1-asc": s1, "spot": dataclasses.replace(spot, values=image, present=present)})


@pytest.mark.parametrize("value", [1e6, np.nan])
def test_what_is_masked_changes_neither_loss_nor_gradient(value: float) -> None:
    batch = make_batch()
    masks = make_masks(batch)
    out = random_output(batch, masks)

    @jax.jit
    def run(batch: Batch) -> tuple[jax.Array, Decoded]:
        return jax.value_and_grad(reconstruction_loss)(out, batch, masks)

    plain, other = run(hidden_parts(batch, 0.0)), run(hidden_parts(batch, value))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), plain, other)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(other))
    # The second tile lacks the image, so that nothing about it is learnt there.
    assert not other[1].tile["spot"][1].any() and other[1].tile["spot"][0].any()


def test_padded_places_do_not_count() -> None:
    batch = make_batch()
    masks = make_masks(batch)
    out = random_output(batch, masks)
    longer = PatchMasks(
        context_index=jnp.pad(masks.context_index, ((0, 0), (0, 2))),
        context_mask=jnp.pad(masks.context_mask, ((0, 0), (0, 2))),
        target_index=jnp.pad(masks.target_index, ((0, 0), (0, 0), (0, 3))),
        target_mask=jnp.pad(masks.target_mask, (0, 3)),
    )
    padded = out.replace(
        hidden={k: jnp.pad(x, ((0, 0), (0, 0), (0, 3), (0, 0)), constant_values=9) for k, x in out.hidden.items()},
        seen={k: jnp.pad(x, ((0, 0), (0, 2), (0, 0), (0, 0)), constant_values=9) for k, x in out.seen.items()},
    )
    expected = float(reconstruction_loss(out, batch, masks))
    assert float(reconstruction_loss(padded, batch, longer)) == pytest.approx(expected, rel=1e-6)


def test_nothing_known_gives_zero() -> None:
    batch = make_batch()
    absent = {name: dataclasses.replace(one, present=np.zeros(2, bool)) for name, one in batch.observations.items()}
    masks = make_masks(batch)
    loss, grads = jax.value_and_grad(reconstruction_loss)(
        random_output(batch, masks), batch.replace(observations=absent), masks
    )
    assert float(loss) == 0 and not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads))


def test_a_mesh_gives_the_loss_of_one_device() -> None:
    batch = make_batch(batch_size=8)
    masks = make_masks(batch)
    out = random_output(batch, masks)
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    sharded = jax.jit(reconstruction_loss)(out, put_batch(batch, mesh), masks)
    assert float(sharded) == pytest.approx(float(reconstruction_loss(out, batch, masks)), rel=1e-5)


def test_the_step_needs_no_teacher() -> None:
    model = ModelConfig(
        dim=32, depth=1, num_heads=1, predictor_depth=1, predictor_heads=1, sensors=SENSORS, decoder=True
    )
    batch = make_batch()

    def step(params: dict) -> dict:
        config = LossConfig(objective="reconstruction", contrastive_weight=0.0)
        args = (params, None, batch, make_masks(batch), jax.random.key(0))
        return jax.grad(lambda *given: jepa_loss(*given, model=model, config=config), has_aux=True)(*args)

    grads, metrics = jax.eval_shape(step, student_shapes(model))
    assert grads["decoder"]["tile_spot"]["kernel"].shape == (32, 12) and metrics["loss_predictive"].shape == ()
