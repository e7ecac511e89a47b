"""From source to answer for every kind of data: pretrain, evaluate with labels, report; copies are found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cells import SMALL, SOURCES, VIEWS

import labelfree
from labelfree import registry
from labelfree.data.batch import Sample, Unreadable
from labelfree.data.cache import Cached
from labelfree.data.doctor import digest, nearby
from labelfree.tasks.labels import Subset

METHODS = {"pretrained", "scratch", "random", "raw"}
#: A column of the source that says what its samples are, and how it is kept from the encoder.
LABELS = {"table": "buyer", "pair": "tone", "graph": "label", "events": "mark"}
KEPT_OUT = {"table": {"exclude": "buyer"}, "events": {"exclude": "mark"}}


def labelled(kind: str, folder: Path) -> tuple[Path, str]:
    """The tiny source of a kind, with a label column."""
    source = SOURCES[kind](folder)
    if kind == "events":
        lines = source.read_text().splitlines()
        source.write_text("\n".join([f"{lines[0]},mark", *(f"{line},{n % 3}" for n, line in enumerate(lines[1:]))]))
    if kind in LABELS:
        return source, LABELS[kind]
    if kind == "text":
        rows = [f'"{line}",{line.split()[1]}' for line in source.read_text().split("\n\n")]
        (folder / "texts.csv").write_text("\n".join(["text,thing", *rows]))
        return folder / "texts.csv", "thing"
    if kind == "bytes":
        rows = [f"{number}.bin,{number % 3}" for number in range(48)]
        (source / "labels.csv").write_text("\n".join(["file,mark", *rows]))
        return source, "mark"
    loaded = np.load(source)
    arrays: dict[str, Any] = dict(loaded) if source.suffix == ".npz" else {"data": loaded}
    np.savez(folder / "labelled.npz", label=np.array(["a", "b"])[np.arange(64) % 2], **arrays)
    return folder / "labelled.npz", "label"


@pytest.mark.parametrize("kind", SOURCES)
def test_from_source_to_answer(kind: str, tmp_path: Path) -> None:
    source, label = labelled(kind, tmp_path)
    method = "clip" if kind == "pair" else "masked"
    settings: dict[str, Any] = {"batch_size": 16, "threads": 1}
    for more in (SMALL.get(method, {}), VIEWS.get(kind, {}), KEPT_OUT.get(kind, {})):
        settings |= more
    run = labelfree.pretrain(
        source,
        modality=kind,
        method=method,
        encoder="transformer:nano",
        out=tmp_path / "run",
        steps=2,
        **settings,
    )
    found = run.evaluate(source, label=label, budgets=["3/class"], seeds=1, most_steps=2, learning_rate=1e-3)
    assert {row.method for row in found.results} == METHODS
    assert any("was pretrained on the held-out samples too" in words for words in found.warnings)
    boosted = [row.method for row in found.results if row.protocol == "boosting"]
    assert boosted == ["raw"] * ("boosting" in registry.modalities()[kind].classical)
    json.dumps(found.to_dict())
    page = run.report().read_text()
    assert found.verdict.split(". ")[0] in page
    assert run.embed(source).shape[1] == run.encoder.dim


@pytest.mark.parametrize("kind", SOURCES)
def test_copies_are_known_wherever_samples_lie(kind: str, tmp_path: Path) -> None:
    modality = registry.modalities()[kind]
    data = modality(modality.settings_class.read({}, kind))
    dataset = data.open(SOURCES[kind](tmp_path))
    data.fit(dataset)
    held = Cached(dataset, data)
    in_source = [digest(sample) for sample in dataset.read(range(len(dataset)))]
    assert [digest(sample) for sample in nearby(held, range(len(held)))] == in_source
    assert len(set(in_source)) >= 32  # paragraphs repeat


class Damaged(Subset):
    """All samples of a dataset; the third cannot be read."""

    asked = False

    def read(self, indices: Sequence[int]) -> list[Sample | Unreadable]:
        self.asked |= 2 in indices
        return [Unreadable(i, "third", "damaged") if i == 2 else super(Damaged, self).read([i])[0] for i in indices]


@pytest.mark.parametrize("kind", sorted(SOURCES.keys() - {"events"}))  # of a log all rows are read when it is opened
def test_raw_features_have_a_row_for_every_sample_of_zeros_where_it_cannot_be_read(kind: str, tmp_path: Path) -> None:
    modality = registry.modalities()[kind]
    data = modality(modality.settings_class.read({}, kind))
    dataset = data.open(SOURCES[kind](tmp_path))
    data.fit(dataset)
    damaged = Damaged(dataset, np.arange(len(dataset)))
    _, whole, found = (rows.toarray() if hasattr(rows, "toarray") else rows
                       for rows in data.raw_features(dataset, [dataset, damaged]))  # fmt: skip
    known = np.arange(len(dataset)) != (2 if damaged.asked else -1)  # some look into the source instead
    np.testing.assert_allclose(found[known], whole[known], rtol=1e-5, atol=1e-6)
    assert not found[~known].any()
    assert data.raw_features(damaged, [])[0].shape == whole.shape
