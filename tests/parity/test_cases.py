"""The harness of the parity tests follows the golden index, whatever widths and heads the golden set has."""

import json

import jax
import numpy as np
import pytest

from anysat_jax.model.config import ModelConfig
from anysat_jax.model.init import init_student
from anysat_jax.weights.convert import pretraining_entries, to_published
from tests.parity.cases import read_pretrain_weights

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("named", [{}, {"predictor_heads": 3}])
def test_the_predictor_has_the_heads_of_the_index(tmp_path, named):
    heads = named.get("predictor_heads", 6)
    widths = dict(dim=96, depth=1, num_heads=6, predictor_depth=1, predictor_heads=heads)
    config = ModelConfig(**widths, positions="released", norm_groups="published", sensors=("s2",))
    student = init_student(config, seed=0)
    params = {**student, "teacher": student["encoder"]}
    arrays = to_published(pretraining_entries(config), params)
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    torch.save({"state_dict": tensors}, tmp_path / "pretrain.pth")
    index = {"dim": 96, "depth": 1, "heads": 6, "release": [], "pretrain": []} | named
    (tmp_path / "index.json").write_text(json.dumps(index))

    weights = read_pretrain_weights(tmp_path)

    assert weights.config == config
    jax.tree.map(np.testing.assert_array_equal, weights.predictor_params, student["predictor"])
