"""Embeddings and predictions of whole scenes: from rasters to rasters, window by window."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32

from anysat_jax import __version__
from anysat_jax.api import AnySat
from anysat_jax.downstream.task import Task
from anysat_jax.errors import ConfigError
from anysat_jax.flops import encoder_work
from anysat_jax.normalise import BandStatistics, choose_statistics
from anysat_jax.scenes.composite import Composite
from anysat_jax.scenes.encoding import Encoding, fit_encoding
from anysat_jax.scenes.grid import Box, Grid
from anysat_jax.scenes.inference import Product, choose_features, choose_predictions, class_colours, task_of
from anysat_jax.scenes.item import ItemFacts, gather_facts
from anysat_jax.scenes.outputs import RasterSpec, check_name, finish
from anysat_jax.scenes.reading import Stack, choose_grid
from anysat_jax.scenes.request import REQUEST_TAG, SAMPLE_FILE, Parts, Request, size_of, stack_facts
from anysat_jax.scenes.sample import Sample, load_sample, take_sample
from anysat_jax.scenes.sources import open_stack
from anysat_jax.scenes.tiles import Lattice, Window, subpatches, tile_side, window_side
from anysat_jax.scenes.work import INPUT, RESULT, Job, Rasters, to_batch
from anysat_jax.scenes.workers import ClusterJob, Progress, load, work_here, work_on_cluster
from anysat_jax.sensors import get_sensor
from anysat_jax.train.workdir import StopRequest
from anysat_jax.weights.exported import Exported, checksum
from data_pipelines.prepare.storage import to_stderr, write_whole
from data_pipelines.units import UNKNOWN, unit_of_statistics

Weights = AnySat | Exported | str | os.PathLike[str]
SUBPATCHES = 2**14  # of all sensors in a batch, unless the user gives its size
MOST_IN_BATCH = 8
CLASS_NODATA = 255


@dataclasses.dataclass(frozen=True)
class Options:
    """Options that `embed` and `predict` share."""

    patch_size: float  # side of a patch in metres
    tile: float | None = None  # side of a tile in metres; None: 16 patches, or fewer of many sub-patches
    bounds: tuple[float, float, float, float] | None = None  # left, bottom, right, top; None: what all sensors cover
    crs: str | None = None  # of the result, and of `bounds`; None: that of the larger part of the rasters
    normalise: Any = "auto"  # what standardises the rasters' values, see `AnySat.__call__`
    compute_dtype: str | None = None  # "float32" or "bfloat16"; None: that of the weights
    batch: int | None = None  # tiles computed at once; None: by the number of their sub-patches
    devices: int = 1  # of this machine, between which a batch is divided
    cluster: str | None = None  # address of a Dask scheduler, whose workers share the windows
    quicklook: bool = False  # whether a picture of input and result is drawn beside the result, NAME.png
    say: Callable[[str], None] = to_stderr  # shows a line to the user

    def __post_init__(self) -> None:
        for name in ("patch_size", "tile", "batch", "devices"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"--{name.replace('_', '-')} {value:g}: expected a number above 0")


class Result(NamedTuple):
    """A finished run."""

    output: pathlib.Path
    input: pathlib.Path  # the input as an image
    summary: str  # in a line
    waiting: float  # fraction of the time in which the model waited for input


@dataclasses.dataclass(frozen=True)
class Scene:
    """Opened rasters and weights."""

    stacks: Mapping[str, Stack]
    weights: Exported
    source: Weights  # of the weights
    statistics: Mapping[str, BandStatistics | None]
    options: Options

    @property
    def spatial(self) -> list[str]:
        return [name for name in self.stacks if get_sensor(name).kind != "context"]


def embed(
    sources: Mapping[str, Any],
    weights: Weights,
    output: str | os.PathLike[str],
    *,
    resolution: float,
    output_modality: str | None = None,
    dtype: str = "float32",
    components: int | None = None,
    pca: bool = False,
    **options: Any,
) -> Result:
    """Writes the features of a scene as a raster; an interrupted call goes on where it was.

    Args:
      sources: rasters by sensor: see `open_stack`, or an opened stack.
      weights: as `AnySat.from_pretrained`, or a model.
      output: a GeoTIFF (.tif) or a Zarr store (.zarr).
      resolution: side of a pixel in metres: the patch size, for the features of patches, or the side of a sensor's
        sub-patches, for those of sub-patches.
      output_modality: the sensor of these, where several have such sub-patches; None: Sentinel-2 before others.
      dtype: "float32", "float16" or "int8", of the stored features.
      components: numbers stored of each pixel; None: all.
      pca: whether these are principal components, otherwise the first features.
      **options: see `Options`.

    Raises:
      RunError, ValueError, ImportError, OSError: the request cannot be fulfilled; the message has the remedy.
    """
    scene = _open(sources, weights, Options(**options))
    patch, dim = scene.options.patch_size, scene.weights.model.dim
    product = choose_features(scene.spatial, patch, resolution, dim, output_modality)
    stored = {"dtype": dtype, "components": components, "pca": pca}
    if components is not None and not 1 <= components <= product.bands:
        raise ConfigError(f"--components {components}: a pixel has {product.bands} features; give 1 to {product.bands}")

    def raster(grid: Grid, sample: Sample, tags: Mapping[str, str]) -> RasterSpec:
        encoding = sample.encoding or Encoding(dtype, components)
        count = components or product.bands
        names = tuple(f"{'component' if pca else 'feature'} {number}" for number in range(count))
        return RasterSpec(grid, product.metres, names, dtype, encoding.nodata, encoding, tags=tags)

    fit = (lambda values: fit_encoding(values, dtype, components, pca)) if pca or dtype == "int8" else None
    return _run(scene, product, pathlib.Path(output), raster, stored, fit)


def predict(
    sources: Mapping[str, Any],
    weights: Weights,
    output: str | os.PathLike[str],
    *,
    probabilities: bool = False,
    polygons: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Result:
    """Writes the predictions of a finished fine-tuning or probing for a scene as a raster.

    Classes are numbers with names and colours, labels probabilities, a regression has its unit. The map of a head for
    tiles has a pixel for each tile; tiles do not overlap then.

    Args:
      sources, weights, output: as of `embed`; the weights have a head.
      probabilities: whether there is a band of the probability of each class, in place of the most probable one.
      polygons: a GeoPackage (.gpkg), into which the areas of each class are written as polygons, too.
      **options: see `Options`.

    Raises:
      RunError, ValueError, ImportError, OSError: the request cannot be fulfilled; the message has the remedy.
    """
    scene = _open(sources, weights, Options(**options))
    task = task_of(scene.weights)
    _check_predictions(task, probabilities, polygons)
    side = tile_side(scene.options.patch_size, scene.spatial, scene.options.tile)
    product = choose_predictions(task, side, scene.spatial, probabilities)

    def raster(grid: Grid, sample: Sample, tags: Mapping[str, str]) -> RasterSpec:
        if product.classes:
            return RasterSpec(grid, product.metres, ("class",), "uint8", CLASS_NODATA, classes=task.classes,
                              colours=class_colours(task), tags=tags)  # fmt: skip
        names, unit = (task.classes, "probability") if task.kind != "regression" else ((task.title,), task.unit)
        return RasterSpec(grid, product.metres, tuple(names), "float32", np.nan, unit=unit, tags=tags)

    result = _run(scene, product, pathlib.Path(output), raster, {"probabilities": probabilities}, None)
    if polygons:
        from anysat_jax.scenes.polygons import write_polygons

        count = write_polygons(output, polygons, task.classes)
        result = result._replace(summary=f"{result.summary}; {polygons}: {count} polygons")
    return result


def _check_predictions(task: Task, probabilities: bool, polygons: str | os.PathLike[str] | None) -> None:
    """Refuses forms of a map that a task does not have."""
    if probabilities and task.kind != "class":
        raise ConfigError(f"--probabilities is of classes, and the weights' task is a {task.kind}: leave it out")
    if task.kind == "class" and not probabilities and len(task.classes) > CLASS_NODATA:
        raise ConfigError(
            f"the task has {len(task.classes)} classes, and a map at most {CLASS_NODATA}: give --probabilities"
        )
    if polygons and (task.kind != "class" or probabilities or pathlib.Path(polygons).suffix != ".gpkg"):
        raise ConfigError(f"--polygons {polygons}: a map of classes has polygons, in a file whose name ends .gpkg")


# ---------------------------------------------------------------- the request


def _open(sources: Mapping[str, Any], weights: Weights, options: Options) -> Scene:
    """Opens weights and rasters, weights first: they may bring sensors of their own."""
    if options.cluster:  # its workers run in other folders
        weights, sources = _absolute(weights), {name: _absolute(one) for name, one in sources.items()}
    if not sources:
        raise ConfigError("no rasters: give those of at least one sensor, such as --s2 FOLDER")
    loaded = load(weights, options.compute_dtype)
    for name in sources:
        if name not in loaded.model.sensors:
            having = ", ".join(loaded.model.sensors)
            raise ConfigError(f"--{name}: neither an option nor a sensor of the weights, which have {having}")
    statistics = {name: choose_statistics(options.normalise, loaded.statistics, name) for name in sources}
    units = _units(statistics)
    stacks = {
        name: source if isinstance(source, Stack) else open_stack(name, source, units.get(name, ""))
        for name, source in sources.items()
    }
    return Scene(stacks, loaded, weights, statistics, options)


def _absolute(path: Any) -> Any:
    """Returns the absolute path of a file or folder; anything else, such as a name on the Hub, as it is."""
    return os.path.abspath(path) if isinstance(path, str | os.PathLike) and os.path.exists(path) else path


def _units(statistics: Mapping[str, BandStatistics | None]) -> dict[str, str]:
    """Returns the units that values must have by sensor, where the statistics tell."""
    units = {name: unit_of_statistics(name, one.mean) for name, one in statistics.items() if one}
    return {name: unit.name for name, unit in units.items() if unit is not UNKNOWN}


def _request(scene: Scene, job: Job, stored: Mapping[str, Any]) -> Request:
    weights = scene.weights
    head = checksum(weights.head.params, json.dumps([weights.head.config, weights.head.task])) if weights.head else ""
    model = {key: value for key, value in dataclasses.asdict(weights.model).items() if key not in ("remat", "dropout")}
    of = {name: one and [one.mean.tolist(), one.std.tolist()] for name, one in scene.statistics.items()}
    facts = {
        "version": __version__,
        "inputs": {name: stack_facts(stack) for name, stack in scene.stacks.items()},
        "weights": {"encoder": checksum(weights.encoder_params), "head": head, "model": model},
        "statistics": of,
        "grid": {"crs": job.grid.crs, "bounds": dataclasses.astuple(job.grid.bounds), "origin": job.grid.origin},
        "tiles": {"patch_size": job.lattice.patch_size, "patches": job.lattice.patches, "overlap": job.lattice.overlap},
        "product": dataclasses.asdict(job.product),
        "stored": dict(stored),
    }
    return Request(json.loads(json.dumps(facts)))


# ---------------------------------------------------------------- the run

MakeRaster = Callable[[Grid, Sample, Mapping[str, str]], RasterSpec]
Fit = Callable[[Float32[np.ndarray, "N D"]], Encoding]


def _run(
    scene: Scene, product: Product, output: pathlib.Path, raster: MakeRaster, stored: Mapping[str, Any], fit: Fit | None
) -> Result:
    """Computes all windows that are not finished, and joins them."""
    options, say = scene.options, scene.options.say
    check_name(output)
    job, notes = _plan(scene, product, output)
    request = _request(scene, job, stored)
    parts, beside = Parts(output), output.with_name(f"{output.stem}_input.tif")
    for note in [note for stack in scene.stacks.values() for note in stack.notes] + notes:
        say(note)
    with parts.open(request, _side(job)) as side:
        if side is None:
            return Result(output, beside, f"{output} is finished already: the same request made it", 0.0)
        windows = job.lattice.windows(job.grid.bounds, side)
        missing = [window for window in windows if not parts.is_done(window.name)]
        say(_plan_line(scene, job, windows, missing))
        with StopRequest() as stop:
            rasters, progress = _work(scene, job, request, side, missing, raster, fit, stop)
        finish(job.folder / INPUT, rasters.input, beside)
        finish(job.folder / RESULT, dataclasses.replace(rasters.result, facts=_item_facts(scene, job)), output)
        if options.quicklook:
            from anysat_jax.scenes.quicklook import write_quicklook

            write_quicklook(output.with_suffix(".png"), output, beside)
        parts.remove()
    (rows, columns), spec = rasters.result.shape, rasters.result
    summary = (
        f"{output}: {columns} x {rows} pixels of {spec.metres:g} m, {len(spec.bands)} bands of {spec.dtype}, "
        f"{size_of(output) / 1e6:.1f} MB; {progress.summary()}"
    )
    return Result(output, beside, summary, progress.waiting)


def _work(
    scene: Scene,
    job: Job,
    request: Request,
    side: int,
    missing: Sequence[Window],
    raster: MakeRaster,
    fit: Fit | None,
    stop: StopRequest,
) -> tuple[Rasters, Progress]:
    """Computes the windows that are missing, of `side` cells along a side.

    Returns:
      The rasters, whose parts are complete, and how it went.
    """
    options, file = scene.options, job.folder / SAMPLE_FILE
    sample = load_sample(file)
    if sample is None or (missing and not options.cluster):
        options.say("compiling the model")
        program = job.program(scene.weights, options.devices)
        jax.block_until_ready(program(to_batch(job, [])))
    if sample is None:
        options.say("sampling tiles, for the colours of the input" + (" and the encoding" if fit else ""))
        sample = take_sample(job, program, side, request.seed, fit)
        write_whole(file, sample.to_json())
        for warning in sample.warnings:
            options.say(warning)
    tags = {REQUEST_TAG: request.fingerprint}
    rasters = Rasters(raster(job.grid, sample, tags), _image(job, sample.composite, tags), sample.composite)
    progress = Progress(job.grid.bounds, missing, stop)
    if missing and options.cluster:
        sensors = tuple(map(get_sensor, scene.weights.model.sensors))
        shared = ClusterJob(job, rasters, scene.source, sensors, options.compute_dtype, request.fingerprint)
        work_on_cluster(shared, missing, progress, options.cluster)
    elif missing:
        work_here(job, rasters, program, missing, progress)
    return rasters, progress


def _plan(scene: Scene, product: Product, output: pathlib.Path) -> tuple[Job, list[str]]:
    """Returns the job of a request, and notes for the user, a sentence each."""
    options, names = scene.options, scene.spatial
    bounds = Box(*options.bounds) if options.bounds else None
    grid, notes = choose_grid(scene.stacks, product.metres, options.crs, bounds)
    overlap = product.output != "tile"
    if not overlap:
        notes.append("the head is one for tiles: the map has a pixel for each, and tiles do not overlap")
    if min(grid.bounds.width, grid.bounds.height) < options.patch_size:
        raise ConfigError(
            f"the scene is {grid.bounds.width:g} x {grid.bounds.height:g} m, less than a patch of "
            f"{options.patch_size:g} m; give a smaller --patch-size"
        )
    lattice = Lattice.of(grid.origin, options.patch_size, names, options.tile, overlap)
    tiles = math.prod(map(len, lattice.cells(grid.bounds)))
    batch = options.batch or max(1, min(MOST_IN_BATCH, tiles, SUBPATCHES // subpatches(lattice.tile, names)))
    batch = -(-batch // options.devices) * options.devices  # the same number of tiles on each device
    days = {name: len({one.day for one in stack.acquisitions}) for name, stack in scene.stacks.items()}
    dates = {name: count for name, count in days.items() if get_sensor(name).has_dates}
    folder = Parts(output).folder.absolute()  # the workers of a cluster run in other folders
    units = _units(scene.statistics)
    return Job(scene.stacks, grid, lattice, product, scene.statistics, units, dates, batch, folder), notes


def _side(job: Job) -> int:
    """Returns the cells along a side of a window."""
    inputs: dict[float, float] = {}  # bytes of values and masks by a pixel's side
    for name in job.spatial:
        metres, bands = get_sensor(name).metres_per_pixel, get_sensor(name).num_bands
        inputs[metres] = inputs.get(metres, 0.0) + job.dates.get(name, 1) * (4.0 * bands + 1)
    return window_side(job.lattice, inputs, job.product.metres, 4.0 * job.product.channels, job.batch)


def _plan_line(scene: Scene, job: Job, windows: Sequence[Window], missing: Sequence[Window]) -> str:
    bounds, lattice = job.grid.bounds, job.lattice
    rows, columns = bounds.shape(job.product.metres)
    tiles = sum(len(window.tiles) for window in windows)
    dense = (job.product.sensor,) if job.product.sensor else ()
    work = encoder_work(scene.weights.model, to_batch(job, []), lattice.patches**2, dense=dense)
    flops = sum(one.forward for one in work.values()) / job.batch
    done = f", of which {len(windows) - len(missing)} are finished" if len(missing) < len(windows) else ""
    return (
        f"{', '.join(job.stacks)}: {bounds.width * bounds.height / 1e6:.4g} km2 in {job.grid.crs}, {columns} x {rows} "
        f"pixels of {job.product.metres:g} m, {job.product.bands} bands; {tiles} tiles of {lattice.tile:g} m every "
        f"{lattice.stride:g} m, {flops / 1e9:.3g} GFLOP each, {job.batch} at once; "
        f"{len(windows)} windows{done}"
    )


def _image(job: Job, composite: Composite, tags: Mapping[str, str]) -> RasterSpec:
    """Returns the raster of the input as an image."""
    names = ("red", "green", "blue")
    return RasterSpec(job.grid, job.product.metres, names, "uint8", 0, tags={**tags, "COMPOSITE": composite.title})


def _item_facts(scene: Scene, job: Job) -> ItemFacts:
    """Returns the facts of the run for the STAC item of its result."""
    model, task = scene.weights.model, "similarity-search"  # the task of MLM's list that is done with features
    if job.product.output in ("map", "tile"):
        one = task_of(scene.weights)
        classes = "semantic-segmentation" if one.level == "dense" else "scene-classification"
        task = {"class": classes, "multi_label": "classification", "regression": "regression"}[one.kind]
    lattice, normalised = job.lattice, sorted(name for name, one in scene.statistics.items() if one)
    settings = {"patch_size": lattice.patch_size, "tile": lattice.tile, "standardised": normalised}
    return gather_facts(
        scene.stacks, scene.weights, scene.source, task, settings | {"dim": model.dim, "depth": model.depth}
    )
