"""SimCLR: two views of a sample find each other among all others."""

from __future__ import annotations

from pydantic import PositiveFloat
from torch import nn

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw
from labelfree.encoders.base import Encoder
from labelfree.losses.contrastive import nt_xent
from labelfree.losses.regression import alignment
from labelfree.modalities.base import Modality
from labelfree.needs import Need
from labelfree.objectives._heads import mlp
from labelfree.objectives._temperature import Temperature, TemperatureSettings
from labelfree.objectives._views import ViewSettings, halves, two_views
from labelfree.objectives.base import Objective, Recipe, Step
from labelfree.settings import Widths


class SimCLRSettings(TemperatureSettings, ViewSettings):
    """Settings of SimCLR."""

    temperature: PositiveFloat = 0.2
    """divides the cosine similarities, at the start; small values weigh the hardest negatives most"""
    projector: Widths = (2048, 256)
    """widths of the projection head's layers"""
    head_tanh: bool = False
    """end the projection head with a tanh (SimCSE)"""
    decoupled: bool = False
    """leave the positive out of the denominator, so that small batches learn faster (DCL)"""


class SimCLR(Objective):
    """Contrastive learning of two views (Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual
    Representations", §2): augment twice, encode, project, and compare all with all (NT-Xent).
    """

    name = "simclr"
    settings_class = SimCLRSettings
    needs = frozenset({Need.VIEWS})
    defaults = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 1e-4, "warmup": 0.03}
    recipes = {
        "simcse": Recipe(
            source="Gao et al. 2021, SimCSE, §3: dropout is the only augmentation, here of channels for a whole "
            "sentence, and not of attention; the head, one layer and a tanh, is for training only, on the mean of the "
            "tokens (a class token there). Negatives are NT-Xent's, so that they include the other sentences' same "
            "view; the rate is for networks that start anew (3e-5 for a pretrained one there)",
            settings={"views": "none", "temperature": 0.05, "projector": (256,), "head_tanh": True},
            training={"learning_rate": 3e-4, "batch_size": 64},
            modalities=("text",),
        ),
        "micle": Recipe(
            source="Azizi et al. 2021, Big Self-Supervised Models Advance Medical Image Classification, §3.2: two "
            "samples of one case, each augmented, are positives; `case` names the column that says whose one is",
            settings={"case": "case"},
        ),
        "dcl": Recipe(
            source="Yeh et al. 2022, Decoupled Contrastive Learning, §3.2, eq. 6: SimCLR without the positive in the "
            "denominator, which makes small batches do; temperature as lightly has it",
            settings={"decoupled": True, "temperature": 0.1},
        ),
        "grace": Recipe(
            source="Zhu et al. 2020, GRACE, §3.2: edges are dropped and features blanked in both views, nodes are told "
            "apart; settings near those for Cora (edges .2/.4, features .3/.4, temperature .4; layers of 128, 5e-4), "
            "alike for both views",
            settings={"temperature": 0.4, "projector": (128, 128)},
            training={"learning_rate": 1e-3, "weight_decay": 1e-5, "batch_size": 256},
            options={"edge_drop": 0.3, "feature_mask": 0.3},
            modalities=("graph",),
            encoder="pyg:gcn",
        ),
        "graphcl": Recipe(
            source="You et al. 2020, GraphCL, §3: a view has a fifth of its nodes dropped, or of its edges (there as "
            "many are added), or of its nodes blanked, or is what a random walk visits; as in its loss (eq. 3) the "
            "positive is not in the denominator. Negatives are NT-Xent's, so that they include the other graphs' same "
            "view, and both views ask",
            settings={"temperature": 0.2, "projector": (128, 128), "decoupled": True},
            training={"learning_rate": 1e-3, "weight_decay": 1e-5, "batch_size": 64},
            options={"changes": "one", "node_drop": 0.2, "edge_drop": 0.2, "node_mask": 0.2, "feature_mask": 0.0}
            | {"walk_steps": 20},
            modalities=("graph",),
            encoder="pyg:gin",
        ),
        "cldg": Recipe(
            source="Xu et al. 2023, CLDG, §4: the neighbourhoods of nodes in two spans of time are positives; here "
            "those of both ends of an event, in spans of a quarter of it or more, which may overlap",
            settings={"temperature": 0.2, "projector": (256, 128)},
            options={"span": 0.25},
            modalities=("events",),
        ),
        "scarf": Recipe(
            source="Bahri et al. 2022, SCARF, §3, §4: a row and a copy with 60 % of its columns drawn from their "
            "marginals; 4-layer encoder, 2-layer head, temperature 1, Adam 1e-3, batch 128 (512 here for large "
            "tables). Negatives are NT-Xent's, so that they include the other rows' same view, and copies ask for rows "
            "too; there only rows ask, among the copies",
            settings={"views": "one", "temperature": 1.0, "projector": (256, 256)},
            training={"learning_rate": 1e-3},
            options={"corrupt": 0.6},
            modalities=("table",),
            encoder="mlp",
        ),
        "cola": Recipe(
            source="Saeed et al. 2021, COLA, §2: two stretches of one recording find each other; nothing but the crop "
            "changes. There with a bilinear similarity, here with the cosine",
            options={"speed": 1.0, "bands": 1.0, "mixup": 0.0, "gain": 0.0, "crop": 0.96},
            training={"learning_rate": 1e-3},
            modalities=("audio",),
        ),
        "simclr-resnet": Recipe(
            source="Chen et al. 2020, §2, with the settings of solo-learn (da Costa et al. 2022) for small pictures; "
            "there 90.7 % linear on CIFAR-10 after 1000 epochs",
            settings={"temperature": 0.2, "projector": (2048, 256)},
            training={"optimizer": "lars", "learning_rate": 0.4, "weight_decay": 1e-4, "warmup": 0.01},
            options={"augment": "S"},
            modalities=("image",),
            encoder="timm:resnet18",
        ),
    }

    def __init__(self, encoder: Encoder, modality: Modality, settings: SimCLRSettings | None = None) -> None:
        super().__init__(encoder, modality, settings)
        self.projector = mlp(encoder.dim, *self.settings.projector, norm=False)
        if self.settings.head_tanh:
            self.projector.append(nn.Tanh())
        self.temperature = Temperature(self.settings)

    def loss(self, batch: Batch, draw: Draw) -> Step:
        h = self.encoder(two_views(self.modality, batch, draw, self.settings)).pooled
        a, b = halves(self.projector(h))
        # others of the same case are positives too
        group = batch.group if self.case else None
        loss = nt_xent(a, b, self.temperature.now, group, self.settings.decoupled)
        first, second = halves(h.detach())
        return Step(loss, first, {"alignment": alignment(first, second)})

    def after_step(self, progress: float) -> None:
        self.temperature.move(progress)
