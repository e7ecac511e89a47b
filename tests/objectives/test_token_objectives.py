"""Objectives on tokens: only what is hidden, or lies ahead, is predicted; padding and absence count nothing."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cells import assemble, graphs, pictures, series, texts
from processes import together
from torch import Tensor

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw
from labelfree.encoders.block import sinusoids
from labelfree.errors import Refusal
from labelfree.losses.masked import visible_positions
from labelfree.modalities.base import hidden_count
from labelfree.needs import Need
from labelfree.objectives import _heads
from labelfree.objectives._decoder import Decoder
from labelfree.objectives._heads import token_error, valid_tokens
from labelfree.objectives.cpc import CPC, Pool
from labelfree.objectives.link import Link
from labelfree.objectives.masked import Masked, MaskedSettings
from labelfree.objectives.pretext import Pretext, PretextSettings
from labelfree.training.loop import Training


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {"image": pictures(folder), "series": series(folder), "text": texts(folder)}


def first_batch(training: Training) -> tuple[Batch, Draw]:
    batch = next(iter(training.loader.steps(0, 1)))
    return batch, Draw.start(0, 0, 0, batch.index)


class Spy:
    """A modality that remembers what `token_loss` was asked."""

    def __init__(self, modality: Any) -> None:
        self.modality, self.asked = modality, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.modality, name)

    def token_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        self.asked.append((prediction.shape, target))
        return self.modality.token_loss(prediction, target)


@pytest.mark.parametrize(("kind", "ratio"), [("image", 0.75), ("series", 0.5), ("text", 0.15)])
def test_masked_predicts_the_hidden_tokens_and_no_others(
    kind: str, ratio: float, sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    training = assemble(sources[kind], kind, "masked", "transformer:nano")
    settings = MaskedSettings(ratio=ratio, decoder_width=32, decoder_depth=1)
    spy = Spy(training.objective.modality)
    objective = Masked(training.objective.encoder, spy, settings)  # type: ignore[arg-type]
    batch, draw = first_batch(training)

    def vocabulary_loss(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor, counted: Tensor) -> Tensor:
        spy.asked.append(((len(batch), len(x) // len(batch), len(weight)), target.view(len(batch), -1)))
        return x.sum()

    monkeypatch.setattr(_heads, "vocabulary_loss", vocabulary_loss)
    objective(batch, draw)
    view = spy.view(batch, draw, settings.views)
    mask = spy.sample_mask(view, draw, ratio)
    [(shape, target)] = spy.asked
    assert shape == (len(batch), hidden_count(mask.shape[1], ratio), spy.target_dim)
    expected = spy.targets(view)
    for row in range(len(batch)):
        hidden = expected[row][mask[row]]
        torch.testing.assert_close(target[row][: len(hidden)], hidden, equal_nan=True)


def test_masked_loss_does_not_see_what_it_asks_for(sources: dict[str, Path]) -> None:
    """Where tokens are dropped, a change of the hidden pixels changes no feature."""
    training = assemble(sources["image"], "image", "masked", "transformer:nano")
    objective, (batch, draw) = training.objective.eval(), first_batch(training)
    modality = objective.modality
    view = modality.view(batch, draw, "none")
    mask = modality.sample_mask(view, draw, 0.75)
    squares = mask.view(-1, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    changed = view.with_(data=torch.where(squares, torch.randn_like(view.data), view.data))
    for hidden in ({"kept": visible_positions(mask, 12)}, {"mask": mask}):
        a, b = (objective.encoder(v, **hidden).pooled for v in (view, changed))
        torch.testing.assert_close(a, b)


def test_masked_refuses_a_way_of_hiding_that_the_encoder_does_not_know(sources: dict[str, Path]) -> None:
    training = assemble(sources["series"], "series", "masked", "dilated")
    with pytest.raises(Refusal, match=r"cannot drop hidden tokens.*hide=replace"):
        Masked(training.objective.encoder, training.objective.modality, MaskedSettings(hide="drop"))


def test_decoder_knows_where_each_token_lies() -> None:
    torch.manual_seed(0)
    decoder = Decoder(8, 32, 1, 5)
    mask = torch.tensor([[0, 1, 1, 0, 1, 1]]).bool()
    out = decoder(torch.randn(1, 2, 8), mask, torch.tensor([[1, 2, 4, 5]]), (2, 3))
    assert out.shape == (1, 4, 5)
    assert len(torch.unique(out.detach(), dim=1)[0]) == 4, "mask tokens differ by their place alone"
    codes = sinusoids((2, 3), 32, torch.device("cpu"))
    assert codes.shape == (6, 32)
    assert torch.pdist(codes).min() > 0.1


def test_next_predicts_from_the_past_alone(sources: dict[str, Path]) -> None:
    training = assemble(sources["text"], "text", "next", "transformer:nano")
    objective, (batch, draw) = training.objective.eval(), first_batch(training)
    view = objective.modality.view(batch, draw, "none")
    future = view.data.clone()
    future[:, 6:] = future[:, 6:].flip(0)
    a, b = objective.encoder(view).tokens, objective.encoder(view.with_(data=future)).tokens
    assert a is not None
    assert b is not None
    torch.testing.assert_close(a[:, :6], b[:, :6])
    assert not torch.allclose(a[:, 6:], b[:, 6:])


@pytest.mark.parametrize("ahead", [1, 3])
def test_next_predicts_every_moment_up_to_its_horizon(ahead: int, tmp_path: Path) -> None:
    np.save(tmp_path / "waves.npy", np.random.default_rng(0).normal(size=(8, 12)).astype(np.float32))
    training = assemble(tmp_path / "waves.npy", "series", "next", "dilated:tiny", patch=1, ahead=ahead, horizon=5)
    objective, (batch, draw) = training.objective.eval(), first_batch(training)
    view = objective.modality.view(batch, draw, "none")
    tokens = objective.encoder(view).tokens
    found = objective.head(tokens)
    errors = [
        (found[b, t, k] - view.data[b, t + ahead + k, 0]) ** 2
        for b, t, k in product(range(len(tokens)), range(12), range(5))
        if t + ahead + k < 12
    ]
    torch.testing.assert_close(objective(batch, draw).loss, torch.stack(errors).mean(), rtol=1e-4, atol=1e-5)


def test_moments_beyond_the_end_count_nothing(tmp_path: Path) -> None:
    np.save(tmp_path / "waves.npy", np.random.default_rng(0).normal(size=(8, 12)).astype(np.float32))
    training = assemble(tmp_path / "waves.npy", "series", "next", "dilated:tiny", patch=1, horizon=14)
    objective, (batch, draw) = training.objective.eval(), first_batch(training)
    objective(batch, draw).loss.backward()
    assert objective.head[-1].weight.grad.any(dim=1).tolist() == [True] * 11 + [False] * 3


def test_next_looks_as_far_as_moments_are_alike(sources: dict[str, Path]) -> None:
    horizons = {
        (encoder, patch): assemble(sources["series"], "series", "next", encoder, patch=patch).objective.horizon
        for encoder, patch in (("dilated", 1), ("transformer:nano", 4), ("transformer:nano", 32))
    }
    assert horizons == {("dilated", 1): 16, ("transformer:nano", 4): 4, ("transformer:nano", 32): 1}
    assert assemble(sources["text"], "text", "next", "transformer:nano").objective.horizon == 1


def test_several_words_may_be_predicted_at_once_but_not_with_the_vectors_that_read_them(
    sources: dict[str, Path],
) -> None:
    training = assemble(sources["text"], "text", "next", "transformer:nano", horizon=3)
    objective, (batch, draw) = training.objective.eval(), first_batch(training)
    view = objective.modality.view(batch, draw, "none")
    logits, count = objective.head(objective.encoder(view).tokens).float().unflatten(2, (3, -1)), view.data.shape[1]
    real = valid_tokens(objective.encoder(view))
    errors = [
        F.cross_entropy(logits[:, : count - k, k - 1].flatten(0, 1), view.data[:, k:].flatten(), reduction="none")[
            real[:, k:].flatten()
        ]
        for k in (1, 2, 3)
    ]
    torch.testing.assert_close(objective(batch, draw).loss, torch.cat(errors).mean(), rtol=1e-3, atol=1e-3)
    with pytest.raises(Refusal, match="predict one token each"):
        assemble(sources["text"], "text", "next", "transformer:nano", horizon=3, tied=True)


@pytest.mark.parametrize("method", ["masked", "next"])
def test_words_are_predicted_from_their_frequencies_at_first(method: str, sources: dict[str, Path]) -> None:
    """The first loss is about the entropy of single words, far below that of a guess among all of them."""
    training = assemble(sources["text"], "text", method, "transformer:nano")
    batch, draw = first_batch(training)
    share = training.objective.modality.target_bias().exp()
    entropy = float(-(share * share.log()).sum())
    with torch.no_grad():
        loss = float(training.objective(batch, draw).loss)
    assert loss < entropy + 0.25 * (math.log(len(share)) - entropy)


def test_next_gives_padding_no_weight(sources: dict[str, Path]) -> None:
    training = assemble(sources["text"], "text", "next", "transformer:nano")
    objective, (batch, draw) = training.objective.eval(), first_batch(training)
    lengths = torch.full_like(batch.index, batch.data.shape[1] - 4)
    pad = objective.modality.vocabulary.pad  # type: ignore[attr-defined]
    padded, other = batch.data.clone(), batch.data.clone()
    padded[:, -4:], other[:, -4:] = pad, pad + 5
    losses = [objective(batch.with_(data=data, lengths=lengths), draw).loss for data in (padded, other)]
    short = objective(batch.with_(data=batch.data[:, :-4]), draw).loss
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(losses[0], short)


def test_large_predictions_are_made_in_parts_with_the_same_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    head, tokens, target = torch.nn.Linear(4, 9), torch.randn(5, 3, 4, requires_grad=True), torch.randn(5, 3, 9)
    modality: Any = SimpleNamespace(
        offers={Need.TARGETS}, target_dim=9, token_loss=lambda found, true: (found - true).square().mean(dim=-1)
    )
    counted = torch.rand(5, 3) > 0.3
    results = []
    for most in (1 << 25, 3 * 9 * 2):
        monkeypatch.setattr(_heads, "MOST", most)
        error = token_error(head, modality, tokens, target, counted)
        results.append((error, *torch.autograd.grad(error, [tokens, head.weight])))
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0][0], (head(tokens) - target).square().mean(dim=-1)[counted].mean())


def test_cpc_pool_leaves_out_padding_and_the_moment_itself() -> None:
    samples, tokens = 6, 5
    z = torch.arange(samples * tokens).float().view(samples, tokens, 1)
    valid = torch.ones(samples, tokens, dtype=torch.bool)
    valid[2, 3:] = False
    pool = Pool(z, valid, Draw.start(0, 0, 0, torch.arange(samples)), 18)
    names = pool.z.flatten().long().tolist()
    assert len(names) == len(set(names)) == 18
    padding = {2 * tokens + 3, 2 * tokens + 4}
    for k in (1, 3):
        excluded = pool.excluded(k, tokens)
        assert excluded.shape == (samples, tokens - k, 18)
        for b in range(samples):
            for t in range(k, tokens):
                expected = [name in padding or name == b * tokens + t for name in names]
                assert excluded[b, t - k].tolist() == expected


def pooled(rank: int) -> list[torch.Tensor]:
    tokens = (5, 9)[rank]
    z = torch.arange(2.0 * tokens).view(2, tokens, 1) + 100 * rank
    pool = Pool(z, torch.ones(2, tokens, dtype=torch.bool), Draw.start(0, 0, 0, torch.arange(2) + 2 * rank), 28)
    return [pool.z.flatten(), pool.excluded(1, tokens)]


def test_cpc_pool_takes_processes_whose_samples_are_of_different_lengths() -> None:
    (z, first), (same, second) = together(pooled)
    assert torch.equal(z, same)
    open_to_all = ~(first.all(dim=(0, 1)) | second.all(dim=(0, 1)))
    assert len(z[open_to_all].unique()) == 2 * 5 + 2 * 7  # all of the short, seven each of the long


def of_groups(rank: int, parts: int = 2) -> list[torch.Tensor]:
    rows = torch.arange(4).chunk(parts)[rank]
    z, group = torch.arange(24.0).view(4, 6, 1)[rows], torch.tensor([1, 2, 1, -1])[rows]
    pool = Pool(z, torch.ones(len(z), 6, dtype=torch.bool), Draw.start(0, 0, 0, rows), 8, group)
    return [pool.z, pool.excluded(1, 6)]


def test_cpc_pools_of_groups_are_the_same_in_several_processes() -> None:
    (z, excluded), (other, more) = together(of_groups)
    alone, excluded_alone = of_groups(0, parts=1)
    assert torch.equal(torch.cat([z, other]), alone)
    assert torch.equal(torch.cat([excluded, more]), excluded_alone)


@pytest.mark.parametrize("method", ["next", "cpc"])
def test_samples_of_one_token_are_refused(method: str, tmp_path: Path) -> None:
    np.save(tmp_path / "short.npy", np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32))
    training = assemble(tmp_path / "short.npy", "series", method, "transformer:nano", patch=4)
    with pytest.raises(Refusal, match="one token"):
        training.objective(*first_batch(training))


def test_cpc_cannot_be_solved_without_context(sources: dict[str, Path]) -> None:
    """With predictions of zero every moment looks alike: the loss is that of guessing."""
    training = assemble(sources["series"], "series", "cpc", "transformer:nano")
    objective, (batch, draw) = training.objective, first_batch(training)
    assert isinstance(objective, CPC)
    for predictor in objective.predictors:
        torch.nn.init.zeros_(predictor.weight)  # type: ignore[arg-type]
    loss = float(objective(batch, draw).loss.detach())
    assert torch.tensor(32.0).log() - 0.3 < loss <= torch.tensor(33.0).log() + 1e-4


def test_pretext_asks_which_and_names_what_there_is(sources: dict[str, Path]) -> None:
    training = assemble(sources["image"], "image", "pretext", "transformer:nano")
    encoder, modality = training.objective.encoder, training.objective.modality
    step = training.objective(*first_batch(training))
    assert 0 <= float(step.logs["pretext_accuracy"]) <= 1
    jigsaw = Pretext(encoder, modality, PretextSettings(transformation="jigsaw"))
    assert jigsaw.transformation.count == modality.transformations()["jigsaw"].count
    with pytest.raises(Refusal, match=r"no transformation 'rotatoin'.*Did you mean 'rotation'"):
        Pretext(encoder, modality, PretextSettings(transformation="rotatoin"))


def test_rotation_shows_every_picture_in_all_four_turns(sources: dict[str, Path]) -> None:
    training = assemble(sources["image"], "image", "rotation", "transformer:nano")
    objective, (batch, draw) = training.objective, first_batch(training)
    assert isinstance(objective, Pretext)
    view, which = objective._transformed(batch, draw)
    turns, labels = view.data.unflatten(0, (4, -1)), which.unflatten(0, (4, -1))
    assert (labels == torch.arange(4)[:, None]).all()
    for number in range(1, 4):
        torch.testing.assert_close(turns[number], turns[0].rot90(number, (2, 3)), msg="one crop, turned")
    assert objective(batch, draw).features.shape == (len(batch), objective.encoder.dim)


def test_what_is_not_linked_to_a_node_of_one_graph_is_a_root_of_another_sample(tmp_path: Path) -> None:
    training = assemble(graphs(tmp_path), "graph", "link", "transformer:pico")
    link = training.objective
    assert isinstance(link, Link)
    batch, draw = first_batch(training)
    links = link.modality.links(link.modality.view(batch, draw, "none"), draw, 0.5)
    own = torch.eye(len(batch))[:, None].expand(-1, links.view.data.shape[1], -1)  # a direction for each sample
    torch.testing.assert_close(link._apart(own, links, draw), torch.zeros(links.hidden.shape) + link.bias)
    alike = torch.ones_like(own)
    alike[:, 1:, 1] = -1.0
    scores = link._apart(alike, links, draw) - link.bias  # of an end that is a root or none, and a root
    sizes = [math.sqrt(len(batch)), (len(batch) - 2) / math.sqrt(len(batch))]
    assert {round(float(score), 4) for score in scores.detach().unique()} == {round(size, 4) for size in sizes}
    step = link.loss(batch, draw)
    assert 0 <= float(step.logs["right"]) <= 1
    step.loss.backward()
