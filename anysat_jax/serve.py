"""Programs of a model with its parameters inside, which run without this package: jax.export, ONNX, QGIS.

A program is a function of a dict of arrays, by the names of `AnySat.__call__`. FILE.json beside an artefact of
jax.export, and the entry "anysat" of an ONNX file's metadata, describe it.
"""

import collections
import dataclasses
import datetime
import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import export as jax_export
from jax.extend.core import jaxpr_as_fun
from jaxtyping import Array, Float

from anysat_jax.api import check_output
from anysat_jax.downstream.network import HeadConfig, NetworkConfig, apply_network
from anysat_jax.downstream.task import Task
from anysat_jax.errors import ConfigError
from anysat_jax.model.encoder import encode
from anysat_jax.normalise import choose_statistics
from anysat_jax.sensors import get_sensor
from anysat_jax.validate import to_batch
from anysat_jax.weights.exported import Exported, checksum
from data_pipelines.prepare.storage import write_whole

PLATFORMS = ("cpu", "cuda", "tpu")
# docs.jax.dev/en/latest/export/export.html#compatibility-guarantees
GUARANTEE = "releases of jax from three weeks before to six months after that of jax {}"
HALF_YEAR = datetime.timedelta(days=183)
OPSET = 21  # of ONNX; onnxruntime reads it from 1.18 on

Function = Callable[[Mapping[str, Any]], Float[Array, "..."]]


@dataclasses.dataclass(frozen=True)
class Program:
    """Inputs and output of a program; an image is (B, C, H, W), a series (B, T, C, H, W)."""

    sensors: tuple[str, ...]
    extent: tuple[float, float]  # height and width of a tile in metres
    patch_size: float = 10.0  # side of a patch in metres
    # "tile", "patch", "dense" or "all"; or "task", the predictions of the weights' head: probabilities of the classes,
    # or a regression's values in their unit.
    output: str = "tile"
    output_modality: str | None = None  # the sensor whose sub-patches "dense" describes
    normalise: str | None = None  # what standardises raw values, see `AnySat.__call__`; None: they are standardised
    # Whether "<sensor>_mask" (B, [T,] 1, H, W) and "<sensor>_date_mask" (B, T) are inputs: bool, True where valid.
    masks: bool = False
    # Day of the year from 0: series have this one date and the inputs of an image; None: "<sensor>_dates" (B, T) int32.
    day: int | None = None
    raster: bool = False  # whether a map has the layout of an image, (B, K, H, W), on the pixels of the only sensor

    @property
    def series(self) -> tuple[str, ...]:
        """Sensors whose dates are inputs."""
        return tuple(name for name in self.sensors if get_sensor(name).has_dates and self.day is None)

    def inputs(self, batch: Any, dates: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns shapes and dtypes of the inputs by name, for a batch size and numbers of dates by sensor."""
        shapes: dict[str, tuple[tuple[Any, ...], Any]] = {}
        for name in self.sensors:
            sensor = get_sensor(name)
            lead = (batch, dates[name]) if name in self.series else (batch,)
            pixels = tuple(sensor.pixels(side) for side in self.extent)
            shapes[name] = ((*lead, sensor.num_bands, *pixels), jnp.float32)
            if name in self.series:
                shapes[f"{name}_dates"] = (lead, jnp.int32)
            if self.masks:
                shapes[f"{name}_mask"] = ((*lead, 1, *pixels), jnp.bool_)
                shapes |= {f"{name}_date_mask": (lead, jnp.bool_)} if name in self.series else {}
        return {name: jax.ShapeDtypeStruct(*one) for name, one in sorted(shapes.items())}


def make_function(weights: Exported, program: Program) -> Function:
    """Returns the function of a program, traceable with symbolic numbers of tiles and dates.

    It raises a ValueError where a sensor, the extent, the patch size, the output or the statistics do not fit the
    model, as `AnySat.__call__`.

    Raises:
      ConfigError: the weights lack the head that the output needs; or a raster's layout is wanted of more than one
        sensor, a series without a day, or an output that is not a map.
    """
    network = None
    if program.output == "task":
        if weights.head is None:
            raise ConfigError("output 'task' needs a head: give the weights of a finished fine-tuning or probing")
        head, task = HeadConfig(**weights.head.config), Task.from_json(weights.head.task)
        network = NetworkConfig(weights.model, head, task)
    if program.raster:
        _check_raster(program, network)
    statistics_of = functools.partial(choose_statistics, program.normalise, weights.statistics)

    def function(inputs: Mapping[str, Any]) -> Float[Array, "..."]:
        data = dict(inputs)
        for name in program.sensors if program.day is not None else ():
            if get_sensor(name).has_dates:
                data |= {key: data[key][:, None] for key in (name, f"{name}_mask") if key in data}
                data[f"{name}_dates"] = jnp.full(data[name].shape[:2], program.day, jnp.int32)
        batch = to_batch(data, program.patch_size, weights.model.sensors, statistics_of)
        if network is None:
            modality = check_output(batch, program.output, program.output_modality)
            out = encode(weights.model, weights.encoder_params, batch, program.output, modality).astype(jnp.float32)
        else:
            params = {"encoder": weights.encoder_params, "head": weights.head.params}
            out = predictions(network.task, apply_network(network, params, batch))
        return _as_raster(out, data[program.sensors[0]].shape[-1]) if program.raster else out

    return function


def predictions(task: Task, outputs: Float[Array, "B *HW K"]) -> Float[Array, "B *HW K"]:
    """Returns the probabilities of classes or labels, or a regression's values in their unit, of a head's outputs."""
    if task.kind == "regression":
        return outputs * task.scale + task.offset
    return jax.nn.softmax(outputs, axis=-1) if task.kind == "class" else jax.nn.sigmoid(outputs)


def _check_raster(program: Program, network: NetworkConfig | None) -> None:
    dense = program.output == "dense" if network is None else network.task.level == "dense"
    if len(program.sensors) != 1 or program.masks or program.series or not dense:
        raise ConfigError(
            "QGIS hands over one raster and takes a map: give one sensor, the day of a series, output 'dense', or "
            f"'task' with a head for maps, and no masks; got {', '.join(program.sensors)}, day {program.day}, output "
            f"{program.output!r}, masks {program.masks}"
        )
    if program.extent[0] != program.extent[1]:
        height, width = program.extent
        raise ConfigError(f"QGIS hands over square tiles; the extent is {height:g} x {width:g} m")


def _as_raster(out: Float[Array, "B h w K"], side: int) -> Float[Array, "B K H W"]:
    """Returns a map in the layout of an image, each value repeated over the pixels that it describes."""
    times, rest = divmod(side, out.shape[1])
    if rest:
        raise ConfigError(f"a map of {out.shape[1]} rows does not fit the {side} pixels of the raster")
    return jnp.repeat(jnp.repeat(out.transpose(0, 3, 1, 2), times, axis=2), times, axis=3)


# ---------------------------------------------------------------- files


def write_jax(path: pathlib.Path, weights: Exported, program: Program, command: str) -> str:
    """Writes a program as an artefact of jax.export, and FILE.json beside it. Tiles and dates are of any number.

    `jax.export.deserialize(bytearray(path.read_bytes())).call(inputs)` runs it; jax and flatbuffers are enough.

    Returns:
      A summary in one line.

    Raises:
      ConfigError, ValueError, OSError: see `make_function`; a file cannot be written.
    """
    dims = ["batch", *(re.sub(r"\W", "_", f"dates_{name}") for name in program.series)]
    batch, *dates = jax_export.symbolic_shape(", ".join(dims))
    inputs = program.inputs(batch, dict(zip(program.series, dates, strict=True)))
    function = jax.jit(make_function(weights, program))
    # Operations would have the places in this machine's files where they were traced.
    limit = jax.config.jax_traceback_in_locations_limit
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        exported = jax_export.export(function, platforms=PLATFORMS)(inputs)
    finally:
        jax.config.update("jax_traceback_in_locations_limit", limit)
    content = bytes(exported.serialize())
    facts = describe(weights, program, inputs, exported.out_avals[0].shape, command) | {
        "platforms": list(exported.platforms),
        "calling_convention_version": exported.calling_convention_version,
        "read_by": GUARANTEE.format(jax.__version__),
        # The package does not have the day of its release, from which the six months count.
        "read_until_at_most": str(datetime.date.today() + HALF_YEAR),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    write_whole(path, content)
    write_whole(path.with_name(f"{path.name}.json"), json.dumps(facts, indent=1).encode())
    return f"{path}: {_title(program)}, for {', '.join(PLATFORMS)}; read by {facts['read_by']}"


def write_onnx(
    path: pathlib.Path, weights: Exported, program: Program, command: str, *, batch: int = 1, dates: int = 1
) -> str:
    """Writes a program as an ONNX file in float32, for `batch` tiles and `dates` dates of each series.

    A program in a raster's layout gets the metadata of QGIS' plugin Deepness.

    Returns:
      A summary in one line.

    Raises:
      ImportError: jax2onnx is not installed.
      ConfigError, ValueError, OSError: see `make_function`; the name does not end in .onnx; the file cannot be written.
    """
    if path.suffix != ".onnx":
        raise ConfigError(f"{path}: programs read a file as ONNX by its name; choose one that ends .onnx")
    weights = dataclasses.replace(weights, model=dataclasses.replace(weights.model, dtype="float32"))
    function = make_function(weights, program)
    inputs = program.inputs(batch, dict.fromkeys(program.series, dates))
    model, shape = _convert(function, inputs)
    facts = {"anysat": describe(weights, program, inputs, shape, command)}
    for key, value in (facts | (deepness_metadata(weights, program) if program.raster else {})).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, json.dumps(value)
    write_whole(path, model.SerializeToString())
    return f"{path}: {_title(program)}, for {batch} tiles" + (f" and {dates} dates" if program.series else "")


def _convert(function: Function, inputs: Mapping[str, jax.ShapeDtypeStruct]) -> tuple[Any, tuple[int, ...]]:
    """Returns the ONNX model of a function, and the shape of its output."""
    try:
        from jax2onnx import to_onnx
        from jax2onnx.plugins.plugin_system import PrimitiveLeafPlugin, register_primitive
    except ImportError as error:
        raise ImportError(f"ONNX files are made by jax2onnx ({error}): pip install 'anysat-jax[onnx]'") from error

    @register_primitive(jaxpr_primitive="platform_index")
    class AnyPlatform(PrimitiveLeafPlugin):
        """`jax.lax.platform_dependent` takes the branch of no platform in particular, which is the last."""

        def lower(self, ctx: Any, eqn: Any) -> None:
            ctx.bind_const_for_var(eqn.outvars[0], jnp.int32(len(eqn.params["platforms"]) - 1))

    # jax2onnx 0.17 looks this class up where jax had it before 0.12.
    if not hasattr(jax._src.core, "ClosedJaxpr"):
        jax._src.core.ClosedJaxpr = jax.extend.core.ClosedJaxpr
    # Traced here, since jax2onnx would replace functions of jax.numpy by its own while it traces.
    traced = jax.make_jaxpr(function)(inputs)
    model = to_onnx(
        jaxpr_as_fun(traced),
        list(inputs.values()),
        model_name="anysat",
        opset=OPSET,
        input_names=list(inputs),
        output_names=["output"],
    )
    _shrink_constants(model)
    return model, traced.out_avals[0].shape


def _shrink_constants(model: Any) -> None:
    """Leaves one element of constants that hold one value and that only `Where` reads, which broadcasts them."""
    # Zeros in the shape of every activation, of which a tile of 640 m has more than an ONNX file may hold.
    from onnx import numpy_helper

    graphs, readers = [model.graph], collections.defaultdict(set)
    for graph in graphs:  # those inside of nodes are appended
        for node in graph.node:
            graphs += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
            for name in node.input:
                readers[name].add(node.op_type)
    for constant in (one for graph in graphs for one in graph.initializer if readers[one.name] == {"Where"}):
        values = numpy_helper.to_array(constant)
        if values.size > 1 and (values == values.flat[0]).all():
            constant.CopyFrom(numpy_helper.from_array(values[(slice(1),) * values.ndim], constant.name))


def describe(
    weights: Exported, program: Program, inputs: Mapping[str, Any], output: tuple[Any, ...], command: str
) -> dict[str, Any]:
    """Returns the facts of a program, JSON values.

    Args:
      inputs: shapes and dtypes by name.
      output: shape of the output, float32.
      command: makes the file again.
    """
    sensors = {name: get_sensor(name) for name in program.sensors}

    def statistics(name: str) -> dict[str, Any] | None:
        found = choose_statistics(program.normalise, weights.statistics, name)
        return found and {"mean": found.mean.tolist(), "std": found.std.tolist(), "source": found.source}

    return {
        "command": command,
        "made_with": f"jax {jax.__version__}",
        "weights": {"sha256": checksum(weights.encoder_params), "source": weights.source},
        "program": dataclasses.asdict(program),
        "inputs": {name: [str(one.dtype), *map(str, one.shape)] for name, one in inputs.items()},
        "output": ["float32", *map(str, output)],
        "bands": {name: list(one.bands) for name, one in sensors.items()},
        "metres_per_pixel": {name: one.metres_per_pixel for name, one in sensors.items()},
        "statistics": {name: statistics(name) for name in sensors},
        "task": weights.head.task if weights.head and program.output == "task" else None,
    }


def deepness_metadata(weights: Exported, program: Program) -> dict[str, Any]:
    """Returns the metadata by which QGIS' plugin Deepness runs a program on a raster, JSON values.

    Source: qgis-plugin-deepness.readthedocs.io, "Adding metadata to ONNX model", and what the plugin's code reads.
    """
    sensor = get_sensor(program.sensors[0])
    side, patch = program.extent[0], program.patch_size
    keys: dict[str, Any] = {
        "model_type": "Regressor",
        "resolution": 100 * sensor.metres_per_pixel,  # centimetres
        "tile_size": sensor.pixels(side),
        # Percent of a tile. The plugin drops half of it at each edge: a patch, where there is another.
        "tiles_overlap": round(200 * patch / side) if side > 2 * patch else 0,
        "reg_output_scaling": 1.0,
    }
    # The plugin divides values by 255, whatever their type, before it takes off a mean and divides by a deviation.
    keys |= {"standardization_mean": [0.0] * sensor.num_bands, "standardization_std": [1 / 255] * sensor.num_bands}
    if program.output == "task":
        task = Task.from_json(weights.head.task)
        keys["class_names"] = dict(enumerate(task.classes or [task.unit or task.title]))
        if task.kind != "regression":
            # Values below the threshold would count as 0, and pixels without a likely class as the first one.
            keys |= {"model_type": "Segmentor", "seg_thresh": 0.0, "seg_small_segment": 0}
    return keys


def _title(program: Program) -> str:
    what = "the task's predictions" if program.output == "task" else f"{program.output} features"
    tiles = "tiles of {:g} x {:g} m, patches of {:g} m".format(*program.extent, program.patch_size)
    return f"{what} of {', '.join(program.sensors)}, {tiles}"
