"""TS2Vec's readout of frozen features: a support vector machine, its penalty chosen on the training part alone."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.svm import SVC

#: Penalties tried; the last stands for a hard margin.
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4, 1e9)
_LARGE = 10_000
_FOLDS = 5


def svm_readout(
    train_features: np.ndarray, train_labels: np.ndarray, test_features: np.ndarray, seed: int = 0
) -> np.ndarray:
    """Predict labels with an RBF-kernel SVM (Yue et al. 2022, §4.1; protocol of Franceschi et al. 2019, appendix S3.1).

    The penalty is chosen by five-fold cross-validation on the training part. With fewer than five samples a class, or
    fewer than 50 in all, folds say little and the margin is hard. More than 10,000 samples are thinned to as many.

    Args:
        train_features: (N, D); rows that are not finite are left out.
        train_labels: (N,) of at least two classes.
        test_features: (M, D).
        seed: of the folds and of the thinning.

    Returns:
        (M,) labels.
    """
    usable = np.isfinite(train_features).all(axis=1)
    x, y = train_features[usable], np.asarray(train_labels)[usable]
    classes, counts = np.unique(y, return_counts=True)
    if len(y) // len(classes) < _FOLDS or len(y) < 50:
        model = SVC(C=PENALTIES[-1], gamma="scale")
    else:
        if len(y) > _LARGE:
            kept = np.random.default_rng(seed).permutation(len(y))[:_LARGE]
            x, y = x[kept], y[kept]
        folds = max(2, min(_FOLDS, int(counts.min())))
        splits = StratifiedKFold(folds, shuffle=True, random_state=seed)
        model = GridSearchCV(SVC(gamma="scale"), {"C": list(PENALTIES)}, cv=splits)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "The least populated class", UserWarning
        )  # one sample: in no fold's test part
        model.fit(x, y)
    return np.asarray(model.predict(np.nan_to_num(test_features)))
