"""Texts, as ids of a vocabulary that is learnt or given."""

from labelfree.modalities.text.modality import Text, TextSettings

__all__ = ["Text", "TextSettings"]
