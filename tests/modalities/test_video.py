"""Video: films are read exactly, cut into clips, seen at random, and what is broken is named."""

from __future__ import annotations

import json
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from films import ramp, sound_only, write
from PIL import Image

from labelfree import registry
from labelfree.cli import main
from labelfree.data import films
from labelfree.data.batch import Batch, Sample, Unreadable
from labelfree.data.draw import Draw
from labelfree.errors import LabelfreeError, Refusal
from labelfree.modalities.base import Budget, hidden_count
from labelfree.modalities.video import Video, VideoSettings
from labelfree.objectives.pretext import Pretext, PretextSettings
from labelfree.training.plan import recognise

TINY = {"size": 8, "patch": 4, "frames": 4, "tube": 2}


def video(**settings: object) -> Video:
    return Video(VideoSettings.read({**TINY, **settings}, "video"))


def greys(sample: Sample | Unreadable) -> np.ndarray:
    """(T,) the mean of each frame."""
    assert isinstance(sample, Sample), sample
    return sample.data.mean(axis=(1, 2, 3))


def draw_for(batch: Batch, epoch: int = 0) -> Draw:
    return Draw.start(0, epoch, 0, batch.index)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two films of 60 and one of 30 frames, at 10 a second, in folders of two kinds."""
    root = tmp_path_factory.mktemp("films")
    write(root / "up" / "a.mp4", ramp(60))
    write(root / "up" / "b.avi", ramp(30), codec="mpeg4")
    write(root / "down" / "c.mpg", ramp(60, low=200, high=40), rate=25, codec="mpeg2video")
    return root


@pytest.fixture(scope="module")
def arrays() -> np.ndarray:
    """(12, 8, 16, 16, 3) noise on a grey that rises."""
    noise = np.random.default_rng(0).normal(0, 20, (12, 8, 16, 16, 3))
    return (np.arange(8)[:, None, None, None] * 20 + 50 + noise).clip(0, 255).astype(np.uint8)


# ---- reading


def test_clips_hold_the_frames_of_their_time(folder: Path) -> None:
    clips = video(fps=5, span=6, stride=6).open(folder)
    names = [clips.name(index) for index in range(len(clips))]
    assert "up/a.mp4, 1.2–2.4 s" in names
    found = greys(clips.read([names.index("up/a.mp4, 1.2–2.4 s")])[0])
    expected = ramp(60)[12:24:2].mean(axis=(1, 2, 3))  # every second frame of ten a second
    np.testing.assert_allclose(found, expected, atol=2.5)
    assert all(
        np.diff(greys(sample)).min() > 0
        for sample, name in zip(clips.read(range(5)), names, strict=False)
        if "up" in name
    )


def test_a_clip_is_the_same_however_it_is_read(folder: Path) -> None:
    clips = video(fps=10, span=4, stride=3).open(folder)
    together = clips.read(range(len(clips)))
    for index in (0, 7, 18, len(clips) - 1):
        alone = clips.read([index])[0]
        np.testing.assert_array_equal(alone.data, together[index].data)
    backwards = clips.read([5, 0, 5])
    np.testing.assert_array_equal(backwards[0].data, backwards[2].data)
    assert [sample.index for sample in backwards] == [5, 0, 5]


def test_films_say_what_they_are(folder: Path) -> None:
    clips = video().open(folder)
    facts = clips.describe().facts
    assert facts["films"] == "3 of 150 frames"
    assert facts["rate"] == "10 … 25 frames a second"
    assert set(clips.column("folder")) == {"up", "down"}
    assert set(clips.column("film")) == {"up/a.mp4", "up/b.avi", "down/c.mpg"}
    groups = [sample.group for sample in clips.read(range(len(clips)))]
    assert len(set(groups)) == 3


def test_a_film_that_does_not_say_its_length_is_counted_without_keeping_it() -> None:
    class Packet:
        def __init__(self, number: int) -> None:
            self.size, self.pts = 1000 * (number < 50), None if number == 50 else 40 * number

    alive: weakref.WeakSet[Packet] = weakref.WeakSet()
    most = 0

    def demux(_: object) -> Iterator[Packet]:
        nonlocal most
        for number in range(51):  # the last is empty, as decoders end with
            packet = Packet(number)
            alive.add(packet)
            most = max(most, len(alive))
            yield packet

    container, stream = SimpleNamespace(demux=demux, seek=lambda place: None), SimpleNamespace(time_base=0.001)
    assert films._by_packets(container, stream) == (50, pytest.approx(25), 0)
    assert most <= 2


def test_labels_beside_films_are_found(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / f"{name}.mp4", ramp(12))
    (tmp_path / "labels.csv").write_text("file,what\na.mp4,cat\nb.mp4,dog\n")
    clips = video(fps=10, span=6, stride=6).open(tmp_path)
    assert clips.column("what").tolist() == ["cat", "cat", "dog", "dog"]


def test_folders_of_frames_are_films(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for number, frame in enumerate(ramp(12, side=10)):
            Image.fromarray(frame).save(tmp_path / name / f"frame{number}.png")
    assert recognise(tmp_path) == ("video", "2 folders of frames")
    clips = video(span=12).open(tmp_path)
    found = greys(clips.read([0])[0])  # frame2 comes before frame10
    np.testing.assert_allclose(found, ramp(12).mean(axis=(1, 2, 3)), atol=0.5)


def test_arrays_lists_and_tables_are_sources(arrays: np.ndarray, folder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "films.npz", clips=arrays, kind=np.arange(12) % 2)
    opened = video(store=16).open(tmp_path / "films.npz")
    assert (len(opened), list(opened.columns())) == (12, ["kind", "film"])
    np.testing.assert_array_equal(opened.read([3])[0].data, arrays[3].transpose(0, 3, 1, 2))
    unequal = [arrays[0], arrays[1][:6]]
    assert [sample.data.shape[0] for sample in video(span=8).open(unequal).read([0, 1])] == [8, 8]
    content = (folder / "up" / "a.mp4").read_bytes()
    pq.write_table(pa.table({"video": [{"bytes": content}], "kind": ["x"]}), tmp_path / "films.parquet")
    table = video(fps=10, span=10, stride=10).open(tmp_path / "films.parquet")
    assert table.column("kind").tolist() == ["x"] * 6
    assert recognise(tmp_path / "films.parquet")[0] == "video"


def test_arrays_keep_their_depth_and_channel_order(arrays: np.ndarray) -> None:
    deep = arrays.astype(np.uint16) * 200
    clips = video(store=16).open(np.moveaxis(deep, 4, 2))
    sample = clips.read([2])[0]
    assert sample.data.dtype == np.uint16
    np.testing.assert_array_equal(sample.data, deep[2].transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("given", "kind"), [(np.zeros((4, 8, 9, 9, 3), np.uint8), "video"), (np.zeros((9, 8, 8), np.uint8), "image")]
)
def test_arrays_of_five_axes_are_video(given: np.ndarray, kind: str) -> None:
    assert recognise(given)[0] == kind


def test_a_folder_of_films_is_recognised(folder: Path) -> None:
    assert recognise(folder) == ("video", "3 film files")


# ---- what is broken


def test_broken_films_are_left_out_and_named(tmp_path: Path) -> None:
    write(tmp_path / "good.mp4", ramp(30))
    write(tmp_path / "single.mp4", ramp(1))
    sound_only(tmp_path / "sound.mp4")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no film at all " * 20)
    clips = video(fps=10).open(tmp_path)
    assert {item.name: item.reason for item in clips.unreadable} == {
        "empty.mp4": "Invalid data found when processing input",
        "single.mp4": "has 1 frame(s)",
        "sound.mp4": "has no video stream",
        "text.mp4": "Invalid data found when processing input",
    }
    assert set(clips.column("film")) == {"good.mp4"}


def test_a_film_that_breaks_off_gives_what_comes_before(tmp_path: Path) -> None:
    path = write(
        tmp_path / "film.avi",
        np.random.default_rng(0).integers(0, 255, (60, 32, 32, 3), np.uint8),
        codec="mpeg4",
        keys=5,
    )
    whole = video(fps=10, span=10, stride=10).open(tmp_path).read(range(6))
    clips = video(fps=10, span=10, stride=10).open(tmp_path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = clips.read(range(6))
    np.testing.assert_array_equal(found[0].data, whole[0].data)
    assert isinstance(found[5], Unreadable)
    assert found[5].name == "film.avi, 5.0–6.0 s"


def test_pretraining_lists_what_it_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "abc":
        write(tmp_path / "films" / f"{name}.mp4", ramp(40))
    sound_only(tmp_path / "films" / "sound.mp4")
    (tmp_path / "films" / "empty.mp4").touch()
    words = ["pretrain", str(tmp_path / "films"), "--steps", "1", "--encoder", "nano", "--out", str(tmp_path / "run")]
    assert main([*words, "size=8", "patch=4", "frames=4", "batch_size=4", "threads=1", "max_unreadable=0.5"]) == 0
    listed = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert [(item["name"], item["reason"]) for item in listed] == [
        ("empty.mp4", "Invalid data found when processing input"),
        ("sound.mp4", "has no video stream"),
    ]
    assert "Found" in capsys.readouterr().err
    assert main(["pretrain", str(tmp_path / "films" / "sound.mp4"), "--out", str(tmp_path / "no")]) == 2
    assert "'sound.mp4': has no video stream" in capsys.readouterr().err


def test_no_film_at_all_is_refused(tmp_path: Path) -> None:
    sound_only(tmp_path / "sound.mp4")
    with pytest.raises(LabelfreeError, match=r"None of the 1 films can be read; 'sound.mp4': has no video stream"):
        video().open(tmp_path)


def test_short_films_hold_their_last_frame(arrays: np.ndarray) -> None:
    films = [*arrays[:6], arrays[6][:5], arrays[7][:3]]
    clips = video(span=8).open(films)
    assert len(clips) == 7, "shorter than half a clip"
    assert clips.describe().facts["too short"] == "1 films"
    last = clips.read([6])[0].data
    np.testing.assert_array_equal(last[5:], np.broadcast_to(last[4], last[5:].shape))


def test_films_too_short_for_any_clip_are_refused(arrays: np.ndarray) -> None:
    with pytest.raises(LabelfreeError, match="No film is long enough for half a clip of 40 frames: the longest has 8"):
        video(span=40).open(arrays)


def test_constant_films_are_refused() -> None:
    with pytest.raises(LabelfreeError, match="one constant value"):
        video().fit(video().open(np.full((4, 8, 9, 9, 3), 7, np.uint8)))


def test_a_tube_must_divide_the_frames() -> None:
    with pytest.raises(LabelfreeError, match="tube=2 does not divide frames=5"):
        video(frames=5)


def test_without_pyav_the_install_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mp4").touch()
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(LabelfreeError, match=r"pip install av\."):
        video().open(tmp_path)


# ---- views


@pytest.fixture(scope="module")
def fitted(arrays: np.ndarray) -> tuple[Video, Batch]:
    data = video()
    clips = data.open(arrays)
    data.fit(clips)
    return data, data.collate(clips.read(range(12)))


def test_views_have_one_crop_and_colour_a_clip_and_belong_to_their_draw(arrays: np.ndarray) -> None:
    still = np.repeat(arrays[:, :1], 8, axis=1)
    data = video()
    clips = data.open(still)
    data.fit(clips)
    batch = data.collate(clips.read(range(12)))
    view = data.view(batch, draw_for(batch))
    assert view.data.shape == (12, 4, 3, 8, 8)
    assert torch.equal(view.data, view.data[:, :1].expand_as(view.data)), "frames of a still film stay alike"
    assert torch.equal(view.data[3:5], data.view(batch[3:5], draw_for(batch)[3:5]).data)
    assert not torch.equal(view.data, data.view(batch, draw_for(batch, 1)).data)


def test_prepare_takes_the_middle(fitted: tuple[Video, Batch]) -> None:
    data, batch = fitted
    level = data.prepare(batch).data.mean(dim=(0, 2, 3, 4))
    assert torch.all(level.diff() > 0)
    middle = batch.data[:, 2:6].float().mean(dim=(0, 2, 3, 4)) / 255
    torch.testing.assert_close(
        level, (middle - np.mean(data.state()["mean"])) / np.mean(data.state()["std"]), atol=0.05, rtol=0
    )


def test_transformations_do_what_they_say(fitted: tuple[Video, Batch]) -> None:
    data, batch = fitted
    known, draw = data.transformations(), draw_for(batch)

    def levels(name: str, which: int) -> torch.Tensor:
        chosen = torch.full((12,), which)
        return known[name].apply(batch, chosen, draw).data.mean(dim=(2, 3, 4)).mean(dim=0)

    assert (levels("reversal", 0).diff() > 0).all()
    assert (levels("reversal", 1).diff() < 0).all()
    usual, fast = (float(levels("speed", which).diff().mean()) for which in (0, 1))
    assert fast == pytest.approx(2 * usual, rel=0.15)
    rising = [bool((levels("order", which).diff() > 0).all()) for which in range(known["order"].count)]
    assert rising == [True, False, False, False, False, False]


def test_speed_needs_clips_of_two_views(arrays: np.ndarray) -> None:
    data = video(span=6)
    data.fit(data.open(arrays))
    assert set(data.transformations()) == {"order", "reversal"}


def test_a_network_of_single_frames_cannot_be_asked_for_their_order(fitted: tuple[Video, Batch]) -> None:
    data, _ = fitted
    encoder = registry.build_encoder("timm:test_resnet", data)
    with pytest.raises(Refusal, match="cannot tell 'order'"):
        Pretext(encoder, data, PretextSettings(transformation="order"))


def test_what_stands_still_is_shown_until_it_changes(tmp_path: Path) -> None:
    """A screen recording keeps a frame for as long as nothing happens."""
    path = write(tmp_path / "screen.mp4", ramp(8), times=[0, 1, 2, 3, 4, 20, 21, 40])
    found = films.header(path)
    assert found.rate == pytest.approx(8 / 4.1)  # on average: a frame every .5 s
    seen = [frame.mean() for frame in films.frames(path, found, range(9), films.Form(1, 32, 32))]
    shown = [0, 3, 4, 4, 5, 6, 6, 6, 7]
    assert [int(np.abs(ramp(8)[:, 0, 0, 0] - grey).argmin()) for grey in seen] == shown


def test_tubes_are_hidden_through_all_frames(fitted: tuple[Video, Batch]) -> None:
    data, batch = fitted
    view = data.view(batch, draw_for(batch), "light")
    for ratio in (0.5, 0.6, 0.9):
        mask = data.sample_mask(view, draw_for(batch), ratio)
        assert (mask.sum(dim=1) == hidden_count(8, ratio)).all()
        whole = mask.view(12, 2, 4)
        assert ((whole[:, 0] != whole[:, 1]).sum(dim=1) <= 1).all(), "one tube at most is hidden in part"


def test_targets_are_tubes_or_what_changes(fitted: tuple[Video, Batch]) -> None:
    data, batch = fitted
    view = data.view(batch, draw_for(batch), "none")
    pixels = data.targets(view)
    assert pixels.shape == (12, data.token_count(view), data.target_dim)
    torch.testing.assert_close(pixels.mean(dim=2), torch.zeros(12, 8), atol=1e-4, rtol=0)
    first = view.data[0, :2, :, :4, 4:].permute(0, 2, 3, 1).flatten(0, 2)  # second square of the first moment
    alike = (first - first.mean(dim=0)) / first.std(dim=0, correction=0)  # each channel by itself
    torch.testing.assert_close(pixels[0, 1], alike.flatten(), atol=1e-3, rtol=0)
    moving = video(target="motion")
    moving.load_state(data.state())
    changed = moving.targets(view).view(12, 2, 4, 2, -1)
    assert not changed[:, 0, :, 0].any(), "nothing came before the first frame"
    assert changed[:, 1].mean() > 0.1, "it grows lighter"


def test_state_opens_other_sources_alike(fitted: tuple[Video, Batch], arrays: np.ndarray) -> None:
    data, batch = fitted
    again = video()
    again.load_state(data.state())
    other = again.open(arrays[:2, :, ::2, ::2])
    assert again.collate(other.read([0, 1])).data.shape[1:] == batch.data.shape[1:]
    assert again.open(arrays).fingerprint() == data.open(arrays).fingerprint()


def test_defaults_fit_the_films(arrays: np.ndarray) -> None:
    chosen = {c.key: c.value for c in Video().defaults(Video().open(arrays[:, :5]).describe(), Budget(60, 1e10, False))}
    assert chosen["frames"] == 4
    assert chosen["size"] == 16
    assert chosen["method"] in registry.recipes()


def test_what_a_person_and_a_classical_model_see(fitted: tuple[Video, Batch], arrays: np.ndarray) -> None:
    data, _ = fitted
    clips = data.open(arrays)
    assert data.show(clips.read([0])[0]).startswith('<img src="data:image/webp;base64,')
    train, test = data.raw_features(clips, [clips])
    assert train.shape == (12, 2 * 3 * 8 * 8)
    np.testing.assert_allclose(train, test)


def test_the_range_is_that_of_the_frames_that_can_be_read(tmp_path: Path) -> None:
    for film in ("a", "b"):
        (tmp_path / film).mkdir()
        for number in range(4):
            Image.fromarray(np.full((32, 32), 100 * number, np.uint16)).save(tmp_path / film / f"frame{number}.tif")
    content = (tmp_path / "a" / "frame0.tif").read_bytes()
    (tmp_path / "a" / "frame0.tif").write_bytes(content[: len(content) // 2])
    clips = Video(VideoSettings(size=16, frames=2, span=4)).open(tmp_path)
    assert [isinstance(item, Sample) for item in clips.read(range(len(clips)))].count(True) >= 1
