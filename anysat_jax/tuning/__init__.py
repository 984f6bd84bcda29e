"""Fine-tuning, probing and evaluating, from a config to its results; `anysat_jax.adapt` has what is pure of it."""
