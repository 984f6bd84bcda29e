"""The golden weights, through the real importer of published checkpoints."""

import numpy as np
import pytest

from anysat_jax.weights.published import PublishedWeights, load_published
from tests.parity.cases import read_pretrain_weights


@pytest.fixture(scope="session")
def release_weights(golden_folder) -> PublishedWeights:
    pytest.importorskip("torch")
    return load_published(golden_folder / "weights.pth")


@pytest.fixture(scope="session")
def pretrain_weights(golden_folder) -> PublishedWeights:
    pytest.importorskip("torch")
    return read_pretrain_weights(golden_folder)


@pytest.fixture(scope="session")
def release(golden_folder):
    return np.load(golden_folder / "release.npz")


@pytest.fixture(scope="session")
def pretrain(golden_folder):
    return np.load(golden_folder / "pretrain.npz")
