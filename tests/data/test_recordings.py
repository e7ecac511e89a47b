"""Reading series: what is found in arrays, tables and folders, and what is refused."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import csv, parquet

from labelfree.data.columns import ReadOptions, codes, cut, group_numbers
from labelfree.data.recordings import Recordings, majority, read_recordings
from labelfree.errors import LabelfreeError


def read(source: object, **options: object) -> Recordings:
    return read_recordings(source, ReadOptions(**options))  # type: ignore[arg-type]


def wave(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=rows)


def save(folder: Path, name: str, **columns: object) -> Path:
    path = folder / name
    (csv.write_csv if path.suffix == ".csv" else parquet.write_table)(pa.table(columns), path)
    return path


def series_of(found: Recordings, number: int) -> np.ndarray:
    start, stop = found.spans[number]
    return found.values[start:stop]


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_arrays_are_series_by_steps_by_channels(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).normal(size=shape)
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "b.npz", X=array, y=np.arange(5))
    for source in (array, tmp_path / "a.npy", str(tmp_path / "b.npz"), {"X": array}, list(array)):
        found = read(source)
        assert len(found.spans) == 5
        np.testing.assert_allclose(series_of(found, 3), array[3].reshape(7, -1), rtol=1e-6)


def test_y_of_an_npz_is_a_column_and_never_a_channel(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", y=np.array(["a", "b"]), X=np.eye(2, 6), age=np.array([3, 4]))
    found = read(tmp_path / "a.npz")
    assert found.channels == ("value",)
    assert found.columns["y"].tolist() == ["a", "b"]
    assert found.columns["age"].tolist() == [3, 4]


def test_missing_steps_at_the_end_are_padding_and_those_inside_are_not() -> None:
    found = read(np.array([[np.nan, 1, np.nan, 2, np.nan, np.nan], [1, 2, 3, 4, 5, np.inf]]))
    assert (found.spans[:, 1] - found.spans[:, 0]).tolist() == [4, 5]
    assert np.isnan(series_of(found, 0)[:, 0]).tolist() == [True, False, True, False]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any), st.integers(1, 3))
def test_a_list_keeps_every_series_and_its_length(lengths: list[int], width: int) -> None:
    series = [np.arange(n * width, dtype=float).reshape(n, width) + n for n in lengths]
    found = read(series)
    assert [len(series_of(found, i)) for i in range(len(series))] == lengths
    for number, one in enumerate(series):
        np.testing.assert_array_equal(series_of(found, number), one)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_cutting_loses_no_row_keeps_time_rising_and_never_mixes_identities(data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 60))
    identity = np.array(data.draw(st.lists(st.integers(0, 3), min_size=rows, max_size=rows)))
    time = np.array(data.draw(st.lists(st.integers(0, 200), min_size=rows, max_size=rows)), dtype=float)
    order, bounds, _ = cut(codes(identity), time, gap=5.0)
    assert sorted(order) == list(range(rows))
    assert bounds[0] == 0
    assert bounds[-1] == rows
    assert (np.diff(bounds) > 0).all()
    for start, stop in pairwise(bounds):
        piece = order[start:stop]
        assert len(set(identity[piece])) == 1
        assert (np.diff(time[piece]) >= 0).all()


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_a_long_table_is_cut_by_its_group_and_at_gaps(tmp_path: Path, name: str) -> None:
    time = np.concatenate([np.arange(30), np.arange(100, 130), np.arange(40)]).astype(float)
    person = ["ann"] * 60 + ["bob"] * 40
    path = save(tmp_path, name, time=time, x=wave(100), person=person)
    found = read(path, group="person")
    assert found.spans.tolist() == [[0, 30], [30, 60], [60, 100]]
    assert found.channels == ("x",)
    assert found.rows["person"][0] == "ann"
    assert "1 gap" in found.facts["time"]


def test_dates_are_times_and_rows_are_put_in_their_order(tmp_path: Path) -> None:
    day = np.datetime64("2024-01-01T00:00:00")
    steps = np.random.default_rng(0).permutation(50)
    path = save(tmp_path, "a.csv", when=day + steps.astype("timedelta64[m]"), x=steps.astype(float) + 0.5)
    found = read(path)
    assert len(found.spans) == 1
    assert found.time is not None
    assert (np.diff(found.time) == 60).all()
    assert (np.diff(found.values[:, 0]) == 1).all()


def test_numbers_called_like_a_time_that_run_back_and_forth_are_a_channel(tmp_path: Path) -> None:
    found = read(save(tmp_path, "a.csv", T=wave(50), step=np.arange(50)))
    assert found.channels == ("T",)
    assert found.facts["time"].startswith("'step'")
    np.testing.assert_allclose(found.values[:, 0], wave(50), rtol=1e-6)
    alone = read(save(tmp_path, "a.csv", T=wave(50), x=wave(50, 1)))
    assert alone.channels == ("T", "x")
    assert alone.facts["time"].startswith("'T' runs back and forth, as times do not: rows are taken in their order")
    assert read(save(tmp_path, "a.csv", T=wave(50), x=wave(50, 1)), time="T").channels == ("x",)


@pytest.mark.parametrize("step", [list(range(50))[::-1], [*range(5)] * 10])
def test_times_that_run_one_way_are_times_in_each_recording(tmp_path: Path, step: list[int]) -> None:
    path = save(tmp_path, "a.csv", subject=np.repeat(np.arange(10), 5), step=step, x=wave(50))
    found = read(path)
    assert found.channels == ("x",)
    assert found.time is not None
    assert len(found.spans) == 10


def test_y_is_a_channel_beside_x_and_z_alone(tmp_path: Path) -> None:
    axes = {"time": np.arange(40), "x": wave(40), "y": wave(40, 1), "z": wave(40, 2)}
    assert read(save(tmp_path, "a.csv", **axes)).channels == ("x", "y", "z")
    assert read(save(tmp_path, "a.csv", **{**axes, "z": ["walk", "run"] * 20})).channels == ("x",)


def test_time_that_starts_again_starts_a_recording_and_what_never_changes_inside_is_no_channel(tmp_path: Path) -> None:
    path = save(tmp_path, "a.csv", step=[*range(30)] * 2, x=wave(60), speed=[100.5] * 30 + [200.5] * 30)
    found = read(path)
    assert len(found.spans) == 2
    assert found.channels == ("x",)
    assert "never changes within a recording" in found.facts["left out"]
    assert found.rows["speed"][40] == 200.5


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("Label", [0.0, 1.5] * 20),
        ("target", list(range(40))),
        ("y", [0.5] * 20 + [0.25] * 20),
        ("occupancy", [0, 1] * 20),
    ],
)
def test_what_looks_like_a_label_is_left_out_and_said(tmp_path: Path, column: str, values: list[float]) -> None:
    path = save(tmp_path, "a.csv", time=np.arange(40), x=wave(40), **{column: values})
    found = read(path)
    assert found.channels == ("x",)
    assert column in found.facts["left out"]
    assert found.rows[column].tolist() == values
    assert read(path, columns=("x", column)).channels == ("x", column)


def test_whole_numbers_are_channels_where_there_is_nothing_else(tmp_path: Path) -> None:
    path = save(tmp_path, "a.csv", time=np.arange(40), up=[0, 1] * 20, down=[1, 0, 0, 1] * 10)
    assert read(path).channels == ("up", "down")


def test_excluded_columns_are_left_out_and_unknown_ones_refused(tmp_path: Path) -> None:
    path = save(tmp_path, "a.csv", time=np.arange(40), x=wave(40), zed=wave(40, 1))
    assert read(path, exclude=("zed",)).channels == ("x",)
    with pytest.raises(LabelfreeError, match=r"exclude names the column 'zet'.*Did you mean 'zed'"):
        read(path, exclude=("zet",))


def test_columns_numbered_through_are_a_wide_table(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(6, 12))
    columns = {f"t{i}": rows[:, i] for i in range(12)}
    path = save(tmp_path, "a.csv", label=["a", "b"] * 3, **columns)
    found = read(path)
    assert len(found.spans) == 6
    np.testing.assert_allclose(series_of(found, 2)[:, 0], rows[2], rtol=1e-5)
    assert found.columns["label"].tolist() == ["a", "b"] * 3
    assert read(path, layout="long").values.shape == (6, 12)


def test_steps_of_a_wide_table_are_never_taken_for_a_label(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(6, 12))
    rows[:, 0], rows[:, 1] = 0, [0, 1] * 3
    path = save(tmp_path, "a.csv", kind=[0, 1] * 3, **{f"t{i}": rows[:, i] for i in range(12)})
    found = read(path)
    np.testing.assert_allclose(series_of(found, 1)[:, 0], rows[1], rtol=1e-5)
    assert found.columns["kind"].tolist() == [0, 1] * 3


def test_a_table_without_a_header_loses_no_row(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(6, 12))
    path = tmp_path / "a.tsv"
    path.write_text("\n".join("\t".join([str(i % 2), *map(str, row)]) for i, row in enumerate(rows)))
    found = read(path, layout="wide")
    assert len(found.spans) == 6
    np.testing.assert_allclose(series_of(found, 0)[:, 0], rows[0], rtol=1e-5)
    assert "few whole numbers" in found.facts["left out"]


def test_a_folder_is_one_recording_a_file_with_the_folder_and_a_table_beside_as_columns(tmp_path: Path) -> None:
    for kind, number in (("walk", 1), ("run", 2)):
        (tmp_path / kind).mkdir()
        save(tmp_path / kind, f"{number}.csv", time=np.arange(20 + number), x=wave(20 + number), z=wave(20 + number))
    (tmp_path / "labels.csv").write_text("file,age\nwalk/1.csv,30\nrun/2.csv,40\n")
    found = read(tmp_path)
    assert sorted(found.names) == ["run/2.csv", "walk/1.csv"]
    assert found.columns["folder"].tolist() == ["run", "walk"]
    assert found.columns["age"].tolist() == [40, 30]
    assert (found.spans[:, 1] - found.spans[:, 0]).tolist() == [22, 21]


def test_a_folder_lists_files_that_cannot_be_read_and_reads_the_rest(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", wave(20))
    np.save(tmp_path / "b.npy", wave(30)[:, None])
    (tmp_path / "c.npy").write_bytes(b"not an array")
    found = read(tmp_path)
    assert len(found.spans) == 2
    assert [item.name for item in found.unreadable] == ["c.npy"]


def test_a_folder_of_the_parts_of_a_data_set_is_no_two_recordings(tmp_path: Path) -> None:
    for part, count in (("train", 6), ("test", 9)):
        np.savez(
            tmp_path / f"{part}.npz", X=wave(count * 20).reshape(count, 20), y=np.array(["a", "b", "c"] * (count // 3))
        )
    with pytest.raises(LabelfreeError, match=r"test\.npz and train\.npz: parts of a data set.*the one to learn from"):
        read(tmp_path)
    assert len(read(tmp_path / "train.npz").spans) == 6


def test_a_folder_of_files_with_other_channels_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "a.csv", time=np.arange(20), x=wave(20))
    save(tmp_path, "b.csv", time=np.arange(20), z=wave(20))
    with pytest.raises(LabelfreeError, match=r"'a.csv' has the channels x, 'b.csv' has z.*columns="):
        read(tmp_path)


def test_few_whole_numbers_of_one_file_are_codes_only_where_all_files_have_them(tmp_path: Path) -> None:
    rain = {"dry": [0.0, 5.0] * 10, "wet": np.linspace(0, 9.5, 20), "none": [np.nan] * 20}
    for number, (day, values) in enumerate(rain.items()):
        state = {"state": [number, 1] * 10} if day != "wet" else {}
        count = 15 * number + np.arange(20) % 15
        save(tmp_path, f"{day}.csv", time=np.arange(20), x=wave(20), rain=values, count=count, **state)
    found = read(tmp_path)
    assert found.channels == ("x", "rain", "count"), "few counts a day are many in all"
    assert "state (few whole numbers, as a label has)" in found.facts["left out"]
    assert not {"rain", "count"} & set(found.rows)
    (tmp_path / "wet.csv").unlink()
    found = read(tmp_path)
    assert found.channels == ("x", "count")
    assert found.rows["rain"][:2].tolist() == [0, 5]
    assert found.rows["state"].tolist() == [0, 1] * 10 + [2, 1] * 10


def test_a_trained_encoder_gets_the_channels_it_knows(tmp_path: Path) -> None:
    path = save(tmp_path, "a.csv", time=np.arange(20), z=wave(20), x=wave(20, 1))
    found = read(path, channels=("x", "z"))
    assert found.channels == ("x", "z")
    np.testing.assert_allclose(found.values[:, 0], wave(20, 1), rtol=1e-5)
    with pytest.raises(LabelfreeError, match="trained encoder names the column 'w'"):
        read(path, channels=("w",))
    with pytest.raises(LabelfreeError, match="has 2 channels, but the encoder was trained on 1"):
        read(np.zeros((3, 4, 2)), channels=("value",))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "none.csv", "nothing at"),
        (lambda folder: folder, "holds no series"),
        (lambda folder: np.array(["a", "b"]), "holds no series"),
        (lambda folder: np.zeros((0, 5)), "is empty"),
        (lambda folder: save(folder, "text.csv", words=["a", "b"]), "no channel to learn from"),
        (lambda folder: [np.zeros((3, 1)), np.zeros((3, 2))], "expected arrays"),
        (lambda folder: [np.zeros((0, 2)), np.zeros((0, 2))], "its 2 series are empty"),
    ],
)
def test_what_is_no_series_is_refused_in_one_sentence(tmp_path: Path, make: object, words: str) -> None:
    with pytest.raises(LabelfreeError, match=words):
        read(make(tmp_path))  # type: ignore[operator]


def test_groups_have_the_same_numbers_in_every_source() -> None:
    assert group_numbers(np.array([7, 3])).tolist() == [7, 3]
    a, b, *none = group_numbers(np.array(["a", "b", "", None, float("nan")], dtype=object)).tolist()
    assert (a >= 0, b >= 0, a != b, none) == (True, True, True, [-1, -1, -1])
    assert group_numbers(np.array(["b"])).tolist() == [b]


def test_the_fingerprint_follows_the_content() -> None:
    array = np.random.default_rng(0).normal(size=(4, 9))
    assert read(array).fingerprint == read(array.copy()).fingerprint
    assert read(array).fingerprint != read(array + 1).fingerprint
    assert read(array).fingerprint != read(array.reshape(9, 4)).fingerprint


def test_the_majority_of_a_window_is_its_label() -> None:
    labels = np.array(["a", "b", "b", "a", "a"], dtype=object)
    assert majority(labels, 0, 3) == "b"
    assert majority(labels, 2, 5) == "a"
