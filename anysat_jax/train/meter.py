"""How fast a run is: tiles, FLOPs and waiting, of the steps during which nothing was compiled."""

import collections
import dataclasses
import time
from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from anysat_jax.chips import peak_flops
from anysat_jax.flops import step_flops
from anysat_jax.model.config import ModelConfig
from anysat_jax.train.mesh import batch_parts
from anysat_jax.train.programs import Signature, signature_of

WINDOW = 50  # steps that the latest speed is a mean over


class Throughput:
    """Seconds and tiles of the steps during which nothing was compiled."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._compiled = False
        self.latest = float("nan")  # tiles per second of the last lap

    def compiled(self) -> None:
        """Tells that the present lap holds a compilation, and does not count."""
        self._compiled = True

    def restart(self) -> None:
        """Begins the present lap anew: what it held until now was no training."""
        self._since = time.monotonic()

    def lap(self, tiles: int) -> tuple[int, float]:
        """Ends a lap. Returns its tiles and seconds, or zeros if it does not count."""
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        self.latest = tiles / max(seconds, 1e-9)
        counted = (0, 0.0) if self._compiled else (tiles, seconds)
        self._compiled = False
        return counted


@dataclasses.dataclass(frozen=True)
class Lap:
    """One step.

    Attributes:
      tiles, flops: of all devices.
      seconds: that it took.
      waited: of these, the host's waiting for a batch.
    """

    tiles: int
    flops: float
    seconds: float
    waited: float


class Meter:
    """The latest speed of a run; a watcher of its ledger."""

    def __init__(self, count_flops: Callable[[Any], float] = lambda fed: 0.0, peak: float | None = None):
        """Begins without a step.

        Args:
          count_flops: FLOPs of the step on what it is fed with; without it, give no peak either.
          peak: FLOP/s of all devices together; None where that, or the FLOPs, are not known.
        """
        self._count_flops, self._peak = count_flops, peak
        self._known: dict[Signature, float] = {}
        self._laps: collections.deque[Lap] = collections.deque(maxlen=WINDOW)

    def __call__(self, finished: Any) -> None:
        """Takes note of a finished step; not of one beside which a program was compiled."""
        if finished.seconds > 0:
            fed = finished.fed
            self.add(fed.batch.batch_size, self._flops(fed), finished.seconds, fed.waited)

    def add(self, tiles: int, flops: float, seconds: float, waited: float) -> None:
        """Takes note of what was computed on some tiles, see `Lap`."""
        self._laps.append(Lap(tiles, flops, seconds, waited))

    def values(self) -> dict[str, float | None]:
        """Over the latest steps; None before the first.

        "mfu" is the share of the devices' published rate that the step's FLOPs on paper make up. "input_wait_share" is
        the share of the time that the host waited for the next batch, which bounds the time that devices stood idle
        for it.
        """
        seconds = sum(lap.seconds for lap in self._laps)
        if not seconds:
            return dict.fromkeys(("tiles_per_second", "mfu", "input_wait_share"))
        return {
            "tiles_per_second": sum(lap.tiles for lap in self._laps) / seconds,
            "mfu": sum(lap.flops for lap in self._laps) / seconds / self._peak if self._peak else None,
            "input_wait_share": min(1.0, sum(lap.waited for lap in self._laps) / seconds),
        }

    def _flops(self, fed: Any) -> float:
        signature = signature_of(fed)
        if signature not in self._known:
            self._known[signature] = self._count_flops(fed)
        return self._known[signature]


def make_meter(config: ConfigDict, model: ModelConfig, mesh: Mesh) -> Meter:
    """The meter of a pretraining run on a mesh."""
    # Each part of a batch keeps to its own negatives.
    parts = config.accumulate * (batch_parts(mesh) if config.pretrain.negatives == "device" else 1)

    def count(fed: Any) -> float:
        return step_flops(model, fed.batch, fed.masks, mask_dates=config.pretrain.mask_dates, negative_parts=parts)

    return Meter(count, mesh_peak(mesh))


def mesh_peak(mesh: Mesh) -> float | None:
    """Published FLOP/s of all devices together; None where they are not known."""
    one = peak_flops(mesh.devices.flat[0].device_kind)
    return one * mesh.size if one else None
