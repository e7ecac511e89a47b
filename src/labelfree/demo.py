"""`labelfree demo`: the whole way on real data that ships with scikit-learn, from unlabelled pictures to a verdict.

The data are 1,797 handwritten digits of 8 × 8 pixels (E. Alpaydin and C. Kaynak, UCI Machine Learning Repository 1998;
its test part). Three tenths are held out; pretraining sees the pixels of the rest and nothing more.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labelfree.errors import LabelfreeError
from labelfree.training.logs import say

if TYPE_CHECKING:
    from labelfree.evaluation.protocol import Evaluation
    from labelfree.run import Run

#: Small pictures want a small network at their own size. A mirrored digit is another sign, so views are not flipped.
RECIPE: dict[str, Any] = {
    "modality": "image",
    "method": "simclr",
    "encoder": "timm:resnet10t",
    "epochs": 12,
    "batch_size": 128,
    "augment": "V",
    "crop_min": 0.5,
    "flip": 0.0,
    "solarise": 0.0,
}
EVALUATION: dict[str, Any] = {"budgets": ("1%", "5%", "10%"), "seeds": 4, "time_limit": "140s"}
#: What the command line writes with two dashes.
OPTIONS = ("modality", "method", "encoder", "epochs", "steps", "budgets", "protocols", "seeds", "time_limit")


def demo(out: str | Path | None = None) -> tuple[Run, Evaluation, Path]:
    """Pretrain on the digits without labels, evaluate with few, write the report.

    Args:
        out: folder for data and run, which must not exist or be empty; `labelfree-demo` (numbered) by default.

    Returns:
        The run, its evaluation, and the path of the report.
    """
    from labelfree.training.pretrain import pretrain

    folder = _new_folder(out)
    pictures, train, test = write_digits(folder)
    say(f"$ labelfree pretrain {pictures} --out {folder / 'run'} {_words(RECIPE)}", "bold")
    run = pretrain(pictures, out=folder / "run", **RECIPE)
    say(f"$ labelfree evaluate {run.path} --train {train} --test {test} --label digit {_words(EVALUATION)}", "bold")
    evaluation = run.evaluate(train, test, label="digit", **EVALUATION)
    say(f"$ labelfree report {run.path}", "bold")
    return run, evaluation, run.report()


def _words(options: Mapping[str, Any]) -> str:
    """Options and settings as they are typed."""
    words = []
    for key, value in options.items():
        text = ",".join(value) if isinstance(value, tuple) else str(value)
        words.append(f"--{key.replace('_', '-')} {text}" if key in OPTIONS else f"{key}={text}")
    return " ".join(words)


def write_digits(folder: Path) -> tuple[Path, Path, Path]:
    """Write the pictures to learn from without labels, and a training and a test part with the array `digit`."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pictures = np.round(digits.images * (255 / 16)).astype(np.uint8)
    x_train, x_test, y_train, y_test = train_test_split(
        pictures, digits.target, test_size=0.3, stratify=digits.target, random_state=0
    )
    unlabelled, train, test = (folder / name for name in ("unlabelled.npy", "train.npz", "test.npz"))
    np.save(unlabelled, x_train)
    np.savez(train, pictures=x_train, digit=y_train)
    np.savez(test, pictures=x_test, digit=y_test)
    return unlabelled, train, test


def _new_folder(out: str | Path | None) -> Path:
    if out is None:
        names = (Path(f"labelfree-demo{'' if number == 1 else f'-{number}'}") for number in range(1, 1000))
        folder = next(name for name in names if not name.exists())
    else:
        folder = Path(out).expanduser()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise LabelfreeError(f"'{folder}' exists already.", "Choose another --out.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
