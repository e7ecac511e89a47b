"""The command line: what scripts and people may rely on."""

from __future__ import annotations

import ast
import io
import json
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import labelfree
from labelfree.cli import app, main
from labelfree.command import table
from labelfree.errors import LabelfreeError

VERBS = ("pretrain", "evaluate", "finetune", "predict", "embed", "anomalies", "zeroshot", "retrieve", "report")
VERBS += ("generate", "forecast", "doctor", "list", "demo")
QUICK = ["--steps", "3", "--encoder", "timm:test_resnet", "batch_size=8", "threads=1", "projector=16,8", "augment=none"]


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    capsys.readouterr()
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def answer(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    """The JSON object of a command that must succeed, and must print nothing else on standard output."""
    code, out, err = call(capsys, *words, "--json")
    assert code == 0, err
    assert out.count("\n") == 1
    found = json.loads(out)
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two kinds of pictures, bright above or bright below, with their kind beside them."""
    kind = np.arange(48) % 2
    generator = np.random.default_rng(0)
    found = generator.uniform(0, 120, (48, 12, 12))
    found[kind == 0, :6] += 120
    found[kind == 1, 6:] += 120
    path = tmp_path_factory.mktemp("cli") / "pictures.npz"
    np.savez(path, pictures=found.astype(np.uint8), kind=np.array(["above", "below"])[kind])
    return path


@pytest.fixture(scope="module")
def run(pictures: Path) -> Path:
    out = pictures.with_name("run")
    assert main(["pretrain", str(pictures), "--out", str(out), "--method", "simclr", *QUICK]) == 0
    return out


def test_help_answers_within_half_a_second() -> None:
    """In processor time, since other work may be on the machine."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = spent()
    subprocess.run([sys.executable, "-m", "labelfree", "--help"], check=True, capture_output=True)
    assert spent() - before < 0.5


def test_neither_help_nor_import_loads_torch() -> None:
    code = "import sys, labelfree, labelfree.cli; dir(labelfree); labelfree.cli.main(['pretrain', '--help']); "
    code += "assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_libraries_of_single_networks_are_loaded_by_these_alone() -> None:
    slow = {"timm", "torchvision", "torch._dynamo", "transformers", "torch_geometric"}
    code = "import sys; from labelfree import registry as r; r.modalities(), r.encoders(), r.objectives(); "
    subprocess.run([sys.executable, "-c", f"{code}assert not {slow} & set(sys.modules)"], check=True)


def test_nothing_that_windows_lacks_is_imported_with_a_module() -> None:
    package = Path(labelfree.__file__).parent
    parsed = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(package.rglob("*.py"))]
    found = {
        name.name
        for module in parsed
        for statement in module.body
        if isinstance(statement, ast.Import | ast.ImportFrom)
        for name in statement.names
    }
    assert {"numpy", "Path"} <= found
    assert not {"resource", "fcntl", "pwd", "grp", "termios", "DupFd"} & found


@pytest.mark.parametrize("words", [["pretrain", "gone"], ["embed", "run", "gone", "--out", "x.npy"]])
def test_data_that_are_not_there_are_told_without_loading_torch(words: list[str]) -> None:
    code = f"import sys, labelfree.cli; assert labelfree.cli.main({words}) == 2; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "There is nothing at 'gone'." in done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example_and_json(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, verb, "--help")
    assert code == 0
    assert re.search(rf"Examples:\n    labelfree {verb}", out)
    assert "--json" in out


def test_no_verb_is_cut_off_in_the_list_of_all(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert "..." not in call(capsys, "--help")[1].partition("Commands:")[2]


def test_all_verbs_are_known() -> None:
    assert {command.name for command in app.registered_commands} == set(VERBS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    import labelfree

    assert call(capsys, "--version")[:2] == (0, f"labelfree {labelfree.__version__}\n")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pretrian"], "Did you mean 'pretrain'"),
        (["pretrain", "x", "--epoch", "3"], "--epochs"),
        (["pretrain", "x", "--epochs", "many"], "'--epochs': Input should be a valid integer"),
        (["evaluate", "x"], "Missing option '--train'"),
        (["finetune", "x", "--train", "a", "--label", "b"], "Missing option '--out'"),
        (["list", "method"], "methods"),
        (["pretrain"], "No source was given."),
        (["pretrain", "x", "steps=3"], "Write it as --steps 3."),
        (["pretrain", "batch_size=8"], "No source was given."),
        (["pretrain", "x", "--batch-size", "4"], "If it is a setting, write batch_size=4."),
        (["evaluate", "r", "--train", "a", "--label", "b", "budgets=50%"], "Write it as --budgets 50%."),
        (["finetune", "r", "--train", "a", "--label", "b", "--out", "m", "out=x"], "Write it as --out x."),
        (["doctor", "photos", "limit=5"], "Write it as --limit 5."),
        (["doctor", "photos", "source=5"], "Write it before the settings."),
        (["list", "methods", "simclr"], "'simclr' has no methods."),
        (["list", "settings", "simclear"], "Did you mean 'simclr'?"),
        (["pretrain", "x", "fast"], "expected key=value"),
    ],
)
def test_a_slip_gets_one_line_and_code_2(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, *words)
    assert (code, out) == (2, "")
    assert expected in err
    assert err.count("\n") == 1


def test_with_json_a_mistake_is_an_object_too(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "pretrain", "nowhere", "--json")
    assert code == 2
    found = json.loads(out)
    assert set(found) == {"error", "remedy"}
    assert found["error"] in err


def test_list_answers_with_stable_keys(capsys: pytest.CaptureFixture[str]) -> None:
    methods = answer(capsys, "list", "methods")["methods"]
    assert all({"name", "objective", "needs", "modalities"} <= set(method) for method in methods)
    mae = next(method for method in methods if method["name"] == "mae")
    assert (mae["objective"], mae["modalities"]) == ("masked", ["image"])
    assert "mask" in mae["needs"]
    modalities = answer(capsys, "list", "modalities")["modalities"]
    assert {"image", "series", "text"} <= {modality["name"] for modality in modalities}
    encoders = answer(capsys, "list", "encoders")["encoders"]
    assert {"timm", "transformer"} <= {encoder["name"] for encoder in encoders}


def test_settings_are_listed_with_the_values_of_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    found = {entry["setting"]: entry for entry in answer(capsys, "list", "settings", "mae")["settings"]}
    assert (found["ratio"]["owner"], found["ratio"]["default"]) == ("masked", "0.75")
    assert all({"type", "default", "about"} <= set(entry) and entry["about"] for entry in found.values())
    owners = {entry["owner"] for entry in answer(capsys, "list", "settings")["settings"]}
    assert {"training", "finetune", "image", "simclr"} <= owners
    assert answer(capsys, "list") == {"lists": ["modalities", "encoders", "methods", "settings"]}


def test_methods_are_listed_with_their_papers(capsys: pytest.CaptureFixture[str]) -> None:
    papers = {method["name"]: method["paper"] for method in answer(capsys, "list", "methods")["methods"]}
    assert (papers["byol"], papers["cpc"], papers["mae"]) == (
        "Grill et al. 2020",
        "van den Oord et al. 2018",
        "He et al. 2022",
    )


def test_without_a_verb_the_help_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys)
    assert (code, err) == (0, "")
    assert out.splitlines()[0].startswith("Usage: labelfree")
    assert len(out.splitlines()) > len(VERBS)


def test_list_shows_a_table_to_people(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "list", "methods")
    assert code == 0
    assert "simclr" in out
    assert "{" not in out
    assert "…" not in out, "nothing is cut off where no one looks at a terminal"


def test_cells_of_a_table_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    cells = ["[deleted]", "[/x]", ":smile:", "[bold]a"]
    table(["name"], [[cell] for cell in cells])
    assert [line.strip() for line in capsys.readouterr().out.splitlines()][3:-1] == cells


def test_pretrain_answers_with_stable_keys(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "pretrain", pictures, "--out", tmp_path / "run", "--method", "simclr", *QUICK)
    assert set(found) == {"run", "state", "steps", "samples", "seconds", "samples_per_second", "health"}
    assert {"loss", "effective_rank", "feature_std"} <= set(found["health"])
    assert (found["state"], found["steps"], found["samples"]) == ("finished", 3, 24)
    assert Path(found["run"]) == tmp_path / "run"


def test_options_and_settings_may_come_from_a_file(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(
        f"source: {pictures}\nout: {tmp_path / 'run'}\nmethod: vicreg\nencoder: timm:test_resnet\nsteps: 9\n"
        "batch-size: 8\nthreads: 1\nimage: {size: 8, augment: none}\nexpander: [16]\nlearning_rate: 1e-3\n"
    )
    assert answer(capsys, "pretrain", "--config", config, "--steps", 2)["steps"] == 2
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert settings["modality"]["size"] == 8
    assert settings["training"]["learning_rate"] == 1e-3


def test_the_line_goes_over_the_file_and_the_file_over_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {}

    def taken(*_: object, **values: Any) -> None:
        given.clear()
        given.update(values)
        raise LabelfreeError("Seen.")

    monkeypatch.chdir(tmp_path)
    for name in "abt":
        Path(name).touch()
    (tmp_path / "all.yaml").write_text("source: a\nseeds: 1\nseed: 7\nbudgets: [5%]\nforce: true\nlabel: of-file\n")
    file = ["--config", tmp_path / "all.yaml"]
    monkeypatch.setattr("labelfree.run.Run.__init__", lambda *_: None)
    monkeypatch.setattr("labelfree.run.Run.evaluate", taken)
    call(capsys, "evaluate", "r", "--train", "t", "--label", "kind", *file)
    assert {key: given[key] for key in ("seeds", "seed", "budgets")} == {"seeds": 1, "seed": 7, "budgets": ["5%"]}
    assert (given["label"], "run" in given, "metric" in given) == ("kind", False, False)
    call(capsys, "evaluate", "r", "--train", "t", "--label", "kind", *file, "--seeds", "2")
    assert given["seeds"] == 2
    monkeypatch.setattr("labelfree.run.Run.finetune", taken)
    call(capsys, "finetune", "r", "--train", "t", "--label", "kind", "--out", "m", *file, "epochs=3")
    assert (given["force"], given["out"], given["seed"], given["epochs"]) == (True, "m", 7, "3")
    monkeypatch.setattr("labelfree.training.pretrain.pretrain", taken)
    call(capsys, "pretrain", "b", *file)
    assert given["source"] == "b"
    call(capsys, "pretrain", *file, "batch_size=8")
    assert (given["source"], given["batch_size"], "accelerator" in given) == ("a", "8", False)


@pytest.mark.parametrize("verb", ["evaluate", "finetune"])
def test_options_without_which_nothing_goes_may_come_from_a_file(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def taken(self: object, **values: object) -> None:
        raise LabelfreeError(f"Seen {sorted(values.items())}.")

    monkeypatch.setattr("labelfree.run.Run.__init__", lambda *_: None)
    monkeypatch.setattr(f"labelfree.run.Run.{verb}", taken)
    config = tmp_path / "all.yaml"
    config.write_text(f"train: {tmp_path}\nlabel: kind\n" + "out: m\n" * (verb == "finetune"))
    code, _, err = call(capsys, verb, "r", "--config", config)
    assert (code, "Seen " in err, "('label', 'kind')" in err) == (2, True, True)
    shown = " ".join(call(capsys, verb, "--help")[1].split())
    assert shown.count("[required]") == (3 if verb == "evaluate" else 4)  # the run is always on the line


@pytest.mark.parametrize("words", [["--accelerator", "cpu"], ["accelerator=cpu"]])
def test_where_to_compute_is_an_option_of_every_verb_and_a_setting_of_those_that_have_some(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def taken(*arguments: Any, **values: Any) -> None:
        raise LabelfreeError(f"Seen {values.get('accelerator') or arguments[-1]}.")

    monkeypatch.setattr("labelfree.run.Run.__init__", lambda *_: None)
    names = ("run.Run.evaluate", "run.Run.finetune", "run.Run.anomalies", "run.Run.zero_shot", "run.Run.retrieve")
    for name in (*names, "training.pretrain.pretrain", "tasks.embed.write_embeddings", "tasks.predict.predict"):
        monkeypatch.setattr(f"labelfree.{name}", taken)
    monkeypatch.setattr("labelfree.tasks.doctor.doctor", taken)
    labelled, out = ["r", "--train", tmp_path, "--label", "l"], ["--out", tmp_path / "a.csv"]
    verbs = [["pretrain", tmp_path], ["evaluate", *labelled], ["finetune", *labelled, *out], ["doctor", tmp_path]]
    if words[0].startswith("--"):
        verbs += [[verb, "r", tmp_path, *out] for verb in ("embed", "predict", "anomalies", "zeroshot")]
        verbs.append(["retrieve", "r", tmp_path])
    for verb in verbs:
        assert "Seen cpu." in call(capsys, *verb, *words)[2], verb[0]


@pytest.mark.parametrize("verb", ["anomalies", "zeroshot", "doctor"])
def test_an_output_that_exists_is_refused_before_the_work(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / ("there.html" if verb == "doctor" else "there.csv")
    out.write_text("mine")
    code, _, err = call(capsys, verb, *(["nowhere"] if verb != "doctor" else []), tmp_path, "--out", out)
    assert (code, "exists already" in err) == (2, True)
    assert out.read_text() == "mine"


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: [", "just words"])
def test_a_file_that_holds_no_settings_is_refused(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text(content)
    code, _, err = call(capsys, "pretrain", "x", "--config", config)
    assert code == 2
    assert str(config) in err


def test_resuming_a_finished_run_says_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, "pretrain", "--resume", run)["state"] == "finished"


def test_embed_writes_a_row_a_sample(
    run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pyarrow import parquet

    out = tmp_path / "features.parquet"
    found = answer(capsys, "embed", run, pictures, "--out", out)
    dim = parquet.read_table(out)["feature"].type.list_size
    assert found == {"out": str(out), "count": 48, "unreadable": 0, "dim": dim}
    code, _, err = call(capsys, "embed", run, pictures, "--out", out)
    assert code == 2
    assert "exists already" in err
    assert call(capsys, "embed", run, pictures, "--out", out, "--force")[0] == 0


def test_embed_counts_apart_what_cannot_be_read(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image
    from pyarrow import parquet

    for name in "ac":
        Image.fromarray(np.arange(144, dtype=np.uint8).reshape(12, 12)).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes(b"cut")
    out = tmp_path / "features.parquet"
    code, words, _ = call(capsys, "embed", run, tmp_path, "--out", out)
    assert code == 0
    assert re.search(r"^2 vectors of \d+ numbers in '.*'; 1 unreadable sample is left empty\.$", words.strip())
    assert parquet.read_table(out)["feature"].is_null().to_pylist() == [False, True, False]
    found = answer(capsys, "embed", run, tmp_path, "--out", out, "--force")
    assert (found["count"], found["unreadable"]) == (2, 1)


ROW = {"protocol", "budget", "method", "score", "low", "high", "seeds"}
METHODS = {"pretrained", "scratch", "random", "raw"}


def check_evaluation(found: dict[str, Any]) -> None:
    """The keys of docs/json.md."""
    assert {"verdict", "outcomes", "label_saving", "metric", "results"} <= set(found)
    assert found["verdict"].endswith(".")
    assert isinstance(found["label_saving"], dict)
    for row in found["results"]:
        assert set(row) >= ROW
        assert row["method"] in METHODS
        assert row["protocol"] in {"knn", "linear", "finetune"}
        assert row["low"] <= row["score"] <= row["high"]


def test_evaluate_answers_with_stable_keys(run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--train", pictures, "--label", "kind", "--budgets", "10%,100%", "--seeds", "2"]
    found = answer(capsys, "evaluate", run, *words, "epochs=1", "most_steps=4")
    check_evaluation(found)
    assert {row["method"] for row in found["results"]} == METHODS
    assert {row["budget"] for row in found["results"]} == {"10%", "100%"}
    assert json.loads(Path(found["file"]).read_text())["verdict"] == found["verdict"]


def test_evaluate_shows_people_a_table_and_the_verdict(
    run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--train", pictures, "--label", "kind", "--budgets", "50%", "--seeds", "2", "--protocols", "knn"]
    code, out, _ = call(capsys, "evaluate", run, *words)
    assert code == 0
    assert "pretrained" in out
    assert "retraining" in out.splitlines()[-1]


def test_finetune_predict_and_report_answer_with_stable_keys(
    run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--train", pictures, "--label", "kind", "--out", tmp_path / "model"]
    model = answer(capsys, "finetune", run, *words, "epochs=1", "most_steps=4", "learning_rate=1e-3")
    assert set(model) == {"model", "classes", "validation"}
    assert model["classes"] == ["above", "below"]
    assert {"metric", "score"} <= set(model["validation"])
    out = tmp_path / "answers.csv"
    found = answer(capsys, "predict", model["model"], pictures, "--out", out)
    assert found == {"out": str(out), "count": 48, "unreadable": 0}
    assert len(out.read_text().splitlines()) == 49
    report = answer(capsys, "report", run)
    assert set(report) == {"report"}
    assert Path(report["report"]).read_text().startswith("<!")


def test_demo_answers_with_stable_keys_and_shows_pretraining_no_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from labelfree import demo

    small = {"encoder": "timm:test_resnet", "steps": 3, "batch_size": 8, "threads": 1, "projector": ("16", "8")}
    monkeypatch.setattr(demo, "RECIPE", {"modality": "image", "method": "simclr", **small})
    monkeypatch.setattr(demo, "EVALUATION", {"budgets": ("5%",), "protocols": ("knn", "linear"), "seeds": 2})
    out = tmp_path / "demo"
    found = answer(capsys, "demo", "--out", out)
    check_evaluation(found)
    assert Path(found["report"]).exists()
    assert Path(json.loads((Path(found["run"]) / "run.json").read_text())["source"]).suffix == ".npy"
    assert np.load(out / "unlabelled.npy").shape[1:] == (8, 8)
    before = sorted(out.rglob("*"))
    assert call(capsys, "demo", "--out", out)[0] == 2
    assert sorted(out.rglob("*")) == before


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(28, "No space left on device", "runs/x"), "disk is full"),
        (MemoryError(), "Memory ran out."),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"), "Memory ran out."),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), "Memory ran out."),
        (PermissionError(13, "Permission denied", "runs/x"), "'runs/x' cannot be used: Permission denied."),
    ],
)
def test_trouble_with_the_machine_is_one_sentence(
    error: Exception, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("labelfree.training.pretrain.pretrain", fail)
    code, _, err = call(capsys, "pretrain", __file__)
    assert code == 2
    assert expected in err
    assert "--" not in err, "other verbs have other options"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("labelfree.training.pretrain.pretrain", lambda *_, **__: 1 / 0)
    code, out, err = call(capsys, "pretrain", __file__)
    assert (code, out) == (3, "")
    assert "Traceback" in err
    assert "ZeroDivisionError" in err


def test_an_interrupt_leaves_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("labelfree.training.pretrain.pretrain", interrupted)
    assert call(capsys, "pretrain", __file__)[0] == 130


def test_sigterm_before_the_training_is_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("labelfree.training.pretrain.pretrain", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    monkeypatch.setattr(sys, "argv", ["labelfree", "pretrain", __file__])
    try:
        assert main() == 130
    finally:
        signal.signal(signal.SIGTERM, usual)


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_a_pipe_that_knows_no_greek_takes_all(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labelfree.catalogue.methods", lambda: [{"name": "λ", "about": "é"}])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["labelfree", "list", "methods", *words])
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="cp1252", write_through=True))
    assert main() == 0
    printed = sys.stdout.buffer.getvalue().decode("cp1252")  # type: ignore[attr-defined]
    assert r"\u03bb" in printed
    if words:
        assert json.loads(printed) == {"methods": [{"name": "λ", "about": "é"}]}


def test_of_several_processes_the_first_answers_and_one_alone_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("labelfree.catalogue.methods", lambda: [{"name": "x"}])
    monkeypatch.setenv("RANK", "3")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert answer(capsys, "list", "methods") == {"methods": [{"name": "x"}]}
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert call(capsys, "list", "methods", "--json")[1] == ""


def test_what_child_processes_print_does_not_disturb_the_json(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def noisy(*_: object, **__: object) -> list[dict[str, str]]:
        print("from Python")
        subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)
        return [{"name": "x"}]

    monkeypatch.setattr("labelfree.catalogue.methods", noisy)
    main(["list", "methods", "--json"])
    captured = capfd.readouterr()
    assert json.loads(captured.out) == {"methods": [{"name": "x"}]}
    assert "from Python" in captured.err
    assert "from a child" in captured.err
