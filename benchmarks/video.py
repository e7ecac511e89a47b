"""Films: does a network learn order and what comes next, whom do its features put together, does decoding keep up?

    python benchmarks/video.py --data data/clips --out benchmarks/results/video.json [--parts learn,drift,decode]

`learn`: five short films, each cut in time: the first 70 % to learn from without labels, the last 25 % held out. Frame
order and motion are scored on held-out clips (chance; a picture that stands still). Then each held-out clip asks for
its nearest neighbour among the clips learnt from: is it of the same film, or of the other film of the same scene? Once
as it is, and once cropped and recoloured at random; beside raw pixels and the same network untrained.

`drift`: handwritten digits that drift over a field, 600 films to learn from and 200 of other digits held out: order and
speed can be seen in each.

`decode`: clips a second of reading alone, of the network alone, and of the training loop that reads ahead from files.
With `--network wait` the network's time is waited for instead, as a processor waits for an accelerator; otherwise the
loop needs two cores to overlap, and both sides are measured a second time, each while another process does the other's
work without a pause: what two busy cores take from one another is no loss of the loop's.

The data, `clips`, lie as benchmarks/README.md says.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from labelfree.data.batch import Batch, Sample
from labelfree.data.dataset import Dataset
from labelfree.data.draw import Draw
from labelfree.modalities.video import Video, VideoSettings
from labelfree.tasks.labels import Subset
from labelfree.training import job as jobs
from labelfree.training import loop
from labelfree.training.plan import make_plan

CLIPS: Mapping[str, Any] = {"fps": 25, "frames": 8, "span": 16, "stride": 4, "size": 24, "patch": 6}
METHODS = "frame-order,speed,motion,simclr,videomae"
LEARN, HOLD = 0.7, 0.75


def parts_of(dataset: Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clips that end in the first 70 % of their film, clips that begin in its last 25 %, and the scene of each clip."""
    film = dataset.column("film")
    starts = np.arange(len(film)) - np.searchsorted(film, film) if (film[:-1] <= film[1:]).all() else None
    assert starts is not None, "clips lie film by film"
    place = starts * CLIPS["stride"]
    frames = np.array([place[film == name].max() + CLIPS["span"] for name in film])
    scene = np.array([name.split("_")[0].split(".")[0] for name in film])
    early, late = place + CLIPS["span"] <= LEARN * frames, place >= HOLD * frames
    return np.flatnonzero(early), np.flatnonzero(late), scene


def assemble(
    source: Path, method: str, options: argparse.Namespace, rows: np.ndarray | None = None, **settings: Any
) -> tuple[loop.Training, Video, Dataset]:
    """The engine's own training of a method on some clips of the source."""
    chosen = {"batch_size": options.batch, "threads": options.threads, "cache": "memory", **settings}
    plan, data, dataset, _ = make_plan(
        str(source), modality="video", method=method, encoder=options.encoder, seed=options.seed, seconds=None,
        settings=chosen,
    )  # fmt: skip
    learnt = dataset if rows is None else Subset(dataset, rows)
    job = jobs.assemble(plan, data, learnt, options.steps)
    assert isinstance(data, Video)
    return jobs.new_training(job, torch.device("cpu")), data, dataset


def train(training: loop.Training) -> float:
    """Seconds."""
    quiet = loop.Callbacks(
        log=lambda step, line: None, save=lambda step: None, tick=lambda step: None, warn=lambda words: print(words)
    )
    begun = time.perf_counter()
    settings = training.settings.model_copy(update={"log_every": training.steps, "checkpoint_every": training.steps})
    training.settings = settings
    loop.train(training, 0, loop.StopRequest(), quiet)
    return time.perf_counter() - begun


@torch.no_grad()
def held_out(training: loop.Training, data: Video, batch: Batch, rounds: int = 3) -> dict[str, float]:
    """Loss and accuracy on held-out clips, over a few draws; of motion, beside a picture that stands still."""
    objective = training.objective.eval()
    found: dict[str, list[float]] = {}
    for number in range(rounds):
        draw = Draw.start(1, number, 0, batch.index)
        step = objective.loss(batch, draw)
        for key, value in {"loss": step.loss, **step.logs}.items():
            found.setdefault(key, []).append(float(value))
        if data.settings.target == "motion":
            target = data.targets(data.view(batch, draw, "none"))[:, data.moment :]
            found.setdefault("standing still", []).append(float(target.square().mean()))
    return {key: round(float(np.mean(values)), 4) for key, values in found.items()}


@torch.no_grad()
def neighbours(features: Any, learnt: Batch, asked: Batch, scene: np.ndarray, data: Video) -> dict[str, float]:
    """Share of held-out clips whose nearest neighbour is of their scene: as they are, and seen otherwise."""
    gallery = unit(features(data.prepare(learnt)))
    found = {}
    otherwise = data.view(asked, Draw.start(2, 0, 0, asked.index))
    for name, view in (("as it is", data.prepare(asked)), ("cropped, recoloured", otherwise)):
        nearest = (unit(features(view)) @ gallery.T).argmax(dim=1)
        same = scene[learnt.index[nearest].numpy()] == scene[asked.index.numpy()]
        found[name] = round(float(same.mean()), 4)
    return found


def unit(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(x - x.mean(dim=0), dim=1)


def learn(options: argparse.Namespace) -> dict[str, Any]:
    """Train each method with each seed; scores with their seeds."""
    results: dict[str, Any] = {}
    for seed in range(options.seeds):
        options.seed = seed
        for method in options.methods.split(","):
            early, late, scene = parts_of(Video(VideoSettings(**CLIPS)).open(options.data))
            training, data, dataset = assemble(options.data, method, options, early, **CLIPS)
            keep = [[item for item in dataset.read(rows) if isinstance(item, Sample)] for rows in (early, late)]
            learnt, asked = (data.collate(samples) for samples in keep)
            encoder = training.objective.product
            row: dict[str, Any] = {
                "clips": len(learnt),
                "held out": len(asked),
                "steps": options.steps,
            }
            row["before"] = held_out(training, data, asked) | neighbours(
                lambda view, encoder=encoder: encoder.eval()(view).pooled, learnt, asked, scene, data
            )
            training.objective.train()
            row["seconds"] = round(train(training), 1)
            row["after"] = held_out(training, data, asked) | neighbours(
                lambda view, encoder=encoder: encoder.eval()(view).pooled, learnt, asked, scene, data
            )
            results[f"{method}/{seed}"] = row
            print(method, seed, json.dumps(row), flush=True)
        results[f"pixels/{seed}"] = {"after": neighbours(lambda view: view.data.flatten(1), learnt, asked, scene, data)}
    return results


def drift(options: argparse.Namespace) -> dict[str, Any]:
    """Scores of frame order (chance 1/6) and speed (chance 1/2) on held-out films of drifting digits."""
    from sklearn.datasets import load_digits

    digits, results = load_digits().images.astype("uint8") * 15, {}
    rng = np.random.default_rng(0)
    drifting = np.zeros((800, 12, 20, 20, 1), np.uint8)
    for number, film in enumerate(drifting):
        pace, place = rng.uniform(-1, 1, 2), rng.uniform(3, 9, 2)
        for moment, frame in enumerate(film):
            row, column = np.clip(np.round(place + pace * moment), 0, 12).astype(int)
            frame[row : row + 8, column : column + 8, 0] = digits[number]
    settings = {"frames": 6, "span": 12, "stride": 12, "size": 16, "patch": 4, "light_crop_min": 0.8}
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder, "drift.npy"), drifting)
        for seed, method in ((seed, method) for seed in range(options.seeds) for method in ("frame-order", "speed")):
            options.seed = seed
            training, data, dataset = assemble(Path(folder, "drift.npy"), method, options, np.arange(600), **settings)
            asked = data.collate([item for item in dataset.read(range(600, 800)) if isinstance(item, Sample)])
            row: dict[str, Any] = {"steps": options.steps, "before": held_out(training, data, asked)}
            training.objective.train()
            row |= {"seconds": round(train(training), 1), "after": held_out(training, data, asked)}
            results[f"{method}/{seed}"] = row
            print(method, seed, json.dumps(row), flush=True)
    return results


def decode(options: argparse.Namespace) -> dict[str, Any]:
    """Clips a second: reading, network, and both together in the loop, in turns; the median of their ratios."""
    rounds: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        source = films(Path(folder), options.films)
        training, data, dataset = assemble(
            source, "videomae", options, **{**CLIPS, "stride": 0}, cache="none", workers=0
        )
        order, loader = training.loader.order, training.loader
        raw = next(iter(loader.steps(0, 1)))

        def read(steps: range) -> None:
            for step in steps:
                data.collate([item for item in dataset.read(order.batch(step).tolist()) if isinstance(item, Sample)])

        def compute(steps: range) -> None:
            for step in steps:
                act(step, raw)

        def both(stream: Iterator[Batch]) -> Callable[[range], None]:
            first = next(stream)  # what is waited for once, at the start of a training, is not counted

            def work(steps: range) -> None:
                batch = first
                for step in steps:
                    act(step, batch)
                    batch = next(stream)

            return work

        for number in range(options.rounds):
            steps = range(number * options.reads, (number + 1) * options.reads)
            rate = {"reading": speed(read, steps, options.batch)}
            pause = options.batch / rate["reading"]  # as long as reading takes: the hardest case for overlap
            act = training.step if options.network == "real" else lambda step, batch, pause=pause: time.sleep(pause)
            rate["network"] = speed(compute, steps, options.batch)
            if options.network == "real":
                with meanwhile(compute):
                    rate["reading beside the network"] = speed(read, steps, options.batch)
                with meanwhile(read):
                    rate["network beside reading"] = speed(compute, steps, options.batch)
            rate["loop"] = speed(both(loader.steps(steps.start, steps.stop + 1)), steps, options.batch)
            rounds.append(rate)
            print(rate, flush=True)
    middle = {key: round(float(np.median([rate[key] for rate in rounds])), 1) for key in rounds[0]}
    found: dict[str, Any] = {"network is": options.network, "clips a second": middle}
    sides = {"alone": ("reading", "network"), "both busy": ("reading beside the network", "network beside reading")}
    for name, pair in sides.items():
        if set(pair) <= set(middle):
            ratios = [rate["loop"] / min(rate[side] for side in pair) for rate in rounds]
            found[f"loop over the slower side, {name}"] = [round(ratio, 2) for ratio in ratios]
            found[f"its median, {name}"] = round(float(np.median(ratios)), 3)
    return found


@contextmanager
def meanwhile(work: Callable[[range], None]) -> Iterator[None]:
    """Another process does `work` all the time."""
    process = multiprocessing.get_context("fork").Process(target=work, args=(range(10**9),), daemon=True)
    process.start()
    time.sleep(1)
    try:
        yield
    finally:
        process.terminate()
        process.join()


def speed(work: Callable[[range], None], steps: range, batch: int) -> float:
    """Samples a second."""
    begun = time.perf_counter()
    work(steps)
    return len(steps) * batch / (time.perf_counter() - begun)


def films(folder: Path, count: int) -> Path:
    """Films of 10 s at 25 frames a second, 320×240, H.264: a noisy scene that drifts."""
    import av

    rng = np.random.default_rng(0)
    for number in range(count):
        scene = rng.integers(0, 255, (60, 80, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        with av.open(str(folder / f"{number}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt, stream.gop_size = 320, 240, "yuv420p", 25
            stream.options = {"preset": "veryfast"}
            for moment in range(250):
                frame = np.ascontiguousarray(scene[moment // 2 : moment // 2 + 240, moment : moment + 320])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
    return folder


def machine() -> dict[str, Any]:
    """Hardware, versions and commit, for the record."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = {name: version(name) for name in ("labelfree", "torch", "av", "numpy")}
    return {"cpu": cpu, "cores": cores, "python": platform.python_version(), "versions": versions, "commit": commit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the films of `clips`, for `learn`")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--parts", default="learn,drift,decode")
    parser.add_argument("--encoder", default="transformer:nano")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--films", type=int, default=16, help="of `decode`")
    parser.add_argument("--rounds", type=int, default=5, help="of `decode`")
    parser.add_argument("--reads", type=int, default=12, help="steps of a round of `decode`")
    parser.add_argument("--network", choices=("real", "wait"), default="real", help="of `decode`")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found: dict[str, Any] = {"command": " ".join(sys.argv), **machine()}
    for part in options.parts.split(","):
        found[part] = {"learn": learn, "drift": drift, "decode": decode}[part](options)
    print(json.dumps(found, indent=1))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
