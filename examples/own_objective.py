"""An objective of one's own, Barlow Twins: trained with a loop of one's own, then with the engine."""

import torch
from sklearn.datasets import load_digits
from torch import nn

import labelfree
from labelfree import Batch, Draw, Encoder, Modality, Need, Objective, Settings, Step, registry
from labelfree.data.loader import batches
from labelfree.distributed import gather
from labelfree.modalities.image import Image, ImageSettings


class BarlowSettings(Settings):
    """Settings of Barlow Twins."""

    width: int = 256
    """width of the projection"""
    redundancy: float = 0.005
    """weight λ of the correlations between different features"""


class Barlow(Objective):
    """A feature of one view goes with itself in the other, and with no other (Zbontar et al. 2021, §2)."""

    name = "barlow"
    settings_class = BarlowSettings
    needs = frozenset({Need.VIEWS})

    def __init__(self, encoder: Encoder, modality: Modality, settings: BarlowSettings | None = None) -> None:
        super().__init__(encoder, modality, settings)
        self.projector = nn.Linear(encoder.dim, self.settings.width)

    def loss(self, batch: Batch, draw: Draw) -> Step:
        h = [self.encoder(self.modality.view(batch, draw.view(number))).pooled for number in (0, 1)]
        z = [gather(self.projector(x)).float() for x in h]
        a, b = ((x - x.mean(dim=0)) / (x.std(dim=0) + 1e-4) for x in z)
        error = (a.T @ b / len(a) - torch.eye(a.shape[1], device=a.device)).square()
        on = error.diagonal().sum()
        return Step(on + self.settings.redundancy * (error.sum() - on), h[0].detach())


def own_loop(pictures, epochs: int, encoder: str, batch_size: int) -> list[float]:
    """Modality, encoder and objective put together by hand; the loss of each epoch's last step."""
    modality = Image(ImageSettings(size=8, augment="V", flip=0))
    dataset = modality.open(pictures)
    modality.fit(dataset)
    model = Barlow(registry.build_encoder(encoder, modality), modality)
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
    return labelfree.pretrain(digits, modality="image", method="barlow", augment="V", flip=0, **options)


if __name__ == "__main__":
    main()
