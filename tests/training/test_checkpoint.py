"""A checkpoint is whole, verified and exact, or it is refused."""

import errno

import pytest
import torch
from torch import nn

from labelfree.errors import LabelfreeError
from labelfree.tensors import read_tensors, write_tensors
from labelfree.training.checkpoint import load_state, save_state
from labelfree.training.optim import build_optimizer
from labelfree.training.settings import OptimSettings


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def train(module, optimizer, steps, start=0):
    for step in range(start, start + steps):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        module(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_training_goes_on_bit_for_bit(tmp_path, name):
    settings = OptimSettings(optimizer=name, learning_rate=0.1)
    straight = model()
    train(straight, build_optimizer(straight.parameters(), settings), 6)

    first = model()
    optimizer = build_optimizer(first.parameters(), settings)
    train(first, optimizer, 4)
    save_state(tmp_path, 4, first, optimizer)

    second = model()
    optimizer = build_optimizer(second.parameters(), settings)
    assert load_state(tmp_path, second, optimizer) == 4
    train(second, optimizer, 2, start=4)
    assert all(
        torch.equal(a, b) for a, b in zip(straight.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_only_tensors_that_share_storage_are_copied_to_be_written(tmp_path, monkeypatch):
    copied, clone = [], torch.Tensor.clone
    monkeypatch.setattr(torch.Tensor, "clone", lambda self: copied.append(tuple(self.shape)) or clone(self))
    tied = torch.arange(6.0).reshape(3, 2)
    tensors = {"a": tied, "b": tied, "rows": tied[1:], "turned": tied.T, "alone": torch.ones(5)}
    digest = write_tensors(tmp_path / "a.safetensors", tensors)
    assert copied == [(3, 2), (2, 2)]
    found = read_tensors(tmp_path / "a.safetensors", digest)
    assert all(torch.equal(found[name], value) for name, value in tensors.items())


def test_the_newest_and_the_one_before_are_kept(tmp_path):
    module = model()
    optimizer = build_optimizer(module.parameters(), OptimSettings())
    for step in (1, 2, 3):
        save_state(tmp_path, step, module, optimizer)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-000000002", "step-000000003"]


@pytest.mark.parametrize("spoil", [lambda b: b[:-10], lambda b: b[:100] + b"\x01" + b[101:], lambda b: b""])
@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors"])
def test_a_cut_or_altered_file_is_refused(tmp_path, file, spoil):
    module = model()
    optimizer = build_optimizer(module.parameters(), OptimSettings())
    train(module, optimizer, 1)
    path = save_state(tmp_path, 1, module, optimizer) / file
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(LabelfreeError, match="cut or altered") as refused:
        load_state(tmp_path, module, optimizer)
    assert str(path.parent) in refused.value.remedy, "what to delete"


def test_what_a_killed_process_had_begun_is_removed(tmp_path):
    (tmp_path / "step-000000001.12.part").mkdir()
    module = model()
    save_state(tmp_path, 1, module, build_optimizer(module.parameters(), OptimSettings()))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    module = model()
    save_state(tmp_path, 1, module, build_optimizer(module.parameters(), OptimSettings()))
    other = nn.Linear(3, 2)
    with pytest.raises(LabelfreeError, match=r"another model: .* network of yours must be as it was; .*version"):
        load_state(tmp_path, other, build_optimizer(other.parameters(), OptimSettings()))


@pytest.mark.parametrize("frozen", [["0.weight"], ["0.weight", "0.bias", "2.weight", "2.bias"]])
def test_moments_of_other_weights_than_those_that_are_trained_are_refused(tmp_path, frozen):
    module = model()
    optimizer = build_optimizer(module.parameters(), OptimSettings())
    train(module, optimizer, 1)
    save_state(tmp_path, 1, module, optimizer)
    for name in frozen:
        module.get_parameter(name).requires_grad_(False)
    with pytest.raises(LabelfreeError, match=r"made while 6 tensors of weights .* not the [0-9] that .*Freeze the"):
        load_state(tmp_path, module, build_optimizer(module.parameters(), OptimSettings()))


def test_moments_of_weights_of_another_shape_are_refused(tmp_path):
    """As many are trained as before, but others."""
    module = model()
    module[0].weight.requires_grad_(False)
    optimizer = build_optimizer(module.parameters(), OptimSettings())
    train(module, optimizer, 1)
    save_state(tmp_path, 1, module, optimizer)
    module[0].weight.requires_grad_(True)
    module[2].weight.requires_grad_(False)
    with pytest.raises(LabelfreeError, match="Freeze the layers"):
        load_state(tmp_path, module, build_optimizer(module.parameters(), OptimSettings()))


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    digest = write_tensors(path, {"w": torch.ones(3)})

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(LabelfreeError, match="No space left"):
        write_tensors(path, {"w": torch.zeros(3)})
    assert torch.equal(read_tensors(path, digest)["w"], torch.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
