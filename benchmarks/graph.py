"""Graphs: Cora without its words, MUTAG, and a million edges.

    python benchmarks/graph.py --data data --out benchmarks/results

`cora`, `mutag`: for each of ten seeds, pretrain without labels, freeze, and read out with logistic regression, whose
penalty is chosen on the training labels, from a tenth of the labels and from four fifths; the rest is tested. Beside
it: the network untrained; the features it is given, classically; degrees alone; DeepWalk as a matrix (Qiu et al. 2018,
"Network Embedding as Matrix Factorization", §3); a network of PyTorch Geometric trained on the labels alone. All see
the same splits. `million`: memory and speed while a graph of a million edges is trained on, with edges streamed from
memory, beside PyTorch Geometric on the whole graph at once. Finished seeds are kept: an interrupted run goes on.

The data, `cora`, `mutag`, lie as benchmarks/README.md says.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

#: Labels to learn from.
SHARES = (0.1, 0.8)
STEPS = {"cora": 80, "mutag": 60}


def split(y: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Training and test rows, classes in equal shares."""
    from sklearn.model_selection import train_test_split

    return tuple(train_test_split(np.arange(len(y)), train_size=share, stratify=y, random_state=seed))  # type: ignore[return-value]


def probe(x: np.ndarray, y: np.ndarray, share: float, seed: int) -> float:
    """Accuracy of logistic regression on (N, F) features, as `labelfree evaluate` fits it."""
    from labelfree.evaluation.probes import Labelled, linear_probe
    from labelfree.tasks.logistic import Scaler

    train, test = split(y, share, seed)
    part = Labelled(x[train], y[train], int(y.max()) + 1)
    guesses = linear_probe(part, x[test], Scaler.fit(x[train]), np.random.default_rng(seed)).guesses
    return float((guesses == y[test]).mean())


@cache
def deepwalk(source: Path, width: int = 128, window: int = 10) -> np.ndarray:
    """(N, width) NetMF: the matrix that DeepWalk factorises, factorised."""
    from scipy.sparse.linalg import svds

    from labelfree.modalities.graph import Graph

    graphs = Graph().open(source).graphs
    edges, nodes = graphs.edges, graphs.nodes
    a = np.zeros((nodes, nodes))
    a[tuple(edges.T)] = a[tuple(edges.T[::-1])] = 1
    degree = np.maximum(a.sum(axis=1), 1)
    step, power, total = a / degree[:, None], np.eye(nodes), np.zeros_like(a)
    for _ in range(window):
        power = power @ step
        total += power
    left, values, _ = svds(np.log(np.maximum(total * degree.sum() / window / degree, 1)), width, random_state=0)
    return np.asarray(left * np.sqrt(values))


def from_labels(dataset: Any, y: np.ndarray, share: float, seed: int, epochs: int = 100) -> float:
    """Accuracy of PyTorch Geometric's own GCN (nodes) or GIN (graphs), trained on the labels alone, the whole graph, or
    all graphs, a step.
    """
    import torch
    from torch_geometric.nn import GCN, GIN, global_add_pool

    torch.manual_seed(seed)
    own = dataset.graphs
    train, test = split(y, share, seed)
    x = torch.tensor(own.features)
    x = (x - x.mean(0)) / x.std(0).clamp_min(1e-6)
    edges = torch.tensor(np.concatenate([own.edges, own.edges[:, ::-1]]).T.copy())
    of = torch.tensor(np.searchsorted(own.first, np.arange(own.nodes), side="right") - 1)
    graphs, classes = dataset.level == "graph", int(y.max()) + 1
    if graphs:
        network, head = GIN(x.shape[1], 64, 3, norm="batch_norm"), torch.nn.Linear(64, classes)
    else:
        network, head = GCN(x.shape[1], 64, 2, classes, dropout=0.5), torch.nn.Identity()
    optimizer = torch.optim.Adam([*network.parameters(), *head.parameters()], lr=0.01, weight_decay=5e-4)

    def logits() -> torch.Tensor:
        out = network(x, edges)
        return head(global_add_pool(out, of)) if graphs else out

    for _ in range(epochs):
        torch.nn.functional.cross_entropy(logits()[train], torch.tensor(y)[train]).backward()
        optimizer.step()
        optimizer.zero_grad()
    network.eval()
    with torch.no_grad():
        return float((logits().argmax(1).numpy() == y)[test].mean())


def one_seed(name: str, source: Path, seed: int, method: str) -> dict[str, Any]:
    """Accuracies of all sides at all shares of the labels, and seconds of pretraining."""
    import torch

    import labelfree
    from labelfree.evaluation.parts import fresh_encoder
    from labelfree.tasks.embed import embed

    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        run = labelfree.pretrain(
            source, modality="graph", method=method, seed=seed, steps=STEPS[name], threads=1, out=Path(folder, "run")
        )
        seconds = time.process_time() - began
        dataset = run.open(source)
        y = np.unique(dataset.column("y"), return_inverse=True)[1]
        own = dataset.graphs
        sides = {
            "pretrained": run.embed(source),
            "untrained": embed(fresh_encoder(run, seed), run.modality, dataset),
            "raw": run.modality.raw_features(dataset, [])[0],
        }
        if name == "cora":
            sides["degrees"] = degree_features(own)
            sides["deepwalk"] = deepwalk(source)
        else:
            sides["degrees"] = np.stack(
                [np.bincount(d, minlength=8)[:8] for d in np.split(own.neighbours.degree, own.first[1:-1])]
            )
    found: dict[str, Any] = {"seconds": round(seconds, 1), "method": run.info["method"], "encoder": run.info["encoder"]}
    torch.set_num_threads(1)
    for share in SHARES:
        for side, x in sides.items():
            found[f"{side}/{share}"] = probe(x, y, share, seed)
        found[f"labels only/{share}"] = from_labels(dataset, y, share, seed)
    return found


def degree_features(graphs: Any) -> np.ndarray:
    """(N, 3): logarithms of the degree and of the neighbours', and the share of closed triangles."""
    from labelfree.data.graphs import degrees, returns

    return np.concatenate([degrees(graphs), returns(graphs, 3)[:, 1:]], axis=1)


# ---- a million edges

WHOLE = """
import resource, sys, time, numpy as np, torch
from torch_geometric.nn import GCN
torch.set_num_threads(1)
edges = torch.tensor(np.load(sys.argv[1])["edge_index"])
edges = torch.cat([edges, edges.flip(0)], dim=1)
nodes = int(edges.max()) + 1
x, net = torch.randn(nodes, int(sys.argv[2])), GCN(int(sys.argv[2]), 256, 2)
times = []
for _ in range(3):
    began = time.perf_counter()
    sum(net(x, edges[:, torch.rand(edges.shape[1]) > 0.3]).square().mean() for _ in range(2)).backward()
    times.append(time.perf_counter() - began)
print(min(times), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""
OURS = """
import resource, sys, json, labelfree
run = labelfree.pretrain(sys.argv[1], method="grace", steps=int(sys.argv[3]), threads=1, out=sys.argv[2])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
where = run.info["settings"]["training"]["cache"]
print(json.dumps({"peak": peak, "speed": run.metrics()[-1]["samples_per_second"], "cache": where}))
"""


def million(edges: int = 1_000_000, nodes: int = 200_000, steps: int = 20) -> dict[str, Any]:
    """Peak memory and speed on a graph whose degrees are spread as those of social networks are."""
    generator = np.random.default_rng(0)
    weight = generator.permutation(1 / np.arange(1, nodes + 1) ** 0.6)
    ends = generator.choice(nodes, (2, int(edges * 1.05)), p=weight / weight.sum())
    ends = np.unique(np.sort(ends[:, ends[0] != ends[1]], axis=0), axis=1)
    ends = ends[:, generator.permutation(ends.shape[1])[:edges]]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "graph.npz")
        np.savez(path, edge_index=ends)
        out = subprocess.run(
            [sys.executable, "-c", OURS, str(path), str(Path(folder, "run")), str(steps)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        ours = json.loads(out.stdout.strip().splitlines()[-1])
        out = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", WHOLE, str(path), "66"], capture_output=True, text=True, check=True
        )
        seconds, peak = map(float, out.stdout.split())
    return {
        "edges": int(ends.shape[1]),
        "nodes": nodes,
        "largest degree": int(np.bincount(ends.ravel()).max()),
        "peak GiB": round(ours["peak"], 2),
        "nodes a second": ours["speed"],
        "cache": ours["cache"],
        "whole graph, peak GiB": round(peak, 2),
        "whole graph, seconds a step": round(seconds, 1),
    }


# ---- results


def table(results: dict[str, Any]) -> str:
    """Markdown: mean accuracy over seeds with a 95 % interval (Student's t)."""
    from scipy import stats

    lines = ["| data | side | 10 % of the labels | 80 % | seeds |", "| --- | --- | --- | --- | --- |"]
    for name in STEPS:
        seeds = [value for key, value in results.items() if key.startswith(f"{name}/")]
        for side in dict.fromkeys(key.split("/")[0] for value in seeds for key in value if "/" in key):
            cells = []
            for share in SHARES:
                found = np.array([value[f"{side}/{share}"] for value in seeds])
                spread = stats.t.ppf(0.975, len(found) - 1) * stats.sem(found) if len(found) > 1 else np.nan
                cells.append(f"{found.mean():.3f} ± {spread:.3f}")
            lines.append(f"| {name} | {side} | {' | '.join(cells)} | {len(seeds)} |")
    if "million" in results:
        lines += ["", "| a million edges | |", "| --- | --- |"]
        lines += [
            f"| {key} | {value:,} |" if not isinstance(value, str) else f"| {key} | {value} |"
            for key, value in results["million"].items()
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cora and mutag")
    parser.add_argument("--out", type=Path, required=True, help="folder for graph.json and graph.md")
    parser.add_argument("--parts", default="cora,mutag,million")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--method", default="auto")
    options = parser.parse_args()
    from labelfree import runtime

    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "graph.json"
    state: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"runs": [], "results": {}}
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    state["runs"].append(
        {"command": sys.argv[1:], "commit": commit, "versions": runtime.versions(), "hardware": runtime.hardware()}
    )
    sources = {"cora": options.data / "cora" / "graph.npz", "mutag": options.data / "mutag" / "graphs.json"}
    for part in options.parts.split(","):
        for seed in range(options.seeds if part in sources else 1):
            key = f"{part}/{seed}" if part in sources else part
            if key not in state["results"]:
                found = one_seed(part, sources[part], seed, options.method) if part in sources else million()
                state["results"][key] = found
                print(key, found, flush=True)
                path.write_text(json.dumps(state, indent=1) + "\n")
                (options.out / "graph.md").write_text(table(state["results"]))
    print(table(state["results"]))


if __name__ == "__main__":
    main()
