"""Products of Sentinel-2 as Copernicus ships them: bands by name, offset and scale by the product's XML."""

import contextlib
import dataclasses
import datetime
import os
import pathlib
import re
import zipfile
from collections.abc import Mapping
from typing import NamedTuple
from xml.etree import ElementTree

from rasterio.transform import Affine

from anysat_jax.scenes.files import needed_bands
from anysat_jax.scenes.naming import MASKS
from anysat_jax.scenes.reading import Acquisition, RasterBand, Stack
from anysat_jax.scenes.sources import BASELINE, complete_stack
from anysat_jax.sensors import SENSORS, Sensor, get_sensor
from data_pipelines.bands import band_key
from data_pipelines.dates import parse_day
from data_pipelines.files import explained
from data_pipelines.rasters import DRIVERS, open_raster

# Bands by their number in the XML, and their centres in nanometres.
S2_BANDS = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")
S2_NM = dict(zip(SENSORS["s2"].bands, SENSORS["s2"].wavelengths_nm)) | {"B1": 443.0, "B9": 945.0, "B10": 1374.0}
SAME_BAND = 0.1  # of a wavelength, by which records of one band differ at most
_METADATA = re.compile(r"(?:.*/)?MTD_MSI(L1C|L2A)\.xml", re.ASCII)
_IMAGE = re.compile(
    r"(?:.*/)?GRANULE/([^/]+)/IMG_DATA/(?:R\d\dm/)?[^/]*_(B\d[\dA]|SCL)(?:_(\d\d)m)?\.(?:jp2|tif)", re.ASCII
)
_LARGEST_XML = 2**26  # bytes; products have 1e5
# Tags of the quantification value and of the offsets, by level.
_TAGS = {"L1C": ("QUANTIFICATION_VALUE", "RADIO_ADD_OFFSET"), "L2A": ("BOA_QUANTIFICATION_VALUE", "BOA_ADD_OFFSET")}


class Header(NamedTuple):
    """The part of a raster's header that makes a RasterBand."""

    crs: str
    transform: Affine
    shape: tuple[int, int]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]


def read_header(path: pathlib.Path | str) -> Header:
    """Reads where a raster lies, and which scales and offsets of its bands it declares.

    Raises:
      FileNotFoundError, ValueError: it cannot be read, or has no place.
    """
    with open_raster(path, "a raster that is whole", whole=False) as file:
        if file.crs is None:
            raise ValueError(
                f"{path} has no coordinate system{', only control points' if file.gcps[0] else ''}; expected a raster "
                "on a grid, such as one that gdalwarp -t_srs writes, of radar one with terrain correction (RTC)"
            )
        return Header(file.crs.to_string(), file.transform, file.shape, file.scales, file.offsets)


def is_product(path: pathlib.Path) -> bool:
    """Returns whether a path is a product of Sentinel-1 or Sentinel-2: a .SAFE folder, a renamed one, or zipped."""
    if not path.is_dir():
        return path.suffix.lower() == ".zip" and re.match(r"S[12][A-D]_", path.name) is not None
    return path.suffix.upper() == ".SAFE" or any((path / f"MTD_MSI{level}.xml").is_file() for level in _TAGS)


def find_products(path: pathlib.Path) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """Returns the product that a path is, or those below a folder; and the rasters there that are of none."""
    products, loose = [path] if is_product(path) else [], []
    for parent, folders, names in os.walk(path) if not products else ():
        visible = [pathlib.Path(parent, name) for name in sorted(folders + names) if not name.startswith(".")]
        found = [one for one in visible if is_product(one)]
        products += found
        loose += [one for one in visible if one.suffix.lower() in DRIVERS and one.name in names]
        folders[:] = [one.name for one in visible if one.name in folders and one not in found]
    return products, loose


def open_products(sensor: str, path: pathlib.Path) -> Stack:
    """Opens a product of Sentinel-2 of level 1C or 2A, or all below a folder; values become reflectance x 10000.

    Raises:
      ValueError: a product is damaged, incomplete, of Sentinel-1, or lacks a band of the sensor; the message names it.
    """
    products, loose = find_products(path)
    opened = [_open_product(get_sensor(sensor), product) for product in products]
    offsets = sum(has_offset for _, has_offset in opened)
    notes = [f"{len(opened)} products, with scale and offset by their XML; {offsets} have an offset, which is undone"]
    if unmasked := [one.name for one, _ in opened if one.mask is None]:
        notes.append(f"{len(unmasked)} products have no scene classification (SCL): their clouds count as valid")
    if loose:
        notes.append(f"{len(loose)} rasters beside products, such as {loose[0].name}, are left out")
    return complete_stack(sensor, [one for one, _ in opened], [f"{sensor}: {note}" for note in notes])


def member_of(archive: pathlib.Path, name: str) -> str:
    """Returns GDAL's name of a file in a zip archive, for `open_raster`."""
    return f"/vsizip/{{{archive.absolute()}}}/{name}"


def archive_of(path: str) -> str | None:
    """Returns the archive of GDAL's name of a file; None of one on a server."""
    match = re.match(r"/vsizip/\{(.*?)\}/", path)
    return match[1] if match else None


def _open_product(sensor: Sensor, path: pathlib.Path) -> tuple[Acquisition, bool]:
    """Returns a product as an acquisition, and whether its values have an offset."""
    if path.name.startswith("S1"):
        raise ValueError(
            f"{path} is a product of Sentinel-1 without terrain correction, whose pixels have no place on a grid; give "
            "GeoTIFFs with it (RTC), as catalogues have them and SNAP's Terrain-Correction writes them"
        )
    check_wavelengths(str(path), sensor, S2_NM)
    members, level, content = _read_members(path)
    facts = _read_metadata(path, level, content)
    needed = needed_bands(sensor)
    rasters = _find_images(path, sensor, members)
    # Products of baselines before 04.00 have no offsets.
    may_lack = not facts.offsets and facts.baseline < BASELINE
    if lacking := [band for band in needed if band_key(band) not in facts.offsets and not may_lack]:
        raise ValueError(
            f"{path} has no {_TAGS[level][1]} of {lacking[0]!r} in its XML, which its baseline has; download the "
            "product again"
        )
    bands = []
    for band in needed:
        offset = facts.scale * facts.offsets.get(band_key(band), 0.0)
        bands.append(dataclasses.replace(rasters[band], scale=facts.scale, offset=offset))
    mask = rasters.get("SCL")
    found = Acquisition(facts.name, facts.day, tuple(bands), mask, MASKS["SCL"].clear if mask else ())
    return found, any(facts.offsets.values())


def check_wavelengths(where: str, sensor: Sensor, centres: Mapping[str, float]) -> None:
    """Refuses a sensor whose bands of the same names are others: B5 of Landsat 7 is not B5 of Sentinel-2.

    `centres` are those of the source's bands in nanometres.

    Raises:
      ValueError: the message has both wavelengths.
    """
    for band, own in zip(sensor.bands, sensor.wavelengths_nm):
        other = centres.get(band_key(band), 0.0)
        if own and other and abs(other / own - 1) > SAME_BAND:
            raise ValueError(
                f"{where} has {band!r} at {other:.0f} nm, and {sensor.name!r} at {own:.0f} nm; name the sensor that "
                "it is of"
            )


def _read_members(path: pathlib.Path) -> tuple[dict[str, pathlib.Path | str], str, bytes]:
    """Returns the files of a product by name, as GDAL opens them, its level, and its XML."""
    expected = "a whole product of Sentinel-2 with MTD_MSIL2A.xml or MTD_MSIL1C.xml"
    with explained(path, expected, zipfile.BadZipFile), contextlib.ExitStack() as stack:
        if path.is_dir():
            members = {one.relative_to(path).as_posix(): one for one in path.rglob("[!.]*")}
            archive = None
        else:
            archive = stack.enter_context(zipfile.ZipFile(path))
            members = {name: member_of(path, name) for name in archive.namelist()}
        found = [match for name in members if (match := _METADATA.fullmatch(name))]
        if len(found) != 1:
            raise ValueError(f"{path} has {len(found) or 'no'} MTD_MSIL1C.xml or MTD_MSIL2A.xml; expected {expected}")
        name = found[0][0]
        size = archive.getinfo(name).file_size if archive else members[name].stat().st_size
        if size > _LARGEST_XML:
            raise ValueError(f"{path}: {name} has {size} bytes; expected {expected}")
        return members, found[0][1], archive.read(name) if archive else members[name].read_bytes()


class _Facts(NamedTuple):
    """Facts of a product by its XML."""

    name: str
    day: datetime.date  # of sensing
    baseline: int  # 400 is 04.00
    scale: float  # (stored + offset) * scale is reflectance x 10000
    offsets: dict[str, float]  # by band


def _read_metadata(path: pathlib.Path, level: str, content: bytes) -> _Facts:
    """Returns what a product's XML has; one with a document type, which may name files or grow, is refused."""
    where, (quantification, offset) = f"{path}: MTD_MSI{level}.xml", _TAGS[level]
    try:
        text = content.decode()
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise ValueError("it has a document type, which products do not have")
        root = ElementTree.fromstring(text)
        wanted = ("PRODUCT_URI", "PRODUCT_START_TIME", "PROCESSING_BASELINE", quantification)
        texts = {tag: (root.findtext(f".//{tag}") or "").strip() for tag in wanted}
        if missing := [tag for tag in wanted if not texts[tag]]:
            raise ValueError(f"{missing[0]} is missing")
        offsets = {S2_BANDS[int(one.attrib["band_id"])]: float(one.text or "") for one in root.iter(offset)}
        baseline, scale = round(100 * float(texts["PROCESSING_BASELINE"])), 10_000 / float(texts[quantification])
        day = parse_day(texts["PRODUCT_START_TIME"], "PRODUCT_START_TIME")
    except (ValueError, KeyError, IndexError, ZeroDivisionError, ElementTree.ParseError) as error:
        raise ValueError(f"{where} cannot be read ({error}); download the product again") from error
    return _Facts(texts["PRODUCT_URI"].removesuffix(".SAFE"), day, baseline, scale, offsets)


def _find_images(
    path: pathlib.Path, sensor: Sensor, members: Mapping[str, pathlib.Path | str]
) -> dict[str, RasterBand]:
    """Returns the sensor's bands of a product, each in its finest resolution, and "SCL" if there is one."""
    images: dict[str, list[tuple[str, str]]] = {}
    granules = set()
    for member in members:
        if match := _IMAGE.fullmatch(member):
            granules.add(match[1])
            # Files of level 1C do not name their resolution, which is the band's.
            images.setdefault(band_key(match[2]), []).append((match[3] or match[2], member))
    if len(granules) > 1:
        raise ValueError(
            f"{path} has {len(granules)} granules, as products of before December 2016; expected one: download that "
            "of Collection 1"
        )
    if missing := [band for band in needed_bands(sensor) if band_key(band) not in images]:
        there = ", ".join(sorted(images)) or "no images in GRANULE/*/IMG_DATA"
        raise ValueError(f"{path} lacks {sensor.name!r}'s bands {', '.join(missing)}; there are {there}")
    headers: dict[str, Header] = {}
    found = {}
    for band in (*needed_bands(sensor), *(["SCL"] if "SCL" in images else [])):
        resolution, member = min(images[band_key(band)])
        if resolution not in headers:  # all images of a resolution lie on one grid
            headers[resolution] = read_header(members[member])
        # 0 is nothing there, which JPEG 2000 cannot declare.
        found[band] = RasterBand(members[member], 1, *headers[resolution][:3], nodata=0, masked=False)
    return found
