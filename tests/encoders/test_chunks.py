"""A large batch in the memory of a small one: the same loss and gradients, and little kept for the backward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cells import assemble, make_sources

from labelfree.data.draw import Draw
from labelfree.encoders._chunks import still
from labelfree.errors import Refusal


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_sources(tmp_path_factory.mktemp("sources"))


def first_step(source: Path, *cell: str, **settings: Any) -> tuple[float, dict[str, torch.Tensor], int]:
    """Loss, gradients, and the bytes that the forward pass kept."""
    training = assemble(source, *cell, **settings)
    batch = next(iter(training.loader.steps(0, 1)))
    kept = 0

    def keep(x: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += x.nbytes
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = training.objective(batch, Draw.start(0, 0, 0, batch.index)).loss
    loss.backward()
    gradients = {name: p.grad for name, p in training.objective.named_parameters() if p.grad is not None}
    return float(loss.detach()), gradients, kept


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("series", "simclr"),
        ("text", "simclr"),
        ("image", "masked"),
        ("image", "latent"),
        ("series", "dino"),
        ("pair", "clip"),
    ],
)
def test_chunks_give_the_loss_and_gradients_of_the_whole(kind: str, method: str, sources: dict[str, Path]) -> None:
    direct, expected, much = first_step(sources[kind], kind, method, "transformer:nano")
    loss, gradients, little = first_step(sources[kind], kind, method, "transformer:nano", micro_batch=4)
    assert loss == pytest.approx(direct, rel=1e-5)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        error = float((gradient - expected[name]).abs().max()) / max(1.0, float(expected[name].abs().max()))
        assert error < 1e-5, f"{name} differs by {error:.1e}"
    assert little < 0.6 * much, (little, much)


def test_running_statistics_move_once_a_chunk_and_that_is_said(
    sources: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    training = assemble(sources["image"], "image", "simclr", "timm:test_resnet", micro_batch=8)
    assert "Batch normalisation in the encoder is over 8 rows at a time" in capsys.readouterr().err
    counts = {name: b.clone() for name, b in training.objective.encoder.named_buffers() if "tracked" in name}
    training.step(0, next(iter(training.loader.steps(0, 1))))
    after = dict(training.objective.encoder.named_buffers())
    assert counts
    assert all(int(after[name] - before) == 4 for name, before in counts.items())  # 2 views of 16 in chunks of 8


def test_statistics_stay_still_inside() -> None:
    layer = torch.nn.BatchNorm1d(3)
    with still(layer):
        layer(torch.randn(8, 3))
    assert int(layer.num_batches_tracked or 0) == 0
    assert torch.equal(layer.running_mean, torch.zeros(3))


def test_what_chunks_would_change_is_refused(sources: dict[str, Path]) -> None:
    with pytest.raises(Refusal, match="micro_batch=0"):
        assemble(sources["events"], "events", "byol", "tgn", micro_batch=4)
    with pytest.raises(Refusal, match="strategy=ddp"):
        assemble(sources["series"], "series", "simclr", "transformer:nano", micro_batch=4, strategy="fsdp")
