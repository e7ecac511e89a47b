"""What a step does, and what it never does."""

import math
import signal

import pytest
import torch
from torch import nn

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw
from labelfree.data.loader import WorkerDied
from labelfree.encoders.base import Encoder, Features
from labelfree.errors import LabelfreeError
from labelfree.objectives.base import Objective, Step
from labelfree.settings import Settings
from labelfree.training import optim
from labelfree.training.health import Watch, feature_health
from labelfree.training.loop import GIVE_UP, Stepper, StopRequest, Training, _until_stopped, heard_by, stop_on_signals
from labelfree.training.settings import TrainSettings

CPU = torch.device("cpu")


class Normalised(Encoder):
    dim = 4

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    @classmethod
    def build(cls, variant, modality, causal=False):
        return cls()

    def forward(self, batch, mask=None, kept=None):
        return Features(self.norm(self.layer(batch.data)))


class Shrink(Objective):
    """Pull features to a point; on steps in `poison` the loss is not a number."""

    settings_class = Settings
    needs = frozenset()
    poison = frozenset()
    calls = 0

    def loss(self, batch: Batch, draw: Draw) -> Step:
        x = self.encoder(batch).pooled
        self.calls += 1
        loss = x.square().mean() * (math.nan if self.calls - 1 in self.poison else 1.0)
        return Step(loss, x.detach())


class Endless:
    """Random batches, the same for the same step."""

    device = CPU

    class order:
        @staticmethod
        def epoch(step):
            return 0

    def batch(self, step):
        return Batch(torch.randn(8, 4, generator=torch.Generator().manual_seed(step)), torch.arange(8))


def training(poison=(), **settings):
    torch.manual_seed(0)
    objective = Shrink(Normalised(), None)
    objective.poison = frozenset(poison)
    chosen = TrainSettings(batch_size=8, **settings)
    optimizer = optim.build_optimizer(objective.parameters(), chosen)
    return Training(objective, Stepper(objective, CPU, "32"), optimizer, Endless(), chosen, steps=100, seed=0)


def weights(job):
    return [value.clone() for value in job.objective.state_dict().values()]


@pytest.mark.parametrize(
    ("optimizer", "on_cpu"), [("adamw", True), ("sgd", True), ("lars", True), ("adamw", False), ("sgd", False)]
)
def test_a_gradient_that_is_not_a_number_changes_nothing(optimizer, on_cpu):
    job = training(poison=[1], optimizer=optimizer)
    job._on_cpu = on_cpu  # a fused optimiser of the CPU skips as one of a GPU does
    job.step(0, job.loader.batch(0))
    before = weights(job)
    loss, *_ = job.step(1, job.loader.batch(1))
    assert not torch.isfinite(loss)
    counted = [a for a, b in zip(before, weights(job), strict=True) if a.is_floating_point() and not torch.equal(a, b)]
    assert not counted
    job.step(2, job.loader.batch(2))
    assert any(not torch.equal(a, b) for a, b in zip(before, weights(job), strict=True))
    assert all(torch.isfinite(value).all() for value in weights(job))


@pytest.mark.parametrize("decay", [0.0, 1e-6])
def test_lars_adapts_matrices_whatever_their_decay(decay):
    matrix = nn.Parameter(torch.ones(2, 2))
    chosen = TrainSettings(batch_size=256, optimizer="lars", learning_rate=1.0, momentum=0.0, weight_decay=decay)
    optimizer = optim.build_optimizer([matrix], chosen)
    matrix.grad = torch.full((2, 2), 100.0)
    optimizer.step()
    assert float((1 - matrix.detach()).max()) == pytest.approx(0.02, rel=1e-3), "η times the norm of the weights"


def test_training_is_given_up_when_no_gradient_is_finite():
    job = training(poison=range(1000))
    for step in range(GIVE_UP - 1):
        job.step(step, job.loader.batch(step))
    with pytest.raises(LabelfreeError, match="not finite"):
        job.step(GIVE_UP, job.loader.batch(GIVE_UP))


def test_a_gpu_which_skips_by_itself_is_asked_now_and_then_whether_to_give_up():
    job = training(poison=range(1000))
    job._on_cpu = False  # a fused optimiser of the CPU knows `found_inf` too
    for step in range(GIVE_UP):
        job.step(step, job.loader.batch(step))
    with pytest.raises(LabelfreeError, match="not finite"):
        job.check_gradients()
    job.objective.poison = frozenset()
    job.step(0, job.loader.batch(0))
    job.check_gradients()


def test_a_first_step_that_a_gpu_skips_leaves_momentum_at_zero(monkeypatch):
    job = training(poison={0}, optimizer="sgd")
    job._on_cpu = False
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)  # what nobody has written is then not a number
    try:
        for step in range(2):
            job.step(step, job.loader.batch(step))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.isfinite(value).all() for value in weights(job))


def test_clipping_bounds_the_gradient():
    job = training(optimizer="sgd", learning_rate=1.0, clip=1e-3, weight_decay=0, momentum=0, warmup=0)
    before = [p.detach().clone() for p in job.objective.parameters()]
    job.step(0, job.loader.batch(0))
    moved = [(p.detach() - old).flatten() for p, old in zip(job.objective.parameters(), before, strict=True)]
    assert torch.cat(moved).norm() == pytest.approx(1e-3 * 8 / 256, rel=1e-3)


def test_a_frozen_network_is_named():
    job = training()
    elsewhere = nn.Parameter(torch.zeros(2, 2))
    job.optimizer = optim.build_optimizer([elsewhere], job.settings)
    with pytest.raises(LabelfreeError, match="depends on no weight"):
        job.step(0, job.loader.batch(0))


def test_the_schedule_warms_up_and_ends_near_zero():
    rates = [optim.cosine(step, 100, 10) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 1e-3


def test_vectors_are_not_decayed():
    job = training(weight_decay=0.5)
    decay = {id(p): group["weight_decay"] for group in job.optimizer.param_groups for p in group["params"]}
    encoder = job.objective.encoder
    assert decay[id(encoder.layer.weight)] == 0.5
    assert {decay[id(p)] for p in (encoder.layer.bias, encoder.norm.weight, encoder.norm.bias)} == {0.0}


def test_health_tells_even_features_from_collapsed_ones():
    even = feature_health(torch.randn(256, 32, generator=torch.Generator().manual_seed(0)))
    point = feature_health(
        torch.ones(256, 32) + 1e-7 * torch.randn(256, 32, generator=torch.Generator().manual_seed(0))
    )
    line = feature_health(torch.randn(256, 1, generator=torch.Generator().manual_seed(0)) * torch.ones(256, 32))
    assert even["feature_std"] == pytest.approx(1, abs=0.05)
    assert even["effective_rank"] > 25
    assert point["feature_std"] < 1e-3
    assert line["effective_rank"] < 1.5


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (1, 8)])
def test_the_effective_rank_is_that_of_the_singular_values(shape):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(shape, generator=generator, dtype=torch.float64) * torch.logspace(0, -9, shape[1])
    values = torch.linalg.svdvals(features - features.mean(dim=0))
    share = values / values.sum().clamp_min(1e-12)
    expected = (-torch.xlogy(share, share).sum()).exp() * (shape[0] > 1)
    assert float(feature_health(features.float())["effective_rank"]) == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 3e38])
def test_health_of_features_that_are_not_finite_is_nan(bad):
    features = torch.ones(4, 3)
    features[1:, 0] = bad
    assert all(value.isnan() for value in feature_health(features).values())


@pytest.mark.parametrize(
    ("lines", "word"),
    [
        ([{"loss": 1.0, "feature_std": 0.001, "effective_rank": 1.0}] * 4, "collapsed"),
        (
            [
                {"loss": 1.0, "feature_std": 1.0, "effective_rank": 9.0},
                *[{"loss": 99.0, "feature_std": 1.0, "effective_rank": 9.0}] * 4,
            ],
            "diverges",
        ),
        ([{"loss": math.nan, "feature_std": 1.0, "effective_rank": 9.0}] * 4, "diverges"),
        ([{"loss": 1.0, "feature_std": 1.0, "effective_rank": 9.0}] * 9, None),
    ],
)
def test_collapse_and_divergence_are_named_once(lines, word):
    watch = Watch(64)
    said = [words for line in lines for words in watch.read(line)]
    assert len(said) == (word is not None)
    assert word is None or word in said[0]


def test_two_samples_lie_on_a_line_and_have_not_collapsed():
    features = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    line = {"loss": 1.0, **{key: float(value) for key, value in feature_health(features).items()}}
    assert line["effective_rank"] < 1.5
    few, many = Watch(2), Watch(64)
    assert [few.read(line) for _ in range(4)] == [[]] * 4
    assert sum(len(many.read(line)) for _ in range(4)) == 1


def test_labels_that_do_not_differ_are_named_after_a_while():
    line = {"loss": 1.0, "feature_std": 1.0, "effective_rank": 9.0, "labels": 1.0}
    watch = Watch(64, {"labels": (1.01, "all samples get the same labels"), "spread": (0.1, "never seen")})
    assert [watch.read(line, progress) for progress in (0.01, 0.1, 0.2)] == [[], [], []]
    assert ["all samples get the same labels (labels 1)" in words for words in watch.read(line, 0.3)] == [True]
    assert watch.read(line, 0.4) == []


def test_weight_decay_moves_along_a_cosine_to_its_end():
    job = training(weight_decay=0.04, weight_decay_end=0.4)
    seen = []
    for step in (0, 50, 99):
        job.step(step, job.loader.batch(step))
        seen.append([group["weight_decay"] for group in job.optimizer.param_groups])
    assert [decay for decay, _ in seen] == pytest.approx([0.04, 0.22, 0.4], abs=1e-3)
    assert {decay for _, decay in seen} == {0.0}


def test_a_skipped_step_moves_no_queue():
    job = training(poison={1})
    moves = []
    job.objective.after_step = moves.append
    for step in range(3):
        job.step(step, job.loader.batch(step))
    assert moves == pytest.approx([0.01, 0.03])


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [("constant", [0.05, 1.0, 1.0, 1.0]), ("linear", [0.05, 1.0, 0.5, 0.0125]), ("cosine", [0.05, 1.0, 0.5, 0.0004])],
)
def test_the_rate_warms_up_and_falls_as_the_schedule_says(schedule, rates):
    settings = TrainSettings(schedule=schedule, warmup=0.2)
    found = [optim.rate_factor(settings, step, 100) for step in (0, 20, 60, 99)]
    assert found == pytest.approx(rates, abs=1e-4)


def test_a_worker_that_falls_to_the_signal_which_asks_to_stop_is_no_failure():
    def steps():
        yield 0, None
        raise WorkerDied("A process that reads the source was killed by SIGTERM.")

    request = StopRequest()
    with pytest.raises(WorkerDied):
        list(_until_stopped(steps(), request))
    request(signal.SIGTERM, None)
    assert list(_until_stopped(steps(), request)) == [(0, None)]


def test_a_handler_that_is_not_pythons_stays(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    get = signal.getsignal
    monkeypatch.setattr(signal, "getsignal", lambda number: None if number == signal.SIGINT else get(number))
    ours = get(signal.SIGINT)
    with stop_on_signals() as request:
        assert get(signal.SIGINT) is ours
        signal.raise_signal(signal.SIGTERM)
    assert request.name == "SIGTERM"
    assert get(signal.SIGTERM) is before


def test_signals_are_heard_until_the_end():
    heard = []
    before = signal.getsignal(signal.SIGTERM)
    with heard_by(lambda number, frame: heard.append(number)):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert heard == [signal.SIGTERM, signal.SIGINT]
    assert signal.getsignal(signal.SIGTERM) is before
