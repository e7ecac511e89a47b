"""What an objective may need, and the sentence that says so when it is missing."""

from __future__ import annotations

from enum import Enum


class Need(Enum):
    """A need; modalities and encoders offer them, objectives (and some encoders) require them."""

    VIEWS = "randomly augmented views of a sample"
    ALIGNED_VIEWS = "two overlapping crops whose shared steps are known"
    TOKENS = "one output vector per token"
    TARGETS = "targets that a token can be asked to predict"
    IDS = "tokens that are ids of a vocabulary"
    MASK = "tokens that can be hidden from the encoder"
    ORDER = "tokens in a natural order (time, reading order)"
    CAUSAL = "an encoder that can be kept from seeing the future"
    TRANSFORMATIONS = "a named set of transformations to recognise"
    CORRUPTION = "samples that make no sense, made of those that do"
    LINKS = "tokens that are linked, and links that can be hidden"
    PAIR = "two or more sides of each sample"
    PICTURES = "views that can be looked at as pictures"

    def __str__(self) -> str:
        return self.value
