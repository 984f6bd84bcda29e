"""Products of Sentinel-2 become reflectance x 10000 by their XML, whatever their baseline and level."""

import datetime
import os
import shutil
import zipfile

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine

from anysat_jax.scenes.grid import Box
from anysat_jax.scenes.reading import read_box
from anysat_jax.scenes.request import stack_facts
from anysat_jax.scenes.sources import open_stack
from anysat_jax.sensors import Sensor, get_sensor, register

UTM = "EPSG:32632"
BOX = Box(600_000, 5_399_840, 600_160, 5_400_000)  # 16 x 16 pixels of 10 m
BANDS = get_sensor("s2").bands
XML_BANDS = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")
METRES = {"B2": 10, "B3": 10, "B4": 10, "B8": 10, "B1": 60, "B9": 60, "B10": 60}  # others: 20
DAY = datetime.date(2022, 5, 3)


def file_name(band):
    return band if len(band) == 3 else f"B0{band[1:]}"


def write_raster(path, values, metres):
    """A raster as products have it: JPEG 2000 without loss, which has no nodata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = dict(driver="JP2OpenJPEG", QUALITY=100, REVERSIBLE="YES", YCBCR420="NO")
    place = dict(crs=UTM, transform=Affine(metres, 0, BOX.left, 0, -metres, BOX.top))
    height, width = values.shape
    with rasterio.open(path, "w", **profile, **place, height=height, width=width, count=1, dtype=values.dtype) as file:
        file.write(values, 1)


def stored(band):
    """Numbers of a product, in which each pixel of each band is another one."""
    side = 160 // METRES.get(band, 20)
    return (1100 + 300 * XML_BANDS.index(band) + np.arange(side * side)).reshape(side, side).astype("uint16")


def product_name(level="L2A", baseline="04.00", tile="T32UMC", made="20220503T160000", day=DAY):
    return f"S2A_MSI{level}_{day:%Y%m%d}T102021_N{baseline.replace('.', '')}_R065_{tile}_{made}"


def xml(name, level="L2A", baseline="04.00", offset=-1000, quantification=10000, day=DAY):
    boa, radio = ("BOA_", "BOA_ADD_OFFSET") if level == "L2A" else ("", "RADIO_ADD_OFFSET")
    offsets = "".join(f'<{radio} band_id="{number}">{offset}</{radio}>' for number in range(13))
    return f"""<?xml version="1.0" encoding="UTF-8" standalone="no"?>
<n1:Level-2A_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-2A.xsd">
 <n1:General_Info>
  <Product_Info>
   <PRODUCT_START_TIME>{day}T10:20:21.024Z</PRODUCT_START_TIME>
   <PRODUCT_URI>{name}.SAFE</PRODUCT_URI>
   <PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE>
  </Product_Info>
  <Product_Image_Characteristics>
   <{boa}QUANTIFICATION_VALUE unit="none">{quantification}</{boa}QUANTIFICATION_VALUE>
   {f"<LIST>{offsets}</LIST>" if offset is not None else ""}
  </Product_Image_Characteristics>
 </n1:General_Info>
</n1:Level-2A_User_Product>"""


def write_product(folder, level="L2A", baseline="04.00", change=None, made="20220503T160000", **facts):
    """A product with the bands in all resolutions of their own and coarser ones; `change` alters a band's numbers."""
    name = product_name(level, baseline, made=made, day=facts.get("day", DAY))
    root = folder / f"{name}.SAFE"
    images = root / "GRANULE" / f"{level}_T32UMC_A035850_20220503T102021" / "IMG_DATA"
    for band in XML_BANDS:
        if level == "L2A" and band == "B10":
            continue
        values = stored(band) if change is None else change(band, stored(band))
        text = f"T32UMC_20220503T102021_{file_name(band)}"
        metres = METRES.get(band, 20)
        if level == "L1C":
            write_raster(images / f"{text}.jp2", values, metres)
            continue
        write_raster(images / f"R{metres}m" / f"{text}_{metres}m.jp2", values, metres)
        if metres == 10:  # a coarser copy, which must not be taken
            write_raster(images / "R20m" / f"{text}_20m.jp2", np.full((8, 8), 9999, "uint16"), 20)
    if level == "L2A":
        classes = np.full((8, 8), 4, "uint8")
        classes[1, 2] = 9
        write_raster(images / "R20m" / "T32UMC_20220503T102021_SCL_20m.jp2", classes, 20)
        write_raster(images / "R10m" / "T32UMC_20220503T102021_TCI_10m.jp2", np.zeros((16, 16), "uint8"), 10)
    (root / f"MTD_MSI{level}.xml").write_text(xml(name, level, baseline, **facts))
    (root / "._MTD_MSIL2A.xml").write_bytes(b"\0\5\26\7")
    return root


def with_nothing(band, values):
    """Nothing in the upper left 20 m."""
    values[: 20 // METRES.get(band, 20) or 1, : 20 // METRES.get(band, 20) or 1] = 0
    return values


def test_a_product_becomes_reflectance_without_its_offset(tmp_path):
    stack = open_stack("s2", write_product(tmp_path, change=with_nothing))
    fields = read_box(stack, UTM, BOX)
    assert fields.days == [DAY]
    valid = np.ones((16, 16), bool)
    valid[:2, :2] = False  # 0
    assert not fields.valid[0, 0, 2:4, 4:6].any()  # clouds of the scene classification
    red = fields.values[0, BANDS.index("B4")]
    assert np.array_equal(red[8:, 8:], stored("B4")[8:, 8:] - 1000.0)
    assert not fields.valid[0, 0, :2, :2].any()
    assert "1 have an offset, which is undone" in stack.notes[0] and any("clouds" in note for note in stack.notes)
    # Bands of 20 m are interpolated; their mean stays where it is.
    infrared = fields.values[0, BANDS.index("B8A"), 8:12, 8:12].mean()
    assert infrared == pytest.approx(stored("B8A")[4:6, 4:6].mean() - 1000, abs=1e-2)


def test_pixels_of_20_m_are_copied_to_a_sensor_of_20_m(tmp_path):
    register(Sensor("s2-of-20-m", "series", ("B11", "B5", "B8A"), 20.0))
    fields = read_box(open_stack("s2-of-20-m", write_product(tmp_path)), UTM, BOX)
    expected = np.stack([stored(band) for band in ("B11", "B5", "B8A")]) - 1000.0
    valid = np.ones((8, 8), bool)
    valid[1, 2] = False
    assert np.array_equal(fields.valid[0, 0], valid)
    assert np.array_equal(fields.values[0], expected * valid)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (dict(baseline="02.14", offset=None), 1.0),
        (dict(baseline="05.11", offset=-1000), 0.0),
        (dict(baseline="05.11", offset=0), 1.0),
        (dict(baseline="05.00", offset=-500, quantification=20000), 0.25),
    ],
)
def test_baselines_differ_only_as_their_xml_says(tmp_path, facts, expected):
    """1000, in the units of the product, becomes these thousands of reflectance x 10000."""
    root = write_product(tmp_path, change=lambda _, values: values * 0 + 1000, **facts)
    fields = read_box(open_stack("s2", root), UTM, BOX)
    assert fields.values[fields.valid.repeat(10, 1)] == pytest.approx(1000 * expected, abs=1e-3)


def test_a_series_across_baselines_has_one_level(tmp_path):
    """Pitfall 1: before and after 25 January 2022, without a shift by 0.1 of reflectance."""
    old = datetime.date(2021, 5, 3)
    write_product(tmp_path, baseline="03.00", offset=None, day=old, change=lambda _, values: values - 1000)
    write_product(tmp_path / "2022" / "May")
    (tmp_path / "._x.SAFE").mkdir()
    shutil.copy(next(tmp_path.rglob("*_B02_10m.jp2")), tmp_path / "2022" / "beside.jp2")
    stack = open_stack("s2", tmp_path)
    assert any("1 rasters beside products, such as beside.jp2, are left out" in note for note in stack.notes)
    fields = read_box(stack, UTM, BOX)
    assert fields.days == [old, DAY]
    assert np.array_equal(fields.values[0], fields.values[1]) and fields.valid.any()


def test_the_later_processing_of_a_product_stays(tmp_path):
    """Pitfall 8."""
    write_product(tmp_path, baseline="03.01", offset=None, change=lambda _, values: values * 0 + 1)
    write_product(tmp_path, baseline="05.00", made="20230101T000000")
    stack = open_stack("s2", tmp_path)
    assert len(stack.acquisitions) == 1 and "N0500" in stack.acquisitions[0].name
    assert any("N0301" in note and "later processing" in note for note in stack.notes)


def test_two_parts_of_a_tile_from_one_pass_are_both_read(tmp_path):
    def left(band, values):
        values[:, : len(values) // 2] = 0
        return values

    def right(band, values):
        values[:, len(values) // 2 :] = 0
        return values

    for made, part in (("20220503T160000", left), ("20220503T170000", right)):
        write_product(tmp_path, made=made, change=part)
    stack = open_stack("s2", tmp_path)
    fields = read_box(stack, UTM, BOX)
    assert fields.days == [DAY] and any("one date: 2 of 2022-05-03" in note for note in stack.notes)
    assert np.array_equal(fields.values[0, BANDS.index("B3"), 6:, :6], stored("B3")[6:, :6] - 1000.0)
    assert np.array_equal(fields.values[0, BANDS.index("B3"), 6:, 10:], stored("B3")[6:, 10:] - 1000.0)


def test_level_1c_has_no_mask_and_is_not_mixed_with_2a(tmp_path):
    """Pitfall 3."""
    root = write_product(tmp_path, level="L1C")
    stack = open_stack("s2", root)
    fields = read_box(stack, UTM, BOX)
    assert fields.valid.all() and np.array_equal(fields.values[0, 0], stored("B2") - 1000.0)
    assert any("L1C" in note and "top of the atmosphere" in note for note in stack.notes)
    assert any("clouds count as valid" in note for note in stack.notes)
    write_product(tmp_path, day=datetime.date(2022, 5, 8))
    with pytest.raises(ValueError, match="of level L1C .* and of L2A"):
        open_stack("s2", tmp_path)


def test_a_zipped_product_and_a_renamed_one_give_the_same(tmp_path):
    root = write_product(tmp_path / "a")
    expected = read_box(open_stack("s2", root), UTM, BOX)
    archive = tmp_path / "b" / f"{root.name}.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(root.rglob("*")):
            file.write(path, f"{root.name}/{path.relative_to(root)}")
    renamed = shutil.copytree(root, tmp_path / "c" / "mine")
    for source in (archive, archive.parent, renamed, renamed.parent):
        fields = read_box(open_stack("s2", source), UTM, BOX)
        assert np.array_equal(fields.values, expected.values) and np.array_equal(fields.valid, expected.valid)
    # A run that goes on recognises the archive.
    facts = stack_facts(open_stack("s2", archive))
    assert facts == stack_facts(open_stack("s2", archive))
    os.utime(archive, (0, 0))
    assert facts != stack_facts(open_stack("s2", archive))


def without(name):
    def change(root):
        (path,) = root.rglob(name)
        path.unlink()

    return change


def with_xml(old, new):
    def change(root):
        path = root / "MTD_MSIL2A.xml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return change


def second_granule(root):
    (granule,) = (root / "GRANULE").iterdir()
    shutil.copytree(granule, root / "GRANULE" / "L2A_T32UNC_A035850_20220503T102021")


def cut(root):
    (path,) = root.rglob("*_B02_10m.jp2")
    path.write_bytes(path.read_bytes()[:100])


ENTITIES = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><n1:Level'
WRONG = {
    "SAFE lacks 's2''s bands B11; there are": without("*_B11_20m.jp2"),
    "SAFE lacks 's2''s bands B2, .* no images in GRANULE": lambda root: shutil.rmtree(root / "GRANULE"),
    "SAFE has no MTD_MSIL1C.xml or MTD_MSIL2A.xml": without("MTD_MSIL2A.xml"),
    "has 2 granules, as products of before December 2016": second_granule,
    "PROCESSING_BASELINE is missing": with_xml("PROCESSING_BASELINE>", "OTHER>"),
    "document type": with_xml("<n1:Level", ENTITIES),
    "PRODUCT_START_TIME: 'soon": with_xml("2022-05-03T10", "soon"),
    "MTD_MSIL2A.xml cannot be read .*download the product again": with_xml("</n1:General_Info>", ""),
    "no BOA_ADD_OFFSET of 'B4'": with_xml('<BOA_ADD_OFFSET band_id="3">-1000</BOA_ADD_OFFSET>', ""),
    "division by zero": with_xml(">10000<", ">0<"),
    "B02_10m.jp2 cannot be read": cut,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_product(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("message", WRONG)
def test_a_product_that_is_not_whole_is_refused_in_a_sentence(tmp_path, whole, message):
    root = shutil.copytree(whole, tmp_path / whole.name)
    WRONG[message](root)
    with pytest.raises(ValueError, match=message) as error:
        open_stack("s2", root)
    assert whole.name in str(error.value)


def test_other_sensors_bands_of_the_same_names_are_refused(whole):
    """B5 of Landsat 7 and B5 of Sentinel-2 are of other wavelengths."""
    with pytest.raises(ValueError, match="has 'B1' at 443 nm, and 'modis' at 645 nm"):
        open_stack("modis", whole)


def test_radar_without_terrain_correction_is_refused(tmp_path):
    root = tmp_path / "S1A_IW_GRDH_1SDV_20220503T170000_20220503T170025_043046_0523F0_1234.SAFE"
    root.mkdir()
    with pytest.raises(ValueError, match="GRDH.*without terrain correction.*RTC"):
        open_stack("s1", root)
