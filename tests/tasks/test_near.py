"""Near copies are found in every kind of data, and what is merely alike is none."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from labelfree.tasks.doctor import doctor
from labelfree.tasks.near import comparable, near_groups, near_pairs, usual_distance


def near_copies(source: Any, **settings: Any) -> list[list[int]]:
    """Groups of near copies; nothing else may be wrong but what the data are made with."""
    groups = [f.groups for f in doctor(source, **settings).findings if f.check == "near copies"]
    return [list(group) for group in groups[0]] if groups else []


def sounds(folder: Path, count: int = 24, rate: int = 8000) -> list[np.ndarray]:
    """Half a second each of a few notes, all with the same spectrum of noise below them."""
    rng, time = np.random.default_rng(0), np.arange(rate // 2) / rate
    waves = []
    for number in range(count):
        notes = rng.uniform(200, 3000, 4)[np.arange(len(time)) * 4 // len(time)]
        wave = 0.3 * np.sin(2 * np.pi * notes * time) + 0.02 * rng.normal(size=len(time))
        soundfile.write(folder / f"{number:02}.wav", wave, rate)
        waves.append(wave)
    return waves


def test_sounds_that_were_made_louder_or_noisier_are_near_copies_and_others_are_not(tmp_path: Path) -> None:
    waves = sounds(tmp_path)
    assert near_copies(tmp_path, modality="audio") == []
    noise = np.random.default_rng(1).normal(size=waves[0].shape)
    soundfile.write(tmp_path / "24.wav", 0.5 * waves[3], 8000)
    soundfile.write(tmp_path / "25.wav", waves[7] + 0.003 * noise, 8000)
    assert near_copies(tmp_path, modality="audio") == [[3, 24], [7, 25]]


def heartbeats(count: int = 60, steps: int = 80) -> np.ndarray:
    """(N, T, 1) series that are all much alike: the same wave, a little earlier, higher, wider, and normalised."""
    rng, time = np.random.default_rng(0), np.linspace(-3, 3, steps)
    shift, width, dip = rng.normal(0, 0.3, (3, count, 1))
    series = np.exp(-((time - shift) ** 2) * 4 * np.exp(width)) - (0.5 + dip) * np.exp(-((time - 1.5 + width) ** 2) * 2)
    series += 0.02 * rng.normal(size=series.shape).cumsum(axis=1)
    series = (series - series.mean(axis=1, keepdims=True)) / series.std(axis=1, keepdims=True)
    return series[:, :, None].astype(np.float32)


def test_series_with_little_noise_are_near_copies_and_alike_ones_are_not() -> None:
    series = heartbeats()
    assert near_copies(series, modality="series", window=0) == []
    noisy = series[5] + 0.003 * np.random.default_rng(1).normal(size=series[5].shape).astype(np.float32)
    assert near_copies(np.concatenate([series, noisy[None]]), modality="series", window=0) == [[5, 60]]


def test_channels_count_alike_whatever_their_units() -> None:
    rng = np.random.default_rng(0)
    series = rng.normal(size=(40, 30, 2)).astype(np.float32).cumsum(axis=1)
    series[7] = series[6]
    series[7, :, 1] = series[8, :, 1]
    assert near_copies(series * np.float32([1000, 0.001]), modality="series", window=0) == []


def test_windows_of_one_recording_are_not_compared(tmp_path: Path) -> None:
    time = np.arange(600)
    values = np.sin(time[:, None] * [0.1, 0.13]) + 1e-4 * np.random.default_rng(0).normal(size=(600, 2))
    np.savetxt(tmp_path / "one.csv", values, delimiter=",", header="a,b", comments="")
    assert near_copies(tmp_path / "one.csv", modality="series", window=20) == []
    np.savetxt(tmp_path / "two.csv", values[::-1] + 3, delimiter=",", header="a,b", comments="")
    np.savetxt(tmp_path / "three.csv", values[:40] + 1e-4, delimiter=",", header="a,b", comments="")
    checkup = doctor(tmp_path, modality="series", window=20)
    names = [{checkup.dataset.name(row).split(",")[0] for row in group} for f in checkup.findings for group in f.groups]
    assert names
    assert all(name == {"one.csv", "three.csv"} for name in names)


def molecule(places: Sequence[int], nodes: int = 14) -> dict[str, Any]:
    """A ring with three atoms of other kinds hung on it at some places: all have the same parts."""
    ring = [[i, (i + 1) % nodes] for i in range(nodes)]
    hung = [[place, nodes + i] for i, place in enumerate(places)]
    return {"nodes": [0] * nodes + [1, 2, 3], "edges": ring + hung}


def reordered(graph: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    order = rng.permutation(len(graph["nodes"]))
    place = np.argsort(order)
    nodes = [graph["nodes"][i] for i in order]
    return {"nodes": nodes, "edges": [[int(place[a]), int(place[b])] for a, b in graph["edges"]]}


def test_a_graph_in_another_order_is_a_near_copy_and_an_isomer_is_not(tmp_path: Path) -> None:
    places = [(1, 3), (1, 5), (2, 6), (3, 8), (1, 9), (4, 9), (2, 3), (2, 8)]
    graphs = [molecule([0, *others]) for others in places]
    path = tmp_path / "graphs.json"
    path.write_text(json.dumps(graphs))
    assert near_copies(path, modality="graph") == []
    path.write_text(json.dumps([*graphs, reordered(graphs[2], np.random.default_rng(0))]))
    assert near_copies(path, modality="graph") == [[2, 8]]


def test_a_picture_encoded_anew_is_a_near_copy_and_dull_ones_are_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (40, 6, 6, 3), dtype=np.uint8)
    coarse[32:] = coarse[32:] // 8 + 112
    for number, pixels in enumerate(coarse):
        Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC).save(tmp_path / f"{number:02}.png")
    assert near_copies(tmp_path, modality="image") == []
    anew = io.BytesIO()
    Image.open(tmp_path / "09.png").save(anew, "JPEG", quality=90)
    (tmp_path / "40.jpg").write_bytes(anew.getvalue())
    assert near_copies(tmp_path, modality="image") == [[9, 40]]


def test_a_text_with_a_changed_word_is_a_near_copy() -> None:
    rng = np.random.default_rng(0)
    texts = [rng.choice([f"word{number}" for number in range(400)], 150) for _ in range(30)]
    changed = texts[4].copy()
    changed[50] = "another"
    assert near_copies([" ".join(words) for words in [*texts, changed]], modality="text", vocabulary=300) == [[4, 30]]


# ---- pairs and groups of rows


def test_pairs_are_found_alike_dense_and_sparse() -> None:
    from scipy import sparse

    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 8)).astype(np.float32)
    x[30] = x[3] * 1.01
    size = np.linalg.norm(x, axis=1)
    slow = [
        (i, j)
        for i in range(50)
        for j in range(i + 1, 50)
        if np.linalg.norm(x[i] - x[j]) <= 0.5 * min(3.0, np.sqrt(2 * size[i] * size[j]))
    ]
    for given in (x, sparse.csr_array(x)):
        pairs = near_pairs(given, given, 0.5, 3.0, block=16)
        assert sorted(zip(*(part.tolist() for part in pairs), strict=True)) == slow
    assert (3, 30) in slow


def test_what_is_usual_is_the_distance_of_the_fifth_neighbour_of_another_owner() -> None:
    x = np.random.default_rng(0).normal(size=(30, 4))
    distance = np.linalg.norm(x[:, None] - x, axis=2)
    assert usual_distance(x) == pytest.approx(np.median(np.sort(distance, axis=1)[:, 5]), rel=1e-4)
    owners = np.arange(30) // 3
    distance[owners[:, None] == owners] = np.inf
    assert usual_distance(x, owners) == pytest.approx(np.median(np.sort(distance, axis=1)[:, 4]), rel=1e-4)
    assert usual_distance(x, np.zeros(30, dtype=int)) == 0.0


def test_copies_of_most_samples_do_not_become_what_is_usual() -> None:
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(10, 12)), 10, axis=0) + 1e-3 * rng.normal(size=(100, 12))
    a, b = near_pairs(x, x, 0.15, usual_distance(x))
    assert [len(group) for group in near_groups(a, b)] == [10] * 10


def test_a_chain_of_pairs_is_not_one_group() -> None:
    a, b = np.array([0, 1, 2, 3]), np.array([1, 2, 3, 4])
    assert near_groups(a, b) == [[0, 1, 2], [3, 4]]
    assert near_groups(np.array([0, 1]), np.array([1, 2])) == [[0, 1, 2]]


def test_columns_are_scaled_and_constant_ones_left_out() -> None:
    x = np.random.default_rng(0).normal(size=(20, 3)) * [1, 1000, 1] + 5
    x[:, 2] = 7
    ours, theirs = comparable([x, x[:3]])
    assert ours.shape == (20, 2)
    assert ours.std(axis=0) == pytest.approx(1, abs=1e-5)
    (flags,) = comparable([np.eye(20)])
    assert flags.std(axis=0) == pytest.approx(np.eye(20).std(axis=0)), "rare categories are not scaled up"
    assert theirs == pytest.approx(ours[:3])
