"""The report: whole, self-contained, safe, with and without an evaluation."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import runs

from labelfree.evaluation.page import together
from labelfree.evaluation.plots import Line, chart, scatter, ticks
from labelfree.evaluation.projection import components, project
from labelfree.evaluation.protocol import evaluate
from labelfree.evaluation.report import write_report
from labelfree.run import Run

VOID = {"meta", "br", "img", "i", "line", "circle", "polyline", "polygon", "path", "rect"}


class Balanced(HTMLParser):
    """Fails where tags do not close in order; gathers addresses that would be loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "br", "img", "link", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    assert all(address.startswith("data:") for address in parser.addresses)
    assert not re.search(r"@import|url\(\s*['\"]?http", text)
    return text


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = runs.make_run(tmp_path / "run", runs.save(tmp_path / "train.npz", 60, seed=1))
    lines = [
        {"step": i, "loss": 2 / i, "effective_rank": 5.0, "feature_std": 0.9, "learning_rate": 1e-3}
        for i in range(1, 41)
    ]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run.path / "quarantine.jsonl").write_text(json.dumps({"index": 3, "name": "<x>.png", "reason": "cut"}) + "\n")
    return run


def test_a_training_alone_is_reported(run: Run) -> None:
    text = check(write_report(run))
    assert "not known yet" in text
    assert text.count('class="chart"') == 4
    assert "&lt;x&gt;.png" in text
    assert "<x>.png" not in text
    assert "few &lt;pictures&gt;" in text
    assert "Map of the features" not in text


def test_a_run_without_logs_is_reported(run: Run) -> None:
    (run.path / "metrics.jsonl").unlink()
    (run.path / "quarantine.jsonl").unlink()
    assert "The record" in check(write_report(run))


def test_a_line_of_the_logs_that_was_cut_is_left_out(run: Run) -> None:
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "los')
    assert [line["step"] for line in run.metrics()] == list(range(1, 41))
    assert check(write_report(run)).count('class="chart"') == 4


def test_an_evaluation_is_reported_with_its_verdict_first(run: Run, tmp_path: Path) -> None:
    test = runs.save(tmp_path / "test.npz", 40, seed=2)
    found = evaluate(
        run, tmp_path / "train.npz", test, label="label", budgets=["2/class", "100%"], protocols=["knn", "linear"]
    )
    text = check(run.report())
    heading = re.search(r"<h1>(.*?)</h1>", text)
    assert heading is not None
    assert found.verdict.startswith(heading.group(1).rstrip("."))
    for words in ("Linear probe", "Nearest neighbours", "Label saving", "Map of the features", "random frozen encoder"):
        assert words in text
    points = json.loads(re.search(r'type="application/json">(.*?)</script>', text).group(1))  # type: ignore[union-attr]
    assert len(points["y"]) == 40
    assert len(text) < 6e6


def test_one_seed_is_named_in_the_heading(run: Run, tmp_path: Path) -> None:
    options = {"label": "label", "budgets": "2/class", "protocols": "linear", "baselines": "raw", "seeds": 1}
    found = evaluate(run, tmp_path / "train.npz", **options)
    heading = re.search(r"<h1>(.*?)</h1>", check(run.report()))
    assert heading is not None
    assert heading.group(1).startswith("In the one seed that was measured, ")
    assert heading.group(1).endswith("; whether that holds for other seeds is not known.")
    assert found.outcomes == {"2/class": "not known"}


def test_an_evaluation_that_measured_nothing_is_reported(run: Run, tmp_path: Path) -> None:
    evaluate(run, tmp_path / "train.npz", label="label", budgets="2/class", protocols="linear", time_limit=0.0001)
    text = check(run.report())
    assert "Nothing was measured." in text
    assert "no time left" in text


def test_names_cannot_break_out_of_the_page(run: Run, tmp_path: Path) -> None:
    x, y = runs.pictures(40, seed=2)
    names = np.array(["</script><script>alert(1)</script>", "<b>", "c"])[y]
    np.savez(tmp_path / "evil.npz", images=x, label=names)
    evaluate(run, tmp_path / "evil.npz", None, label="label", budgets=["100%"], protocols=["knn"])
    text = check(run.report())
    assert "<script>alert" not in text
    assert "<b>c" in text
    assert "<b><b>" not in text


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.31, 0.34), (-3, 1200), (1e-9, 5e-9)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 3 <= len(found) <= 6
    assert all(low - 1e-12 <= value <= high + 1e-12 for value in found)


def test_ticks_of_nothing() -> None:
    assert ticks(2, 2) == [2]
    assert ticks(float("nan"), 1) != []


def test_charts_thin_long_lines_and_skip_what_is_no_number() -> None:
    x = list(range(5000))
    y = [float("nan") if i % 7 == 0 else i / 10 for i in x]
    drawn = chart([Line("plain", "loss", x, y)], "loss")
    assert len(re.findall(r"[\d.]+,[\d.]+", drawn)) <= 300
    assert "nan" not in drawn
    assert chart([Line("plain", "loss", [1], [float("nan")])], "loss") == ""
    assert chart([Line("plain", "loss", [3], [0.5], [0.4], [0.6])], "one", log=True, dots=True)


def test_scores_with_one_number_of_labels_stand_side_by_side() -> None:
    lines = [
        Line(name, name, [100], [score], [score - 0.1], [score + 0.1]) for name, score in [("a", 0.5), ("b", 0.52)]
    ]
    drawn = chart(lines, "scores", [(100, "100")], log=True, dots=True)
    dots = [float(x) for x in re.findall(r'cx="([0-9.]+)"', drawn)]
    (mark,) = re.findall(r'x="([0-9.]+)" y="[0-9.]+" text-anchor="middle">100<', drawn)
    assert dots[1] - dots[0] > 50
    assert sum(dots) / 2 == pytest.approx(float(mark), abs=0.1)


def test_a_constant_is_drawn_flat_whatever_its_rounding() -> None:
    y = [0.001 * (1 + 1e-13 * (i % 3)) for i in range(50)]
    heights = re.findall(
        r",([\d.]+)", re.search(r'points="(.*?)"', chart([Line("plain", "rate", range(50), y)], "rate"))[1]
    )  # type: ignore[index]
    assert len(set(heights)) == 1


def test_panels_share_their_axis_whatever_was_measured_in_each() -> None:
    marks = [(10, "10"), (1000, "1,000")]
    whole, part = ([Line("a", "a", x, [0.5] * len(x), [0.4] * len(x), [0.6] * len(x))] for x in ([10, 1000], [10]))
    drawn = [chart(lines, "scores", marks, log=True, dots=True, span=(0, 1)) for lines in (whole, part)]
    first = [re.search(r'cx="([\d.]+)"', text)[1] for text in drawn]  # type: ignore[index]
    assert first[0] == first[1]
    assert all(">10<" in text and ">1,000<" in text for text in drawn)


def test_words_of_an_axis_are_not_printed_over_each_other() -> None:
    lines = [Line("a", "a", [100, 101, 1000], [0.5, 0.5, 0.6])]
    drawn = chart(lines, "scores", [(100, "100"), (101, "101"), (1000, "1,000")], log=True, dots=True)
    assert ">100<" in drawn
    assert ">101<" not in drawn


def test_intervals_of_lines_at_one_place_stand_beside_each_other() -> None:
    lines = [Line(name, name, [10, 100], [0.5, 0.6], [0.4, 0.5], [0.6, 0.7]) for name in "ab"]
    whiskers = re.findall(r'class="whisker [ab]" x1="([\d.]+)"', chart(lines, "scores", log=True, dots=True))
    assert len(set(whiskers)) == 4


def test_a_single_step_is_a_dot() -> None:
    assert "<circle" in chart([Line("plain", "loss", [1], [0.5])], "loss")


def test_neighbours_that_are_rows_of_a_table_stand_below_its_names() -> None:
    rows = [{"age": "36", "<b>": "x"}, {"age": "51", "<b>": "x"}]
    drawn = together(["row 1", "row 2"], ["", ""], ["first", "second"], rows)
    assert "<th>age</th><th>&lt;b&gt;</th>" in drawn
    assert re.findall(r"<td class='differs'>(.*?)</td>", drawn) == ["51"]
    assert "differs" not in together(["row 1", "row 2"], ["", ""], ["", ""], rows, compared=False)
    assert "<figure" in together(["1.png"], ["<img>"], ["first"], [{}])


def test_a_map_of_one_place_is_drawn() -> None:
    assert scatter(np.zeros((3, 2)), ["k0"] * 3, "map").count("<circle") == 3


def test_the_map_keeps_groups_apart_and_small_ones_are_not_spread_by_t_sne() -> None:
    rng = np.random.default_rng(0)
    apart = np.concatenate([rng.normal(size=(20, 16)) + 8 * np.eye(16)[group] for group in range(3)])
    points, way = project(components(apart.astype(np.float32)))
    assert (points.shape, way) == ((60, 2), "t-SNE")
    middles = points.reshape(3, 20, 2).mean(axis=1)
    widest = np.linalg.norm(points.reshape(3, 20, 2) - middles[:, None], axis=2).max()
    assert all(np.linalg.norm(middles[i] - middles[j]) > widest for i, j in ((0, 1), (0, 2), (1, 2)))
    assert project(components(apart[:5]))[1] == "PCA"
    assert np.isfinite(project(components(np.ones((40, 4))))[0]).all()
    assert project(components(np.ones((1, 1))))[0].shape == (1, 2)
