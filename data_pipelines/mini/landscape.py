"""Generated landscapes: a map of land covers on one tile, and how each segment changes over the year.

A tile is cut into *segments* (a field, a forest stand, a lake, the roads of a town), each of one cover with its own
phenology, vigour and soil. Sensors never look at the segments' borders themselves but at the shares of the segments in
their pixels, so that every sensor sees the same ground: a border lies at the same metres in all of them.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from anysat_jax.sensors import whole_number
from data_pipelines.mini import land_cover as lc

TOWN_PARTS = ("tiled roof", "flat roof", "road", "yard")


@dataclasses.dataclass(frozen=True)
class Mix:
    """Composition of the landscapes of one dataset."""

    kinds: Mapping[lc.Kind, float]  # how likely each kind of land is to dominate a tile
    site_metres: float = 25.0  # typical distance between forest stands, lakes and settlements
    parcel_metres: float = 22.0  # typical width of a field; it is two to three times as long
    dominance: float = 0.6  # share of the dominant kind among a tile's sites
    species: tuple[int, int] = (1, 3)  # least and largest number of forest covers in one tile
    crops: tuple[int, int] = (2, 4)  # of field covers


@dataclasses.dataclass(frozen=True)
class Landscape:
    """The ground of one tile."""

    extent: float  # side of the tile in metres
    metres: float  # side of a pixel of the fine grid in metres
    segments: Int[np.ndarray, "n n"]  # number of the segment at each pixel of the fine grid, rows from north to south
    cover: Int[np.ndarray, " segments"]  # the cover of each segment (index into COVERS)
    shift: Float[np.ndarray, " segments"]  # by how many days each segment is late
    vigour: Float[np.ndarray, " segments"]  # how much of the season's green each segment reaches
    soil: Float[np.ndarray, " segments"]  # brightness of each segment's ground
    leaf: Float[np.ndarray, " segments"]  # brightness of each segment's canopy
    angle: float  # direction of the field rows in radians
    # what `shares` has computed, by pixel size
    _shares: dict[float, np.ndarray] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def shares(self, metres: float) -> Float[np.ndarray, "n n segments"]:
        """Returns the fractions of segments in the pixels of a grid of `metres`, a multiple of the fine grid's pixel.

        Raises:
          ValueError: the pixel is not a whole number of fine pixels, or the tile not a whole number of pixels.
        """
        if metres not in self._shares:
            size, factor = whole_number(self.extent / metres), whole_number(metres / self.metres)
            if not size or not factor:
                raise ValueError(
                    f"a pixel of {metres:g} m must be a whole number of fine pixels of {self.metres:g} m "
                    f"and divide the extent, {self.extent:g} m"
                )
            row, count = np.arange(len(self.segments)) // factor, len(self.cover)
            pixel = row[:, None] * size + row[None, :]
            # One bincount over (pixel, segment) pairs, as a one-hot map of the fine grid would take megabytes.
            flat = np.bincount((pixel * count + self.segments).ravel(), minlength=size * size * count)
            self._shares[metres] = (flat.reshape(size, size, count) / np.float32(factor * factor)).astype(np.float32)
        return self._shares[metres]

    def cover_shares(self, metres: float) -> Float[np.ndarray, "n n covers"]:
        """Returns the fraction of each cover in the pixels of a grid of `metres`."""
        return self.shares(metres) @ np.eye(len(lc.COVERS), dtype=np.float32)[self.cover]

    def green(self, days: Int[np.ndarray, " T"]) -> Float[np.ndarray, "T segments"]:
        """Returns the green fraction of each segment's ground on each day of the year: a double logistic curve."""
        day = days[:, None].astype(np.float32) - self.shift[None, :]
        base, rise = lc.GREEN[self.cover].T
        (start, end), (up, down) = lc.SEASON[self.cover].T, lc.PACE[self.cover].T
        # Rises at the start of the season and falls at its end; the product is near 1 between them.
        curve = _logistic((day - start[None, :]) / up[None, :]) * _logistic((end[None, :] - day) / down[None, :])
        return np.clip((base[None, :] + rise[None, :] * curve) * self.vigour[None, :], 0.0, 1.0)

    def reflectance(self, days: Int[np.ndarray, " T"]) -> Float[np.ndarray, "T segments 10"]:
        """Returns each segment's reflectance on each day in the bands of `land_cover.BANDS`, under a clear sky."""
        green = self.green(days)[:, :, None]
        ground = lc.GROUND[self.cover] * self.soil[:, None]
        canopy = lc.CANOPY[self.cover] * self.leaf[:, None]
        plain = green * canopy[None] + (1.0 - green) * ground[None]
        centre, width, most = lc.ACCENT_CURVE[self.cover].T
        day = days[:, None].astype(np.float32) - self.shift[None, :]
        # The accent takes the place of ground and canopy alike: ripe grain hides both.
        share = most[None, :] * np.exp(-0.5 * ((day - centre[None, :]) / width[None, :]) ** 2)
        return plain + share[:, :, None] * ((lc.ACCENT[self.cover] * self.leaf[:, None])[None] - plain)

    def majority(self, metres: float, groups: Int[np.ndarray, " covers"], least: float = 0.4) -> np.ndarray:
        """Returns the group of covers that fills most of each pixel, -1 if it fills less than `least` or has no number.

        The result is (n, n) int8; `groups` has the number of the group of each cover, -1 for none.
        """
        shares = self.cover_shares(metres)
        member = (groups[:, None] == np.arange(groups.max() + 1)[None, :]).astype(np.float32)
        totals = shares @ member
        return np.where(totals.max(-1) >= least, totals.argmax(-1), -1).astype(np.int8)


def make_landscape(extent: float, metres: float, mix: Mix, rng: np.random.Generator) -> Landscape:
    """Draws the landscape of one tile, of `extent` metres in fine pixels of `metres`; `rng` alone decides what it is.

    Raises:
      ValueError: the extent is not a whole number of fine pixels.
    """
    count = whole_number(extent / metres)
    if count is None:
        raise ValueError(f"an extent of {extent:g} m is not a whole number of fine pixels of {metres:g} m")
    axis = (np.arange(count, dtype=np.float32) + 0.5) * np.float32(metres)
    x, y = np.broadcast_to(axis[None, :], (count, count)), np.broadcast_to(axis[:, None], (count, count))
    angle = float(rng.uniform(0.0, np.pi))
    site, site_cover = _sites(x, y, extent, mix, rng)
    parcel, num_parcels = _parcels(x, y, angle, extent, mix, rng)
    town = _town(x, y, angle + 0.3, rng)
    crops = _choose(lc.names_of("field"), mix.crops, rng)
    cover = np.concatenate([site_cover, [lc.COVER_INDEX[p] for p in TOWN_PARTS], rng.choice(crops, num_parcels)])
    kind = lc.KIND[site_cover][site]
    first_parcel = len(site_cover) + len(TOWN_PARTS)
    segments = np.where(kind == lc.KINDS.index("field"), first_parcel + parcel, site)
    segments = np.where(kind == lc.KINDS.index("town"), len(site_cover) + town, segments)
    # Only segments with a pixel are kept, numbered without gaps: sensors carry an axis for each of them.
    used = np.bincount(segments.ravel(), minlength=len(cover)) > 0
    segments = (np.cumsum(used) - 1)[segments]
    return _grow(extent, metres, segments.astype(np.int32), cover[used], angle, rng)


def _grow(
    extent: float, metres: float, segments: np.ndarray, cover: np.ndarray, angle: float, rng: np.random.Generator
) -> Landscape:
    """Gives each segment its own phenology, vigour and brightness, around those of the tile."""
    size = len(cover)

    def draw(tile: float, own: float) -> np.ndarray:
        return (rng.normal(0.0, tile) + rng.normal(0.0, own, size)).astype(np.float32)

    return Landscape(
        extent=extent,
        metres=metres,
        segments=segments,
        cover=cover.astype(np.int32),
        shift=draw(5.0, 3.0),
        vigour=np.clip(1.0 + draw(0.04, 0.04), 0.8, 1.15),
        soil=np.exp(draw(0.2, 0.12)),
        leaf=np.exp(draw(0.06, 0.04)),
        angle=angle,
    )


def _logistic(z: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * z))


def _choose(names: tuple[str, ...], limits: tuple[int, int], rng: np.random.Generator) -> Int[np.ndarray, " chosen"]:
    """Draws numbers of some of the named covers."""
    count = min(int(rng.integers(limits[0], limits[1] + 1)), len(names))
    return np.array([lc.COVER_INDEX[name] for name in rng.permutation(names)[:count]])


def smooth_noise(shape: tuple[int, ...], size: int, knots: int, rng: np.random.Generator) -> np.ndarray:
    """Draws smooth float32 fields (*shape, size, size) of unit variance or so: noise on a coarse grid, interpolated."""
    position = np.linspace(0.0, knots - 1.0, size, dtype=np.float32)
    weights = np.clip(1.0 - np.abs(position[:, None] - np.arange(knots, dtype=np.float32)[None, :]), 0.0, 1.0)
    weights = weights * weights * (3.0 - 2.0 * weights)  # smoothstep: no kinks at the knots
    coarse = rng.standard_normal((*shape, knots, knots), dtype=np.float32)
    return weights @ coarse @ weights.T


def _sites(
    x: np.ndarray, y: np.ndarray, extent: float, mix: Mix, rng: np.random.Generator
) -> tuple[Int[np.ndarray, "n n"], Int[np.ndarray, " cells"]]:
    """Cuts the tile into organic cells (a warped Voronoi diagram) and chooses the cover of each.

    Returns (n, n) number of the cell, and (cells,) its cover; the cells of fields and towns are cut further elsewhere.
    """
    margin = 0.5 * mix.site_metres
    count = max(4, round(((extent + 2 * margin) / mix.site_metres) ** 2))
    points = rng.uniform(-margin, extent + margin, (count, 2)).astype(np.float32)
    warp = 0.15 * mix.site_metres * smooth_noise((2,), x.shape[0], 7, rng)
    px, py = (x + warp[0]).ravel(), (y + warp[1]).ravel()
    # |p - q|^2 without |p|^2, which changes no argmin
    distance = (points**2).sum(1)[None, :] - 2.0 * (px[:, None] * points[None, :, 0] + py[:, None] * points[None, :, 1])
    site = distance.argmin(1).reshape(x.shape)
    weights = np.array([mix.kinds.get(kind, 0.0) for kind in lc.KINDS])
    weights = weights / weights.sum()
    main = rng.choice(len(lc.KINDS), p=weights)
    kind = np.where(rng.random(count) < mix.dominance, main, rng.choice(len(lc.KINDS), count, p=weights))
    species = _choose(lc.names_of("forest"), mix.species, rng)
    likely = np.geomspace(1.0, 0.3 ** (len(species) - 1), len(species))  # the first one dominates
    stand = rng.choice(species, count, p=likely / likely.sum())
    stand = np.where(kind == lc.KINDS.index("forest"), stand, lc.COVER_INDEX["grassland"])
    stand = np.where(kind == lc.KINDS.index("town"), lc.COVER_INDEX["yard"], stand)
    stand = np.where(kind == lc.KINDS.index("water"), lc.COVER_INDEX["water"], stand)
    first = (stand[:, None] == stand[None, :]).argmax(1)  # neighbouring cells of one cover grow together
    return first[site], stand


def rotate(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns coordinates across and along the direction `angle`."""
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def _parcels(
    x: np.ndarray, y: np.ndarray, angle: float, extent: float, mix: Mix, rng: np.random.Generator
) -> tuple[Int[np.ndarray, "n n"], int]:
    """Cuts the tile into rotated strips of varying width, and each strip into fields of its own length.

    Returns (n, n) number of the field, and how many there are.
    """
    across, along = rotate(x, y, angle)
    # Beyond the tile's corners, whichever way the strips run.
    reach = 1.5 * extent
    strips = int(2 * reach / (0.6 * mix.parcel_metres)) + 1
    edges = -reach + np.cumsum(rng.uniform(0.6, 1.4, strips) * mix.parcel_metres)
    # searchsorted, as the strips are of different widths.
    strip = np.searchsorted(edges, across.ravel()).reshape(x.shape)
    length = rng.uniform(1.6, 3.2, strips + 1).astype(np.float32) * mix.parcel_metres
    offset = rng.uniform(0.0, 1.0, strips + 1).astype(np.float32)
    per_strip = int(2 * reach / (1.6 * mix.parcel_metres)) + 3
    field = np.floor((along + np.float32(reach)) / length[strip] + offset[strip]).astype(np.int64)
    return strip * per_strip + field, (strips + 1) * per_strip


def _town(x: np.ndarray, y: np.ndarray, angle: float, rng: np.random.Generator) -> Int[np.ndarray, "n n"]:
    """Returns the index into TOWN_PARTS of each pixel: blocks of plots between roads, a house on most plots."""
    across, along = rotate(x, y, angle)
    # Far from 0, where a block would always begin at the tile's corner.
    across, along = across + rng.uniform(200.0, 300.0), along + rng.uniform(200.0, 300.0)
    plot = (rng.uniform(11.0, 15.0), rng.uniform(13.0, 18.0))
    (road_a, row, local_a), (road_b, column, local_b) = _plots(across, plot[0], 2), _plots(along, plot[1], 3)
    # A hash of the plot: it draws one of 64 houses without a table of plots.
    number = np.mod(row * 37 + column * 11, 64)
    half = rng.uniform(0.24, 0.42, (64, 2)).astype(np.float32)
    house = (np.abs(local_a) < half[number, 0]) & (np.abs(local_b) < half[number, 1])
    roof = (rng.random(64) < 0.35)[number].astype(np.int64)
    part = np.where(house & (rng.random(64) < 0.85)[number], roof, TOWN_PARTS.index("yard"))
    return np.where(road_a | road_b, TOWN_PARTS.index("road"), part)


def _plots(
    position: np.ndarray, plot: float, plots: int, road: float = 5.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns along one axis whether there is a road, the plot's number, and the position within it in [-0.5, 0.5]."""
    block = plots * plot + road
    inside = np.mod(position, block) - road
    place = np.clip(inside, 0.0, None) / plot
    row = np.floor(place).astype(np.int64) + plots * np.floor(position / block).astype(np.int64)
    return inside < 0.0, row, np.mod(place, 1.0) - 0.5
