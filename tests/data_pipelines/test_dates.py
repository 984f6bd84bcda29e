"""Days of the year, across years and time zones."""

import datetime
import time

import numpy as np
import pytest

from data_pipelines.dates import (
    calendar_days,
    day_fields,
    days_since,
    from_epoch_milliseconds,
    in_time_order,
    parse_day,
    parse_day_of_year,
)

DAYS = [datetime.date(2018, 12, 31), datetime.date(2019, 1, 1), datetime.date(2020, 12, 31)]


@pytest.mark.parametrize("text", ["20190917", "20190917T101031", "2019-09-17", "2019/09/17", " 2019-09-17T10:10:31Z"])
def test_days_are_read_however_they_are_written(text):
    assert parse_day(text, "here") == datetime.date(2019, 9, 17)


@pytest.mark.parametrize("text", ["2019-1-11", "2019/1/11", "2019-01-11", "20190111"])
def test_months_and_days_of_one_digit_keep_their_place(text):
    assert parse_day(text, "here") == datetime.date(2019, 1, 11)


@pytest.mark.parametrize("text", ["", "2019", "2019111", "2019-01/11", "20191345", "17.09.2019", "no day", "²0190111"])
def test_what_is_no_day_is_refused_with_its_place(text):
    with pytest.raises(ValueError, match=r"dates\.csv, line 3: .* is not a day; expected yyyymmdd"):
        parse_day(text, "dates.csv, line 3")


def test_days_of_a_year_count_from_one_and_know_leap_years():
    assert parse_day_of_year("2018285", "here") == datetime.date(2018, 10, 12)
    assert parse_day_of_year("2020366", "here") == datetime.date(2020, 12, 31)


@pytest.mark.parametrize(
    "text", ["", "2018", "20181012", "2018x85", "0000001", "2018000", "2018367", "2019366", "²018285"]
)
def test_what_is_no_day_of_a_year_is_refused_with_its_place(text):
    with pytest.raises(ValueError, match="a_merged.tif: .* is not a day"):
        parse_day_of_year(text, "a_merged.tif")


def test_days_count_from_zero_and_years_are_kept():
    fields = day_fields("s2", DAYS)
    assert fields["s2_dates"].tolist() == [364, 0, 365] and fields["s2_dates"].dtype == np.int32
    assert fields["s2_years"].tolist() == [2018, 2019, 2020] and fields["s2_years"].dtype == np.int16


def test_day_and_year_give_the_calendar_day():
    fields = day_fields("s2", DAYS)
    assert calendar_days(fields["s2_dates"], fields["s2_years"]) == DAYS


def test_days_since_an_origin_run_on_over_the_new_year():
    fields = day_fields("s2", DAYS)
    since = days_since("2018-09-01", fields["s2_dates"], fields["s2_years"])
    assert since.tolist() == [121, 122, 852] and since.dtype == np.int32


def test_time_order_keeps_equal_days_as_they_came():
    assert in_time_order([DAYS[1], DAYS[0], DAYS[1], DAYS[0]]).tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Auckland", "America/Los_Angeles"])
def test_milliseconds_are_days_in_utc_wherever_the_machine_stands(zone, monkeypatch):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    last, first = 1_577_836_799_999, 1_577_836_800_000  # around the midnight that began 2020
    try:
        assert [from_epoch_milliseconds(stamp) for stamp in (last, first)] == [
            datetime.date(2019, 12, 31),
            datetime.date(2020, 1, 1),
        ]
    finally:
        monkeypatch.undo()
        time.tzset()
