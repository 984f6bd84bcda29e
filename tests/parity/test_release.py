"""Every output of the published feature extractor, case by case."""

import jax
import pytest

from anysat_jax.model.encoder import Encoder, dense_features, stack_patches
from tests.parity.cases import (
    NUM_RELEASE,
    PROJECTED_TOLERANCE,
    QUICK,
    TOLERANCE,
    assert_close,
    make_batch,
    published_order,
    read_case,
    read_index,
    to_published_map,
)


def run_everything(encoder, batch):
    """Tokens, embeddings and all outputs in one program: tile, patch and dense are cut from the combiner's vectors."""
    embedded = encoder.embed(batch, dense=batch.sensors)
    combined = encoder.combine(stack_patches(batch, embedded.patches))
    dense = {
        name: dense_features(combined[:, 1:], subpatches, batch.grid)
        for name, subpatches in embedded.subpatches.items()
    }
    return encoder.project(batch), embedded.patches, combined, dense


def test_the_index_lists_the_cases_and_widths(golden_folder, release_weights):
    index = read_index(golden_folder)
    assert [case["case"] for case in index["release"]] == list(range(NUM_RELEASE))
    config = release_weights.config
    assert (config.dim, config.depth, config.num_heads) == (index["dim"], index["depth"], index["heads"])


@pytest.mark.parametrize("number", range(NUM_RELEASE))
def test_release(golden_folder, release, release_weights, number):
    case = read_index(golden_folder)["release"][number]
    golden = read_case(release, number)
    batch, patch_size = make_batch(case, golden), case["patch_size_m"]
    encoder = Encoder(release_weights.config)
    variables = {"params": release_weights.encoder_params}
    run = jax.jit(
        lambda variables, batch: encoder.apply(variables, batch, method=run_everything), compiler_options=QUICK
    )
    tokens, patches, combined, dense = run(variables, batch)
    compared = set()

    def compare(name, ours, tolerance):
        assert_close(ours, golden[name], tolerance, f"case {number}, {name}")
        compared.add(name)

    for name in case["sensors"]:
        if f"proj/{name}" in golden:
            flat = tokens[name].reshape(-1, *tokens[name].shape[2:])
            compare(f"proj/{name}", flat[:, published_order(name, patch_size)], PROJECTED_TOLERANCE)
        if f"spatial/{name}" in golden:
            compare(f"spatial/{name}", patches[name].reshape(-1, patches[name].shape[-1]), TOLERANCE)
        compare(f"out/dense/{name}", to_published_map(dense[name], name, patch_size), PROJECTED_TOLERANCE)
    compare("out/all", combined, TOLERANCE)
    compare("out/tile", combined[:, 0], TOLERANCE)
    compare("out/patch", combined[:, 1:].reshape(golden["out/patch"].shape), TOLERANCE)
    assert compared == {name for name in golden if not name.startswith("in/")}


@pytest.mark.parametrize("output", ["tile", "patch", "all", "dense"])
def test_each_output_as_a_user_asks_for_it(golden_folder, release, release_weights, output):
    number = 2  # aerial tiles in patches of 20 m, where the dense orders differ
    case = read_index(golden_folder)["release"][number]
    golden = read_case(release, number)
    sensor = "aerial" if output == "dense" else None
    ours = jax.jit(Encoder(release_weights.config).apply, static_argnums=(2, 3), compiler_options=QUICK)(
        {"params": release_weights.encoder_params}, make_batch(case, golden), output, sensor
    )
    if output == "dense":
        ours = to_published_map(ours, sensor, case["patch_size_m"])
        assert_close(ours, golden["out/dense/aerial"], PROJECTED_TOLERANCE, output)
    else:
        assert_close(ours, golden[f"out/{output}"], TOLERANCE, output)
