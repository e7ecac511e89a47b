"""Logs of events: read from any table, in order; what is no event is said; histories are those of a slow search."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labelfree.data import events
from labelfree.data.events import Histories, Log, LogOptions, RecentEvents, read_log
from labelfree.errors import LabelfreeError
from labelfree.training.plan import recognise


def table(**columns: object) -> pa.Table:
    usual: dict[str, object] = {"time": [0.0, 1.0, 2.0, 3.0], "from": list("abca"), "to": list("bcab")}
    return pa.table(usual | columns)


def test_every_form_of_a_log_reads_the_same(tmp_path: Path) -> None:
    frame = pd.DataFrame({"t": [0, 5, 9], "src": [3, 1, 3], "dst": [1, 2, 2], "msg0": [0.5, 1.5, 2.5]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    arrays = {"t": np.array([0, 5, 9]), "src": np.array([3, 1, 3]), "dst": np.array([1, 2, 2])}
    arrays["msg"] = np.array([[0.5], [1.5], [2.5]])
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    temporal = SimpleNamespace(**{name: torch.from_numpy(values) for name, values in arrays.items()})
    paths = [tmp_path / name for name in ("a.csv", "a.parquet", "a.npz")]
    logs = [read_log(source, LogOptions()) for source in (frame, arrays, temporal, *paths)]
    for log in logs:
        assert log.ends.tolist() == [[2, 0], [0, 1], [2, 1]]
        assert log.nodes == [1, 2, 3]
        assert log.time.tolist() == [0, 5, 9]
        assert log.features.tolist() == [[0.5], [1.5], [2.5]]
        assert log.channels == ("msg0",)


def test_events_out_of_order_are_sorted_and_their_rows_kept() -> None:
    log = read_log(table(time=[3.0, 1.0, 2.0, 2.0], amount=[0.5, 1.5, 2.5, 3.5]), LogOptions())
    assert log.rows.tolist() == [1, 2, 3, 0]
    assert log.features[:, 0].tolist() == [1.5, 2.5, 3.5, 0.5]
    assert "sorted by time" in log.facts["order"]


def test_loops_and_repeated_edges_are_kept_and_counted() -> None:
    log = read_log(table(**{"from": list("aaab"), "to": list("abbb")}), LogOptions())
    assert len(log) == 4
    assert log.facts["self-loops"] == "2, kept"
    assert log.facts["between"] == "3 pairs, 1 events repeat one"


def test_large_numbers_of_nodes_stay_apart_where_one_is_missing() -> None:
    numbers = [2**60 + step for step in range(4)]
    log = read_log(table(**{"from": pa.array([None, *numbers[1:]], pa.int64()), "to": numbers}), LogOptions())
    assert log.nodes == numbers[1:]
    assert log.ends.tolist() == [[0, 0], [1, 1], [2, 2]]
    assert [(item.index, item.reason) for item in log.unreadable] == [(0, "no node in 'from'")]


def test_rows_without_a_time_or_a_node_are_left_out_and_listed() -> None:
    log = read_log(table(time=[0.0, None, 2.0, 3.0], to=["b", "c", None, "b"]), LogOptions())
    assert len(log) == 2
    assert [(item.index, item.reason) for item in log.unreadable] == [(1, "no time in 'time'"), (2, "no node in 'to'")]


def test_a_log_with_a_time_that_cannot_be_read_is_recognised(tmp_path: Path) -> None:
    rows = [f"{number if number != 50 else 'soon'},{'abc'[number % 3]},{'bcd'[number % 3]}" for number in range(99)]
    (tmp_path / "log.csv").write_text("\n".join(["time,source,target", *rows]))
    assert recognise(tmp_path / "log.csv")[0] == "events"


def test_features_are_numbers_and_categories_and_never_the_label() -> None:
    read = table(amount=[1.5, 2.5, 3.5, 9.25], kind=["x", "y", "x", "x"], is_fraud=[0, 1, 0, 0], note=list("pqrs"))
    log = read_log(read, LogOptions())
    assert log.channels == ("amount", "kind=x", "kind=y", "note=p", "note=q", "note=r", "note=s")
    assert log.features[1].tolist()[:3] == [2.5, 0, 1]
    assert "is_fraud (named like a label)" in log.facts["left out"]
    again = read_log(table(amount=[1, 2, 3, 4], kind=["y", "new", None, "x"]), LogOptions(channels=log.channels[:3]))
    np.testing.assert_array_equal(again.features[:, 1:], [[0, 1], [0, 0], [np.nan, np.nan], [1, 0]])
    with pytest.raises(LabelfreeError, match="trained encoder names the column 'kind'"):
        read_log(table(amount=[1, 2, 3, 4]), LogOptions(channels=log.channels))


def test_the_value_of_a_category_may_hold_a_sign_of_equality() -> None:
    read = table(**{"test": ["<=", "==", "<=", "a=b"], "test=": [0.5, 1.5, 2.5, 3.5]})
    log = read_log(read, LogOptions())
    assert log.channels == ("test=", "test=<=", "test===", "test=a=b")
    again = read_log(read.drop_columns(["test="]), LogOptions(channels=log.channels[1:2]))
    assert again.features[:, 0].tolist() == [1, 0, 1, 0]


def test_an_event_has_the_y_of_x_y_and_z() -> None:
    axes = {name: [0.5, 1.5, 2.5, 9.25] for name in "xyz"}
    assert read_log(table(**axes), LogOptions()).channels == ("x", "y", "z")
    assert read_log(table(x=axes["x"], y=axes["y"]), LogOptions()).channels == ("x",)


def test_times_are_what_runs_like_them_and_else_what_is_called_so() -> None:
    warm = {"T": [20.5, 19.5, 21.5, 20.0], "from": list("abca"), "to": list("bcab")}
    log = read_log(pa.table({**warm, "ts": [0.0, 1.0, 2.0, 3.0]}), LogOptions())
    assert log.channels == ("T",)
    one = pa.table({**warm, "ts": [0.0, 1.0, 2.0, 3.0]}).slice(1, 1)
    assert read_log(one, LogOptions(channels=log.channels)).time.tolist() == [1]
    assert read_log(pa.table(warm), LogOptions()).time.tolist() == [19.5, 20, 20.5, 21.5]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_categories_are_found_in_every_type_of_text_and_a_missing_one_is_none(kind: pa.DataType) -> None:
    log = read_log(table(kind=pa.array(["x", None, "y", "x"]).cast(kind), fast=[True, False, None, True]), LogOptions())
    assert log.channels == ("kind=x", "kind=y", "fast=True", "fast=False")
    np.testing.assert_array_equal(log.features[:, 0], [1, np.nan, 0, 1])
    np.testing.assert_array_equal(log.features[:, 2], [1, 0, np.nan, 1])


def test_columns_are_made_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    values = events.column_values
    monkeypatch.setattr(events, "column_values", lambda table, name: made.append(name) or values(table, name))
    log = read_log(table(time=[3.0, 1.0, 2.0, 0.0], note=list("pqrs"), other=list("tuvw")), LogOptions())
    assert made == ["from", "to"]
    assert log.columns["note"].tolist() == ["s", "q", "r", "p"]
    assert list(log.columns) == ["from", "to", "note", "other"]
    assert made == ["from", "to", "note"]


def test_users_and_items_of_one_name_are_two_nodes() -> None:
    bipartite = pa.table({"ts": [0, 1], "user_id": [7, 8], "item_id": [7, 7]})
    assert read_log(bipartite, LogOptions()).ends.tolist() == [[0, 2], [1, 2]]
    assert read_log(bipartite, LogOptions(kinds="one")).ends.tolist() == [[0, 0], [1, 0]]


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        (pa.table({"time": [1], "x": [2]}), {}, r"no columns of time, source and target .* time, x\. Name them: time="),
        (pa.table({"from": ["a"], "to": ["b"]}), {}, "no columns of time"),
        (table(time=["soon", "later", "x", "y"]), {"time": "time"}, "'time' holds no times"),
        (table(), {"source": "to"}, "One column cannot be two of time, source and target"),
        (table(), {"source": "from", "target": "to", "time": "to"}, "One column cannot be two"),
        (table(), {"source": "sendr"}, "source_column names the column 'sendr'"),
        (table(), {"exclude": ("amout",)}, "exclude names the column 'amout'"),
        (table().slice(0, 0), {}, "has no events"),
        ({"t": np.zeros(3), "src": np.zeros(2)}, {}, r"arrays of one length, found t \(3,\), src \(2,\)"),
        (3, {}, "int is no source of events"),
        ("nowhere.csv", {}, "nothing at 'nowhere.csv'"),
    ],
)
def test_what_is_no_log_is_refused_in_a_sentence(source: object, options: dict[str, str], words: str) -> None:
    with pytest.raises(LabelfreeError, match=words):
        read_log(source, LogOptions(**options))  # type: ignore[arg-type]


ENDS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=40)


def slow_recent(ends: list[tuple[int, int]], node: int, before: int, most: int) -> list[int]:
    found = [event for event in range(before) if node in ends[event]][-most:]
    return [-1] * (most - len(found)) + found


@settings(deadline=None, max_examples=30)
@given(ENDS, st.integers(1, 4))
def test_histories_are_the_last_events_before(ends: list[tuple[int, int]], most: int) -> None:
    histories = Histories(np.array(ends))
    for node in range(6):
        events = np.arange(len(ends))
        found = histories.recent(np.full(len(ends), node), events, most)
        assert found.tolist() == [slow_recent(ends, node, event, most) for event in events]


@settings(deadline=None, max_examples=30)
@given(ENDS, st.integers(1, 4), st.integers(1, 7))
def test_a_stream_knows_the_last_events_of_each_node(ends: list[tuple[int, int]], most: int, chunk: int) -> None:
    seen = RecentEvents(1, most)
    for start in range(0, len(ends), chunk):
        part = np.array(ends[start : start + chunk])
        time = np.arange(start, start + len(part), dtype=float)
        seen.add(Log(time, part, (), time[:, None].astype(np.float32), ("x",)))
        places = seen.recent(np.arange(6))
        expected = [slow_recent(ends, node, start + len(part), most) for node in range(6)]
        assert seen.numbers(places).tolist() == expected
        assert np.where(places >= 0, seen.log.time[places], -1).tolist() == expected


def test_a_stream_forgets_what_is_nobodys_last_event() -> None:
    generator = np.random.default_rng(0)
    seen = RecentEvents(1, 3)
    for start in range(0, 20_000, 500):
        time = np.arange(start, start + 500, dtype=float)
        seen.add(Log(time, generator.integers(0, 50, (500, 2)), (), time[:, None].astype(np.float32), ("x",)))
    assert seen.count == 20_000
    assert len(seen.log) < 3000
    assert seen.log.time[seen.recent(np.arange(50))].min() > 19_000
