"""Checks of what a user asks for."""

import numpy as np

from anysat_jax.batch import Batch
from anysat_jax.model.encoder import OUTPUTS
from anysat_jax.sensors import get_sensor


def check_output(batch: Batch, output: str, output_modality: str | None = None) -> str | None:
    """The sensor whose sub-patches a dense output shows; None for the other outputs.

    Args:
      batch: what the features are made of.
      output: "tile", "patch", "dense" or "all".
      output_modality: the sensor; may be left out where there is a single one to choose.

    Raises:
      ValueError: there is no such output, or the sensor cannot be shown.
    """
    if output not in OUTPUTS:
        raise ValueError(f"unknown output {output!r}; there are {', '.join(OUTPUTS)}")
    if output != "dense":
        if output_modality:
            raise ValueError(f"output_modality={output_modality!r} goes with output='dense' only, not with {output!r}")
        return None
    spatial = [name for name in batch.sensors if get_sensor(name).kind != "context"]
    if not output_modality:
        if len(spatial) > 1:
            raise ValueError(
                f"output='dense' needs output_modality, the sensor whose grid it has: one of {', '.join(spatial)}"
            )
        output_modality = spatial[0]
    if output_modality not in batch.observations:
        raise ValueError(
            f"output_modality={output_modality!r} is not among the data; choose one of {', '.join(spatial)}"
        )
    if output_modality not in spatial:
        raise ValueError(
            f"output_modality={output_modality!r} is a context sensor, one pixel for the whole tile; "
            f"choose one of {', '.join(spatial)}"
        )
    present = batch.observations[output_modality].present
    if present is not None and not present.all():
        tile = int(np.flatnonzero(~present)[0])
        raise ValueError(
            f"tile {tile} has no {output_modality!r} ({output_modality}_present is False): it has no dense map"
        )
    return output_modality
