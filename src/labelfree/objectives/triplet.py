"""Triplets: a sample is like a part of itself and unlike parts of others."""

from __future__ import annotations

from pydantic import PositiveInt

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw
from labelfree.distributed import gather, places, world_size
from labelfree.encoders.base import Encoder
from labelfree.losses.contrastive import logistic_triplets
from labelfree.losses.regression import alignment
from labelfree.modalities.base import Modality
from labelfree.needs import Need
from labelfree.objectives._heads import mlp
from labelfree.objectives._views import ViewSettings, halves, two_views, whose
from labelfree.objectives.base import Objective, Recipe, Step
from labelfree.settings import Widths


class TripletSettings(ViewSettings):
    """Settings of the triplet loss."""

    projector: Widths = (160,)
    """widths of the projection head's layers"""
    triplet_negatives: PositiveInt = 10
    """other samples of the batch that each is compared with, drawn anew each step"""


class Triplet(Objective):
    """Logistic triplets (Franceschi et al. 2019, "Unsupervised Scalable Representation Learning for Multivariate Time
    Series", §3, algorithm 1); the length of the projections is learnt as well, so that few negatives do.
    """

    name = "triplet"
    settings_class = TripletSettings
    needs = frozenset({Need.VIEWS})
    defaults = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 1e-4, "warmup": 0.03}
    recipes = {
        "t-loss": Recipe(
            source="Franceschi et al. 2019, §3, §4: dilated convolutions, 10 negatives, batches of 10, Adam 1e-3. Here "
            "anchors are whole series, parts are stretched to their length, negatives are of the same batch, the "
            "network is TS2Vec's, and the 320 numbers are a head's, for training only. There both are cut at random, "
            "negatives are of the whole training set, the network is causal and 40 wide, and the 320 numbers are what "
            "is kept, with .806 mean accuracy on the UCR sets",
            settings={"views": "one", "projector": (320,), "triplet_negatives": 10},
            training={"learning_rate": 1e-3, "weight_decay": 0.0, "batch_size": 10},
            options={"jitter": 0.0, "scaling": 0.0, "masking": 0.0, "crop": 0.2},
            modalities=("series",),
            encoder="dilated",
        ),
    }

    def __init__(self, encoder: Encoder, modality: Modality, settings: TripletSettings | None = None) -> None:
        super().__init__(encoder, modality, settings)
        self.projector = mlp(encoder.dim, *self.settings.projector, norm=False)

    def loss(self, batch: Batch, draw: Draw) -> Step:
        h = self.encoder(two_views(self.modality, batch, draw, self.settings)).pooled
        part, anchor = halves(self.projector(h).float())
        others = gather(part)
        # One of the others: so many places on from one's own, round the global batch.
        count = len(part) * world_size()
        step = 1 + draw.integers("negatives", max(1, count - 1), self.settings.triplet_negatives)
        chosen, own = (places(part)[:, None] + step) % count, whose(batch, self.case)
        loss = logistic_triplets(anchor, part, others[chosen], gather(own)[chosen] != own[:, None])
        first, second = halves(h.detach())
        return Step(loss, first, {"alignment": alignment(first, second)})
