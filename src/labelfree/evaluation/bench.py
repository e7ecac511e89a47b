"""The measurements of an evaluation: every method, at every label budget, with every seed, within the time allowed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from labelfree.encoders.base import Encoder
from labelfree.errors import LabelfreeError
from labelfree.evaluation.parts import Parts, fresh_encoder, units
from labelfree.evaluation.probes import Labelled, Probed, boosting_probe, knn_probe, linear_probe
from labelfree.evaluation.statistics import Resampled, TestPart
from labelfree.tasks.classifier import (
    Classifier,
    Examples,
    FinetuneSettings,
    class_log_probabilities,
    search_pace,
    seconds_a_step,
    train_classifier,
    with_probe,
)
from labelfree.tasks.embed import embed
from labelfree.tasks.labels import LabelBudget, Part, choose, is_uneven
from labelfree.tasks.logistic import Scaler
from labelfree.tasks.metrics import RANKINGS
from labelfree.training.logs import counted, duration, say

if TYPE_CHECKING:
    from labelfree.run import Run

#: Ways to use an encoder, and what the pretrained one is measured beside.
PROTOCOLS = ("knn", "linear", "finetune")
BASELINES = ("scratch", "random", "raw")
#: Share of a time limit that embedding may take where fine-tuning follows, and where it does not.
EMBEDDING, EMBEDDING_ALONE = 0.3, 0.6
#: A time limit lowers the steps of fine-tuning to this share at least; what does not fit even so is left out.
LEAST_STEPS = 0.5
#: Training samples without a label in use that are embedded too: for the scale of features, and as neighbours shown.
OTHERS = 1000
#: Of these, as many as are embedded however little time there is.
FEWEST_OTHERS = 200
#: Training samples without a label in use whose raw features are computed, which takes no network.
RAW_OTHERS = 50_000


class Clock:
    """Time spent and left.

    Args:
        limit: seconds; None for no limit.
    """

    def __init__(self, limit: float | None) -> None:
        self.limit, self.began = limit, time.perf_counter()

    @property
    def spent(self) -> float:
        return time.perf_counter() - self.began

    @property
    def left(self) -> float:
        return float("inf") if self.limit is None else self.limit - self.spent

    def time(self, work: Callable[[], Any]) -> tuple[Any, float]:
        """What `work` returns, and its seconds."""
        began = self.spent
        return work(), self.spent - began


@dataclass(frozen=True)
class Features:
    """What is measured of samples: of (n,) places in the training part, sorted, and of the whole test part.

    Attributes:
        places: (n,) int64.
        train: (n, D), dense or a scipy sparse matrix.
        test: (N, D).
    """

    places: np.ndarray
    train: Any
    test: Any

    def __len__(self) -> int:
        return self.train.shape[0] + self.test.shape[0]

    def of(self, rows: np.ndarray) -> Any:
        """Training features of these places in the training part."""
        return self.train[np.searchsorted(self.places, rows)]


class Bench:
    """The measurements of one evaluation.

    Attributes:
        guesses: (protocol, budget, method) → (seeds, test samples) guessed classes; one row where seeds do not differ.
        margins: the same keys → (seeds, test samples) how much the second of two classes is preferred.
        validation: the same keys → mean score on held-out training samples.
        features: pretrained features; `embedding_seconds` is what each took.
        beside: the baselines that are measured: those asked for that can be had.
        trained: what is fine-tuned: the pretrained network, and the same from scratch.
        cut: budgets at which networks were trained for a share of their steps only, and that share.
        left_out: what was not measured, in words.
    """

    def __init__(
        self,
        run: Run,
        parts: Parts,
        budgets: list[LabelBudget],
        seeds: int,
        metric: str,
        seed: int,
        tuning: FinetuneSettings,
        clock: Clock,
        protocols: Sequence[str] = PROTOCOLS,
        baselines: Sequence[str] = BASELINES,
    ) -> None:
        self.run, self.seeds, self.seed, self.protocols = run, seeds, seed, protocols
        self.tuning, self.clock = tuning, clock
        self.left_out = list(parts.left_out)
        self.beside = self._beside(baselines)
        self.trained = ("pretrained", *(("scratch",) if "scratch" in self.beside else ()))
        self.parts = parts
        suitable = "balanced_accuracy" if is_uneven(self._counts(parts.train)) else "accuracy"
        self.metric = suitable if metric == "auto" else metric
        self.train, self.test, self.others = parts.train, parts.test, OTHERS
        self._count(budgets)
        self._thin()
        self._count(budgets)
        counts = self._counts(parts.train)
        self.positive = int(counts[1] <= counts[0])  # rankings look for the rarer of two classes
        self.judge = TestPart(self.test.y, units(self.test), seed, self.positive)
        self.guesses: dict[tuple[str, str, str], np.ndarray] = {}
        self.margins: dict[tuple[str, str, str], np.ndarray] = {}
        self.validation: dict[tuple[str, str, str], float | None] = {}
        self.cut: dict[str, float] = {}
        self.features: Features | None = None
        self.embedding_seconds = 0.0

    def _beside(self, asked: Sequence[str]) -> frozenset[str]:
        """Of the baselines asked for those that can be had; the others are named in `left_out`."""
        if unasked := [name for name in BASELINES if name not in asked]:
            self.left_out.append(f"{', '.join(unasked)}: not asked for.")
        anew = [name for name in ("random", "scratch") if name in asked]
        if anew:
            try:
                fresh_encoder(self.run, self.seed)
            except LabelfreeError as error:
                self.left_out.append(f"{' and '.join(anew)}: {error}")
                return frozenset(asked).difference(anew)
        return frozenset(asked)

    # ---- samples

    def _counts(self, part: Part) -> np.ndarray:
        return np.bincount(part.y, minlength=len(self.parts.classes))

    def _count(self, budgets: list[LabelBudget]) -> None:
        """How many labels of each class the budgets are, out of the training part."""
        self.quotas = {budget.name: budget.quotas(self._counts(self.train)) for budget in budgets}
        self.budgets = sorted(budgets, key=lambda budget: self.labels(budget.name))

    def _thin(self) -> None:
        """Fewer samples, where embedding alone would use up the time: first of those without a label in use, then,
        said so, of both parts.
        """
        if self.clock.limit is None:
            return
        few = self.train.only(np.arange(min(64, len(self.train))))
        self._embed_part(self.run.encoder, few)  # the first time is slower
        _, seconds = self.clock.time(lambda: self._embed_part(self.run.encoder, few))
        room = self.clock.limit * (EMBEDDING if "finetune" in self.protocols else EMBEDDING_ALONE)
        allowed = room * len(few) / max(seconds, 1e-9)
        fresh = self.seeds if "random" in self.beside else 0
        networks = [range(self.seeds), *([number] for number in range(fresh))]

        def asked() -> int:
            return sum(len(self._places(numbers)) + len(self.test) for numbers in networks)

        if (excess := asked() - allowed) > 0:
            self.others = max(min(FEWEST_OTHERS, OTHERS), int(OTHERS - excess / len(networks)))
        share = allowed / asked()
        self.train, self.test = self._fewer(self.train, share, "training"), self._fewer(self.test, share, "test")

    def _fewer(self, part: Part, share: float, name: str) -> Part:
        """A share of a part: of training samples some of each class, of test samples any, since what some would favour
        is scored too well.
        """
        size = max(200, 2 * len(self.parts.classes), int(share * len(part)))
        if size >= len(part):
            return part
        rng = np.random.default_rng(self.seed)
        if name == "training":
            kept = choose(part.y, LabelBudget(name, count=size).quotas(self._counts(part)), rng)
        else:
            order = rng.permutation(len(part))
            if self.metric in RANKINGS:  # which need both classes
                size = max(size, 1 + int(np.unique(part.y[order], return_index=True)[1].max()))
            kept = np.sort(order[:size])
        among = f": shares are of the other {len(kept):,}" if name == "training" else ""
        self.left_out.append(
            f"For want of time {len(part) - len(kept):,} of {len(part):,} {name} samples were not used{among}."
        )
        return part.only(kept)

    def _embed_part(self, encoder: Encoder, part: Part) -> np.ndarray:
        options: dict[str, Any] = {"precision": "auto", "accelerator": self.tuning.accelerator}
        return embed(encoder, self.run.modality, part.dataset, indices=part.rows, **options)

    def _embed(self, encoder: Encoder, numbers: Iterable[int]) -> Features:
        """Features of the test part and of what seeds `numbers` look at in the training part."""
        places = self._places(numbers)
        train, test = (self._embed_part(encoder, part) for part in (self.train.only(places), self.test))
        return Features(places, train, test)

    def _places(self, numbers: Iterable[int], most: int | None = None) -> np.ndarray:
        """Places in the training part: labels that seeds `numbers` use, and some others, a few if it is not said."""
        chosen = [self.rows(budget, number) for budget in self.budgets for number in numbers]
        others = np.random.default_rng(self.seed).permutation(len(self.train))[: self.others if most is None else most]
        return np.unique(np.concatenate([*chosen, others]))

    def _embed_readable(self, encoder: Encoder) -> Features:
        """Features; samples that turn out to be unreadable, in sources too large for memory, are left out."""
        asked = len(self.train) + len(self.test)
        test = self._embed_part(encoder, self.test)
        gaps = np.isnan(test[:, 0])
        _check_any(int((~gaps).sum()), "test")
        if gaps.any():
            self.test, test = self.test.only(~gaps), test[~gaps]
            self.judge = TestPart(self.test.y, units(self.test), self.seed, self.positive)
        places, train = np.empty(0, dtype=np.int64), np.empty((0, test.shape[1]), dtype=np.float32)
        while len(new := np.setdiff1d(wanted := self._places(range(self.seeds)), places)):
            fresh = self._embed_part(encoder, self.train.only(new))
            holes = np.isnan(fresh[:, 0])
            places, train = np.append(places, new[~holes]), np.concatenate([train, fresh[~holes]])
            _check_any(len(places), "training")
            # labels are chosen anew, from those that are left
            kept = np.delete(np.arange(len(self.train)), new[holes])
            places, self.train = np.searchsorted(kept, places), self.train.only(kept)
            most = self._counts(self.train)
            self.quotas = {name: np.minimum(quota, most) for name, quota in self.quotas.items()}
        if bad := asked - len(self.train) - len(self.test):
            self.parts.warnings.append(f"{counted(bad, 'sample')} left out, not readable.")
        order = np.argsort(places)
        return Features(wanted, train[order[np.searchsorted(places, wanted, sorter=order)]], test)

    def rows(self, budget: LabelBudget, number: int) -> np.ndarray:
        """Places in the training part of the labels that seed `number` may use; smaller budgets are inside larger."""
        rng = np.random.default_rng((self.seed, number))
        return choose(self.train.y, self.quotas[budget.name], rng, self.train.groups)

    def is_share(self, budget: LabelBudget) -> bool:
        """Whether a budget is the share of the labels that its name says, give or take a fifth of it, of all labels."""
        asked = (budget.share or 0.0) * len(self.train)
        whole = len(self.train) == len(self.parts.train)
        return whole and asked > 0 and abs(self.labels(budget.name) - asked) <= 0.2 * asked

    def missing(self, budget: str) -> tuple[str, ...]:
        """Of the baselines that a person would use, those that the protocols ask for and that time left out."""
        asked: dict[str, tuple[str, str]] = {}
        if "finetune" in self.protocols and not self.run.encoder.remembers:
            asked["scratch"] = ("finetune", "scratch")
        if "linear" in self.protocols:
            asked |= {"raw" if way == "linear" else f"raw/{way}": (way, "raw") for way in self.run.modality.classical}
        measured = {(protocol, method) for protocol, name, method in self.guesses if name == budget}
        return tuple(name for name, pair in asked.items() if pair[1] in self.beside and pair not in measured)

    def labels(self, budget: str) -> int:
        """How many labels the budget of this name is."""
        return int(self.quotas[budget].sum())

    def _is_all(self, budget: LabelBudget) -> bool:
        return self.labels(budget.name) >= len(self.train)

    # ---- frozen encoders and raw features

    def frozen(self) -> None:
        """Probes of the pretrained encoder, of random ones and of raw features, at every budget."""
        protocols = [name for name in ("knn", "linear") if name in self.protocols]
        features, seconds = self.clock.time(lambda: self._embed_readable(self.run.encoder))
        self.features, self.embedding_seconds = features, seconds / len(features)
        self._probe("pretrained", lambda _: features, protocols)
        if not protocols:
            return
        if "linear" in protocols and "raw" in self.beside:  # first, since raw features say more than a random network
            self._raw()
        room = self.clock.left / 2 if "finetune" in self.protocols else self.clock.left
        if "random" in self.beside and seconds * self.seeds > room:
            self.left_out.append("A random frozen encoder: no time to embed with it.")
        elif "random" in self.beside:
            fresh = [self._embed(fresh_encoder(self.run, self.seed + number), [number]) for number in range(self.seeds)]
            self._probe("random", lambda number: fresh[number], protocols)

    def _raw(self) -> None:
        if self.clock.left <= 0:
            self.left_out.append("Raw features: no time left.")
            return
        # many others too, since words and scales are known the better the more samples there are, labels or not
        places = self._places(range(self.seeds), RAW_OTHERS)
        found = self.run.modality.raw_features(self.train.only(places).alone(), [self.test.alone()])
        train, test = (np.nan_to_num(x) if isinstance(x, np.ndarray) else x.tocsr() for x in found)
        features = Features(places, train, test)
        self._probe("raw", lambda _: features, list(self.run.modality.classical))

    def _probe(self, method: str, features: Callable[[int], Features], protocols: list[str]) -> None:
        """Every budget and protocol of one method, small budgets first."""
        scalers = {}
        took = 0.0
        for budget in self.budgets:
            for protocol in protocols:
                if took * 4 > self.clock.left:
                    self.left_out.append(f"{protocol} at {budget.name} ({method}): no time left.")
                    continue
                began = self.clock.spent
                # with all labels nothing but a random encoder differs between seeds
                once = method != "random" and self._is_all(budget)
                probed = []
                for number in range(1 if once else self.seeds):
                    found = features(number)
                    if protocol == "linear" and id(found) not in scalers:
                        scalers[id(found)] = Scaler.fit(found.train)
                    probed.append(self._one_probe(protocol, budget, number, found, scalers.get(id(found))))
                self._keep(protocol, budget, method, probed)
                took = self.clock.spent - began

    def _one_probe(
        self, protocol: str, budget: LabelBudget, number: int, features: Features, scaler: Scaler | None
    ) -> Probed:
        rows = self.rows(budget, number)
        chosen = self.train.only(rows)
        part = Labelled(
            features.of(rows),
            chosen.y,
            len(self.parts.classes),
            chosen.groups,
            self.metric,
            self.positive,
            chosen.chronological,
        )
        rng = np.random.default_rng((self.seed, number, 1))
        if protocol == "knn":
            return knn_probe(part, features.test, rng)
        if protocol == "boosting":
            return boosting_probe(part, features.test, rng)
        assert scaler is not None
        return linear_probe(part, features.test, scaler, rng)

    def _keep(self, protocol: str, budget: LabelBudget, method: str, probed: Sequence[Probed]) -> None:
        key = (protocol, budget.name, method)
        self.guesses[key] = np.stack([p.guesses for p in probed])
        if len(self.parts.classes) == 2:
            self.margins[key] = np.stack([p.margin for p in probed])  # type: ignore[misc]
        known = [p.validation for p in probed if p.validation is not None]
        self.validation[key] = float(np.mean(known)) if known else None
        found = self.judge.interval(self.metric, self.answers(self.metric, key))
        say(f"  {protocol:9}{budget.name:>8}  {method:11}{found.mean:.3f}  ({found.low:.3f} … {found.high:.3f})")

    def answers(self, metric: str, key: tuple[str, str, str]) -> np.ndarray:
        """(S, N) what `metric` is computed of: guessed classes, or how sure the class looked for is."""
        if metric not in RANKINGS:
            return self.guesses[key]
        return self.margins[key] if self.positive == 1 else -self.margins[key]

    def resampled(self, key: tuple[str, str, str]) -> Resampled:
        """The score of what a protocol at a budget made of a method, and what it would be otherwise."""
        return self.judge.resampled(self.metric, self.answers(self.metric, key), beside=key[2] != "pretrained")

    # ---- all layers trained

    def finetuned(self) -> None:
        """Fine-tuning, and the same network from scratch with the same search, small budgets first."""
        if self.run.encoder.remembers:
            self.left_out.append("finetune: the encoder remembers all samples in their order, not a few labelled ones.")
            return
        left = list(self.budgets)
        step_seconds = self._step_seconds()
        if self.clock.limit is None:
            whole = duration(sum(self._cost(left, step_seconds)))
            say(f"  fine-tuning takes about {whole}; a time limit makes it shorter", "dim")
        for budget in self.budgets:
            share = self._affordable(left, step_seconds)
            while share < LEAST_STEPS and left:
                gone = left.pop()
                whole, time_left = (
                    duration(s) for s in (sum(self._cost([gone], step_seconds)), max(0.0, self.clock.left))
                )
                self.left_out.append(
                    f"finetune at {gone.name} ({' and '.join(self.trained)}): it would take about {whole}, and "
                    f"{time_left} of the time limit are left."
                )
                share = self._affordable(left, step_seconds)
            if budget not in left:
                continue
            nominal = self._steps(budget)
            steps = max(1, round(nominal * share))
            if steps < nominal:
                self.cut[budget.name] = min(0.99, round(steps / nominal, 2))
                self.left_out.append(
                    f"finetune at {budget.name}: {steps} steps instead of {nominal}, for want of time."
                )
            for method in self.trained:
                self._keep("finetune", budget, method, self._train_all(budget, method, steps))
            left.remove(budget)

    def _steps(self, budget: LabelBudget) -> int:
        return self.tuning.steps(self.labels(budget.name))

    def _step_seconds(self) -> dict[int, float]:
        """Measured seconds of a step, by batch size."""
        found: dict[int, float] = {}
        for budget in self.budgets:
            size = self.tuning.batch(self.labels(budget.name))
            if size not in found:
                examples = self._examples(budget, 0)
                model = Classifier(self.run.encoder, examples.classes)
                found[size] = seconds_a_step(model, self.run.modality, examples, self.tuning)
        return found

    def _affordable(self, budgets: list[LabelBudget], step_seconds: dict[int, float]) -> float:
        """The share of their steps that there is time for."""
        if self.clock.limit is None:
            return 1.0
        training, testing = self._cost(budgets, step_seconds)
        return min(1.0, (0.9 * self.clock.left - testing) / max(training, 1e-9))

    def _cost(self, budgets: list[LabelBudget], step_seconds: dict[int, float]) -> tuple[float, float]:
        """Seconds that fine-tuning takes at these budgets, and those of embedding and testing for it."""
        training = testing = 0.0
        for budget in budgets:
            labels = self.labels(budget.name)
            trials = sum(len(self.tuning.paces(method == "pretrained")) for method in self.trained)
            rounds = len(self.trained) * self.seeds + trials / 2
            training += rounds * self._steps(budget) * step_seconds[self.tuning.batch(labels)]
            testing += len(self.trained) * self.seeds * self.embedding_seconds * (len(self.test) + 2 * labels)
        return training, testing

    def _examples(self, budget: LabelBudget, number: int) -> Examples:
        part = self.train.only(self.rows(budget, number))
        classes = len(self.parts.classes)
        chosen = Examples(**vars(part), classes=classes, metric=self.metric, positive=self.positive)
        return chosen.in_memory(self.run.modality)

    def _train_all(self, budget: LabelBudget, method: str, steps: int) -> list[Probed]:
        """One training a seed; the learning rates are searched once, with the labels of the first seed."""
        modality, pretrained = self.run.modality, method == "pretrained"

        def make(examples: Examples, number: int) -> Classifier:
            if pretrained:
                return with_probe(self.run.encoder, modality, examples, accelerator=self.tuning.accelerator)
            return Classifier(fresh_encoder(self.run, self.seed + number), examples.classes)

        first = self._examples(budget, 0)
        search = search_pace(lambda few: make(few, 0), modality, first, self.tuning, steps, self.seed, pretrained)
        probed = []
        for number in range(self.seeds):
            examples = first if number == 0 else self._examples(budget, number)
            model = train_classifier(
                make(examples, number),
                modality,
                examples,
                self.tuning,
                pace=search.pace,
                steps=steps,
                seed=self.seed + number,
            )
            options: dict[str, Any] = {"precision": "auto", "accelerator": self.tuning.accelerator}
            found = class_log_probabilities(model, modality, self.test.dataset, indices=self.test.rows, **options)
            probed.append(Probed.of(np.nan_to_num(found), search.score, search.pace.rate))
        return probed


def _check_any(readable: int, part: str) -> None:
    """Raises LabelfreeError where no sample of a part is left."""
    if not readable:
        raise LabelfreeError(
            f"No sample of the {part} part has finite features.",
            "Look at the source with `labelfree doctor`; if it is sound, the run has diverged.",
        )
