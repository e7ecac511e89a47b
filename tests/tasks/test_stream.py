"""A stream of events: scores are those of the whole log, come in the order asked for, and grow where events are odd."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from cells import events

from labelfree.errors import LabelfreeError, Refusal
from labelfree.modalities.events import Events
from labelfree.modalities.series import Series
from labelfree.run import Run
from labelfree.tasks import embed
from labelfree.tasks.stream import Stream
from labelfree.training.pretrain import pretrain

BRIEF = {"steps": 40, "batch_size": 32, "threads": 1, "precision": "32"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("stream")
    return pretrain(events(folder), out=folder / "run", encoder="tgn", recent=3, learning_rate=5e-3, **BRIEF)


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return pd.read_csv(events(tmp_path_factory.mktemp("frame")))


def test_a_stream_gives_an_event_the_history_that_the_log_gives_it(run: Run, frame: pd.DataFrame) -> None:
    modality = run.modality
    assert isinstance(modality, Events)
    stream = run.stream()
    stream.update(frame[:150])
    fresh = modality.prepare(modality.fresh_batch(stream._seen, stream._read(frame[150:151], keep=False)))
    dataset = modality.open(frame)
    logged = modality.prepare(modality.collate(dataset.read([150])))  # type: ignore[arg-type]
    np.testing.assert_array_equal(fresh.data.numpy(), logged.data.numpy())


def test_scores_do_not_depend_on_the_rows_order_and_change_nothing(run: Run, frame: pd.DataFrame) -> None:
    stream = run.stream()
    stream.update(frame[:100])
    scores = stream.score(frame[100:])
    assert scores.shape == (92,)
    np.testing.assert_allclose(stream.score(frame[100:][::-1])[::-1], scores, rtol=1e-5, atol=1e-6)
    assert len(stream) == 100


def test_watching_is_scoring_and_updating_in_turns(run: Run, frame: pd.DataFrame) -> None:
    watched, by_hand = run.stream(batch_size=24), run.stream(batch_size=24)
    scores = watched.watch(frame)
    parts = []
    for start in range(0, len(frame), 24):
        parts.append(by_hand.score(frame[start : start + 24]))
        by_hand.update(frame[start : start + 24])
    np.testing.assert_allclose(scores, np.concatenate(parts), rtol=1e-5, atol=1e-6)


def test_a_node_is_the_same_however_its_column_is_typed(run: Run, frame: pd.DataFrame) -> None:
    stream = run.stream()
    numbered = frame.assign(**{end: pd.factorize(frame[end])[0] for end in ("sender", "receiver")})
    stream.update(numbered[:150])
    one = numbered[150:151]
    name, expected = int(one.sender.iloc[0]), stream.score(one)[0]
    for spelt in (name, float(name), str(name)):
        among_guests = pd.concat([one, one]).assign(sender=[spelt, "guest-7"])
        np.testing.assert_allclose(stream.score(among_guests)[0], expected, rtol=1e-5)


def test_scoring_leaves_no_trace(run: Run, frame: pd.DataFrame) -> None:
    stream = run.stream()
    stream.update(frame[:100])
    nodes, room = dict(stream._nodes), len(stream._seen._recent)
    strangers = frame[100:].assign(sender=[f"stranger {row}" for row in range(len(frame) - 100)])
    first = stream.score(strangers)
    np.testing.assert_array_equal(stream.score(strangers), first)
    assert (stream._nodes, len(stream._seen._recent)) == (nodes, room)


def test_an_encoder_that_remembers_embeds_its_source_in_one_pass(
    run: Run, frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    remember = type(run.encoder).remember
    monkeypatch.setattr(embed, "CHUNK", 50)
    monkeypatch.setattr(
        type(run.encoder), "remember", lambda self, view: (seen.append(len(view)), remember(self, view))[1]
    )
    embed.write_embeddings(run, frame, tmp_path / "a.npy")
    assert sum(seen) == len(frame)


def test_odd_events_score_higher(run: Run, frame: pd.DataFrame) -> None:
    stream = run.stream()
    stream.update(frame[:150])
    usual, odd = frame[150:].copy(), frame[150:].copy()
    odd["receiver"] = np.roll(odd["receiver"], 7)
    odd["amount"] *= 50
    assert stream.score(odd).mean() > stream.score(usual).mean() + 0.1


def test_what_is_no_event_has_no_score_and_the_past_is_refused(run: Run, frame: pd.DataFrame) -> None:
    stream = run.stream()
    stream.update(frame[:50])
    some = frame[50:54].copy()
    some.loc[51, "receiver"] = None
    assert np.isnan(stream.score(some)).tolist() == [False, True, False, False]
    with pytest.raises(LabelfreeError, match=r"The stream has come to time .* these events begin at"):
        stream.update(frame[:3])
    with pytest.raises(LabelfreeError, match="trained encoder names the column 'amount'"):
        stream.score(some.drop(columns="amount"))


def test_a_stream_that_would_look_at_nothing_is_refused(run: Run) -> None:
    with pytest.raises(LabelfreeError, match="batch_size=-1"):
        run.stream(batch_size=-1)


def test_data_that_are_no_events_make_no_stream() -> None:
    with pytest.raises(Refusal, match="series data does not come as a stream"):
        Stream(SimpleNamespace(modality=Series()))  # type: ignore[arg-type]


def test_a_method_without_a_score_refuses_and_names_one_that_has_it(tmp_path: Path) -> None:
    brief = pretrain(events(tmp_path), out=tmp_path / "run", method="vicreg", expander=(16, 16), encoder="tgn",
                     steps=1, batch_size=32, threads=1)  # fmt: skip
    stream = brief.stream()
    with pytest.raises(Refusal, match=r"does not say how unusual.*pretext"):
        stream.score(pd.read_csv(tmp_path / "payments.csv"))


def test_an_encoder_that_remembers_is_not_fine_tuned(run: Run, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="cannot be fine-tuned"):
        run.finetune(tmp_path, "label", tmp_path / "model")
