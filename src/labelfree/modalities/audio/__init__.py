"""Recordings of any rate, channels and length: log-mel frames or waveforms."""

from labelfree.modalities.audio.modality import Audio, AudioSettings

__all__ = ["Audio", "AudioSettings"]
