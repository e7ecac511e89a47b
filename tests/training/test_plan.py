"""What is chosen, and what is refused, before training."""

import json
import multiprocessing
import os
import sys
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch

import labelfree
from labelfree import runtime
from labelfree.data.batch import Batch, Sample, Unreadable
from labelfree.data.cache import Cached
from labelfree.data.dataset import Dataset, Description
from labelfree.encoders.custom import Custom
from labelfree.errors import LabelfreeError
from labelfree.modalities.image import Image
from labelfree.modalities.series import Series, SeriesSettings
from labelfree.modalities.video import Video, VideoSettings
from labelfree.registry import build_encoder, missing, objectives
from labelfree.training import processes
from labelfree.training.folder import name_of, place_of
from labelfree.training.job import check_readable
from labelfree.training.logs import parse_duration
from labelfree.training.plan import make_plan, resolve_machine
from labelfree.training.pretrain import _say_busy
from labelfree.training.settings import TrainSettings

SMALL = {"size": 16, "precision": "32", "threads": 1, "batch_size": 8}


@pytest.fixture
def pictures(tmp_path):
    generator = np.random.default_rng(0)
    path = tmp_path / "pictures.npy"
    np.save(path, generator.integers(0, 255, (24, 16, 16, 3), dtype=np.uint8))
    return path


@pytest.mark.parametrize(
    ("words", "seconds"), [("90", 90), ("45s", 45), ("10m", 600), ("1h30m", 5400), (7.5, 7.5), ("2 h", 7200)]
)
def test_durations(words, seconds):
    assert parse_duration(words) == seconds


@pytest.mark.parametrize("words", ["", "ten", "5 parsecs", "0s", "-3m", "10m!"])
def test_what_is_not_a_duration(words):
    with pytest.raises(LabelfreeError, match="time"):
        parse_duration(words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "simclear"}, "simclr"),
        ({"encoder": "timmm:resnet18"}, "timm"),
        ({"modality": "picture"}, "There is no modality 'picture'"),
        ({"batch_sise": 4}, "batch_size"),
        ({"batch_size": "many"}, "batch_size"),
        ({"epochs": 1, "steps": 1}, "epochs and steps"),
        ({"epochs": 0}, "epochs=0"),
        ({"steps": 2.5}, "steps=2.5 is no whole number"),
        ({"seed": -1}, "seed=-1 is no whole number"),
        ({"seed": 2**70}, "seed=1180591620717411303424 is no whole number"),
        ({"optimizer": "adam"}, "adamw"),
        ({"accelerator": "gpu"}, "'auto', 'cpu', 'cuda' or 'mps'"),
        ({"training.workers": -2}, "workers.*greater than or equal to 0"),
        ({"shuffle_window": -5}, "shuffle_window.*greater than or equal to 0"),
        ({"init": "nowhere"}, "nowhere"),
    ],
)
def test_mistakes_are_named_and_leave_nothing(pictures, tmp_path, options, words):
    out = tmp_path / "run"
    options = {"steps": 1} | options if "epochs" not in options else options
    with pytest.raises(LabelfreeError, match=words):
        labelfree.pretrain(str(pictures), out=out, **{**SMALL, **options})
    assert not out.exists()


def test_steps_and_seeds_may_be_any_kind_of_whole_number(pictures, tmp_path):
    for name, steps, seed in (("a", np.int64(1), None), ("b", "1e0", np.int32(0))):
        options = {"encoder": "timm:test_resnet", "method": "simclr", "steps": steps, "seed": seed, **SMALL}
        info = labelfree.pretrain(str(pictures), out=tmp_path / name, **options).info
        assert (info["steps"], info["seed"]) == (1, 0)


def test_a_folder_that_exists_is_left_alone(pictures, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(LabelfreeError, match="exists already"):
        labelfree.pretrain(str(pictures), out=out, steps=1, **SMALL)
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_every_choice_is_written_down_with_its_reason(pictures, tmp_path):
    run = labelfree.pretrain(
        str(pictures), out=tmp_path / "run", steps=2, size=16, encoder="timm:test_resnet", precision="32", threads=1
    )
    chosen = {choice["key"]: choice for choice in run.info["choices"]}
    assert {"modality", "method", "batch_size", "cache"} <= set(chosen)
    assert all(choice["reason"] for choice in chosen.values())
    assert run.info["settings"]["training"]["batch_size"] == chosen["batch_size"]["value"]
    settings = run.info["settings"]["training"].values()
    assert "auto" not in settings


def test_a_time_limit_becomes_steps(pictures, tmp_path):
    run = labelfree.pretrain(
        str(pictures), out=tmp_path / "run", time_limit=2, encoder="timm:test_resnet", method="simclr", **SMALL
    )
    assert run.state == "finished"
    assert run.info["steps"] == run.info["step"] >= 1


def test_a_batch_larger_than_the_source_is_cut(pictures, tmp_path):
    run = labelfree.pretrain(
        str(pictures), out=tmp_path / "run", steps=1, encoder="timm:test_resnet", **{**SMALL, "batch_size": 4096}
    )
    assert run.info["settings"]["training"]["batch_size"] == 24


def test_a_gpu_that_is_not_there_is_named_before_anything_is_opened(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(LabelfreeError, match=r"1 GPU\(s\) were asked for and 0 found. Set accelerator=cpu."):
        labelfree.pretrain("no/such/place", steps=1, accelerator="cuda")


@pytest.mark.parametrize("given", [{}, {"training.accelerator": "cpu"}])
def test_training_is_where_the_plan_says(pictures, tmp_path, monkeypatch, given):
    def launched(work, assignment, job, accelerator, world):
        raise InterruptedError(accelerator, job.plan.training.accelerator)

    monkeypatch.setattr(processes, "run_everywhere", launched)
    with pytest.raises(InterruptedError) as found:
        labelfree.pretrain(pictures, out=tmp_path / "run", encoder="timm:test_resnet", steps=1, **SMALL, **given)
    assert found.value.args == ("cpu", "cpu")


@pytest.mark.parametrize("already", [None, ":16:8"])
def test_deterministic_products_are_asked_for_before_the_first(pictures, monkeypatch, already):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", already or "")
    if already is None:
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")

    def measured(*arguments):
        raise InterruptedError(os.environ.get("CUBLAS_WORKSPACE_CONFIG"))

    monkeypatch.setattr(runtime, "flops", measured)
    with pytest.raises(InterruptedError) as found:
        labelfree.pretrain(pictures, steps=1, deterministic=True)
    assert found.value.args == (already or ":4096:8",)


def test_a_missing_tensorboard_is_named_before_anything_is_opened(monkeypatch):
    for name in ("tensorboard", "tensorboardX"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(LabelfreeError, match=r"needs TensorBoard, .* pip install tensorboard\."):
        labelfree.pretrain("no/such/place", steps=1, tensorboard=True)


def test_a_training_that_diverges_is_given_up_in_words_and_in_json(pictures, tmp_path, capfd):
    options = {"method": "simclr", "encoder": "timm:test_resnet", "warmup": 0, "log_every": 1, **SMALL}
    with pytest.raises(LabelfreeError, match="training stopped, the weights are whole"):
        labelfree.pretrain(str(pictures), out=tmp_path / "run", steps=60, learning_rate=1e30, **options)
    assert "The loss diverges" in "".join(capfd.readouterr())
    last = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last, parse_constant=pytest.fail)["loss"] is None
    assert json.loads((tmp_path / "run" / "run.json").read_text(), parse_constant=pytest.fail)["state"] == "failed"


def test_the_program_around_a_training_finds_torch_as_it_was(pictures, tmp_path):
    torch.manual_seed(5)
    before = torch.get_num_threads(), torch.get_rng_state()
    options = {**SMALL, "threads": 1 + before[0], "encoder": "timm:test_resnet", "deterministic": True}
    labelfree.pretrain(str(pictures), out=tmp_path / "run", steps=1, **options)
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_password_is_not_written_into_a_run() -> None:
    assert place_of("postgresql://me:secret@host/shop") is None
    assert place_of("postgresql:///shop?user=me&password=secret") is None
    assert name_of("postgresql:///shop?user=me&password=secret", None) == "shop"
    assert place_of("sqlite:///shop.db") == "sqlite:///shop.db"


def test_work_of_other_programs_is_measured_without_ours(monkeypatch):
    clock, ours, idle = iter([0.0, 10.0]), iter([1.0, 7.0]), iter([20.0, 21.0])
    monkeypatch.setattr(runtime, "own_cores", lambda: {0, 1})
    monkeypatch.setattr(runtime, "cores", lambda: 2)
    monkeypatch.setattr(runtime.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(runtime.time, "process_time", lambda: next(ours))

    def times(percpu):
        left = next(idle)
        return [SimpleNamespace(idle=left), SimpleNamespace(idle=2 * left, iowait=0.0)]

    monkeypatch.setattr(runtime.psutil, "cpu_times", times)
    # in ten seconds of two cores: three idle, six ours, so eleven of others
    assert runtime.Others().cores == pytest.approx(1.1)


@pytest.mark.parametrize(("busy", "threads", "said"), [(1.2, 2, True), (0.1, 2, False), (1.2, 1, False)])
def test_threads_that_others_are_in_the_way_of_are_named(busy, threads, said, monkeypatch, capfd):
    monkeypatch.setattr(runtime, "cores", lambda: 2)
    _say_busy(busy, threads)
    assert ("threads=1" in "".join(capfd.readouterr())) is said


def test_what_cannot_be_read_is_a_share_of_the_files_that_samples_are_cut_from(tmp_path):
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", np.random.default_rng(number).normal(size=(60, 1)))
    (tmp_path / "broken.npy").write_bytes(b"no array")
    series = Series(SeriesSettings(window=10))
    films = [np.random.default_rng(number).integers(0, 255, (24, 8, 8, 3), np.uint8) for number in range(4)]
    video = Video(VideoSettings(size=8, patch=4, frames=2, span=2, stride=2))
    for modality, source in ((series, tmp_path), (video, [*films, films[0][:1]])):
        dataset = modality.open(source)
        assert len(dataset) >= 24
        assert (len(dataset.unreadable), dataset.source_count()) == (1, 5)
        modality.fit(dataset)
        for near in (dataset, Cached(dataset, modality)):
            assert len(check_readable(near, TrainSettings(max_unreadable=0.2))) == 1
            with pytest.raises(LabelfreeError, match=r"20\.0% of the source cannot be read, more than .*=0\.19 allows"):
                check_readable(near, TrainSettings(max_unreadable=0.19))


def test_samples_that_cannot_be_read_count_beside_files():
    class Half(Dataset):
        """One of two files was left out, and every other sample cannot be read."""

        unreadable = (Unreadable(-1, "file", "broken"),)

        def __len__(self):
            return 8

        def source_count(self):
            return 2

        def read(self, indices):
            return [Sample(np.ones(3), i) if i % 2 else Unreadable(i, "sample", "broken") for i in indices]

        def describe(self):
            return Description("series", 8)

        def fingerprint(self):
            return ""

    near = Cached(Half(), Series())
    assert len(check_readable(near, TrainSettings(max_unreadable=0.75))) == 5
    with pytest.raises(LabelfreeError, match=r"75\.0% of the source"):
        check_readable(near, TrainSettings(max_unreadable=0.74))


def test_auto_takes_a_method_that_a_given_encoder_can_serve(tmp_path, capsys):
    class Mean(torch.nn.Module):
        dim, shape = 8, "pooled"

        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 8)

        def forward(self, x):
            return self.layer(x.nan_to_num()).mean(dim=1)

    rng = np.random.default_rng(0)
    np.save(tmp_path / "series.npy", rng.normal(size=(24, 40)).astype("float32"))
    np.save(tmp_path / "films.npy", rng.integers(0, 255, (12, 8, 16, 16, 3), dtype=np.uint8))
    few = {"steps": 2, "batch_size": 4, "threads": 1, "precision": "32"}
    own = labelfree.pretrain(tmp_path / "series.npy", modality="series", encoder=Mean(), out=tmp_path / "own", **few)
    films = labelfree.pretrain(
        tmp_path / "films.npy", modality="video", encoder="timm:resnet10t", size=16, frames=2, out=tmp_path / "v", **few
    )
    assert own.info["method"] == films.info["method"] == "simclr"
    assert "ts2vec, the usual one, asks more of an encoder than custom:Mean" in capsys.readouterr().err
    with pytest.raises(LabelfreeError, match="'ts2vec' needs more"):
        labelfree.pretrain(tmp_path / "series.npy", modality="series", method="ts2vec", encoder=Mean(), steps=2)


@pytest.mark.parametrize("method", [name for name, cls in objectives().items() if not missing(cls, Image)])
def test_the_encoder_that_auto_takes_for_pictures_serves_every_method(pictures, method):
    few = {"modality": "image", "encoder": "auto", "seed": 0, "seconds": 60, "settings": {}}
    plan, data, dataset, _ = make_plan(pictures, method=method, **few)
    data.fit(dataset)
    assert missing(plan.objective_class(), data, build_encoder(plan.encoder, data, plan.causal)) == []


def test_auto_trains_what_comes_next_on_pictures(pictures, tmp_path):
    run = labelfree.pretrain(pictures, method="next", out=tmp_path / "run", steps=2, batch_size=4, threads=1)
    assert run.info["encoder"] == "transformer:nano"
    assert "the method needs an encoder that can be kept" in str(run.info["choices"])


def test_a_network_that_cannot_take_the_data_is_refused_with_its_own_words(pictures):
    with pytest.raises(LabelfreeError, match=r"Linear could not encode data of shape \(B, 3, 16, 16\): mat1 and mat2"):
        labelfree.pretrain(pictures, encoder=torch.nn.Linear(5, 4), steps=1, **SMALL)


def test_processes_of_a_launcher_share_the_cores_of_their_machine(pictures, monkeypatch):
    monkeypatch.setattr(runtime, "cores", lambda: 16)
    names = {"WORLD_SIZE": "8", "RANK": "0", "LOCAL_WORLD_SIZE": "4"}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    asked = {"modality": "image", "method": "simclr", "encoder": "timm:test_resnet", "settings": {}}
    plan, *_ = make_plan(pictures, seed=0, seconds=None, **asked)
    for allowed, threads, why in (
        (None, 4, "16 cores for 4 process(es)"),
        (8, 4, "16 cores"),
        (2, 2, "OMP_NUM_THREADS=2"),
    ):
        monkeypatch.setattr(runtime, "threads_allowed", lambda allowed=allowed: allowed)
        found = resolve_machine(plan, streamed=False)
        assert found.training.threads == threads
        assert any(c["key"] == "threads" and c["reason"].startswith(why) for c in found.choices)


@pytest.fixture
def streamed(pictures, monkeypatch):
    """A plan to stream to a GPU, on a machine with 16 cores and much shared memory, and an opened source."""
    monkeypatch.setattr(runtime, "cores", lambda: 16)
    monkeypatch.setattr(runtime, "fast_bf16", lambda device: True)
    monkeypatch.setattr(runtime, "shared_memory", lambda: 1 << 30)
    asked = {"modality": "image", "method": "simclr", "encoder": "timm:test_resnet", "settings": {}}
    plan, _, dataset, _ = make_plan(pictures, seed=0, seconds=None, **asked)
    training = plan.training.model_copy(update={"accelerator": "cuda"})
    return plan.model_copy(update={"training": training}), dataset


def workers(plan, dataset):
    found = resolve_machine(plan, True, dataset)
    assert found.choices[-1]["key"] == "workers"
    return found.training.workers, found.choices[-1]["reason"]


def test_workers_read_for_a_gpu_where_they_can(streamed, monkeypatch):
    plan, dataset = streamed
    assert workers(plan, dataset) == (8, "read ahead beside the training")
    with monkeypatch.context() as patched:
        patched.setattr(runtime, "shared_memory", lambda: 60 << 20)
        assert workers(plan, dataset) == (0, "60 MiB of shared memory are free")
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "spawn")
    assert workers(plan, dataset)[0] == 8
    dataset.own = lambda: 1
    assert workers(plan, dataset) == (0, "the source cannot be handed to other processes")


def test_a_network_is_tried_where_it_lies() -> None:
    view = Batch(data=torch.zeros(2, 5), index=torch.arange(2))
    assert Custom.wrap(torch.nn.Linear(5, 4, device="meta"), Series(), view).dim == 4


def test_a_recipe_says_what_kind_of_data_is_meant_where_that_is_open(pictures, tmp_path):
    table = tmp_path / "measured.csv"
    walks = np.random.default_rng(0).normal(size=(200, 3)).cumsum(axis=0)
    rows = np.column_stack([np.arange(200), walks])
    np.savetxt(table, rows, delimiter=",", header="time,heat,light,noise", comments="")

    def kind(source, method: str) -> str:
        asked = {"modality": None, "encoder": "auto", "seed": 0, "seconds": None, "settings": {"threads": 1}}
        return make_plan(source, method=method, **asked)[0].modality

    assert kind(table, "auto") == "series"
    assert kind(table, "scarf") == "table"
    assert kind(table, "masked-series") == "series"
    with pytest.raises(LabelfreeError, match=r"'scarf' is for table, not for image"):
        kind(pictures, "scarf")
    photo = tmp_path / "photos" / "a.png"  # any file is bytes, too
    photo.parent.mkdir()
    PIL.Image.new("RGB", (8, 8)).save(photo)
    with pytest.raises(LabelfreeError, match=r"'data2vec-text' is for text, bytes, not for image"):
        kind(photo.parent, "data2vec-text")


def test_a_setting_of_another_kind_of_data_names_that_kind(tmp_path):
    table = tmp_path / "payments.csv"
    rows = "".join(f"{n % 7},{n % 5},{n}.5,x{n % 3}\n" for n in range(40))
    table.write_text("debtor,creditor,amount,type\n" + rows)
    with pytest.raises(LabelfreeError, match=r"'ends' is a setting of graph data.*as table data.*--modality graph"):
        labelfree.pretrain(table, out=tmp_path / "run", steps=1, threads=1, ends="debtor,creditor")
    with pytest.raises(LabelfreeError, match=r"There is no setting 'endz'"):
        labelfree.pretrain(table, out=tmp_path / "run", steps=1, threads=1, endz="debtor,creditor")
