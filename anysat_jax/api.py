"""Features from arrays: the model behind one call."""

import functools
import os
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from anysat_jax.batch import Batch
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.encoder import Output, encode
from anysat_jax.model.init import Params, count_parameters, init_encoder
from anysat_jax.validate import check_output, to_batch


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

    Attributes:
      config: widths and choices of the model.
    """

    def __init__(self, config: ModelConfig, params: Params | None = None, seed: int = 0):
        """A model with the given encoder parameters, or with fresh ones drawn from `seed` when first needed."""
        self.config = config
        self._given = params
        self._seed = seed

    @classmethod
    def from_config(cls, preset: str = "base", seed: int = 0, **overrides: Any) -> Self:
        """A model with fresh parameters.

        Args:
          preset: "tiny", "small" or "base".
          seed: fixes the parameters.
          **overrides: fields of `ModelConfig`, e.g. dim=128, sensors=("s2", "s1"), dtype="bfloat16".

        Raises:
          ValueError: there is no such preset, or the fields do not fit together.
        """
        return cls(ModelConfig.from_preset(preset, **overrides), seed=seed)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str]) -> Self:
        """A model with trained weights: the teacher's, where there is a teacher.

        Args:
          path: the workdir of a pretraining or of a finished fine-tuning, a file that `python -m anysat_jax.export` has
            made (.safetensors), or a published checkpoint (.pth). Reading a .pth needs torch:
            pip install 'anysat-jax[torch]'. Nothing in a file is executed.

        Raises:
          FileNotFoundError: there is neither file nor folder.
          ValueError: the file does not hold the weights of an AnySat, or is damaged; the message names the file.
          anysat_jax.errors.CheckpointError: the folder holds no checkpoint.
        """
        from anysat_jax.weights.load import load_encoder  # brings what features alone do not need

        loaded = load_encoder(path)
        return cls(loaded.model, loaded.params)

    @functools.cached_property
    def params(self) -> Params:
        """The encoder's parameters, float32, on the default device."""
        params = init_encoder(self.config, self._seed) if self._given is None else self._given
        return jax.device_put(params)

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
    ) -> Float[Array, "..."]:
        """Features of a batch of tiles.

        The first call with new shapes compiles a program; later ones reuse it.

        Args:
          data: for each sensor its standardised values (mean 0 and standard deviation 1 for each band over the data
            set), an array of numpy or jax: images (B, C, H, W), series (B, T, C, H, W) with `<sensor>_dates` (B, T),
            days of the year from 0. Optional masks, bool, True where valid: `<sensor>_mask` for pixels,
            (B, [T,] H, W) or (B, [T,] C, H, W); `<sensor>_date_mask` (B, T) for padded dates; `<sensor>_present` (B,)
            for tiles without the sensor.
          patch_size: side of a patch in metres.
          output: "tile", "patch", "dense" or "all".
          output_modality: the sensor whose sub-patches "dense" describes; may be left out where there is one.

        Returns:
          float32. With D = config.dim, N = rows x columns patches: "tile" (B, D); "patch" (B, rows, columns, D); "all"
          (B, 1 + N, D), the tile's vector first; "dense" (B, h, w, 2 D), for each sub-patch its patch's vector and its
          own feature. Rows and columns are those of the tile's raster.

        Raises:
          TypeError: `data` is not a dict, or `patch_size` is not a number.
          ValueError: something in the data does not fit; the message names it and says what to do.
        """
        batch = to_batch(data, patch_size, self.config.sensors)
        modality = check_output(batch, output, output_modality)
        return _features(self.config, self.params, jax.device_put(batch), output, modality)


@functools.partial(jax.jit, static_argnames=("config", "output", "output_modality"))
def _features(
    config: ModelConfig, params: Params, batch: Batch, output: Output, output_modality: str | None
) -> Float[Array, "..."]:
    """The encoder's features in float32; one program for each config, patch size, output and set of shapes."""
    return encode(config, params, batch, output, output_modality).astype(jnp.float32)
