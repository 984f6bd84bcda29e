"""Land covers of the generated landscapes: spectra, phenology and backscatter.

Numbers are typical of temperate Europe, rounded; they are meant to be plausible, not measured.
"""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Float

Kind = Literal["field", "forest", "town", "water"]
KINDS: tuple[Kind, ...] = ("field", "forest", "town", "water")

BANDS = ("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12")
"""Sentinel-2's names, in the order of every spectrum here."""

SPECTRA: dict[str, tuple[float, ...]] = {
    "soil": (0.070, 0.100, 0.130, 0.150, 0.180, 0.200, 0.220, 0.240, 0.310, 0.270),
    "litter": (0.050, 0.070, 0.090, 0.110, 0.140, 0.160, 0.180, 0.200, 0.240, 0.190),
    "straw": (0.090, 0.130, 0.180, 0.210, 0.240, 0.270, 0.300, 0.320, 0.370, 0.280),
    "cereal": (0.030, 0.065, 0.035, 0.090, 0.290, 0.390, 0.420, 0.440, 0.190, 0.090),
    "rape": (0.030, 0.075, 0.035, 0.100, 0.320, 0.410, 0.450, 0.460, 0.200, 0.095),
    "flower": (0.045, 0.175, 0.160, 0.220, 0.370, 0.420, 0.440, 0.450, 0.220, 0.110),
    "maize": (0.030, 0.060, 0.035, 0.095, 0.280, 0.370, 0.400, 0.420, 0.180, 0.080),
    "beet": (0.030, 0.075, 0.035, 0.100, 0.340, 0.450, 0.490, 0.510, 0.200, 0.090),
    "grass": (0.035, 0.075, 0.045, 0.110, 0.270, 0.330, 0.360, 0.380, 0.220, 0.110),
    "spruce": (0.020, 0.034, 0.022, 0.055, 0.160, 0.205, 0.225, 0.240, 0.105, 0.047),
    "pine": (0.025, 0.041, 0.034, 0.066, 0.160, 0.200, 0.220, 0.236, 0.135, 0.068),
    "larch": (0.022, 0.045, 0.026, 0.074, 0.205, 0.255, 0.280, 0.295, 0.132, 0.058),
    "beech": (0.021, 0.044, 0.022, 0.074, 0.265, 0.360, 0.392, 0.412, 0.170, 0.070),
    "oak": (0.022, 0.044, 0.026, 0.073, 0.225, 0.300, 0.328, 0.346, 0.168, 0.074),
    "birch": (0.026, 0.052, 0.030, 0.092, 0.250, 0.315, 0.340, 0.357, 0.150, 0.066),
    "copper": (0.030, 0.060, 0.085, 0.130, 0.200, 0.235, 0.260, 0.275, 0.200, 0.110),
    "gold": (0.035, 0.095, 0.110, 0.150, 0.220, 0.255, 0.275, 0.290, 0.170, 0.090),
    "tiles": (0.070, 0.090, 0.165, 0.180, 0.200, 0.210, 0.220, 0.230, 0.270, 0.250),
    "concrete": (0.150, 0.165, 0.175, 0.180, 0.185, 0.190, 0.195, 0.200, 0.230, 0.225),
    "asphalt": (0.085, 0.095, 0.100, 0.105, 0.110, 0.115, 0.120, 0.125, 0.150, 0.140),
    "water": (0.045, 0.045, 0.028, 0.022, 0.016, 0.014, 0.012, 0.011, 0.006, 0.005),
    "cloud": (0.720, 0.700, 0.700, 0.710, 0.720, 0.720, 0.730, 0.730, 0.480, 0.380),
    "haze": (1.000, 0.750, 0.550, 0.480, 0.430, 0.380, 0.330, 0.310, 0.100, 0.050),
}
"""Reflectance in [0, 1] in each of BANDS ("haze": relative to the blue band)."""


@dataclasses.dataclass(frozen=True)
class LandCover:
    """One cover of the ground."""

    name: str  # its name in labels
    kind: Kind  # the part of the landscape that it belongs to
    colour: str  # "#rrggbb" for maps
    ground: str  # spectrum seen between the plants, or the only one where nothing grows
    canopy: str  # spectrum of the closed green canopy
    green: tuple[float, float]  # green fraction of the ground in winter, and how much the season adds
    season: tuple[float, float]  # day of the year of half green-up and of half senescence
    pace: tuple[float, float]  # days that green-up and senescence take (scale of the logistic curve)
    # A spectrum that takes over for a while (flowers, ripe grain, autumn leaves), with its day, its width in days and
    # its largest share; "" for none.
    accent: tuple[str, float, float, float]
    # Backscatter in C band, (VV, VH) in dB, without green canopy and its change under full canopy.
    c_band: tuple[float, float, float, float]
    l_band: tuple[float, float]  # backscatter in L band, (HH, HV) in dB
    height: float  # above ground in metres
    spacing: float  # metres between tree crowns, rows of a field, or 0


_NEVER = (0.0, 0.0)
_YEAR = (100.0, 300.0)
_SLOW = (20.0, 20.0)
_PLAIN = ("", 0.0, 1.0, 0.0)

# fmt: off
COVERS: tuple[LandCover, ...] = (
    LandCover("wheat", "field", "#e6c229", "soil", "cereal", (0.18, 0.72), (95, 192), (11, 7), ("straw", 203, 14, 0.8),
              (-10.0, -18.0, -4.5, -1.5), (-15.5, -26.0), 0.8, 2.4),
    LandCover("barley", "field", "#d9ae5f", "soil", "cereal", (0.24, 0.66), (82, 172), (11, 7), ("straw", 182, 14, 0.8),
              (-10.0, -18.0, -3.0, -0.5), (-15.5, -26.0), 0.8, 2.4),
    LandCover("rapeseed", "field", "#f2f230", "soil", "rape", (0.35, 0.55), (75, 182), (12, 9), ("flower", 122, 9, .85),
              (-9.5, -17.0, 0.5, 3.5), (-15.0, -24.0), 1.2, 2.4),
    LandCover("maize", "field", "#f08a24", "soil", "maize", (0.05, 0.85), (168, 262), (9, 9), ("straw", 275, 12, 0.5),
              (-10.0, -18.5, 1.0, 3.5), (-15.0, -24.5), 2.0, 3.2),
    LandCover("sugar beet", "field", "#b5478c", "soil", "beet", (0.05, 0.85), (152, 298), (11, 8), _PLAIN,
              (-10.0, -18.5, 2.0, 3.0), (-14.5, -24.0), 0.5, 3.2),
    LandCover("grassland", "field", "#9bd770", "soil", "grass", (.50, .38), (85, 310), (16, 22), ("straw", 168, 11, .4),
              (-11.5, -18.5, 0.5, 1.0), (-16.0, -26.0), 0.2, 0.0),
    LandCover("spruce", "forest", "#0b3d2e", "litter", "spruce", (0.84, 0.08), (125, 300), _SLOW, _PLAIN,
              (-10.6, -16.0, 0.0, 0.4), (-9.4, -14.0), 22.0, 3.6),
    LandCover("pine", "forest", "#2d6a4f", "litter", "pine", (0.66, 0.20), (130, 295), _SLOW, _PLAIN,
              (-9.6, -15.6, 0.2, 0.6), (-8.4, -14.6), 19.0, 4.6),
    LandCover("larch", "forest", "#74a892", "litter", "larch", (0.30, 0.56), (100, 314), (7, 8), ("gold", 306, 10, .8),
              (-9.2, -14.4, -0.8, -0.4), (-8.8, -13.2), 21.0, 4.2),
    LandCover("beech", "forest", "#7a4b2a", "litter", "beech", (0.20, 0.72), (120, 292), (6, 9), ("copper", 291, 9, .6),
              (-8.2, -13.4, -1.4, -1.4), (-7.6, -12.7), 24.0, 7.2),
    LandCover("oak", "forest", "#a0522d", "litter", "oak", (0.22, 0.68), (137, 316), (7, 9), ("copper", 316, 10, 0.55),
              (-7.9, -13.6, -0.6, -0.7), (-7.3, -12.5), 20.0, 8.4),
    LandCover("birch", "forest", "#c9b79c", "litter", "birch", (0.24, 0.60), (103, 272), (6, 9), ("gold", 272, 9, 0.7),
              (-9.6, -15.2, -0.7, 0.2), (-8.8, -13.9), 16.0, 5.2),
    LandCover("tiled roof", "town", "#d7263d", "tiles", "tiles", _NEVER, _YEAR, _SLOW, _PLAIN,
              (-3.0, -11.5, 0.0, 0.0), (-3.5, -14.5), 7.0, 0.0),
    LandCover("flat roof", "town", "#b0b0b0", "concrete", "concrete", _NEVER, _YEAR, _SLOW, _PLAIN,
              (-3.5, -12.0, 0.0, 0.0), (-4.0, -15.0), 10.0, 0.0),
    LandCover("road", "town", "#5c5c5c", "asphalt", "asphalt", _NEVER, _YEAR, _SLOW, _PLAIN,
              (-13.0, -21.0, 0.0, 0.0), (-17.0, -28.0), 0.0, 0.0),
    LandCover("yard", "town", "#b9d8a0", "soil", "grass", (0.42, 0.38), (88, 308), _SLOW, _PLAIN,
              (-9.5, -16.5, 0.5, 0.5), (-12.0, -20.0), 0.3, 0.0),
    LandCover("water", "water", "#2274a5", "water", "water", _NEVER, _YEAR, _SLOW, _PLAIN,
              (-19.0, -27.0, 0.0, 0.0), (-23.0, -32.0), 0.0, 0.0),
)
"""Every cover; its position is its number in class maps."""
# fmt: on

COVER_INDEX: dict[str, int] = {cover.name: index for index, cover in enumerate(COVERS)}


def names_of(kind: Kind) -> tuple[str, ...]:
    """Returns the names of the covers of a kind, in the order of COVERS."""
    return tuple(cover.name for cover in COVERS if cover.kind == kind)


def _column(attribute: str) -> Float[np.ndarray, "covers ..."]:
    return np.array([getattr(cover, attribute) for cover in COVERS], np.float32)


GROUND: Float[np.ndarray, "covers 10"] = np.array([SPECTRA[cover.ground] for cover in COVERS], np.float32)
CANOPY: Float[np.ndarray, "covers 10"] = np.array([SPECTRA[cover.canopy] for cover in COVERS], np.float32)
# A cover without an accent has a share of 0 in ACCENT_CURVE; any spectrum will do for it.
ACCENT: Float[np.ndarray, "covers 10"] = np.array([SPECTRA[c.accent[0] or c.ground] for c in COVERS], np.float32)
ACCENT_CURVE: Float[np.ndarray, "covers 3"] = np.array([cover.accent[1:] for cover in COVERS], np.float32)
GREEN: Float[np.ndarray, "covers 2"] = _column("green")
SEASON: Float[np.ndarray, "covers 2"] = _column("season")
PACE: Float[np.ndarray, "covers 2"] = _column("pace")
C_BAND: Float[np.ndarray, "covers 4"] = _column("c_band")
L_BAND: Float[np.ndarray, "covers 2"] = _column("l_band")
HEIGHT: Float[np.ndarray, " covers"] = _column("height")
KIND: np.ndarray = np.array([KINDS.index(cover.kind) for cover in COVERS])
