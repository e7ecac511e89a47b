"""Series: windows, views, tokens, masks, targets — per sample, whatever else is in the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import csv

from labelfree.data.batch import Batch, Sample, Unreadable
from labelfree.data.draw import Draw
from labelfree.errors import LabelfreeError
from labelfree.modalities.base import Budget
from labelfree.modalities.series import Series, SeriesDataset, SeriesSettings
from labelfree.modalities.series.dataset import cut_windows

LENGTHS = (40, 25, 40, 9, 31, 40)


def uneven(channels: int = 2) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    found = [generator.normal(3, 2, (length, channels)).astype(np.float32) for length in LENGTHS]
    found[0][5:8, 0] = np.nan
    return found


def fitted(source: object, **own: object) -> tuple[Series, SeriesDataset]:
    modality = Series(SeriesSettings.read(own, "series"))
    dataset = modality.open(source)
    modality.fit(dataset)
    return modality, dataset


def batch_of(modality: Series, dataset: SeriesDataset, rows: list[int]) -> Batch:
    samples = dataset.read(rows)
    assert all(isinstance(sample, Sample) for sample in samples)
    return modality.collate(samples)  # type: ignore[arg-type]


def draw_of(batch: Batch, step: int = 0) -> Draw:
    return Draw.start(7, 0, step, batch.index)


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    """Equal over the shorter length, and nothing but missing values beyond."""
    shorter = min(a.shape[1], b.shape[1])
    torch.testing.assert_close(a[:, :shorter], b[:, :shorter], equal_nan=True)
    for longer in (a, b):
        assert longer[:, shorter:].isnan().all()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=5), st.integers(1, 12), st.integers(0, 15))
def test_windows_stay_inside_their_recording_and_are_of_one_length(
    lengths: list[int], window: int, stride: int
) -> None:
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    spans = np.stack([bounds[:-1], bounds[1:]], axis=1)
    windows, owner = cut_windows(spans, window, stride)
    size = windows[:, 1] - windows[:, 0]
    assert (windows[:, 0] >= spans[owner, 0]).all()
    assert (windows[:, 1] <= spans[owner, 1]).all()
    assert (size == np.minimum(window, spans[owner, 1] - spans[owner, 0])).all()
    assert len(np.unique(windows[:, 0])) == len(windows)
    if stride in (0, window):
        covered = np.concatenate([np.arange(a, b) for a, b in windows]) if len(windows) else np.array([])
        left = sum(lengths) - len(np.unique(covered))
        assert left <= len(lengths) * (window - 1) / 2 + 1e-9


def test_a_window_has_the_majority_label_its_group_and_its_times(tmp_path: Path) -> None:
    state = ["on"] * 11 + ["off"] * 21
    table = pa.table(
        {"time": np.arange(32), "x": np.random.default_rng(0).normal(size=32), "state": state, "who": [7] * 32}
    )
    csv.write_csv(table, tmp_path / "a.csv")
    _, dataset = fitted(tmp_path / "a.csv", window=8, group="who")
    assert dataset.column("state").tolist() == ["on", "off", "off", "off"]
    assert dataset.column("who").tolist() == [7] * 4
    assert dataset.column("recording").tolist() == [0] * 4
    sample = dataset.read([2])[0]
    assert isinstance(sample, Sample)
    assert sample.group == 7
    assert sample.time is not None
    assert sample.time.tolist() == list(range(16, 24))
    with pytest.raises(LabelfreeError, match=r"'x' is a channel.*exclude=x"):
        dataset.column("x")
    with pytest.raises(LabelfreeError, match=r"no column 'stat'.*Did you mean 'state'"):
        dataset.column("stat")


def test_a_series_without_any_value_is_unreadable_and_counts_nothing() -> None:
    array = np.random.default_rng(0).normal(size=(4, 10))
    array[2] = np.nan
    modality, dataset = fitted(array)
    assert isinstance(dataset.read([2])[0], Unreadable)
    assert modality.state()["mean"] == pytest.approx([np.nanmean(array)], rel=1e-5)


def test_training_data_are_normalised_by_channel_and_others_by_the_same_numbers() -> None:
    modality, dataset = fitted(uneven())
    values = torch.cat([modality.prepare(batch_of(modality, dataset, [i])).data[0] for i in range(len(dataset))])
    torch.testing.assert_close(values.nanmean(dim=0), torch.zeros(2), atol=1e-5, rtol=0)
    known = values[~values.isnan().any(dim=1)]
    torch.testing.assert_close(known.std(dim=0), torch.ones(2), atol=0.03, rtol=0)
    again = Series()
    again.load_state(modality.state())
    batch = batch_of(modality, dataset, [0, 1])
    torch.testing.assert_close(again.prepare(batch).data, modality.prepare(batch).data, equal_nan=True)


@pytest.mark.parametrize("unit", [1e-12, 1e12])
def test_a_series_is_normalised_by_itself_in_any_unit_and_a_constant_one_is_zero(unit: float) -> None:
    values = np.random.default_rng(0).normal(3, 2, (6, 40)).astype(np.float32)
    values[5] = 1.1
    modality, dataset = fitted(unit * values, normalise="series")
    found = modality.prepare(batch_of(modality, dataset, list(range(6)))).data
    torch.testing.assert_close(found[:5].std(dim=1, correction=0), torch.ones(5, 1))
    assert (found[5].abs() < 1e-6 * unit * 1.1 + 1e-30).all()


def test_constant_data_are_refused_and_a_constant_channel_is_not() -> None:
    with pytest.raises(LabelfreeError, match="constant or missing"):
        fitted(np.ones((4, 9)))
    array = np.random.default_rng(0).normal(size=(4, 9, 2))
    array[..., 1] = 5
    modality, dataset = fitted(array)
    assert modality.prepare(batch_of(modality, dataset, [0])).data[..., 1].abs().max() == 0


@pytest.mark.parametrize("policy", ["contrast", "light", "none"])
def test_a_view_depends_on_the_sample_alone(policy: str) -> None:
    modality, dataset = fitted(uneven(), permutation=4)
    whole = batch_of(modality, dataset, list(range(6)))
    views = modality.view(whole, draw_of(whole), policy)
    assert views.draw is not None
    for row in range(6):
        alone = batch_of(modality, dataset, [row])
        same(views.data[row : row + 1], modality.view(alone, draw_of(alone, step=3), policy).data)


def test_contrasting_views_differ_and_light_ones_keep_the_shape() -> None:
    modality, dataset = fitted(np.random.default_rng(0).normal(size=(8, 50)))
    batch = batch_of(modality, dataset, list(range(8)))
    one, two = (modality.view(batch, draw_of(batch).view(v)).data for v in (0, 1))
    assert not torch.equal(one, two)
    light = modality.view(batch, draw_of(batch), "light").data[..., 0]
    plain = modality.prepare(batch).data[..., 0]
    correlation = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(light, plain, strict=True)])
    assert (correlation > 0.999).all()


@pytest.mark.parametrize("patch", [1, 4])
def test_shared_tokens_of_overlapping_views_are_the_same_steps(patch: int) -> None:
    modality, dataset = fitted(np.random.default_rng(0).normal(size=(6, 41, 2)), patch=patch)
    batch = batch_of(modality, dataset, list(range(6)))
    for step in range(25):
        one, two, (first, second) = modality.overlapping_views(batch, draw_of(batch, step))
        a, b = modality.targets(one)[:, first], modality.targets(two)[:, second]
        assert a.shape == b.shape
        assert a.shape[1] >= 2
        torch.testing.assert_close(a, b, equal_nan=True)
        assert modality.token_count(one) == modality.targets(one).shape[1]


def test_overlapping_views_do_not_depend_on_the_company_and_stay_inside_long_enough_series() -> None:
    modality, dataset = fitted(uneven())
    whole = batch_of(modality, dataset, list(range(6)))
    for step in range(10):
        views = modality.overlapping_views(whole, draw_of(whole, step))
        for row in range(6):
            alone = batch_of(modality, dataset, [row])
            others = modality.overlapping_views(alone, draw_of(alone, step))
            assert views[2] == others[2]
            for view, other in zip(views[:2], others[:2], strict=True):
                same(view.data[row : row + 1], other.data)
        assert views[0].lengths is not None
        assert (views[0].lengths[[0, 2, 5]] == views[0].data.shape[1]).all()


@pytest.mark.parametrize(("patch", "ratio"), [(1, 0.5), (4, 0.5), (4, 0.15)])
def test_masks_hide_the_share_asked_for_and_never_padding(patch: int, ratio: float) -> None:
    modality, dataset = fitted(uneven(), patch=patch)
    batch = batch_of(modality, dataset, list(range(6)))
    view = modality.view(batch, draw_of(batch), "none")
    mask = modality.sample_mask(view, draw_of(batch), ratio)
    tokens = torch.tensor([-(-length // patch) for length in LENGTHS])
    assert (mask.sum(dim=1) - (ratio * tokens)).abs().max() <= 1
    for row, count in enumerate(tokens.tolist()):
        assert not mask[row, count:].any()
        assert mask[row].any()


def test_masks_of_full_samples_are_of_equal_count_and_come_in_spans() -> None:
    modality, dataset = fitted(np.random.default_rng(0).normal(size=(16, 128)), patch=1)
    batch = batch_of(modality, dataset, list(range(16)))
    mask = modality.sample_mask(modality.prepare(batch), draw_of(batch), 0.5)
    assert (mask.sum(dim=1) == 64).all()
    edges = (mask[:, 1:] != mask[:, :-1]).sum(dim=1).float().mean()
    assert edges < 20  # single steps hidden at random would have 64


def test_pauses_cut_a_file_into_pieces_that_stay_together(tmp_path: Path) -> None:
    times = np.concatenate([np.arange(40), np.arange(1000, 1060)])
    for name in ("ann", "bob"):
        csv.write_csv(
            pa.table({"time": times, "x": np.random.default_rng(0).normal(size=100)}), tmp_path / f"{name}.csv"
        )
    for window, owners in ((0, [0, 0, 1, 1]), (20, [0] * 5 + [1] * 5)):
        dataset = Series(SeriesSettings(window=window)).open(tmp_path)
        assert dataset.cut_from is not None
        assert dataset.cut_from.tolist() == owners
    assert dataset.column("recording").tolist() == owners
    assert dataset.name(2) == "ann.csv, steps 40–59"
    assert dataset.name(9) == "bob.csv, steps 80–99"
    assert [dataset.recording_name(number) for number in (0, 1)] == ["ann.csv, steps 0–39", "ann.csv, steps 40–99"]


def test_spans_of_short_series_are_no_longer_than_what_is_hidden() -> None:
    modality, dataset = fitted(np.random.default_rng(0).normal(size=(16, 24)), patch=1)
    batch = batch_of(modality, dataset, list(range(16)))
    mask = modality.sample_mask(modality.prepare(batch), draw_of(batch), 0.4)
    assert (mask.sum(dim=1) == 10).all()
    assert int((mask[:, 1:] != mask[:, :-1]).sum(dim=1).max()) <= 4  # one block and a part of another


def test_forecasts_begin_where_the_whole_horizon_was_seen_in_training() -> None:
    for length, patch, tokens in ((48, 1, 32), (20, 1, 10), (48, 4, 8), (96, 32, 2)):
        modality, dataset = fitted(np.random.default_rng(0).normal(size=(4, length)), patch=patch)
        (end, *_), sample = modality.ends(dataset)[1], dataset.read([0])[0]
        assert len(end.data) == tokens * patch
        np.testing.assert_array_equal(end.data, sample.data[-tokens * patch :])
        assert len(modality.beginning(sample).data) <= tokens * patch
        assert tokens + min(modality.alike, tokens) <= length // patch


def test_missing_values_cost_nothing_and_targets_are_the_view() -> None:
    modality, dataset = fitted(uneven(), patch=4)
    view = modality.prepare(batch_of(modality, dataset, [0, 2]))
    target = modality.targets(view)
    assert target.shape == (2, 10, modality.target_dim)
    torch.testing.assert_close(target.reshape(2, 40, 2), view.data, equal_nan=True)
    assert modality.token_loss(target.nan_to_num(), target).max() == 0
    off = target.nan_to_num() + 2
    torch.testing.assert_close(modality.token_loss(off, target), torch.full((2, 10), 4.0))


def test_transformations_can_be_told_and_keep_every_value() -> None:
    modality, dataset = fitted(uneven(1), scaling=0)
    batch = batch_of(modality, dataset, list(range(6)))
    plain = modality.prepare(batch).data
    for name, found in modality.transformations().items():
        results = []
        for which in range(found.count):
            out = found.apply(batch, torch.full((6,), which), draw_of(batch)).data
            assert torch.equal(out.nan_to_num(9).sort(dim=1).values, plain.nan_to_num(9).sort(dim=1).values), name
            results.append(out.nan_to_num())
        assert torch.equal(results[0], plain.nan_to_num())
        assert len({tuple(result.flatten().tolist()) for result in results}) == found.count


def test_the_transformer_gives_a_sample_the_same_features_padded_or_not() -> None:
    torch.manual_seed(0)
    modality, dataset = fitted(uneven())
    encoder = modality.transformer("nano", causal=False).eval()
    whole = encoder(modality.prepare(batch_of(modality, dataset, list(range(6))))).pooled
    for row in range(6):
        alone = encoder(modality.prepare(batch_of(modality, dataset, [row]))).pooled
        torch.testing.assert_close(whole[row : row + 1], alone, atol=2e-5, rtol=1e-4)


def test_settings_say_what_they_want() -> None:
    assert SeriesSettings.read({"exclude": "a, b"}, "series").exclude == ("a", "b")
    with pytest.raises(LabelfreeError, match="series has no setting 'windw'"):
        SeriesSettings.read({"windw": 3}, "series")
    with pytest.raises(LabelfreeError, match=r"No recording is long enough .* 100 steps: the longest has 40"):
        fitted(uneven(), window=100)


def test_defaults_give_reasons_and_settings_that_exist() -> None:
    modality, dataset = fitted(uneven())
    for choice in modality.defaults(dataset.describe(), Budget(600, 1e11, False)):
        assert choice.reason
        assert choice.key in {"method", "encoder", "batch_size", *SeriesSettings.model_fields}


@pytest.mark.parametrize(
    ("source", "sure"),
    [
        (np.zeros((4, 9)), True),
        (np.zeros((4, 9, 2), dtype=np.float32), True),
        ({"X": np.zeros((4, 9)), "y": np.zeros(4)}, True),
        ([np.zeros(9), np.zeros(7)], True),
        (np.zeros((4, 9, 9), dtype=np.uint8), False),
        (["some", "words"], False),
        (pa.table({"time": [1, 2], "x": [0.5, 0.25]}), True),
        (pa.table({"text": ["a", "b"], "label": ["c", "d"]}), False),
    ],
)
def test_series_are_recognised(source: object, sure: bool) -> None:
    score, words = Series.recognise(source)
    assert (score >= 0.5) == sure
    assert bool(words) == (score > 0)


def test_a_sparkline_breaks_where_values_are_missing_and_escapes_names() -> None:
    modality, dataset = fitted(pa.table({"time": np.arange(40), "a<b": np.sin(np.arange(40)) + 0.5}), window=40)
    dataset.source.values[10:20] = np.nan
    sample = dataset.read([0])[0]
    assert isinstance(sample, Sample)
    shown = modality.show(sample)
    assert shown.startswith("<svg")
    assert shown.count("M") == 2
    assert "a&lt;b" in shown


def test_raw_features_are_finite_one_row_a_sample_and_see_no_other_sample() -> None:
    modality, dataset = fitted(uneven())
    train, again = modality.raw_features(dataset, [dataset])
    assert train.shape[0] == len(dataset)
    assert np.isfinite(train).all()
    np.testing.assert_array_equal(train, again)
