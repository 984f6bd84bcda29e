"""`AnySat`: features of tiles from a dict of arrays, with one call."""

import functools
import os
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from anysat_jax.batch import Batch
from anysat_jax.inputs import is_traced
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.encoder import OUTPUTS, Output, encode, is_context
from anysat_jax.model.init import Params, count_parameters, init_encoder
from anysat_jax.normalise import choose_statistics
from anysat_jax.validate import to_batch


class AnySat:
    """A model with its parameters, called on a dict of arrays.

    Example:
      >>> import numpy as np
      >>> import anysat_jax
      >>> model = anysat_jax.AnySat.from_config("tiny", seed=0)
      >>> rng = np.random.default_rng(0)
      >>> data = {
      ...     "aerial": rng.standard_normal((2, 4, 300, 300)),  # (B, C, H, W), 0.2 m: 60 m
      ...     "s2": rng.standard_normal((2, 12, 10, 6, 6)),  # (B, T, C, H, W), 10 m: 60 m
      ...     "s2_dates": np.arange(15, 375, 30)[None].repeat(2, axis=0),  # (B, T) days of the year
      ... }
      >>> model(data, patch_size=20).shape  # a vector for each tile
      (2, 256)
      >>> model(data, patch_size=20, output="patch").shape  # one for each patch of 20 m
      (2, 3, 3, 256)
      >>> model(data, patch_size=20, output="dense", output_modality="aerial").shape  # one for each 2 m
      (2, 30, 30, 512)

    Calls work inside of jax's jit, grad and vmap. The values that these trace are not checked, only their shapes and
    dtypes: masks and units must be right then. For gradients of the parameters, make a model of them:
    `jax.grad(lambda params: AnySat(config, params)(data).sum())`.

    Attributes:
      config: size and options of the model.
      statistics: mean and standard deviation of each band, in native units, with which the inputs of the training
        were standardised: {"s2": {"mean": [...], "std": [...]}}, or under "s2@DATASET" for each dataset of a
        pretraining. Empty where they are not known, as of published weights.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Params | None = None,
        seed: int = 0,
        statistics: Mapping[str, Mapping[str, Any]] | None = None,
    ):
        """Makes a model with the given encoder parameters; None: random ones, initialised from `seed` on first use.

        Raises:
          ValueError: the seed is not a whole number from 0.
        """
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
            raise ValueError(f"seed = {seed!r} must be a whole number, 0 or more")
        self.config = config
        self._given = params
        self._seed = seed
        self.statistics = dict(statistics or {})

    @classmethod
    def from_config(cls, preset: str = "base", seed: int = 0, **overrides: Any) -> Self:
        """Makes a model with random parameters.

        Args:
          preset: "tiny", "small" or "base".
          **overrides: fields of `ModelConfig`, e.g. dim=128, sensors=("s2", "s1"), dtype="bfloat16".

        Raises:
          ValueError: the preset is unknown, or the fields are inconsistent.
        """
        return cls(ModelConfig.from_preset(preset, **overrides), seed=seed)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str]) -> Self:
        """Loads a model with trained weights, those of the teacher for a pretraining run.

        Args:
          path: the workdir of a pretraining run or of a finished fine-tuning run, a file written by `python -m
            anysat_jax.export` (.safetensors), a published checkpoint (.pth), or such a file on the Hugging Face Hub,
            "hf:ORGANISATION/NAME[@REVISION][/FILE]", e.g. "hf:g-astruc/AnySat/models/AnySat.pth". A .pth needs torch:
            pip install 'anysat-jax[torch]'; the Hub needs huggingface_hub: 'anysat-jax[hub]'. No code is executed.

        Raises:
          FileNotFoundError: the path does not exist.
          ValueError: the file is damaged, or does not contain weights of AnySat; the message names the file.
          OSError: the file on the Hub cannot be downloaded; the message says what to do.
          anysat_jax.errors.CheckpointError: the folder does not contain a checkpoint.
        """
        from anysat_jax.weights.load import load_weights  # orbax and safetensors take seconds to import

        loaded, _ = load_weights(path)
        return cls(loaded.model, loaded.encoder_params, statistics=loaded.statistics)

    @functools.cached_property
    def params(self) -> Params:
        """The encoder's parameters, float32, on the default device."""
        if is_traced(*jax.tree.leaves(self._given)):
            return self._given
        given, self._given = self._given, None  # one copy of the weights stays in memory
        return _to_device(init_encoder(self.config, self._seed) if given is None else given)

    @property
    def num_parameters(self) -> int:
        """Number of scalars in the encoder's parameters."""
        return count_parameters(self.params)

    def __call__(
        self,
        data: Mapping[str, Any],
        patch_size: float = 10,
        output: Output = "tile",
        output_modality: str | None = None,
        normalise: str | Mapping[str, Any] | None = None,
    ) -> Float[Array, "..."]:
        """Returns features of a batch of tiles.

        The first call with new shapes compiles a program; later ones reuse it.

        Args:
          data: arrays of numpy, jax, torch or xarray by sensor, standardised (mean 0 and standard deviation 1 for each
            band over the dataset) or raw, see `normalise`: images (B, C, H, W), series (B, T, C, H, W) with
            `<sensor>_dates` (B, T), days of the year from 0, or calendar days: datetime64, or texts like "2020-12-31".
            Optional masks, True where valid: `<sensor>_mask` for pixels, (B, [T,] H, W) or (B, [T,] C, H, W);
            `<sensor>_date_mask` (B, T), False for padded dates; `<sensor>_present` (B,), False for tiles without the
            sensor. What a mask leaves out has no part: a date or an image without a valid pixel is as one that is not
            there. Of numpy's masked arrays the mask counts, too. Arrays of xarray: see docs/DATA.md.
          patch_size: side of a patch in metres.
          output: "tile", "patch", "dense" or "all".
          output_modality: the sensor whose sub-patches "dense" describes; optional with a single image or series.
          normalise: None for values that are standardised already; else the statistics of each band that standardise
            raw values: "auto" for those of the weights (`statistics`); the name of a dataset of the weights, or of one
            that publishes its own ("pastis_hd": s2); a .json file of `anysat data statistics`; or a dict of one of
            these for each sensor, {"s2": {"mean": [...], "std": [...]}, "s1": None}.

        Returns:
          float32. With D = config.dim and N = rows x columns patches: "tile" (B, D); "patch" (B, rows, columns, D);
          "all" (B, 1 + N, D), the tile's vector first; "dense" (B, h, w, 2 D), for each sub-patch the vector of its
          patch and its own feature. Rows and columns are those of the tile's raster.

        Raises:
          TypeError, FileNotFoundError: `data`, `patch_size` or `normalise` is not of its kind, or no such file.
          ValueError: an array is invalid, in other units than the statistics, or there are none of a sensor; the
            message names it, the expected value and the remedy.
        """
        chosen = functools.partial(choose_statistics, normalise, self.statistics)
        batch = to_batch(data, patch_size, self.config.sensors, chosen)
        modality = check_output(batch, output, output_modality)
        return _features(self.config, self.params, jax.device_put(batch), output, modality)


def _to_device(params: Params) -> Params:
    """Puts parameters on the default device leaf by leaf; frees each there that has no other owner."""
    leaves, structure = jax.tree.flatten(params)
    del params
    copied = []
    with jax.ensure_compile_time_eval():  # a first call inside of jit would keep traced parameters
        while leaves:
            copied.append(jax.block_until_ready(jax.device_put(leaves.pop())))
    return jax.tree.unflatten(structure, copied[::-1])


def check_output(batch: Batch, output: str, output_modality: str | None = None) -> str | None:
    """Returns the sensor whose sub-patches a dense output describes; None for the other outputs.

    Args:
      output: "tile", "patch", "dense" or "all".
      output_modality: the sensor; optional if the batch has a single image or series.

    Raises:
      ValueError: the output is unknown, or the sensor has no dense map of some tile.
    """
    if output not in OUTPUTS:
        raise ValueError(f"unknown output {output!r}; there are {', '.join(OUTPUTS)}")
    if output != "dense":
        if output_modality:
            raise ValueError(f"output_modality={output_modality!r} goes with output='dense' only, not with {output!r}")
        return None
    spatial = [name for name in batch.sensors if not is_context(name)]
    if not output_modality and len(spatial) > 1:
        raise ValueError(
            f"output='dense' needs output_modality, the sensor whose grid it has: one of {', '.join(spatial)}"
        )
    output_modality = output_modality or spatial[0]
    if output_modality not in spatial:
        known = output_modality in batch.sensors
        problem = "a context sensor, one pixel for the whole tile" if known else "not among the data"
        raise ValueError(f"output_modality={output_modality!r} is {problem}; choose one of {', '.join(spatial)}")
    present = batch.observations[output_modality].present
    if present is not None and not is_traced(present) and not present.all():
        tile = int(np.flatnonzero(~present)[0])
        raise ValueError(
            f"tile {tile} has no {output_modality!r} ({output_modality}_present is False, or its masks leave nothing): "
            "it has no dense map"
        )
    return output_modality


@functools.partial(jax.jit, static_argnames=("config", "output", "output_modality"))
def _features(
    config: ModelConfig, params: Params, batch: Batch, output: Output, output_modality: str | None
) -> Float[Array, "..."]:
    """Returns float32 features; compiles once for each config, patch size, output and set of shapes."""
    return encode(config, params, batch, output, output_modality).astype(jnp.float32)
