"""Films, folders of frames and arrays, as clips."""

from labelfree.modalities.video.modality import Video, VideoSettings

__all__ = ["Video", "VideoSettings"]
