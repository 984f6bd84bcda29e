"""From the files of a sensor to its fields in an example."""

import dataclasses
import datetime
import functools

import numpy as np

from data_pipelines.card import Example
from data_pipelines.dates import day_fields, in_time_order, parse_day
from data_pipelines.folder.arrays import Read, to_sensor
from data_pipelines.folder.description import SensorFiles


def with_bands(files: SensorFiles, read: Read) -> Read:
    """The values as (bands, H, W) or, of a stacked file, (dates, bands, H, W).

    Raises:
      ValueError: the file has other bands than described.
    """
    values, count = read.values, len(files.bands)
    stacked = files.record.has_dates and not files.files.has_date
    if values.ndim == 3 and stacked and len(values) % count == 0:  # a GeoTIFF of all bands of all dates
        values = values.reshape(-1, count, *values.shape[1:])
    axes = "(dates, bands, height, width)" if stacked else "(bands, height, width)"
    if values.ndim != (4 if stacked else 3) or values.shape[-3] != count:
        raise ValueError(
            f"{read.path} has the shape {read.values.shape}; expected {axes} with {count} bands: "
            f"{', '.join(files.bands)}"
        )
    return dataclasses.replace(read, values=values)


def days_of_array(read: Read, name: str) -> list[datetime.date]:
    """The days in an array of an npz file: numbers yyyymmdd, texts, or numpy's own days.

    Raises:
      ValueError: there is no such array, or a day cannot be read.
    """
    if name not in read.others:
        raise ValueError(f"{read.path} has the arrays {sorted(read.others)}, not {name!r}, which is to hold the dates")
    array = read.others[name]
    return [parse_day(str(day), f"{read.path}: {name!r}") for day in np.ravel(array)]


def sensor_fields(files: SensorFiles, reads: list[Read], days: list[datetime.date]) -> Example:
    """Values, mask, dates and years of a sensor; dates without a valid pixel are left out.

    Raises:
      ValueError: there are more or fewer days than dates, a value does not fit the dtype, or no pixel is valid.
    """
    name = files.record.name
    if not files.record.has_dates:
        values, mask = to_sensor(files, reads[0], reads[0].values)
        return {name: values, f"{name}_mask": mask}
    parts = [to_sensor(files, read, read.values) for read in reads]
    join = np.stack if files.files.has_date else functools.partial(np.concatenate, axis=0)
    values, mask = (join(arrays) for arrays in zip(*parts, strict=True))
    if len(values) != len(days):
        raise ValueError(f"{reads[0].path} has {len(values)} dates, but {files.dates} tells {len(days)} of them")
    seen = [i for i in in_time_order(days) if mask[i].any()]
    if not seen:
        raise ValueError(f"{reads[0].path}: no date of {name!r} has a valid pixel (nodata is {files.nodata})")
    return {name: values[seen], f"{name}_mask": mask[seen], **day_fields(name, [days[i] for i in seen])}
