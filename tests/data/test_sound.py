"""Recordings are decoded to one channel at one rate, whole or in part; what holds no sound says so."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labelfree.data.sound import decode, header, looks_like_recording, player
from labelfree.errors import LabelfreeError

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")


def tone(seconds: float = 0.5, rate: int = 8000, pitch: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize("suffix", ["wav", "w64", "flac", "ogg", "mp3", "aiff", "caf"])
def test_every_format_gives_the_same_sound(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, tone(), 8000)
    assert looks_like_recording(path.read_bytes()[:12])
    assert header(path, 0).rate == 8000
    from_file, from_bytes = decode(path, 8000, 0), decode(path.read_bytes(), 8000, 0)
    np.testing.assert_array_equal(from_file, from_bytes)
    assert abs(len(from_file) - 4000) < 2400  # MP3 may pad at both ends
    spectrum = np.abs(np.fft.rfft(from_file))
    assert abs(spectrum.argmax() * 8000 / len(from_file) - 440) < 5


def test_rates_and_channels_are_brought_together() -> None:
    low, high = tone(rate=8000), tone(rate=44100)
    stereo = np.stack([high, high], axis=1)
    found = decode((stereo, 44100), 8000, 0)
    assert len(found) == len(low)
    np.testing.assert_allclose(found[200:-200], low[200:-200], atol=2e-3)
    np.testing.assert_array_equal(decode((stereo.T, 44100), 8000, 0), found)
    np.testing.assert_array_equal(decode({"array": high, "sampling_rate": 44100}, 8000, 0), found)


def test_a_stretch_is_that_part_of_the_whole(tmp_path: Path) -> None:
    path, wave = tmp_path / "noise.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 8000).astype(np.float32)
    soundfile.write(path, wave, 8000, subtype="FLOAT")
    for item in (path, path.read_bytes(), wave):
        np.testing.assert_allclose(decode(item, 8000, 8000, 0.25, 0.5), wave[2000:6000])
        np.testing.assert_allclose(decode(item, 8000, 8000, 0.9, 0.5), wave[7200:])


def test_whole_numbers_become_unit_values_and_padding_goes() -> None:
    for kind in (np.int16, np.int32, np.uint8):
        wave = np.linspace(np.iinfo(kind).min, np.iinfo(kind).max, 100).astype(kind)
        found = decode(wave, 8000, 8000)
        assert abs(found[0] + 1) < 0.01
        assert abs(found[-1] - 1) < 0.01
    padded = np.concatenate([tone(), np.full(300, np.nan, np.float32)])
    np.testing.assert_array_equal(decode(padded, 8000, 8000), tone())
    assert np.abs(decode(tone() * 40, 8000, 8000)).max() <= 1


def test_narrow_numbers_in_wide_integers_are_as_loud(tmp_path: Path) -> None:
    narrow = (tone() * 32768).astype(np.int16)
    for kind in (np.int32, np.int64):
        np.testing.assert_array_equal(decode(narrow.astype(kind), 8000, 8000), decode(narrow, 8000, 8000))
    wide = np.concatenate([narrow.astype(np.int32), np.int32([1 << 30])])
    assert np.abs(decode(wide, 8000, 8000, 0.0, 0.25)).max() < 1e-4, "a soft stretch of a loud recording stays soft"


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (np.zeros(0, np.float32), "holds no sound"),
        (np.full(90, np.nan, np.float32), "holds no sound"),
        (np.zeros(800, np.int16), "is silent"),
        (np.full(800, 0.3, np.float32), "is silent"),
        (np.array([0.1, np.nan, 0.2, np.inf], np.float32), "not numbers"),
        ((tone(), 0), "0 samples a second"),
        (np.array(["a"]), "not a recording"),
        (np.zeros((2, 2, 2)), "not a recording"),
    ],
)
def test_what_holds_no_sound_says_why(item: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        decode(item, 8000, 8000)


def test_a_player_plays_what_was_given() -> None:
    heard = decode(player(tone(1.0, 9000), 9000), 9000, 0)
    assert abs(np.abs(np.fft.rfft(heard)).argmax() / len(heard) * 9000 - 440) < 5


def test_a_missing_package_is_named_with_its_install_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "a.wav", tone(), 8000)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(LabelfreeError, match=r"pip install soundfile soxr\."):
        decode(tmp_path / "a.wav", 8000, 0)


def test_a_file_that_does_not_know_its_length_says_so(tmp_path: Path) -> None:
    path = tmp_path / "piped.flac"
    soundfile.write(path, tone(), 8000)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the 36 bits of the length in the stream's header, which a pipe leaves 0
    content[22:26] = bytes(4)
    path.write_bytes(content)
    for read in (lambda: header(path, 0), lambda: decode(path, 8000, 0), lambda: decode(path, 8000, 0, 0.1, 0.1)):
        with pytest.raises(ValueError, match="does not say how long it is"):
            read()
