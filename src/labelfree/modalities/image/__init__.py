"""Pictures of any size, channels and depth."""

from labelfree.modalities.image.modality import Image
from labelfree.modalities.image.settings import ImageSettings

__all__ = ["Image", "ImageSettings"]
