"""How many parameters a model has, part by part."""

from anysat_jax.model.config import ModelConfig
from anysat_jax.model.init import parameter_table

TOTALS = ("projectors", "spatial", "combiner", "encoder", "predictor")


def describe(model: ModelConfig) -> str:
    """The parameters of each part in millions, as a table in text; no memory is taken for them."""
    table = parameter_table(model)
    rows = [(name.replace("_", " ", 1), table[name]) for name in table if name not in TOTALS]
    notes = {"projectors": " (all sensors)", "encoder": " (the model: projectors, spatial, combiner)"}
    rows += [(name + notes.get(name, ""), table[name]) for name in TOTALS]
    shared = 100 * (table["spatial"] + table["combiner"]) / table["encoder"]
    width = max(len(label) for label, _ in rows)
    lines = [f"{label:<{width}}  {count / 1e6:8.2f} M" for label, count in rows]
    title = f"dim {model.dim}, depth {model.depth}, {model.num_heads} heads; predictor depth {model.predictor_depth}"
    return "\n".join([title, *lines, f"{shared:.1f} % of the encoder is shared by all sensors"])
