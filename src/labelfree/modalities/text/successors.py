"""Which token follows which, counted in the texts and given to a network that is to predict it."""

from __future__ import annotations

import math

import numpy as np
import scipy.sparse as sp
import torch
from torch import nn

from labelfree.data.batch import Batch
from labelfree.encoders.trunk import Trunk

#: Ids that are looked at in all, about how many in each step, and the rate at the start, which falls to 0.
IDS, ROWS, RATE = 102_400, 256, 2e-2


def learn_successors(ids: np.ndarray, size: int, begin: int, trunk: Trunk, head: nn.Module) -> None:
    """Let a trunk whose blocks pass tokens on, and the head that predicts the next token, know the counts of pairs.

    What a token is followed by in all texts is one target of the token, so that a step over some hundred ids is worth
    as much as one over as many thousand places in texts: a log-bilinear model (Mnih & Hinton 2007, "Three New Graphical
    Models for Statistical Language Modelling", §4) of one word of context, by the cross-entropy of counts. The blocks
    stay as they are, to learn from there what more than the last token tells; so does the first half of every id's
    vector, which may know more of what a text is about than what follows what does.

    Args:
        ids: (N,) texts end to end.
        size: V, ids of the vocabulary.
        begin: the id that begins each window, after which any token may come.
        trunk: its stem embeds ids. Changed in place, as is
        head: (M, D) features → (M, V) logits.
    """
    wide = trunk.window or ROWS
    rows_a_step = wide * max(1, ROWS // wide)
    counts = _successors(ids, size, begin, wide)
    often = np.asarray(counts.sum(axis=1)).ravel()
    # frequent ids in more steps, each of which counts for less
    chance = np.sqrt(often) / np.sqrt(often).sum()
    weight = often / often.sum() / np.maximum(chance, 1e-12) / rows_a_step
    draw = np.random.default_rng(0)
    table = trunk.token_table()
    assert table is not None
    learnt = [table, *trunk.norm_in.parameters(), *trunk.norm.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(learnt, lr=RATE)
    steps = -(-IDS // rows_a_step)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 + math.cos(math.pi * step / steps)) / 2
        rows = draw.choice(size, rows_a_step, p=chance)
        target = torch.from_numpy(counts[rows].toarray() / often[rows, None]).float()
        logits = head(trunk.passed_on(_side_by_side(rows, wide)).flatten(0, 1))
        loss = -(logits.log_softmax(dim=1) * target).sum(dim=1) @ torch.from_numpy(weight[rows]).float()
        optimizer.zero_grad()
        loss.backward()
        assert table.grad is not None
        table.grad[:, : trunk.dim // 2] = 0
        optimizer.step()
    for parameter in learnt:
        parameter.grad = None


def _successors(ids: np.ndarray, size: int, begin: int, window: int) -> sp.csr_matrix:
    """(V, V) how often the second id follows the first; after the one that begins a window, each id in its turn."""
    earlier = np.concatenate([ids[:-1], np.full(len(ids) // window, begin)])
    later = np.concatenate([ids[1:], ids[: len(ids) // window * window : window]])
    return sp.coo_matrix((np.ones(len(earlier)), (earlier, later)), shape=(size, size)).tocsr()


def _side_by_side(rows: np.ndarray, wide: int) -> Batch:
    """Ids as samples of `wide` tokens, so that each may stand in any place."""
    return Batch(torch.from_numpy(rows).view(-1, wide), torch.arange(len(rows) // wide))
