"""Events: samples know only what came before, tokens say how they stand to the event, whatever else is in the batch."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from labelfree.data.batch import Batch, Sample
from labelfree.data.draw import Draw
from labelfree.errors import LabelfreeError
from labelfree.modalities.base import Budget
from labelfree.modalities.events import EventDataset, Events, EventSettings


def frame(count: int = 60, people: int = 7) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    ends = generator.integers(0, people, (count, 2))
    time = np.cumsum(generator.exponential(10, count))
    amount = np.exp(generator.normal(3, 2, count))
    return pd.DataFrame({"time": time, "sender": ends[:, 0], "receiver": ends[:, 1], "amount": amount})


def fitted(source: object, **own: object) -> tuple[Events, EventDataset]:
    modality = Events(EventSettings.read(own, "events"))
    dataset = modality.open(source)
    modality.fit(dataset)
    return modality, dataset


def batch_of(modality: Events, dataset: EventDataset, rows: list[int]) -> Batch:
    samples = [item for item in dataset.read(rows) if isinstance(item, Sample)]
    return modality.collate(samples)


def draw_of(batch: Batch, step: int = 0) -> Draw:
    return Draw.start(7, 0, step, batch.index)


def test_a_sample_is_the_event_after_the_last_events_of_its_ends_and_nothing_later() -> None:
    modality, dataset = fitted(frame(), recent=4)
    view = modality.prepare(batch_of(modality, dataset, list(range(60))))
    assert view.lengths is not None
    ends = dataset.log.ends
    for event in range(60):
        length = int(view.lengths[event])
        past = set()
        for node in ends[event]:
            past |= set([e for e in range(event) if node in ends[e]][-4:])
        expected = [*sorted(past), event]
        np.testing.assert_array_equal(view.extra["nodes"][event, :length], ends[expected])
        assert view.time is not None
        np.testing.assert_array_equal(view.time[event, :length], dataset.log.time[expected])
        assert view.data[event, length:].isnan().all()


def test_tokens_say_how_they_stand_to_the_event() -> None:
    source = pd.DataFrame(
        {"time": [0.0, 1.0, 3.0, 7.0, 8.0], "from": list("abacx"), "to": list("bcbbb"), "amount": [1.0, 2, 3, 4, 5]}
    )
    modality, dataset = fitted(source, recent=4)
    view = modality.prepare(batch_of(modality, dataset, [2]))
    age, pause = view.data[0, :3, 1:3].expm1().unbind(1)
    torch.testing.assert_close(age * modality.gap, torch.tensor([3.0, 2.0, 0.0]))
    torch.testing.assert_close(pause[1:] * modality.gap, torch.tensor([1.0, 2.0]))
    # a → b, b → c, and the event a → b: is a the source, is a the target, is b the source, is b the target?
    assert view.data[0, :3, 3:7].tolist() == [[1, 0, 0, 1], [0, 0, 1, 0], [1, 0, 0, 1]]
    met = view.data[0, :3, 7:9].expm1().round()
    assert met[2].tolist() == [1, 0]  # b was met once in a's history, and never in its own
    assert view.data[0, :3, 9].tolist() == [0, 0, 1]


@pytest.mark.parametrize("policy", ["contrast", "light", "none"])
def test_a_view_depends_on_the_sample_alone(policy: str) -> None:
    modality, dataset = fitted(frame())
    whole = batch_of(modality, dataset, list(range(40)))
    views = modality.view(whole, draw_of(whole), policy)
    for row in (0, 5, 39):
        alone = batch_of(modality, dataset, [row])
        other = modality.view(alone, draw_of(alone, step=3), policy)
        torch.testing.assert_close(views.data[row : row + 1], other.data, equal_nan=True)


def test_contrasting_views_keep_a_stretch_of_each_history_and_the_event() -> None:
    modality, dataset = fitted(frame(), span=0.5, masking=0.0)
    batch = batch_of(modality, dataset, list(range(20, 60)))
    whole, view = modality.prepare(batch), modality.view(batch, draw_of(batch))
    assert whole.lengths is not None
    assert view.lengths is not None
    assert (view.lengths <= whole.lengths).all()
    assert (view.lengths < whole.lengths).any()
    rows = torch.arange(len(batch))
    assert torch.equal(view.extra["nodes"][rows, view.lengths - 1], whole.extra["nodes"][rows, whole.lengths - 1])


def test_of_a_replaced_event_one_thing_comes_from_another_and_what_happened_is_kept() -> None:
    modality, dataset = fitted(frame(), recent=3)
    batch = batch_of(modality, dataset, list(range(30, 60)))
    apply, plain = modality.transformations()["future-edge"].apply, modality.prepare(batch)
    assert plain.lengths is not None
    rows = torch.arange(len(batch))

    def event(view: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        assert view.lengths is not None
        assert view.time is not None
        last = view.lengths - 1
        return view.extra["nodes"][rows, last], view.time[rows, last], view.data[rows, last, 0]

    nodes, time, amount = event(plain)
    for which in range(4):
        view = apply(batch, torch.full((len(batch),), which), draw_of(batch))
        changed = [(a != b).float().mean() for a, b in zip(event(view), (nodes, time, amount), strict=True)]
        for kind, share in enumerate(changed, start=1):
            assert (share > 0.4) == (kind == which), (which, kind, share)
        assert torch.equal(event(view)[0][:, 0], nodes[:, 0])
        assert torch.equal(view.extra["happened"], nodes)
        assert torch.equal(view.extra["message"][:, 0], amount)
        torch.testing.assert_close(view.extra["when"] * modality.gap, time)
        assert view.time is not None
        ages = view.data[..., 1]
        assert not (ages[~ages.isnan()] < 0).any()


def test_masks_hide_real_tokens_of_the_share_asked_for() -> None:
    modality, dataset = fitted(frame())
    view = modality.prepare(batch_of(modality, dataset, list(range(60))))
    assert view.lengths is not None
    mask = modality.sample_mask(view, draw_of(view), 0.4)
    assert ((mask.sum(dim=1) - 0.4 * view.lengths).abs() <= 1).all()
    for row, length in enumerate(view.lengths.tolist()):
        assert not mask[row, length:].any()
        assert not mask[row].all()


def test_the_transformer_gives_an_event_the_same_features_in_any_company() -> None:
    torch.manual_seed(0)
    modality, dataset = fitted(frame())
    encoder = modality.transformer("nano", causal=False).eval()
    whole = encoder(modality.prepare(batch_of(modality, dataset, list(range(30))))).pooled
    for row in (0, 3, 29):
        alone = encoder(modality.prepare(batch_of(modality, dataset, [row]))).pooled
        torch.testing.assert_close(whole[row : row + 1], alone, atol=2e-5, rtol=1e-4)


def test_another_source_is_read_as_the_training_data_were() -> None:
    modality, _ = fitted(frame())
    again = Events(modality.settings)
    again.load_state(modality.state())
    other = frame(20)
    other["more"] = 1.5
    opened = again.open(other)
    assert opened.log.channels == ("amount",)
    batch = batch_of(again, opened, [3])
    assert torch.equal(again.prepare(batch).data.nan_to_num(), modality.prepare(batch).data.nan_to_num())
    with pytest.raises(LabelfreeError, match="trained encoder names the column 'amount'"):
        again.open(other.drop(columns="amount"))


def test_the_unit_of_a_feature_does_not_matter() -> None:
    source = frame()
    source["small"] = 1e-12 * source["amount"]
    modality, _ = fitted(source)
    assert modality.state()["scale"][1] == pytest.approx(1e-12 * modality.state()["scale"][0])


def test_events_without_features_are_events() -> None:
    modality, dataset = fitted(frame().drop(columns="amount"))
    assert modality.transformations()["future-edge"].count == 3
    view = modality.prepare(batch_of(modality, dataset, [5, 6]))
    assert view.data.shape[2] == modality.target_dim == 9


def test_a_feature_is_no_label_and_other_columns_are() -> None:
    source = frame()
    source["label"] = np.arange(60) % 2
    _, dataset = fitted(source)
    assert dataset.column("label").tolist() == source["label"].tolist()
    with pytest.raises(LabelfreeError, match=r"'amount' is a feature of the events.*exclude=amount"):
        dataset.column("amount")
    with pytest.raises(LabelfreeError, match=r"no column 'lable'.*Did you mean 'label'"):
        dataset.column("lable")


def test_defaults_give_reasons_and_raw_features_are_finite() -> None:
    modality, dataset = fitted(frame())
    assert all(choice.reason for choice in modality.defaults(dataset.describe(), Budget(600, 1e11, False)))
    train, again = modality.raw_features(dataset, [dataset])
    assert train.shape == (60, 2 * modality.channels)
    assert np.isfinite(train).all()
    np.testing.assert_array_equal(train, again)


def test_an_event_is_named_by_its_row_and_its_second() -> None:
    _, dataset = fitted(pd.DataFrame({"time": [1_700_000_007, 1_700_000_001.25], "from": [1, 2], "to": [2, 3]}))
    assert [dataset.name(0), dataset.name(1)] == ["row 1: 2 → 3 at 1700000001.25", "row 0: 1 → 2 at 1700000007"]


def test_an_event_is_shown_in_words() -> None:
    modality, dataset = fitted(pd.DataFrame({"time": [0, 1], "from": [1, 2], "to": [2, 3], "a<b": [0.25, 0.5]}))
    sample = dataset.read([1])[0]
    assert isinstance(sample, Sample)
    assert "node 1 → node 2; a&lt;b 0.5" in modality.show(sample)
    assert "after 1 events of its ends" in modality.show(sample)


@pytest.mark.parametrize(
    ("source", "sure"),
    [
        (frame(), True),
        ({"t": np.zeros(3), "src": np.zeros(3), "dst": np.zeros(3)}, True),
        (pd.DataFrame({"time": [1.0], "x": [2.0]}), False),
        (np.zeros((4, 9)), False),
        (["some", "words"], False),
    ],
)
def test_events_are_recognised(source: object, sure: bool) -> None:
    score, words = Events.recognise(source)
    assert (score > 0.5) == sure
    assert bool(words) == sure
