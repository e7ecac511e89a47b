"""A scikit-learn transformer: `fit` learns an encoder without labels, `transform` gives its features."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from labelfree.data.sources import frame
from labelfree.errors import LabelfreeError

if TYPE_CHECKING:
    from torch import nn


def _is_missing(value: Any) -> bool:
    """Whether it stands for no value: None, NaN, or pandas' own, which need no import."""
    return type(value).__name__ in ("NoneType", "NAType", "NaTType") or (isinstance(value, float) and value != value)


class SelfSupervised(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Learns an encoder from X alone and turns samples into its features.

    X may be pictures (N, H, W[, C]), series (N, T[, C]) with NaN where a value is missing, N strings (missing ones,
    None or NaN, count as empty), or a data frame, whose rows are samples of a table with columns of any type. A
    two-dimensional array is series of one channel.

    Args:
        modality: "image", "series", "text" or "table"; "auto" recognises it.
        method: an objective or a recipe, as `labelfree list methods` names them; "auto" fits it to the data.
        encoder: such as "timm:resnet18" or "transformer:tiny", or a torch module (a copy of it is trained).
        epochs, steps, time_limit: how long to train, at most one of them; time_limit is seconds or "10m".
        settings: all further settings of the engine, the objective and the modality ({"batch_size": 64, "threads": 1}),
            in one mapping, so that scikit-learn can clone and search it.
        out: keep the run in this folder, which must not exist yet; otherwise nothing is left on disk.
        random_state: same number, same encoder.
        verbose: show what is found, chosen and learnt.

    Attributes:
        encoder_: the trained encoder.
        modality_: the kind of data, with the statistics of X.
        info_: what `run.json` says: choices with their reasons, health, versions.
        n_features_in_: X.shape[1], for arrays and data frames.
        feature_names_in_: the columns, for data frames.

    Examples:
        >>> from sklearn.linear_model import LogisticRegression
        >>> from sklearn.pipeline import make_pipeline
        >>> from labelfree import SelfSupervised
        >>> model = make_pipeline(SelfSupervised(modality="series", epochs=5), LogisticRegression())
    """

    def __init__(
        self,
        modality: str = "auto",
        method: str = "auto",
        encoder: str | nn.Module = "auto",
        *,
        epochs: int | None = None,
        steps: int | None = None,
        time_limit: float | str | None = None,
        settings: Mapping[str, Any] | None = None,
        out: str | Path | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        self.modality = modality
        self.method = method
        self.encoder = encoder
        self.epochs = epochs
        self.steps = steps
        self.time_limit = time_limit
        self.settings = settings
        self.out = out
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn from X; y is ignored.

        Raises:
            ValueError: X cannot be learnt from.
            KeyboardInterrupt: Ctrl-C, once the step is done.
        """
        source = self._check(X, reset=True)
        with tempfile.TemporaryDirectory() as folder:
            run = self._pretrain(source, self.out if self.out is not None else Path(folder) / "run")
            if run.state == "stopped":
                raise KeyboardInterrupt
            self.encoder_, self.modality_, self.info_ = run.encoder, run.modality, run.info
        self._n_features_out = self.encoder_.dim
        return self

    def transform(self, X: Any) -> np.ndarray:
        """(N, D) float32 features of each sample of X.

        Raises:
            ValueError: X is of another kind than what was fitted.
        """
        from labelfree.tasks.embed import embed

        check_is_fitted(self)
        source = self._check(X, reset=False)
        try:
            own = self.settings or {}
            where = str(own.get("accelerator", own.get("training.accelerator", "auto")))
            return embed(self.encoder_, self.modality_, self.modality_.open(source), accelerator=where)
        except LabelfreeError as error:
            raise ValueError(str(error)) from error

    _columns: list[str]
    _shape: tuple[int, ...] | None

    def _check(self, X: Any, reset: bool) -> Any:
        """X as a source: a list of strings, a table, or an array of the shape that was fitted."""
        some = X if isinstance(X, list | tuple | np.ndarray) or hasattr(X, "str") else ()
        if isinstance(next((value for value in some if not _is_missing(value)), None), str):
            if reset:
                self._columns, self._shape = [], None
            return ["" if _is_missing(text) else str(text) for text in X]
        if self.modality in ("auto", "table") and (reset or self._columns) and (table := frame(X)) is not None:
            validate_data(self, X, reset=reset, skip_check_array=True)
            if reset:
                self._columns, self._shape = table.column_names, (table.num_columns,)
            return table
        array = validate_data(self, X, reset=reset, dtype="numeric", allow_nd=True, ensure_all_finite="allow-nan")
        if reset:
            self._columns, self._shape = [], array.shape[1:]
        elif array.shape[1:] != self._shape:
            fitted = "texts" if self._shape is None else self._shape
            raise ValueError(
                f"X has samples of shape {array.shape[1:]}, but {type(self).__name__} was fitted with {fitted}."
            )
        return dict(zip(self._columns, array.T, strict=True)) if self._columns else array

    def _pretrain(self, source: Any, out: Path | str) -> Any:
        from labelfree.training.logs import silence
        from labelfree.training.pretrain import pretrain

        modality = self.modality
        if modality == "auto" and self._columns:
            modality = "table"
        elif modality == "auto" and isinstance(source, np.ndarray) and source.ndim == 2:
            modality = "series"
        seed = self.random_state
        if not isinstance(seed, Integral):
            seed = check_random_state(seed).randint(2**31 - 1)
        try:
            with nullcontext() if self.verbose else silence():
                return pretrain(
                    source,
                    modality=None if modality == "auto" else modality,
                    method=self.method,
                    encoder=copy.deepcopy(self.encoder),
                    out=out,
                    epochs=self.epochs,
                    steps=self.steps,
                    time_limit=self.time_limit,
                    seed=int(seed),
                    **dict(self.settings or {}),
                )
        except LabelfreeError as error:
            raise ValueError(str(error)) from error
