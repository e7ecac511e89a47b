"""A plan made ready to run: the source opened and near, the network built, the first steps tried."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from labelfree import registry, runtime
from labelfree.data import cache
from labelfree.data.batch import Sample, Unreadable
from labelfree.data.cache import Cached
from labelfree.data.dataset import Dataset
from labelfree.data.loader import Loader
from labelfree.data.partners import Partners
from labelfree.data.sampler import Order
from labelfree.encoders.base import Encoder
from labelfree.encoders.custom import Custom
from labelfree.errors import LabelfreeError, Refusal
from labelfree.modalities.base import Choice, Modality
from labelfree.needs import Need
from labelfree.objectives.base import Objective
from labelfree.training import optim, processes
from labelfree.training.logs import say, volume
from labelfree.training.loop import Stepper, Training
from labelfree.training.plan import Plan, resolve_machine
from labelfree.training.settings import TrainSettings

#: Samples of a stream that must have been read before it is said that too many are unreadable.
ENOUGH = 1000


@dataclass
class Job:
    """A plan with its live parts.

    Attributes:
        dataset: what training draws from: the source's training set, cached where that was chosen.
        quarantine: samples found unreadable, by number and name: a stream meets each of them once a pass.
        given: whether the first weights come from elsewhere than the plan and its seed, and must be kept.
        opened: fingerprint of the source as it was opened, whole texts or recordings; of new runs.
        read: samples that were streamed so far.
        met: those of the quarantine that were met while streaming.
    """

    plan: Plan
    modality: Modality
    dataset: Dataset
    objective: Objective
    quarantine: dict[tuple[int, str], Unreadable] = field(default_factory=dict)
    given: bool = False
    opened: str = ""
    read: int = 0
    met: dict[tuple[int, str], Unreadable] = field(default_factory=dict)

    def loader(self, device: torch.device, part: int = 0, parts: int = 1) -> Loader:
        settings = self.plan.training
        order = Order(
            count=len(self.dataset),
            batch_size=settings.batch_size,
            seed=self.plan.seed,
            shards=(0,) if isinstance(self.dataset, Cached) else self.dataset.shards,
            window=0 if settings.shuffle_window == "auto" else settings.shuffle_window,
            shuffle=self.modality.shuffled,
            sizes=self.dataset.sizes(),
        )
        workers = 0 if settings.workers == "auto" else settings.workers
        others = processes.beside(settings.devices)
        return Loader(
            self.dataset, self.modality, order, device, workers, part, parts, self._set_aside, self._partners(), others
        )

    def _set_aside(self, bad: list[Unreadable], read: int) -> None:
        """Take in which of `read` streamed samples turned out unreadable. Raises LabelfreeError where they are many."""
        self.read += read
        found = by_name(bad)
        self.met |= found
        self.quarantine |= found
        known = min(self.read, len(self.dataset))
        if bad and known >= min(ENOUGH, len(self.dataset)):
            share = len(self.met) / known
            _refuse_many(self.met.values(), share, self.plan.training, "of what was read so far")

    def _partners(self) -> Partners | None:
        """Whose samples belong together, where the objective asks for it. Raises Refusal where the source is silent."""
        case = self.objective.case
        if not case:
            return None
        try:
            return Partners(self.dataset.column(case), self.plan.seed)
        except Refusal as error:
            remedy = error.remedy or "Name the column that says whose a sample is: case=COLUMN."
            raise Refusal(error.problem, remedy) from None


def by_name(bad: Iterable[Unreadable]) -> dict[tuple[int, str], Unreadable]:
    """Unreadable samples by number and name: files that were left out before samples were numbered have numbers too."""
    return {(int(item.index), item.name): item for item in bad}


def near(dataset: Dataset, modality: Modality, plan: Plan) -> tuple[Dataset, Plan]:
    """The dataset where the plan's `cache` wants it; "auto" is resolved from measured size.

    Raises:
        LabelfreeError: too few samples, or too many unreadable.
    """
    settings, choices = plan.training, list(plan.choices)
    size = cache.sample_bytes(dataset)
    total, where = size * len(dataset), settings.cache
    accelerator = runtime.device(settings.accelerator).type != "cpu"
    if where == "auto":
        fits = total <= cache.memory_for_cache(accelerator, processes.beside(settings.devices))
        on_device = accelerator and total <= 0.2 * torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else False
        where = ("device" if on_device else "memory") if fits else "none"
        reason = f"{volume(total)} decoded, {'which fits' if fits else 'too much to hold: streamed'}"
        choices.append(Choice("cache", where, reason).record())
    window = settings.shuffle_window
    if window == "auto":
        window = int(cache.WINDOW_BYTES / size)
        window = max(4 * settings.batch_size, min(window, dataset.reach or window)) if where == "none" else 0
    if where != "none" and not isinstance(dataset, Cached):
        dataset = Cached(dataset, modality)
    changed = settings.model_copy(update={"cache": where, "shuffle_window": window})
    return dataset, plan.model_copy(update={"training": changed, "choices": choices})


def check_readable(dataset: Dataset, settings: TrainSettings) -> list[Unreadable]:
    """What a training set left out as unreadable, or LabelfreeError where it is too much."""
    bad, lost = list(dataset.unreadable), dataset.lost if isinstance(dataset, Cached) else 0
    # of files or films, and of the samples that are cut from the others
    left = (len(bad) - lost) / max(1, dataset.source_count())
    share = left + (1 - left) * lost / max(1, len(dataset) + lost)
    _refuse_many(bad, share, settings, "of the source")
    if bad:
        say(f"{len(bad):,} unreadable, {share:.1%} of the source: left out, and listed in quarantine.jsonl.", "yellow")
    return bad


def _refuse_many(bad: Collection[Unreadable], share: float, settings: TrainSettings, of: str) -> None:
    """Raises LabelfreeError where a larger share is unreadable than the settings allow."""
    if share > settings.max_unreadable:
        examples = "; ".join(f"'{item.name}': {item.reason}" for item in islice(bad, 3))
        raise LabelfreeError(
            f"{share:.1%} {of} cannot be read, more than max_unreadable={settings.max_unreadable} allows: {examples}.",
            "Repair them, or raise max_unreadable in a new run.",
        )


def fit_batch(plan: Plan, count: int, world: int) -> Plan:
    """Cut the batch to the number of samples and to a multiple of the processes, saying so.

    Raises:
        LabelfreeError: fewer than two samples.
    """
    if count < 2:
        raise LabelfreeError(
            f"The source has {count} sample(s): at least two are needed to learn anything.", "Add data."
        )
    wanted = plan.training.batch_size
    size = min(wanted, count) // world * world
    if size == 0:
        raise LabelfreeError(f"{count} samples cannot be shared by {world} processes.", "Lower devices.")
    if size == 1 and Need.VIEWS in plan.objective_class().needs:
        raise LabelfreeError(
            f"'{plan.method}' learns from what tells samples apart, and batches are of one.",
            "Set batch_size=2 or more.",
        )
    choices = list(plan.choices)
    if size != wanted:
        choices.append(Choice("batch_size", size, f"{count} samples, {world} process(es)").record())
    training = plan.training.model_copy(update={"batch_size": size})
    return plan.model_copy(update={"training": training, "choices": choices, "count": count})


def build_encoder(plan: Plan, modality: Modality, dataset: Dataset, network: nn.Module | None) -> Encoder:
    """The encoder, initialised from the plan's seed; a network of the user's is as it comes."""
    torch.manual_seed(plan.seed)
    if network is None:
        return registry.build_encoder(plan.encoder, modality, plan.causal)
    first = [item for item in dataset.read(range(min(4, len(dataset)))) if isinstance(item, Sample)]
    return Custom.wrap(network, modality, modality.prepare(modality.collate(first)))


def build_objective(plan: Plan, modality: Modality, dataset: Dataset, encoder: Encoder) -> Objective:
    """The objective around an encoder that was built just before, so that its weights follow from the seed too."""
    cls = plan.objective_class()
    registry.check_fit(cls, modality, encoder, plan.method)
    objective = cls(encoder, modality, cls.settings_class.read(plan.objective_settings, cls.name))
    objective.expect(dataset.index_end())
    _check_memory(objective)
    _encode_in_chunks(objective, plan.training)
    return objective


def _check_memory(objective: Objective) -> None:
    """Raises Refusal where an encoder that remembers what it was given would be given a batch twice in a step."""
    crops = objective.settings.model_dump().get("local_crops", 0)
    if objective.encoder.remembers and (crops or len(objective.owners()) > 1):
        what = f"local_crops={crops} shows" if crops else "several methods show"
        raise Refusal(
            f"Encoder '{objective.encoder.name}' remembers each event once, and {what} it more than once a step.",
            "Set local_crops=0, or take another encoder." if crops else "Name one method, or another encoder.",
        )


def _encode_in_chunks(objective: Objective, settings: TrainSettings) -> None:
    """Let every encoder of the objective take `micro_batch` rows at a time. Raises Refusal where it cannot."""
    rows = settings.micro_batch
    if rows and objective.encoder.remembers:
        raise Refusal(f"Encoder '{objective.encoder.name}' sees all events in their order.", "Set micro_batch=0.")
    if rows and settings.strategy == "fsdp":
        raise Refusal("An encoder in shards cannot take a batch in parts.", "Set micro_batch=0 or strategy=ddp.")
    if rows and any(isinstance(module, _BatchNorm) for module in objective.encoder.modules()):
        say(f"Batch normalisation in the encoder is over {rows} rows at a time, not over the whole batch.", "yellow")
    for module in objective.modules():
        if isinstance(module, Encoder):
            module.micro_batch = rows


def assemble(plan: Plan, modality: Modality, dataset: Dataset, steps: int, world: int = 1) -> Job:
    """A plan for a source as a job of `steps` steps: what `pretrain` trains, without what it says, tries and writes."""
    modality.fit(dataset)
    nearby, plan = near(modality.training_set(dataset, plan.objective_class().needs), modality, plan)
    plan = resolve_machine(fit_batch(plan, len(nearby), world), plan.training.cache == "none", nearby)
    objective = build_objective(plan, modality, nearby, build_encoder(plan, modality, nearby, None))
    return Job(plan.model_copy(update={"steps": steps}), modality, nearby, objective)


def new_training(job: Job, device: torch.device, part: int = 0, parts: int = 1) -> Training:
    """The job's parts put together for one process, its objective on `device`, before any wrapping."""
    settings = job.plan.training
    objective = job.objective.to(device).train()
    optimizer = optim.build_optimizer(objective.parameters(), settings, settings.batch_size)
    module = Stepper(objective, device, settings.precision)
    return Training(
        objective, module, optimizer, job.loader(device, part, parts), settings, job.plan.steps, job.plan.seed
    )


def try_steps(job: Job, device: torch.device, world: int, allowance: float) -> float:
    """Seconds that one step takes: a warm-up step, then the median of a few (one at least) in `allowance` seconds.

    The objective is left as it was.
    """
    before = {name: value.clone() for name, value in job.objective.state_dict().items()}
    training = new_training(job, device, 0, world)
    training.steps = max(training.steps, 1000)
    times: list[float] = []
    began = time.perf_counter()
    for number, batch in enumerate(training.loader.steps(0, training.loader.order.steps_per_epoch * 50)):
        start = time.perf_counter()
        loss, *_ = training.step(number, batch)
        float(loss)
        times.append(time.perf_counter() - start)
        if number >= 1 and (number >= 10 or time.perf_counter() - began > allowance):
            break
    job.objective.load_state_dict(before)
    return sorted(times[1:] or times)[len(times[1:] or times) // 2]
