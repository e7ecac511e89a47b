"""Predicted targets as samples that people can look at: right predictions give back the sample itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cells import assemble, make_sources

from labelfree.data.draw import Draw
from labelfree.errors import Refusal
from labelfree.needs import Need


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_sources(tmp_path_factory.mktemp("sources"))


@pytest.mark.parametrize("kind", ["image", "series", "audio", "text", "bytes"])
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
    mask = modality.sample_mask(view, draw, 0.5)
    whole, gaps = modality.rebuild(view), modality.rebuild(view, torch.full_like(right, torch.nan), mask)
    for again in (modality.rebuild(view, right), modality.rebuild(view, right, mask)):
        for one, other in zip(whole, again, strict=True):
            assert one.index == other.index
            np.testing.assert_allclose(
                one.data.astype(float), other.data.astype(float), atol=1.01 if kind == "image" else 1e-4
            )
    assert all(modality.show(a) != modality.show(b) for a, b in zip(whole, gaps, strict=True))


def test_series_are_in_their_own_units(sources: dict[str, Path]) -> None:
    training = assemble(sources["series"], "series", "masked", "transformer:nano")
    modality, batch = training.objective.modality, next(iter(training.loader.steps(0, 1)))
    for row, sample in zip(batch.data.numpy(), modality.rebuild(modality.prepare(batch)), strict=True):
        np.testing.assert_allclose(row[: len(sample.data)], sample.data, atol=1e-5)


def test_what_cannot_be_shown_is_refused(sources: dict[str, Path]) -> None:
    training = assemble(sources["table"], "table", "masked", "transformer:nano")
    batch = next(iter(training.loader.steps(0, 1)))
    with pytest.raises(Refusal, match="table data cannot be shown"):
        training.objective.modality.rebuild(training.objective.modality.prepare(batch))
