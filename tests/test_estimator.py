"""The scikit-learn transformer keeps scikit-learn's rules, for every kind of data."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from labelfree import SelfSupervised, runtime

SETTINGS = {"batch_size": 8, "threads": 1, "precision": "32"}


def quick(modality: str = "auto", **options: Any) -> SelfSupervised:
    return SelfSupervised(modality, **{"steps": 2, "random_state": 0, "settings": SETTINGS, **options})


def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (24, 8, 8, 3)).astype(np.uint8)


def series() -> np.ndarray:
    found = np.random.default_rng(0).normal(size=(24, 16, 2)).cumsum(axis=1)
    found[3, 4:7, 1] = np.nan
    return found


def texts() -> list[str]:
    things = ("apple", "river", "engine", "winter", "window", "horse")
    return [f"The {things[i % 6]} number {i} is {things[i // 7]}." for i in range(40)]


def rows() -> pd.DataFrame:
    ages, jobs = np.random.default_rng(0).integers(18, 90, 40), ["smith", "nurse", None, "cook"] * 10
    return pd.DataFrame({"age": ages, "job": jobs, "paid": [True, False] * 20})


KINDS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "image": (pictures, {"modality": "image", "encoder": "timm:test_resnet"}),
    "series": (series, {"modality": "series"}),
    "text": (texts, {}),
    "table": (rows, {}),
}

NOT_MET = {
    "check_methods_subset_invariance": "sums of float32 numbers differ in their last digits with the batch's size; "
    "`test_features_of_a_sample_do_not_depend_on_its_company` checks the same to 1e-5",
}


def not_met(estimator: SelfSupervised) -> dict[str, str]:
    return NOT_MET


def test_ctrl_c_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = SimpleNamespace(state="stopped", encoder=SimpleNamespace(dim=1), modality=None, info={})
    monkeypatch.setattr("labelfree.training.pretrain.pretrain", lambda *_, **__: stopped)
    with pytest.raises(KeyboardInterrupt):
        quick("image").fit(pictures())


def test_a_number_of_numpy_s_is_the_seed_that_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    run = SimpleNamespace(state="finished", encoder=SimpleNamespace(dim=1), modality=None, info={"steps": 1})
    monkeypatch.setattr("labelfree.training.pretrain.pretrain", lambda *_, seed, **__: seeds.append(seed) or run)
    for seed in (3, np.int64(3)):
        quick("image", random_state=seed).fit(pictures())
    assert seeds == [3, 3]


@parametrize_with_checks([quick()], expected_failed_checks=not_met)
def test_scikit_learn_checks(estimator: SelfSupervised, check: Callable[[SelfSupervised], None]) -> None:
    check(estimator)


@pytest.fixture(scope="module", params=KINDS)
def fitted(request: pytest.FixtureRequest) -> tuple[str, Any, SelfSupervised]:
    make, options = KINDS[request.param]
    return request.param, make(), quick(**options).fit(make())


def test_each_kind_of_data_becomes_features(fitted: tuple[str, Any, SelfSupervised]) -> None:
    kind, X, model = fitted
    features = model.transform(X)
    assert model.modality_.name == kind
    assert features.shape == (len(X), len(model.get_feature_names_out()))
    assert np.isfinite(features).all()
    assert features.std(axis=0).max() > 0


def test_features_of_a_sample_do_not_depend_on_its_company(fitted: tuple[str, Any, SelfSupervised]) -> None:
    _, X, model = fitted
    np.testing.assert_allclose(model.transform(X)[3:5], model.transform(X[3:5]), rtol=1e-4, atol=1e-5)


def test_a_pickled_model_gives_the_same_features(fitted: tuple[str, Any, SelfSupervised]) -> None:
    _, X, model = fitted
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).transform(X), model.transform(X))


def test_columns_of_a_data_frame_are_found_by_name() -> None:
    frame = rows()
    model = quick().fit(frame)
    assert model.feature_names_in_.tolist() == ["age", "job", "paid"]
    with pytest.raises(ValueError, match="feature names should match"):
        model.transform(frame.rename(columns={"job": "work"}))
    numbers = frame.assign(job=np.arange(40.0) % 7, paid=np.arange(40.0))
    model = quick("table").fit(numbers)
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        found = model.transform(numbers.to_numpy())
    np.testing.assert_allclose(found, model.transform(numbers), rtol=1e-4, atol=1e-5)


def test_the_same_random_state_gives_the_same_encoder() -> None:
    first, second, other = (quick(random_state=seed).fit_transform(series()) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert not np.allclose(first, other)


def test_labels_change_nothing() -> None:
    y = np.arange(24) % 2
    np.testing.assert_array_equal(quick().fit(series(), y).transform(series()), quick().fit_transform(series()))


def test_it_works_in_a_pipeline_with_named_output() -> None:
    y = np.arange(24) % 2
    model = make_pipeline(quick().set_output(transform="pandas"), LogisticRegression(max_iter=1000))
    assert clone(model).fit(series(), y).predict(series()).shape == (24,)


def test_a_network_of_ones_own_is_trained_as_a_copy() -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(5))
    network(torch.zeros(2, 3, 8, 8))
    before = network[1].weight.detach().clone()
    model = quick("image", encoder=network, method="simclr", settings={**SETTINGS, "size": 8}).fit(pictures())
    assert torch.equal(network[1].weight, before)
    assert model.transform(pictures()).shape == (24, 5)


def test_the_run_is_kept_where_asked_for_and_nothing_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    quick().fit(series())
    assert list(tmp_path.iterdir()) == []
    quick(out=tmp_path / "run").fit(series())
    assert (tmp_path / "run" / "run.json").exists()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "X", "message"),
    [
        ({"method": "simcrl"}, series(), "Did you mean 'simclr'"),
        ({"settings": {"batchsize": 3}}, series(), "Did you mean 'batch_size'"),
        ({"steps": None, "epochs": 1, "time_limit": 3}, series(), "epochs and time limit were given"),
        ({"modality": "image"}, np.zeros((9, 8, 8), np.uint8), "constant"),
        ({}, np.full((3, 5), np.inf), "infinity"),
        ({"modality": "image"}, np.zeros((9, 64)), r"\(N, H, W\) or \(N, H, W, C\); the array is \(9, 64\)"),
    ],
)
def test_what_cannot_be_learnt_from_is_a_value_error(options: dict[str, Any], X: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quick(**options).fit(X)


@pytest.mark.parametrize("name", ["accelerator", "training.accelerator"])
def test_features_are_made_where_the_encoder_was_trained(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = quick("image", encoder="timm:test_resnet", settings={**SETTINGS, name: "cpu"}).fit(pictures())
    monkeypatch.setattr(runtime, "checked_device", lambda word: torch.device({"cpu": "cpu"}[word]))
    assert model.transform(pictures()).shape[0] == 24


def test_a_missing_text_is_an_empty_one_and_no_word() -> None:
    model = quick("text").fit([None, *texts()])
    empty = model.transform(["", "The"])[:1]
    for gone in (None, float("nan"), pd.NA):
        found = model.transform([gone, "The apple number 0 is apple.", gone])
        np.testing.assert_allclose(found[[0, 2]], np.repeat(empty, 2, axis=0), atol=1e-5)
    np.testing.assert_allclose(model.transform(pd.Series([None, "The"], dtype="string"))[:1], empty, atol=1e-5)
    assert np.abs(model.transform(["nan", "None"]) - empty).max() > 1e-3


def test_arrays_after_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="fitted with texts"):
        quick().fit(texts()).transform(series())


def test_samples_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        quick().fit(series()).transform(series()[:, :, :1])
