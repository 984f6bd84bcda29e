"""Widths and choices of a model, and the three presets."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from anysat_jax.sensors import GEOPLEX_SENSORS, get_sensor

NONE, DOTS, FULL = "none", "dots", "full"
POLICIES = (NONE, DOTS, FULL)
"""none: everything is kept. dots: the results of products with weights are; norms, activations and attention weights
are computed again, which costs little. full: a module's inputs alone are, which costs a third more compute."""


def rematerialised(what: Any, policy: str, **how: Any) -> Any:
    """A module's class or a function under a policy of `POLICIES`; `how`: more arguments of nn.remat or jax.remat."""
    if policy == NONE:
        return what
    # Products "with no batch dims" are those with weights; attention's products are computed again.
    saved = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if policy == DOTS else None
    return (nn.remat if isinstance(what, type) else jax.remat)(what, policy=saved, **how)


def policy_name(stored: bool | str) -> str:
    """A policy as files hold it: True and False are those of files from before there were names."""
    return {False: NONE, True: FULL}.get(stored, stored)


PositionKind = Literal["paper", "released"]
NormGroups = Literal["width", "published"]
# From this width on every norm of the published numbers of groups has three channels a group or more: the first ones,
# of 4 groups on dim / 8 channels, have the fewest.
FULL_GROUPS = 96


def effective_groups(kind: str | None, dim: int | None) -> str:
    """Returns "published" where both are the same, as at presets' widths (None), and for files without a choice."""
    return "published" if kind is None or dim is None or dim >= FULL_GROUPS else kind


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes the parameters' shapes and the computation.

    Attributes:
      dim: width D of every token.
      depth: pre-norm blocks of the spatial transformer, and of the combiner before its cross-attention block.
      num_heads: attention heads of the encoder.
      predictor_depth: blocks of the predictor.
      predictor_heads: attention heads of the predictor.
      mlp_ratio: hidden width of the blocks' MLPs, in units of `dim`.
      positions: "paper" (equation A of the paper's supplement) or "released" (what the published weights were
        trained with).
      norm_groups: groups of the series projectors' norms: "published", the numbers of the published model, or "width",
        fewer where a group would have less than three channels. "published" from width 96 on, where both are the same.
      sensors: names of the sensors that have a projector.
      dtype: dtype of the computation; parameters are float32 always.
      remat: what the backward pass computes again, in projectors and blocks: "none", "dots" or "full", see `remat`.
      dropout: whether training drops as the sensors' records say; False switches all dropout off.
      decoder: whether the student has linear maps from its features to summaries of raw values, see `Decoder`.
    """

    dim: int = 768
    depth: int = 6
    num_heads: int = 12
    predictor_depth: int = 4
    predictor_heads: int = 16
    mlp_ratio: int = 4
    positions: PositionKind = "paper"
    norm_groups: NormGroups = "width"
    sensors: tuple[str, ...] = GEOPLEX_SENSORS
    dtype: str = "float32"
    remat: str = NONE
    dropout: bool = True
    decoder: bool = False

    def __post_init__(self) -> None:
        self._check_types()
        for field, heads in (("num_heads", self.num_heads), ("predictor_heads", self.predictor_heads)):
            if heads < 1 or self.dim % heads:
                raise ValueError(f"model.{field} = {heads} must divide model.dim = {self.dim}")
        if self.dim % 32:
            raise ValueError(
                f"model.dim = {self.dim} must be a multiple of 32: the series projectors have 16 attention heads, and "
                "GroupNorms of up to 4 groups on dim / 8 channels"
            )
        if self.depth < 1 or self.predictor_depth < 1:
            raise ValueError(
                f"model.depth = {self.depth} and model.predictor_depth = {self.predictor_depth} must be at least 1"
            )
        if self.positions not in ("paper", "released"):
            raise ValueError(f"model.positions = {self.positions!r} must be 'paper' or 'released'")
        if self.norm_groups not in ("width", "published"):
            raise ValueError(f"model.norm_groups = {self.norm_groups!r} must be 'width' or 'published'")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype = {self.dtype!r} must be 'float32' or 'bfloat16'")
        if self.remat not in POLICIES:
            raise ValueError(f"model.remat = {self.remat!r} must be one of {', '.join(map(repr, POLICIES))}")
        if not self.sensors:
            raise ValueError("model.sensors is empty; name at least one sensor")
        for name in self.sensors:
            get_sensor(name)
        object.__setattr__(self, "norm_groups", effective_groups(self.norm_groups, self.dim))

    def _check_types(self) -> None:
        """Refuses values of another type, which would fail in the middle of the model; a list of sensors is a tuple."""
        for field in ("dim", "depth", "num_heads", "predictor_depth", "predictor_heads", "mlp_ratio"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise ValueError(f"model.{field} = {value!r} must be a whole number")
        if not (1 <= self.dim <= 2**14 and self.mlp_ratio >= 1):
            sizes = f"model.dim = {self.dim} and model.mlp_ratio = {self.mlp_ratio}"
            raise ValueError(f"{sizes} must be at least 1, and the first at most {2**14}")
        if not isinstance(self.dropout, bool):
            raise ValueError(f"model.dropout = {self.dropout!r} must be True or False")
        if not isinstance(self.sensors, tuple | list) or not all(isinstance(name, str) for name in self.sensors):
            raise ValueError(f"model.sensors = {self.sensors!r} must be a tuple of names, such as ('s2', 's1')")
        if len(set(self.sensors)) < len(self.sensors):
            raise ValueError(f"model.sensors = {self.sensors!r} names a sensor twice")
        object.__setattr__(self, "sensors", tuple(self.sensors))

    @property
    def compute_dtype(self) -> jnp.dtype:
        return jnp.dtype(self.dtype)

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @classmethod
    def from_preset(cls, preset: str, **overrides: Any) -> Self:
        """A preset's model, with some fields replaced.

        Raises:
          ValueError: there is no such preset, or the fields do not fit together.
        """
        if not isinstance(preset, str) or preset not in PRESETS:
            raise ValueError(f"unknown preset {preset!r}; there are {', '.join(PRESETS)}")
        fields = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(overrides.keys() - set(fields)):
            raise ValueError(f"unknown fields of the model: {', '.join(unknown)}; there are {', '.join(fields)}")
        return cls(**{**PRESETS[preset], **overrides})

    @classmethod
    def from_section(cls, section: Mapping[str, Any], dtype: str = "float32") -> Self:
        """A model from the `model` section of a config; fields that are None come from `section["preset"]`."""
        fields = {key: value for key, value in section.items() if key != "preset" and value is not None}
        if "remat" in fields:
            fields["remat"] = policy_name(fields["remat"])
        return cls.from_preset(section["preset"], dtype=dtype, **fields)


PRESETS: dict[str, dict[str, int]] = {
    "tiny": dict(dim=256, depth=2, num_heads=4, predictor_depth=4, predictor_heads=8),
    "small": dict(dim=512, depth=4, num_heads=8, predictor_depth=4, predictor_heads=8),
    "base": dict(dim=768, depth=6, num_heads=12, predictor_depth=4, predictor_heads=16),
}
