"""Checks of what a user hands over: bad input gets an error that says what was expected and what to do."""

from anysat_jax.validate.batch import to_batch
from anysat_jax.validate.extent import fitting_patch_sizes
from anysat_jax.validate.output import check_output

__all__ = ["check_output", "fitting_patch_sizes", "to_batch"]
