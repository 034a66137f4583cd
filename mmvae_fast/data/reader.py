"""Between a cell of a manifest and a sample of one modality: the base of all readers, and their registry by kind."""

from __future__ import annotations

import copy
import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from torch import Generator, Tensor

from mmvae_fast.modalities import Modality
from mmvae_fast.reading.cells import is_missing as is_missing

READERS: dict[str, type[Reader]] = {}

# where the package's own readers live; a file is imported when its kind is first asked for
_MODULES = {
    "image": "image",
    "patches": "patches",
    "text": "text",
    "language": "text",
    "bag_of_words": "bag_of_words",
    "audio": "audio",
    "sequence": "sequence",
    "vector": "vector",
    "counts": "counts",
    "lag": "lag",
}


class Reader(ABC):
    """Turns cells into samples and predicted samples into something a person can open.

    A *cell* is what a CSV gives (a str; for a modality of several columns a list with one entry a column, None where it
    is empty) or a value of a Parquet file or of Python. A missing cell (see :func:`is_missing`) never reaches a reader.
    A subclass names its ``kind``, takes its options as keyword arguments and imports its libraries when it reads.
    """

    kind: ClassVar[str] = ""
    reads_files: ClassVar[bool] = False
    """Whether a cell that is a str is a path: it is resolved against the manifest's folder and looked up before
    training."""

    n_columns: int | None = None
    """How many columns make up a cell, all of which a row must have to have the modality at all; None for one column,
    or any number of them with gaps."""

    modality_kind: ClassVar[str] = ""
    """Kind of the modality that takes the options which are not the reader's own; "" for one of the reader's kind."""

    takes: ClassVar[tuple[type, ...]] = ()
    """Of a reader of files, what a cell may be other than a str; () for anything. Known before training, too."""

    def __init_subclass__(cls) -> None:
        kind = cls.__dict__.get("kind")
        if not kind:
            return
        known = READERS.get(kind, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):  # else the cell ran again
            raise ValueError(
                f"{cls.__name__}: kind {kind!r} is that of {known.__module__}.{known.__qualname__} already"
            )
        READERS[kind] = cls

    def fit(self, cells: Iterable[Any]) -> None:  # noqa: B027 - most readers have nothing to learn
        """Learn from the training cells that are not missing: a vocabulary, a mean, ...; by default nothing."""

    def probe(self, cell: Any) -> None:
        """Whether :meth:`fit` could use this cell, if that has failed with all of them; called before fit. By default
        it is tried with the cell alone; a reader that cannot learn from a single cell overrides it.

        Raises:
            ValueError, OSError: what is wrong with this cell.
        """
        copy.deepcopy(self).fit([cell])

    @abstractmethod
    def read(self, cell: Any) -> Tensor:
        """One sample, [*shape] of the modality.

        Raises:
            ValueError, OSError: what is wrong with this cell; the data set adds its row and column.
        """

    def augment(self, sample: Tensor, generator: Generator) -> Tensor:
        """A random variation of a training sample, if the reader has any; drawn from ``generator`` alone."""
        return sample

    @abstractmethod
    def write(self, sample: Tensor, path: Path) -> Path:
        """Write a predicted sample (what ``model.reconstruct`` and the like return for one row) as a file a person can
        open; returns the path written, to which the suffix of the kind is added unless it is there (.png, .txt, .wav,
        .csv)."""

    @abstractmethod
    def show(self, sample: Tensor) -> Any:
        """The same as a Python value: uint8 array [H, W, C], str, (waveform, rate), array."""

    @abstractmethod
    def modality(self) -> Modality:
        """The modality of the samples; call it after :meth:`fit`."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """A JSON description with "kind" and what was fitted, from which :meth:`from_config` makes an equal reader."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Reader:
        """The reader a :meth:`config` describes, of whatever kind.

        Raises:
            ValueError: unknown kind, or a malformed description.
        """
        if not isinstance(config, dict):
            raise ValueError(f"a reader's description is a {type(config).__name__}, expected a dict with 'kind'")
        options = {key: value for key, value in config.items() if key != "kind"}
        reader = reader_class(config.get("kind"))
        try:
            return reader._from_config(options)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"malformed description of a {reader.kind} reader: {error} in {config}") from error

    @classmethod
    def _from_config(cls, options: dict[str, Any]) -> Reader:
        """From a :meth:`config` without its "kind"; a reader that was fitted overrides it."""
        return cls(**options)


def kinds() -> list[str]:
    """Of all readers there are, those not imported yet included."""
    return [*_MODULES, *(kind for kind in READERS if kind not in _MODULES)]


def reader_class(kind: Any) -> type[Reader]:
    """The reader of a kind.

    Raises:
        ValueError: there is none; it names those there are.
    """
    if isinstance(kind, str) and kind not in READERS and kind in _MODULES:
        importlib.import_module(f"mmvae_fast.data.{_MODULES[kind]}")
    if not isinstance(kind, str) or kind not in READERS:
        raise ValueError(f"reader of kind {kind!r}, expected one of {sorted(kinds())}")
    return READERS[kind]
