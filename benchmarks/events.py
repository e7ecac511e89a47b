"""Events: who changes which file of a project next, payments with strange ones among them, and events a second.

    git clone https://github.com/networkx/networkx
    python benchmarks/events.py --git networkx --out benchmarks/results

`git`: a clone's history as an evolving graph (a developer changes a file; lines added and deleted). The first 70 % of
the events train without labels; of the last 15 % each is told from itself with another file, drawn from those changed
before. Beside it: EdgeBank (Poursafaei et al. 2022, "Towards Better Evaluation for Dynamic Link Prediction", §4: was
this pair seen before?), how often the file was changed before, and the encoder untrained. `payments`: a simulation, for
want of a public set; customers pay those they usually pay the amounts they usually pay, and 2 % of the test events go
to strangers with other amounts, at other times. Scores need no label; they are beside an isolation forest on the
payment's own columns and on those with its history. `speed`: `score` and `update` of batches of 256, and one by one.
Finished parts are kept: an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.ensemble import IsolationForest
from sklearn.metrics import average_precision_score, roc_auc_score

import labelfree
from labelfree import runtime

ENCODERS = ("transformer:nano", "tgn")
SEEDS = 3
#: Commits that touch more files are moves and formats of the whole tree.
MOST_FILES = 50


def history(clone: Path) -> pd.DataFrame:
    """Events of a git history: time, developer (a number), file, lines added and deleted."""
    command = ["git", "-C", str(clone), "log", "--no-merges", "--reverse", "--numstat", "--format=@%at %ae"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, errors="replace").stdout
    developers: dict[str, int] = {}
    rows = []
    for commit in text.split("@", 1)[1].split("\n@"):
        head, *lines = commit.strip().split("\n")
        when, _, who = head.partition(" ")
        number = developers.setdefault(who, len(developers))
        files = [line.split("\t") for line in lines if line.count("\t") == 2]
        if len(files) <= MOST_FILES:
            rows += [(int(when), f"developer {number}", path, added, deleted) for added, deleted, path in files]
    frame = pd.DataFrame(rows, columns=["time", "source", "target", "added", "deleted"])
    frame[["added", "deleted"]] = frame[["added", "deleted"]].apply(pd.to_numeric, errors="coerce")
    return frame.sort_values("time", kind="stable", ignore_index=True)


def simulated(count: int, odd: float, seed: int, people: int = 500, groups: int = 20) -> pd.DataFrame:
    """Payments in an order of time; a share `odd` of them to strangers, of other amounts, in bursts.

    Who the people are does not depend on the seed, what they do does.
    """
    fixed, generator = np.random.default_rng(0), np.random.default_rng((seed, count))
    group = fixed.integers(0, groups, people)
    known = [fixed.choice(np.flatnonzero(group == group[person]), 5) for person in range(people)]
    usual = np.exp(fixed.normal(4, 1, people))
    source = generator.choice(people, count, p=fixed.dirichlet(np.full(people, 0.5)))
    target = np.array([generator.choice(known[person]) for person in source])
    amount = usual[source] * np.exp(generator.normal(0, 0.3, count))
    pause = generator.exponential(60, count)
    strange = generator.random(count) < odd
    target[strange] = generator.integers(0, people, strange.sum())
    amount[strange] = np.exp(generator.normal(4.5, 1, strange.sum()))
    pause[strange] = generator.exponential(2, strange.sum())
    columns = {"time": np.cumsum(pause), "sender": source, "receiver": target, "amount": amount}
    return pd.DataFrame(columns | {"fraud": strange.astype(int)})


def judged(truth: np.ndarray, score: np.ndarray) -> dict[str, float]:
    """Average precision and area under the ROC curve."""
    return {"AP": float(average_precision_score(truth, score)), "ROC-AUC": float(roc_auc_score(truth, score))}


def trained(frame: pd.DataFrame, encoder: str, seed: int, epochs: int, folder: str, **settings: Any) -> labelfree.Run:
    steps = max(1, epochs * len(frame) // 200)
    return labelfree.pretrain(
        frame, encoder=encoder, method="future-edge", steps=steps, batch_size=200, seed=seed, out=folder, **settings
    )


def of_git(clone: Path, encoder: str, seed: int, epochs: int, **settings: Any) -> dict[str, Any]:
    """Is an event of the last 15 % told from the same event with another file?"""
    frame = history(clone)
    train, test = int(0.7 * len(frame)), int(0.85 * len(frame))
    generator = np.random.default_rng(seed)
    seen = pd.unique(frame.target[:test])
    other = frame[test:].copy()
    other["target"] = generator.choice(seen, len(other))
    truth = np.concatenate([np.zeros(len(other)), np.ones(len(other))])  # 1: it did not happen
    found: dict[str, Any] = {"events": len(frame), "tested": len(other)}
    for name, steps in (("trained", epochs), ("untrained", 0)):
        with tempfile.TemporaryDirectory() as folder:
            rate = {} if steps else {"learning_rate": 1e-12}
            run = trained(frame[:train], encoder, seed, steps, f"{folder}/run", **rate, **settings)
            stream = run.stream()
            stream.update(frame[:test])
            real, fake = [], []
            for start in range(test, len(frame), 200):
                part = slice(start, start + 200)
                real.append(stream.score(frame[part]))
                fake.append(stream.score(other[start - test : start - test + 200]))
                stream.update(frame[part])
        found[name] = judged(truth, np.concatenate([*real, *fake]))
    pairs, files = set(), Counter()
    bank: tuple[list[float], list[float]] = ([], [])
    often: tuple[list[float], list[float]] = ([], [])
    for row, (source, target) in enumerate(zip(frame.source, frame.target, strict=True)):
        if row >= test:
            for side, file in enumerate((target, other.target[row])):
                bank[side].append(float((source, file) not in pairs))
                often[side].append(-files[file])
        pairs.add((source, target))
        files[target] += 1
    found["edgebank"] = judged(truth, np.concatenate(bank))
    found["how often changed"] = judged(truth, np.concatenate(often))
    return found


def of_payments(encoder: str, seed: int, epochs: int, count: int = 12_000, **settings: Any) -> dict[str, Any]:
    """Are strange payments scored higher? Nothing is trained on them."""
    usual, test = simulated(count, 0.0, seed), simulated(count // 2, 0.02, seed + 100)
    warm = count // 12
    truth = test.fraud.to_numpy()[warm:]
    with tempfile.TemporaryDirectory() as folder:
        run = trained(usual, encoder, seed, epochs, f"{folder}/run", **settings)
        stream = run.stream(batch_size=200)
        stream.update(test[:warm])
        found = {"trained": judged(truth, stream.watch(test[warm:]))}
        raw, asked = run.modality.raw_features(run.open(usual), [run.open(test)])
    forest = IsolationForest(random_state=seed)
    own = forest.fit(usual[["amount"]].to_numpy()).score_samples(test[["amount"]].to_numpy())
    found["isolation forest, amount"] = judged(truth, -own[warm:])
    found["isolation forest, with history"] = judged(truth, -forest.fit(raw).score_samples(asked)[warm:])
    return found


def of_speed(encoder: str, **settings: Any) -> dict[str, float]:
    """Events a second that are scored and taken in."""
    usual = simulated(4000, 0.0, 0)
    with tempfile.TemporaryDirectory() as folder:
        run = trained(usual, encoder, 0, 1, f"{folder}/run", **settings)
        many, few = run.stream(), run.stream()
        few.update(usual[:1000])
        many.watch(usual[:1024])
        began, spent = time.perf_counter(), time.process_time()
        many.watch(usual[1024:])
        batched, spent = (len(usual) - 1024) / (time.perf_counter() - began), time.process_time() - spent
        began = time.perf_counter()
        for row in range(1000, 1100):
            few.score(usual[row : row + 1])
            few.update(usual[row : row + 1])
        single = (time.perf_counter() - began) / 100
    return {
        "events a second, batches of 256": batched,
        "events a CPU second, batches of 256": (len(usual) - 1024) / spent,
        "milliseconds an event, one by one": 1000 * single,
    }


def table(results: dict[str, Any]) -> str:
    """Markdown: mean over seeds and the 95 % interval of the mean (Student's t)."""
    from scipy import stats

    lines = ["| part | encoder | score | AP | ROC-AUC |", "| --- | --- | --- | --- | --- |"]
    for part in ("git", "payments"):
        for encoder in ENCODERS:
            runs = [value for key, value in results.items() if key.startswith(f"{part}/{encoder}/")]
            for name in [key for key, value in (runs[0] if runs else {}).items() if isinstance(value, dict)]:
                cells = []
                for metric in ("AP", "ROC-AUC"):
                    scores = np.array([run[name][metric] for run in runs])
                    half = stats.t.ppf(0.975, len(scores) - 1) * stats.sem(scores) if len(scores) > 1 else np.nan
                    cells.append(f"{scores.mean():.3f} ± {half:.3f}")
                lines.append(f"| {part} | {encoder} | {name} | {' | '.join(cells)} |")
    lines += ["", "| encoder | speed |", "| --- | --- |"]
    for encoder in ENCODERS:
        for name, value in results.get(f"speed/{encoder}", {}).items():
            lines.append(f"| {encoder} | {value:,.1f} {name} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--git", type=Path, help="a clone of any project with its whole history")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", default="git,payments,speed")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "events.json"
    state = json.loads(path.read_text()) if path.exists() else {"results": {}}
    commit = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit_id = subprocess.run(commit, capture_output=True, text=True, check=False).stdout.strip()
    state |= {
        "hardware": runtime.hardware(),
        "versions": runtime.versions(),
        "commit": commit_id,
        "epochs": options.epochs,
    }
    own = {"threads": options.threads}
    jobs = [(f"speed/{encoder}", of_speed, (encoder,)) for encoder in ENCODERS]
    for seed in range(SEEDS):
        for encoder in ENCODERS:
            jobs.append((f"payments/{encoder}/{seed}", of_payments, (encoder, seed, options.epochs)))
            if options.git:
                jobs.append((f"git/{encoder}/{seed}", of_git, (options.git, encoder, seed, options.epochs)))
    for key, work, arguments in jobs:
        if key.split("/")[0] in options.parts.split(",") and key not in state["results"]:
            state["results"][key] = work(*arguments, **own)  # type: ignore[operator]
            path.write_text(json.dumps(state, indent=1) + "\n")
            (options.out / "events.md").write_text(table(state["results"]))
    print(table(state["results"]))


if __name__ == "__main__":
    main()
