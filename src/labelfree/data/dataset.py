"""The Dataset contract: a source, opened; samples are read by their numbers. Each kind of data has its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from labelfree.data.batch import Batch, Sample, Unreadable
from labelfree.errors import Refusal, SeenByEncoder, nearest


@dataclass(frozen=True)
class Description:
    """What was found in a source, before anything is trained.

    Attributes:
        modality: its name.
        count: samples.
        facts: words to print, in order ("sizes": "28×28 … 640×480", "channels": "3").
        numbers: the same as numbers, for choosing defaults ("height", "width", "length", "documents").
    """

    modality: str
    count: int
    facts: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)


class Dataset(ABC):
    """A source, opened: samples by their index. Reading is by lists of indices, so that neighbours cost one access."""

    #: Starts of the stretches that are cheap to read together (row groups, files); (0,) where any order is cheap.
    shards: Sequence[int] = (0,)
    #: About how many samples of neighbouring shards stay in reach, once read; 0 where any number does.
    reach: int = 0
    #: What was left out because it could not be read (documents that packing had to skip); not counted in `len`, but in
    #: `source_count`.
    unreadable: Sequence[Unreadable] = ()
    #: Names of the places of the last axis of a sample's data (columns, channels), where they have names.
    value_names: Sequence[str] = ()
    #: Whether samples are parts of one whole (nodes of a graph, events), so that copies among them are no fault.
    connected: bool = False
    #: (N,) number of the recording that each sample was cut from, where samples are pieces of recordings.
    cut_from: np.ndarray | None = None
    #: (N, 2) steps of that recording at which each of these begins and ends; pieces may overlap.
    stretches: np.ndarray | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, indices: Sequence[int]) -> list[Sample | Unreadable]:
        """Samples in the compact form, in the order asked for."""

    def shown(self, indices: Sequence[int]) -> list[Sample | Unreadable]:
        """Samples for a person, who may need what the compact form leaves out; `Modality.show` takes these too."""
        return self.read(indices)

    @abstractmethod
    def describe(self) -> Description: ...

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash that changes when the source's content does (names, sizes, times, shapes; not every byte)."""

    def source_count(self) -> int:
        """What `unreadable` is out of: samples, or the files, films or documents that samples are cut from."""
        return len(self) + len(self.unreadable)

    def index_end(self) -> int:
        """One more than the largest index of its samples."""
        return len(self)

    def sizes(self) -> np.ndarray | None:
        """(N,) how long each sample is, where those of about one length ought to share a batch; None where it is all
        one.
        """
        return None

    def collated(self) -> Batch | None:
        """The raw batch of all samples, where the source is one array already; None where each has to be read."""
        return None

    def origin(self) -> tuple[Dataset, np.ndarray]:
        """The dataset as it was opened, and (N,) which of its samples these are; itself unless it stands for a part."""
        return self, np.arange(len(self))

    def own_values(self, sample: Sample) -> np.ndarray:
        """What of a sample's data it alone holds: no padding, none of its neighbours, no signs that all have."""
        return sample.data

    def name(self, index: int) -> str:
        """What a person calls a sample: its path inside the source, or its row."""
        return f"row {index}"

    def columns(self) -> Sequence[str]:
        """Names that `column` knows: what could serve as a label or group. "folder" is the name of a file's folder."""
        return ()

    def column(self, name: str) -> np.ndarray:
        """(N,) values of a column as strings or numbers. Only evaluation and tasks call it, and pretraining for the
        column, if any, that its user names as `case`.

        Raises:
            LabelfreeError: no such column; names those that exist.
        """
        raise no_column(name, self.columns())


def no_column(name: str, known: Sequence[str]) -> Refusal:
    has = f"it has {', '.join(known)}" if known else "it has no columns"
    return Refusal(f"There is no column '{name}' in the source: {has}.", nearest(name, known))


def seen_by_encoder(name: str, what: str) -> SeenByEncoder:
    """Why a column that is `what` to the encoder ("a channel") is no label: the answer would be in the question."""
    return SeenByEncoder(
        f"'{name}' is {what}, which the encoder sees, so it cannot be a label.", f"Pretrain without it: exclude={name}."
    )
