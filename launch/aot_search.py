"""The largest batch that fits a slice: by compiling others, or by a line through what was compiled."""

from collections.abc import Callable, Sequence

from launch.aot_result import Measured
from launch.chips import Chip

SYSTEM_MEMORY = 2.0**28  # bytes of a TPU's memory that XLA leaves alone
NEAR = 1 / 16  # a largest batch is known well enough when so much more does not fit
MOST_TRIES = 6  # programs that the search for one compiles


def usable_memory(chip: Chip) -> float:
    """Bytes that a program may use."""
    return chip.memory - SYSTEM_MEMORY


def bounds(known: Sequence[Measured]) -> tuple[int, int | None]:
    """The largest batch that was seen to fit, 0 for none, and the smallest that was seen not to."""
    fits = max((one.batch_size for one in known if one.fits), default=0)
    return fits, min((one.batch_size for one in known if not one.fits), default=None)


def found(fits: int, fails: int | None, unit: int) -> bool:
    """Whether these bounds are as near to each other as anyone wants to know."""
    return fails is not None and fails - fits <= max(unit, NEAR * fits)


def search(measure: Callable[[int], Measured], first: Measured, unit: int, limit: float) -> tuple[int, int | None]:
    """The largest batch that fits and the smallest seen not to, multiples of `unit`: memory grows about linearly.

    Args:
      limit: bytes that a program may use.
    """
    tried = {first.batch_size: first}
    while True:
        fits, fails = bounds(list(tried.values()))
        if found(fits, fails, unit) or len(tried) >= MOST_TRIES:
            return fits, fails
        guess = between(fits, fails, unit, predicted(list(tried.values()), unit, limit))
        tried[guess] = measure(guess)


def between(fits: int, fails: int | None, unit: int, guess: int) -> int:
    """A guess, moved to where nobody has looked."""
    guess = max(fits + unit, guess)
    return guess if fails is None else min(guess, fails - unit)


def predicted(measured: Sequence[Measured], unit: int, limit: float) -> int:
    """The batch that just fits, by a line through the last two measurements, or through one and the state alone."""
    last = sorted(measured, key=lambda one: one.batch_size)[-2:]
    if len(last) == 1:
        slope = max(1.0, last[0].peak - last[0].state) / last[0].batch_size
    else:
        slope = max(1.0, last[1].peak - last[0].peak) / (last[1].batch_size - last[0].batch_size)
    room = last[0].batch_size + (limit - last[0].peak) / slope
    return max(unit, int(room // unit) * unit)
