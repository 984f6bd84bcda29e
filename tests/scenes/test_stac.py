"""Items of catalogues give the reflectance of the product, however they declare it, and at times wrongly."""

import datetime
import functools
import http.server
import json
import pathlib
import threading
from typing import ClassVar

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine

from anysat_jax.scenes.grid import Box
from anysat_jax.scenes.reading import read_box
from anysat_jax.scenes.request import stack_facts
from anysat_jax.scenes.sources import open_stack
from anysat_jax.sensors import get_sensor

UTM = "EPSG:32632"
BOX = Box(600_000, 5_399_840, 600_160, 5_400_000)  # 16 x 16 pixels of 10 m
BANDS = get_sensor("s2").bands
COMMON = dict(zip(BANDS, ("blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir08")))
COMMON |= {"B11": "swir16", "B12": "swir22"}
PRODUCT = "S2A_MSIL2A_20220503T102021_N0400_R065_T32UMC_20220503T160000"
SCALE = {"nodata": 0, "data_type": "uint16", "scale": 0.0001}


def reflectance(band, bright=0):
    """x 10000 of each pixel; there is dark ground, unless all of it is bright."""
    return 10 + 40 * BANDS.index(band) + np.arange(256).reshape(16, 16) + bright


def write_raster(path, values, **facts):
    count = len(values) if values.ndim == 3 else 1
    place = dict(crs=UTM, transform=Affine(10, 0, BOX.left, 0, -10, BOX.top), driver="GTiff", height=16, width=16)
    with rasterio.open(path, "w", **place, dtype=values.dtype, count=count, **facts) as file:
        file.write(values.reshape(count, 16, 16))
        return path.name


def item(folder, stored_offset, properties, raster=None, name="S2A_32UMC_20220503_0_L2A", bright=0, key=COMMON.get):
    """An item as earth-search has it, whose files hold an offset, and what it declares of that."""
    assets = {}
    for band in BANDS:
        values = (reflectance(band, bright) + stored_offset).astype("uint16")
        values[0, 0] = 0
        assets[key(band)] = {
            "href": f"./{write_raster(folder / f'{name}_{band}.tif', values)}",
            "type": "image/tiff; application=geotiff; profile=cloud-optimized",
            "eo:bands": [{"name": COMMON[band], "common_name": COMMON[band].rstrip("123")}],
            "roles": ["data", "reflectance"],
        }
        if raster is not None:
            assets[key(band)]["raster:bands"] = [raster]
        # A copy that cannot be opened, and must not be.
        assets[f"{key(band)}-jp2"] = assets[key(band)] | {"href": f"s3://sentinel-s2-l2a/{band}.jp2"}
    classes = np.full((16, 16), 4, "uint8")
    classes[3, 5] = 8
    assets["scl"] = {"href": write_raster(folder / f"{name}_SCL.tif", classes), "roles": ["data"]}
    assets["cloud"] = {"href": write_raster(folder / f"{name}_CLD.tif", classes), "roles": ["data"]}
    assets["visual"] = {"href": "visual.tif", "roles": ["visual"], "eo:bands": [{"name": "red", "common_name": "red"}]}
    assets["thumbnail"] = {"href": "https://example.org/preview.jpg", "roles": ["thumbnail"], "type": "image/jpeg"}
    properties = {
        "datetime": "2022-05-03T10:20:21.024000Z",
        "platform": "sentinel-2a",
        "eo:cloud_cover": 3,
    } | properties
    return {"type": "Feature", "stac_version": "1.0.0", "id": name, "properties": properties, "assets": assets}


def save(path, *items):
    path.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    return path


def read(path, sensor="s2"):
    stack = open_stack(sensor, path)
    return stack, read_box(stack, UTM, BOX)


def check(fields, bright=0):
    expected = np.stack([reflectance(band, bright) for band in BANDS])
    valid = np.ones((16, 16), bool)
    valid[0, 0] = valid[3, 5] = False  # nodata, cloud
    assert np.array_equal(fields.valid[0, 0], valid)
    np.testing.assert_allclose(fields.values[0], expected * valid, atol=1e-3)


BASELINE = {"s2:processing_baseline": "05.11"}
UNDONE, NOT_UNDONE = ({"earthsearch:boa_offset_applied": value} for value in (True, False))
WITH, WITHOUT = SCALE | {"offset": -0.1}, SCALE | {"offset": 0}
# stored offset, properties, raster:bands, what the note has
DECLARED = {
    "collection 1": (1000, BASELINE | NOT_UNDONE, WITH, "hold the offset"),
    "planetary computer": (1000, BASELINE, None, "hold the offset"),
    "product's name": (1000, {"s2:product_uri": f"{PRODUCT}.SAFE"}, None, "hold the offset"),
    "undone, said twice": (0, BASELINE | UNDONE, WITHOUT, "undone already, as declared"),
    "undone, offset left": (0, BASELINE | UNDONE, WITH, "undone already, as declared"),
    "old baseline": (0, {"s2:processing_baseline": "02.14"} | NOT_UNDONE, WITH, "before 04.00"),
    "offset alone": (1000, {"s2:granule_id": "x"}, WITH, "hold the offset"),
    "no offset alone": (0, {"s2:granule_id": "x"}, WITHOUT, "undone already, as declared"),
    # Wrong, but values are too dark: earth-search 66 and 71.
    "flag is wrong": (0, BASELINE | NOT_UNDONE, WITH, "as values below 1000 show"),
    "baseline is not all": (0, BASELINE, WITHOUT, "as values below 1000 show"),
    "nothing but dark": (0, {"s2:granule_id": "x"}, SCALE, "as values below 1000 show"),
}


@pytest.mark.parametrize("case", DECLARED)
def test_the_offset_is_undone_once_whatever_a_catalogue_declares(tmp_path, case):
    """Pitfalls 1 and 2."""
    stored, properties, raster, note = DECLARED[case]
    stack, fields = read(save(tmp_path / "items.json", item(tmp_path, stored, properties, raster)))
    check(fields)
    assert any(note in one for one in stack.notes), stack.notes
    assert fields.days == [datetime.date(2022, 5, 3)]


@pytest.mark.parametrize(("properties", "raster"), [(BASELINE, WITHOUT), ({"s2:granule_id": "x"}, None)])
def test_what_neither_metadata_nor_values_tell_is_refused(tmp_path, properties, raster):
    """Over bright ground."""
    path = save(tmp_path / "items.json", item(tmp_path, 0, properties, raster, bright=3000))
    with pytest.raises(ValueError, match=r"items.json: S2A_32UMC_20220503_0_L2A declares .* s2:processing_baseline"):
        open_stack("s2", path)


def test_bright_values_that_are_declared_undone_are_doubted_in_a_note(tmp_path):
    stack, fields = read(save(tmp_path / "a.json", item(tmp_path, 0, BASELINE | UNDONE, WITH, bright=3000)))
    check(fields, bright=3000)
    assert any("no values below 1000 were found" in note for note in stack.notes)


def test_names_of_planetary_computer_copernicus_and_stac_1_1_are_known(tmp_path):
    """By keys alone, with resolutions, and with bands as of STAC 1.1."""
    numbered = {band: f"B0{band[1:]}" if len(band) == 2 else band for band in BANDS}
    expected = None
    for number, key in enumerate((numbered.get, lambda band: f"{numbered[band]}_10m", COMMON.get)):
        one = item(tmp_path, 1000, BASELINE, key=key)
        for name, asset in one["assets"].items():
            described = asset.pop("eo:bands", None)
            if described and number == 2:
                one["stac_version"] = "1.1.0"
                common = {"eo:common_name": described[0]["common_name"]}
                asset |= {"bands": [{"name": name} | common], "raster:scale": 0.0001, "raster:offset": -0.1}
        if number == 1:
            one["assets"]["SCL_20m"] = one["assets"].pop("scl")
            worse = np.full((16, 16), 7777, "uint16")
            one["assets"]["B02_60m"] = {"href": write_raster(tmp_path / "coarse.tif", worse)}
        _, fields = read(save(tmp_path / f"{number}.geojson", one))
        check(fields)
        expected = fields if expected is None else expected
        assert np.array_equal(fields.values, expected.values)


def test_a_single_item_days_in_utc_and_products_of_one_day(tmp_path):
    """Pitfall 8: the later processing of a product stays, two tiles of one day merge."""
    late = {"datetime": "2022-05-03T23:30:00-02:00"}
    path = tmp_path / "item.json"
    path.write_text(json.dumps(item(tmp_path, 1000, BASELINE | late)))
    _, fields = read(path)
    assert fields.days == [datetime.date(2022, 5, 4)]
    none = {"datetime": None, "start_datetime": "2022-05-03T10:20:21Z", "end_datetime": "2022-05-03T10:20:25Z"}
    old = item(tmp_path, 7, {"s2:product_uri": PRODUCT.replace("N0400", "N0301")} | none, name="old")
    new = item(tmp_path, 1000, {"s2:product_uri": PRODUCT} | none, name="new")
    other = item(tmp_path, 1000, BASELINE | none, name="other")
    stack, fields = read(save(tmp_path / "items.json", old, new, other))
    check(fields)
    assert len(stack.acquisitions) == 2 and fields.days == [datetime.date(2022, 5, 3)]
    assert any("N0301" in note and "later processing" in note for note in stack.notes)


def test_radar_of_the_same_file_is_another_sensor(tmp_path):
    power = np.linspace(0.01, 0.5, 512).reshape(2, 16, 16).astype("float32")
    asset = {"href": write_raster(tmp_path / "rtc.tif", power), "bands": [{"name": "vv"}, {"name": "vh"}]}
    radar = {"type": "Feature", "id": "S1A_rtc", "assets": {"data": asset}}
    radar["properties"] = {"datetime": "2022-05-04T17:00:00Z"}
    path = save(tmp_path / "items.json", item(tmp_path, 1000, BASELINE), radar)
    stack, fields = read(path, "s1")
    assert stack.units == "linear power" and fields.days == [datetime.date(2022, 5, 4)]
    np.testing.assert_allclose(fields.values[0, :2], power, rtol=1e-6)
    landsat = radar | {"id": "LC08_L2SP_195026_20220503_20220510_02_T1_SR"}
    landsat["assets"] = {"red": {"href": "s3://usgs-landsat/SR_B4.TIF"}}  # of a product, so that it is not looked at
    stack, fields = read(save(path, item(tmp_path, 1000, BASELINE), landsat))
    check(fields)
    assert any("1 items of other sensors are left out" in note for note in stack.notes)


def test_scale_and_offset_of_other_sensors_are_those_of_the_item_or_the_file(tmp_path):
    """Landsat's surface reflectance, with its bits of quality."""
    names = {"B2": "blue", "B3": "green", "B4": "red", "B5": "nir08", "B6": "swir16", "B7": "swir22"}
    sensor = get_sensor("l8")
    names |= {band: band for band in sensor.bands if band not in names}
    assets = {}
    for number, (band, key) in enumerate(names.items()):
        href = write_raster(tmp_path / f"{band}.tif", np.full((16, 16), 10_000 + number, "uint16"), nodata=0)
        if number % 2:
            with rasterio.open(tmp_path / href, "r+") as file:
                file.scales, file.offsets = [2.75e-5], [-0.2]
        described = {"raster:bands": [{"scale": 2.75e-5, "offset": -0.2, "nodata": 0}]}
        assets[key] = {"href": href, "eo:bands": [{"name": f"OLI_{band}"}]} | (described if number % 3 else {})
        if not number % 6:
            assets[key] |= described
    quality = np.full((16, 16), 21824, "uint16")
    quality[2, 2] = 22280  # clouds
    assets["qa_pixel"] = {"href": write_raster(tmp_path / "qa.tif", quality)}
    assets["qa"] = {"href": write_raster(tmp_path / "st.tif", quality)}
    one = {"type": "Feature", "id": "LC08_L2SP_195026_20220503_20220510_02_T1_SR", "assets": assets}
    one["properties"] = {"datetime": "2022-05-03T10:10:10Z", "platform": "landsat-8"}
    _, fields = read(save(tmp_path / "items.json", one), "l8")
    assert fields.valid.sum() == 255 and not fields.valid[0, 0, 2, 2]
    red = 10_000 + list(names).index("B4")
    assert fields.values[0, sensor.bands.index("B4"), 0, 0] == pytest.approx(red * 0.275 - 2000, rel=1e-5)


def without(name):
    return lambda one: one["assets"].pop(name)


def with_asset(**facts):
    return lambda one: one["assets"]["red"].update(facts)


def of(**properties):
    return lambda one: one["properties"].update(properties)


WRONG = {
    "0_L2A lacks 's2''s bands B4; its assets are blue": lambda one: [one["assets"].pop(n) for n in ("red", "red-jp2")],
    "has 'B4' at s3://sentinel-s2-l2a/B4.jp2; expected a file, or an address": without("red"),
    "no .*nothing.tif": with_asset(href="nothing.tif"),
    "has 'B4' at 865 nm, and 's2' at 665 nm": with_asset(**{"eo:bands": [{"center_wavelength": 0.865}]}),
    "datetime 'yesterday'; expected": of(datetime="yesterday"),
    "datetime None; expected": of(datetime=None),
    "baseline 'new'; expected": of(**{"s2:processing_baseline": "new"}),
    "Expected `float.*raster:bands": with_asset(**{"raster:bands": [{"scale": "x"}]}),
    "Expected `str`.*href": with_asset(href=3),
    "declares 3 bands or more of .*_B4.tif": with_asset(**{"eo:bands": [{}, {}, {"name": "red"}]}),
}


@pytest.mark.parametrize("message", WRONG)
def test_items_that_cannot_be_are_refused_in_a_sentence(tmp_path, message):
    one = item(tmp_path, 1000, BASELINE)
    WRONG[message](one)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_stack("s2", save(tmp_path / "items.json", one))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"type": "Collection", "id": "sentinel-2-l2a"}, "a Collection; expected a collection of STAC items"),
        ([], "is not STAC"),
        ({"type": "FeatureCollection"}, "does not hold STAC items"),
        ({"type": "FeatureCollection", "features": []}, "no item with bands of 's2'"),
        ({"type": "FeatureCollection", "features": [{"type": "Feature"}]}, "required field `id`"),
    ],
)
def test_other_json_is_refused(tmp_path, content, message):
    (tmp_path / "x.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        open_stack("s2", tmp_path / "x.json")


def test_a_file_that_declares_another_scale_than_the_item_is_refused(tmp_path):
    one = item(tmp_path, 1000, BASELINE, WITH)
    with rasterio.open(tmp_path / one["assets"]["red"]["href"], "r+") as file:
        file.scales = [0.0002]
    with pytest.raises(ValueError, match=r"declares scale and offset .*_B4.tif, and that file .*correct the item"):
        open_stack("s2", save(tmp_path / "items.json", one))


class Ranges(http.server.SimpleHTTPRequestHandler):
    """A server that sends ranges, as those of catalogues do."""

    asked: ClassVar[list[str]] = []

    def do_GET(self):
        path = self.translate_path(self.path)
        self.asked.append(self.path)
        if len(self.asked) in (3, 40):  # busy at times
            return self.send_error(503)
        try:
            content = pathlib.Path(path).read_bytes()
        except OSError:
            return self.send_error(404)
        first, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")
        part = content[int(first) : int(last or len(content)) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)
        return None

    def log_message(self, *_):
        pass


def test_assets_on_a_server_are_read_there(tmp_path):
    one = item(tmp_path, 1000, BASELINE)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Ranges, directory=tmp_path))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        for asset in one["assets"].values():
            if asset["href"].endswith(".tif"):
                asset["href"] = f"http://127.0.0.1:{server.server_port}/{asset['href'].removeprefix('./')}?sig=1"
        stack, fields = read(save(tmp_path / "items.json", one))
        check(fields)
        # Addresses that were signed anew are of the same files.
        text = (tmp_path / "items.json").read_text().replace("sig=1", "sig=2")
        (tmp_path / "signed.json").write_text(text)
        assert stack_facts(open_stack("s2", tmp_path / "signed.json")) == stack_facts(stack)
        # No files beside them are asked for, such as masks and overviews.
        assert {name.rpartition(".")[2] for name in Ranges.asked} == {"tif?sig=1", "tif?sig=2"}
        one["assets"]["red"]["href"] = one["assets"]["red"]["href"].replace("_B4", "_B0")
        with pytest.raises(ValueError, match="_B0.tif.*cannot be read"):
            open_stack("s2", save(tmp_path / "items.json", one))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
