"""Counts of values in order-preserving bins, from which percentiles of any amount of data follow.

Integers of up to 16 bits have a bin for each value, so that their percentiles are exact. Other numbers go, as float32,
to the bin of their 16 leading bits (sign, exponent and 7 bits of the fraction): a percentile is then off by at most
1/256 of its own value. Counts are whole numbers, and their sums do not depend on the order.
"""

import numpy as np
from jaxtyping import Float64, Int64, Num

RELATIVE_ERROR = 1 / 256  # of the percentiles of floats: half a bin's width over its smallest value


def is_exact(dtype: np.dtype) -> bool:
    """Whether each value of a dtype has its own bin."""
    return dtype.kind in "iu" and dtype.itemsize <= 2


def num_bins(dtype: np.dtype) -> int:
    """Bins that values of a dtype may fall into."""
    return 256 if dtype.kind in "iu" and dtype.itemsize == 1 else 65536


def bins_of(values: Num[np.ndarray, "*axes"]) -> Int64[np.ndarray, "*axes"]:
    """The bin of each finite value; larger values never have smaller bins."""
    if is_exact(values.dtype):
        return values.astype(np.int64) - np.iinfo(values.dtype).min
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).reshape(values.shape)
    negative = bits >> 31 == 1
    return (np.where(negative, ~bits, bits | np.uint32(1 << 31)) >> 16).astype(np.int64)


def bin_values(dtype: np.dtype) -> Float64[np.ndarray, "bins"]:
    """The value of each bin: the value itself, or the middle of the bin's range; NaN where no number falls."""
    bins = np.arange(num_bins(dtype))
    if is_exact(dtype):
        return bins.astype(np.float64) + np.iinfo(dtype).min
    ends = (bins.astype(np.uint32) << 16)[:, None] + np.array([0, 0xFFFF], np.uint32)
    bits = np.where(bins[:, None] < 32768, ~ends, ends & np.uint32(0x7FFFFFFF))
    with np.errstate(invalid="ignore"):
        values = bits.astype(np.uint32).view(np.float32).astype(np.float64).mean(axis=1)
    return np.where(np.isfinite(values), values, np.nan)


def add_counts(counts: Int64[np.ndarray, "C bins"], band: int, bins: Int64[np.ndarray, "n"]) -> None:
    """Counts the bins of one band's values, in place."""
    if bins.size < counts.shape[1] // 8:  # few values: a whole row of counts would cost more than they do
        np.add.at(counts[band], bins, 1)
    else:
        counts[band] += np.bincount(bins, minlength=counts.shape[1])


def percentile(counts: Int64[np.ndarray, "bins"], values: Float64[np.ndarray, "bins"], percent: float) -> float:
    """A percentile, between neighbours in linear proportion as numpy takes it; NaN without a value."""
    total = int(counts.sum())
    if not total:
        return float("nan")
    below, share = divmod((total - 1) * percent / 100, 1.0)
    cumulative = np.cumsum(counts)
    low, high = (values[np.searchsorted(cumulative, min(rank, total - 1), side="right")] for rank in (below, below + 1))
    return float(low + (high - low) * share)
