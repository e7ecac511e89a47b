"""wav2vec 2.0: how codes are chosen, what distracts, and what is refused; negatives of one group for CPC."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cells import assemble, sounds, texts

from labelfree.data.draw import Draw
from labelfree.errors import Refusal
from labelfree.objectives.cpc import Pool
from labelfree.objectives.wav2vec2 import Quantiser, Wav2Vec2, Wav2Vec2Settings


def draw(count: int) -> Draw:
    return Draw.start(0, 0, 0, torch.arange(count))


def test_codes_are_entries_of_the_codebooks_and_learn_through_the_choice() -> None:
    torch.manual_seed(0)
    quantiser = Quantiser(6, codebooks=2, codes=5, width=8, temperature=1.0)
    tokens = torch.randn(3, 4, 6, requires_grad=True)
    found, logits = quantiser(tokens, draw(3))
    assert logits.shape == (3, 4, 2, 5)
    every = torch.stack([torch.cat([a, b]) for a in quantiser.codes[0] for b in quantiser.codes[1]])
    distance = (found.flatten(0, 1)[:, None] - quantiser.project(every)).abs().amax(dim=2)
    assert (distance.min(dim=1).values < 1e-5).all()
    found.sum().backward()
    assert tokens.grad is not None
    assert tokens.grad.abs().sum() > 0
    assert quantiser.codes.grad is not None
    assert torch.equal(found, quantiser(tokens, draw(3))[0])
    assert not torch.equal(found, quantiser(tokens, draw(3).view(1))[0])


def test_temperature_falls_geometrically_and_is_saved(tmp_path: Path) -> None:
    objective = assemble(sounds(tmp_path), "audio", "wav2vec2", "transformer:nano").objective
    objective.after_step(0.5)
    assert float(objective.state_dict()["quantiser.temperature"]) == pytest.approx(1.0)
    objective.after_step(1.0)
    assert float(objective.state_dict()["quantiser.temperature"]) == pytest.approx(0.5)


def test_distractors_are_some_of_the_hidden_tokens(tmp_path: Path) -> None:
    training = assemble(sounds(tmp_path), "audio", "wav2vec2", "transformer:nano")
    objective = Wav2Vec2(
        training.objective.encoder, training.objective.modality, Wav2Vec2Settings(negatives=3, codes=8, code_width=16)
    )
    hidden = torch.arange(9) < torch.tensor([9, 5, 2, 0])[:, None]
    chosen = objective._distractors(draw(4), hidden)
    assert (chosen & hidden).sum(dim=1).tolist() == [4, 4, 2, 0]


def test_tokens_that_are_codes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"codes already.*method masked"):
        assemble(texts(tmp_path), "text", "wav2vec2", "transformer:nano")


def test_negatives_of_the_same_group_only() -> None:
    z = torch.arange(4.0 * 6).view(4, 6, 1)
    valid = torch.ones(4, 6, dtype=torch.bool)
    valid[0, 4:] = False
    group = torch.tensor([1, 2, 1, -1])
    pool = Pool(z, valid, draw(4), 8, group)
    excluded = pool.excluded(2, 6)
    there = {row: {6 * row + t for t in range(6) if valid[row, t]} for row in range(4)}
    for row, others in {0: there[0] | there[2], 1: there[1], 2: there[0] | there[2], 3: there[3]}.items():
        for moment in range(2, 6):
            found = pool.z[row, ~excluded[row, moment - 2]].flatten().long().tolist()
            assert set(found) <= others - {6 * row + moment}
            assert len(found) == len(set(found)) >= min(8, len(others)) - 1
