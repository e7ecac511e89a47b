"""Pictures of any size, channels and depth."""

from labelfree.modalities.image.modality import Image, ImageSettings

__all__ = ["Image", "ImageSettings"]
