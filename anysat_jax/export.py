"""Export of trained weights to one file or a program, and conversion between all kinds of them.

python -m anysat_jax.export SOURCE FILE.safetensors
python -m anysat_jax.export --whole SOURCE TARGET        (anysat convert SOURCE TARGET)
python -m anysat_jax.export SOURCE FILE.jax --for=jax --sensors=s2,aerial --extent=60
python -m anysat_jax.export SOURCE FILE.onnx --for=onnx --sensors=s2 --extent=60 --dates=12 --output=patch
python -m anysat_jax.export SOURCE FILE.onnx --for=qgis --sensors=aerial --extent=60 --output=task

SOURCE is the workdir of a pretraining run (exports the teacher) or of a finished fine-tuning or probing run (encoder
and head), an exported .safetensors file, a published .pth file, or such a file on the Hugging Face Hub, named
hf:ORGANISATION/NAME[@REVISION][/FILE]. AnySat.from_pretrained and --config.init read the exported file.
A model card for the Hub, README.md, is written beside it, unless another README.md is there.

With --whole everything is written, of a pretraining the student, too, so that the conversion can be inverted. TARGET is
a .safetensors file; a .pth file, which the published PyTorch code reads (needs torch); or a folder, into which
model.safetensors is written, as it is in the workdir of a finished run.

With --for the file is a program with the weights inside, which runs without this package: jax.export.deserialize reads
that for jax, onnxruntime that for onnx, the plugin Deepness that for qgis. docs/SERVING.md describes its inputs.
"""

import argparse
import dataclasses
import os
import pathlib
import shlex
import sys
from collections.abc import Sequence

from absl import logging

from anysat_jax.describe import CARD, read_summary, summarise, write_card
from anysat_jax.errors import ConfigError
from anysat_jax.train.workdir import end_soon_on_interrupt, run_command
from anysat_jax.weights.exported import FILE_NAME, SUFFIX, Exported, save_exported
from anysat_jax.weights.hub import locate
from anysat_jax.weights.load import load_weights
from anysat_jax.weights.published import save_published


def export(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    whole: bool = False,
    encoder: bool = False,
    predictor_heads: int | None = None,
) -> str:
    """Writes the weights of `source` to `target`.

    Args:
      target: a .safetensors or .pth file, or a folder.
      whole: whether the student of a pretraining, with its predictor, is written beside the teacher.
      encoder: whether the head of a fine-tuning is left out.
      predictor_heads: of a published pretraining's predictor, if its width is not that of a preset.

    Returns:
      A summary in one line.

    Raises:
      RunError, ValueError, ImportError, OSError: as `load_weights`, `save_exported` and `save_published`; or the target
        is a pretraining's workdir, or its name ends in another way.
    """
    path = pathlib.Path(target)
    if path.is_dir() or not path.suffix:
        if (path / "checkpoints").is_dir():  # its checkpoints would be hidden: readers prefer the file
            raise ValueError(f"{path} is the workdir of a run; give another folder, or a file that ends {SUFFIX}")
        path = path / FILE_NAME
    elif path.suffix not in (SUFFIX, ".pth"):
        raise ValueError(f"{path}: weights are written as {SUFFIX} or .pth, or into a folder; choose such a name")
    content, _ = load_weights(source, student=whole, predictor_heads=predictor_heads)
    content = dataclasses.replace(
        content, head=None if encoder else content.head, student=content.student if whole else None
    )
    _save(path, content)
    if not whole and write_card(path, content, read_summary(locate(source))) is None:
        logging.warning("%s is left as it is: it is not the card of %s", path.with_name(CARD), path.name)
    return f"{target}: {summarise(content)}"


def _save(path: pathlib.Path, content: Exported) -> None:
    if path.suffix == SUFFIX:
        if path.name == FILE_NAME:
            path.parent.mkdir(parents=True, exist_ok=True)
        parts = dict(head=content.head, statistics=content.statistics, source=content.source, student=content.student)
        save_exported(path, content.model, content.encoder_params, **parts)
        return
    if content.model.positions != "released":
        logging.warning("%s: trained with positions = 'paper'; the published code computes with 'released'", path)
    save_published(path, content)


def export_program(options: argparse.Namespace, command: str) -> str:
    """Writes a program, given by the options of the command line; returns a summary in one line.

    Raises:
      RunError, ValueError, ImportError, OSError: as `load_weights`, `write_jax` and `write_onnx`.
    """
    from anysat_jax.serve import Program, write_jax, write_onnx

    if not (options.sensors and options.extent):
        raise ConfigError(f"--for={options.form} needs --sensors and --extent: the inputs of the program")
    sides = [float(side) for side in options.extent.split("x")]
    program = Program(
        sensors=tuple(sorted(options.sensors.split(","))),
        extent=(sides[0], sides[-1]),
        patch_size=options.patch_size,
        output=options.output,
        output_modality=options.output_modality,
        normalise=options.normalise or ("auto" if options.form == "qgis" else None),
        masks=options.masks,
        day=options.day,
        raster=options.form == "qgis",
    )
    weights, _ = load_weights(options.source)
    if options.form == "jax":
        return write_jax(pathlib.Path(options.target), weights, program, command)
    fixed = dict(batch=options.batch, dates=options.dates)
    return write_onnx(pathlib.Path(options.target), weights, program, command, **fixed)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m anysat_jax.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("target", metavar="TARGET")
    parser.add_argument("--whole", action="store_true", help="the student of a pretraining, too")
    parser.add_argument("--encoder", action="store_true", help="without the head of a fine-tuning")
    parser.add_argument("--predictor-heads", type=int, metavar="N", help="of a .pth's predictor of unusual width")
    program = parser.add_argument_group("programs")
    program.add_argument("--for", dest="form", choices=("jax", "onnx", "qgis"), help="what runs the program")
    program.add_argument("--sensors", metavar="NAME,...", help="the sensors among the inputs")
    program.add_argument("--extent", metavar="METRES[xMETRES]", help="side of a tile, or its height and width")
    program.add_argument("--patch-size", type=float, default=10.0, metavar="METRES", help="side of a patch (10)")
    program.add_argument("--output", default="tile", help="tile, patch, dense, all, or task: predictions of the head")
    program.add_argument("--output-modality", metavar="NAME", help="the sensor of a dense output")
    program.add_argument("--normalise", metavar="STATISTICS", help="what standardises raw values: auto, DATASET, FILE")
    program.add_argument("--masks", action="store_true", help="masks of pixels and dates are inputs, too")
    program.add_argument("--day", type=int, help="one date for all series, day of the year from 0, in place of inputs")
    program.add_argument("--batch", type=int, default=1, help="tiles of a call, onnx only (1); jax takes any number")
    program.add_argument("--dates", type=int, default=1, help="dates of a series, onnx only (1)")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Runs the command line and returns the exit code."""
    options = parse(argv)

    def write() -> str:
        if options.form:
            return export_program(options, shlex.join(["anysat", "export", *argv]))
        how = dict(whole=options.whole, encoder=options.encoder, predictor_heads=options.predictor_heads)
        return export(options.source, options.target, **how)

    return run_command(write, "anysat_jax.export")


if __name__ == "__main__":
    end_soon_on_interrupt()
    sys.exit(main(sys.argv[1:]))
