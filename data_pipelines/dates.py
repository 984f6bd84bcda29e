"""Dates of acquisition as examples keep them: day of the year from 0, and the year beside it.

All are calendar days in UTC, as satellites' product names give them, whatever the machine's time zone.
"""

import datetime
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, Int16, Int32, Shaped

# In ASCII: otherwise digits of other scripts would count, too.
_COMPACT_DAY = re.compile(r"(?P<year>\d{4})(?P<month>\d\d)(?P<day>\d\d)", re.ASCII)
_SEPARATED_DAY = re.compile(r"(?P<year>\d{4})([-/])(?P<month>\d{1,2})\2(?P<day>\d{1,2})(?!\d)", re.ASCII)


def parse_day(text: str, where: str) -> datetime.date:
    """Parses the day of a text that starts with yyyymmdd, yyyy-mm-dd or yyyy/mm/dd, also yyyy-m-d.

    Raises:
      ValueError: it is not such a day; the message names `where`, file and field.
    """
    match = _COMPACT_DAY.match(text.strip()) or _SEPARATED_DAY.match(text.strip())
    try:
        year, month, day = map(int, match.group("year", "month", "day")) if match else (0, 0, 0)
        return datetime.date(year, month, day)
    except ValueError:
        raise ValueError(f"{where}: {text!r} is not a day; expected yyyymmdd or yyyy-mm-dd") from None


def day_in_name(name: str, field: int, where: str, example: str) -> datetime.date:
    """Parses the day in a product's name: in its field of that number, from 0, of those that "_" separates.

    It is 2 in "S2A_MSIL2A_20200102T102421_N0213". For the error, `where` is file and field, `example` a right name.

    Raises:
      ValueError: there is no day in that field.
    """
    try:
        return parse_day(name.split("_")[field][:8], where)
    except (IndexError, ValueError):
        raise ValueError(f"{where}: {name!r} does not name a day; expected a name like {example}") from None


def parse_day_of_year(text: str, where: str) -> datetime.date:
    """Parses the day of a text yyyyddd ("2018285"), a year and a day of it counted from 1, as HLS names have it.

    Raises:
      ValueError: it is not such a day, or the year has fewer days; the message names `where`, file or field.
    """
    if not (len(text) == 7 and text.isascii() and text.isdigit() and int(text[:4])):
        raise ValueError(f"{where}: {text!r} is not a day; expected yyyyddd")
    day = datetime.date(int(text[:4]), 1, 1).toordinal() + int(text[4:]) - 1
    if not 1 <= int(text[4:]) <= 366 or datetime.date.fromordinal(day).year != int(text[:4]):
        raise ValueError(f"{where}: {text!r} is not a day; the year {text[:4]} has no day {int(text[4:])}")
    return datetime.date.fromordinal(day)


def day_fields(sensor: str, days: Sequence[datetime.date]) -> dict[str, Shaped[np.ndarray, "T"]]:
    """Returns `<sensor>_dates`, days of the year from 0, and `<sensor>_years`, of days in time order."""
    return {
        f"{sensor}_dates": np.asarray([day.timetuple().tm_yday - 1 for day in days], np.int32),
        f"{sensor}_years": np.asarray([day.year for day in days], np.int16),
    }


def observed_series(
    sensor: str,
    values: Shaped[np.ndarray, "T C H W"],
    mask: Bool[np.ndarray, "T M H W"],
    days: Sequence[datetime.date],
    cloud: Shaped[np.ndarray, "T 1 H W"] | None = None,
) -> dict[str, Shaped[np.ndarray, "T *axes"]]:
    """Returns a sensor's fields of an example in time order, without dates on which nothing was observed.

    Args:
      mask: True where a pixel was observed; M is 1 or C.
      cloud: percent of cloud, where the archive has it.

    Returns:
      `<sensor>`, `<sensor>_mask`, `<sensor>_dates`, `<sensor>_years`, `<sensor>_cloud` if given, and `<sensor>_empty`,
      the number of dates left out, if any; {} if no date has an observation.
    """
    seen = [i for i in in_time_order(days) if mask[i].any()]
    if not seen:
        return {}
    fields = {sensor: values[seen], f"{sensor}_mask": mask[seen]}
    if cloud is not None:
        fields[f"{sensor}_cloud"] = cloud[seen]
    if len(seen) < len(days):
        fields[f"{sensor}_empty"] = np.int32(len(days) - len(seen))
    return fields | day_fields(sensor, [days[i] for i in seen])


def in_time_order(days: Sequence[datetime.date]) -> Int[np.ndarray, "T"]:
    """Returns the positions that sort days; equal days keep their order."""
    # Python's sort is stable; numpy's default is not, and there are two passes on some days.
    return np.asarray(sorted(range(len(days)), key=days.__getitem__), np.int64)


def from_epoch_milliseconds(stamp: float) -> datetime.date:
    """Returns the day in UTC of milliseconds since 1970."""
    # fromtimestamp would need a time zone, and fails before 1970 on some systems.
    return datetime.date(1970, 1, 1) + datetime.timedelta(milliseconds=float(stamp))


def days_since(origin: str, dates: Int32[np.ndarray, "T"], years: Int16[np.ndarray, "T"]) -> Int32[np.ndarray, "T"]:
    """Returns the days from `origin` ("yyyy-mm-dd") to dates given by day of the year from 0 and year."""
    start = datetime.date.fromisoformat(origin)
    return np.asarray([(day - start).days for day in calendar_days(dates, years)], np.int32)


def calendar_days(dates: Int32[np.ndarray, "T"], years: Int16[np.ndarray, "T"]) -> list[datetime.date]:
    """Returns the days of dates given by day of the year from 0 and year, the inverse of `day_fields`."""
    januaries = [datetime.date(int(year), 1, 1) for year in years]
    return [january + datetime.timedelta(days=int(day)) for january, day in zip(januaries, dates, strict=True)]
