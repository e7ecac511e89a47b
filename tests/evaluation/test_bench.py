"""What is measured of which samples, and how surely networks tell them apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs
import torch

from labelfree.evaluation import bench as module
from labelfree.evaluation.bench import Bench, Clock
from labelfree.evaluation.parts import Parts, read_parts
from labelfree.run import Run
from labelfree.tasks import classifier
from labelfree.tasks.classifier import Classifier, FinetuneSettings, Pace, Search
from labelfree.tasks.labels import LabelBudget


def of_two(path: Path, count: int, seed: int) -> Path:
    x, y = runs.pictures(count, seed, classes=2)
    np.savez(path, images=x, label=y)
    return path


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Run, Parts]:
    train, test = of_two(tmp_path / "train.npz", 90, 1), of_two(tmp_path / "test.npz", 60, 2)
    run = runs.make_run(tmp_path / "run", train)
    return run, read_parts(run, train, test, "label", None, 0)


def test_raw_features_are_made_of_what_budgets_look_at_and_of_some_others(
    parts: tuple[Run, Parts], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, found = parts
    seen, raw = [], run.modality.raw_features
    monkeypatch.setattr(module, "RAW_OTHERS", 10)
    monkeypatch.setattr(
        run.modality, "raw_features", lambda train, others: seen.append(len(train)) or raw(train, others)
    )
    budgets = [LabelBudget.parse("2/class")]
    bench = Bench(run, found, budgets, 3, "auto", 0, FinetuneSettings(), Clock(None), ["linear"], ["raw"])
    bench.frozen()
    assert 10 <= seen[0] <= 10 + 3 * 4
    assert bench.guesses[("linear", "2/class", "raw")].shape == (3, 60)


def test_samples_that_a_network_is_sure_of_do_not_tie(
    parts: tuple[Run, Parts], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, found = parts

    def sure(model: Classifier, *given: Any, **options: Any) -> Classifier:
        with torch.no_grad():
            model.head.weight.copy_(100 * torch.randn(2, 16, generator=torch.Generator().manual_seed(0)))
        return model.eval()

    monkeypatch.setattr(classifier, "train_classifier", sure)
    monkeypatch.setattr(module, "train_classifier", sure)
    monkeypatch.setattr(module, "search_pace", lambda *_: Search(Pace(1e-3), None, "roc_auc"))
    budgets = [LabelBudget.parse("5/class")]
    bench = Bench(run, found, budgets, 1, "roc_auc", 0, FinetuneSettings(), Clock(None), ["finetune"], [])
    bench.finetuned()
    (margins,) = bench.margins[("finetune", "5/class", "pretrained")]
    assert len(np.unique(margins)) == 60
    assert np.abs(margins).min() > 20, "probabilities would all be 0 or 1"
    np.testing.assert_array_equal(margins > 0, bench.guesses[("finetune", "5/class", "pretrained")][0] == 1)
