"""Pretext tasks: which transformation was applied?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw
from labelfree.encoders.base import Encoder
from labelfree.errors import Refusal, nearest
from labelfree.modalities.base import Modality
from labelfree.needs import Need
from labelfree.objectives.base import Objective, Recipe, Step
from labelfree.settings import Settings


class PretextSettings(Settings):
    """Settings of pretext tasks."""

    transformation: str = ""
    """name of the modality's set of transformations (rotation, jigsaw, order, next-sentence, ...); empty: its first"""
    every: bool = False
    """show each sample in all transformations at each step instead of one; steps take that many times longer"""


class Pretext(Objective):
    """Recognise which of a known set of transformations a sample underwent (Gidaris et al. 2018, "Unsupervised
    Representation Learning by Predicting Image Rotations", §2.1): a classifier on the pooled features.
    """

    name = "pretext"
    settings_class = PretextSettings
    needs = frozenset({Need.TRANSFORMATIONS})
    defaults = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 5e-4, "warmup": 0.03}
    recipes = {
        "rotation": Recipe(
            source="Gidaris et al. 2018, §2.1, §3.1: 0, 90, 180 or 270 degrees; every picture in all four at each step",
            settings={"transformation": "rotation", "every": True},
            modalities=("image",),
        ),
        "jigsaw": Recipe(
            source="Noroozi & Favaro 2016, §3: which permutation of the tiles; asked of one shuffled picture, as in "
            "Carlucci et al. 2019, JiGen, §3, not of tiles that are encoded one by one",
            settings={"transformation": "jigsaw"},
            modalities=("image",),
        ),
        "relative-position": Recipe(
            source="Doersch et al. 2015, Context Prediction, §3: where a second patch of a picture lies beside a first",
            settings={"transformation": "position"},
            modalities=("image",),
        ),
        "order": Recipe(
            source="Misra et al. 2016, Shuffle and Learn, §3, for the stretches of a series; not whether their order "
            "is right but which it is, as in Lee et al. 2017, OPN, §3",
            settings={"transformation": "order"},
            modalities=("series",),
        ),
        "frame-order": Recipe(
            source="Misra et al. 2016, Shuffle and Learn, §3; the orders of three stretches as in Xu et al. 2019, VCOP",
            settings={"transformation": "order"},
            modalities=("video",),
            encoder="transformer:nano",
        ),
        "speed": Recipe(
            source="Benaim et al. 2020, SpeedNet, §3: at its own speed or at twice that",
            settings={"transformation": "speed"},
            modalities=("video",),
            encoder="transformer:nano",
        ),
        "future-edge": Recipe(
            source="The link prediction that Rossi et al. 2020, TGN, §5, learn by, negatives being the targets of "
            "other events; pauses and features are replaced too, so that the answer says how usual an event is "
            "altogether",
            settings={"transformation": "future-edge"},
            modalities=("events",),
        ),
        "next-sentence": Recipe(
            source="Devlin et al. 2019, BERT, §3.1, task 2: does the second part follow the first? Half do",
            settings={"transformation": "next-sentence"},
            modalities=("text",),
        ),
    }

    def __init__(self, encoder: Encoder, modality: Modality, settings: PretextSettings | None = None) -> None:
        super().__init__(encoder, modality, settings)
        known = modality.transformations()
        name = self.settings.transformation or next(iter(known))
        if name not in known:
            raise Refusal(
                f"{modality.name} data has no transformation '{name}': it has {', '.join(known)}.", nearest(name, known)
            )
        self.transformation = known[name]
        if self.transformation.ordered and not encoder.sees_order:
            raise Refusal(
                f"Encoder '{encoder.name}' looks at the pictures of a {modality.name} sample one by one, so that it "
                f"cannot tell '{name}'.",
                "Use a transformer.",
            )
        # A fresh transformer's pooled features differ little beside what they share: normalised, they are heard.
        self.head = nn.Sequential(
            nn.BatchNorm1d(encoder.dim, affine=False), nn.Linear(encoder.dim, self.transformation.count)
        )

    def anomaly_score(self, batch: Batch) -> Tensor:
        """How unsure it is that a sample is untouched: −log p (Golan & El-Yaniv 2018, §4.2, of one transformation)."""
        untouched = torch.zeros(len(batch), dtype=torch.int64, device=batch.data.device)
        view = self.transformation.apply(batch, untouched, Draw.start(0, 0, 0, batch.index))
        return -F.log_softmax(self.head(self.encoder(view).pooled).float(), dim=1)[:, 0]

    def loss(self, batch: Batch, draw: Draw) -> Step:
        view, which = self._transformed(batch, draw)
        pooled = self.encoder(view).pooled
        logits = self.head(pooled).float()
        correct = (logits.argmax(dim=1) == which).float().mean()
        features = pooled[: len(batch)].detach()
        return Step(F.cross_entropy(logits, which), features, {"pretext_accuracy": correct.detach()})

    def _transformed(self, batch: Batch, draw: Draw) -> tuple[Batch, Tensor]:
        """Samples as the encoder sees them, and which transformation each underwent."""
        count, apply = self.transformation.count, self.transformation.apply
        if not self.settings.every:
            which = draw.integers("which", count)
            return apply(batch, which, draw), which
        # what a sample shows is then the same for all answers, and tells nothing
        each = [torch.full_like(batch.index, number) for number in range(count)]
        return Batch.cat([apply(batch, which, draw) for which in each]), torch.cat(each)
