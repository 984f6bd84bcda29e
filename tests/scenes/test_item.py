"""The STAC item beside an output: valid against the schemas, in place, and complete enough to read the numbers."""

import datetime
import json
import pathlib

import jsonschema
import numpy as np
import pystac
import pytest
import rasterio
from pystac.extensions.classification import ClassificationExtension
from pystac.extensions.mlm import MLMExtension
from pystac.extensions.projection import ProjectionExtension
from pystac.validation.local_validator import get_local_schema_cache
from referencing import Registry, Resource

from anysat_jax.scenes.encoding import INT8_FORMULA, Encoding, fit_encoding
from anysat_jax.scenes.grid import Box, Grid
from anysat_jax.scenes.item import EMBEDDINGS, ItemFacts, item_path, make_item
from anysat_jax.scenes.outputs import RasterSpec, finish, read_encoded, write_part
from anysat_jax.scenes.run import embed
from anysat_jax.sensors import get_sensor
from tests.scenes.fake_scenes import model, save_model, write_stack

BOX = Box(500_000, 4_999_400, 500_900, 5_000_000)  # on the central meridian of zone 32, 9 degrees east
GRID = Grid("EPSG:32632", BOX)
DAYS = (datetime.date(2020, 1, 3), datetime.date(2020, 12, 28))
CORE = "https://schemas.stacspec.org/v1.1.0/item-spec/json-schema/item.json"

# What geo-embeddings/embeddings-stac-specification, json-schema/schema.json of version 0.0.1, asks of an item, but for
# its reference to the item of STAC 1.0.0: these fields alone may begin with emb:, and none of an asset.
OTHERS = {"patternProperties": {"^(?!emb:)": {}}, "additionalProperties": False}
PROCESSING = {"type": "object", "required": ["format", "expression"]}  # the processing extension's expression
QUANTIZATION = {
    "type": "object",
    "required": ["method", "original_dtype"],
    "properties": {
        "method": {"type": "string"},
        "original_dtype": {"type": "string"},
        "quantized_dtype": {"type": "string"},
        "scale": {"type": "array", "items": {"type": "number"}},
        "offset": {"type": "array", "items": {"type": "number"}},
        "link": {"type": "object", "required": ["rel", "href"]},
    },
    "additionalProperties": False,
}
EMBEDDING_ITEM = {
    "required": ["type", "properties", "assets"],
    "properties": {
        "stac_extensions": {"contains": {"const": EMBEDDINGS}},
        "properties": {
            "properties": {
                "emb:runtime_parameters": {"type": "object"},
                "emb:preprocessing": PROCESSING,
                "emb:postprocessing": PROCESSING,
                "emb:quantization": QUANTIZATION,
            },
            **OTHERS,
        },
        "assets": {"required": ["embeddings"], "additionalProperties": OTHERS},
    },
}
# What stac-extensions/mlm asks of an item, of its versions 1.4 and 1.5.
TASKS = ["regression", "classification", "scene-classification", "semantic-segmentation", "similarity-search"]
STRUCTURE = {
    "required": ["shape", "dim_order", "data_type"],
    "properties": {
        "shape": {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": -1}},
        "dim_order": {"type": "array", "uniqueItems": True, "items": {"pattern": "^[a-z-_]+$"}},
        "data_type": {"enum": ["float32"]},
    },
}
MLM_ITEM = {
    "properties": {
        "properties": {
            "required": ["mlm:name", "mlm:architecture", "mlm:tasks", "mlm:input", "mlm:output"],
            "properties": {
                "mlm:name": {"type": "string", "pattern": r"^[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]$"},
                "mlm:tasks": {"items": {"enum": TASKS}},
                "mlm:total_parameters": {"type": "integer", "minimum": 0},
                "mlm:input": {
                    "minItems": 1,
                    # Bands that are named must stand among the item's.
                    "items": {
                        "required": ["name", "bands", "input"],
                        "properties": {"bands": {"maxItems": 0}, "input": STRUCTURE},
                    },
                },
                "mlm:output": {
                    "minItems": 1,
                    "items": {"required": ["name", "tasks", "result"], "properties": {"result": STRUCTURE}},
                },
                "mlm:hyperparameters": {
                    "patternProperties": {"^[0-9a-zA-Z_.-]+$": True},
                    "additionalProperties": False,
                },
            },
        },
        "assets": {
            "required": ["model"],
            "properties": {
                "model": {
                    "required": ["mlm:artifact_type"],
                    "properties": {"roles": {"contains": {"const": "mlm:model"}}},
                }
            },
            "additionalProperties": {"not": {"required": ["mlm:artifact_type"]}},
        },
    }
}
PROJECTION_ITEM = {  # stac-extensions/projection 2.0
    "properties": {
        "properties": {
            "required": ["proj:code"],
            "properties": {
                "proj:code": {"type": ["string", "null"]},
                "proj:shape": {"minItems": 2, "maxItems": 2, "items": {"type": "integer"}},
                "proj:transform": {"minItems": 6, "maxItems": 6, "items": {"type": "number"}},
                "proj:bbox": {"minItems": 4, "maxItems": 4, "items": {"type": "number"}},
            },
        }
    }
}


def validate(item):
    registry = Registry().with_resources(
        (address, Resource.from_contents(schema)) for address, schema in get_local_schema_cache().items()
    )
    schemas = [{"$ref": CORE}, PROJECTION_ITEM]
    schemas += [
        schema
        for name, schema in (("embeddings", EMBEDDING_ITEM), ("mlm", MLM_ITEM))
        if any(f"/{name}/" in one for one in item["stac_extensions"])
    ]
    for schema in schemas:
        jsonschema.Draft7Validator(
            {"$schema": "http://json-schema.org/draft-07/schema#", **schema}, registry=registry
        ).validate(item)


def facts(**changes):
    given = {
        "sources": {"s2": ("https://example.org/S2A.tif?token=secret",), "aerial": ()},
        "days": DAYS,
        "weights": "hf:g-astruc/AnySat",
        "parameters": 125_000_000,
        "task": "similarity-search",
        "settings": {"patch_size": 40.0, "tile": 640.0},
    }
    return ItemFacts(**{**given, **changes})


def embedding(dtype="float32", pca=False, **changes):
    values = np.random.default_rng(0).normal(size=(60, 90, 8)).astype(np.float32)
    encoding = fit_encoding(values.reshape(-1, 8), dtype, 4 if pca else None, pca)
    count = 4 if pca else 8
    spec = RasterSpec(
        GRID, 10, tuple(f"feature {one}" for one in range(count)), dtype, encoding.nodata, encoding, **changes
    )
    return spec, np.moveaxis(encoding.encode(values), -1, 0)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("pca", [False, True])
def test_the_item_of_an_embedding_is_valid_and_describes_its_numbers(tmp_path, dtype, pca):
    spec, stored = embedding(dtype, pca, facts=facts())
    write_part(tmp_path / "parts", "a", spec, BOX, stored)
    finish(tmp_path / "parts", spec, tmp_path / "emb.tif")
    item = json.loads((tmp_path / "emb.stac.json").read_text())
    validate(item)
    properties, asset = item["properties"], item["assets"]["embeddings"]
    assert (
        properties["start_datetime"] == "2020-01-03T00:00:00Z" and properties["end_datetime"] == "2020-12-28T23:59:59Z"
    )
    with rasterio.open(tmp_path / "emb.tif") as file:
        assert asset["data_type"] == file.dtypes[0] and asset["nodata"] == ("nan" if dtype != "int8" else file.nodata)
        assert [one["name"] for one in asset["bands"]] == list(file.descriptions)
        assert properties["proj:shape"] == list(file.shape) and properties["proj:transform"] == list(file.transform)[:6]
        assert properties["proj:bbox"] == list(file.bounds) and properties["proj:code"] == "EPSG:32632"
    # The link goes from the item to the raster, and the numbers are what the item says.
    assert (tmp_path / "emb.stac.json").parent / asset["href"] == tmp_path / "emb.tif"
    if dtype == "int8":
        quantization = properties["emb:quantization"]
        assert quantization["method"] == "signed_square_root" and quantization["link"]["title"] == INT8_FORMULA
        (scale,) = quantization["scale"]
        q = stored.astype(np.float64)
        np.testing.assert_allclose(
            read_encoded(tmp_path / "emb.tif")[0], scale * (q / 127.5) ** 2 * np.sign(q), rtol=1e-6
        )
    assert ("emb:quantization" in properties) == (dtype != "float32") and ("emb:postprocessing" in properties) == pca
    assert properties["emb:runtime_parameters"]["bands"]["s2"] == list(get_sensor("s2").bands)
    assert properties["emb:runtime_parameters"]["patch_size"] == 40


def test_the_item_lies_where_the_raster_is():
    item = make_item(pathlib.Path("emb.tif"), embedding()[0], facts())
    west, south, east, north = item["bbox"]
    corners = np.array(item["geometry"]["coordinates"][0])
    # The left edge is the central meridian; 5,000 km north of the equator is 45.15 degrees, and a degree 111 km.
    assert west == pytest.approx(9, abs=1e-6) and north == pytest.approx(45.1526, abs=1e-3)
    assert (north - south) * 111_130 == pytest.approx(600, rel=0.01)
    assert (east - west) * 111_320 * np.cos(np.radians(north)) == pytest.approx(900, rel=0.01)
    assert corners.min(0) == pytest.approx([west, south], abs=1e-5) and corners.max(0) == pytest.approx(
        [east, north], abs=1e-5
    )


def test_pystac_reads_the_item_of_a_map_with_its_classes_and_model(tmp_path):
    spec = RasterSpec(
        GRID, 10, ("class",), "uint8", 255, classes=("open water", "forêt"), colours=((0, 0, 255), (0, 128, 10))
    )
    weights = tmp_path / "run"
    weights.mkdir()
    output = tmp_path / "maps" / "map.zarr"
    content = make_item(output, spec, facts(weights=str(weights), task="semantic-segmentation"))
    validate(content)
    item = pystac.Item.from_dict(content)
    assert item.assets["map"].media_type == "application/vnd.zarr; version=3" and "embeddings" not in item.assets
    model = MLMExtension.ext(item)
    assert model.mlm_name == "AnySat" and model.tasks == ["semantic-segmentation"] and model.framework == "JAX"
    assert [one.name for one in model.input] == ["s2", "aerial"] and model.output[0].result.shape == [-1, 2, -1, -1]
    assert model.input[0].input.dim_order == ["batch", "time", "channel", "height", "width"]
    assert model.input[1].input.shape == [-1, get_sensor("aerial").num_bands, -1, -1]
    assert item.assets["model"].href == "../run"
    assert ProjectionExtension.ext(item).epsg == 32632
    classes = content["assets"]["map"]["bands"][0]["classification:classes"]
    assert [(one["value"], one["name"], one["title"], one["color_hint"]) for one in classes] == [
        (0, "open_water", "open water", "0000FF"),
        (1, "foret", "forêt", "00800A"),
    ]
    assert ClassificationExtension.get_schema_uri() in content["stac_extensions"]


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("properties", "emb:type", "pixel"),  # a field of collections
        ("properties", "emb:quantization", {"method": "cast"}),
        ("properties", "mlm:input", []),
        ("properties", "mlm:name", "1"),
        ("properties", "proj:shape", [60.5, 90]),
        ("properties", "datetime", "today"),
        ("assets", "embeddings", {"href": "./emb.tif", "emb:dimensions": 8}),
        ("assets", "model", {"href": "./weights.pth", "roles": ["mlm:model"]}),
    ],
)
def test_items_that_break_a_rule_are_not_valid(part, name, value):
    item = make_item(pathlib.Path("emb.tif"), embedding("int8")[0], facts())
    validate(item)
    item[part][name] = value
    with pytest.raises(jsonschema.ValidationError):
        validate(item)


def test_addresses_have_no_signatures_and_unknown_facts_are_left_out():
    spec, _ = embedding()
    item = make_item(pathlib.Path("emb.tif"), spec, facts(weights=None, days=None))
    validate(item)
    assert "secret" not in json.dumps(item) and item["links"][0]["href"] == "https://example.org/S2A.tif"
    assert item["properties"]["datetime"] and "unknown" in item["properties"]["description"]
    assert not [name for name in item["properties"] if name.startswith("mlm:")] and list(item["assets"]) == [
        "embeddings"
    ]
    with pytest.raises(ValueError, match="the first day of the rasters, 2020-12-28, is after the last"):
        facts(days=DAYS[::-1])


def test_a_coordinate_system_without_a_number_is_described():
    crs = rasterio.CRS.from_proj4("+proj=laea +lat_0=52 +lon_0=10 +ellps=GRS80 +units=m").to_wkt()
    spec = RasterSpec(Grid(crs, Box(0, 0, 100, 100)), 10, ("a",), "float32", np.nan, Encoding())
    item = make_item(pathlib.Path("emb.tif"), spec, facts())
    validate(item)
    assert item["properties"]["proj:code"] is None and "Lambert Azimuthal" in item["properties"]["proj:wkt2"]
    assert item["bbox"][:2] == pytest.approx([10, 52], abs=1e-6)
    assert item_path("a/emb.tif") == pathlib.Path("a/emb.stac.json")


def test_an_embedding_of_a_scene_has_an_item_of_its_days_files_and_weights(tmp_path):
    stack, weights = write_stack(tmp_path / "s2", "s2", 40, 40), tmp_path / "weights.safetensors"
    save_model(weights, model("s2"))
    request = dict(patch_size=20, resolution=20, tile=160, dtype="int8", components=4, pca=True)
    first = embed({"s2": stack}, weights, tmp_path / "emb.zarr", **request)
    item = json.loads((tmp_path / "emb.stac.json").read_text())
    validate(item)
    properties = item["properties"]
    assert (properties["start_datetime"][:10], properties["end_datetime"][:10]) == ("2021-01-10", "2021-04-10")
    assert [link["href"] for link in item["links"]] == ["s2/s2_0_20210110.tif", "s2/s2_0_20210410.tif"]
    assert item["assets"]["model"]["href"] == "weights.safetensors" and properties["mlm:total_parameters"] > 1000
    assert properties["emb:runtime_parameters"]["patch_size"] == 20 and properties["proj:shape"] == [20, 20]
    values, _, _ = read_encoded(first.output)
    assert values.shape == (4, 20, 20) and np.isfinite(values).all()
    assert "finished already" in embed({"s2": stack}, weights, first.output, **request).summary
    with pytest.raises(ValueError, match=r"emb\.zarr exists and is not the result of this request"):
        embed({"s2": stack}, weights, first.output, **{**request, "components": 3})
    with pytest.raises(ValueError, match=r"emb\.png: rasters are written as \.tif"):
        embed({"s2": stack}, weights, tmp_path / "emb.png", **request)
