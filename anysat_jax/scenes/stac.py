"""Items of STAC catalogues as acquisitions: assets by their bands, values by what the catalogue declares of them.

Catalogues are at times wrong about the offset of Sentinel-2's processing baseline 04.00, so that values are looked at.
"""

import concurrent.futures
import dataclasses
import datetime
import pathlib
import re
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from anysat_jax.scenes.catalogues import Header, check_wavelengths, read_header
from anysat_jax.scenes.files import in_units, needed_bands
from anysat_jax.scenes.naming import MASKS, band_in, find_product, mask_in
from anysat_jax.scenes.reading import Acquisition, RasterBand, Stack
from anysat_jax.scenes.sources import BASELINE, DARK, OFFSET, complete_stack, is_of, sample
from anysat_jax.sensors import Sensor, get_sensor
from data_pipelines.files import read_json
from data_pipelines.rasters import DRIVERS

_EXPECTED = "a collection of STAC items (FeatureCollection), as item_collection.save_object of pystac-client writes it"
_NOT_DATA = {"thumbnail", "overview", "visual", "metadata"}  # roles of assets
_MASKS = ("SCL", "QA_PIXEL", "FMASK")  # others, such as probabilities of clouds, are not classes
_FLAGS = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")
_BASELINES = ("s2:processing_baseline", "sentinel:processing_baseline", "processing:version")
_READERS = 8  # headers that are read at once: of servers most of the time is waiting
_DARK_PART = 0.1  # of the valid values, that lie below the offset where they do not hold it


class _Band(msgspec.Struct, kw_only=True):
    """Facts of a band in STAC: in eo:bands and raster:bands until 1.0, in bands or for all of an asset since."""

    name: str | None = None
    common_name: str | None = None
    eo_common_name: str | None = msgspec.field(default=None, name="eo:common_name")
    center_wavelength: float | None = None  # micrometres
    eo_center_wavelength: float | None = msgspec.field(default=None, name="eo:center_wavelength")
    nodata: float | str | None = None
    scale: float | None = None
    offset: float | None = None
    raster_scale: float | None = msgspec.field(default=None, name="raster:scale")
    raster_offset: float | None = msgspec.field(default=None, name="raster:offset")


class _Asset(_Band, kw_only=True):
    href: str
    type: str | None = None
    roles: list[str] | None = None
    gsd: float | None = None
    bands: list[_Band] | None = None
    eo_bands: list[_Band] | None = msgspec.field(default=None, name="eo:bands")
    raster_bands: list[_Band] | None = msgspec.field(default=None, name="raster:bands")


class _Item(msgspec.Struct):
    id: str
    properties: dict[str, Any]
    assets: dict[str, _Asset]


class _Place(NamedTuple):
    """A band of an item: its file, and the facts that are declared of it."""

    order: tuple[Any, ...]  # of several places the least is taken
    path: pathlib.Path | str
    number: int  # in the file, from 1
    nodata: float | None
    scale: float | None
    offset: float | None
    micrometres: float | None


def open_items(sensor: str, path: pathlib.Path) -> Stack:
    """Opens the items of a file that are of a sensor; reflectance becomes reflectance x 10000.

    Args:
      sensor: its name.
      path: of a collection of items, or one item. Hrefs are files, also relative to it, or addresses (https://...).

    Raises:
      ValueError: it is not such a file, an item lacks a band or a date, an asset cannot be read, or it is unknown
        whether values hold Sentinel-2's offset; the message names the item.
    """
    record, items = get_sensor(sensor), _read_items(path)
    found = []
    for item in items:
        name = _name(item)
        places = _places(record, path, item) if is_of(sensor, find_product(name)) else {}
        if set(places) & set(needed_bands(record)):
            if missing := [band for band in needed_bands(record) if band not in places]:
                there = ", ".join(item.assets)
                raise ValueError(
                    f"{path}: {name} lacks {sensor!r}'s bands {', '.join(missing)}; its assets are {there}"
                )
            centres = {band: 1000 * (one.micrometres or 0) for band, one in places.items()}
            check_wavelengths(f"{path}: {name}", record, centres)
            found.append((item, places))
    if not found:
        there = f"; the first of {len(items)} has {', '.join(items[0].assets)}" if items else ""
        raise ValueError(f"{path} has no item with bands of {sensor!r}: {', '.join(record.bands)}{there}")
    files = list(dict.fromkeys(place.path for _, places in found for place in places.values()))
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        headers = dict(zip(files, pool.map(read_header, files)))
        opened = list(pool.map(lambda one: _open_item(record, path, *one, headers), found))
    notes = _summary(opened)
    if len(items) > len(found):
        notes.append(f"{len(items) - len(found)} items of other sensors are left out")
    return complete_stack(sensor, [one for one, _ in opened], [f"{sensor}: {note}" for note in notes])


def _summary(opened: Sequence[tuple[Acquisition, str]]) -> list[str]:
    """Returns notes on items, each once with the number of items and the name of the first."""
    names: dict[str, list[str]] = {}
    for one, note in opened:
        names.setdefault(note, []).append(one.name)
        if one.mask is None:
            names.setdefault("have no classification: their clouds count as valid", []).append(one.name)
    return [f"{len(those)} items, such as {those[0]}, {note}" for note, those in names.items() if note]


# ---------------------------------------------------------------- what an item has


def _read_items(path: pathlib.Path) -> list[_Item]:
    found = read_json(path, _EXPECTED)
    kind = found.get("type") if isinstance(found, dict) else None
    if kind not in ("FeatureCollection", "Feature"):
        raise ValueError(f"{path} is {f'a {kind}' if kind else 'not STAC'}; expected {_EXPECTED}, or one item")
    try:
        return msgspec.convert(found.get("features") if kind == "FeatureCollection" else [found], list[_Item])
    except msgspec.ValidationError as error:
        raise ValueError(f"{path} does not hold STAC items ({error}); expected {_EXPECTED}") from error


def _name(item: _Item) -> str:
    """Returns the name of an item's product, or its own."""
    product = find_product(str(item.properties.get("s2:product_uri", ""))) or find_product(item.id)
    return product.name if product else item.id


def _day(where: str, item: _Item) -> datetime.date:
    """Returns the day in UTC."""
    text = item.properties.get("datetime") or item.properties.get("start_datetime")
    try:
        time = datetime.datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise ValueError(f"{where} has the datetime {text!r}; expected one such as 2020-05-03T10:20:21Z") from None
    return time.astimezone(datetime.UTC).date() if time.tzinfo else time.date()


def _places(sensor: Sensor, path: pathlib.Path, item: _Item) -> dict[str, _Place]:
    """Returns the best place of each of the sensor's bands, and of masks by their kind."""
    found: dict[str, _Place] = {}
    for key, asset in item.assets.items():
        file, suffix = _locate(path.parent, asset.href)
        if suffix not in DRIVERS or set(asset.roles or ()) & _NOT_DATA:
            continue
        described = [list(bands) for bands in (asset.eo_bands, asset.raster_bands, asset.bands) if bands]
        count = max(map(len, described), default=1)
        for number in range(count):
            facts = [bands[number] for bands in described if number < len(bands)] + [asset]
            texts = [text for one in facts for text in (one.name, one.common_name, one.eo_common_name) if text]
            texts = [key, *texts] if count == 1 else texts
            band = next((band for text in texts if (band := band_in(text, sensor))), "")
            band = band or next((kind for text in texts if (kind := mask_in(text)) in _MASKS), "")
            resolution = re.search(r"_(\d+)m$", key)
            place = _Place(
                # Composites after single bands, servers' other copies in JPEG 2000 after GeoTIFFs, coarse ones last.
                (file is None, count > 1, suffix == ".jp2", float(resolution[1]) if resolution else asset.gsd or 0),
                file or asset.href,
                number + 1,
                *(_first(facts, names) for names in (("nodata",), _SCALE, _OFFSET, _CENTRE)),
            )
            if band and (band not in found or place.order < found[band].order):
                found[band] = place
    for band, place in found.items():
        if place.order[0]:
            raise ValueError(
                f"{path}: {item.id} has {band!r} at {place.path}; expected a file, or an address https://...: download "
                "it, or take the catalogue's address for it"
            )
    return found


_SCALE, _OFFSET = ("raster_scale", "scale"), ("raster_offset", "offset")
_CENTRE = ("eo_center_wavelength", "center_wavelength")


def _first(facts: Sequence[_Band], names: Sequence[str]) -> float | None:
    """Returns the first number that is declared of a band, or of its asset."""
    values = (getattr(one, name) for one in facts for name in names)
    return next((float(value) for value in values if isinstance(value, float | int)), None)


def _locate(folder: pathlib.Path, href: str) -> tuple[pathlib.Path | str | None, str]:
    """Returns the file or address of an href, None where it is neither, and its suffix."""
    parts = urllib.parse.urlsplit(href)
    suffix = pathlib.PurePosixPath(parts.path).suffix.lower()
    if parts.scheme in ("http", "https"):
        return href, suffix
    if parts.scheme not in ("", "file"):
        return None, suffix
    path = folder / (href if not parts.scheme else urllib.request.url2pathname(parts.path))
    return path if path.exists() else folder / urllib.parse.unquote(parts.path), suffix


# ---------------------------------------------------------------- from items to acquisitions


def _open_item(
    sensor: Sensor,
    path: pathlib.Path,
    item: _Item,
    places: Mapping[str, _Place],
    headers: Mapping[pathlib.Path | str, Header],
) -> tuple[Acquisition, str]:
    """Returns an item as an acquisition, and what was decided of its offset."""
    name = _name(item)
    where = f"{path}: {name}"
    is_s2 = any(key.startswith(("s2:", "sentinel:")) for key in item.properties) or "s2" in _missions(name)
    rasters, declared = {}, {}
    for band, place in places.items():
        header = headers[place.path]
        if place.number > len(header.scales):
            raise ValueError(f"{where} declares {place.number} bands or more of {place.path}, which has fewer")
        # JPEG 2000 cannot declare that 0 is nothing there, and catalogues do not always.
        nodata = 0.0 if place.nodata is None and is_s2 else place.nodata
        is_mask = band in _MASKS
        rasters[band] = RasterBand(
            place.path, place.number, *header[:3], nodata=None if is_mask else nodata, masked=not is_mask
        )
        declared[band] = _declared(where, place, header)
    bands = [rasters[band] for band in needed_bands(sensor)]
    scales = [declared[band] for band in needed_bands(sensor)]
    note = ""
    if is_s2:
        holds, note = _holds_offset(where, item, bands, [offset for _, offset in scales])
        scales = [(scale or 1 / 10_000, offset) for scale, offset in scales]
        scales = [(scale, (offset or -OFFSET * scale) if holds else 0.0) for scale, offset in scales]
    ready = []
    for band, (scale, offset) in zip(bands, scales, strict=True):
        scale, offset = in_units(band.path, sensor, 1.0 if scale is None else scale, offset or 0.0)
        zero = None if sensor.kind == "image" else offset
        ready.append(dataclasses.replace(band, scale=scale, offset=offset, zero=zero))
    kind = next((kind for kind in _MASKS if kind in rasters), "")
    day = _day(where, item) if sensor.has_dates else None
    clear = MASKS[kind].clear if kind else ()
    return Acquisition(name, day, tuple(ready), rasters.get(kind), clear), note


def _missions(name: str) -> tuple[str, ...]:
    product = find_product(name)
    return product.sensors if product else ()


def _declared(where: str, place: _Place, header: Header) -> tuple[float | None, float | None]:
    """Returns scale and offset that the item declares, or the file; None where neither does."""
    own = header.scales[place.number - 1], header.offsets[place.number - 1]
    if own == (1, 0):
        return place.scale, place.offset
    of_item = tuple(mine if theirs is None else theirs for theirs, mine in zip((place.scale, place.offset), own))
    if not np.allclose(of_item, own, rtol=1e-6):
        raise ValueError(
            f"{where} declares scale and offset {of_item} of {place.path}, and that file {own}; correct the item"
        )
    return own


def _holds_offset(
    where: str, item: _Item, bands: Sequence[RasterBand], declared: Sequence[float | None]
) -> tuple[bool, str]:
    """Returns whether stored values hold the offset of Sentinel-2's baseline 04.00, and a note on why.

    Args:
      where: file and item, for errors.
      item: of Sentinel-2.
      bands: of stored values.
      declared: offsets of the bands; None where it is not declared.

    Raises:
      ValueError: the item declares it one way and the other, or not at all, and values do not tell.
    """
    flag = next((item.properties[key] for key in _FLAGS if isinstance(item.properties.get(key), bool)), None)
    baseline = _baseline(where, item)
    if baseline is not None and baseline < BASELINE:
        return False, "are of a baseline before 04.00, without an offset"
    seen = [values for band in bands[::4] if (values := sample(band)).size]
    dark = any(np.quantile(values, _DARK_PART) < DARK for values in seen)
    claims = {flag is not True} if flag is not None else {offset != 0 for offset in declared if offset is not None}
    if flag is None and baseline is not None:
        claims.add(True)
    if dark:
        # Reflectances below 0 are rare: values as low have had it undone, whatever is declared.
        how = "as declared" if claims == {False} else f"as values below {OFFSET:g} show, which is not declared"
        return False, f"have their offset undone already, {how}"
    if claims == {False}:
        doubt = f", though no values below {OFFSET:g} were found: look at them" if baseline and seen else ""
        return False, f"have their offset undone already, as declared{doubt}"
    if claims == {True}:
        return True, "hold the offset of baseline 04.00, which is undone"
    raise ValueError(
        f"{where} declares {'different things' if claims else 'nothing'} about the offset of baseline 04.00, and its "
        f"values do not tell; write s2:processing_baseline and {_FLAGS[0]} (true or false) into its properties"
    )


def _baseline(where: str, item: _Item) -> int | None:
    """Returns the processing baseline, 400 of 04.00; None where it is unknown."""
    if (product := find_product(_name(item))) and product.baseline:
        return product.baseline
    text = next((item.properties[key] for key in _BASELINES if item.properties.get(key) is not None), None)
    try:
        return None if text is None else round(100 * float(text))
    except (TypeError, ValueError):
        raise ValueError(f"{where} has the baseline {text!r}; expected one such as '05.11'") from None
