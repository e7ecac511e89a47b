"""Embedding, fine-tuning and prediction on a small run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs
import torch
from pyarrow import csv, parquet

from labelfree import runtime
from labelfree.cli import main
from labelfree.data.batch import Batch, Sample, Unreadable
from labelfree.data.cache import cached
from labelfree.encoders.custom import Custom
from labelfree.errors import LabelfreeError
from labelfree.files import read_json, write_json
from labelfree.run import Run, load
from labelfree.tasks import classifier
from labelfree.tasks import embed as features_of
from labelfree.tasks.classifier import Classifier, Examples, FinetuneSettings, Pace, parameter_groups, train_classifier
from labelfree.tasks.doctor import doctor
from labelfree.tasks.embed import embed, write_embeddings
from labelfree.tasks.finetune import Model, finetune
from labelfree.tasks.labels import Subset
from labelfree.tasks.predict import predict


@pytest.fixture
def train(tmp_path: Path) -> Path:
    return runs.save(tmp_path / "train.npz", 60, seed=1)


@pytest.fixture
def run(tmp_path: Path, train: Path) -> Run:
    return runs.make_run(tmp_path / "run", train)


class Holes(Subset):
    """A dataset in which every third sample cannot be read."""

    def read(self, indices: object) -> list[Sample | Unreadable]:
        items = super().read(indices)  # type: ignore[arg-type]
        return [Unreadable(item.index, "x", "hole") if item.index % 3 == 0 else item for item in items]


def test_embedding_does_not_depend_on_batches_or_on_a_cache(run: Run, train: Path) -> None:
    dataset = run.open(train)
    features = embed(run.encoder, run.modality, dataset, batch_size=7)
    assert features.shape == (60, 16)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, embed(run.encoder, run.modality, dataset, batch_size=60), atol=1e-5)
    np.testing.assert_allclose(features, run.embed(train), atol=1e-5)
    some = embed(run.encoder, run.modality, cached(dataset, run.modality), indices=[5, 3, 3])
    np.testing.assert_allclose(some, features[[5, 3, 3]], atol=1e-5)


def test_features_that_are_kept_are_computed_in_float32_and_those_to_score_in_the_best_precision(
    run: Run, train: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "fast_bf16", lambda on: True)
    dataset = run.open(train)
    exact = embed(run.encoder, run.modality, dataset, precision="32")
    quick = embed(run.encoder, run.modality, dataset, precision="auto")
    np.testing.assert_array_equal(run.embed(train), exact)
    np.testing.assert_array_equal(quick, embed(run.encoder, run.modality, dataset, precision="bf16"))
    assert 0 < np.abs(quick - exact).max() < 0.02


def test_a_network_is_left_as_it_was_found_whatever_happens(run: Run, train: Path) -> None:
    def torn(view: Batch) -> torch.Tensor:
        raise RuntimeError("torn")

    run.encoder.train()
    frozen = next(module for module in run.encoder.modules() if isinstance(module, torch.nn.Conv2d)).eval()
    modes = [module.training for module in run.encoder.modules()]
    with pytest.raises(RuntimeError, match="torn"):
        features_of.apply(run.encoder, torn, 16, run.modality, run.open(train))
    assert [module.training for module in run.encoder.modules()] == modes
    assert not frozen.training


def test_runs_and_models_opened_with_one_network_keep_their_own_weights(run: Run, train: Path, tmp_path: Path) -> None:
    other, network = runs.make_run(tmp_path / "other", train, seed=1), runs.Net()
    model = run.finetune(train, "label", tmp_path / "model", most_steps=2)
    opened = [load(place.path, network) for place in (run, other)]
    found = [again.embed(train) for again in opened]
    np.testing.assert_array_equal(load(tmp_path / "model", network).predict(train), model.predict(train))
    for again, features, owner in zip(opened, found, (run, other), strict=True):
        np.testing.assert_array_equal(features, owner.embed(train))
        np.testing.assert_array_equal(features, again.embed(train))


@pytest.fixture
def busy_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU on which nothing can be computed, as where another program has filled it."""

    def there(word: str = "auto", count: int = 1) -> torch.device:
        return torch.device("cuda" if word == "auto" else word)

    monkeypatch.setattr(runtime, "device", there)
    monkeypatch.setattr(runtime, "checked_device", there)


@pytest.mark.usefixtures("busy_gpu")
def test_all_that_a_run_is_used_for_stays_where_it_is_told_to(run: Run, train: Path, tmp_path: Path) -> None:
    here: dict[str, Any] = {"accelerator": "cpu"}
    model = run.finetune(train, "label", tmp_path / "model", most_steps=1, **here)
    uses: list[Callable[..., Any]] = [
        partial(run.embed, train),
        partial(write_embeddings, run, train, tmp_path / "a.npy", force=True),
        partial(run.anomalies, train),
        partial(doctor, train, run=run),
        partial(model.predict, train),
        partial(predict, model, train, tmp_path / "a.csv", force=True),
        partial(run.finetune, train, "label", tmp_path / "model", most_steps=1, force=True),
        partial(run.evaluate, train, label="label", budgets="100%", seeds=1, most_steps=1),
    ]
    for use in uses:
        use(**here)
        with pytest.raises((AssertionError, RuntimeError), match=r"CUDA|cuda|NVIDIA"):
            use()


@pytest.mark.parametrize(("word", "said"), [("gpu", "no accelerator 'gpu'"), ("cuda", "1 GPU"), ("mps", "Apple GPU")])
def test_a_device_that_is_not_there_is_named_before_the_work(
    run: Run, train: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, said: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(LabelfreeError, match=said):
        run.embed(train, accelerator=word)
    monkeypatch.setattr(Run, "open", lambda *_: pytest.fail("opened"))
    with pytest.raises(LabelfreeError, match=f"{said}|'mps'"):
        run.finetune(train, "label", tmp_path / "model", accelerator=word)


def test_a_batch_that_a_gpu_has_no_room_for_is_taken_in_parts(run: Run, train: Path) -> None:
    taken: list[int] = []

    def small(view: Batch) -> torch.Tensor:
        if len(view) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        taken.append(len(view))
        return run.encoder(view).pooled

    room = 20
    found = features_of.apply(run.encoder, small, 16, run.modality, run.open(train), batch_size=50)
    assert taken == [12, 13, 12, 13, 10]
    np.testing.assert_allclose(found, run.embed(train), atol=1e-5)
    room = 0
    with pytest.raises(torch.OutOfMemoryError):
        features_of.apply(run.encoder, small, 16, run.modality, run.open(train))


def test_threads_take_turns_with_a_network(run: Run, train: Path) -> None:
    inside, most = [0], [0]

    def watched(view: Batch) -> torch.Tensor:
        inside[0] += 1
        time.sleep(0.02)
        most[0] = max(most[0], inside[0])
        inside[0] -= 1
        return run.encoder(view).pooled

    dataset = run.open(train)
    look = partial(features_of.apply, run.encoder, watched, 16, run.modality, dataset, batch_size=20)
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda _: look(), range(2)))
    np.testing.assert_array_equal(*found)
    assert most == [1], "a network that one thread brings back from the device is not there for the other"


def test_batches_of_nothing_are_refused(run: Run, train: Path) -> None:
    for size in (0, -1, 2.5):
        with pytest.raises(LabelfreeError, match="batch_size"):
            run.embed(train, batch_size=size)


def test_a_home_folder_is_found_where_something_is_written_and_read(
    run: Run, train: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    write_embeddings(run, train, "~/features.npy")
    assert (tmp_path / "home" / "features.npy").exists()
    run.finetune(train, "label", "~/model", most_steps=1)
    assert Model.load("~/model", runs.Net()).classes
    assert not (tmp_path / "~").exists()


def test_an_encoder_of_another_make_is_refused(run: Run) -> None:
    place = run.path / "encoder" / "config.json"
    write_json(place, {**read_json(place), "format": 2})
    with pytest.raises(LabelfreeError, match="encoder is of format 2: expected 1"):
        _ = load(run.path, runs.Net()).encoder


def test_unreadable_samples_become_rows_of_nan(run: Run, train: Path) -> None:
    dataset = run.open(train)
    whole = embed(run.encoder, run.modality, dataset)
    holes = Holes(dataset, np.arange(60))
    features = embed(run.encoder, run.modality, holes, batch_size=8)
    assert np.isnan(features).all(axis=1).tolist() == [i % 3 == 0 for i in range(60)]
    np.testing.assert_allclose(features[1::3], whole[1::3], atol=1e-5)
    backwards = embed(run.encoder, run.modality, holes, batch_size=8, indices=np.arange(60)[::-1])
    np.testing.assert_allclose(backwards[::-1], features, atol=1e-5)


def test_embedding_leaves_the_encoder_as_it_was(run: Run, train: Path) -> None:
    run.encoder.train()
    embed(run.encoder, run.modality, run.open(train))
    assert run.encoder.training


def test_embeddings_are_written_as_parquet_and_not_over_a_file(run: Run, train: Path, tmp_path: Path) -> None:
    file = tmp_path / "out" / "features.parquet"
    assert write_embeddings(run, train, file) == (60, 0)
    table = parquet.read_table(file)
    assert table.column_names == ["name", "feature"]
    np.testing.assert_allclose(np.stack(table["feature"].to_numpy()), run.embed(train), atol=1e-5)
    with pytest.raises(LabelfreeError, match="exists already"):
        write_embeddings(run, train, file)
    assert write_embeddings(run, train, file, force=True) == (60, 0)


def test_embeddings_are_written_as_arrays_and_text_too(
    run: Run, train: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_of, "CHUNK", 25)
    wanted = run.embed(train)
    write_embeddings(run, train, tmp_path / "a.npy")
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), wanted, atol=1e-5)
    write_embeddings(run, train, tmp_path / "a.csv")
    table = csv.read_csv(tmp_path / "a.csv")
    assert table.column_names[:2] == ["name", "f0"]
    written = np.stack([table[f"f{n}"].to_numpy() for n in range(wanted.shape[1])], axis=1)
    np.testing.assert_allclose(written, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("features.txt", "not a kind of file that can be written"),
        ("taken.npy/features.parquet", "no place for"),
        ("folder.csv", "is a folder"),
    ],
)
def test_embeddings_go_where_a_file_can_be(run: Run, train: Path, tmp_path: Path, out: str, words: str) -> None:
    (tmp_path / "taken.npy").touch()
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(LabelfreeError, match=words) as error:
        write_embeddings(run, train, tmp_path / out, force=True)
    assert error.value.remedy


def test_fine_tuning_learns_saves_and_loads(run: Run, train: Path, tmp_path: Path) -> None:
    test = runs.save(tmp_path / "test.npz", 60, seed=2)
    before = {name: value.clone() for name, value in run.encoder.state_dict().items()}
    model = finetune(run, train, "label", tmp_path / "model", learning_rate=0.01, epochs=60)
    truth = np.load(test)["label"]
    guess = model.predict(test)
    assert (guess == truth).mean() > 0.9
    assert model.info["validation"]["score"] > 0.5
    assert all(torch.equal(value, before[name]) for name, value in run.encoder.state_dict().items())
    loaded = load(tmp_path / "model", runs.Net())
    assert loaded.classes == ("columns", "diagonals", "rows")
    np.testing.assert_array_equal(loaded.probabilities(test), model.probabilities(test))
    np.testing.assert_allclose(loaded.probabilities(test).sum(axis=1), 1, atol=1e-5)


def test_a_fine_tuned_encoder_gives_features_too(
    run: Run, train: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = run.finetune(train, "label", tmp_path / "model", most_steps=4)
    features = model.embed(train)
    assert features.shape == (60, model.encoder.dim)
    assert np.abs(features - run.embed(train)).max() > 1e-3, "all layers have learnt"
    monkeypatch.setattr("labelfree.run.load", lambda path: load(path, runs.Net()))
    assert main(["embed", str(tmp_path / "model"), str(train), "--out", str(tmp_path / "a.npy")]) == 0
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), features, atol=1e-6)


def test_fine_tuning_is_the_same_for_the_same_seed(run: Run, train: Path, tmp_path: Path) -> None:
    first, second = (
        finetune(run, train, "label", tmp_path / name, budget="5/class", learning_rate=0.01) for name in ("a", "b")
    )
    assert first.info["labels"] == 15
    np.testing.assert_array_equal(first.probabilities(train), second.probabilities(train))


def test_a_time_limit_lowers_the_steps_and_says_so(
    run: Run, train: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = finetune(run, train, "label", tmp_path / "model", time_limit=0.5, epochs=3000, most_steps=10**6)
    assert 1 <= model.info["steps"] < 5000
    said = " ".join(capfd.readouterr().err.split())
    assert f"Trained for {model.info['steps']:,} of {model.info['wanted_steps']:,} steps, for want of time." in said


def test_a_time_limit_counts_what_is_embedded_beside_the_steps(
    run: Run, train: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("embed", "class_log_probabilities", "train_classifier")
    now, real = [0.0], {name: getattr(classifier, name) for name in names}

    def looked(name: str) -> Callable[..., object]:
        def slow(*arguments: object, indices: np.ndarray, **options: object) -> object:
            now[0] += 0.05 * len(indices)
            return real[name](*arguments, indices=indices, **options)

        return slow

    def trained(*args: object, steps: int, **options: object) -> object:
        now[0] += 0.01 * steps
        return real["train_classifier"](*args, steps=1, **options)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(classifier, "train_classifier", trained)
    for name in names[:2]:
        monkeypatch.setattr(classifier, name, looked(name))
    model = finetune(run, train, "label", tmp_path / "model", time_limit=20, epochs=3000, most_steps=10**6)
    assert 10 < model.info["steps"] < model.info["wanted_steps"]
    assert 15 < model.info["seconds"] <= 20


def test_fine_tuning_refuses_before_it_trains(run: Run, train: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(LabelfreeError, match="exists already"):
        finetune(run, train, "label", tmp_path / "there")
    with pytest.raises(LabelfreeError, match="no column 'lable'"):
        finetune(run, train, "lable", tmp_path / "new")
    with pytest.raises(LabelfreeError, match=r"no setting 'epoch'.*'epochs'"):
        finetune(run, train, "label", tmp_path / "new", epoch=3)
    with pytest.raises(LabelfreeError, match="'light', 'contrast' or 'none'"):
        finetune(run, train, "label", tmp_path / "new", augment="lite")
    assert not (tmp_path / "new").exists()


def test_force_replaces_a_model_and_nothing_else(run: Run, train: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious" / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("years")
    for folder in (run.path, tmp_path, precious.parent, precious):
        with pytest.raises(LabelfreeError, match="is not replaced"):
            finetune(run, train, "label", folder, force=True)
    (tmp_path / "model.json").write_text("{}")  # even then, a folder that holds the run stays
    with pytest.raises(LabelfreeError, match="holds what the model is made from"):
        finetune(run, train, "label", tmp_path, force=True)
    assert precious.read_text() == "years"
    assert Run(run.path, runs.Net()).encoder.dim == 16
    few = {"budget": "2/class", "learning_rate": 1e-3, "most_steps": 2}
    finetune(run, train, "label", tmp_path / "model", **few)
    model = finetune(run, train, "label", tmp_path / "model", seed=1, force=True, **few)
    assert model.path == tmp_path / "model"
    assert Model.load(tmp_path / "model", runs.Net()).info["seed"] == 1


def test_an_altered_model_is_not_loaded(run: Run, train: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    finetune(run, train, "label", folder, budget="2/class")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"abcd")
    with pytest.raises(LabelfreeError, match="cut or altered"):
        Model.load(folder, runs.Net())
    with pytest.raises(LabelfreeError, match="no model"):
        Model.load(tmp_path)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_predictions_are_written_as_a_table(run: Run, train: Path, tmp_path: Path, suffix: str) -> None:
    network = Classifier(Custom(runs.Net(), 16, "pooled"), 3)
    model = Model(network, run.modality, ("a", "b", "c"), {}, None)
    file = tmp_path / f"answers{suffix}"
    assert predict(model, train, file) == (60, 0)
    if suffix == ".jsonl":
        rows = [json.loads(line) for line in file.read_text().splitlines()]
    else:
        rows = (csv.read_csv(file) if suffix == ".csv" else parquet.read_table(file)).to_pylist()
    assert list(rows[0]) == ["name", "prediction", "confidence"]
    assert [row["prediction"] for row in rows] == model.predict(train).tolist()
    assert all(1 / 3 <= row["confidence"] <= 1 for row in rows)
    assert predict(model, train, file, force=True, probabilities=True) == (60, 0)
    if suffix == ".parquet":
        found = parquet.read_table(file)
        assert found.column_names[3:] == ["p:a", "p:b", "p:c"]
        np.testing.assert_allclose(
            np.stack([found[name] for name in found.column_names[3:]], axis=1), model.probabilities(train), rtol=1e-5
        )
    with pytest.raises(LabelfreeError, match="exists already"):
        predict(model, train, file)


def test_predictions_go_to_tables_only(run: Run, train: Path, tmp_path: Path) -> None:
    with pytest.raises(LabelfreeError, match="not a kind of file"):
        predict(tmp_path / "model", train, tmp_path / "answers.xls")


def test_unreadable_samples_get_no_prediction(run: Run) -> None:
    model = Model(Classifier(Custom(runs.Net(), 16, "pooled"), 2), run.modality, ("a", "b"), {}, None)
    assert model.names(np.array([[0.2, 0.8], [np.nan, np.nan]])).tolist() == ["b", None]


def test_earlier_layers_of_a_pretrained_encoder_learn_more_slowly() -> None:
    class Deep(Custom):
        def layers(self) -> list[list[torch.nn.Parameter]]:
            body = self.network.body
            return [list(body[0].parameters()), list(body[2].parameters())]

    model = Classifier(Deep(runs.Net(), 16, "pooled"), 3)
    tuned = parameter_groups(model, Pace(1.0, 0.75), 0.05)
    rates = {id(p): group["lr"] for group in tuned for p in group["params"]}
    body = model.encoder.network.body
    assert rates[id(body[0].weight)] < rates[id(body[2].weight)] < rates[id(model.head.weight)] == 1.0
    assert len(rates) == len(list(model.parameters()))
    assert {group["lr"] for group in parameter_groups(model, Pace(1.0), 0.05)} == {1.0}


def test_logits_are_not_rounded_to_bf16(run: Run, train: Path) -> None:
    model = Classifier(run.encoder, 3).eval()
    view = run.modality.prepare(run.modality.collate(run.open(train).read(range(8))))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(view)
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())


def test_the_search_tries_as_much_for_a_network_from_scratch() -> None:
    own = FinetuneSettings()
    assert len(own.paces(True)) == len(own.paces(False)) == 3
    assert {pace.decay for pace in own.paces(True)} == {0.75, 1.0}
    assert {pace.decay for pace in own.paces(False)} == {1.0}
    assert len(FinetuneSettings(layer_decay=0.9).paces(True)) == 3
    fixed = FinetuneSettings(learning_rate=1e-3, layer_decay=0.9)
    assert fixed.paces(True) == (Pace(1e-3, 0.9),)
    assert fixed.paces(False) == (Pace(1e-3),)


def test_balanced_examples_weigh_rare_classes_more(run: Run, train: Path) -> None:
    y = np.array([0] * 40 + [1] * 10 + [2] * 10)
    examples = Examples(run.open(train), np.arange(60), y, classes=3, metric="balanced_accuracy")
    weights = examples.class_weights().numpy()
    assert weights[1] / weights[0] == pytest.approx(4)
    assert weights[y].mean() == pytest.approx(1)


def test_examples_that_cannot_be_read_are_passed_over(run: Run, train: Path) -> None:
    examples = Examples(Holes(run.open(train), np.arange(60)), np.arange(60), np.arange(60) % 2, classes=2)
    assert examples.batch(run.modality, np.array([0, 3, 6])) is None
    found = examples.batch(run.modality, np.array([0, 1, 3, 4, 6]))
    assert found is not None
    assert found[1].tolist() == [1, 0]
    model = Classifier(Custom(runs.Net(), 16, "pooled"), 2)
    train_classifier(model, run.modality, examples, FinetuneSettings(batch_size=1), pace=Pace(1e-2), steps=6)
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_training_on_a_source_that_is_not_cached_gives_the_same(run: Run, train: Path) -> None:
    x, y = runs.pictures(60, seed=1)
    del x
    streamed = Examples(run.open(train), np.arange(60), y, classes=3)
    states = []
    for examples in (streamed, streamed.in_memory(run.modality)):
        torch.manual_seed(0)
        model = Classifier(Custom(runs.Net(), 16, "pooled"), 3)
        train_classifier(model, run.modality, examples, FinetuneSettings(), pace=Pace(1e-2), steps=4)
        states.append(model.state_dict())
    assert all(torch.allclose(states[0][name], states[1][name], atol=1e-6) for name in states[0])
