"""Logistic regression, against scikit-learn's and against itself in other coordinates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from labelfree.tasks.logistic import Objective, Scaler, fit_logistic, minimise, span


def problem(n: int, d: int, c: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)).astype(np.float32)
    y = (x @ rng.normal(size=(d, c)) + rng.gumbel(size=(n, c))).argmax(axis=1)
    return Scaler.fit(x)(x), y


def loss(x: np.ndarray, y: np.ndarray, w: np.ndarray, penalty: float) -> float:
    logits = x @ w[:-1] + w[-1]
    logits = logits - logits.max(axis=1, keepdims=True)
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return float(-logs[np.arange(len(y)), y].mean() + penalty / 2 * (w[:-1] ** 2).sum())


def test_it_finds_what_scikit_learn_finds_for_every_penalty_at_once() -> None:
    x, y = problem(300, 20, 4)
    penalties = np.array([1e-4, 1e-3, 1e-2])
    found = fit_logistic(x, y, 4, penalties, np.ones((300, 3)))
    for i, penalty in enumerate(penalties):
        theirs = LogisticRegression(C=1 / (penalty * 300), max_iter=1000).fit(x, y)
        w = np.vstack([theirs.coef_.T, theirs.intercept_])
        assert loss(x, y, found[:, i], penalty) == pytest.approx(loss(x, y, w, penalty), abs=1e-3)


def test_samples_without_weight_do_not_count() -> None:
    x, y = problem(200, 10, 3)
    weights = np.ones((200, 1))
    weights[100:] = 0
    some = fit_logistic(x, y, 3, np.array([1e-2]), weights)
    alone = fit_logistic(x[:100], y[:100], 3, np.array([1e-2]), np.ones((100, 1)))
    np.testing.assert_allclose(some, alone, atol=2e-2)


def test_sparse_features_give_what_dense_ones_give() -> None:
    x, y = problem(120, 30, 3)
    x[np.abs(x) < 0.1] = 0
    dense = fit_logistic(x, y, 3, np.array([1e-3]), np.ones((120, 1)))
    thin = fit_logistic(sparse.csr_matrix(x), y, 3, np.array([1e-3]), np.ones((120, 1)))
    np.testing.assert_allclose(thin, dense, atol=1e-3)


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix])
def test_rotating_into_the_span_changes_no_prediction(kind: type) -> None:
    x, y = problem(40, 200, 3)
    test = problem(25, 200, 3, seed=1)[0]
    z, (rotated,) = span(kind(x), [kind(test)])
    assert z.shape[1] <= 40
    wide = fit_logistic(x, y, 3, np.array([1e-4]), np.ones((40, 1)), iterations=300)[:, 0]
    narrow = fit_logistic(z, y, 3, np.array([1e-4]), np.ones((40, 1)), iterations=300)[:, 0]
    np.testing.assert_allclose(test @ wide[:-1] + wide[-1], rotated @ narrow[:-1] + narrow[-1], atol=0.05)


def test_scaled_rows_have_a_mean_square_norm_of_one() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(5, np.geomspace(0.01, 100, 12), size=(500, 12)).astype(np.float32)
    x[:, 3] = 7.0
    assert (Scaler.fit(x)(x) ** 2).sum(axis=1).mean() == pytest.approx(1, rel=1e-3)
    assert np.ptp(Scaler.fit(x)(x)[:, 3]) == 0
    thin = sparse.random(50, 30, 0.2, random_state=0, format="csr")
    assert Scaler.fit(thin)(thin).power(2).sum() / 50 == pytest.approx(1, rel=1e-3)


def test_problems_that_are_solved_together_do_not_change_each_other() -> None:
    """In double precision, where nothing but the other problems could make a difference."""
    rng = np.random.default_rng(0)
    slopes = torch.as_tensor(np.geomspace(0.05, 20, 9)[:, None] * rng.uniform(0.2, 5, (9, 6)))  # hard and easy ones
    places = torch.as_tensor(rng.normal(size=(9, 6)))
    asked: list[int] = []

    def of(problems: torch.Tensor) -> Objective:
        def objective(w: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            asked.append(len(rows))
            slope, place = slopes[problems][rows], places[problems][rows]
            z = slope * (w - place)
            return z.cosh().log().sum(dim=1), slope * z.tanh()

        return objective

    together = minimise(of(torch.arange(9)), torch.zeros(9, 6, dtype=torch.float64), 100)
    assert len(set(asked)) > 1  # some are done, and dropped, before others
    for i in range(9):
        alone = minimise(of(torch.tensor([i])), torch.zeros(1, 6, dtype=torch.float64), 100)[0]
        np.testing.assert_allclose(together[i], alone, atol=1e-9)


def test_penalties_that_are_solved_together_reach_the_loss_of_each_alone() -> None:
    x, y = problem(120, 12, 3)
    penalties = np.array([1e-4, 1e-2, 1.0, 10.0, 100.0])  # the strong ones are done long before the weak ones
    together = fit_logistic(x, y, 3, penalties, np.ones((120, 5)))
    for i, penalty in enumerate(penalties):
        alone = fit_logistic(x, y, 3, np.array([penalty]), np.ones((120, 1)))[:, 0]
        # a step that lowers it by less than 1e-5 is the last
        assert loss(x, y, together[:, i], penalty) == pytest.approx(loss(x, y, alone, penalty), rel=1e-4)
