"""Objectives with a teacher that labels or describes: what it sees, how it moves, what it must not do."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cells import assemble, make_sources

import labelfree
from labelfree.data.draw import Draw
from labelfree.encoders.base import Features
from labelfree.errors import Refusal
from labelfree.losses.distillation import centred, mean_over_batch
from labelfree.losses.masked import hidden_positions, visible_positions
from labelfree.losses.regression import token_distance
from labelfree.objectives._decoder import Decoder
from labelfree.objectives._teacher import cosine_between, frozen_copy, undropped
from labelfree.objectives._views import halves, two_views
from labelfree.objectives.dino import DINO, DINOSettings
from labelfree.objectives.ibot import IBOT, IBOTSettings
from labelfree.objectives.latent import Latent, LatentSettings, all_hidden

TEACHERS = ("byol", "moco", "dino", "ibot", "latent")
HEAD: dict[str, Any] = {"projector": (32, 16), "prototypes": 24}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_sources(tmp_path_factory.mktemp("sources"))


def objective(sources: dict[str, Path], kind: str, method: str, **settings: Any) -> tuple[Any, Any, Draw]:
    training = assemble(sources[kind], kind, method, "transformer:nano")
    base = training.objective
    torch.manual_seed(0)
    made = type(base)(base.encoder, base.modality, type(base.settings)(**settings)) if settings else base
    batch = next(iter(training.loader.steps(0, 1)))
    return made, batch, Draw.start(0, 0, 0, batch.index)


def test_dino_s_loss_is_the_mean_over_pairs_of_different_views(sources: dict[str, Path]) -> None:
    dino, batch, draw = objective(sources, "series", "dino", **HEAD, local_crops=2)
    assert isinstance(dino, DINO)
    dino.eval()
    dino.after_step(0.5)  # past the warm-ups, with a centre
    dino.centre.normal_()
    found = float(dino.loss(batch, draw).loss.detach())
    with torch.no_grad():
        views = [
            dino.modality.view(batch, draw.view(n), p) for n, p in enumerate(("contrast", "contrast", "local", "local"))
        ]
        students = [F.log_softmax(dino.head(dino.encoder(view).pooled) / 0.1, dim=1) for view in views]
        teachers = [centred(dino.teacher_head(dino.teacher_encoder(v).pooled), dino.centre, 0.07) for v in views[:2]]
    pairs = [-(t * s).sum(dim=1).mean() for i, t in enumerate(teachers) for j, s in enumerate(students) if i != j]
    assert len(pairs) == 6
    assert found == pytest.approx(float(torch.stack(pairs).mean()), rel=1e-4)


def test_the_teacher_s_temperature_rises_and_its_centre_follows_the_batch(sources: dict[str, Path]) -> None:
    dino, batch, draw = objective(sources, "series", "dino", **HEAD)
    assert float(dino.temperature) == pytest.approx(0.04)
    views = undropped(two_views(dino.modality, batch, draw, dino.settings))
    with torch.no_grad():
        told = dino.teacher_head(dino.teacher_encoder(views).pooled)
    dino.loss(batch, draw)
    dino.after_step(0.05)
    assert float(dino.temperature) == pytest.approx(0.055)
    torch.testing.assert_close(dino.centre, mean_over_batch(told))  # the first batch's mean is the first centre
    before = dino.centre.clone()
    with torch.no_grad():  # the teacher has moved
        told = dino.teacher_head(dino.teacher_encoder(views).pooled)
    dino.loss(batch, draw)
    dino.after_step(0.2)
    torch.testing.assert_close(dino.centre, 0.9 * before + 0.1 * mean_over_batch(told))
    assert float(dino.temperature) == pytest.approx(0.07)


def test_without_a_warm_up_the_teachers_temperature_is_that_of_the_end_from_the_first_step(
    sources: dict[str, Path],
) -> None:
    dino, _, _ = objective(sources, "series", "dino", **HEAD, temperature_warmup=0.0)
    assert float(dino.temperature) == pytest.approx(0.07)


@pytest.mark.parametrize(
    ("kind", "spec", "method"),
    [
        *(("text", "transformer:nano", method) for method in TEACHERS),
        *(("series", "dilated", method) for method in TEACHERS),
        *(("pair", "towers:nano+nano", method) for method in ("byol", "moco", "dino")),
    ],
)
def test_a_teacher_drops_nothing(sources: dict[str, Path], kind: str, spec: str, method: str) -> None:
    """What it says is one thing, whatever dropout would be drawn; the student's goes on."""
    training = assemble(sources[kind], kind, method, spec)
    learner, batch = training.objective.train(), next(iter(training.loader.steps(0, 1)))
    draw = Draw.start(0, 0, 0, batch.index)

    def loss(network: torch.nn.Module, rate: float) -> float:
        for module in network.modules():
            if isinstance(getattr(module, "dropout", None), float):
                module.dropout = rate  # type: ignore[assignment]
        return float(learner.loss(batch, draw).loss.detach())

    teacher = learner.teacher if method == "latent" else learner.teacher_encoder
    assert loss(teacher, 0.0) == loss(teacher, 0.9)
    assert loss(learner.encoder, 0.0) != loss(learner.encoder, 0.9)


def test_a_teacher_of_the_users_layers_drops_nothing() -> None:
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.9, batch_first=True)
    teacher, x = frozen_copy(layer).train(), torch.randn(3, 5, 8)
    assert torch.equal(teacher(x), teacher(x))
    assert not torch.equal(layer(x), layer(x))


def test_a_centre_starts_with_what_is_there_and_stays_where_nothing_is(sources: dict[str, Path]) -> None:
    dino, _, _ = objective(sources, "series", "dino", **HEAD)
    cosines, nothing = torch.randn(4, 32), torch.zeros(4)
    _, empty = dino._centred(cosines, torch.zeros(32), nothing)
    assert not empty.any()
    dino.progress.fill_(0.5)
    _, first = dino._centred(cosines, empty, torch.tensor([1.0, 0.0, 0.0, 0.0]))
    torch.testing.assert_close(first, cosines[0])
    _, after = dino._centred(cosines, first, nothing)
    torch.testing.assert_close(after, first)


def test_momentum_can_end_below_one() -> None:
    assert cosine_between(0.99, 1.0, 0.999) == pytest.approx(0.999)
    assert cosine_between(0.99, 0.5, 0.999) == pytest.approx(0.9945)


@pytest.mark.parametrize("centring", ["centre", "sinkhorn"])
def test_prototypes_wait_and_no_gradient_reaches_the_teacher(sources: dict[str, Path], centring: str) -> None:
    dino, batch, draw = objective(
        sources, "series", "dino", **HEAD, centring=centring, koleo=0.1, frozen_prototypes=0.1
    )
    dino.loss(batch, draw).loss.backward()
    assert not dino.head.prototypes.grad.any()
    assert all(p.grad is None for p in dino.teacher_encoder.parameters())
    dino.zero_grad()
    dino.after_step(0.2)
    dino.loss(batch, draw).loss.backward()
    assert dino.head.prototypes.grad.any()


def test_ibot_hides_from_the_student_alone_and_only_in_some_views(sources: dict[str, Path]) -> None:
    ibot, batch, draw = objective(sources, "series", "ibot", **HEAD)
    assert isinstance(ibot, IBOT)
    masks: dict[str, Any] = {}
    ibot.encoder.register_forward_pre_hook(lambda _, args: masks.update(student=args[1]))
    ibot.teacher_encoder.register_forward_pre_hook(lambda _, args: masks.update(teacher=args[1:]))
    step = ibot.loss(batch, draw)
    hidden = masks["student"].any(dim=1)
    assert masks["teacher"] == ()
    assert 0 < int(hidden.sum()) < len(hidden)
    assert float(step.logs["hidden"]) > 0


def test_views_that_hide_nothing_count_in_the_mean_over_views(sources: dict[str, Path]) -> None:
    ibot, *_ = objective(sources, "series", "ibot", **HEAD, hiding=1.0)
    assert isinstance(ibot, IBOT)
    ibot.eval()
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[1, :2] = True
    tokens = torch.randn(4, 4, ibot.encoder.dim)
    seen = Features(pooled=tokens.mean(dim=1), tokens=tokens)
    alone = Features(pooled=seen.pooled[1:2], tokens=tokens[1:2])
    torch.testing.assert_close(4 * ibot._hidden(mask, seen, seen), ibot._hidden(mask[1:2], alone, alone))


@pytest.mark.parametrize("centring", ["centre", "sinkhorn"])
def test_tokens_that_are_not_hidden_have_no_part_in_the_labels_of_those_that_are(
    sources: dict[str, Path], centring: str
) -> None:
    ibot, batch, draw = objective(sources, "series", "ibot", **HEAD, centring=centring)
    ibot.eval()
    step = ibot.loss(batch, draw)
    ibot.after_step(0.5)
    centre = ibot.token_centre.clone()
    ibot.token_centre.zero_()
    ibot.progress.zero_()
    seen: dict[str, Any] = {}
    ibot.encoder.register_forward_pre_hook(lambda _, args: seen.update(mask=args[1]))

    def spoil(_: Any, __: Any, features: Any) -> Any:
        """What the teacher says of tokens that the student sees too."""
        tokens = features.tokens + 100 * torch.randn_like(features.tokens) * ~seen["mask"][..., None]
        return dataclasses.replace(features, tokens=tokens)

    ibot.teacher_encoder.register_forward_hook(spoil)
    again = ibot.loss(batch, draw)
    ibot.after_step(0.5)
    torch.testing.assert_close(again.logs["hidden"], step.logs["hidden"])
    torch.testing.assert_close(ibot.token_centre, centre)
    assert bool(centre.any()) == (centring == "centre")


def test_ibot_without_hidden_tokens_is_dino(sources: dict[str, Path]) -> None:
    ibot, batch, draw = objective(sources, "series", "ibot", **HEAD, hiding=0.0)
    dino = DINO(ibot.encoder, ibot.modality, DINOSettings(**HEAD))
    dino.load_state_dict(ibot.state_dict(), strict=False)
    a, b = ibot.eval().loss(batch, draw), dino.eval().loss(batch, draw)
    torch.testing.assert_close(a.loss, b.loss)
    assert float(a.logs["hidden"]) == 0


def test_tokens_may_have_a_head_of_their_own(sources: dict[str, Path]) -> None:
    ibot, batch, draw = objective(sources, "series", "ibot", **HEAD, token_head=True, frozen_prototypes=0.0)
    shared, _, _ = objective(sources, "series", "ibot", **HEAD, frozen_prototypes=0.0)
    shared.load_state_dict(ibot.state_dict(), strict=False)
    ours, theirs = ibot.eval().loss(batch, draw), shared.eval().loss(batch, draw)
    assert float(ours.logs["hidden"]) != float(theirs.logs["hidden"])
    samples = [step.loss - step.logs["hidden"] for step in (ours, theirs)]
    torch.testing.assert_close(*samples)  # what is said of whole samples stays
    ours.loss.backward()
    assert all(p.grad is not None for p in ibot.token_head.parameters())
    before = ibot.teacher_token_head.prototypes.clone()
    with torch.no_grad():
        ibot.token_head.prototypes += 1.0
    ibot.after_step(0.0)
    assert torch.allclose(ibot.teacher_token_head.prototypes, before + 0.004, atol=1e-5)


def test_ibot_says_that_a_convolution_cannot_hide(sources: dict[str, Path]) -> None:
    with pytest.raises(Refusal):
        assemble(sources["image"], "image", "ibot", "timm:test_resnet")


@pytest.mark.parametrize(("kind", "layers"), [("series", 1), ("series", 3), ("image", 2)])
def test_what_is_deep_is_the_mean_of_normalised_blocks(sources: dict[str, Path], kind: str, layers: int) -> None:
    latent, batch, _ = objective(sources, kind, "latent")
    encoder = latent.encoder.eval()
    blocks = encoder.blocks if hasattr(encoder, "blocks") else encoder.network.blocks
    seen: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda _, __, out: seen.append(out)) for block in blocks]
    with torch.no_grad():
        view = latent.modality.prepare(batch)
        encoder(view)
        for hook in hooks:
            hook.remove()
        plain = torch.stack([F.layer_norm(out, out.shape[-1:]) for out in seen[-layers:]]).mean(dim=0)
        torch.testing.assert_close(encoder.deep(view, layers), plain)


@pytest.mark.parametrize(
    ("kind", "spec"), [("audio", "transformer:nano"), ("image", "transformer:nano"), ("series", "dilated")]
)
def test_what_is_deep_may_be_normalised_over_the_tokens_that_a_sample_has(
    sources: dict[str, Path], kind: str, spec: str
) -> None:
    training = assemble(sources[kind], kind, "latent", spec)
    encoder, modality = training.objective.encoder.eval(), training.objective.modality
    view = modality.prepare(next(iter(training.loader.steps(0, 1))))
    with torch.no_grad():
        valid = encoder(view).valid
        whole = encoder.deep(view, 1, "tokens")
        plain = encoder.deep(view, 1)
    assert (valid is not None) == (kind != "image")
    for row in range(len(view)):
        own = whole[row] if valid is None else whole[row][valid[row]]
        torch.testing.assert_close(own.mean(dim=0), torch.zeros(own.shape[1]), atol=1e-4, rtol=0)
        torch.testing.assert_close(own.var(dim=0, unbiased=False), torch.ones(own.shape[1]), atol=0.05, rtol=0)
    assert not torch.allclose(whole, plain, atol=0.1)


def test_targets_of_sound_are_normalised_over_time(sources: dict[str, Path]) -> None:
    """What all moments of a recording share is nothing to predict."""
    training = assemble(sources["audio"], "audio", "data2vec-audio", "transformer:nano")
    latent, batch = training.objective, next(iter(training.loader.steps(0, 1)))
    with torch.no_grad():  # what all tokens have in common, which layer normalisation would leave
        for block in latent.teacher.blocks:
            block.mlp.fc2.bias += 5 * torch.randn(len(block.mlp.fc2.bias), generator=torch.Generator().manual_seed(0))
    step = latent.loss(batch, Draw.start(0, 0, 0, batch.index))
    assert 0.5 < float(step.logs["target_std"]) < 1.5


@pytest.mark.parametrize("hide", ["replace", "drop"])
def test_latent_predicts_the_teacher_where_the_student_saw_nothing(sources: dict[str, Path], hide: str) -> None:
    latent, batch, draw = objective(sources, "image", "latent", hide=hide, decoder_width=32, decoder_depth=1)
    assert isinstance(latent, Latent)
    step = latent.loss(batch, draw)
    step.loss.backward()
    assert all(p.grad is None for p in latent.teacher.parameters())
    assert 0.2 < float(step.logs["target_std"]) < 1.5
    before = [p.clone() for p in latent.teacher.parameters()]
    with torch.no_grad():
        for parameter in latent.encoder.parameters():
            parameter += 0.1
    latent.after_step(0.0)
    moved = [a - b for a, b in zip(latent.teacher.parameters(), before, strict=True)]
    assert all(torch.allclose(m, torch.full_like(m, 0.001), atol=1e-5) for m in moved)


def test_hidden_parts_are_predicted_one_by_one(sources: dict[str, Path]) -> None:
    asked = {"hide": "drop", "decoder_width": 32, "decoder_depth": 1, "ratio": 0.5}
    latent, batch, draw = objective(sources, "image", "latent", **asked, target_blocks=3)
    latent.eval()
    found = float(latent.loss(batch, draw).loss.detach())
    view = latent.modality.view(batch, draw, "light")
    parts = [latent.modality.sample_mask(view, draw.view(f"block {number}"), 0.5 / 3) for number in range(3)]
    mask = all_hidden(torch.stack(parts), draw, 3 * int(parts[0][0].sum()))
    assert all((mask | ~part).all() for part in parts)  # all that is predicted is hidden
    errors = []
    with torch.no_grad():
        target = latent.teacher.deep(view, latent.settings.top_layers)
        tokens = latent.encoder(view, kept=visible_positions(mask, int(mask[0].sum()))).tokens
        for part in parts:
            for row in range(len(batch)):
                places = part[row].nonzero().T
                seen = (tokens[row : row + 1], mask[row : row + 1])
                guess = latent.head(*seen, places, latent.modality.grid(mask.shape[1]), alone=True)
                errors.append((guess - target[row, places]).square().mean())
    assert found == pytest.approx(float(torch.stack(errors).mean()), rel=1e-4)


def test_parts_that_overlap_leave_as_many_tokens() -> None:
    draw = Draw.start(0, 0, 0, torch.arange(5))
    parts = torch.zeros(2, 5, 12, dtype=torch.bool)
    parts[0, :, :4] = parts[1, :, 2:6] = True
    hidden = all_hidden(parts, draw, 8)
    assert hidden.sum(dim=1).tolist() == [8] * 5
    assert hidden[:, :6].all()
    assert len({tuple(row) for row in hidden[:, 6:].tolist()}) > 1
    assert all_hidden(torch.ones_like(parts), draw, 24).sum(dim=1).tolist() == [11] * 5


def test_hidden_parts_that_are_replaced_cannot_be_predicted_one_by_one(sources: dict[str, Path]) -> None:
    with pytest.raises(Refusal, match="one by one"):
        objective(sources, "image", "latent", hide="replace", target_blocks=2)


def test_a_decoder_asked_about_all_that_is_hidden_says_the_same_either_way() -> None:
    torch.manual_seed(0)
    decoder = Decoder(16, 32, 2, 5).eval()
    mask = torch.rand(3, 12).argsort(dim=1) < 7
    positions, _ = hidden_positions(mask, 7)
    asked = (torch.randn(3, 5, 16), mask, positions, (3, 4))
    torch.testing.assert_close(decoder(*asked), decoder(*asked, alone=True))


def test_smooth_l1_is_squared_near_and_straight_far() -> None:
    prediction, target = torch.tensor([[[0.5, 3.0]]]), torch.zeros(1, 1, 2)
    assert float(token_distance(prediction, target, 2.0)) == pytest.approx(((0.25 / 4) + (3 - 1)) / 2)
    assert float(token_distance(prediction, target, 0.0)) == pytest.approx((0.25 + 9) / 2)


def test_settings_are_checked() -> None:
    for cls, wrong in (
        (DINOSettings, {"prototypes": 0}),
        (IBOTSettings, {"ratio": 1.0}),
        (LatentSettings, {"top_layers": 0}),
    ):
        with pytest.raises(ValueError, match=r"greater|less"):
            cls(**wrong)


def test_views_of_dino_are_those_of_the_others(sources: dict[str, Path]) -> None:
    dino, batch, draw = objective(sources, "series", "dino", **HEAD)
    first, second = halves(two_views(dino.modality, batch, draw, dino.settings).data)
    assert not torch.equal(first, second)


def test_a_teacher_that_gives_all_samples_one_label_is_named_and_a_sound_one_is_not(tmp_path: Path) -> None:
    table = np.random.default_rng(0).normal(size=(256, 8)).round(4)
    np.savetxt(tmp_path / "t.csv", table, delimiter=",", header="a,b,c,d,e,f,g,h", comments="")
    usual: dict[str, Any] = {"method": "dino", "steps": 60, "batch_size": 64, "prototypes": 32, "projector": (64, 32)}
    usual |= {"log_every": 5, "threads": 1, "precision": "32"}
    without_centre = {"centre_momentum": 1.0, "teacher_momentum": 0.9, "frozen_prototypes": 0, "learning_rate": 3e-3}
    collapsed = labelfree.pretrain(tmp_path / "t.csv", out=tmp_path / "collapsed", **usual, **without_centre)
    sound = labelfree.pretrain(tmp_path / "t.csv", out=tmp_path / "sound", **usual)
    assert ["all samples get the same labels" in words for words in collapsed.info["warnings"]] == [True]
    assert sound.info["warnings"] == []
    assert collapsed.metrics()[-1]["labels"] < 1.005 < 1.03 < sound.metrics()[-1]["labels"]
