"""Heads that make something are kept: text is written, series are continued, samples are given back."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import labelfree
from labelfree import runtime
from labelfree.cli import main
from labelfree.data.batch import Batch, Sample
from labelfree.data.sources import read_table
from labelfree.errors import LabelfreeError, Refusal
from labelfree.needs import Need
from labelfree.run import Run
from labelfree.tasks.forecast import Forecast, forecast
from labelfree.tasks.generate import draw_nucleus, generate, perplexity
from labelfree.training.reconstructions import CONTINUED, SHOWN

QUICK = {"threads": 1, "encoder": "transformer:pico", "precision": "32"}
SENTENCE = "one two three four five six seven eight nine ten. "

TEXTS = [SENTENCE * (5 + n % 4) for n in range(24)]


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A model of texts that count to ten, over and over."""
    out = tmp_path_factory.mktemp("counting") / "run"
    options = {"steps": 80, "batch_size": 16, "length": 24, "dropout": 0.0, "learning_rate": 5e-3, **QUICK}
    return labelfree.pretrain(TEXTS, method="next", out=out, **options)  # type: ignore[arg-type]


def waves(count: int = 48, length: int = 48) -> np.ndarray:
    """(N, T, 2) waves of one period of 8 steps and different phase, in odd units."""
    generator = np.random.default_rng(0)
    phase = generator.uniform(0, 2 * np.pi, (count, 1))
    angle = 2 * np.pi * np.arange(length) / 8 + phase
    return np.stack([100 + 5 * np.sin(angle), np.cos(angle)], axis=2).astype(np.float32)


@pytest.fixture(scope="module")
def swinging(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("swinging") / "run"
    options = {"steps": 150, "batch_size": 16, "patch": 2, "learning_rate": 3e-3, **QUICK}
    return labelfree.pretrain(waves(), modality="series", method="next", out=out, **options)  # type: ignore[arg-type]


def test_text_goes_on_as_it_was_learnt(counting: Run) -> None:
    assert counting.generate("three four", tokens=4, temperature=0).endswith("three four five six seven eight")
    assert "▢" not in counting.generate("", tokens=12)


def test_text_is_a_matter_of_the_seed_and_needs_no_checkpoint(counting: Run, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(counting.path, copy, ignore=shutil.ignore_patterns("checkpoints"))
    texts = [
        run.generate("five", tokens=20, temperature=3.0, seed=seed) for run in (counting, Run(copy)) for seed in (0, 1)
    ]
    assert texts[0] == texts[2]
    assert texts[1] == texts[3]
    assert texts[0] != texts[1]


def test_only_the_nucleus_is_drawn_from() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25]).log()
    drawn = [draw_nucleus(logits, 1.0, 0.7, generator) for _ in range(400)]
    assert set(drawn) == {1, 3}
    assert drawn.count(1) / 400 == pytest.approx(2 / 3, abs=0.08)
    assert {draw_nucleus(logits, 0.0, 1.0, generator) for _ in range(5)} == {1}
    assert {draw_nucleus(logits, 1.0, 1e-6, generator) for _ in range(5)} == {1}


def test_perplexity_counts_every_token_once(counting: Run) -> None:
    """Beside the mean loss of the blocks, read one by one."""
    texts = ["seven eight nine ten. one two.", "ten ten ten one"]
    found = counting.perplexity(texts)
    objective, modality = counting.maker(), counting.modality
    ids = [i for text in texts for i in modality.vocabulary.encode([text])[0].tolist()]  # type: ignore[attr-defined]
    length, losses = min(23, len(ids) // 2), []
    for start in range(0, len(ids), length):
        block = [modality.vocabulary.cls, *ids[start : start + length]]  # type: ignore[attr-defined]
        if len(block) <= length:  # the last one is filled up from the left, and counts only what is new
            block = [modality.vocabulary.cls, *ids[-length:]]  # type: ignore[attr-defined]
        view = modality.prepare(modality.collate([labelfree.data.batch.Sample(np.array(block[1:], dtype=np.int32), 0)]))
        with torch.no_grad():
            logits = objective.predict_each(view)[0, :-1]
        new = min(length, len(ids) - start)
        losses += (-logits.log_softmax(dim=1)[range(length), block[1:]])[-new:].tolist()
    assert found.tokens == len(losses) == len(ids)
    assert found.bytes == len(" ".join(texts))
    assert found.per_token == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)
    assert found.per_byte == pytest.approx(math.exp(np.sum(losses) / found.bytes), rel=1e-4)
    assert counting.perplexity([SENTENCE * 4]).per_token < 3 < found.per_token


def test_bytes_are_written_as_text(tmp_path: Path) -> None:
    files = [(f"line {n}\n" * 20).encode() for n in range(12)]
    run = labelfree.pretrain(
        files, modality="bytes", method="next", out=tmp_path / "run", steps=2, batch_size=8, length=16, **QUICK
    )
    assert run.generate("Zürich ", tokens=5, seed=3).startswith("Zürich ")


def test_series_are_continued_in_their_units(swinging: Run) -> None:
    whole = waves(64)[48:]
    found = swinging.forecast(whole[:, :40], steps=7)
    assert found.values.shape == (16, 7, 2)
    error = np.abs(found.values - whole[:, 40:47]).mean(axis=(0, 1))
    standing_still = np.abs(whole[:, 39:40] - whole[:, 40:47]).mean(axis=(0, 1))
    assert (error < 0.5 * standing_still).all(), (error, standing_still)
    longer = swinging.forecast(whole[:, :40], steps=21).values  # more than the model predicts at once
    np.testing.assert_allclose(longer[:, :7], found.values, rtol=1e-5)
    assert np.abs(longer - waves(64, 61)[48:, 40:]).mean() < np.abs(whole[:, 39:40] - waves(64, 61)[48:, 40:]).mean()


def test_nothing_is_foretold_further_than_samples_are_long(tmp_path: Path) -> None:
    run = labelfree.pretrain(
        waves(8, 6), modality="series", method="next", out=tmp_path / "run", steps=2, patch=1, horizon=9, **QUICK
    )
    objective, view = run.maker(), run.modality.prepare(run.modality.collate([Sample(waves(1, 5)[0], 0)]))
    assert objective.predict_next(view).shape == (1, 5, 2)
    assert run.forecast(waves(8, 6), steps=12).values.shape == (8, 12, 2)


def test_a_forecast_is_a_table_with_a_row_a_step(swinging: Run, tmp_path: Path) -> None:
    source, out = tmp_path / "waves.npy", tmp_path / "next.csv"
    np.save(source, waves(3))
    assert main(["forecast", str(swinging.path), str(source), "--steps", "5", "--out", str(out)]) == 0
    lines = out.read_text().splitlines()
    assert lines[0].replace('"', "").split(",")[:2] == ["name", "step"]
    assert len(lines) == 1 + 3 * 5
    assert main(["forecast", str(swinging.path), str(source), "--steps", "5", "--out", str(out)]) == 2


def test_what_cannot_be_foretold_is_null_in_json(tmp_path: Path) -> None:
    values = np.array([[[1.5]], [[np.nan]]], dtype=np.float32)
    path = Forecast(["a", "b"], ["heat"], values).write(tmp_path / "next.jsonl")

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    rows = [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
    assert [row["heat"] for row in rows] == [1.5, None]


def test_a_channel_called_like_a_column_of_the_forecast_replaces_none(tmp_path: Path) -> None:
    values = np.array([[[7.0, 8.0], [9.0, 10.0]]], dtype=np.float32)
    table = read_table(Forecast(["a"], ["step", "heat"], values).write(tmp_path / "next.csv"))
    assert table.to_pydict() == {"name": ["a", "a"], "step": [1, 2], "channel:step": [7, 9], "heat": [8, 10]}


def test_short_and_empty_recordings_are_continued_or_left_out(swinging: Run) -> None:
    series = waves(3)
    series[1] = np.nan
    found = swinging.forecast([series[0, :1], series[2, :33]], steps=3)
    assert np.isfinite(found.values).all()


def test_a_kind_of_data_of_ones_own_can_be_written_and_forecast() -> None:
    class Letters:
        """Like no class of ours: an id is a letter."""

        offers = frozenset({Need.IDS})
        vocabulary = SimpleNamespace(cls=0, sep=1, special=[0, 1])
        settings = SimpleNamespace(length=9)

        def ids_of(self, words: str) -> list[int]:
            return [ord(letter) for letter in words]

        def words_of(self, ids: Sequence[int]) -> str:
            return "".join(map(chr, ids))

        def open(self, source: Any) -> Any:
            return SimpleNamespace(value_names=["height"])

        def ends(self, dataset: Any) -> tuple[list[str], list[Sample]]:
            return ["tide"], [Sample(np.array([[3.0]]), 0)]

        def continued(self, predict_next: Any, ends: Sequence[Sample], steps: int) -> np.ndarray:
            return np.stack([np.repeat(end.data, steps, axis=0) for end in ends])

    class Alphabet(nn.Module):
        def predict_next(self, batch: Batch) -> torch.Tensor:
            return torch.eye(128)[batch.data[:, -1:] + 1]

    run: Any = SimpleNamespace(modality=Letters(), maker=Alphabet)
    assert generate(run, "a", tokens=3, temperature=0) == "abcd"
    assert forecast(run, None, steps=2).values.tolist() == [[[3.0], [3.0]]]


def test_what_is_made_is_made_where_it_is_told(counting: Run, swinging: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    text, series = Run(counting.path), Run(swinging.path)
    uses: list[Any] = [
        partial(text.generate, "one two", tokens=2),
        partial(text.perplexity, TEXTS[:2]),
        partial(series.forecast, waves(2), steps=2),
    ]
    for use in uses:
        use(accelerator="cpu")
        with pytest.raises(LabelfreeError, match="no accelerator 'gpu'"):
            use(accelerator="gpu")
    # a device where numbers have no values: what was made there shows by that they cannot be brought back
    monkeypatch.setattr(runtime, "checked_device", lambda _: torch.device("meta"))
    for use in uses:
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            use()


def test_what_cannot_be_made_is_refused(counting: Run, swinging: Run, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="runs on text or bytes, not on series"):
        swinging.generate("one")
    with pytest.raises(Refusal, match="text data cannot be forecast"):
        counting.forecast(["one"], steps=1)
    with pytest.raises(LabelfreeError, match=r"top_p=0.*do not go together"):
        counting.generate("one", top_p=0)
    with pytest.raises(LabelfreeError, match="tokens=0"):
        counting.generate("one", tokens=0)
    with pytest.raises(LabelfreeError, match="batch_size=0"):
        perplexity(counting, TEXTS, batch_size=0)
    with pytest.raises(LabelfreeError, match="steps=0"):
        swinging.forecast(waves(), steps=0)
    other = labelfree.pretrain(TEXTS, method="vicreg", out=tmp_path / "v", steps=1, batch_size=8, **QUICK)
    with pytest.raises(Refusal, match=r"'vicreg' keep no head.*next"):
        other.generate("one")
    masked = labelfree.pretrain(TEXTS, method="bert", out=tmp_path / "b", steps=1, batch_size=8, **QUICK)
    with pytest.raises(Refusal, match="'masked' does not say what comes next"):
        masked.generate("one")


@pytest.mark.parametrize("method", ["autoencoder", "vae", "mae", "colourisation", "simclr+masked"])
def test_pictures_that_were_given_back_are_in_the_report(method: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    pictures = generator.integers(0, 255, (24, 12, 12, 3), dtype=np.uint8)
    run = labelfree.pretrain(pictures, method=method, out=tmp_path / "run", steps=1, batch_size=8, patch=4, **QUICK)
    page = run.report().read_text()
    assert page.count("<figcaption>given back</figcaption>") == SHOWN
    assert page.count("what was seen") == (SHOWN if "vae" not in method and method != "autoencoder" else 0)
    assert ("Made anew" in page) == (method == "vae")


def test_what_is_given_back_is_shown_for_texts_and_series(counting: Run, tmp_path: Path) -> None:
    run = labelfree.pretrain(TEXTS, method="bert", out=tmp_path / "b", steps=1, batch_size=8, **QUICK)
    assert "▢" in run.report().read_text()
    run = labelfree.pretrain(
        waves(), modality="series", method="masked-series", out=tmp_path / "s", steps=1, batch_size=8, **QUICK
    )
    assert run.report().read_text().count("what was seen") == SHOWN
    assert "given back" not in counting.report().read_text()


def test_the_report_shows_how_a_model_of_what_comes_next_goes_on(counting: Run, swinging: Run) -> None:
    for run in (counting, swinging):
        assert run.report().read_text().count("<figcaption>as the model goes on</figcaption>") == CONTINUED
    for row in json.loads((counting.path / "reconstructions.json").read_text())["continued"]:
        words = row["continued"].removesuffix("</span>").split()  # after a text's "ten." comes the next one's "one"
        assert row["continued"].startswith(row["beginning"].removesuffix("</span>"))
        assert words[-1] in SENTENCE
    row = json.loads((swinging.path / "reconstructions.json").read_text())["continued"][0]
    assert len(set(row.values())) == 3
