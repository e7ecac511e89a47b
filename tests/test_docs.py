"""What the documentation says is run: its Python, its commands, its examples, its links, its reference."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
import typer
from PIL import Image

import labelfree
from labelfree.cli import app
from labelfree.tasks.classifier import FinetuneSettings
from labelfree.training.plan import recognise

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
QUICK = {"steps": 2, "batch_size": 8, "threads": 1}


def blocks(page: Path, language: str) -> list[str]:
    """Contents of the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the sources that the pages speak of, where every pretraining takes two steps."""
    generator = np.random.default_rng(0)
    for folder in ("photos", "labelled", "held-out"):
        for kind, tone in (("dark", 60), ("light", 180)):
            (tmp_path / folder / kind).mkdir(parents=True)
            for number in range(8):
                pixels = np.clip(generator.normal(tone, 30, (12, 12, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / folder / kind / f"{number}.png")
    pretrain, load_digits = labelfree.pretrain, sklearn.datasets.load_digits

    def brief(source: Any, **options: Any) -> labelfree.Run:
        kept = {key: value for key, value in options.items() if key not in ("epochs", "time_limit")}
        small = {"encoder": "timm:test_resnet"} if recognise(source)[0] == "image" else {}
        return pretrain(source, **{**kept, **QUICK, **small})

    def few_digits() -> Any:
        digits = load_digits()
        return type(digits)(images=digits.images[:64], target=digits.target[:64])

    monkeypatch.setattr(labelfree, "pretrain", brief)
    monkeypatch.setattr("labelfree.training.pretrain.pretrain", brief)
    monkeypatch.setattr(sklearn.datasets, "load_digits", few_digits)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_python_on_a_page_runs_from_top_to_bottom(page: Path, workplace: Path) -> None:
    code = "\n".join(blocks(page, "python"))
    exec(compile(code, str(page), "exec"), {"__name__": page.stem})


COMMANDS = [
    (page.name, line.split("  #")[0].split(" | ")[0])
    for page in PAGES
    for block in blocks(page, "bash")
    for line in block.replace("\\\n", " ").splitlines()
    if re.search(r"\blabelfree [a-z]", line)
]


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_commands_on_a_page_have_verbs_options_and_settings_that_exist(page: str, line: str) -> None:
    words = shlex.split(line[line.index("labelfree ") :])
    group: Any = typer.main.get_command(app)
    verb = group.commands[words[1]]
    verb.make_context(words[1], words[2:])


def anchors(page: Path) -> set[str]:
    """What its headings are called in links."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_between_pages_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md"]:
        for name, anchor in re.findall(r"\]\(([^)#:]*)#?([^)#:]*)\)", page.read_text(encoding="utf-8")):
            target = (page.parent / name).resolve() if name else page
            assert target.exists(), f"{page.name} → {name}"
            assert not anchor or anchor in anchors(target), f"{page.name} → {name}#{anchor}"


def test_scripts_that_are_to_be_run_are_there() -> None:
    """On the pages, in the measured results, and in the first lines of the scripts themselves."""
    scripts = [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "examples").glob("*.py"), *(ROOT / "docs").glob("*.py")]
    texts = {path: path.read_text(encoding="utf-8") for path in [*PAGES, ROOT / "benchmarks" / "README.md", *scripts]}
    named = {
        (path.name, script) for path, text in texts.items() for script in re.findall(r"python ([\w/.-]+\.py)", text)
    }
    assert ("README.md", "benchmarks/throughput.py") in named
    assert [(page, script) for page, script in sorted(named) if not (ROOT / script).exists()] == []


def test_the_reference_is_current() -> None:
    """Run `python docs/make_reference.py` if this fails. In a process of its own, which knows no classes of tests."""
    code = "import make_reference as m; assert m.reference() == m.TARGET.read_text(encoding='utf-8')"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT / "docs")


def test_the_reference_has_the_settings_of_fine_tuning_and_shows_every_default() -> None:
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in text for name in FinetuneSettings.model_fields)
    assert "| `` |" not in text


def test_the_guide_names_every_page() -> None:
    guide = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES if page.parent.name == "docs" and f"({page.name})" not in guide] == [
        "README.md"
    ]


def test_the_pages_show_the_examples_themselves() -> None:
    for page, example in (("add-an-objective", "own_objective"), ("add-a-modality", "own_modality")):
        shown = next(
            iter(re.findall(r"^```\w+\n(.*?)^```", (ROOT / "docs" / f"{page}.md").read_text(), flags=re.M | re.S))
        )
        code = (ROOT / "examples" / f"{example}.py").read_text(encoding="utf-8")
        plain = "\n".join(line.strip() for line in code.splitlines())
        for part in re.split(r"\n\n\n?", shown):
            if not part.startswith(("import", "from")):
                assert "\n".join(line.strip() for line in part.strip().splitlines()) in plain


def test_own_objective_learns_in_both_loops(tmp_path: Path) -> None:
    example = load(ROOT / "examples" / "own_objective.py")
    run = example.main(epochs=1, count=48, out=str(tmp_path / "run"), encoder="timm:test_resnet", batch_size=16)
    assert (run.info["objective"], run.state) == ("sphere", "finished")


def test_own_encoder_gives_features(tmp_path: Path) -> None:
    example = load(ROOT / "examples" / "own_encoder.py")
    assert example.main(steps=2, count=70, out=str(tmp_path / "run")).shape == (70, 64)


def test_own_modality_gives_features(tmp_path: Path) -> None:
    example = load(ROOT / "examples" / "own_modality.py")
    assert example.main(steps=2, out=str(tmp_path / "run")).shape == (569, 128)


def test_scikit_learn_pipeline_scores(workplace: Path) -> None:
    example = load(ROOT / "examples" / "scikit_learn.py")
    learnt, raw = example.main(epochs=1, labels=20)
    assert 0 < learnt <= 1
    assert 0 < raw <= 1
