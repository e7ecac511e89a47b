"""Audio: frames, views, tokens, masks, pictures — per sample, whatever else is in the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from labelfree import registry
from labelfree.data.batch import Batch, Sample, Unreadable
from labelfree.data.draw import Draw
from labelfree.data.sound import decode
from labelfree.errors import LabelfreeError
from labelfree.modalities.audio import Audio, AudioSettings
from labelfree.modalities.audio.mel import FLOOR, Mel, filters, log_mel, log_mels, mfcc_statistics
from labelfree.modalities.audio.sources import Sounds, cut
from labelfree.modalities.audio.tokens import layers, reach, stride
from labelfree.modalities.audio.views import add_powers
from labelfree.modalities.base import Budget
from labelfree.modalities.image import Image
from labelfree.needs import Need
from labelfree.training.plan import recognise

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")

RATE = 4000
SMALL: dict[str, Any] = {"mels": 16, "rate": RATE, "crop": 0.32, "window": 0.5, "patch": 4}
BOTH = pytest.mark.parametrize("kind", ["mel", "wave"])


def wave(number: int, seconds: float = 0.5) -> np.ndarray:
    generator = np.random.default_rng(number)
    time = np.arange(round(seconds * RATE)) / RATE
    tone = 0.4 * np.sin(6.28 * generator.uniform(100, 1500) * time * (1 + time))
    return (tone + generator.normal(0, 0.02, len(time))).astype(np.float32)


LENGTHS = (0.5, 0.41, 0.5, 0.2, 0.37, 0.5)


def uneven() -> list[np.ndarray]:
    return [wave(number, seconds) for number, seconds in enumerate(LENGTHS)]


def fitted(source: Any, **own: Any) -> tuple[Audio, Sounds]:
    modality = Audio(AudioSettings.read({**SMALL, **own}, "audio"))
    dataset = modality.open(source)
    modality.fit(dataset)
    return modality, dataset


def batch_of(modality: Audio, dataset: Any, rows: list[int]) -> Batch:
    return modality.collate([item for item in dataset.read(rows) if isinstance(item, Sample)])


def draw_of(batch: Batch) -> Draw:
    return Draw.start(7, 0, 0, batch.index)


def folder_of(path: Path, waves: list[np.ndarray], rate: int = RATE) -> Path:
    for number, values in enumerate(waves):
        (path / f"voice{number % 2}").mkdir(parents=True, exist_ok=True)
        soundfile.write(path / f"voice{number % 2}" / f"{number}.wav", values, rate)
    return path


# ---- spectrograms


def test_a_tone_is_loudest_in_the_band_of_its_pitch() -> None:
    mel = Mel(32, 8000, 25, 10)
    centres = filters(32, 8000, mel.points).argmax(dim=0) * 8000 / mel.points
    for pitch in (300.0, 1000.0, 3000.0):
        frames = log_mels([np.sin(2 * np.pi * pitch * np.arange(8000) / 8000).astype(np.float32)], mel)[0]
        assert frames.shape == (100, 32)
        loudest = centres[frames.mean(axis=0).argmax()]
        assert abs(float(loudest) - pitch) < 0.15 * pitch
        assert abs(float(frames[50].max()) - np.log(0.25)) < 1.2


def test_frames_do_not_depend_on_what_is_transformed_together() -> None:
    for mel in (Mel(16, RATE, 25, 10), Mel(16, RATE, 8, 10)):
        together = log_mels(uneven(), mel)
        for one, frames in zip(uneven(), together, strict=True):
            assert len(frames) == mel.frames(len(one))
            np.testing.assert_array_equal(frames, log_mels([one], mel)[0])
            batched = log_mel(torch.from_numpy(one)[None], mel)[0]
            np.testing.assert_allclose(frames.astype(np.float32), batched, atol=0.02)


@pytest.mark.parametrize("mel", [Mel(16, 1000, 64, 16), Mel(80, 16000, 25, 10), Mel(128, 8000, 8, 10)], ids=str)
def test_frames_are_those_of_a_slow_definition(mel: Mel) -> None:
    one = np.random.default_rng(0).standard_normal(3000).astype(np.float32)
    padded = np.pad(one.astype(float), (max(mel.window - mel.hop, 0) // 2, 2 * mel.window))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(mel.window) / mel.window)
    bank = filters(mel.bands, mel.rate, mel.points).numpy().astype(float)
    expected = np.stack(
        [
            np.abs(np.fft.rfft(padded[first : first + mel.window] * window / window.sum(), mel.points)) ** 2 @ bank
            for first in range(0, len(one), mel.hop)
        ]
    )
    found = log_mel(torch.from_numpy(one)[None], mel)[0].numpy()
    np.testing.assert_allclose(found, np.log(expected + FLOOR), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(log_mels([one], mel)[0], found, atol=0.02)


def test_a_band_between_two_points_of_the_transform_is_silent() -> None:
    mel = Mel(256, 8000, 8, 10)
    silent = ~filters(mel.bands, mel.rate, mel.points).any(dim=0).numpy()
    assert silent.any()
    wave = torch.randn(3000)
    np.testing.assert_allclose(log_mel(wave[None], mel)[0][:, silent], np.log(FLOOR), rtol=1e-5)
    np.testing.assert_allclose(log_mels([wave.numpy()], mel)[0][:, silent], np.log(FLOOR), atol=0.01)


def test_powers_are_added_as_they_are_by_definition() -> None:
    x, other = torch.randn(2, 200) * 20
    other[:3] = x[:3]
    torch.testing.assert_close(add_powers(x, other), torch.logaddexp(x, other), rtol=1e-6, atol=1e-6)


def test_samples_of_all_sizes_are_read_alike(tmp_path: Path) -> None:
    exact = np.round(wave(0) * 32767) / 32768
    for kind in ("PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"):
        soundfile.write(tmp_path / f"{kind}.wav", np.stack([exact, exact], axis=1), RATE, subtype=kind)
        found = decode(tmp_path / f"{kind}.wav", RATE, RATE)
        np.testing.assert_array_equal(found, exact.astype(np.float32))


def test_cepstra_tell_tones_from_noise_and_stay_finite_for_one_frame() -> None:
    frames = log_mels([wave(0), wave(0, 0.005)], Mel(16, RATE, 25, 10))
    assert np.isfinite(mfcc_statistics(frames[1])).all()
    assert mfcc_statistics(frames[0]).shape == (81,)


# ---- sources


def test_every_source_gives_the_same_samples(tmp_path: Path) -> None:
    waves = [wave(number) for number in range(6)]
    folder = folder_of(tmp_path / "files", waves)
    names = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*.wav"))]
    order = [int(Path(name).stem) for name in names]
    content = [{"bytes": (folder / name).read_bytes(), "path": name} for name in names]
    pq.write_table(pa.table({"audio": content, "word": ["a", "b"] * 3}), tmp_path / "table.parquet")
    np.savez(tmp_path / "arrays.npz", waves=np.stack(waves)[order], rate=RATE, word=np.array(["a", "b"] * 3))
    expected = [s.data for s in fitted(folder)[1].read(range(6))]  # type: ignore[union-attr]
    items = [(waves[number], RATE, "a") for number in order]
    arrays = {"waves": np.stack(waves)[order], "rate": RATE}
    for source in (tmp_path / "table.parquet", tmp_path / "arrays.npz", items, arrays):
        assert recognise(source)[0] == "audio"
        dataset = fitted(source)[1]
        for sample, data in zip(dataset.read(range(6)), expected, strict=True):
            assert isinstance(sample, Sample)
            np.testing.assert_allclose(sample.data, data, atol=0.02)
    assert fitted(tmp_path / "arrays.npz")[1].column("word").tolist() == ["a", "b"] * 3
    assert recognise(folder)[0] == "audio"
    assert set(fitted(folder)[1].column("folder")) == {"voice0", "voice1"}


def test_pictures_in_a_table_are_not_taken_for_sound(tmp_path: Path) -> None:
    pq.write_table(pa.table({"data": [{"bytes": b"\x89PNG\r\n\x1a\n0000", "path": None}] * 3}), tmp_path / "a.parquet")
    assert recognise(tmp_path / "a.parquet")[0] == Image.name


def test_the_usual_rate_is_kept_and_others_brought_to_it(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "files", [wave(number) for number in range(6)])
    soundfile.write(folder / "voice0" / "fast.wav", np.repeat(wave(9), 2), 2 * RATE)
    dataset = Audio(AudioSettings(mels=16)).open(folder)
    facts = dataset.describe().facts
    assert facts["rate"] == f"{RATE:,} Hz and {2 * RATE:,} Hz"
    assert dataset.form.mel.rate == RATE
    assert len({len(sample.data) for sample in dataset.read(range(7)) if isinstance(sample, Sample)}) == 1


def test_what_cannot_be_read_is_named_with_its_reason(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "files", uneven())
    soundfile.write(folder / "a-silent.wav", np.zeros(900), RATE)
    soundfile.write(folder / "b-empty.wav", np.zeros(0), RATE)
    (folder / "c-text.wav").write_text("this is no sound at all")
    (folder / "d-cut.flac").write_bytes(b"fLaC\x00\x00")
    found = fitted(folder)[1].read(range(10))
    reasons = {item.name: item.reason for item in found if isinstance(item, Unreadable)}
    assert set(reasons) == {"a-silent.wav", "b-empty.wav", "c-text.wav", "d-cut.flac"}
    assert reasons["a-silent.wav"] == "is silent"
    assert reasons["b-empty.wav"] == "holds no sound"


def test_nothing_to_learn_is_refused(tmp_path: Path) -> None:
    for waves, words in (([wave(0)] * 4, "are the same"), ([np.zeros(900)] * 4, "No recording can be read")):
        folder = folder_of(tmp_path / words.replace(" ", ""), waves)
        with pytest.raises(LabelfreeError, match=words):
            fitted(folder)
    (tmp_path / "none").mkdir()
    with pytest.raises(LabelfreeError, match="holds no recordings"):
        fitted(tmp_path / "none")
    with pytest.raises(LabelfreeError, match="one array of recordings"):
        fitted({"a": np.zeros((3, 9)), "b": np.zeros((3, 9))})
    with pytest.raises(LabelfreeError, match="group names 'speaker'"):
        fitted(folder_of(tmp_path / "some", uneven()), group="speaker")


def test_windows_cover_long_recordings_evenly() -> None:
    parts = cut(np.array([25.0, 3.0, 10.0, 0.0]), 10.0)
    assert parts.tolist() == [[0, 0, 10], [0, 7.5, 10], [0, 15, 10], [1, 0, 10], [2, 0, 10], [3, 0, 10]]
    modality, dataset = fitted([wave(0, 1.3), wave(1, 0.4)])
    windows = modality.training_set(dataset, frozenset({Need.MASK}))
    assert len(windows) == 4
    whole = dataset.read([0])[0].data  # type: ignore[union-attr]
    samples = [item for item in windows.read(range(4)) if isinstance(item, Sample)]
    assert [len(sample.data) for sample in samples] == [50, 50, 50, 40]
    np.testing.assert_allclose(samples[1].data[5:45], whole[45:85], atol=0.02)
    assert [sample.group for sample in samples] == [0, 0, 0, 1]
    assert windows.name(2) == "row 0, 0.8–1.3 s"
    assert windows.name(3) == "row 1", "a window that is the whole recording"
    assert windows.sizes().tolist() == [0.5, 0.5, 0.5, 0.4]  # type: ignore[union-attr]
    assert modality.training_set(dataset, frozenset({Need.VIEWS})).sizes() is None


def test_pauses_of_a_recording_are_samples_but_silent_recordings_are_not(tmp_path: Path) -> None:
    padded = [np.concatenate([wave(n, 0.9), np.zeros(3 * RATE, np.float32)]) for n in range(3)]
    modality, dataset = fitted(folder_of(tmp_path, [*padded, np.zeros(3 * RATE, np.float32)]))
    windows = modality.training_set(dataset, frozenset({Need.MASK}))
    bad = [item.name for item in windows.read(range(len(windows))) if isinstance(item, Unreadable)]
    assert bad
    assert all(name.startswith("voice1/3.wav") for name in bad)


def test_a_broken_file_is_named_alone(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "some", [wave(0, 1.3), wave(1, 0.4)])
    (folder / "voice0" / "broken.wav").write_bytes(b"RIFF, but no sound")
    modality, dataset = fitted(folder)
    windows = modality.training_set(dataset, frozenset({Need.MASK}))
    bad = [item.name for item in windows.read(range(len(windows))) if isinstance(item, Unreadable)]
    assert bad == ["voice0/broken.wav"]


def test_groups_are_a_column_or_the_file(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "files", uneven())
    groups = [s.group for s in fitted(folder, group="folder")[1].read(range(6)) if isinstance(s, Sample)]
    assert len(set(groups)) == 2
    assert [s.group for s in fitted(folder)[1].read(range(6)) if isinstance(s, Sample)] == list(range(6))


# ---- views


@BOTH
@pytest.mark.parametrize("policy", ["contrast", "light", "none"])
def test_a_view_depends_on_its_sample_alone(kind: str, policy: str) -> None:
    own = {"noise": 0.1, "time_mask": 0.2, "band_mask": 0.2}
    modality, dataset = fitted(uneven(), input=kind, **own)
    modality.training_set(dataset, frozenset({Need.VIEWS}))
    whole, some = batch_of(modality, dataset, list(range(6))), batch_of(modality, dataset, [4, 1])
    a = modality.view(whole, draw_of(whole), policy)
    b = modality.view(some, draw_of(some), policy)
    shorter = min(a.data.shape[1], b.data.shape[1])
    torch.testing.assert_close(a.data[[4, 1], :shorter], b.data[:, :shorter], atol=1e-4, rtol=1e-4)
    assert a.data[[4, 1], shorter:].abs().sum() == 0
    assert torch.equal(a.data, modality.view(whole, draw_of(whole), policy).data)
    assert a.data.isfinite().all()
    if policy == "contrast":
        other = modality.view(whole, draw_of(whole).view(1), policy)
        assert (other.data - a.data).abs().mean() > 0.05
        assert a.data.shape[1] == modality._crop_steps


@BOTH
def test_settings_of_views_change_what_they_name(kind: str) -> None:
    modality, dataset = fitted([wave(n) for n in range(4)], input=kind, mixup=0.0, speed=1.0, bands=1.0, gain=0.0)
    batch = batch_of(modality, dataset, [0, 1, 2, 3])
    plain, draw = modality.view(batch, draw_of(batch)).data, draw_of(batch)
    every = modality.prepare(batch).data
    for row in range(4):  # without changes a view is a stretch of the sample
        starts = range(every.shape[1] - plain.shape[1] + 1)
        assert min(float((every[row, s : s + plain.shape[1]] - plain[row]).abs().max()) for s in starts) < 1e-4
    changes: dict[str, Any] = {"mixup": 0.4, "speed": 1.5, "gain": 6.0, "noise": 0.5, "time_mask": 0.5}
    changes |= {} if kind == "wave" else {"bands": 0.6, "band_mask": 0.5}
    for key, value in changes.items():
        other = Audio(modality.settings.model_copy(update={key: value}))
        other.load_state(modality.state())
        other.training_set(dataset, frozenset({Need.VIEWS}))
        assert not torch.equal(other.view(batch, draw).data, plain), key


def test_the_two_views_of_byol_a_share_sound_however_long_a_recording_is() -> None:
    _, recipe = registry.method("byol-a")
    assert recipe is not None
    modality = Audio(AudioSettings.read(recipe.options, "audio"))
    windows = modality.training_set(modality.open([(wave(0, 10.0), RATE), (wave(1, 10.0), RATE)]))
    longest = max(len(sample.data) for sample in windows.read(range(len(windows))) if isinstance(sample, Sample))
    places = torch.arange(longest, dtype=torch.float32)[None, :, None].expand(500, -1, 1)
    batch = Batch(places, torch.arange(500))
    a, b = (modality._cropped(batch, draw_of(batch).view(n), modality._crop_steps)[0][..., 0] for n in (0, 1))
    shared = torch.minimum(a[:, -1], b[:, -1]) - torch.maximum(a[:, 0], b[:, 0])
    shorter = torch.minimum(a[:, -1] - a[:, 0], b[:, -1] - b[:, 0])
    assert (shared > 0).float().mean() > 0.99
    assert (shared / shorter).mean() > 0.85


def test_gain_is_counted_in_decibels() -> None:
    mels, waves = (fitted([wave(n) for n in range(4)], input=kind, gain=12.0) for kind in ("mel", "wave"))
    found = []
    for modality, dataset in (mels, waves):
        batch = batch_of(modality, dataset, [0, 1, 2, 3])
        a, b = modality.prepare(batch).data, modality.view(batch, draw_of(batch), "light").data
        if modality is mels[0]:
            found.append(((b - a) * modality._std).mean(dim=(1, 2)) / np.log(10) * 10)
        else:
            found.append(20 * (b.abs().sum(dim=(1, 2)) / a.abs().sum(dim=(1, 2))).log10())
    torch.testing.assert_close(found[0], found[1], atol=1e-2, rtol=1e-2)
    assert found[0].abs().max() <= 6


@BOTH
def test_overlapping_crops_share_their_tokens(kind: str) -> None:
    modality, dataset = fitted([wave(n) for n in range(5)], input=kind)
    batch = batch_of(modality, dataset, list(range(5)))
    for step in range(8):
        one, two, (first, second) = modality.overlapping_views(batch, Draw.start(0, 0, step, batch.index))
        assert isinstance(first, slice)
        assert isinstance(second, slice)
        for row in range(5):
            parts = []
            for view, where in ((one, first), (two, second)):
                begin, stop = where.start * modality._token_step, modality._steps_of(where.stop)
                parts.append(view.data[row, begin:stop])
            torch.testing.assert_close(parts[0], parts[1])


# ---- tokens


def test_convolutions_are_the_published_ones_at_16_khz() -> None:
    assert layers(16000) == [(10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2)]
    assert (stride(16000), reach(16000)) == (320, 400)
    assert abs(stride(8000) / 8000 - 0.02) < 0.001


@BOTH
@pytest.mark.parametrize("spec", ["nano", "timm:test_resnet", "timm:test_vit"])
def test_features_do_not_depend_on_the_rest_of_the_batch(kind: str, spec: str) -> None:
    modality, dataset = fitted([*uneven(), wave(7, 1.4)], input=kind)
    torch.manual_seed(0)
    encoder = registry.build_encoder(spec, modality).eval()
    whole = modality.prepare(batch_of(modality, dataset, list(range(7))))
    with torch.no_grad():
        for parameter in encoder.parameters():  # what begins at zero does not stay there
            parameter.add_(0.02 * torch.randn_like(parameter))
        together, targets = encoder(whole), modality.targets(whole)
        for row in (0, 3, 6):
            own = modality.prepare(batch_of(modality, dataset, [row]))
            alone, target = encoder(own), modality.targets(own)
            torch.testing.assert_close(targets[row, : target.shape[1]], target[0], equal_nan=True, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(together.pooled[row], alone.pooled[0], atol=1e-4, rtol=1e-3)
            count = alone.tokens.shape[1]
            torch.testing.assert_close(together.tokens[row, :count], alone.tokens[0], atol=1e-4, rtol=1e-3)
            if together.valid is not None:
                assert not together.valid[row, count:].any()
    assert encoder.can >= {Need.TOKENS, Need.MASK} or spec.startswith("timm")


@BOTH
def test_masks_targets_and_tokens_agree(kind: str) -> None:
    modality, dataset = fitted(uneven(), input=kind, span=80.0)
    view = modality.prepare(batch_of(modality, dataset, list(range(6))))
    encoder = registry.build_encoder("nano", modality).eval()
    features = encoder(view)
    mask = modality.sample_mask(view, draw_of(view), 0.5)
    assert mask.shape == features.tokens.shape[:2] == (6, modality.token_count(view))
    assert modality.targets(view).shape == (*mask.shape, modality.target_dim)
    assert not (mask & ~features.valid).any()
    share = mask.sum(dim=1) / features.valid.sum(dim=1)
    assert ((share - 0.5).abs() < 0.2).all()
    loss = modality.token_loss(torch.zeros(*mask.shape, modality.target_dim), modality.targets(view))
    assert loss[features.valid].isfinite().all()


def test_transformations_put_stretches_in_order_and_backwards() -> None:
    modality, dataset = fitted([wave(n) for n in range(6)], gain=0.0)
    batch = batch_of(modality, dataset, list(range(6)))
    plain = modality.prepare(batch).data
    known = modality.transformations()
    backwards = known["reversal"].apply(batch, torch.ones(6, dtype=torch.int64), draw_of(batch)).data
    torch.testing.assert_close(backwards, plain.flip(1))
    orders = [known["order"].apply(batch, torch.full((6,), n), draw_of(batch)).data for n in range(6)]
    torch.testing.assert_close(orders[0], plain)
    assert all(not torch.equal(order, plain) for order in orders[1:])


# ---- state, people


@BOTH
def test_what_was_fitted_travels_with_the_encoder(kind: str) -> None:
    modality, dataset = fitted(uneven(), input=kind)
    other = Audio(modality.settings)
    other.load_state(modality.state())
    batch = batch_of(modality, dataset, [0, 3])
    assert torch.equal(modality.prepare(batch).data, other.prepare(batch).data)
    assert other.open(uneven()).form == dataset.form


def test_people_see_a_spectrogram_and_hear_the_recording() -> None:
    modality, dataset = fitted(uneven())
    for item in (*dataset.read([0]), *dataset.shown([0])):
        assert isinstance(item, Sample)
        assert "<img" in modality.show(item)
        assert ("<audio" in modality.show(item)) == (item.data.dtype == np.int16)


def test_raw_features_are_one_row_a_recording_however_it_is_kept(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "files", uneven())
    soundfile.write(folder / "a-silent.wav", np.zeros(900), RATE)
    found = []
    for kind in ("mel", "wave"):
        modality, dataset = fitted(folder, input=kind)
        found.append(modality.raw_features(dataset, [dataset])[1])
        assert found[-1].shape == (7, 81)
        assert np.isfinite(found[-1]).all()
    np.testing.assert_allclose(found[0], found[1], atol=0.05)


def test_defaults_have_reasons() -> None:
    modality, dataset = fitted(uneven())
    chosen = modality.defaults(dataset.describe(), Budget(60, 1e10, accelerator=False))
    assert {choice.key for choice in chosen} >= {"method", "encoder", "batch_size", "rate", "window"}
    assert all(choice.reason for choice in chosen)


@BOTH
def test_long_recordings_are_embedded_a_few_at_a_time(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from labelfree.tasks import embed as module

    lengths = [3.0, 0.5, 0.5, 0.4, 2.9, 0.5, 0.3, 0.5]
    modality, dataset = fitted([wave(number, seconds) for number, seconds in enumerate(lengths)], input=kind)
    torch.manual_seed(0)
    encoder = registry.build_encoder("transformer:pico", modality)
    together: list[tuple[int, float]] = []
    monkeypatch.setattr(module, "AT_ONCE", 4)  # windows of half a second, two seconds in all

    def features(view: Batch) -> torch.Tensor:
        rate = RATE if kind == "wave" else 100
        together.append((len(view), view.data.shape[1] / rate))
        return encoder(view).pooled

    found = module.apply(encoder, features, encoder.dim, modality, dataset)
    assert [count for count, _ in together] == [4, 2, 1, 1]
    assert all(count * seconds <= 2.1 for count, seconds in together if count > 1)
    alone = module.embed(encoder, modality, dataset, batch_size=1)
    np.testing.assert_allclose(found, alone, atol=1e-4)


def test_long_recordings_are_learnt_from_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from labelfree import runtime
    from labelfree.tasks import embed as module
    from labelfree.tasks.classifier import Classifier, Examples, FinetuneSettings, Pace, train_classifier

    lengths = [3.0, 0.5, 0.5, 0.4, 2.9, 0.5, 0.3, 0.5]
    modality, dataset = fitted([wave(number, seconds) for number, seconds in enumerate(lengths)])
    examples = Examples(dataset, np.arange(8), np.arange(8) % 2, classes=2, metric="balanced_accuracy")
    gradients: list[list[torch.Tensor]] = []
    monkeypatch.setattr(runtime, "best_precision", lambda on: "32")
    monkeypatch.setattr(
        torch.nn.utils,
        "clip_grad_norm_",
        lambda parameters, most: gradients.append([p.grad.clone() for p in parameters if p.grad is not None]),
    )
    for at_once, sizes in ((4, [2, 1, 1]), (1000, [4])):
        monkeypatch.setattr(module, "AT_ONCE", at_once)
        assert [len(part) for part in examples.parts(modality, np.array([0, 5, 4, 1]))] == sizes
        torch.manual_seed(0)
        encoder = registry.build_encoder("transformer:pico", modality)
        encoder.dropout = 0.0
        train_classifier(Classifier(encoder, 2), modality, examples, FinetuneSettings(), pace=Pace(1e-3), steps=1)
    assert len(gradients) == 2
    for few, all_at_once in zip(*gradients, strict=True):
        torch.testing.assert_close(few, all_at_once, atol=1e-6, rtol=1e-4)
