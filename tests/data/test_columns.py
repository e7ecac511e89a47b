"""Columns of times: their unit is that of most, and a cell that holds none costs itself alone."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from labelfree.data.columns import seconds
from labelfree.data.events import LogOptions, read_log
from labelfree.data.recordings import ReadOptions, read_recordings
from labelfree.data.tables import open_rows
from labelfree.errors import LabelfreeError
from labelfree.modalities.table.columns import Wanted, encode, find_columns

DAYS = [f"2024-01-{day:02} 10:00:00" for day in range(1, 29)]


def times(values: list[object]) -> np.ndarray | None:
    return seconds(pa.chunked_array([pa.array(values)]))


@pytest.mark.parametrize(("odd", "read"), [(np.inf, np.nan), (999_999_999_999.0, 999_999_999_999.0), (None, np.nan)])
def test_one_odd_time_leaves_the_others_as_they_are(odd: float | None, read: float) -> None:
    np.testing.assert_array_equal(times([*range(49), odd]), [*range(49), read])  # type: ignore[arg-type]


def test_most_times_say_the_unit() -> None:
    np.testing.assert_allclose(times([1.7e12, 1.7e12 + 1000, 0.0]), [1.7e9, 1.7e9 + 1, 0])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cells", "read"),
    [
        (["2024-13-45 10:00:00", "1970-01-01 00:00:02", "1970-01-02"], [np.nan, 2, 86400]),
        (["1970-01-01T00:00:01.25Z", "1970-01-01T00:00:02Z", "soon", None], [1.25, 2, np.nan, np.nan]),
        (["0", "1.5", " 2e0 ", "soon"], [0, 1.5, 2, np.nan]),
    ],
)
def test_a_time_that_cannot_be_read_costs_itself_alone(cells: list[object], read: list[float]) -> None:
    np.testing.assert_array_equal(times(cells), read)  # type: ignore[arg-type]


def test_a_column_most_of_which_is_no_time_is_none() -> None:
    assert times(["soon", "later", "2024-01-01", "3"]) is None


def test_an_event_whose_time_cannot_be_read_is_left_out_and_listed() -> None:
    log = read_log(pa.table({"time": ["0", "1", "soon"], "from": list("abc"), "to": list("bca")}), LogOptions())
    assert log.time.tolist() == [0, 1]
    assert [(item.index, item.reason) for item in log.unreadable] == [(2, "no time in 'time'")]


def test_rows_of_a_series_without_a_time_are_counted() -> None:
    table = pa.table({"time": [*DAYS[:-1], "2024-13-45"], "x": np.linspace(0.5, 3, len(DAYS))})
    found = read_recordings(table, ReadOptions())
    assert found.facts["time"] == "'time', a step every 86400; 1 rows without one"


def test_one_unreadable_date_is_missing_where_a_table_is_read_again() -> None:
    found = find_columns(open_rows(pa.table({"when": [*DAYS[:-1], "?!"], "n": np.arange(28) % 5})), Wanted())
    column = found.columns[0]
    assert column.kind == "date"
    assert found.notes["when"] == "dates written as text, 1 of them unreadable"
    coded = encode(column, pa.chunked_array([[DAYS[0], "2024-13-45 10:00:00", DAYS[1]]]))
    assert np.isnan(coded).any(axis=1).tolist() == [False, True, False]
    with pytest.raises(LabelfreeError, match="Column 'when' holds string, not dates"):
        encode(column, pa.chunked_array([["soon", "later", DAYS[1]]]))
