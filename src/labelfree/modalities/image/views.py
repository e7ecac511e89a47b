"""Batched picture augmentation: every sample has its own parameters, and no step of it loops over samples.

Crop, resize, flip and blur of a sample are two small matrices (rows and columns of the picture are mixed separately);
brightness, contrast, saturation, hue and grey are one affine map of its colours. A view costs a few batched matrix
products, on any device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from labelfree.data.draw import Draw
from labelfree.data.on_device import constant
from labelfree.errors import LabelfreeError

#: From RGB to YIQ, whose first row is ITU-R BT.601 luma, and back.
YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))
RGB = tuple(map(tuple, np.linalg.inv(YIQ).tolist()))
#: Aspect ratios that a crop may have.
RATIO = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Policy:
    """What a random view does. Strengths are those of torchvision's ColorJitter; a probability `p` is per sample."""

    crop: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    jitter: float = 0.0
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grey: float = 0.0
    blur: float = 0.0
    solarise: float = 0.0


#: Augmentations that published recipes use (solo-learn, da Costa et al. 2022); where the two views of a recipe differ
#: in solarising, each view here has the mean.
AUGMENT = {
    "A": Policy(jitter=0.8, grey=0.2, solarise=0.1),
    "S": Policy(jitter=0.8, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, grey=0.2, blur=0.5),
    "W": Policy(jitter=0.8, saturation=0.4, grey=0.2, blur=0.5),
    "V": Policy(crop=(0.2, 1.0), jitter=0.8, grey=0.2, solarise=0.1),
    "none": Policy(crop=(1.0, 1.0), flip=0.0),
}
BLUR_SIGMA = (0.1, 2.0)
#: Shares of a picture's area that small crops show (Caron et al. 2021, DINO, §3.1, "less than 50 %").
LOCAL_CROP = (0.05, 0.4)


def patch_side(size: int, wanted: int | str) -> int:
    """Side of a token's square: the one `wanted`, or for "auto" the largest usual one of which 8 or more go across.

    Raises:
        LabelfreeError: it does not divide the size.
    """
    if isinstance(wanted, str):
        return next((p for p in (16, 14, 8, 7, 6, 5, 4, 3, 2) if size % p == 0 and size // p >= 8), 1)
    if size % wanted:
        raise LabelfreeError(f"patch={wanted} does not divide size={size}.", "Choose a divisor, or patch=auto.")
    return wanted


def random_boxes(aspect: Tensor, draw: Draw, policy: Policy, tries: int = 10) -> Tensor:
    """(B, 4) boxes x0, y0, x1, y1 as fractions of the picture; x0 > x1 where it is to be flipped.

    Area and aspect ratio (in true pixels) are drawn until a box fits, as in Inception's training (Szegedy et al. 2015);
    after `tries` failures the picture's largest central part of an allowed ratio is taken.

    Args:
        aspect: (B,) width / height of the pictures.
    """
    area = draw.uniform("crop/area", tries, low=policy.crop[0], high=policy.crop[1])
    log_ratio = draw.uniform("crop/ratio", tries, low=math.log(RATIO[0]), high=math.log(RATIO[1]))
    relative = log_ratio.exp() / aspect[:, None]
    widths, heights = (area * relative).sqrt(), (area / relative).sqrt()
    fits = (widths <= 1) & (heights <= 1)
    first = fits.byte().argmax(dim=1, keepdim=True)
    whole = central_boxes(aspect)
    found = fits.any(dim=1)
    width = torch.where(found, widths.gather(1, first)[:, 0], whole[:, 2] - whole[:, 0])
    height = torch.where(found, heights.gather(1, first)[:, 0], whole[:, 3] - whole[:, 1])
    place = torch.where(found[:, None], draw.uniform("crop/place", 2), 0.5)
    x, y = place[:, 0] * (1 - width), place[:, 1] * (1 - height)
    flipped = draw.bernoulli("flip", policy.flip)
    left, right = torch.where(flipped, x + width, x), torch.where(flipped, x, x + width)
    return torch.stack([left, y, right, y + height], dim=1)


def central_boxes(aspect: Tensor) -> Tensor:
    """(B, 4) the largest central boxes whose ratio is one that random crops may have: most often the whole picture."""
    ratio = aspect.clamp(*RATIO)
    width, height = (ratio / aspect).clamp_max(1), (aspect / ratio).clamp_max(1)
    return torch.stack([1 - width, 1 - height, 1 + width, 1 + height], dim=1) / 2


def neighbouring_boxes(whole: Tensor, which: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """(B, 4), (B, 4): a patch in the middle of `whole` (B, 4), and one of its eight neighbours in reading order.

    As in Doersch et al. 2015, §3.1, there is a gap between them and both are moved a little, so that edges which run on
    from one to the other do not tell; here patches are 2/7 of the whole, the gap 1/14 and a move up to 1/28.

    Args:
        which: (B,) int64, 0 to 7.
    """
    side, step, most = 2 / 7, 5 / 14, 1 / 28
    place = which + (which >= 4).long()  # the fifth of nine is the middle
    direction = torch.stack([place % 3 - 1, place // 3 - 1], dim=1).to(whole.dtype)
    start, size = whole[:, :2], whole[:, 2:] - whole[:, :2]
    middle = 0.5 * (1 - side) + torch.zeros_like(direction)
    boxes = []
    for name, corner in (("first", middle), ("second", middle + step * direction)):
        corner = corner + draw.uniform(f"position/{name}", 2, low=-most, high=most)
        low = start + size * corner.clamp(0, 1 - side)
        boxes.append(torch.cat([low, low + size * side], dim=1))
    return boxes[0], boxes[1]


def resampling(start: Tensor, stop: Tensor, size_in: int, size_out: int) -> Tensor:
    """(B, size_out, size_in) weights that resample [start, stop) (fractions, (B,)) of a line of pixels.

    Bicubic (a = -0.5), widened where it shrinks so that it does not alias: Pillow's `resize(box=...)`. A line with
    start > stop comes out reversed.
    """
    step = (stop - start) * (size_in / size_out)
    place = torch.arange(size_out, device=start.device, dtype=start.dtype) + 0.5
    centre = start[:, None] * size_in + place * step[:, None]
    pixel = torch.arange(size_in, device=start.device, dtype=start.dtype) + 0.5
    distance = (pixel - centre[..., None]) / step.abs().clamp_min(1)[:, None, None]
    d = distance.abs_().clamp_max_(2)
    near = ((1.5 * d - 2.5) * d) * d + 1
    far = ((-0.5 * d + 2.5) * d - 4) * d + 2
    weights = torch.where(d < 1, near, far)
    return weights / weights.sum(dim=2, keepdim=True)


def random_sigma(draw: Draw, policy: Policy) -> Tensor | None:
    """(B,) standard deviations of the blur in pixels, next to none where one is not blurred; None without blur."""
    if not policy.blur:
        return None
    drawn = draw.uniform("blur/sigma", low=BLUR_SIGMA[0], high=BLUR_SIGMA[1])
    return torch.where(draw.bernoulli("blur", policy.blur), drawn, 0.01)


def blurring(sigma: Tensor, size: int) -> Tensor:
    """(B, size, size) Gaussian blur of a line of pixels with standard deviations `sigma` (B,) > 0, as weights."""
    place = torch.arange(size, device=sigma.device, dtype=sigma.dtype)
    squared = (place[:, None] - place) ** 2
    weights = torch.exp(squared * (-0.5 / sigma**2)[:, None, None])
    return weights / weights.sum(dim=2, keepdim=True)


def crop(pictures: Tensor, boxes: Tensor, size: int, sigma: Tensor | None = None) -> Tensor:
    """(B, C, H, W) of 8 or 16 bits → (B, C, size, size) float: what is in `boxes`, resized, and blurred by `sigma`."""
    count, channels, height, width = pictures.shape
    columns = resampling(boxes[:, 0], boxes[:, 2], width, size)
    rows = resampling(boxes[:, 1], boxes[:, 3], height, size)
    if sigma is not None:
        band = blurring(sigma, size)
        columns, rows = band @ columns, band @ rows
    narrow = torch.bmm(pictures.to(rows.dtype).view(count, channels * height, width), columns.transpose(1, 2))
    tall = rows[:, None].expand(-1, channels, -1, -1).reshape(count * channels, size, height)
    return torch.bmm(tall, narrow.view(count * channels, height, size)).view(count, channels, size, size)


def recolour(x: Tensor, draw: Draw, policy: Policy) -> Tensor:
    """Colour jitter, grey and solarising of (B, C, H, W) in [0, 1]; brightness and contrast only where C is not 3."""
    if policy.jitter or policy.grey:
        weight, offset = _colour_map(x.mean(dim=(2, 3)), draw, policy)
        x = torch.baddbmm(offset[..., None], weight, x.flatten(2)).view_as(x)
    x = x.clamp_(0, 1)
    if policy.solarise:
        chosen = draw.bernoulli("solarise", policy.solarise)[:, None, None, None]
        x = torch.where(chosen, torch.minimum(x, 1 - x), x)
    return x


def _colour_map(mean: Tensor, draw: Draw, policy: Policy) -> tuple[Tensor, Tensor]:
    """The affine map (B, C, C), (B, C) that the jitter's steps, in a random order a sample, and greying amount to.

    Contrast needs the grey level of the picture as it is at that point; the level of an affinely mapped picture is that
    of its mapped `mean` (B, C). Hue is a rotation about the grey axis in YIQ.
    """
    channels = mean.shape[1]
    colour = channels == 3
    luma = constant(YIQ[0] if colour else (1 / channels,) * channels, mean.device)
    eye, grey = torch.eye(channels, device=mean.device), luma.expand(channels, channels)
    jittered = draw.bernoulli("jitter", policy.jitter)

    def factor(name: str, strength: float) -> Tensor:
        drawn = draw.uniform(name, low=max(0.0, 1 - strength), high=1 + strength)
        return torch.where(jittered, drawn, 1.0)[:, None, None]

    contrast = factor("contrast", policy.contrast)
    steps = [factor("brightness", policy.brightness) * eye, contrast * eye]
    if colour:
        saturation = factor("saturation", policy.saturation)
        turn = torch.where(jittered, draw.uniform("hue", low=-policy.hue, high=policy.hue), 0.0)
        steps += [saturation * eye + (1 - saturation) * grey, _hue(turn)]
    order = draw.permutation("order", len(steps))
    chosen = torch.stack(steps, dim=1).gather(1, order[..., None, None].expand(-1, -1, channels, channels))
    lift = torch.where(order == 1, 1 - contrast[:, 0], 0.0)
    weight, offset = eye.expand(len(mean), -1, -1), torch.zeros_like(mean)
    for step in range(len(steps)):
        level = (torch.einsum("bij,bj->bi", weight, mean) + offset) @ luma
        weight = chosen[:, step] @ weight
        offset = torch.einsum("bij,bj->bi", chosen[:, step], offset) + (lift[:, step] * level)[:, None]
    if colour and policy.grey:
        greyed = draw.bernoulli("grey", policy.grey)
        weight = torch.where(greyed[:, None, None], grey @ weight, weight)
        offset = torch.where(greyed[:, None], offset @ grey.T, offset)
    return weight, offset


def _hue(turn: Tensor) -> Tensor:
    """(B, 3, 3) rotation of colours by `turn` (B,) of a full circle."""
    cos, sin = torch.cos(2 * math.pi * turn), torch.sin(2 * math.pi * turn)
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    rotation = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], dim=1).view(-1, 3, 3)
    return constant(RGB, turn.device) @ rotation @ constant(YIQ, turn.device)
