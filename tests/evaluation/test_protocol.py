"""The protocol end to end on a small run: what it reports, what it guards against, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import runs
import torch
from torch import nn

from labelfree.encoders.custom import Custom
from labelfree.encoders.saved import save_encoder
from labelfree.errors import LabelfreeError
from labelfree.evaluation import protocol
from labelfree.evaluation.parts import fresh_encoder, read_parts, units
from labelfree.evaluation.protocol import Evaluation, evaluate
from labelfree.files import write_json, write_new_json
from labelfree.modalities.events import Events, EventSettings
from labelfree.modalities.series import Series, SeriesSettings
from labelfree.run import Run

KEYS = {"verdict", "outcomes", "label_saving", "metric", "results", "left_out", "warnings", "duplicates"}
KEYS |= {"comparisons", "about"}
ROW = {"protocol", "budget", "method", "score", "low", "high", "seeds", "labels", "validation", "scores"}


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, Path]:
    return runs.save(tmp_path / "train.npz", 90, seed=1), runs.save(tmp_path / "test.npz", 60, seed=2)


@pytest.fixture
def run(tmp_path: Path, data: tuple[Path, Path]) -> Run:
    return runs.make_run(tmp_path / "run", data[0], seed=7)


def quick(run: Run, train: Any, test: Any, **options: Any) -> Evaluation:
    given = {"budgets": ["2/class"], "protocols": ["linear"], "label": "label", **options}
    return evaluate(run, train, test, **given)


def test_every_method_is_scored_at_every_budget_and_saved(run: Run, data: tuple[Path, Path]) -> None:
    found = evaluate(run, *data, label="label", budgets=["100%", "2/class"], most_steps=4, learning_rate=0.01)
    answer = found.to_dict()
    assert set(answer) == KEYS
    assert all(set(row) == ROW for row in answer["results"])
    assert {(r.protocol, r.method) for r in found.results} == {
        ("knn", "pretrained"),
        ("knn", "random"),
        ("linear", "pretrained"),
        ("linear", "random"),
        ("linear", "raw"),
        ("finetune", "pretrained"),
        ("finetune", "scratch"),
    }
    assert [r.budget for r in found.results if (r.protocol, r.method) == ("linear", "raw")] == ["2/class", "100%"]
    assert all(r.low <= r.score <= r.high for r in found.results)
    once = {(p, m) for p in ("knn", "linear") for m in ("pretrained", "raw")}
    assert all(r.seeds == (1 if r.budget == "100%" and (r.protocol, r.method) in once else 3) for r in found.results)
    assert set(found.outcomes) == {"100%", "2/class"}
    assert {r.labels for r in found.results} == {6, 90}
    assert found.path is not None
    assert json.loads(found.path.read_text()) == json.loads(json.dumps(answer))
    assert run.evaluations()[-1]["verdict"] == found.verdict
    gallery = json.loads((found.path.parent / "gallery" / found.path.name).read_text())
    assert len(gallery["map"]["components"]) == len(gallery["map"]["html"]) == 60
    assert all(len(row["near"]) == 6 for row in gallery["neighbours"])
    assert found.table().row_count == len(found.results)


def test_the_same_seed_gives_the_same_answer_and_nothing_is_overwritten(run: Run, data: tuple[Path, Path]) -> None:
    first, second = quick(run, *data), quick(run, *data)
    assert first.results == second.results
    assert [path.name for path in sorted(first.path.parent.glob("*.json"))] == ["001-label.json", "002-label.json"]
    assert quick(run, *data, seed=1).results != first.results


def test_evaluations_that_end_at_once_are_both_kept(
    run: Run, data: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(path: Path, value: Any) -> bool:
        monkeypatch.setattr(protocol, "write_new_json", write_new_json)
        quick(run, *data, seed=1)
        return write_new_json(path, value)

    monkeypatch.setattr(protocol, "write_new_json", late)
    quick(run, *data)
    folder = run.path / "evaluation"
    assert [path.name for path in sorted(folder.iterdir()) if path.is_file()] == ["001-label.json", "002-label.json"]
    assert [found["about"]["seed"] for found in run.evaluations()] == [1, 0]


def test_a_good_encoder_is_told_from_a_useless_one(run: Run, data: tuple[Path, Path], tmp_path: Path) -> None:
    class Blind(nn.Module):
        dim, shape = 16, "pooled"

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(16))

        def reset_parameters(self) -> None:
            nn.init.ones_(self.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.weight * x.new_ones(len(x), 1)

    good = quick(run, *data, budgets=["100%"]).results
    save_encoder(tmp_path / "blind" / "encoder", Custom(Blind(), 16, "pooled"), run.modality, "custom:Blind", False)
    write_json(tmp_path / "blind" / "run.json", run.info)
    found = quick(Run(tmp_path / "blind", Blind()), *data, budgets=["100%"])
    assert found.verdict.startswith(("Pretraining did not help", "It is not known"))
    score = {r.method: r.score for r in found.results}
    assert score["pretrained"] == pytest.approx(1 / 3, abs=0.1)
    assert next(r.score for r in good if r.method == "pretrained") > 0.7


def test_copies_of_training_samples_in_the_test_part_are_found(
    run: Run, data: tuple[Path, Path], tmp_path: Path
) -> None:
    x, y = runs.pictures(60, seed=2)
    x[:5] = runs.pictures(90, seed=1)[0][10:15]
    np.savez(tmp_path / "leaky.npz", images=x, label=np.array(["rows", "columns", "diagonals"])[y])
    clean, leaky = quick(run, *data), quick(run, data[0], tmp_path / "leaky.npz")
    assert clean.duplicates["test_in_train"] == 0
    assert clean.warnings == []
    assert leaky.duplicates["test_in_train"] == 5
    assert leaky.duplicates["examples"][0] == {"test": "row 0", "train": "row 10"}
    assert "5 of 60 test samples (8.3%) are exact copies" in leaky.warnings[0]


def test_testing_on_the_training_source_is_named(run: Run, data: tuple[Path, Path]) -> None:
    found = quick(run, data[0], data[0])
    assert any("say nothing about new data" in words for words in found.warnings)
    assert found.duplicates["share"] == 1


def test_pretraining_on_the_test_source_is_named(run: Run, data: tuple[Path, Path]) -> None:
    found = quick(run, data[1], data[0])
    assert any("pretrained on the test source" in words for words in found.warnings)


def test_pretraining_on_what_is_held_out_is_named(run: Run, data: tuple[Path, Path]) -> None:
    said = "The encoder was pretrained on the held-out samples too"
    seen, new = (read_parts(run, source, None, "label", None, 0).warnings for source in data)
    assert [words.startswith(said) for words in seen[:2]] == [False, True]
    assert not any(said in words for words in new)


def test_pretraining_on_a_folder_around_the_test_source_is_named(run: Run, data: tuple[Path, Path]) -> None:
    run.info |= {"source": str(data[1].parent), "fingerprint": "another"}
    assert any("pretrained on the test source" in words for words in quick(run, *data).warnings)
    run.info["source"] = str(data[1].parent / "elsewhere")
    assert not any("pretrained on" in words for words in quick(run, *data).warnings)


def test_pretraining_that_began_with_a_run_of_the_test_source_is_named(run: Run, data: tuple[Path, Path]) -> None:
    run.info["before"] = [{"source": None, "fingerprint": run.open(data[1]).fingerprint()}]
    assert any("pretrained on the test source" in words for words in quick(run, *data).warnings)


def test_without_a_test_source_a_fifth_is_held_out_with_copies_on_one_side(run: Run, tmp_path: Path) -> None:
    x, y = runs.pictures(60, seed=1)
    np.savez(tmp_path / "twice.npz", images=np.concatenate([x, x]), label=np.concatenate([y, y]))
    parts = read_parts(run, tmp_path / "twice.npz", None, "label", None, 0)
    assert len(parts.test) == 24
    assert len(parts.train) == 96
    assert parts.duplicates["test_in_train"] == 0
    assert set(parts.test.y) == {0, 1, 2}
    assert "held out" in parts.warnings[0]


@pytest.fixture
def log(tmp_path: Path) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    ends = rng.integers(0, 9, (2, 100))
    return {"time": rng.permutation(100), "sender": ends[0], "receiver": ends[1], "mark": np.arange(100) % 2}


def of_events(tmp_path: Path, log: dict[str, np.ndarray]) -> Run:
    modality = Events(EventSettings.read({"exclude": "mark"}, "events"))
    modality.fit(modality.open(pd.DataFrame(log)))
    save_encoder(tmp_path / "log" / "encoder", modality.transformer("pico", False), modality, "transformer:pico", False)
    write_json(tmp_path / "log" / "run.json", {})
    return Run(tmp_path / "log")


def test_of_events_the_last_fifth_is_held_out(tmp_path: Path, log: dict[str, np.ndarray]) -> None:
    parts = read_parts(of_events(tmp_path, log), pd.DataFrame(log), None, "mark", None, 0)
    times = [
        [item.time[-1] for item in part.dataset.read(part.rows.tolist()) if item.time is not None]
        for part in (parts.train, parts.test)
    ]
    assert (len(times[0]), len(times[1])) == (80, 20)
    assert max(times[0]) < min(times[1])
    assert "the last fifth of the training source was held out" in parts.warnings[0]


def of_windows(tmp_path: Path, y: np.ndarray, stride: int = 4) -> tuple[Run, dict[str, np.ndarray]]:
    """Recordings, one a label, each cut into ten windows."""
    source = {"x": np.random.default_rng(0).normal(size=(len(y), 40, 1)).astype(np.float32), "y": y}
    modality = Series(SeriesSettings(window=4, stride=stride))
    modality.fit(modality.open(source))
    save_encoder(tmp_path / "w" / "encoder", modality.transformer("pico", False), modality, "transformer:pico", False)
    write_json(tmp_path / "w" / "run.json", {})
    return Run(tmp_path / "w"), source


def test_pieces_of_a_recording_stay_on_one_side(tmp_path: Path) -> None:
    run, source = of_windows(tmp_path, np.arange(30) % 2)
    parts = read_parts(run, source, None, "y", None, 0)
    assert parts.train.groups is not None
    assert len(parts.test) == 60
    assert not set(parts.train.groups) & set(parts.test.groups)
    assert any("pieces of 30 recordings" in words for words in parts.warnings)
    few = read_parts(run, source, {name: values[:4] for name, values in source.items()}, "y", None, 0)
    assert len(np.unique(few.test.groups)) == 4
    assert any("samples of fewer than 5 recordings: '0' (20), '1' (20)" in words for words in few.warnings)
    alone = read_parts(run, source, {name: values[:1] for name, values in source.items()}, "y", None, 0)
    assert any("of one recording, which says nothing of others" in words for words in alone.warnings)
    assert len(np.unique(alone.test.groups)) == 1


def test_one_recording_in_the_test_part_leaves_everything_open(tmp_path: Path) -> None:
    run, source = of_windows(tmp_path, np.arange(30) % 2)
    found = quick(run, source, {name: values[:1] for name, values in source.items()}, label="y", baselines="raw")
    assert all((r.low, r.high) == (0, 1) for r in found.results)
    assert set(found.outcomes.values()) == {"not known"}
    assert "the test part is too little to say" in found.verdict


def test_what_came_one_after_another_is_resampled_in_stretches(tmp_path: Path) -> None:
    run, source = of_windows(tmp_path, np.arange(10))
    test = read_parts(run, source, None, "y", None, 0).test
    assert test.groups is None
    assert np.bincount(units(test)).tolist() == [4, 4, 4, 4, 4]


def test_classes_with_few_test_samples_are_named(run: Run, data: tuple[Path, Path], tmp_path: Path) -> None:
    few = runs.save(tmp_path / "few.npz", 28, seed=3)
    said = [read_parts(run, data[0], test, "label", None, 0).warnings for test in (data[1], few)]
    assert said[0] == []
    assert said[1] == [
        "Classes with fewer than 10 test samples: 'columns' (9), 'diagonals' (9). How well each of them is told is "
        "hardly known."
    ]


def test_pieces_of_one_recording_a_class_are_split_by_time(tmp_path: Path) -> None:
    run, source = of_windows(tmp_path, np.arange(3))
    parts = read_parts(run, source, None, "y", None, 0)
    assert parts.test.rows.tolist() == [8, 9, 18, 19, 28, 29]
    assert parts.train.chronological
    assert any("all of some class are of one" in words for words in parts.warnings)
    assert any("the last fifth of each class" in words for words in parts.warnings)


def test_pieces_that_overlap_with_what_is_held_out_are_left_out_of_training(tmp_path: Path) -> None:
    run, source = of_windows(tmp_path, np.arange(3), stride=2)
    parts = read_parts(run, source, None, "y", None, 0)
    spans = run.open(source).spans
    train, test = ({step for row in part.rows for step in range(*spans[row])} for part in (parts.train, parts.test))
    assert not train & test
    assert len(parts.train) + len(parts.test) == len(spans) - 3, "one of each recording"
    assert any(words.startswith("3 training samples left out, which overlap") for words in parts.warnings)


def test_events_of_a_class_that_comes_late_are_refused(tmp_path: Path, log: dict[str, np.ndarray]) -> None:
    log["mark"] = np.where(log["time"] > 85, 2, log["mark"])
    with pytest.raises(LabelfreeError, match="before it '2' of 'mark' comes 0 times"):
        read_parts(of_events(tmp_path, log), pd.DataFrame(log), None, "mark", None, 0)


def test_groups_stay_whole_and_shared_ones_are_named(run: Run, data: tuple[Path, Path], tmp_path: Path) -> None:
    people = np.array([f"person {i // 9}" for i in range(90)])
    train = runs.save(tmp_path / "people.npz", 90, seed=1, person=people)
    parts = read_parts(run, train, None, "label", "person", 0)
    assert parts.shared_groups == []
    assert parts.warnings[0] == "There was no test source: 20% (2 of 10 groups) of the training source was held out."
    assert not set(parts.train.groups) & set(parts.test.groups)
    test = runs.save(tmp_path / "others.npz", 60, seed=2, person=people[30:])
    found = quick(run, train, test, group="person", budgets=["10%"])
    assert found.about["shared_groups"]
    assert any("values of 'person' are in the training and in the test part" in words for words in found.warnings)


def test_classes_that_each_lie_within_one_group_cannot_be_tested(run: Run, tmp_path: Path) -> None:
    train = runs.save(tmp_path / "train.npz", 90, seed=1)
    with np.load(train) as found:
        arrays = dict(found)
    np.savez(tmp_path / "people.npz", **arrays, person=arrays["label"])
    with pytest.raises(LabelfreeError, match=r"No class of 'label' is in the training and in the test part.*'person'"):
        read_parts(run, tmp_path / "people.npz", None, "label", "person", 0)


def test_labels_that_the_encoder_saw_are_refused(tmp_path: Path) -> None:
    import csv

    from labelfree.modalities.series import Series

    with (tmp_path / "long.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "speed", "force"])
        rows.writerows([[i // 20, 0.1 * i % 7, 0.3 * i % 5] for i in range(400)])
    dataset = Series().open(tmp_path / "long.csv")
    with pytest.raises(LabelfreeError, match=r"encoder sees.*cannot be a label"):
        dataset.column("force")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"label": "lable"}, "no column 'lable'"),
        ({"protocols": ["liner"]}, "no protocol 'liner'.*'linear'"),
        ({"budgets": ["lots"]}, "'lots' is not a label budget"),
        ({"metric": "f2"}, "no metric 'f2'"),
        ({"seeds": 0}, "nothing to evaluate"),
        ({"group": "nobody"}, "no column 'nobody'"),
        ({"epoch": 3}, "no setting 'epoch'"),
    ],
)
def test_mistakes_are_one_sentence(run: Run, data: tuple[Path, Path], options: dict[str, Any], words: str) -> None:
    with pytest.raises(LabelfreeError, match=words):
        quick(run, *data, **options)
    assert not (run.path / "evaluation").exists()


def test_a_class_with_one_label_is_refused_by_name(run: Run, data: tuple[Path, Path], tmp_path: Path) -> None:
    x, y = runs.pictures(31, seed=1, classes=2)
    np.savez(tmp_path / "odd.npz", images=x, label=np.where(np.arange(31) == 30, "odd one", y.astype(str)))
    with pytest.raises(LabelfreeError, match="at least 2 labelled samples: 'odd one' has 1"):
        quick(run, tmp_path / "odd.npz", data[1])


def test_uneven_classes_are_scored_by_balanced_accuracy(run: Run, tmp_path: Path) -> None:
    rows = np.r_[np.arange(0, 90, 3), np.arange(1, 12, 3), np.arange(2, 12, 3)]
    for name, seed in (("a", 1), ("b", 2)):
        x, y = runs.pictures(90, seed=seed)
        np.savez(tmp_path / f"{name}.npz", images=x[rows], label=y[rows])
    assert quick(run, tmp_path / "a.npz", tmp_path / "b.npz").metric == "balanced_accuracy"
    found = quick(run, tmp_path / "a.npz", tmp_path / "b.npz", metric="accuracy")
    assert found.metric == "accuracy"
    assert set(found.results[0].scores) == {"accuracy", "balanced_accuracy", "macro_f1"}


def test_threads_are_those_asked_for_and_afterwards_those_before(
    run: Run, data: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, bench = [], protocol.Bench
    monkeypatch.setattr(protocol, "Bench", lambda *given: seen.append(torch.get_num_threads()) or bench(*given))
    before = torch.get_num_threads()
    quick(run, *data, threads=before + 1, seeds=1)
    quick(run, *data, seeds=1)
    assert seen == [before + 1, before]
    assert torch.get_num_threads() == before


def test_one_budget_and_one_protocol_may_be_given_as_words(run: Run, data: tuple[Path, Path]) -> None:
    found = quick(run, *data, budgets="2/class", protocols="knn")
    assert {(r.budget, r.protocol) for r in found.results} == {("2/class", "knn")}
    assert {r.labels for r in quick(run, *data, budgets=12).results} == {12}
    shown = str(found)
    assert "pretrained" in shown
    assert shown.splitlines()[-1] == found.verdict


def test_a_time_limit_is_kept_and_what_it_left_out_is_said(run: Run, data: tuple[Path, Path]) -> None:
    found = evaluate(run, *data, label="label", budgets="2/class,100%", time_limit=2, epochs=100_000, most_steps=10**7)
    assert found.about["seconds"] < 10
    assert any("finetune" in words for words in found.left_out)
    assert any(r.method == "pretrained" for r in found.results)


@pytest.mark.parametrize(("asked", "kept"), [("none", set()), ("raw", {"raw"}), (["random"], {"random"})])
def test_baselines_that_nobody_asks_for_are_left_out_and_named(
    run: Run, data: tuple[Path, Path], asked: Any, kept: set[str]
) -> None:
    options = {"label": "label", "budgets": "2/class", "protocols": "knn,linear"}
    whole, found = (evaluate(run, *data, **options, baselines=b) for b in (("scratch", "random", "raw"), asked))
    assert {r.method for r in found.results} == {"pretrained"} | kept
    assert [r for r in whole.results if r.method in {"pretrained"} | kept] == found.results
    assert any("not asked for" in words and "scratch" in words for words in found.left_out)
    assert not any("not asked for" in words for words in whole.left_out)
    assert ("no baseline was evaluated" in found.verdict) == (not kept)


def test_a_baseline_that_does_not_exist_is_named_with_the_nearest(run: Run, data: tuple[Path, Path]) -> None:
    with pytest.raises(LabelfreeError, match="no baseline 'rnadom'") as caught:
        evaluate(run, *data, label="label", baselines="rnadom")
    assert "random" in str(caught.value.remedy)


def test_samples_that_cannot_be_read_are_no_copies_of_one_another(run: Run, data: tuple[Path, Path]) -> None:
    from labelfree.data.batch import Unreadable
    from labelfree.evaluation.parts import _duplicates, digests
    from labelfree.tasks.labels import Part, Subset

    class Holes(Subset):
        def read(self, indices: Any) -> list[Any]:
            items = super().read(indices)
            return [Unreadable(item.index, "x", "hole") if item.index < 3 else item for item in items]

    parts = [Part(Holes(run.open(path), np.arange(20)), np.arange(20), np.zeros(20, int)) for path in data]
    marks = [digests(part)[0] for part in parts]
    assert all((each < 0).sum() == 3 for each in marks)
    assert _duplicates(*parts, *marks)["test_in_train"] == 0


def test_methods_of_one_seed_get_the_same_labels(run: Run, data: tuple[Path, Path]) -> None:
    from labelfree.evaluation.bench import Bench, Clock
    from labelfree.tasks.classifier import FinetuneSettings
    from labelfree.tasks.labels import LabelBudget

    parts = read_parts(run, *data, "label", None, 0)
    budget = LabelBudget.parse("10%")
    bench = Bench(run, parts, [budget], 3, "auto", 0, FinetuneSettings(), Clock(None))
    rows = [bench.rows(budget, number) for number in range(3)]
    assert not np.array_equal(rows[0], rows[1])
    for number in range(3):
        np.testing.assert_array_equal(bench.rows(budget, number), rows[number])
        np.testing.assert_array_equal(bench._examples(budget, number).y, parts.train.y[rows[number]])


def test_samples_that_no_budget_looks_at_are_not_embedded(
    run: Run, data: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from labelfree.evaluation import bench as module
    from labelfree.tasks.classifier import FinetuneSettings
    from labelfree.tasks.embed import embed
    from labelfree.tasks.labels import LabelBudget

    monkeypatch.setattr(module, "OTHERS", 10)
    parts = read_parts(run, *data, "label", None, 0)
    budget = LabelBudget.parse("2/class")
    bench = module.Bench(run, parts, [budget], 3, "auto", 0, FinetuneSettings(), module.Clock(None), ["linear"])
    assert [len(bench._embed(run.encoder, [number]).train) for number in range(3)] != [len(parts.train)] * 3
    bench.frozen()
    assert bench.features is not None
    assert 10 <= len(bench.features.train) <= 10 + 3 * 6 < len(parts.train)
    assert len(bench.features.test) == len(parts.test)
    whole = embed(run.encoder, run.modality, parts.train.dataset, indices=parts.train.rows)
    for number in range(3):
        rows = bench.rows(budget, number)
        np.testing.assert_allclose(bench.features.of(rows), whole[rows], rtol=0.02, atol=0.02)  # other batches, in bf16
    assert bench.guesses[("linear", "2/class", "random")].shape == (3, len(parts.test))


def test_copies_are_looked_for_as_long_as_there_is_time_unless_all_is_in_memory(
    run: Run, data: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from labelfree.evaluation import parts as module

    read = (run, data[0], data[0], "label", None, 0)
    held = read_parts(*read, seconds=0.0)
    assert (held.duplicates["test_in_train"], held.left_out) == (90, [])
    monkeypatch.setattr(module, "cached", lambda dataset, modality: dataset)
    found = read_parts(*read, seconds=0.0)
    assert found.duplicates["test_in_train"] == 0
    assert found.left_out[0].startswith("For want of time copies were looked for among the first 0 of 90 training")
    assert read_parts(*read).duplicates["test_in_train"] == 90


def test_short_of_time_samples_without_a_label_in_use_are_given_up_before_labels(
    run: Run, data: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from labelfree.evaluation import bench as module
    from labelfree.tasks.classifier import FinetuneSettings
    from labelfree.tasks.labels import LabelBudget

    monkeypatch.setattr(module, "FEWEST_OTHERS", 5)
    monkeypatch.setattr(module.Clock, "time", lambda self, work: (work(), 1.0))  # 64 samples a second
    parts = read_parts(run, *data, "label", None, 0)
    budget = LabelBudget.parse("2/class")
    need = 2 * (len(parts.test) + 6)  # of the pretrained network and of one that is untrained

    def bench(extra: int, protocols: Sequence[str] = module.PROTOCOLS) -> module.Bench:
        clock = module.Clock((need + extra) / 64 / 0.3)
        return module.Bench(run, parts, [budget], 1, "auto", 0, FinetuneSettings(), clock, protocols)

    monkeypatch.setattr(module, "OTHERS", 60)
    assert bench(1000).others == 60
    assert 30 <= bench(60).others <= 36  # up to six of them have their label in use too
    assert len(bench(60).train) == len(parts.train)
    assert bench(60).left_out == []
    assert bench(-100).others == 5
    assert bench(60, ["knn", "linear"]).others == 60  # no fine-tuning waits for its time


def test_test_samples_are_given_up_at_random_and_labels_by_class(
    run: Run, data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from labelfree.evaluation import bench as module
    from labelfree.tasks.classifier import FinetuneSettings

    x, y = runs.pictures(900, seed=5)
    kept = (y < 2) | (np.arange(900) < 6)  # 'diagonals' twice
    np.savez(tmp_path / "many.npz", images=x[kept], label=np.array(["rows", "columns", "diagonals"])[y[kept]])
    parts = read_parts(run, data[0], tmp_path / "many.npz", "label", None, 0)
    monkeypatch.setattr(module.Clock, "time", lambda self, work: (work(), 1e6))
    counts = []
    for seed in range(8):
        bench = module.Bench(run, parts, [], 1, "accuracy", seed, FinetuneSettings(), module.Clock(1.0))
        assert len(bench.test) == 200
        counts.append(np.bincount(bench.test.y, minlength=3)[list(parts.classes).index("diagonals")])
    assert min(counts) == 0
    assert any("602 test samples were not used." in words for words in bench.left_out)


def test_a_budget_is_called_a_share_where_it_is_one(run: Run, data: tuple[Path, Path]) -> None:
    found = quick(run, *data, budgets="1%,10%", baselines="raw")
    assert [(c.budget, c.labels, c.share) for c in found.comparisons] == [("1%", 6, False), ("10%", 9, True)]
    assert "with 1%" not in found.verdict.lower()


def test_trainings_that_time_cut_short_are_known_to_the_verdict(run: Run, data: tuple[Path, Path]) -> None:
    from labelfree.evaluation.bench import Bench, Clock
    from labelfree.evaluation.protocol import _compare
    from labelfree.tasks.classifier import FinetuneSettings
    from labelfree.tasks.labels import LabelBudget

    budgets = [LabelBudget.parse(word) for word in ("2/class", "100%")]
    bench = Bench(run, read_parts(run, *data, "label", None, 0), budgets, 2, "auto", 0, FinetuneSettings(), Clock(None))
    for budget in budgets:
        for key in (("linear", budget.name, "pretrained"), ("finetune", budget.name, "scratch")):
            bench.guesses[key], bench.validation[key] = np.stack([bench.test.y] * 2), 0.5
    bench.cut["100%"] = 0.6
    found = [_compare(bench, budget) for budget in budgets]
    assert [c.steps for c in found if c is not None] == [1.0, 0.6]
    assert [c.missing for c in found if c is not None] == [("raw",), ("raw",)]


def test_samples_found_unreadable_late_are_left_out_of_labels_and_scores(
    run: Run, data: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from labelfree.evaluation import bench as module

    embed, holes, asked = module.embed, {3, 4, 50}, []

    def torn(encoder: Any, modality: Any, dataset: Any, *, indices: np.ndarray, **options: Any) -> np.ndarray:
        asked.extend(indices.tolist())
        features = embed(encoder, modality, dataset, indices=indices, **options)
        features[np.isin(indices, list(holes))] = np.nan
        return features

    monkeypatch.setattr(module, "OTHERS", 5)
    monkeypatch.setattr(module, "embed", torn)
    found = quick(run, *data, budgets=["2/class", "100%"], baselines="raw")
    assert len(asked) == 150, "each once"
    assert found.about["train"] == 87
    assert found.about["test"] == 57
    assert {r.labels for r in found.results} == {6, 87}
    assert "6 samples left out, not readable." in found.warnings


def test_a_fresh_encoder_has_new_weights_by_seed_and_leaves_the_generator_alone(run: Run) -> None:
    before = torch.get_rng_state()
    first, again, other = fresh_encoder(run, 0), fresh_encoder(run, 0), fresh_encoder(run, 1)
    assert torch.equal(before, torch.get_rng_state())
    name = "network.body.0.weight"
    assert torch.equal(first.state_dict()[name], again.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], run.encoder.state_dict()[name])


def test_an_encoder_object_of_the_users_is_evaluated_too(run: Run, data: tuple[Path, Path]) -> None:
    class Mine(Custom):
        def __init__(self) -> None:
            super().__init__(runs.Net(), 16, "pooled")

    own = Run(run.path, Mine())
    assert isinstance(fresh_encoder(own, 0), Mine)
    assert {"random", "raw"} < {r.method for r in quick(own, *data, seeds=1).results}


def test_a_network_that_cannot_be_initialised_anew_is_named(run: Run, data: tuple[Path, Path]) -> None:
    class Stubborn(nn.Module):
        dim = 16

        def __init__(self) -> None:
            super().__init__()
            self.body = runs.Net().body
            self.own = nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.own * torch.cat([self.body(x).mean(dim=(2, 3)), self.body(x).amax(dim=(2, 3))], dim=1)

    run.encoder.network = Stubborn()
    found = quick(run, *data, protocols=["knn", "linear", "finetune"], most_steps=2, learning_rate=1e-3, seeds=1)
    assert {(r.protocol, r.method) for r in found.results} == {
        ("knn", "pretrained"),
        ("linear", "pretrained"),
        ("linear", "raw"),
        ("finetune", "pretrained"),
    }
    assert any("random and scratch: Stubborn has 1 weights" in words for words in found.left_out)
    with pytest.raises(LabelfreeError, match="Stubborn has 1 weights that cannot be initialised anew"):
        fresh_encoder(run, 0)
