"""Columns of times: their unit is that of most, and a cell that holds none costs itself alone."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from labelfree.data import written
from labelfree.data.columns import choose_channels, codes, distinct, order_of_dates, plain, seconds
from labelfree.data.events import LogOptions, read_log
from labelfree.data.recordings import ReadOptions, majority, read_recordings
from labelfree.data.tables import open_rows
from labelfree.data.written import HEAD
from labelfree.errors import LabelfreeError
from labelfree.modalities.table.columns import Wanted, encode, find_columns
from labelfree.training.plan import recognise

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


@pytest.mark.parametrize("days", [[20240131, 20240201], [20240131.0, np.nan, 20240201.0], ["20240131", "20240201"]])
def test_whole_numbers_of_eight_digits_are_dates_where_all_are(days: list[object]) -> None:
    found = times(days)
    assert found is not None
    assert found[[0, -1]].tolist() == [1706659200, 1706745600]
    for odd in (20240230, 20241301, 20240100, 18991231, 21010101):
        np.testing.assert_array_equal(times([20240131, odd]), [20240131, odd])  # type: ignore[arg-type]


def test_a_column_most_of_which_is_no_time_is_none() -> None:
    assert times(["soon", "later", "2024-01-01", "3"]) is None


def test_an_event_whose_time_cannot_be_read_is_left_out_and_listed() -> None:
    log = read_log(pa.table({"time": ["0", "1", "soon"], "from": list("abc"), "to": list("bca")}), LogOptions())
    assert log.time.tolist() == [0, 1]
    assert [(item.index, item.reason) for item in log.unreadable] == [(2, "no time in 'time'")]


def test_rows_of_a_series_without_a_time_are_counted() -> None:
    table = pa.table({"time": [*DAYS[:-1], "2024-13-45"], "x": np.linspace(0.5, 3, len(DAYS))})
    found = read_recordings(table, ReadOptions())
    assert found.facts["time"] == "'time', a step every 86400 s; 1 row without one"


def test_one_unreadable_date_is_missing_where_a_table_is_read_again() -> None:
    found = find_columns(open_rows(pa.table({"when": [*DAYS[:-1], "?!"], "n": np.arange(28) % 5})), Wanted())
    column = found.columns[0]
    assert column.kind == "date"
    assert found.notes["when"] == "dates written as text, 1 of them unreadable"
    coded = encode(column, pa.chunked_array([[DAYS[0], "2024-13-45 10:00:00", DAYS[1]]]))
    assert np.isnan(coded).any(axis=1).tolist() == [False, True, False]
    with pytest.raises(
        LabelfreeError, match=r"'when' holds string, most of which are no dates\. Give dates, or train with"
    ):
        encode(column, pa.chunked_array([["soon", "later", DAYS[1]]]))


ZONED = {
    "2024-01-01T10:00:00+02:00": 8.0,
    "2024-01-01T10:00:00+0200": 8.0,
    "2024-01-01 10:00:00-03": 13.0,
    "2024-01-01T10:00Z": 10.0,
    "2024-01-01 10:00:00 UTC": 10.0,
    "2024-01-01T10:00:36.5+00:00": 10.0 + 36.5 / 3600,
    "2024-01-01T10:00:36.5-05:30": 15.5 + 36.5 / 3600,
    "2024/01/01 10:00": 10.0,
    "01.01.2024 10:00": 10.0,
    "01.01.2024": 0.0,
    "01/01/2024 10:00:00": 10.0,
    "1-1-2024": 0.0,
    "1/1/2024 3:45 PM": 15.75,
    "01/01/2024 12:00:36 am": 0.01,
    "1/1/2024 12:30 p.m.": 12.5,
    "2024-01-01 9:15AM": 9.25,
}


@pytest.mark.parametrize("cell", ZONED)
def test_dates_are_read_in_the_forms_of_several_countries_and_zones(cell: str) -> None:
    start = np.datetime64("2024-01-01", "s").astype(float)
    np.testing.assert_allclose(times([cell, None]), [start + 3600 * ZONED[cell], np.nan])  # type: ignore[arg-type]


def test_a_year_of_two_digits_is_not_guessed() -> None:
    assert times(["1/31/24", "2/1/24"]) is None


@pytest.mark.parametrize(
    ("cells", "last", "order"),
    [
        (["01/02/2024", "01/31/2024"], "2024-01-31", "month/day/year"),
        (["01/02/2024", "31/01/2024"], "2024-01-31", "day/month/year"),
        (["01/02/2024", "03/04/2024"], "2024-03-04", "month/day/year (the days do not tell)"),
        (["01/02/2024"] * HEAD + ["13/02/2024"] * 2, "2024-02-13", "day/month/year"),
        (["2024-01-02", "2024-01-03"], "2024-01-03", ""),
    ],
)
def test_whether_the_month_comes_first_is_told_by_the_whole_column(cells: list[str], last: str, order: str) -> None:
    column = pa.chunked_array([cells])
    found = seconds(column)
    assert found is not None
    assert found[-1] == np.datetime64(last, "s").astype(float)
    assert order_of_dates(column) == order


@pytest.mark.parametrize(
    ("cells", "read"),
    [
        (["1,234.56", "12", "-1,000"], [1234.56, 12, -1000]),
        (["$12.50", "-$3", " 4 € ", "+5"], [12.5, -3, 4, 5]),
        (["12.5%", "-3 %", "0"], [12.5, -3, 0]),
        (["1", "02", "error"], [1, 2, None]),
        (["1,5", "1,234", "2"], None),
        (["1 2", "3 4", "5"], None),
        ([None, "a", "3"], [None, None, 3]),
        (["1e3", ".5", "7."], [1000, 0.5, 7]),
    ],
)
def test_numbers_written_as_text_are_read_and_what_is_none_is_missing(
    cells: list[str | None], read: list[float | None] | None
) -> None:
    found = written.numbers(pa.chunked_array([pa.array(cells, pa.string())]))
    assert (found if found is None else found.to_pylist()) == read


PRICES = [f"{number * 37 % 1000}.5" for number in range(200)]


@pytest.mark.parametrize("cell", ["error", "1,234.50", "$12.50"])
def test_one_odd_cell_leaves_a_column_of_numbers_what_it_is(cell: str) -> None:
    """In a table, a series and events; an encoder that was trained reads it in a new source too."""
    cells = [*PRICES[:-1], cell]
    table = pa.table({"price": cells, "n": np.arange(200) % 7})
    found = find_columns(open_rows(table), Wanted())
    assert [column.kind for column in found.columns] == ["number", "number"]
    note = "numbers written as text" + (", 1 of them unreadable" if cell == "error" else "")
    assert found.notes == {"price": note}
    again = encode(found.columns[0], pa.chunked_array([["1.5", cell, "2.5"]]))[:, 0]
    assert again[[0, 2]].tolist() == [1.5, 2.5]
    assert np.isnan(again[1]) == (cell == "error")

    ends = [{"time": float(n), "source": n % 5, "target": n % 3, "price": cells[n]} for n in range(200)]
    log = read_log(pa.Table.from_pylist(ends), LogOptions())
    series = read_recordings(table, ReadOptions())
    said = "price (1 of them unreadable)" if cell == "error" else "price"
    for channels, values, facts in (
        (log.channels, log.features, log.facts),
        (series.channels, series.values, series.facts),
    ):
        assert "price" in channels
        assert np.isnan(values).sum() == (cell == "error")
        assert facts["numbers written as text"] == said


def test_codes_some_of_which_are_numbers_stay_categories() -> None:
    sizes = pa.chunked_array([["38", "40", "42", "S", "M"] * 20])
    found = find_columns(open_rows(pa.table({"size": sizes, "n": np.arange(100) % 7})), Wanted())
    assert found.columns[0].kind == "category"
    table = pa.table({"code": ["1", "2"] * 50, "x": np.linspace(0.5, 3, 100)})
    assert read_recordings(table, ReadOptions()).channels == ("x",)


def test_two_numbers_written_as_text_are_one_column_wherever_they_stand() -> None:
    column = find_columns(open_rows(pa.table({"paid": ["$0", "$1"] * 20, "n": np.arange(40) % 7})), Wanted()).columns[0]
    assert encode(column, pa.chunked_array([["$0", "$1", None]]))[:2, 0].tolist() == [1, 2]


def test_a_series_in_american_dates_is_sorted_by_them_and_unread_ones_are_named() -> None:
    dates = [f"01/{day:02}/2024 10:00" for day in range(1, 29)]
    table = pa.table({"time": dates[::-1], "x": np.linspace(0.5, 3, 28)})
    found = read_recordings(table, ReadOptions())
    assert found.values[:, 0].tolist() == np.linspace(3, 0.5, 28).astype(np.float32).tolist()
    assert found.facts["time"] == "'time', a step every 86400 s; read as month/day/year"
    unread = read_recordings(table.set_column(0, "time", pa.array(["noon"] * 28)), ReadOptions())
    assert unread.facts["time"] == "'time' holds none that can be read ('noon'): rows are taken in their order"


@pytest.mark.parametrize(
    ("name", "spelt"),
    [(" Device-ID ", "device_id"), ("is__fraud", "is_fraud"), ("计数", "计数"), ("Größe (m)", "grösse_m")],
)
def test_names_keep_the_letters_of_any_script(name: str, spelt: str) -> None:
    assert plain(name) == spelt


@pytest.mark.parametrize(
    ("name", "kept"), [("计数", True), ("%", True), ("", False), ("#", False), ("Unnamed: 0", False), ("Index", False)]
)
def test_only_a_column_without_a_name_or_called_an_index_numbers_the_rows(name: str, kept: bool) -> None:
    table = pa.table({name: range(30), "heat": np.linspace(0, 1, 30) ** 2})
    assert (name in choose_channels(table, [], ReadOptions())[0]) is kept


def test_a_column_without_any_value_is_a_channel_and_leaves_whole_numbers_what_they_are() -> None:
    table = pa.table({"empty": pa.nulls(30), "state": [0, 1] * 15})
    assert choose_channels(table, [], ReadOptions())[0] == ["empty", "state"]
    beside = table.append_column("heat", [np.linspace(0, 1, 30) ** 2])
    assert choose_channels(beside, [], ReadOptions())[0] == ["empty", "heat"]


@pytest.mark.parametrize("kind", [object, int, float])
def test_values_are_numbered_in_their_order_or_as_they_come(kind: type) -> None:
    values = np.array([3, 1, 3, 2, 1]).astype(kind)
    found, number = distinct(values)
    assert [str(found[place]) for place in number] == [str(value) for value in values]
    assert number.tolist() == [2, 0, 2, 1, 0]
    assert codes(values).tolist() == [0, 1, 0, 2, 1]
    assert codes(values[:0]).tolist() == []


TEXTS = [*(f"text number {n % 100} of many" for n in range(500)), "long " * 20_000]


def end_in(texts: list[str]) -> pa.Table:
    return pa.table({"time": range(len(texts)), "source": texts, "target": texts[::-1], "amount": range(len(texts))})


@pytest.mark.parametrize(
    "use",
    [
        recognise,
        lambda texts: codes(np.array(texts, dtype=object)),
        lambda texts: majority(np.array(texts, dtype=object), 0, len(texts)),
        lambda texts: read_log(end_in(texts), LogOptions()),
    ],
)
def test_one_long_text_does_not_make_the_others_as_large(use: Callable[[list[str]], Any]) -> None:
    tracemalloc.start()
    try:
        use(TEXTS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40 << 20, "200 MB if each were as wide as the longest"
