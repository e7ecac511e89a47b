"""UCR archive: TS2Vec with an SVM readout, beside a plain PyTorch loop and MiniRocket with ridge.

    OMP_NUM_THREADS=1 python benchmarks/ucr.py --data data/ucr --out benchmarks/results

For each of 20 sets: pretrain on the training series without labels, freeze, read out with an RBF-SVM whose penalty is
chosen on the training part, score on the test part, once. `plain` is `plain_ts2vec.py` at the same settings, trained
right after on the same machine; `shorter` is ours with three quarters of the published steps. Finished parts are kept
in `ucr.json`, so an interrupted run goes on. The part `minirocket` needs `pip install aeon` and no torch: `--parts
minirocket` can be run from another environment.

The data, `ucr`, lie as benchmarks/README.md says.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

NAMES = (
    "ArrowHead BME Beef BeetleFly BirdChicken CBF Car Chinatown Coffee Computers DiatomSizeReduction "
    "DistalPhalanxOutlineAgeGroup DistalPhalanxOutlineCorrect DistalPhalanxTW ECG200 ECG5000 ECGFiveDays Earthquakes "
    "FaceFour FacesUCR"
)
SETS = NAMES.split()
#: Mean accuracy of the authors' code on these sets, one seed, as it was measured elsewhere.
AUTHORS = 0.859


def iterations(series: np.ndarray) -> int:
    """Yue et al. 2022, appendix C.3."""
    return 200 if series.size <= 100_000 else 600


def load(data: Path, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    with np.load(data / name / "train.npz") as train, np.load(data / name / "test.npz") as test:
        return train["X"], train["y"], test["X"], test["y"]


@contextmanager
def clock(found: dict[str, Any]) -> Iterator[None]:
    """Note wall and processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    found["seconds"] = round(time.perf_counter() - wall, 3)
    found["cpu_seconds"] = round(time.process_time() - cpu, 3)


def run_labelfree(data: Path, name: str, seed: int, share: float = 1.0) -> dict[str, Any]:
    from readout import svm_readout

    import labelfree

    x, y, _, truth = load(data, name)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        with clock(found):
            run = labelfree.pretrain(
                data / name / "train.npz",
                method="ts2vec",
                encoder="dilated",
                steps=round(share * iterations(x)),
                seed=seed,
                out=Path(folder, "run"),
                threads=int(os.environ.get("OMP_NUM_THREADS", "1")),
            )
        features, others = run.embed(data / name / "train.npz"), run.embed(data / name / "test.npz")
    accuracy = float((svm_readout(features, y, others) == truth).mean())
    return {"accuracy": accuracy, **found, "loop_seconds": run.info["seconds"], "steps": run.info["steps"]}


def run_plain(data: Path, name: str, seed: int) -> dict[str, Any]:
    import plain_ts2vec
    import torch
    from readout import svm_readout

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    x, y, test, truth = load(data, name)
    found: dict[str, Any] = {}
    with clock(found):
        encoder = plain_ts2vec.train(x[..., None], iterations(x), seed=seed)
    features, others = (plain_ts2vec.encode(encoder, part[..., None]) for part in (x, test))
    return {"accuracy": float((svm_readout(features, y, others) == truth).mean()), **found, "steps": iterations(x)}


def run_minirocket(data: Path, name: str, seed: int) -> dict[str, Any]:
    from aeon.transformations.collection.convolution_based import MiniRocket
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y, test, truth = load(data, name)
    model = make_pipeline(
        MiniRocket(random_state=seed), StandardScaler(with_mean=False), RidgeClassifierCV(np.logspace(-3, 3, 10))
    )
    model.fit(x[:, None].astype(np.float64), y)  # compiles
    found: dict[str, Any] = {}
    with clock(found):
        model.fit(x[:, None].astype(np.float64), y)
    return {"accuracy": float((model.predict(test[:, None].astype(np.float64)) == truth).mean()), **found}


PARTS: dict[str, Callable[[Path, str, int], dict[str, Any]]] = {
    "labelfree": run_labelfree,
    "shorter": partial(run_labelfree, share=0.75),
    "plain": run_plain,
    "minirocket": run_minirocket,
}


def machine() -> dict[str, Any]:
    """Hardware, versions and commit, for the record."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), cpu)
    found = {"python": platform.python_version()}
    for package in ("labelfree", "torch", "numpy", "scikit-learn", "aeon"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": threads, "versions": found, "commit": commit}


def write(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".part")
    beside.write_text(text)
    beside.replace(path)


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown: accuracy of each part (mean over seeds), seconds of training of one seed."""
    parts = [part for part in PARTS if any(key.endswith(f"/{part}") for key in results)]

    def of(name: str, part: str, field: str) -> float:
        found = [value[field] for key, value in results.items() if key.split("/")[::2] == [name, part]]
        return float(np.mean(found)) if found else float("nan")

    lines = ["| set | " + " | ".join(f"{part} | seconds" for part in parts) + " |", "|---" * (1 + 2 * len(parts)) + "|"]
    rows = {name: [(of(name, p, "accuracy"), of(name, p, "seconds")) for p in parts] for name in SETS}
    whole = {name: row for name, row in rows.items() if not np.isnan(row).any()}
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{a:.3f} | {s:.1f}" for a, s in row) + " |")
    if whole:
        stack = np.array(list(whole.values()))
        ends = " | ".join(
            f"**{a:.3f}** | **{s:.0f}**" for a, s in zip(stack[..., 0].mean(0), stack[..., 1].sum(0), strict=True)
        )
        lines.append(f"| mean / sum over {len(whole)} sets | {ends} |")
    return "\n".join(lines).replace("nan", "–") + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder for each set")
    parser.add_argument("--out", type=Path, required=True, help="folder for ucr.json and ucr.md")
    parser.add_argument("--sets", nargs="*", default=SETS)
    parser.add_argument("--parts", default="labelfree,plain", help=f"some of {','.join(PARTS)}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plain-seeds", type=int, default=1, help="those that the plain loop, which takes long, gets")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "ucr.json"
    state: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"runs": [], "results": {}}
    state["runs"].append({"command": " ".join(sys.argv), **machine()})
    for seed in range(options.seeds):
        for name in options.sets:
            for part in options.parts.split(","):
                key = f"{name}/{seed}/{part}"
                if key in state["results"] or (part == "plain" and seed >= options.plain_seeds):
                    continue
                state["results"][key] = PARTS[part](options.data, name, seed)
                print(key, state["results"][key], flush=True)
                write(path, json.dumps(state, indent=1) + "\n")
                write(options.out / "ucr.md", table(state["results"]))
    print(table(state["results"]))


if __name__ == "__main__":
    main()
