"""The evaluation protocol: what a pretraining was worth, in labels, beside honest baselines."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from labelfree import runtime
from labelfree.errors import LabelfreeError, nearest
from labelfree.evaluation.bench import BASELINES, PROTOCOLS, Bench, Clock
from labelfree.evaluation.gallery import write_gallery
from labelfree.evaluation.parts import read_parts
from labelfree.evaluation.statistics import Resampled
from labelfree.evaluation.verdict import SHOWN, Comparison, label_saving, verdict
from labelfree.files import write_new_json
from labelfree.settings import listed, whole
from labelfree.tasks.classifier import FinetuneSettings
from labelfree.tasks.labels import LabelBudget
from labelfree.tasks.metrics import METRICS, RANKINGS, check_metric
from labelfree.training.logs import duration, parse_duration, say

if TYPE_CHECKING:
    from labelfree.run import Run

#: With fewer labels than this, validation is too coarse to choose between protocols, and the linear probe speaks.
CHOOSABLE = 100
#: Share of the time allowed in which copies are looked for in a source that is not in memory.
LOOKING = 0.1
INTERVAL = (
    "95%: Student's t over seeds (labels and initial weights differ) and a bootstrap over test samples (or groups), "
    "added in quadrature"
)

ONE_SEED = "95%: a bootstrap over test samples (or groups); how much seeds differ is not known from one"


@dataclass(frozen=True)
class Result:
    """One row: `method` (pretrained, scratch, random, raw) under `protocol` with the labels of `budget`.

    Raw features have a protocol of their own beside `linear` where a kind of data names it: `boosting`.

    `score` is the mean over `seeds`, which are one where seeds do not differ (the pretrained encoder, frozen, or raw
    features, with all labels); `low` and `high` its 95% interval; `labels` how many labels the budget is; `validation`
    the mean score on training samples held out (None without); `scores` the other metrics.
    """

    protocol: str
    budget: str
    method: str
    score: float
    low: float
    high: float
    seeds: int
    labels: int
    validation: float | None = None
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found; `to_dict` has the keys that scripts rely on.

    Attributes:
        verdict: the answer in words.
        outcomes: by budget, whether pretraining "helped", "did not help", "did worse", or that is "not known".
        label_saving: by budget, how many labels baselines need for the same score (see `verdict.label_saving`).
        metric: of `results`.
        results: the rows.
        left_out: what the time limit left out, in words.
        warnings: what limits the scores' meaning, in words.
        duplicates: test samples that are copies of training samples.
        comparisons: what the verdict rests on, by budget.
        about: label, classes, sizes, seeds, settings, what the interval is, seconds.
        path: the JSON file, under the run's `evaluation/`.
    """

    verdict: str
    outcomes: dict[str, str]
    label_saving: dict[str, Any]
    metric: str
    results: list[Result]
    left_out: list[str]
    warnings: list[str]
    duplicates: dict[str, Any]
    comparisons: list[Comparison]
    about: dict[str, Any]
    path: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `verdict`, `outcomes`, `label_saving`, `metric` and `results` are kept stable."""
        values = asdict(self)
        values.pop("path")
        return values

    def __str__(self) -> str:
        """The results as a table, what limits them, and the verdict."""
        from rich.console import Console

        console = Console(color_system=None, width=120)
        with console.capture() as captured:
            console.print(self.table())
        return "\n".join([captured.get().rstrip(), *self.warnings, *self.left_out, self.verdict])

    def table(self) -> Any:
        """A small rich table of the results."""
        from rich import box
        from rich.table import Table

        table = Table("protocol", "labels", "method", self.metric, "95% interval", "seeds", box=box.SIMPLE)
        for r in self.results:
            numbers = (f"{r.score:.3f}", f"{r.low:.3f} … {r.high:.3f}", str(r.seeds))
            table.add_row(r.protocol, f"{r.budget} ({r.labels:,})", r.method, *numbers)
        return table


@runtime.state_kept()
def evaluate(
    run: Run,
    train: Any,
    test: Any | None = None,
    *,
    label: str,
    budgets: str | float | Sequence[str | float] = ("1%", "10%", "100%"),
    protocols: str | Sequence[str] = PROTOCOLS,
    baselines: str | Sequence[str] = BASELINES,
    seeds: int = 3,
    time_limit: float | str | None = None,
    group: str | None = None,
    metric: str = "auto",
    seed: int | None = None,
    **settings: Any,
) -> Evaluation:
    """Say what a run's encoder is worth with few labels, beside the network from scratch, a random one, raw features.

    Nothing is chosen on the test part: penalties, neighbours, learning rates and the protocol that speaks in the
    verdict are chosen on training samples. All methods of a seed get the same labels.

    Args:
        run: a pretraining.
        train: labelled source; its samples without the label are not used.
        test: labelled source to score on; None to hold out a fifth of `train`.
        label: name of the label column.
        budgets: how many of the labels may be used, one or several: "1%", "5/class", 200, "1%,10%".
        protocols: of knn, linear, finetune, one or several.
        baselines: of scratch, random, raw, those to measure beside, or "none": runs that are compared with each other
            on the same labels need theirs once.
        seeds: repetitions, with other labels and initial weights.
        time_limit: seconds or "10m"; what does not fit is left out, and said.
        group: column whose values no split may cut.
        metric: accuracy, balanced_accuracy, macro_f1; for two classes also average_precision and roc_auc, which look
            for the rarer one; "auto" takes balanced accuracy where classes are uneven.
        seed: of every random number, from 0 on; 0 by default.
        **settings: of fine-tuning (`labelfree.tasks.classifier.FinetuneSettings`).

    Raises:
        LabelfreeError: anything that the user can mend.
    """
    protocols = listed(protocols)
    baselines = () if baselines == "none" else listed(baselines)
    seeds, seed = whole("seeds", seeds), whole("seed", seed or 0)
    _check(protocols, baselines, seeds, metric)
    asked = (budgets,) if isinstance(budgets, int | float) else listed(budgets)
    wanted = list(dict.fromkeys(LabelBudget.parse(budget) for budget in asked))
    tuning = FinetuneSettings.read(settings, "finetune")
    runtime.checked_device(tuning.accelerator)
    runtime.prepare_machine(tuning.threads)
    torch.manual_seed(seed)
    clock = Clock(None if time_limit is None else parse_duration(time_limit))
    parts = read_parts(run, train, test, label, group, seed, LOOKING * clock.left)
    check_metric(metric, len(parts.classes), parts.test.y)
    say(
        f"Evaluating '{run.path}' on {len(parts.train):,} training and {len(parts.test):,} test samples "
        f"of {len(parts.classes)} classes of '{label}'"
    )
    bench = Bench(run, parts, wanted, seeds, metric, seed, tuning, clock, protocols, baselines)
    bench.frozen()
    if "finetune" in protocols:
        bench.finetuned()
    return _save(run, _conclude(bench, label, group), bench)


def _check(protocols: Sequence[str], baselines: Sequence[str], seeds: int, metric: str) -> None:
    for kind, given, known in (("protocol", protocols, PROTOCOLS), ("baseline", baselines, BASELINES)):
        for name in given:
            if name not in known:
                raise LabelfreeError(
                    f"There is no {kind} '{name}'.", nearest(name, known) or f"Use {', '.join(known)}."
                )
    if metric not in ("auto", *METRICS):
        raise LabelfreeError(f"There is no metric '{metric}'.", f"Use auto, {', '.join(METRICS)}.")
    if not protocols or seeds < 1:
        raise LabelfreeError("There is nothing to evaluate.", "Ask for a protocol, and for 1 seed or more.")


def _conclude(bench: Bench, label: str, group: str | None) -> Evaluation:
    """Results, comparisons, label saving and verdict of what was measured."""
    names = [budget.name for budget in bench.budgets]
    order = sorted(bench.guesses, key=lambda key: (SHOWN.index(key[0]), names.index(key[1])))
    results = [_result(bench, *key) for key in order]
    comparisons = [c for c in (_compare(bench, budget) for budget in bench.budgets) if c is not None]
    ours = {c.budget: bench.resampled((c.way, c.budget, "pretrained")) for c in comparisons}
    rivals = {"scratch": ["finetune"], "raw": bench.run.modality.classical}
    curves = {method: _curve(bench, method, ways) for method, ways in rivals.items()}
    saving = label_saving(comparisons, ours, curves, short=["scratch"] if bench.cut else [])
    about = {
        "label": label,
        "group": group,
        "classes": list(bench.parts.classes),
        "train": len(bench.train),
        "test": len(bench.test),
        "seeds": bench.seeds,
        "seed": bench.seed,
        "interval": INTERVAL if bench.seeds > 1 else ONE_SEED,
        "shared_groups": bench.parts.shared_groups,
        "precision": runtime.best_precision(runtime.device(bench.tuning.accelerator)),
        "finetune": bench.tuning.model_dump(mode="json"),
        "seconds": round(bench.clock.spent, 1),
        "versions": runtime.versions(),
        "hardware": runtime.hardware(),
    }
    words = verdict(comparisons, saving, bench.metric)
    notes = (bench.left_out, bench.parts.warnings, bench.parts.duplicates)
    outcomes: dict[str, str] = {c.budget: c.outcome for c in comparisons}
    return Evaluation(words, outcomes, saving, bench.metric, results, *notes, comparisons, about)


def _curve(bench: Bench, method: str, protocols: Sequence[str]) -> dict[int, Resampled]:
    """A baseline's learning curve: its best score at every number of labels (which favours the baseline)."""
    best: dict[int, Resampled] = {}
    for protocol, budget, other in bench.guesses:
        if other == method and protocol in protocols:
            found, labels = bench.resampled((protocol, budget, method)), bench.labels(budget)
            best[labels] = max(found, best.get(labels, found), key=lambda resampled: resampled.score)
    return best


def _result(bench: Bench, protocol: str, budget: str, method: str) -> Result:
    key = (protocol, budget, method)
    answers = bench.answers(bench.metric, key)
    found = bench.judge.interval(bench.metric, answers)
    both = len(bench.parts.classes) == len(np.unique(bench.test.y)) == 2
    possible = [name for name in METRICS if name not in RANKINGS or both]
    others = {name: float(bench.judge.scores(name, bench.answers(name, key)).mean()) for name in possible}
    row = (found.mean, found.low, found.high, len(answers), bench.labels(budget))
    return Result(protocol, budget, method, *row, bench.validation[key], others)


def _compare(bench: Bench, budget: LabelBudget) -> Comparison | None:
    """The pretrained encoder in its best way, by validation, beside the best baseline, by test score."""
    answers = {key: bench.answers(bench.metric, key) for key in bench.guesses if key[1] == budget.name}
    ours = {p: a for (p, _, m), a in answers.items() if m == "pretrained"}
    others = {(p, m): a for (p, _, m), a in answers.items() if m != "pretrained"}
    if not ours or not others:
        return None
    labels = bench.labels(budget.name)
    known = {p: bench.validation[(p, budget.name, "pretrained")] for p in ours}
    way: str = next(p for p in ("linear", "finetune", "knn") if p in ours)
    if labels >= CHOOSABLE or way != "linear":
        way = max(list(ours), key=lambda p: (-1.0 if known[p] is None else known[p], p == way))
    means = {key: float(bench.judge.scores(bench.metric, g).mean()) for key, g in others.items()}
    rival = max(means, key=lambda key: means[key])
    gain = bench.judge.interval(bench.metric, ours[way], others[rival])
    score = float(bench.judge.scores(bench.metric, ours[way]).mean())
    found = Comparison(budget.name, labels, way, score, rival[1], rival[0], means[rival], gain)
    return replace(
        found,
        missing=bench.missing(budget.name),
        alone=all(method == "random" for _, method in others),
        share=bench.is_share(budget),
        seeds=bench.seeds,
        steps=bench.cut.get(budget.name, 1.0) if ("finetune", "scratch") in others else 1.0,
    )


def _save(run: Run, evaluation: Evaluation, bench: Bench) -> Evaluation:
    """Write the JSON and what the report needs to draw, numbered so that nothing is overwritten."""
    folder = run.path / "evaluation"
    word = re.sub(r"[^a-z0-9]+", "-", evaluation.about["label"].lower()).strip("-") or "label"
    last = max((int(path.stem[:3]) for path in folder.glob("[0-9][0-9][0-9]-*.json")), default=0)
    names = (f"{number:03d}-{word}.json" for number in count(last + 1))
    path = next(folder / name for name in names if write_new_json(folder / name, evaluation.to_dict()))
    if bench.features is not None:
        write_gallery(folder / "gallery" / path.name, run.modality, bench)
    say(f"Evaluated in {duration(bench.clock.spent)}: '{path}'", "bold green")
    return replace(evaluation, path=path)
