"""Movie reviews: a model of the next token learns the training texts, and is measured on the held-out ones.

    python benchmarks/generate.py DATA/movie-reviews [--method next] [--time-limit 10m] [--modality text] [--out DIR]
        [key=value ...]

The folder holds train.parquet and test.parquet with a column "text". Perplexity is measured on a part of the held-out
texts (`--rows`), per token and per byte, beside models that count tokens: one of single tokens, and one of three in a
row with interpolated Kneser-Ney smoothing (Chen & Goodman 1999, §3), on the same tokens of all training texts. A few
texts that the model writes are printed. The result is printed as JSON; `--out` keeps it beside the run.

DATA is laid down as benchmarks/README.md says.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import labelfree
from labelfree.settings import parse_assignments

PROMPTS = ("", "the film was", "i did not like", "the acting of")
#: What Kneser-Ney takes from each count.
DISCOUNT = 0.75


class KneserNey:
    """Probabilities of a token after the two before it, interpolated with those after one, and after none."""

    def __init__(self, ids: list[int], size: int) -> None:
        self.three, pairs = Counter(zip(ids, ids[1:], ids[2:], strict=False)), set(pairwise(ids))
        self.after_two: Counter[Any] = Counter()
        self.kinds_after_two: Counter[Any] = Counter()
        for (a, b, _), count in self.three.items():
            self.after_two[a, b] += count
            self.kinds_after_two[a, b] += 1
        # lower orders count in how many contexts a token occurs, not how often
        self.before_two = Counter((b, c) for _, b, c in self.three)
        self.after_one, self.kinds_after_one = Counter[Any](), Counter[Any]()
        for (b, _), count in self.before_two.items():
            self.after_one[b] += count
            self.kinds_after_one[b] += 1
        self.before_one = Counter(c for _, c in pairs)
        self.total, self.size = len(pairs), size

    def probability(self, a: int, b: int, c: int) -> float:
        one = (max(self.before_one[c] - DISCOUNT, 0) + DISCOUNT * len(self.before_one) / self.size) / self.total
        two = self._mixed(self.before_two[b, c], self.after_one[b], self.kinds_after_one[b], one)
        return self._mixed(self.three[a, b, c], self.after_two[a, b], self.kinds_after_two[a, b], two)

    def _mixed(self, count: int, total: int, kinds: int, lower: float) -> float:
        return (max(count - DISCOUNT, 0) + DISCOUNT * kinds * lower) / total if total else lower

    def loss(self, ids: list[int]) -> float:
        """Mean −log p of a token after the two before it."""
        found = [-math.log(self.probability(*three)) for three in zip(ids, ids[1:], ids[2:], strict=False)]
        return sum(found) / len(found)


def single(train: np.ndarray, test: np.ndarray, size: int) -> float:
    """Mean −log p of a token by how often it is in the training texts (one more for each)."""
    counts = np.bincount(train, minlength=size) + 1.0
    return float(-np.log(counts / counts.sum())[test].mean())


def measure(data: Path, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    texts = {part: pq.read_table(data / f"{part}.parquet", columns=["text"]) for part in ("train", "test")}
    some = np.random.default_rng(0).permutation(len(texts["test"]))[: options.rows]
    held_out = texts["test"].column("text").take(some).to_pylist()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "texts.parquet"
        pq.write_table(texts["train"], source)
        run = labelfree.pretrain(
            str(source),
            modality=options.modality,
            method=options.method,
            encoder=options.encoder,
            out=out,
            time_limit=options.time_limit,
            **parse_assignments(options.settings),
        )
        modality: Any = run.modality
        packed = modality.training_set(modality.open(str(source)), run.maker().needs).ids
    found = run.perplexity(held_out)
    test = modality.training_set(modality.open(held_out), run.maker().needs).ids
    per_byte = found.tokens / found.bytes
    losses = {
        "model": math.log(found.per_token),
        "three tokens": KneserNey(packed.tolist(), modality.vocabulary.size).loss(test.tolist()),
        "single tokens": single(packed, test, modality.vocabulary.size),
    }
    return {
        "tokens": {"training": len(packed), "held-out": found.tokens, "bytes a held-out token": 1 / per_byte},
        "perplexity": {
            name: {"per token": round(math.exp(loss), 2), "per byte": round(math.exp(loss * per_byte), 4)}
            for name, loss in losses.items()
        },
        "written": [run.generate(prompt, tokens=options.tokens, seed=seed) for seed, prompt in enumerate(PROMPTS)],
        **{key: run.info[key] for key in ("encoder", "steps", "samples", "seconds", "health", "hardware", "versions")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--method", default="next", help="next, or gpt, which starts at random")
    parser.add_argument("--time-limit", default="10m")
    parser.add_argument("--modality", default="text", help="text or bytes")
    parser.add_argument("--encoder", default="auto")
    parser.add_argument("--rows", type=int, default=1000, help="held-out texts that are measured")
    parser.add_argument("--tokens", type=int, default=80, help="tokens of each text that is written")
    parser.add_argument("--out", type=Path, default=Path("runs/generate"))
    parser.add_argument("settings", nargs="*")
    options = parser.parse_intermixed_args()
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    result = {"command": f"python benchmarks/generate.py {' '.join(sys.argv[1:])}", "commit": commit}
    result |= measure(options.data, options.out, options)
    text = json.dumps(result, default=str, indent=2, ensure_ascii=False)
    (options.out / "results.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
