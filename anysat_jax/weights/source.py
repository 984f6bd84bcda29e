"""Where an encoder's weights come from: a run, an exported file or a published checkpoint."""

import os
import pathlib
from typing import Any, Literal, NamedTuple

from anysat_jax.model.config import ModelConfig
from anysat_jax.weights.exported import FILE_NAME, SUFFIX, load_exported
from anysat_jax.weights.published import load_published

Params = dict[str, Any]
Kind = Literal["run", "export", "published"]


class LoadedEncoder(NamedTuple):
    """An encoder that was trained.

    Attributes:
      model: with the sensors that there are projectors for.
      params: of `Encoder(model)`, float32: the teacher's, where there is a teacher.
      kind: what they were read from.
    """

    model: ModelConfig
    params: Params
    kind: Kind


def load_encoder(source: str | os.PathLike[str], *, predictor_heads: int | None = None) -> LoadedEncoder:
    """The encoder of a workdir, an exported .safetensors file, or a published .pth file.

    Args:
      source: what to read. Of a pretraining's workdir the teacher is taken, of a finished adaptation's the exported
        model.
      predictor_heads: see `load_published`.

    Raises:
      FileNotFoundError: there is neither file nor folder.
      ValueError: the file does not hold the weights of an AnySat.
      ImportError: it is a .pth file, and torch is not installed.
      anysat_jax.train.errors.CheckpointError: the folder holds no checkpoint.
    """
    path = pathlib.Path(source)
    if (exported := exported_file(path)) is not None:
        content = load_exported(exported)
        return LoadedEncoder(content.model, content.encoder_params, "run" if path.is_dir() else "export")
    if path.is_dir():
        from anysat_jax.train.pretrained import load_teacher  # takes seconds to import

        return LoadedEncoder(*load_teacher(path), "run")
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path}; expected a published .pth file, or the workdir of a run, or an exported {SUFFIX} file"
        )
    published = load_published(path, predictor_heads=predictor_heads)
    return LoadedEncoder(published.config, published.teacher_params or published.encoder_params, "published")


def exported_file(path: pathlib.Path) -> pathlib.Path | None:
    """The exported file that a path names: itself, or that of a finished run's workdir; None where there is none."""
    if path.suffix == SUFFIX:
        return path
    inside = path / FILE_NAME
    return inside if inside.is_file() else None
