"""What is kept on each device: brought there once, and of use in training, wherever it was made."""

import gc
import weakref

import torch

from labelfree.data.on_device import constant, on_device

CPU, META = torch.device("cpu"), torch.device("meta")


def test_a_tensor_is_brought_to_a_device_once() -> None:
    mean = torch.ones(3)
    assert on_device(mean, CPU) is mean
    there = on_device(mean, META)
    assert there.device == META
    assert on_device(mean, META) is there
    assert on_device(torch.ones(3), META) is not there


def test_copies_go_with_the_tensor() -> None:
    mean = torch.ones(3)
    there = weakref.ref(on_device(mean, META))
    del mean
    gc.collect()
    assert there() is None


def test_what_an_embedding_brought_there_serves_a_training() -> None:
    with torch.inference_mode():
        scale = constant((2.0, 3.0), CPU)
    weight = torch.ones(2, requires_grad=True)
    (weight * scale).sum().backward()
    assert torch.equal(weight.grad, scale)
