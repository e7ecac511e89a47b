"""Settings of pictures."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Literal

from pydantic import Field, PositiveInt

from labelfree.losses.masked import TargetError
from labelfree.modalities.image.views import AUGMENT, LOCAL_CROP, Policy
from labelfree.settings import Settings

Fraction = Field(None, ge=0, le=1)


class ImageSettings(Settings):
    """How pictures are read and augmented. Unset strengths are those of `augment`."""

    size: PositiveInt = 32
    """height and width of pictures as encoders see them, in pixels"""
    view_size: PositiveInt | Literal["auto"] = "auto"
    """the same for contrast views, which take less time the smaller they are; auto: as `size`"""
    patch: PositiveInt | Literal["auto"] = "auto"
    """side of a token's square for transformers, in pixels; auto: 8 or more tokens across"""
    stem: PositiveInt | Literal["auto"] = "auto"
    """up to 64 px, the step of a convolution net's first convolution; auto: 1 up to 48 px, else 2"""
    class_token: bool = False
    """vision transformers represent a picture by a class token, instead of the mean of its patches"""
    channels: PositiveInt | Literal["auto"] = "auto"
    """channels that pictures are brought to; auto: the source's (4 keeps transparency)"""
    column: str = "auto"
    """the column, or array, of a table that holds the pictures"""
    store: PositiveInt | Literal["auto"] = "auto"
    """side at which larger pictures are kept in memory; auto: the views' size and up to 64 more"""
    target: Literal["normalised", "pixels", "colour"] = "normalised"
    """what tokens are predicted as: pixels normalised within the token, pixels, or colours (pictures are shown grey)"""
    target_error: TargetError = "squared"
    """how predicted values are compared: squared or absolute differences"""
    mask_shape: Literal["random", "squares", "block", "blocks"] = "random"
    """which tokens are hidden: any, any squares of four, those of one square block, or of four blocks"""
    augment: Literal["A", "S", "W", "V", "none"] = "A"
    """random views: A (usual), S (strong colours, blur), W (weaker colours, blur), V (crops of a fifth or more)"""
    crop_min: float | None = Field(None, gt=0, le=1)
    """smallest share of a picture's area that a view shows"""
    crop_max: float = Field(1.0, gt=0, le=1)
    """largest share"""
    light_crop_min: float = Field(0.2, gt=0, le=1)
    """the same for masked and pretext objectives, whose views are crops alone"""
    local_crop_min: float = Field(LOCAL_CROP[0], gt=0, le=1)
    """smallest share of a picture's area that a small crop shows (multi-crop)"""
    local_crop_max: float = Field(LOCAL_CROP[1], gt=0, le=1)
    """largest share"""
    flip: float | None = Fraction
    """probability of a left-right flip"""
    jitter: float | None = Fraction
    """probability of a colour jitter"""
    brightness: float | None = Field(None, ge=0)
    """strength of brightness jitter"""
    contrast: float | None = Field(None, ge=0)
    """strength of contrast jitter"""
    saturation: float | None = Field(None, ge=0)
    """strength of saturation jitter (3 channels)"""
    hue: float | None = Field(None, ge=0, le=0.5)
    """strength of hue jitter, in turns (3 channels)"""
    grey: float | None = Fraction
    """probability of greying (3 channels)"""
    blur: float | None = Fraction
    """probability of a Gaussian blur"""
    solarise: float | None = Fraction
    """probability of inverting the bright half"""

    def policy(self) -> Policy:
        """The augmentation of a contrast view, with what was set by hand."""
        base = AUGMENT[self.augment]
        named = {name: getattr(self, name) for name in asdict(base) if name != "crop"}
        own = {name: value for name, value in named.items() if value is not None}
        crop_min = base.crop[0] if self.crop_min is None else self.crop_min
        return replace(base, crop=(crop_min, max(crop_min, self.crop_max)), **own)

    @property
    def local_crop(self) -> tuple[float, float]:
        """Shares of a picture's area that small crops show."""
        return self.local_crop_min, max(self.local_crop_min, self.local_crop_max)
