"""Autoencoders give samples back from one vector; what is spoilt is only what the encoder sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cells import assemble, films, pictures, series, texts

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw
from labelfree.errors import Refusal
from labelfree.objectives._decoder import Broadcast
from labelfree.objectives.autoencoder import Autoencoder, AutoencoderSettings
from labelfree.objectives.vae import VAE, VAESettings
from labelfree.training.loop import Training


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    made = {"image": pictures, "series": series, "text": texts, "video": films}
    return {kind: make(folder) for kind, make in made.items()}


def first_batch(training: Training) -> tuple[Batch, Draw]:
    batch = next(iter(training.loader.steps(0, 1)))
    return batch, Draw.start(0, 0, 0, batch.index)


def test_places_differ_and_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    decoder = Broadcast(8, 32, 1, 5)
    z = torch.randn(2, 8)
    long, short = (decoder(decoder.put_down(z, (count,))) for count in (6, 4))
    assert long.shape == (2, 6, 5)
    torch.testing.assert_close(long[:, :4], short)
    assert len(torch.unique(long[0].detach(), dim=0)) == 6


@pytest.mark.parametrize("kind", ["image", "video"])
def test_pictures_are_asked_for_as_pixels_and_given_back_as_pictures(kind: str, sources: dict[str, Path]) -> None:
    training = assemble(sources[kind], kind, "autoencoder", "transformer:nano")
    objective, (batch, draw) = training.objective.eval(), first_batch(training)
    modality = objective.modality
    assert modality.settings.target == "pixels"
    view = modality.view(batch, draw, "none")
    again = modality.rebuild(view, modality.targets(view))
    for sample, clean in zip(again, modality.rebuild(view), strict=True):
        assert (sample.data == clean.data).all(), "the targets are the picture"
    nothing = torch.zeros_like(modality.targets(view))
    grey = np.stack([sample.data for sample in modality.rebuild(view, nothing)])
    assert len(np.unique(grey)) <= modality.channels, "nothing of the picture comes back by itself"
    with torch.no_grad():
        found = objective.reconstruct(batch, draw)
    assert found.prediction.shape == modality.targets(view).shape
    assert torch.equal(found.shown.data, found.view.data), "nothing is spoilt unless asked for"


@pytest.mark.parametrize(("kind", "spoilt"), [("image", {"corruption": 0.5}), ("text", {"ratio": 0.6})])
def test_denoising_spoils_what_is_seen_and_asks_for_the_clean_sample(
    kind: str, spoilt: dict[str, float], sources: dict[str, Path]
) -> None:
    training = assemble(sources[kind], kind, "autoencoder", "transformer:nano")
    plain = training.objective.eval()
    objective = Autoencoder(plain.encoder, plain.modality, AutoencoderSettings.read(spoilt, "autoencoder")).eval()
    batch, draw = first_batch(training)
    found = objective.reconstruct(batch, draw)
    assert torch.equal(found.view.data, plain.modality.view(batch, draw, "none").data)
    assert not torch.equal(found.shown.data, found.view.data)
    assert (found.hidden is not None) == (kind == "text")


def test_what_cannot_be_spoilt_is_refused_with_the_remedy(sources: dict[str, Path]) -> None:
    text = assemble(sources["text"], "text", "autoencoder", "transformer:nano").objective
    with pytest.raises(Refusal, match=r"not made of values.*Set ratio"):
        Autoencoder(text.encoder, text.modality, AutoencoderSettings(corruption=0.1))
    image = assemble(sources["image"], "image", "autoencoder", "timm:test_resnet").objective
    with pytest.raises(Refusal, match=r"cannot hide tokens.*Set corruption"):
        Autoencoder(image.encoder, image.modality, AutoencoderSettings(ratio=0.1))


def test_padding_is_not_asked_for(sources: dict[str, Path]) -> None:
    training = assemble(sources["text"], "text", "autoencoder", "transformer:nano")
    objective, (batch, draw) = training.objective.eval(), first_batch(training)
    lengths = torch.full_like(batch.index, batch.data.shape[1] - 4)
    pad = objective.modality.vocabulary.pad  # type: ignore[attr-defined]
    padded = batch.data.clone()
    padded[:, -4:] = pad
    loss = objective(batch.with_(data=padded, lengths=lengths), draw).loss
    torch.testing.assert_close(loss, objective(batch.with_(data=batch.data[:, :-4]), draw).loss)


def test_vae_adds_the_divergence_with_a_weight_that_rises(sources: dict[str, Path]) -> None:
    training = assemble(sources["image"], "image", "vae", "transformer:nano")
    plain, (batch, draw) = training.objective, first_batch(training)
    objective = VAE(plain.encoder, plain.modality, VAESettings(code=4, beta=0.5, beta_warmup=0.5))
    step = objective(batch, draw)
    torch.testing.assert_close(step.loss.detach(), step.logs["reconstruction"])
    objective.after_step(0.25)
    assert objective.weight.item() == pytest.approx(0.25)
    step = objective(batch, draw)
    torch.testing.assert_close(step.loss.detach(), step.logs["reconstruction"] + 0.25 * step.logs["divergence"])
    objective.after_step(0.9)
    assert objective.weight.item() == 0.5


def test_vae_makes_samples_of_normal_codes(sources: dict[str, Path]) -> None:
    training = assemble(sources["series"], "series", "vae", "transformer:nano")
    objective, (batch, draw) = training.objective.eval(), first_batch(training)
    view = objective.modality.view(batch, draw, "none")
    one, again, other = (objective.sample(view, d) for d in (draw, draw, draw.view(1)))
    assert one.shape == objective.modality.targets(view).shape
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
