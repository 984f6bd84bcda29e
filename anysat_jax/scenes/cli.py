"""Whole scenes: rasters of several sensors in, an embedding or a map out.

anysat embed --s2 FOLDER --s1 FOLDER --weights WEIGHTS --patch-size 40 --resolution 10 --output emb.tif
anysat predict --s2 FOLDER --weights RUN --patch-size 40 --output map.tif
anysat view emb.tif

--SENSOR gives the rasters of a registered sensor: a GeoTIFF or a folder of them (one a date, one a band, or stacked), a
folder of .SAFE products, a zarr store, or a STAC item collection (.json). WEIGHTS are what AnySat.from_pretrained
reads; RUN is a finished fine-tuning or probing. Values are raw, in the units of the weights' statistics. The same
command goes on with an interrupted run. docs/SCENES.md has more.
"""

import argparse
import dataclasses
import itertools
import logging as standard_logging
import sys
from collections.abc import Callable, Sequence

from absl import logging

from anysat_jax.errors import ConfigError
from anysat_jax.scenes.encoding import DTYPES
from anysat_jax.sensors import SENSORS
from anysat_jax.train.workdir import end_soon_on_interrupt, run_command

EMBED, PREDICT, VIEW = "embed", "predict", "view"


def parse(command: str, argv: Sequence[str]) -> argparse.Namespace:
    """Returns the options of `anysat embed` or `anysat predict`; rasters by sensor in `sources`."""
    parser = argparse.ArgumentParser(
        prog=f"anysat {command}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--weights", required=True, metavar="WEIGHTS", help="file or run of a model")
    add("--output", required=True, metavar="FILE", help="GeoTIFF (.tif) or Zarr store (.zarr)")
    add("--patch-size", type=float, required=True, metavar="METRES", help="side of a patch")
    if command == EMBED:
        add("--resolution", type=float, required=True, metavar="METRES", help="side of a pixel of the result")
        add("--output-modality", metavar="SENSOR", help="whose sub-patches the pixels are, where several fit")
        add("--dtype", choices=DTYPES, default="float32", help="of the stored features (float32)")
        add("--components", type=int, metavar="K", help="numbers stored of each pixel (all)")
        add("--pca", action="store_true", help="the K are principal components, not the first features")
    else:
        add("--probabilities", action="store_true", help="a band of the probability of each class")
        add("--polygons", metavar="FILE.gpkg", help="the areas of each class as polygons, too")
    add("--bounds", metavar="L,B,R,T", help="of the result, in metres of its coordinate system")
    add("--crs", metavar="CRS", help="coordinate system of the result, in metres, such as EPSG:32632")
    add("--normalise", default="auto", metavar="STATISTICS", help="auto (of the weights), DATASET, FILE.json; none")
    add("--tile", type=float, metavar="METRES", help="side of a tile (16 patches): the context of a pixel")
    add("--compute-dtype", choices=("float32", "bfloat16"), help="of the model (that of the weights)")
    add("--batch", type=int, metavar="N", help="tiles computed at once")
    add("--devices", type=int, default=1, metavar="N", help="devices of this machine (1)")
    add("--cluster", metavar="ADDRESS", help="Dask scheduler, whose workers share the windows")
    add("--quicklook", action="store_true", help="a picture of input and result, too (.png)")
    for name, sensor in SENSORS.items():
        bands = ", ".join(sensor.bands)
        add(f"--{name}", dest=f"source_{name}", metavar="SOURCE", help=f"rasters of {sensor.kind} {name}: {bands}")
    options, others = parser.parse_known_args(argv)
    options.sources = {name: source for name in SENSORS if (source := getattr(options, f"source_{name}"))}
    # A sensor of the user's own is known once the weights are loaded.
    for flag, source in itertools.zip_longest(others[::2], others[1::2]):
        if not flag.startswith("--") or source is None:
            parser.error(f"unknown argument {flag!r}")
        options.sources[flag.removeprefix("--")] = source
    return options


def run(command: str, options: argparse.Namespace) -> str:
    """Runs `anysat embed` or `anysat predict`; returns the summary in a line.

    Raises:
      RunError, ValueError, ImportError, OSError: as `anysat_jax.scenes.embed` and `predict`.
    """
    from anysat_jax.scenes.run import Options, embed, predict

    names = [field.name for field in dataclasses.fields(Options) if field.name not in ("say", "bounds")]
    common = {name: getattr(options, name) for name in names} | {"bounds": _bounds(options.bounds)}
    if options.normalise == "none":  # values that are standardised already
        common["normalise"] = None
    if command == EMBED:
        own = ("resolution", "output_modality", "dtype", "components", "pca")
        function: Callable = embed
    else:
        own, function = ("probabilities", "polygons"), predict
    own_options = {name: getattr(options, name) for name in own}
    result = function(options.sources, options.weights, options.output, **own_options, **common)
    return result.summary


def _bounds(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        left, bottom, right, top = map(float, text.split(","))
    except ValueError:
        raise ConfigError(f"--bounds {text}: expected left,bottom,right,top, four numbers of metres") from None
    if not (left < right and bottom < top):
        raise ConfigError(f"--bounds {text}: expected left < right and bottom < top, as left,bottom,right,top")
    return left, bottom, right, top


def main(command: str, argv: Sequence[str]) -> int:
    """Runs a command and returns the exit code."""
    if command == VIEW:
        from anysat_jax.scenes.view import main as view

        return view(argv)
    options = parse(command, argv)
    logging.set_verbosity(logging.WARNING)
    # Of a file with odd tags GDAL warns each time that it is opened; what cannot be read is an error of ours.
    standard_logging.getLogger("rasterio").setLevel(standard_logging.ERROR)
    return run_command(lambda: run(command, options), f"anysat {command}")


if __name__ == "__main__":
    end_soon_on_interrupt()
    sys.exit(main(sys.argv[1], sys.argv[2:]))
