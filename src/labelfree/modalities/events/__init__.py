"""Timed edges, of which a graph grows: recent histories of both ends."""

from labelfree.modalities.events.modality import EventDataset, Events, EventSettings

__all__ = ["EventDataset", "EventSettings", "Events"]
