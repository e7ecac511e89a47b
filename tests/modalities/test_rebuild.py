"""Predicted targets as samples that people can look at: right predictions give back the sample itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cells import assemble, make_sources

from labelfree.data.draw import Draw
from labelfree.errors import Refusal
from labelfree.modalities.table.fields import Fields
from labelfree.needs import Need


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_sources(tmp_path_factory.mktemp("sources"))


@pytest.mark.parametrize("kind", ["image", "video", "series", "audio", "text", "bytes", "table", "graph"])
def test_right_predictions_give_the_samples_back_and_unknown_ones_show_gaps(
    kind: str, sources: dict[str, Path]
) -> None:
    training = assemble(sources[kind], kind, "masked", "transformer:nano")
    modality = training.objective.modality
    batch = next(iter(training.loader.steps(0, 1)))
    draw = Draw.start(0, 0, 0, batch.index)
    view = modality.view(batch, draw, "none")
    right = modality.targets(view)
    if Need.IDS in modality.offers:
        right = torch.nn.functional.one_hot(right, modality.target_dim).float()
    if kind == "table":
        right = typed(modality.fields, right[..., 1])
    mask = modality.sample_mask(view, draw, 0.5)
    whole, gaps = modality.rebuild(view), modality.rebuild(view, torch.full_like(right, torch.nan), mask)
    for again in (modality.rebuild(view, right), modality.rebuild(view, right, mask)):
        for one, other in zip(whole, again, strict=True):
            assert one.index == other.index
            np.testing.assert_allclose(
                one.data.astype(float), other.data.astype(float), atol=1.01 if kind in ("image", "video") else 1e-4
            )
    assert all(modality.show(a) != modality.show(b) for a, b in zip(whole, gaps, strict=True))


def typed(fields: Fields, values: torch.Tensor) -> torch.Tensor:
    """(B, F) normalised values → (B, F, V) predictions that give them, and no other: a missing value is unknown."""
    widths = [1] * fields.numbers + fields.sizes
    first = np.cumsum([0, *widths])
    right = torch.zeros(*values.shape, first[-1])
    for place in range(len(fields)):
        value = values[:, place]
        if place < fields.numbers:
            right[:, place, first[place]] = value
        else:
            code = torch.nn.functional.one_hot(value.nan_to_num().long(), widths[place]).float()
            right[:, place, first[place] : first[place + 1]] = code.where(~value.isnan()[:, None], torch.nan)
    return right


def test_rows_are_in_their_own_units_however_far_out(sources: dict[str, Path]) -> None:
    training = assemble(sources["table"], "table", "masked", "transformer:nano")
    modality, batch = training.objective.modality, next(iter(training.loader.steps(0, 1)))
    numbers = modality.fields.numbers
    raw = batch.with_(data=batch.data.clone())
    raw.data[0, :numbers] = modality.fields.centre + 50 * modality.fields.scale
    for row, sample in zip(raw.data.numpy(), modality.rebuild(modality.prepare(raw)), strict=True):
        np.testing.assert_allclose(sample.data, row, rtol=1e-3, atol=1e-4)


def test_predicted_numbers_are_no_farther_out_than_the_training_data(sources: dict[str, Path]) -> None:
    training = assemble(sources["table"], "table", "masked", "transformer:nano")
    modality, batch = training.objective.modality, next(iter(training.loader.steps(0, 1)))
    view = modality.prepare(batch)
    numbers = modality.fields.numbers
    assert numbers
    for far in (-50.0, 50.0):
        rows = np.stack(
            [s.data for s in modality.rebuild(view, torch.full((*view.data.shape, modality.target_dim), far))]
        )
        known = modality.fields.restore(modality.fields.marginals.T)[:, :numbers].numpy()
        ends = np.nanmin(known, axis=0) if far < 0 else np.nanmax(known, axis=0)
        np.testing.assert_allclose(rows[:, :numbers], np.broadcast_to(ends, (len(rows), numbers)), rtol=1e-5)


@pytest.mark.parametrize("target", ["normalised", "pixels", "motion"])
def test_films_come_back_from_what_their_tokens_are_predicted_as(target: str, sources: dict[str, Path]) -> None:
    training = assemble(sources["video"], "video", "masked", "transformer:nano", target=target)
    modality, batch = training.objective.modality, next(iter(training.loader.steps(0, 1)))
    view = modality.prepare(batch)
    pairs = zip(modality.rebuild(view), modality.rebuild(view, modality.targets(view)), strict=True)
    for one, other in pairs:
        np.testing.assert_allclose(one.data.astype(float), other.data.astype(float), atol=1.01)


def test_series_are_in_their_own_units(sources: dict[str, Path]) -> None:
    training = assemble(sources["series"], "series", "masked", "transformer:nano")
    modality, batch = training.objective.modality, next(iter(training.loader.steps(0, 1)))
    for row, sample in zip(batch.data.numpy(), modality.rebuild(modality.prepare(batch)), strict=True):
        np.testing.assert_allclose(row[: len(sample.data)], sample.data, atol=1e-5)


def test_what_cannot_be_shown_is_refused(sources: dict[str, Path]) -> None:
    training = assemble(sources["events"], "events", "masked", "transformer:nano")
    batch = next(iter(training.loader.steps(0, 1)))
    with pytest.raises(Refusal, match="events data cannot be shown"):
        training.objective.modality.rebuild(training.objective.modality.prepare(batch))
