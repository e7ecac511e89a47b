"""A weighted sum of objectives: its loss, its settings, its state, and how it is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cells import assemble, make_sources

import labelfree
from labelfree import registry
from labelfree.data.draw import Draw
from labelfree.errors import LabelfreeError, Refusal
from labelfree.objectives.several import Several, weighted_names
from labelfree.training.checkpoint import load_state, save_state
from labelfree.training.plan import make_plan

TINY = {"steps": 3, "batch_size": 16, "threads": 1, "patch": 4, "precision": "32"}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_sources(tmp_path_factory.mktemp("sources"))


def test_the_loss_is_the_weighted_sum_of_the_parts_losses(sources: dict[str, Path]) -> None:
    training = assemble(sources["series"], "series", "simclr+0.5*masked", "transformer:nano")
    objective, batch = training.objective.eval(), next(iter(training.loader.steps(0, 1)))
    assert isinstance(objective, Several)
    draw = Draw.start(0, 0, 0, batch.index)
    step = objective.loss(batch, draw)
    simclr, masked = objective.learners
    parts = simclr.loss(batch, draw.view("simclr")).loss, masked.loss(batch, draw.view("masked")).loss
    torch.testing.assert_close(step.loss, parts[0] + 0.5 * parts[1])
    assert float(step.logs["masked/loss"]) == pytest.approx(float(parts[1].detach()))
    assert simclr.encoder is masked.encoder is objective.encoder


def test_the_encoder_is_saved_once_and_all_parts_resume(sources: dict[str, Path], tmp_path: Path) -> None:
    def begun() -> tuple:
        training = assemble(sources["series"], "series", "byol+dino", "transformer:nano")
        return training, list(training.loader.steps(0, 4))

    training, batches = begun()
    names = training.objective.state_dict()
    assert not [name for name in names if name.startswith("learners") and ".encoder." in name]
    for step in range(2):
        training.step(step, batches[step])
    save_state(tmp_path, 2, training.objective, training.optimizer)
    for step in (2, 3):
        training.step(step, batches[step])
    again, _ = begun()
    assert load_state(tmp_path, again.objective, again.optimizer) == 2
    for step in (2, 3):
        again.step(step, batches[step])
    expected = training.objective.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.objective.state_dict().items())


def test_recipes_can_be_parts_and_settings_find_their_owner(sources: dict[str, Path], tmp_path: Path) -> None:
    run = labelfree.pretrain(
        sources["image"],
        method="rotation + 0.25*jigsaw+mae",
        encoder="transformer:nano",
        out=tmp_path / "run",
        size=16,
        ratio=0.5,
        decoder_width=32,
        **TINY,
    )
    own = run.info["settings"]["objective"]
    assert own["rotation"]["transformation"] == "rotation"
    assert own["jigsaw"]["transformation"] == "jigsaw"
    assert (own["mae"]["hide"], own["mae"]["ratio"], own["mae"]["decoder_width"]) == ("drop", 0.5, 32)
    assert run.info["method"] == "rotation + 0.25*jigsaw+mae"
    assert labelfree.load(run.path).embed(sources["image"]).shape == (64, 128)


def test_the_whole_training_is_that_of_the_first_part(sources: dict[str, Path]) -> None:
    def optimizer(method: str) -> str:
        return assemble(sources["image"], "image", method, "transformer:nano").settings.optimizer

    assert optimizer("simclr+simsiam-resnet") == "adamw"
    assert optimizer("simsiam-resnet+simclr") == "sgd"


def test_what_a_part_asks_of_the_data_is_said(sources: dict[str, Path]) -> None:
    method, settings = "masked+autoencoder", {"image.size": 16}
    plan, *_ = make_plan(
        str(sources["image"]), modality="image", method=method, encoder="auto", seed=0, seconds=None, settings=settings
    )
    assert plan.modality_settings["target"] == "pixels"
    assert ("target", "pixels") in {(choice["key"], choice["value"]) for choice in plan.choices}


@pytest.mark.parametrize(
    ("method", "settings"), [("simclr+future-edge", {}), ("dino", {"local_crops": 2})], ids=["several", "crops"]
)
def test_an_encoder_that_remembers_sees_a_batch_once(
    method: str, settings: dict[str, int], sources: dict[str, Path]
) -> None:
    with pytest.raises(Refusal, match="remembers each event once"):
        assemble(sources["events"], "events", method, "tgn", **settings)


def test_a_setting_of_two_parts_must_name_its_owner(sources: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(LabelfreeError, match=r"simclr\.views or masked\.views"):
        labelfree.pretrain(sources["series"], method="simclr+masked", views="none", out=tmp_path / "a", **TINY)
    run = labelfree.pretrain(
        sources["series"],
        method="simclr+masked",
        encoder="nano",
        out=tmp_path / "b",
        **TINY,
        **{"masked.views": "none"},
    )
    own = run.info["settings"]["objective"]
    assert (own["simclr"]["views"], own["masked"]["views"]) == ("contrast", "none")


def test_needs_are_those_of_all_parts(sources: dict[str, Path]) -> None:
    with pytest.raises(Refusal, match="two or more sides"):
        assemble(sources["series"], "series", "simclr+clip", "transformer:nano")
    with pytest.raises(Refusal, match=r"'simclr\+masked' needs more: the encoder does not.*--encoder transformer:nano"):
        assemble(sources["image"], "image", "simclr+masked", "timm:test_resnet")


def test_all_parts_have_partners_of_one_case(sources: dict[str, Path]) -> None:
    def case_of(**cases: str) -> str:
        cls, _ = registry.method("simclr+byol")
        shares = {part: {"case": cases[part]} if part in cases else {} for part in cls.owners()}
        training = assemble(sources["series"], "series", "byol", "transformer:pico")
        return cls(training.objective.encoder, training.objective.modality, cls.settings_of(shares)).case

    assert case_of(byol="patient") == case_of(simclr="patient", byol="patient") == "patient"
    with pytest.raises(Refusal, match="not by device and patient"):
        case_of(simclr="patient", byol="device")


def test_sums_are_no_methods_of_their_own() -> None:
    first = registry.method("simclr+0.5*masked")
    assert first is registry.method("simclr+0.5*masked")
    assert not [name for name in registry.objectives() if "+" in name]


def test_what_is_written_is_read() -> None:
    assert weighted_names("simclr + .5*mae") == [(1.0, "simclr"), (0.5, "mae")]
    assert weighted_names("2*byol") == [(2.0, "byol")]


@pytest.mark.parametrize("words", ["simclr+", "simclr+x y", "0*simclr+byol", "1.2.3*simclr", "simclr*2"])
def test_what_is_no_sum_is_refused(words: str) -> None:
    with pytest.raises(LabelfreeError, match="is no weight and method"):
        registry.method(words)


def test_unknown_and_doubled_parts_are_named() -> None:
    with pytest.raises(LabelfreeError, match="no method 'simcrl'"):
        registry.method("simcrl+masked")
    with pytest.raises(LabelfreeError, match="stands twice"):
        registry.method("simclr+2*simclr")
