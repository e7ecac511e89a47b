"""Audio: how fast recordings become log-mel views, and what pretraining on spoken prompts is worth.

    python benchmarks/audio.py speed data/prompts [--count 4000] [--passes 10]
    python benchmarks/audio.py prompts data/prompts [--method byol-a] [--steps 600]

`speed` counts hours of audio a CPU minute on one thread, decoding included, beside pipelines that take one recording at
a time: torchaudio's, with its own reader and with soundfile, where torchaudio is installed (its reader is torchcodec,
which needs FFmpeg's libraries); and the least that does the same, of soundfile, torch.stft and a product with bands.
One pass makes frames of whole recordings; several make two random views of .95 s each, as a training asks for them,
where the other sides cut the waveform first, as BYOL-A's published pipeline does. All have the same bands, window and
hop, and the memory settings of a training.

`prompts` pretrains without labels on four fifths of the prompts (the same words in every voice) and asks for the
language of the other fifth; and whether a prompt is a digit or a letter, in a voice whose labels were never given, each
of the six voices in turn. Beside: statistics of MFCC with logistic regression, a random encoder, from scratch.

The data, `prompts`, lie as benchmarks/README.md says.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from labelfree.data.cache import Cached
from labelfree.data.draw import Draw
from labelfree.data.sampler import Order
from labelfree.modalities.audio import Audio, AudioSettings
from labelfree.modalities.audio.mel import FLOOR, LOWEST, Mel, filters
from labelfree.needs import Need
from labelfree.runtime import prepare_machine

BATCH = 64
CROP = 96


@dataclass(frozen=True)
class Peer:
    """A pipeline of single recordings: how a file becomes (C, T) samples, and (T,) samples (M, R) powers in bands."""

    read: Callable[[Path], Tensor]
    powers: Callable[[Tensor], Tensor]

    def frames(self, path: Path, crop: int = 0) -> Tensor:
        """(M, R) log-mel frames of one file, or of a random stretch of `crop` samples."""
        x = self.read(path).mean(dim=0)
        if crop:
            x = F.pad(x, (0, max(crop - len(x), 0)))
            start = int(np.random.randint(len(x) - crop + 1))
            x = x[start : start + crop]
        return self.powers(x).add(FLOOR).log()


def by_soundfile(path: Path) -> Tensor:
    import soundfile

    return torch.from_numpy(soundfile.read(path, dtype="float32", always_2d=True)[0].T)


def peers(mel: Mel) -> dict[str, Peer]:
    """Pipelines to compare with, by their names; torchaudio's where it is installed."""
    bank, window = filters(mel.bands, mel.rate, mel.points).T.contiguous(), torch.hann_window(mel.window)

    def powers(x: Tensor) -> Tensor:
        spectrum = torch.stft(
            x, mel.points, mel.hop, mel.window, window, center=True, pad_mode="constant", return_complex=True
        )
        return bank @ spectrum.abs().pow(2)

    found = {"torch.stft, soundfile": Peer(by_soundfile, powers)}
    with suppress(ImportError):
        import torchaudio

        transform = torchaudio.transforms.MelSpectrogram(
            mel.rate, mel.points, mel.window, mel.hop, f_min=LOWEST, n_mels=mel.bands
        )
        found["torchaudio, soundfile"] = Peer(by_soundfile, transform)
        found["torchaudio"] = Peer(lambda path: torchaudio.load(path)[0], transform)
    return found


class OneByOne(torch.utils.data.Dataset[Any]):
    """Two views of each recording, one recording at a time: crop, mix with an earlier one, stretch."""

    def __init__(self, paths: list[Path], mel: Mel, peer: Peer) -> None:
        self.paths, self.mel, self.peer = paths, mel, peer
        self.memory: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        frames = self.peer.frames(self.paths[index], (CROP - 1) * self.mel.hop)
        crop = (frames + 10) / 4
        self.memory = [*self.memory[-255:], crop]
        return self._view(crop), self._view(crop)

    def _view(self, x: Tensor) -> Tensor:
        share = 0.4 * np.random.rand()
        other = self.memory[np.random.randint(len(self.memory))]
        x = torch.log((1 - share) * x.exp() + share * other.exp() + 1e-12)
        height, width = int(64 * np.random.uniform(0.6, 1)), int(CROP * np.random.uniform(0.6, 1))
        top, left = np.random.randint(64 - height + 1), np.random.randint(CROP - width + 1)
        cut = x[None, None, top : top + height, left : left + width]
        return F.interpolate(cut, size=(64, CROP), mode="bicubic", align_corners=True)[0]


def cpu_hours(work: Callable[[], float]) -> float:
    """Hours of audio a CPU minute; `work` returns the seconds of audio that it went through."""
    began = time.process_time()
    seconds = work()
    return seconds / 3600 / ((time.process_time() - began) / 60)


def speed(options: argparse.Namespace) -> None:
    prepare_machine(threads=1)
    paths = sorted(Path(options.source).rglob("*.wav"))
    with tempfile.TemporaryDirectory() as folder:
        for number in np.random.default_rng(0).permutation(len(paths))[: options.count].tolist():
            os.symlink(paths[number].resolve(), Path(folder, f"{number:05d}.wav"))
        chosen = sorted(Path(folder).iterdir())
        modality = Audio(AudioSettings(frame=options.frame))
        dataset = modality.open(folder)
        modality.fit(dataset)
        total, mel = float(dataset.sizes().sum()), modality.mel  # type: ignore[union-attr]

        def ours_frames() -> float:
            for start in range(0, len(dataset), 256):
                dataset.read(range(start, min(start + 256, len(dataset))))
            return total

        def their_frames(peer: Peer) -> float:
            for path in chosen:
                peer.frames(path)
            return total

        def ours_views() -> float:
            fresh = Audio(modality.settings)
            opened = fresh.open(folder)
            fresh.fit(opened)
            nearby = Cached(fresh.training_set(opened, frozenset({Need.VIEWS})), fresh)
            order = Order(len(nearby), BATCH, 0)
            for step in range(len(nearby) * options.passes // BATCH):
                batch = nearby.batch(order.batch(step))
                draw = Draw.start(0, 0, step, batch.index)
                for number in (0, 1):
                    fresh.view(batch, draw.view(number))
            return total * options.passes

        def their_views(peer: Peer) -> float:
            loader = torch.utils.data.DataLoader(OneByOne(chosen, mel, peer), BATCH, shuffle=True)
            for _ in range(options.passes):
                for _ in loader:
                    pass
            return total * options.passes

        print(f"{len(chosen)} recordings, {total / 3600:.2f} hours, {mel}, hours of audio a CPU minute")
        others = peers(mel)
        for peer in others.values():
            peer.frames(chosen[0])  # the first call imports and initialises
        rows = (
            ("whole recordings to frames", ours_frames, their_frames),
            (f"{options.passes} passes of two views", ours_views, their_views),
        )
        for words, ours, theirs in rows:
            sides = {"labelfree": ours, **{name: partial(theirs, peer) for name, peer in others.items()}}
            rounds = [{name: cpu_hours(side) for name, side in sides.items()} for _ in range(options.rounds)]
            middle = {name: float(np.median([found[name] for found in rounds])) for name in sides}
            print(f"{words}: labelfree {middle['labelfree']:.2f}")
            for name in others:
                print(f"  {name} {middle[name]:.2f}, ratio {middle['labelfree'] / middle[name]:.2f}")


def rows_of(source: Path) -> list[dict[str, str]]:
    with (source / "metadata.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def part(folder: Path, source: Path, rows: Iterator[dict[str, str]] | list[dict[str, str]]) -> Path:
    """A folder with some of the prompts, and the table beside them."""
    kept = list(rows)
    for row in kept:
        path = folder / row["file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        os.symlink((source / row["file"]).resolve(), path)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, kept[0].keys())
        writer.writeheader()
        writer.writerows(kept)
    return folder


def prompts(options: argparse.Namespace) -> None:
    import labelfree
    from labelfree.evaluation.protocol import evaluate

    source = Path(options.source)
    rows = rows_of(source)
    words = sorted({row["prompt"] for row in rows})
    held = set(np.random.default_rng(0).permutation(words)[: len(words) // 5].tolist())
    with tempfile.TemporaryDirectory() as name:
        train = part(Path(name, "train"), source, [row for row in rows if row["prompt"] not in held])
        test = part(Path(name, "test"), source, [row for row in rows if row["prompt"] in held])
        began = time.process_time()
        settings = dict(word.split("=", 1) for word in options.settings)
        run = labelfree.pretrain(
            train,
            method=options.method,
            steps=options.steps,
            out=Path(name, "run"),
            threads=options.threads,
            **settings,
        )
        print(f"pretraining: {time.process_time() - began:.0f} CPU seconds")
        if "language" in options.parts:
            own = {"time_limit": options.time_limit, "most_steps": options.most_steps}
            show("language", evaluate(run, train, test, label="language", **own))
        if "voices" in options.parts:
            voices(run, source, rows, Path(name), options)


def voices(run: Any, source: Path, rows: list[dict[str, str]], folder: Path, options: argparse.Namespace) -> None:
    """Digit or letter, in each voice by the labels of the others."""
    from labelfree.evaluation.protocol import evaluate

    scores: dict[str, list[float]] = {}
    spoken = [row for row in rows if row["kind"] in ("digits", "letters")]
    asked: dict[str, Any] = {"budgets": ("100%",), "protocols": ("linear", "finetune"), "metric": "balanced_accuracy"}
    asked |= {"seeds": 1, "most_steps": options.most_steps}
    for voice in sorted({row["voice"] for row in rows}):
        known = part(folder / "known" / voice, source, [row for row in spoken if row["voice"] != voice])
        new = part(folder / "new" / voice, source, [row for row in spoken if row["voice"] == voice])
        found = evaluate(run, known, new, label="kind", **asked)
        for result in found.results:
            scores.setdefault(f"{result.method}, {result.protocol}", []).append(result.score)
        print(f"  {voice}", {key: round(values[-1], 3) for key, values in scores.items()}, flush=True)
    print("digit or letter in a new voice, balanced accuracy, mean over voices and their standard error")
    for method, values in scores.items():
        error = np.std(values, ddof=1) / np.sqrt(len(values))
        print(f"  {method}: {np.mean(values):.3f} ± {error:.3f}  {json.dumps([round(v, 3) for v in values])}")


def show(title: str, found: Any) -> None:
    print(f"{title}: {found.verdict}")
    for r in found.results:
        print(
            f"  {r.protocol:>8} {r.budget:>5} {r.method:<11} {r.score:.3f} ({r.low:.3f} … {r.high:.3f}) {r.seeds} seeds"
        )
    for words in found.left_out:
        print(f"  left out: {words}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("speed", "prompts"))
    parser.add_argument("source")
    parser.add_argument("--count", type=int, default=4000, help="recordings at most (speed)")
    parser.add_argument("--passes", type=int, default=10, help="over the data (speed)")
    parser.add_argument("--rounds", type=int, default=3, help="of which the median counts (speed)")
    parser.add_argument("--frame", type=float, default=25.0, help="milliseconds of a frame (speed)")
    parser.add_argument("--method", default="byol-a")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--time-limit", default="5m", help="of the evaluation (prompts)")
    parser.add_argument("--most-steps", type=int, default=3000, help="of a fine-tuning (prompts)")
    parser.add_argument("--parts", default="language,voices", help="of the evaluation (prompts)")
    parser.add_argument("settings", nargs="*", help="of the pretraining, key=value (prompts)")
    options = parser.parse_args()
    {"speed": speed, "prompts": prompts}[options.what](options)


if __name__ == "__main__":
    main()
