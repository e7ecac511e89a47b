"""An objective of one's own, alignment and uniformity: trained with a loop of one's own, then with the engine."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import labelfree
from labelfree import Batch, Draw, Encoder, Modality, Need, Objective, Settings, Step, registry
from labelfree.data.loader import batches
from labelfree.distributed import gather
from labelfree.modalities.image import Image, ImageSettings


class SphereSettings(Settings):
    """Settings of alignment and uniformity."""

    width: int = 64
    """width of the projection"""
    uniformity: float = 1.0
    """weight of the even spread"""


class Sphere(Objective):
    """Views of one sample meet, and samples spread evenly over the sphere (Wang & Isola 2020, §4.1)."""

    name = "sphere"
    settings_class = SphereSettings
    needs = frozenset({Need.VIEWS})

    def __init__(self, encoder: Encoder, modality: Modality, settings: SphereSettings | None = None) -> None:
        super().__init__(encoder, modality, settings)
        self.projector = nn.Linear(encoder.dim, self.settings.width)

    def loss(self, batch: Batch, draw: Draw) -> Step:
        h = [self.encoder(self.modality.view(batch, draw.view(number))).pooled for number in (0, 1)]
        a, b = (F.normalize(self.projector(x).float(), dim=1) for x in h)
        apart = (a - b).square().sum(dim=1).mean()
        crowd = sum(torch.pdist(gather(z)).square().mul(-2).exp().mean().log() for z in (a, b)) / 2
        return Step(apart + self.settings.uniformity * crowd, h[0].detach())


def own_loop(pictures, epochs: int, encoder: str, batch_size: int) -> list[float]:
    """Modality, encoder and objective put together by hand; the loss of each epoch's last step."""
    modality = Image(ImageSettings(size=8, augment="V", flip=0))
    dataset = modality.open(pictures)
    modality.fit(dataset)
    model = Sphere(registry.build_encoder(encoder, modality), modality)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for epoch in range(epochs):
        for number, batch in enumerate(batches(dataset, modality, batch_size)):
            step = model(batch, Draw.start(seed=0, epoch=epoch, step=number, index=batch.index))
            step.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses.append(step.loss.item())
    return losses


def main(
    epochs: int = 4,
    count: int = 1797,
    encoder: str = "timm:resnet10t",
    batch_size: int = 256,
    out: str | None = None,
) -> labelfree.Run:
    digits = (load_digits().images[:count] * 15).astype("uint8")
    print("own loop:", own_loop(digits, epochs, encoder, batch_size))
    # the class above is all it takes: the registry has found it
    options = {"encoder": encoder, "batch_size": batch_size, "epochs": epochs, "out": out}
    return labelfree.pretrain(digits, modality="image", method="sphere", augment="V", flip=0, **options)


if __name__ == "__main__":
    main()
