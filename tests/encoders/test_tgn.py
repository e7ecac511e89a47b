"""Temporal graph networks: a memory that knows what happened and in what order, and nothing else."""

from __future__ import annotations

import sys
from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import torch
from cells import events

from labelfree import registry
from labelfree.data.batch import Batch
from labelfree.data.cache import Cached
from labelfree.data.loader import batches
from labelfree.encoders.tgn import TGN
from labelfree.errors import LabelfreeError, Refusal
from labelfree.modalities.events import EventDataset, Events, EventSettings
from labelfree.tasks.embed import embed
from labelfree.tasks.labels import Subset


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[Events, EventDataset, TGN]:
    modality = Events(EventSettings(recent=2))
    dataset = modality.open(events(tmp_path_factory.mktemp("events")))
    modality.fit(dataset)
    torch.manual_seed(0)
    encoder = registry.build_encoder("tgn", modality)
    assert isinstance(encoder, TGN)
    return modality, dataset, encoder


def views(modality: Events, dataset: EventDataset, size: int = 16) -> list[Batch]:
    return [modality.prepare(raw) for raw in batches(dataset, modality, size)]


def test_the_past_beyond_the_recent_history_is_remembered(known: tuple[Events, EventDataset, TGN]) -> None:
    modality, dataset, encoder = known
    first, *_, last = views(modality, dataset)
    encoder.eval().reset()
    without = encoder(last).pooled
    encoder.remember(first)
    assert not torch.allclose(encoder(last).pooled, without, atol=1e-3)
    encoder.reset()
    assert torch.equal(encoder(last).pooled, without)


def test_an_epoch_begins_with_an_empty_memory_and_batches_must_follow(known: tuple[Events, EventDataset, TGN]) -> None:
    modality, dataset, encoder = known
    one, two, three, *_ = views(modality, dataset)
    encoder.train().reset()
    begun = [encoder(view).pooled for view in (one, two, three)]
    again = [encoder(view).pooled for view in (one, two, three)]
    for a, b in zip(begun, again, strict=True):
        assert torch.equal(a, b)
    encoder(one)
    assert not torch.allclose(encoder(three).pooled, begun[2], atol=1e-3)  # `two` was left out


def test_two_views_of_a_batch_are_remembered_as_one_event(known: tuple[Events, EventDataset, TGN]) -> None:
    modality, dataset, encoder = known
    one, *_ = views(modality, dataset)
    states = []
    for batch in (one, Batch.cat([one, one])):
        encoder.train().reset()
        encoder(batch)
        states.append({name: value.clone() for name, value in encoder.state_dict().items()})
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_the_memory_is_kept_in_full_precision(known: tuple[Events, EventDataset, TGN]) -> None:
    modality, dataset, encoder = known
    one, two, *_ = views(modality, dataset)
    found = []
    for mixed in (False, True):
        encoder.train().reset()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            for view in (one, two):
                encoder.remember(view)
            nodes = view.extra["happened"].flatten()
            found.append((encoder.memory.memory.clone(), encoder._read(nodes)))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_messages_that_wait_move_along(known: tuple[Events, EventDataset, TGN]) -> None:
    modality, dataset, encoder = known
    encoder.train().reset()
    encoder.remember(views(modality, dataset)[0])
    moved = deepcopy(encoder).to("meta")
    stores = (moved.memory.msg_s_store, moved.memory.msg_d_store)
    assert {t.device.type for store in stores for entry in store.values() for t in entry} == {"meta"}


def test_messages_that_wait_are_part_of_the_state(known: tuple[Events, EventDataset, TGN]) -> None:
    modality, dataset, encoder = known
    one, two, three, *_ = views(modality, dataset)
    encoder.train().reset()
    encoder(one)
    encoder(two)
    copy = registry.build_encoder("tgn", modality).train()
    copy.load_state_dict(encoder.state_dict())
    assert torch.equal(copy(three).pooled, encoder(three).pooled)
    for name, value in encoder.state_dict().items():
        assert torch.equal(copy.state_dict()[name], value), name


def test_features_of_some_events_are_those_they_have_among_all(known: tuple[Events, EventDataset, TGN]) -> None:
    modality, dataset, encoder = known
    whole = embed(encoder, modality, dataset)
    rows = np.array([150, 3, 77])
    np.testing.assert_array_equal(embed(encoder, modality, dataset, indices=rows), whole[rows])
    some = Cached(Subset(dataset, rows), modality)
    np.testing.assert_array_equal(embed(encoder, modality, some), whole[rows])


def test_more_nodes_than_in_training_share_places(known: tuple[Events, EventDataset, TGN]) -> None:
    modality, _, encoder = known
    many = pd.DataFrame({"time": np.arange(300), "sender": np.arange(300), "receiver": np.arange(300)[::-1]})
    many["amount"] = 1.0
    assert np.isfinite(embed(encoder, modality, modality.open(many))).all()


def test_what_needs_tokens_is_refused(known: tuple[Events, EventDataset, TGN]) -> None:
    with pytest.raises(Refusal, match=r"one vector an event.*transformer"):
        registry.build_encoder("tgn", known[0], causal=True)


def test_without_pytorch_geometric_the_command_that_installs_it_is_named(
    known: tuple[Events, EventDataset, TGN], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch_geometric.nn", None)
    with pytest.raises(LabelfreeError, match=r"pip install torch-geometric\."):
        registry.build_encoder("tgn", known[0])
