"""Audio on the command line: from files to a report, and what a bad source is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from labelfree.cli import main

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")

QUICK = ["--encoder", "nano", "--steps", "2", "threads=1", "batch_size=8", "mels=16"]


def source(folder: Path, count: int = 24) -> Path:
    generator = np.random.default_rng(0)
    for number in range(count):
        name, pitch = ("low", 200) if number % 2 else ("high", 900)
        time = np.arange(int(generator.integers(1500, 2500))) / 4000
        path = folder / name / f"{number}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        tone = 0.4 * np.sin(6.28 * pitch * time + number) + generator.normal(0, 0.02, len(time))
        soundfile.write(path, tone, 4000)
    return folder


def test_from_files_to_a_report_with_what_could_not_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = source(tmp_path / "tones"), str(tmp_path / "run")
    soundfile.write(folder / "low" / "silent.wav", np.zeros(900), 4000)
    (folder / "low" / "damaged.wav").write_bytes(b"RIFF0000WAVEnothing")
    assert main(["pretrain", str(folder), "--out", out, "--method", "byol-a", *QUICK, "max_unreadable=0.1"]) == 0
    assert "audio" in capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert {Path(line["name"]).name for line in lines} == {"silent.wav", "damaged.wav"}
    words = ["evaluate", out, "--train", str(folder), "--label", "folder", "--seeds", "1", "--protocols", "linear"]
    assert main([*words, "--budgets", "100%"]) == 0
    assert main(["report", out]) == 0
    assert "<audio controls" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("kind", ["silent", "damaged", "one", "rate"])
def test_a_source_without_sound_is_refused_in_a_sentence(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sounds"
    folder.mkdir()
    words = {
        "silent": "No recording can be read",
        "damaged": "None of the 3 recordings",
        "one": "1 sample",
        "rate": "rate",
    }
    for number in range(1 if kind == "one" else 3):
        path = folder / f"{number}.wav"
        if kind == "damaged":
            path.write_bytes(b"RIFF0000WAVE")
        else:
            noise = np.random.default_rng(number).normal(0, 0.1, 900)
            soundfile.write(path, noise * (kind != "silent"), 4000)
    extra = ["rate=0"] if kind == "rate" else []
    assert main(["pretrain", str(folder), "--out", str(tmp_path / "run"), *QUICK, *extra]) == 2
    captured = capsys.readouterr()
    assert words[kind] in captured.err
    assert "Traceback" not in captured.err
    assert not (tmp_path / "run").exists()
