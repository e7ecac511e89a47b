"""What wav2vec 2.0 learns by: recognising a hidden token's code among others of its sample, and using all codes.

Legend: B samples of this process, K hidden tokens a sample, D width, G codebooks, V codes of each.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from labelfree.distributed import all_sum
from labelfree.losses.precision import full_precision


@full_precision
def among_hidden(
    context: Tensor, codes: Tensor, hidden: Tensor, chosen: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Contrast of each hidden token with others of the same sample (Baevski et al. 2020, §3.2, eq. 3).

    Args:
        context: (B, K, D) what the encoder made of hidden tokens.
        codes: (B, K, D) their quantised vectors.
        hidden: (B, K) bool, false where a row is filled up.
        chosen: (B, K) bool, tokens that are distractors.
        temperature: divides the cosine similarities.

    Returns:
        (B, K) loss of each token, 0 where it has no distractor; (B, K) bool, whether the right one was nearest.
        Distractors whose code is the token's own do not count: there is nothing to tell apart.
    """
    codes = F.normalize(codes, dim=2)
    similarity = F.normalize(context, dim=2) @ codes.transpose(1, 2) / temperature
    same = (codes.detach() @ codes.detach().transpose(1, 2)) > 1 - 1e-5
    right = torch.eye(codes.shape[1], dtype=torch.bool, device=codes.device)
    allowed = right | ((chosen & hidden)[:, None] & ~same)
    logits = similarity.masked_fill(~allowed, -torch.inf)
    match = similarity.diagonal(dim1=1, dim2=2)
    losses = torch.logsumexp(logits, dim=2) - match
    return losses, match >= logits.amax(dim=2)


@full_precision
def unused_codes(logits: Tensor, hidden: Tensor) -> Tensor:
    """Share of the codes that go unused, from 0 to 1: (G·V − Σ perplexity) / (G·V), as the published training has it
    for eq. 4 of Baevski et al. 2020, §3.2.

    Args:
        logits: (B, K, G, V) of each hidden token's choice, without noise.
        hidden: (B, K) bool, the tokens that count, over all processes.
    """
    weight = hidden[..., None, None].to(logits.dtype)
    total = all_sum((logits.softmax(dim=3) * weight).sum(dim=(0, 1)))
    mean = total / all_sum(hidden.sum()).clamp_min(1)
    perplexity = (-(mean * (mean + 1e-7).log()).sum(dim=1)).exp()
    return 1 - perplexity.sum() / mean.numel()
