"""Rasters: values, places and declarations, and no other file or address that one might lead to."""

import http.server
import pathlib
import threading

import numpy as np
import pytest
import rasterio

from data_pipelines import rasters
from data_pipelines.fakes.common import write_raster

EXPECTED = "what there should be"
VRT = """<VRTDataset rasterXSize="2" rasterYSize="2"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>
<SourceFilename relativeToVRT="0">{source}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>
</VRTDataset>"""


def test_a_raster_comes_with_its_place(tmp_path):
    values = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
    write_raster(tmp_path / "a.tif", values, crs="EPSG:32632", transform=rasterio.Affine(10, 0, 5e5, 0, -10, 6e6))
    got, place = rasters.read_raster(tmp_path / "a.tif", (2, None, 4), "uint16", EXPECTED)
    np.testing.assert_array_equal(got, values)
    assert place["crs"] == "EPSG:32632" and place["transform"].tolist() == [10, 0, 5e5, 0, -10, 6e6]


def test_a_raster_without_a_place_and_with_a_value_for_nothing(tmp_path):
    write_raster(tmp_path / "a.tif", np.zeros((1, 2, 2), np.int16), nodata=-9999)
    _, place, nodata = rasters.read_raster_and_nodata(tmp_path / "a.tif", (1, 2, 2), "int16", EXPECTED)
    assert place["crs"] == "" and np.isnan(place["transform"]).all() and nodata == -9999


def test_a_raster_out_of_an_archive(tmp_path):
    values = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
    write_raster(tmp_path / "a.tif", values)
    content, path = (tmp_path / "a.tif").read_bytes(), tmp_path / "all.tar" / "a.tif"
    np.testing.assert_array_equal(rasters.read_raster(path, (2, 3, 4), "uint16", EXPECTED, content)[0], values)
    with pytest.raises(ValueError, match=rf"{path} cannot be read .*; expected {EXPECTED}; download"):
        rasters.read_raster(path, (2, 3, 4), "uint16", EXPECTED, content[:50])


@pytest.mark.parametrize("case", ["scale", "offset", "mask inside", "mask beside", "both"])
def test_what_a_published_raster_declares_against_its_layout_is_refused(tmp_path, case):
    path, values = tmp_path / "a.tif", np.arange(8, dtype=np.int16).reshape(2, 2, 2)
    write_raster(path, values)
    found = []
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=case != "mask beside"), rasterio.open(path, "r+") as file:
        if case in ("scale", "both"):
            file.scales, found = (1.0, 0.5), [*found, r"scales \(1\.0, 0\.5\)"]
        if case in ("offset", "both"):
            file.offsets, found = (0.0, -1000.0), [*found, r"offsets \(0\.0, -1000\.0\)"]
        if case in ("mask inside", "mask beside", "both"):
            file.write_mask(np.eye(2, dtype=np.bool_))
            found = [*found, "pixels that a mask hides"]
    with pytest.raises(ValueError, match=f"a.tif declares {' and '.join(found)}; expected {EXPECTED}, whose values"):
        rasters.read_raster(path, (2, 2, 2), "int16", EXPECTED)


@pytest.mark.parametrize("profile", [{}, {"nodata": 3}, {"photometric": "RGB", "alpha": "YES"}, {"mask": True}])
def test_nodata_alpha_and_masks_that_hide_nothing_leave_a_published_raster_as_it_is(tmp_path, profile):
    path, values = tmp_path / "a.tif", np.arange(16, dtype=np.uint8).reshape(4, 2, 2)
    write_raster(path, values, **{key: value for key, value in profile.items() if key != "mask"})
    if "mask" in profile:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
            file.write_mask(np.ones((2, 2), np.bool_))
    np.testing.assert_array_equal(rasters.read_raster(path, (4, 2, 2), "uint8", EXPECTED)[0], values)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
def test_a_map_of_classes(tmp_path, dtype):
    numbers = np.array([[0, 1], [1, 2]], dtype)
    write_raster(tmp_path / "a.tif", numbers[None])
    got = rasters.read_class_map(tmp_path / "a.tif", 2, (-1, 0, 1, 2), EXPECTED)
    assert got.dtype == np.int8 and got.tolist() == numbers.tolist()
    with pytest.raises(ValueError, match=rf"a\.tif holds \[0, 2\]; expected {EXPECTED}"):
        rasters.read_class_map(tmp_path / "a.tif", 2, (-1, 1), EXPECTED)


@pytest.fixture
def requests():
    """The address of a server of this machine, and the list of what was requested of it."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/a.tif", asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("prefix", ["/vsicurl/", ""])
def test_a_raster_leads_to_no_other_file_and_no_address(tmp_path, requests, prefix):
    address, asked = requests
    path, secret = tmp_path / "a.tif", tmp_path / "elsewhere" / "secret.tif"
    secret.parent.mkdir()
    write_raster(secret, np.full((1, 2, 2), 7, np.uint8))
    for source in (str(secret), prefix + address):
        path.write_text(VRT.format(source=source))
        for content in (None, path.read_bytes()):
            with pytest.raises(ValueError, match=r"a\.tif begins with b'<VRTDataset ', not like .* GTiff\); expected"):
                rasters.read_raster(path, (1, 2, 2), "uint8", EXPECTED, content)
    # A mask beside the file, which GDAL opens on its own.
    write_raster(path, np.full((1, 2, 2), 7, np.uint8))
    for name in ("a.tif.msk", "a.tif.ovr"):
        (tmp_path / name).write_text(VRT.format(source=prefix + address))
        with pytest.raises(ValueError, match=rf"{name} begins with b'<VRTDataset '"):
            rasters.read_raster(path, (1, 2, 2), "uint8", EXPECTED)
        (tmp_path / name).unlink()
        (tmp_path / name).symlink_to(tmp_path.parent / "a.msk")
        with pytest.raises(ValueError, match=f"{name}.* leads out of"):
            rasters.read_raster(path, (1, 2, 2), "uint8", EXPECTED)
        (tmp_path / name).unlink()
    # In other letters GDAL would find it in a listing of the folder.
    (tmp_path / "a.tif.Msk").write_text(VRT.format(source=prefix + address))
    rasters.read_raster(path, (1, 2, 2), "uint8", EXPECTED)
    (tmp_path / "a.tif.MSK").write_text(VRT.format(source=prefix + address))
    with pytest.raises(ValueError, match=r"a\.tif\.MSK is a mask that is not looked for: rename it"):
        rasters.read_raster(path, (1, 2, 2), "uint8", EXPECTED)
    assert not asked


def test_the_network_is_off_while_a_raster_is_open(tmp_path, requests):
    address, asked = requests
    write_raster(tmp_path / "a.tif", np.zeros((1, 2, 2), np.uint8))
    with rasters.open_raster(tmp_path / "a.tif", EXPECTED), pytest.raises(rasterio.errors.RasterioIOError):
        rasterio.open(f"/vsicurl/{address}")
    assert not asked


def test_rasters_are_opened_in_one_place():
    """All readers share the list of drivers; made-up archives are only written."""
    package = pathlib.Path(rasters.__file__).parent
    found = {str(path.relative_to(package)) for path in package.rglob("*.py") if "rasterio.open(" in path.read_text()}
    assert found == {"rasters.py", "fakes/common.py"}
