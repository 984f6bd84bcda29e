"""Encodings of features as the numbers of a raster: optional components, then float32, float16 or int8 with nodata.

int8 is the scheme of published embeddings (Satellite Embedding V1: v = (q / 127.5)^2 * sign(q), with -128 for nodata):
half of the steps lie below a quarter of the range, where most features are. Those embeddings have length 1; ours have
not, so a raster has one scale, by which values are divided into [-1, 1] before, and multiplied after.
"""

import base64
import dataclasses
import json
import math
from typing import Any

import numpy as np
from jaxtyping import Float32, Num

from anysat_jax.principal import principal_axes

DTYPES = ("float32", "float16", "int8")
INT8_NODATA, INT8_LIMIT, INT8_STEPS = -128, 127, 127.5
INT8_FORMULA = "scale * (q / 127.5)**2 * sign(q), and no value where q = -128"  # written beside the scale
# Of a band's absolute values; a maximum would let a single pixel take the range from all others.
SCALE_PERCENTILE = 99.9


@dataclasses.dataclass(frozen=True, eq=False)
class Encoding:
    """An encoding of features; `fit_encoding` makes it from a sample, and every raster written with it carries it."""

    dtype: str = "float32"
    components: int | None = None  # the first ones, of the PCA or of the features; None: all
    mean: Float32[np.ndarray, "D"] | None = None  # of the sample, subtracted before the PCA; None: no PCA
    axes: Float32[np.ndarray, "K D"] | None = None  # rows of length 1, the largest variance first
    scale: float = 1.0  # value that int8 stores as the largest; 1 for floats
    clipped: float = 0.0  # fraction of the sample's values that lie beyond the scale

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"features are stored as {', '.join(DTYPES)}, not as {self.dtype}")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"the scale of an encoding is {self.scale}; it must be above 0")

    @property
    def nodata(self) -> float:
        """The number of a pixel without features; no value is stored as it."""
        return INT8_NODATA if self.dtype == "int8" else math.nan

    def encode(self, values: Float32[np.ndarray, "*N D"]) -> Num[np.ndarray, "*N K"]:
        """Returns what is stored of features; rows with a NaN become nodata in every component."""
        kept = self._project(np.asarray(values, np.float32))
        missing = np.isnan(kept).any(-1, keepdims=True)
        if self.dtype != "int8":
            largest = np.finfo(self.dtype).max  # values beyond that of float16 would be infinite
            return np.where(missing, np.nan, np.clip(kept, -largest, largest)).astype(self.dtype)
        steps = np.rint(np.sqrt(np.abs(kept) / np.float32(self.scale)) * INT8_STEPS)
        steps = np.copysign(np.minimum(steps, INT8_LIMIT), kept)
        return np.where(missing, INT8_NODATA, steps).astype(np.int8)

    def decode(self, stored: Num[np.ndarray, "*N"]) -> Float32[np.ndarray, "*N"]:
        """Returns the features, or their components, of stored numbers of any shape; NaN where there are none.

        Raises:
          ValueError: the numbers have another type than those of this encoding.
        """
        stored = np.asarray(stored)
        if (stored.dtype == np.int8) != (self.dtype == "int8"):
            raise ValueError(f"numbers of {stored.dtype} were not written as {self.dtype}; read them unscaled")
        if self.dtype != "int8":
            return stored.astype(np.float32)  # GDAL before 3.11 reads float16 as float32
        steps = stored.astype(np.float32) / np.float32(INT8_STEPS)
        values = steps * np.abs(steps) * np.float32(self.scale)
        return np.where(stored == INT8_NODATA, np.float32(np.nan), values)

    def _project(self, values: Float32[np.ndarray, "*N D"]) -> Float32[np.ndarray, "*N K"]:
        if self.axes is None:
            return values[..., : self.components]
        return (values - self.mean) @ self.axes.T

    def to_json(self) -> str:
        """Returns the encoding as JSON, arrays as base64 of their float32 numbers, little-endian."""
        fields: dict[str, Any] = {"value": INT8_FORMULA} if self.dtype == "int8" else {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                value = base64.b64encode(value.astype("<f4").tobytes()).decode()
            if value is not None:
                fields[field.name] = value
        return json.dumps(fields, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Encoding":
        """Returns the encoding that `to_json` wrote.

        Raises:
          ValueError: the text is not an encoding.
        """
        try:
            fields = json.loads(text)
            formula = fields.pop("value", None)
            for name in ("mean", "axes"):
                if name in fields:
                    fields[name] = np.frombuffer(base64.b64decode(fields[name], validate=True), "<f4")
            if "axes" in fields:
                fields["axes"] = fields["axes"].reshape(-1, len(fields["mean"]))
            encoding = cls(**fields)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise ValueError(f"not an encoding of features ({error}): {text[:80]}") from error
        if (encoding.dtype == "int8") != (formula == INT8_FORMULA):
            raise ValueError(f"not an encoding of features: {encoding.dtype} as {formula} is unknown")
        return encoding


def fit_encoding(
    sample: Float32[np.ndarray, "N D"], dtype: str = "float32", components: int | None = None, pca: bool = False
) -> Encoding:
    """Returns the encoding of features like those of a sample; the same sample gives the same encoding.

    Args:
      sample: features of valid pixels; rows with a NaN are left out.
      dtype: "float32", "float16" or "int8".
      components: how many numbers of a pixel are stored; None: all.
      pca: whether these are the components of largest variance; otherwise they are the first features.

    Raises:
      ValueError: the sample has no valid row, fewer of them than components, or fewer features.
    """
    sample = np.asarray(sample, np.float32)
    sample = sample[~np.isnan(sample).any(-1)]
    count, features = sample.shape
    if not count:
        raise ValueError("no pixel of the scene is valid: its features cannot be encoded")
    if components is not None and not 1 <= components <= features:
        raise ValueError(f"{components} components were asked for, and the features have {features}")
    mean, axes = _fit_pca(sample, components or features) if pca else (None, None)
    encoding = Encoding(dtype, components, mean, axes)
    if dtype != "int8":
        return encoding
    sizes = np.abs(encoding._project(sample))
    # The largest over the bands: one percentile over all values would clip the first component of a PCA, whose values
    # are the largest.
    scale = float(np.percentile(sizes, SCALE_PERCENTILE, axis=0).max()) or 1.0
    return dataclasses.replace(encoding, scale=scale, clipped=float((sizes > scale).mean()))


def _fit_pca(
    sample: Float32[np.ndarray, "N D"], components: int
) -> tuple[Float32[np.ndarray, "D"], Float32[np.ndarray, "K D"]]:
    if len(sample) <= components:
        raise ValueError(f"a PCA of {components} components needs more than {len(sample)} valid pixels")
    sample = sample.astype(np.float64)
    mean = sample.mean(0)
    return mean.astype(np.float32), principal_axes(sample - mean)[:components].astype(np.float32)
