"""The two terms of wav2vec 2.0 against slow references."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from labelfree.losses.quantised import among_hidden, unused_codes


def test_each_hidden_token_is_told_from_the_chosen_others() -> None:
    torch.manual_seed(0)
    context, codes = torch.randn(3, 7, 5), torch.randn(3, 7, 5)
    codes[1, 4] = codes[1, 2]  # the same code: no distractor of one another
    hidden = torch.arange(7) < torch.tensor([7, 6, 1])[:, None]
    chosen = torch.rand(3, 7) < 0.6
    losses, right = among_hidden(context, codes, hidden, chosen, 0.1)
    for b in range(3):
        for k in range(7):
            scores = [F.cosine_similarity(context[b, k], codes[b, j], dim=0) / 0.1 for j in range(7)]
            others = [
                scores[j]
                for j in range(7)
                if j != k and chosen[b, j] and hidden[b, j] and not torch.equal(codes[b, j], codes[b, k])
            ]
            expected = torch.logsumexp(torch.stack([scores[k], *others]), dim=0) - scores[k]
            torch.testing.assert_close(losses[b, k], expected, atol=1e-4, rtol=1e-4)
            assert bool(right[b, k]) == all(scores[k] >= other for other in others)
    assert losses[2, 0].abs() < 1e-4, "alone, there is nothing to tell apart"


def test_unused_codes_are_counted_over_the_tokens_that_are_hidden() -> None:
    hidden = torch.tensor([[True, True, True, True, False]])
    one = torch.full((1, 5, 2, 4), -40.0)
    one[..., 0] = 40.0
    assert abs(float(unused_codes(one, hidden)) - 0.75) < 1e-4
    each = torch.full((1, 5, 2, 4), -40.0)
    for token in range(4):
        each[:, token, :, token] = 40.0
    assert abs(float(unused_codes(each, hidden))) < 1e-4
    torch.manual_seed(0)
    logits = torch.randn(1, 5, 2, 4)
    mean = logits[0, :4].softmax(dim=2).mean(dim=0)
    entropy = [-sum(float(p) * math.log(float(p)) for p in row) for row in mean]
    expected = 1 - sum(math.exp(h) for h in entropy) / 8
    assert abs(float(unused_codes(logits, hidden)) - expected) < 1e-4
