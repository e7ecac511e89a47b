"""The SVM readout of the UCR benchmark: right where classes can be told apart, and at ease with few samples."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

svm_readout = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "readout.py"))["svm_readout"]


def clusters(count: int, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = np.eye(classes, 6) * 4
    return centres[labels] + generator.normal(size=(count, 6)), np.array(["a", "b", "c"])[labels]


@pytest.mark.parametrize("count", [9, 90])
def test_it_tells_clusters_apart_with_few_samples_and_with_many(count: int) -> None:
    x, y = clusters(count)
    test, truth = clusters(60, seed=1)
    assert (svm_readout(x, y, test) == truth).mean() > 0.9


def test_a_class_of_one_sample_and_rows_without_features_do_no_harm() -> None:
    x, y = clusters(90)
    y = y.copy()
    y[y == "c"] = "b"
    y[0] = "c"
    x[5] = np.nan
    test, truth = clusters(30, seed=1)
    found = svm_readout(x, y, test)
    assert (found == truth)[truth == "a"].mean() > 0.9
