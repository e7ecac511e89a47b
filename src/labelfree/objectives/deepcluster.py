"""DeepCluster: after each pass over the samples they are clustered anew, and in the next the clusters are predicted."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw
from labelfree.distributed import weighted_mean
from labelfree.encoders.base import Encoder
from labelfree.errors import LabelfreeError
from labelfree.losses.clustering import spherical_kmeans
from labelfree.losses.distillation import sinkhorn
from labelfree.losses.regression import alignment
from labelfree.losses.rows import similarities
from labelfree.modalities.base import Modality
from labelfree.needs import Need
from labelfree.objectives._heads import mlp
from labelfree.objectives._memory import Bank, sized_by_state
from labelfree.objectives._temperature import Temperature, TemperatureSettings
from labelfree.objectives._views import CropSettings, halves, local_crops, two_views
from labelfree.objectives.base import Objective, Recipe, Step
from labelfree.settings import Widths


class DeepClusterSettings(TemperatureSettings, CropSettings):
    """Settings of DeepCluster."""

    projector: Widths = (2048, 128)
    """widths of the projection head's layers"""
    clusterings: Widths = (256, 256, 256)
    """numbers of clusters, one for each of several clusterings; each at most a quarter of the samples"""
    temperature: PositiveFloat = 0.1
    """divides the cosines of views and centroids, at the start"""
    iterations: PositiveInt = 10
    """iterations of k-means after each pass"""


class _Clustering(nn.Module):
    """Centroids (K, D) and every sample's label (N,), -1 where it has none yet."""

    centroids: Tensor
    labels: Tensor

    def __init__(self, clusters: int, samples: int, width: int) -> None:
        super().__init__()
        self.register_buffer("centroids", F.normalize(torch.randn(clusters, width), dim=1))
        self.register_buffer("labels", torch.full((samples,), -1))


class DeepCluster(Objective):
    """DeepCluster v2 (Caron et al. 2018; as in Caron et al. 2020, SwAV, appendix D): a memory holds the projections of
    the last pass, and a sample's labels are the clusters that its projection belongs to there; a sample that is not in
    the memory has none. In the first pass, which has no such labels, each view gets those of the other by
    Sinkhorn–Knopp.
    """

    passes: Tensor

    name = "deepcluster"
    settings_class = DeepClusterSettings
    needs = frozenset({Need.VIEWS})
    defaults = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 1e-5, "warmup": 0.03}
    recipes = {
        "deepcluster-resnet": Recipe(
            source="Caron et al. 2020, SwAV, appendix D, with the settings of solo-learn (da Costa et al. 2022) for "
            "small pictures; there 88.9 % linear on CIFAR-10 after 1000 epochs",
            settings={"clusterings": (3000, 3000, 3000)},
            training={"optimizer": "lars", "learning_rate": 0.6, "weight_decay": 1e-6, "warmup": 0.01},
            options={"augment": "S"},
            modalities=("image",),
            encoder="timm:resnet18",
        ),
    }

    def __init__(self, encoder: Encoder, modality: Modality, settings: DeepClusterSettings | None = None) -> None:
        super().__init__(encoder, modality, settings)
        self.projector = mlp(encoder.dim, *self.settings.projector)
        self.temperature = Temperature(self.settings)
        self.bank: Bank | None = None
        self.register_load_state_dict_pre_hook(sized_by_state)
        self.clusterings = nn.ModuleList()
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        self._clustered = False
        # a step may not ask the device; what is loaded may be asked
        self.register_load_state_dict_post_hook(lambda module, _: module._recall())
        self._seen: tuple[Tensor, Tensor] | None = None
        self._draw: Draw | None = None

    def expect(self, samples: int) -> None:
        width = self.settings.projector[-1]
        self.bank = Bank(samples, 2 * width)
        self.clusterings.extend(
            _Clustering(max(2, min(clusters, samples // 4)), samples, width) for clusters in self.settings.clusterings
        )

    def loss(self, batch: Batch, draw: Draw) -> Step:
        own = self.settings
        if self.bank is None:
            raise LabelfreeError("The memory has no size yet.", "Call expect(samples) before the first step.")
        h = self.encoder(two_views(self.modality, batch, draw, own)).pooled
        small = local_crops(self.modality, batch, draw, own.local_crops)
        every = h if small is None else torch.cat([h, self.encoder(small).pooled])
        z = F.normalize(self.projector(every).float(), dim=1).unflatten(0, (2 + own.local_crops, -1))  # (V, B, D)
        loss = torch.stack([self._predicted(z, clustering, batch.index) for clustering in self._all]).mean()
        self._seen, self._draw = (torch.cat([z[0], z[1]], dim=1).detach(), batch.index), draw
        first, second = halves(h.detach())
        return Step(loss, first, {"alignment": alignment(first, second)})

    @property
    def _all(self) -> list[_Clustering]:
        return list(self.clusterings)  # type: ignore[arg-type]

    def _predicted(self, z: Tensor, clustering: _Clustering, index: Tensor) -> Tensor:
        """Mean cross-entropy of every view's clusters with the label of its sample."""
        cosines = similarities(z, clustering.centroids)
        label = clustering.labels[index]
        if not self._clustered:
            even = [sinkhorn(view, 0.05).argmax(dim=1) for view in cosines[:2].detach()]
            # the first view's label is the second's cluster; all others' is the first's
            label = torch.stack([even[1], *[even[0]] * (len(z) - 1)])
        label = label.expand(cosines.shape[:-1])
        error = F.cross_entropy(
            cosines.flatten(0, 1) / self.temperature.now, label.flatten(), reduction="none", ignore_index=-1
        )
        return weighted_mean(error, label.flatten() >= 0)

    def _recall(self) -> None:
        """Whether something was clustered before the training was resumed."""
        self._clustered = bool(self.passes > 0)

    def after_step(self, progress: float) -> None:
        self.temperature.move(progress)
        if self.bank is not None and self._seen is not None:
            self.bank.write(*self._seen)

    def after_epoch(self) -> None:
        """Cluster the memory: clusterings take turns with the two views, and start from samples drawn anew."""
        if self.bank is None or self._draw is None:
            return
        rows = self.bank.rows
        lot = Draw.start(self._draw.batch, 0, 0, torch.arange(len(rows), device=rows.device))
        for number, clustering in enumerate(self._all):
            x = rows.chunk(2, dim=1)[number % 2]
            order = (lot.uniform(f"start {number}") + 2.0 * ~x.any(dim=1)).argsort(stable=True)
            start = x[order[: len(clustering.centroids)]]
            centroids, labels = spherical_kmeans(x, start, self.settings.iterations)
            clustering.centroids.copy_(centroids)
            clustering.labels.copy_(labels)
        self.passes += 1
        self._clustered = True
