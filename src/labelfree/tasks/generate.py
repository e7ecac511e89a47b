"""Text from a model that predicts the next token, and how well it predicts texts that it has not seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from labelfree import runtime
from labelfree.data.batch import Batch, Sample
from labelfree.errors import LabelfreeError, Refusal
from labelfree.needs import Need
from labelfree.settings import whole
from labelfree.tasks.embed import lent

if TYPE_CHECKING:
    from labelfree.modalities.base import Modality
    from labelfree.objectives.base import Objective
    from labelfree.run import Run


def generate(
    run: Run,
    prompt: str = "",
    tokens: int = 200,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
    accelerator: str = "auto",
) -> str:
    """The prompt, as the model reads it, and what it writes after it.

    Each token is drawn from the model's probabilities, sharpened by `temperature` and cut to their nucleus (Holtzman et
    al. 2020, §3.1); what lies farther back than the model was trained on is forgotten. It ends where a text would end.

    Args:
        run: of text or bytes, pretrained with `next`.
        prompt: how it begins.
        tokens: how many are written at most.
        temperature: below 1 for likelier words, above 1 for rarer ones; 0 for always the likeliest.
        top_p: only the likeliest tokens that together have this probability are drawn from.
        seed: same seed, same text, on the same device.
        accelerator: where to compute, as in pretraining: auto, cpu, cuda or mps.

    Raises:
        LabelfreeError: numbers out of range.
        Refusal: the run does not predict the next token, or is not of text.
    """
    _, modality = _maker_of_text(run)
    return modality.words_of(write_on(run, modality.ids_of(prompt), tokens, temperature, top_p, seed, accelerator))


@runtime.plain_torch()
@torch.no_grad()
def write_on(
    run: Run,
    ids: Sequence[int],
    tokens: int,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
    accelerator: str = "auto",
) -> list[int]:
    """`generate` in ids of the vocabulary: those given, and what the model writes after them."""
    where, tokens = runtime.checked_device(accelerator), whole("tokens", tokens, 1)
    if not temperature >= 0 or not 0 < top_p <= 1:
        raise LabelfreeError(
            f"temperature={temperature} and top_p={top_p} do not go together.",
            "temperature is 0 or more, top_p above 0 and at most 1.",
        )
    objective, modality = _maker_of_text(run)
    vocabulary, ids = modality.vocabulary, [*ids]
    never = torch.tensor([i for i in vocabulary.special if i != vocabulary.sep])
    generator = torch.Generator().manual_seed(seed)
    most = modality.settings.length - 2  # with the class token, as many as there were before a block's last one
    with lent(objective, where):
        for _ in range(tokens):
            context = Batch(torch.tensor([[vocabulary.cls, *ids[-most:]]]), torch.zeros(1, dtype=torch.int64))
            logits = objective.predict_next(context.to(where))[0, 0].cpu()
            chosen = draw_nucleus(logits.index_fill(0, never, -torch.inf), temperature, top_p, generator)
            if chosen == vocabulary.sep:
                break
            ids.append(chosen)
    return ids


def draw_nucleus(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """One id from (V,) logits: the likeliest ones that make up `top_p` of the probability, the last one included."""
    if temperature == 0:
        return int(logits.argmax())
    share, order = (logits / temperature).softmax(dim=0).sort(descending=True)
    share = share.masked_fill(share.cumsum(dim=0) - share >= top_p, 0.0)
    return int(order[torch.multinomial(share, 1, generator=generator)])


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts texts.

    Attributes:
        per_token: the exponential of the mean −log p of a token, ends of texts included.
        per_byte: the same of a byte, of the texts as the model reads them (lower case, runs of blanks as one): models
            with other vocabularies can be compared by it where they read the texts alike.
        tokens, bytes: how many there are.
    """

    per_token: float
    per_byte: float
    tokens: int
    bytes: int


@runtime.plain_torch()
@torch.no_grad()
def perplexity(run: Run, source: Any, batch_size: int = 64, accelerator: str = "auto") -> Perplexity:
    """Of a source of texts: cut into blocks as in pretraining, of which the model sees nothing before their start.

    Args:
        run: of text or bytes, pretrained with `next`.
        source: of texts, which the model has not learnt from.
        batch_size: blocks a forward pass.
        accelerator: where to compute, as in pretraining: auto, cpu, cuda or mps.

    Raises:
        LabelfreeError: numbers out of range.
        Refusal: the run does not predict the next token, or is not of text.
    """
    where, batch_size = runtime.checked_device(accelerator), whole("batch_size", batch_size, 1)
    objective, modality = _maker_of_text(run)
    dataset: Any = modality.training_set(modality.open(source), objective.needs)
    ids, length = dataset.ids, dataset.length
    loss = 0.0
    with lent(objective, where):
        for first in range(0, len(dataset), batch_size):
            read = dataset.read(range(first, min(first + batch_size, len(dataset))))
            samples = [sample for sample in read if isinstance(sample, Sample)]
            view = modality.prepare(modality.collate(samples).to(where))
            losses = modality.token_loss(objective.predict_each(view)[:, :-1], view.data[:, 1:])
            if first + batch_size >= len(dataset):  # the last block repeats the end of the one before
                losses[-1, : len(dataset) * length - len(ids)] = 0
            loss += float(losses.cpu().double().sum())
    count = modality.vocabulary.bytes_of(ids)
    return Perplexity(math.exp(loss / len(ids)), math.exp(loss / count), len(ids), count)


def _maker_of_text(run: Run) -> tuple[Objective, Modality]:
    if Need.IDS not in run.modality.offers:
        raise Refusal(f"Text can be written by runs on text or bytes, not on {run.modality.name}.", "See forecast.")
    return run.maker(), run.modality
