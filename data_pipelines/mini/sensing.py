"""Simulated observations of a landscape: optical and radar series and very high resolution images, in native units.

What differs between two dates or two tiles is mostly not the ground: each sensor has a gain and a colour cast for each
tile; each date has its own gain, haze, clouds with shadows and soil moisture; radar is speckled. The signal lies
beneath.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from anysat_jax.sensors import get_sensor
from data_pipelines.mini import land_cover as lc
from data_pipelines.mini.landscape import Landscape, rotate, smooth_noise

SUN = (0.8, -0.6)  # where shadows fall, (columns, rows): up and to the right; the sun stands in the south-west
RADAR_LOOKS = 4.0


def _mixture(**weights: float) -> tuple[float, ...]:
    return tuple(weights.get(band, 0.0) for band in lc.BANDS)


_BAND = {band: _mixture(**{band: 1.0}) for band in lc.BANDS}
_TM = {"blue": _BAND["B2"], "green": _BAND["B3"], "red": _BAND["B4"], "nir": _BAND["B8A"]}
_TM |= {"swir1": _BAND["B11"], "swir2": _BAND["B12"], "none": _mixture()}
_TM |= {"coastal": _mixture(B2=0.85), "pan": _mixture(B2=0.2, B3=0.4, B4=0.4), "nir2": _mixture(B8A=0.6, B11=0.4)}

RESPONSES: dict[str, tuple[tuple[float, ...], ...]] = {
    "aerial": tuple(_BAND[b] for b in ("B4", "B3", "B2", "B8")),
    "aerial-flair": tuple(_BAND[b] for b in ("B4", "B3", "B2", "B8")),
    "naip": tuple(_BAND[b] for b in ("B4", "B3", "B2", "B8")),
    "spot": tuple(_BAND[b] for b in ("B4", "B3", "B2")),
    "s2": tuple(_BAND.values()),
    "l7": tuple(_TM[b] for b in ("blue", "green", "red", "nir", "swir1", "swir2")),
    "l8": tuple(
        _TM[b] for b in ("pan", "coastal", "blue", "green", "red", "nir", "swir1", "swir2", "none", "none", "none")
    ),
    "modis": tuple(_TM[b] for b in ("red", "nir", "blue", "green", "nir2", "swir1", "swir2")),
}
"""Weights of the bands of `land_cover.BANDS` in each band of an optical sensor, in the sensor's order."""


@dataclasses.dataclass(frozen=True)
class Series:
    """A series in native units."""

    values: Float[np.ndarray, "T C h w"]
    dates: Int[np.ndarray, " T"]  # days of the year from 0, ascending
    # True where neither a cloud, nor its shadow, nor a gap of the scanner hides the ground; None for radar.
    clear: Bool[np.ndarray, "T 1 h w"] | None = None


def draw_dates(limits: tuple[int, int], rng: np.random.Generator, repeat: int = 3) -> Int[np.ndarray, " T"]:
    """Draws between limits[0] and limits[1] ascending days of a year, on the days of an orbit of `repeat` days."""
    # A tile has an orbit of its own, whose phase is drawn.
    passes = np.arange(int(rng.integers(0, repeat)), 365, repeat)
    count = int(rng.integers(limits[0], limits[1] + 1))
    return np.sort(rng.choice(passes, min(count, len(passes)), replace=False)).astype(np.int32)


def optical_series(land: Landscape, sensor: str, dates: Int[np.ndarray, " T"], rng: np.random.Generator) -> Series:
    """Simulates an optical series of a landscape: reflectance times 10,000 as a float32 array (l8: digital numbers).

    A pixel is the mean reflectance of its segments; Landsat 8's 30 m bands, resampled to 10 m, are blurred as well.
    """
    record = get_sensor(sensor)
    size = record.pixels(land.extent)
    metres = land.extent if record.kind == "context" else record.metres_per_pixel
    shares = land.shares(metres)
    shares = _blurred(shares) if sensor == "l8" else shares
    response = np.array(RESPONSES[sensor], np.float32)
    # Bands are mixed before pixels are: both are linear, and there are far fewer segments than pixels.
    segments = land.reflectance(dates) @ response.T
    clean = np.einsum("hwk,tkc->tchw", shares, segments, optimize=True)
    opacity, shadow = _clouds(len(dates), size, rng)
    values = _through_air(clean, opacity, shadow, response, rng)
    clear = (opacity < 0.15) & (shadow < 0.15)
    if sensor == "l8":
        return Series(_landsat8_numbers(values, land, dates, opacity, rng), dates, clear)
    if sensor == "l7":
        # Since 2003 its scanner leaves gaps: on half of the dates, a row of the tile is 0 and not clear.
        row = rng.integers(0, 2 * size, len(dates))
        gap = (row[:, None] == np.arange(size)[None, :])[:, None, :, None]
        values, clear = np.where(gap, np.float32(0.0), values), clear & ~gap
    return Series(np.clip(values * 1e4, 0.0, 32767.0), dates, clear)


def _blurred(shares: Float[np.ndarray, "h w K"]) -> Float[np.ndarray, "h w K"]:
    """Returns means of three by three pixels: Landsat's 30 m bands brought to a grid of 10 m."""
    padded = np.pad(shares, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / np.float32(9.0)


def _clouds(count: int, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws the opacity of clouds and of their shadows, (T, 1, size, size) each: dates are clear, broken or covered."""
    weather = rng.choice(3, count, p=(0.68, 0.21, 0.11))
    cover = np.array([-2.6, 0.1, 1.6], np.float32)[weather] + rng.normal(0.0, 0.4, count).astype(np.float32)
    field = smooth_noise((count, 1), size + 2, 4, rng)
    opacity = np.clip(1.4 * (field + cover[:, None, None, None] - 0.3), 0.0, 0.97)
    opacity = np.where(weather[:, None, None, None] == 0, 0.0, opacity).astype(np.float32)
    over = opacity[..., :size, 2:]
    return over, opacity[..., 2:, :size] * (1.0 - over)  # the shadow falls two pixels to the north-east


def _through_air(
    clean: np.ndarray, opacity: np.ndarray, shadow: np.ndarray, response: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Adds illumination, haze, clouds and sensor noise to the reflectance of the ground."""
    count, bands, size, _ = clean.shape
    # Once for the tile and once for each date: a gain, and a weaker colour cast by band.
    scale = np.exp(rng.normal(0.0, 0.12, (1, 1, 1, 1)) + rng.normal(0.0, 0.03, (1, bands, 1, 1)))
    scale = scale * np.exp(rng.normal(0.0, 0.12, (count, 1, 1, 1)) + rng.normal(0.0, 0.03, (count, bands, 1, 1)))
    slope = 1.0 + 0.06 * smooth_noise((1, 1), size, 3, rng)
    haze = (
        rng.exponential(0.02, (count, 1, 1, 1))
        * (response @ np.array(lc.SPECTRA["haze"], np.float32))[None, :, None, None]
    )
    cloud = (response @ np.array(lc.SPECTRA["cloud"], np.float32))[None, :, None, None]
    cloud = cloud * rng.uniform(0.6, 1.05, (count, 1, 1, 1))
    lit = clean * scale.astype(np.float32) * slope * (1.0 - 0.6 * shadow) + haze.astype(np.float32)
    seen = lit * (1.0 - opacity) + cloud.astype(np.float32) * opacity
    noise = rng.standard_normal(seen.shape, dtype=np.float32)
    # noise[::-1] is as good as a second draw, which would take half of the time.
    return np.maximum(seen * (1.0 + 0.03 * noise) + 0.002 * noise[::-1], 0.0)


def _landsat8_numbers(
    values: np.ndarray, land: Landscape, dates: np.ndarray, opacity: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Returns digital numbers of Landsat 8: 5,000 + 50,000 times the reflectance; 100 times the kelvins."""
    numbers = 5000.0 + 50000.0 * values
    # B9 lies where water vapour absorbs all that comes from the ground: it shows high clouds alone.
    numbers[:, 8:9] = 5000.0 + 300.0 * opacity
    season = 283.0 + 11.0 * np.cos(2 * np.pi * (dates - 200.0) / 365.0) + rng.normal(0.0, 3.0, len(dates))
    # Plants cool by evaporation; clouds are cold at their tops.
    warm = 6.0 * (1.0 - land.green(dates)) - 8.0 * (land.cover == lc.COVER_INDEX["water"])[None, :]
    kelvin = np.einsum("hwk,tk->thw", _blurred(land.shares(10.0)), warm.astype(np.float32))
    kelvin = (kelvin + season[:, None, None])[:, None] - 25.0 * opacity
    numbers[:, 9:11] = 100.0 * (kelvin - np.array([0.0, 1.5])[None, :, None, None])
    return np.clip(numbers, 0.0, 65535.0).astype(np.float32)


def radar_series(
    land: Landscape, sensor: str, dates: Int[np.ndarray, " T"], rng: np.random.Generator, decibel: bool = True
) -> Series:
    """Simulates a radar series of a landscape: speckled backscatter, float32.

    "s1-asc" has VV, VH; "s1" VV, VH, VV/VH; "alos" HH, HV, HH/HV. With `decibel`, values are in dB and the third band,
    the ratio, is the difference of the first two; otherwise they are linear power, and it is their quotient.
    """
    record, kind = get_sensor(sensor), lc.KIND[land.cover]
    green = land.green(dates)[:, :, None]
    table = lc.C_BAND[land.cover]
    if record.name == "alos":
        # L band passes through leaves: only field crops add to it, in proportion to their height.
        crop = (kind == lc.KINDS.index("field")).astype(np.float32) * lc.HEIGHT[land.cover]
        table = np.concatenate([lc.L_BAND[land.cover], np.stack([crop, 2.0 * crop], axis=1)], axis=1)
    level = table[None, :, :2] + green * table[None, :, 2:]
    # Wet soil echoes; little of it shows through plants, and little between houses.
    forest, town = ((kind == lc.KINDS.index(name))[None, :, None] for name in ("forest", "town"))
    moisture = rng.normal(0.0, 1.6, (len(dates), 1, 1)) * (1.0 - 0.6 * green)
    moisture = moisture * np.where(forest, 0.3, 1.0) * np.where(town, 0.3, 1.0)
    gain = rng.normal(0.0, 0.5, (1, 1, 2)) + rng.normal(0.0, 0.5, (len(dates), 1, 2))
    # Power adds up over a pixel, decibels do not.
    power = np.power(10.0, 0.1 * (level + moisture + gain)).astype(np.float32)
    pixels = np.einsum("hwk,tkc->tchw", land.shares(record.metres_per_pixel), power, optimize=True)
    # Speckle of the mean of n looks is gamma-distributed with shape n and mean 1.
    speckle = rng.standard_gamma(RADAR_LOOKS, pixels.shape, dtype=np.float32) / np.float32(RADAR_LOOKS)
    linear = np.maximum(pixels * speckle, 1e-5)
    values = 10.0 * np.log10(linear) if decibel else linear
    if record.num_bands == 3:
        ratio = values[:, :1] - values[:, 1:] if decibel else values[:, :1] / (values[:, 1:] + 1e-10)
        values = np.concatenate([values, ratio], axis=1)
    return Series(values.astype(np.float32), dates)


def image(land: Landscape, sensor: str, day: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Simulates a very high resolution image taken on one day, in grey values of a camera.

    Returns (C, H, W) float32 in [0, 255], and the height above ground in metres, (H, W) float32. The landscape's fine
    grid is the sensor's, or a multiple of it; then values are repeated before the noise is added.
    """
    record = get_sensor(sensor)
    response = np.array(RESPONSES[sensor], np.float32)
    table = land.reflectance(np.array([day]))[0] @ response.T
    shade, height = _relief(land, rng)
    light = shade * _shadows(height, land.metres)
    exposure = np.exp(rng.normal(0.0, 0.15) + rng.normal(0.0, 0.045, len(response))).astype(np.float32)
    # A camera is exposed for what is bright in a band: plants in the infrared, roofs in the others.
    exposure = exposure * 255.0 / np.where(response[:, lc.BANDS.index("B8")] > 0, 0.62, 0.26).astype(np.float32)
    haze = np.float32(rng.exponential(0.012)) * (response @ np.array(lc.SPECTRA["haze"], np.float32))
    grey = (table * exposure[None, :]).T[:, land.segments] * light[None] + (haze * exposure)[:, None, None]
    repeat = record.pixels(land.extent) // len(height)
    grey, height = (np.repeat(np.repeat(a, repeat, -1), repeat, -2) for a in (grey, height))
    noise = rng.standard_normal(height.shape, dtype=np.float32) * np.float32(0.07)
    grey = grey * (1.0 + noise)[None] + rng.standard_normal(grey.shape, dtype=np.float32) * np.float32(1.5)
    return np.clip(grey, 0.0, 255.0), height


def _relief(land: Landscape, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns brightness and height of the fine grid: tree crowns, field rows, roofs."""
    count = len(land.segments)
    axis = (np.arange(count, dtype=np.float32) + 0.5) * np.float32(land.metres)
    shade = 1.0 + 0.05 * smooth_noise((), count, 9, rng)
    height = lc.HEIGHT[land.cover][land.segments]
    cover = land.cover[land.segments]
    for number in np.unique(land.cover):
        where = np.nonzero(cover == number)
        x, y = axis[where[1]], axis[where[0]]
        record = lc.COVERS[number]
        if record.kind == "forest":
            light, dome = _crowns(x, y, record.spacing, rng)
            shade[where] *= light
            height[where] *= dome
        elif record.kind == "field" and record.spacing:
            # Rows along the field, and the wheel marks of its tractor every 14 m.
            across = rotate(x, y, land.angle)[0] + np.float32(rng.uniform(0.0, 20.0))
            strength = 0.16 if record.spacing > 3.0 else 0.07
            rows = 1.0 + np.float32(strength) * np.sin(np.float32(2 * np.pi) * across / np.float32(record.spacing))
            shade[where] *= np.where(np.mod(across, 14.0) < 0.9, 0.75 * rows, rows).astype(np.float32)
        elif record.name == "tiled roof":
            # One side of a roof lies in the light, the other does not.
            ridge = np.sin(2 * np.pi * rotate(x, y, land.angle + 0.3)[0] / 9.0)
            shade[where] *= np.where(ridge > 0, 1.18, 0.8).astype(np.float32)
    return shade, height


def _crowns(x: np.ndarray, y: np.ndarray, spacing: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns brightness and relative height of a stand of trees about `spacing` metres apart, at the given points."""
    column, row = x / np.float32(spacing) + 1.0, y / np.float32(spacing) + 1.0
    size = int(max(column.max(), row.max())) + 3
    jitter = rng.uniform(0.25, 0.75, (2, size, size)).astype(np.float32)
    tone = np.exp(rng.normal(0.0, 0.13, (size, size))).astype(np.float32)
    tall = rng.uniform(0.8, 1.1, (size, size)).astype(np.float32)
    first = np.floor(column - 0.5).astype(np.int64), np.floor(row - 0.5).astype(np.int64)
    nearest = np.full(x.shape, np.inf, np.float32)
    east, south, tree = np.zeros_like(nearest), np.zeros_like(nearest), np.zeros(x.shape, np.int64)
    for down in (0, 1):
        for right in (0, 1):  # with this jitter, the nearest tree stands in one of the four nearest squares
            i, j = first[1] + down, first[0] + right
            dx, dy = column - (j + jitter[0, i, j]), row - (i + jitter[1, i, j])
            distance = dx * dx + dy * dy
            closer = distance < nearest
            nearest = np.where(closer, distance, nearest)
            east, south = np.where(closer, dx, east), np.where(closer, dy, south)
            tree = np.where(closer, i * size + j, tree)
    dome = np.clip(1.0 - 1.6 * nearest, 0.0, 1.0)
    lit = np.clip(1.0 - 0.75 * (east * np.float32(SUN[0]) + south * np.float32(SUN[1])), 0.4, 1.6)
    light = (0.45 + 0.75 * np.sqrt(dome)) * lit * tone.ravel()[tree]
    return light.astype(np.float32), (0.35 + 0.65 * dome) * tall.ravel()[tree]


def _shadows(height: Float[np.ndarray, "n n"], metres: float) -> np.ndarray:
    """Returns the light on the ground: 1, or 0.5 in the shadow of something taller (sun 45 degrees high)."""
    dark = np.zeros(height.shape, np.float32)
    for away in np.linspace(1.5, 12.0, 8).tolist():  # metres to what casts it
        down, right = round(-SUN[1] * away / metres), round(SUN[0] * away / metres)
        # At 45 degrees, a shadow is as long as its caster is tall.
        caster = height[down:, : len(height) - right] - np.float32(away)
        target = np.s_[: len(height) - down, right:]
        dark[target] = np.maximum(dark[target], np.clip(0.5 * (caster - height[target]), 0.0, 1.0))
    return 1.0 - 0.5 * dark
