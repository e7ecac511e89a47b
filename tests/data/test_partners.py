"""Partners: another sample of the same case, the same for the same seed, epoch and sample."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

import labelfree
from labelfree.data.batch import Batch
from labelfree.data.partners import PARTNER, Partners

CASES = np.array(["a", "b", "a", "", "c", "a", "b", None], dtype=object)


def test_a_partner_is_another_of_the_case_and_a_lonely_sample_its_own() -> None:
    partners = Partners(CASES, seed=0)
    seen: dict[int, set[int]] = {place: set() for place in range(len(CASES))}
    for epoch in range(40):
        for sample, partner in enumerate(partners.of(np.arange(len(CASES)), epoch).tolist()):
            seen[sample].add(partner)
    assert seen == {0: {2, 5}, 1: {6}, 2: {0, 5}, 3: {3}, 4: {4}, 5: {0, 2}, 6: {1}, 7: {7}}


def test_partners_do_not_depend_on_the_batch() -> None:
    partners = Partners(CASES, seed=3)
    whole = partners.of(np.arange(len(CASES)), 5)
    assert np.array_equal(partners.of(np.array([5, 0]), 5), whole[[5, 0]])
    assert any(not np.array_equal(whole, partners.of(np.arange(len(CASES)), epoch)) for epoch in range(6, 12))


def test_tied_batches_carry_cases_and_partners() -> None:
    both = Batch(torch.arange(4.0)[:, None], torch.arange(4))
    tied = Partners(CASES, seed=0).tie(both, np.array([0, 3]))
    assert tied.data.flatten().tolist() == [0, 1]
    assert tied.parts[PARTNER].data.flatten().tolist() == [2, 3]
    assert tied.group is not None
    assert tied.group.tolist() == [0, -1]


def test_pretraining_ties_pictures_of_a_case(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for number in range(24):
        folder = tmp_path / "pictures" / f"patient-{number // 3}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 255, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    for method in ("byol", "micle"):
        run = labelfree.pretrain(
            tmp_path / "pictures",
            method=method,
            modality="image",
            encoder="timm:test_resnet",
            case="folder",
            steps=3,
            batch_size=8,
            threads=1,
            cache="none" if method == "byol" else "memory",
            out=tmp_path / method,
        )
        assert run.state == "finished"
