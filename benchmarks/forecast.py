"""How far off are forecasts? The last quarter of test series, from the three quarters before it.

    python benchmarks/forecast.py data/ucr [--steps 256] [--sets CBF,ECG200,...]

`next` learns from the training series without labels, looking one step ahead and as far as it does by default; then it
continues test series. Beside it: the last value, standing still, and a ridge regression from all values before to all
values after, its penalty chosen by leave-one-out on the training series. Mean squared errors, in the units of the
archive, whose training series have a deviation of about 1.

The data, `ucr`, lie as benchmarks/README.md says.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from sklearn.linear_model import RidgeCV

#: Sets of the UCR archive, of different lengths and sizes.
SETS = "CBF,ECG200,ArrowHead,FacesUCR,ECG5000,CricketX,Fish,Crop"
MOST = 300


def one(folder: Path, steps: int, seed: int) -> dict[str, float]:
    """Errors on a set, by what makes the forecast."""
    import labelfree

    with np.load(folder / "train.npz") as train, np.load(folder / "test.npz") as test:
        known, new = train["X"], test["X"][:MOST]
    cut = 3 * known.shape[1] // 4
    rest = new[:, cut:]
    ridge = RidgeCV(np.logspace(-3, 5, 9)).fit(known[:, :cut], known[:, cut:])
    found = {"last value": new[:, cut - 1 : cut], "ridge": ridge.predict(new[:, :cut])}
    with tempfile.TemporaryDirectory() as name:
        for words, horizon in (("one step", 1), ("as by default", "auto")):
            run = labelfree.pretrain(
                known[..., None],
                modality="series",
                method="next",
                horizon=horizon,
                steps=steps,
                seed=seed,
                threads=1,
                out=Path(name, words),
            )
            found[words] = run.forecast(new[:, :cut, None], steps=rest.shape[1]).values[..., 0]
    return {words: float(np.mean((values - rest) ** 2)) for words, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", default=SETS)
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = {name: one(options.data / name, options.steps, options.seed) for name in options.sets.split(",")}
    columns = list(next(iter(rows.values())))
    print(f"| set | {' | '.join(columns)} |\n| --- {'| --- ' * len(columns)}|")
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(f'{row[column]:.3f}' for column in columns)} |")


if __name__ == "__main__":
    main()
