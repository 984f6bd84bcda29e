"""The STAC item beside an output: where and when, how numbers are stored, and by which model.

STAC 1.1 with the extensions projection 2.0, classification 2.0, MLM 1.4 (the model) and, of embeddings, embeddings
0.0.1 (https://github.com/geo-embeddings/embeddings-stac-specification), a proposal, whose fields these are: of an item
`emb:runtime_parameters`, `emb:quantization` and `emb:postprocessing`, and the asset "embeddings". Its `emb:type` and
`emb:dimensions` are fields of collections alone.
"""

import dataclasses
import datetime
import json
import math
import os
import pathlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from rasterio.warp import transform_bounds, transform_geom

from anysat_jax import __version__
from anysat_jax.scenes.encoding import INT8_FORMULA, Encoding
from anysat_jax.sensors import get_sensor
from data_pipelines.prepare.storage import write_whole

if TYPE_CHECKING:
    from anysat_jax.scenes.outputs import RasterSpec
    from anysat_jax.scenes.reading import Stack
    from anysat_jax.weights.exported import Exported

_SCHEMA = "https://stac-extensions.github.io/{}/schema.json"
PROJECTION, CLASSIFICATION = _SCHEMA.format("projection/v2.0.0"), _SCHEMA.format("classification/v2.0.0")
MLM, EMBEDDINGS = _SCHEMA.format("mlm/v1.4.0"), _SCHEMA.format("embeddings/v0.0.1")
WGS84 = "EPSG:4326"
MEDIA_TYPES = {".zarr": "application/vnd.zarr; version=3"}
COG = "image/tiff; application=geotiff; profile=cloud-optimized"
QUANTIZATION = "https://developers.google.com/earth-engine/guides/aef_on_gcs_readme"  # describes the scheme of int8


@dataclasses.dataclass(frozen=True)
class ItemFacts:
    """Facts of an output's item beyond those of its raster."""

    sources: Mapping[str, Sequence[str]]  # by sensor, paths or addresses of its rasters; of arrays there are none
    days: tuple[datetime.date, datetime.date] | None  # the first and the last of the rasters; None: unknown
    weights: str | None  # path or address; None: a model in memory, of which the item says nothing
    parameters: int  # numbers of the model
    task: str  # one of MLM's: "similarity-search" for features, "semantic-segmentation", "regression", ...
    settings: Mapping[str, Any]  # of the run, as JSON: patch size, tile, width of the model

    def __post_init__(self) -> None:
        if self.days and self.days[0] > self.days[1]:
            raise ValueError(f"the first day of the rasters, {self.days[0]}, is after the last, {self.days[1]}")


def gather_facts(
    stacks: Mapping[str, "Stack"], content: "Exported", weights: Any, task: str, settings: Mapping[str, Any]
) -> ItemFacts:
    """Returns the facts of a run.

    Args:
      stacks: the rasters by sensor.
      content: the weights.
      weights: where they are: a path or an address; another object is a model in memory.
      task, settings: see `ItemFacts`.
    """
    import jax  # readers of outputs do without

    acquisitions = [one for stack in stacks.values() for one in stack.acquisitions]
    days = sorted(one.day for one in acquisitions if one.day)
    places = {
        name: tuple(
            dict.fromkeys(str(band.path) for one in stack.acquisitions for band in one.bands if hasattr(band, "path"))
        )
        for name, stack in stacks.items()
    }
    trees = (content.encoder_params, content.head.params if content.head else {})
    count = sum(np.size(leaf) for leaf in jax.tree.leaves(trees))
    where = os.fspath(weights) if isinstance(weights, str | os.PathLike) else None
    return ItemFacts(places, (days[0], days[-1]) if days else None, where, count, task, settings)


def item_path(output: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the path of an output's item."""
    return pathlib.Path(output).with_suffix(".stac.json")


def write_item(output: pathlib.Path, spec: "RasterSpec", facts: ItemFacts) -> pathlib.Path:
    """Writes the STAC item of an output beside it.

    Raises:
      OSError: it cannot be written.
    """
    path, item = item_path(output), make_item(output, spec, facts)
    write_whole(path, (json.dumps(item, indent=2, ensure_ascii=False) + "\n").encode())
    return path


def make_item(output: pathlib.Path, spec: "RasterSpec", facts: ItemFacts) -> dict[str, Any]:
    """Returns the STAC item of an output as JSON; addresses are relative to it."""
    crs, box = rasterio.CRS.from_user_input(spec.grid.crs), spec.grid.bounds
    edges = (box.left, box.bottom, box.right, box.top)
    ring = [[box.left, box.top], [box.left, box.bottom], [box.right, box.bottom], [box.right, box.top]]
    corners = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
    properties = {
        **_times(facts.days),
        "gsd": spec.metres,
        **_projection(spec, crs),
        **(_model(spec, facts) if facts.weights else {}),
    }
    if spec.encoding:
        properties |= _embedding(spec.encoding, facts)
    links = [
        {
            "rel": "emb:source-data" if spec.encoding else "derived_from",
            "href": _address(place, output),
            "title": sensor,
        }
        for sensor, places in facts.sources.items()
        for place in places
    ]
    assets = {"embeddings" if spec.encoding else "map": _raster_asset(output, spec)}
    if facts.weights:
        assets["model"] = _model_asset(facts.weights, output)
    extensions = {PROJECTION: True, MLM: facts.weights, EMBEDDINGS: spec.encoding, CLASSIFICATION: spec.classes}
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [name for name, used in extensions.items() if used],
        "id": output.stem,
        "geometry": transform_geom(crs, WGS84, corners, precision=7),
        "bbox": [round(number, 7) for number in transform_bounds(crs, WGS84, *edges)],
        "properties": properties,
        "links": links,
        "assets": assets,
    }


def _times(days: tuple[datetime.date, datetime.date] | None) -> dict[str, Any]:
    if days is None:  # STAC knows no item without a time
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {"datetime": now, "description": "The days of the rasters are unknown; the time is that of the run."}
    first, last = (day.isoformat() for day in days)
    return {"datetime": None, "start_datetime": f"{first}T00:00:00Z", "end_datetime": f"{last}T23:59:59Z"}


def _projection(spec: "RasterSpec", crs: rasterio.CRS) -> dict[str, Any]:
    box, authority = spec.grid.bounds, crs.to_authority()
    return {
        "proj:code": ":".join(authority) if authority else None,
        **({} if authority else {"proj:wkt2": crs.to_wkt(version="WKT2_2019")}),
        "proj:shape": list(spec.shape),
        "proj:transform": list(box.transform(spec.metres))[:6],
        "proj:bbox": [box.left, box.bottom, box.right, box.top],
    }


def _model(spec: "RasterSpec", facts: ItemFacts) -> dict[str, Any]:
    inputs = []
    for name in facts.sources:
        sensor = get_sensor(name)
        dated = ["time"] if sensor.has_dates else []
        order = ["batch", *dated, "channel", "height", "width"]
        shape = [sensor.num_bands if axis == "channel" else -1 for axis in order]
        # MLM's own list of bands would have to stand among those of the output.
        about = f"bands {', '.join(sensor.bands)} at {sensor.metres_per_pixel:g} m"
        structure = {"shape": shape, "dim_order": order, "data_type": "float32"}
        inputs.append({"name": name, "bands": [], "description": about, "input": structure})
    result = {
        "shape": [-1, len(spec.classes or spec.bands), -1, -1],
        "dim_order": ["batch", "channel", "height", "width"],
        "data_type": "float32",
    }
    output = {"name": "features" if spec.encoding else "prediction", "tasks": [facts.task], "result": result}
    if spec.classes:
        output["classification:classes"] = _classes(spec)
    return {
        "mlm:name": "AnySat",
        "mlm:architecture": "AnySat",
        "mlm:tasks": [facts.task],
        "mlm:framework": "JAX",
        "mlm:total_parameters": facts.parameters,
        "mlm:input": inputs,
        "mlm:output": [output],
        "mlm:hyperparameters": {"anysat_jax": __version__, **facts.settings},
    }


def _embedding(encoding: Encoding, facts: ItemFacts) -> dict[str, Any]:
    bands = {name: list(get_sensor(name).bands) for name in facts.sources}
    fields: dict[str, Any] = {"emb:runtime_parameters": {"bands": bands, **facts.settings}}
    if encoding.dtype != "float32":
        fields["emb:quantization"] = {"method": "cast", "original_dtype": "float32", "quantized_dtype": encoding.dtype}
    if encoding.dtype == "int8":
        about = {"rel": "about", "href": QUANTIZATION, "type": "text/html", "title": INT8_FORMULA}
        fields["emb:quantization"] |= {"method": "signed_square_root", "scale": [encoding.scale], "link": about}
    if encoding.components:
        kind = "principal" if encoding.axes is not None else "first"
        fields["emb:postprocessing"] = {"format": "text", "expression": f"{kind} {encoding.components} components"}
    return fields


def _raster_asset(output: pathlib.Path, spec: "RasterSpec") -> dict[str, Any]:
    asset = {
        "href": f"./{output.name}",
        "type": MEDIA_TYPES.get(output.suffix, COG),
        "roles": ["data"],
        "data_type": spec.dtype,
        "nodata": "nan" if math.isnan(spec.nodata) else int(spec.nodata),
        "bands": [{"name": name} for name in spec.bands],
    }
    if spec.unit:
        asset["unit"] = spec.unit
    if spec.classes:
        asset["bands"][0]["classification:classes"] = _classes(spec)
    return asset


def _model_asset(weights: str, output: pathlib.Path) -> dict[str, Any]:
    return {
        "href": _address(weights, output),
        "title": "weights",
        "roles": ["mlm:model", "mlm:weights"],
        "mlm:artifact_type": "torch.save" if weights.endswith(".pth") else "safetensors.flax.save_file",
    }


def _classes(spec: "RasterSpec") -> list[dict[str, Any]]:
    classes = []
    for value, name in enumerate(spec.classes):
        plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
        short = re.sub(r"[^0-9A-Za-z_-]+", "_", plain).strip("_") or f"class_{value}"
        one = {"value": value, "name": short, "title": name, "description": name}
        if spec.colours:
            one["color_hint"] = "".join(f"{part:02X}" for part in spec.colours[value])
        classes.append(one)
    return classes


def _address(place: str, output: pathlib.Path) -> str:
    """Returns an address without its query, or a path of this machine relative to the item's folder."""
    if os.path.exists(place):
        return pathlib.PurePath(os.path.relpath(place, output.parent)).as_posix()
    return place.partition("?")[0]  # a query is often a signature that must not be shown
