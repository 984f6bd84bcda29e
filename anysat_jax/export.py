"""Export of trained weights to one file.

python -m anysat_jax.export SOURCE FILE.safetensors

SOURCE is the workdir of a pretraining run (exports the teacher) or of a finished fine-tuning or probing run (encoder
and head), or a published .pth file. AnySat.from_pretrained and --config.init read the file.
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence

from anysat_jax.errors import RunError, complain
from anysat_jax.model.init import count_parameters
from anysat_jax.train.workdir import answer_signal, end_soon_on_interrupt
from anysat_jax.weights.exported import load_exported, save_exported
from anysat_jax.weights.load import exported_file, load_encoder


def export(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> str:
    """Writes the weights of `source` to the file `target`.

    Returns:
      A summary of the file in one line.

    Raises:
      RunError, ValueError, ImportError, OSError: as `load_encoder` and `save_exported`.
    """
    inside = exported_file(pathlib.Path(source))
    if inside is None:
        encoder = load_encoder(source)
        model, params, head = encoder.model, encoder.params, None
        save_exported(target, model, params, source={"source": str(source), "kind": encoder.kind})
    else:
        whole = load_exported(inside)
        model, params, head = whole.model, whole.encoder_params, whole.head
        save_exported(target, model, params, head=head, statistics=whole.statistics, source=whole.source)
    parts = f"an encoder of {count_parameters(params):,} parameters for {', '.join(model.sensors)}"
    return f"{target}: {parts}" + (f"; a head for {head.task['title']}" if head else "")


def main(argv: Sequence[str]) -> int:
    """Runs the command line and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m anysat_jax.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("target", metavar="FILE.safetensors")
    options = parser.parse_args(argv)
    try:
        print(export(options.source, options.target))
    except (RunError, ValueError, ImportError, OSError) as error:
        return complain(error, "anysat_jax.export")
    except KeyboardInterrupt as stop:
        return answer_signal(*stop.args)
    return 0


if __name__ == "__main__":
    end_soon_on_interrupt()
    sys.exit(main(sys.argv[1:]))
