"""A manifest as a torch Dataset: a sample's files are opened when it is asked for, in whatever process asks."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmvae_fast.data.errors import CellError
from mmvae_fast.data.manifest import Fault, Manifest
from mmvae_fast.data.reader import Reader

ON_ERROR = ("stop", "missing")


class ManifestDataset(Dataset):
    """Rows of a manifest as dicts of samples by modality, None where one is missing; what ``training.fit`` takes.

    Args:
        manifest, readers: the readers are fitted; see :func:`fit_readers`.
        rows: which of the manifest, counted from 0; all unless told.
        on_error: a cell that cannot be read stops the run ("stop") or counts as missing ("missing").
        cache: keep in memory what was read, by each process for itself; for data that fits.
        augment: vary the samples as their readers are configured to; drawn from torch's generator, which ``fit`` seeds
            in every epoch and worker process.
    """

    def __init__(
        self,
        manifest: Manifest,
        readers: Mapping[str, Reader],
        *,
        rows: Sequence[int] | None = None,
        on_error: str = "stop",
        augment: bool = False,
        cache: bool = False,
    ) -> None:
        if on_error not in ON_ERROR:
            raise ValueError(f"on_error is {on_error!r}, expected one of {ON_ERROR}")
        self.manifest, self.readers = manifest, dict(readers)
        self.rows = range(len(manifest)) if rows is None else list(rows)
        self.on_error, self.augment = on_error, augment
        self._kept: dict[tuple[int, str], Tensor] | None = {} if cache else None
        # in shared memory: worker processes note there what they could not read
        self._failed = torch.zeros(len(self.rows), len(self.readers), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor | None]:
        row = self.rows[index]
        sample: dict[str, Tensor | None] = {}
        for m, (name, reader) in enumerate(self.readers.items()):
            cell = self.manifest.cell(row, name)
            x = None
            if cell is not None and not (self.on_error == "missing" and self._failed[index, m]):
                try:
                    x = self._read(row, name, cell)
                except (ValueError, OSError) as error:
                    self._failed[index, m] = True
                    if self.on_error == "stop":
                        raise CellError(f"{self.manifest.where(row, name)}: {error}") from error
                if x is not None and self.augment:
                    seed = int(torch.randint(2**62, ()))
                    x = reader.augment(x, torch.Generator().manual_seed(seed))
            sample[name] = x
        return sample

    def _read(self, row: int, name: str, cell: Any) -> Tensor:
        """A cell's sample, read once if it is to be kept."""
        reader = self.readers[name]
        if self._kept is None:
            return reader.read(self.manifest.resolve(cell, reader))
        if (row, name) not in self._kept:
            self._kept[row, name] = reader.read(self.manifest.resolve(cell, reader))
        return self._kept[row, name].clone()  # what a caller does to it is not to be kept

    def faults(self) -> list[Fault]:
        """The cells that could not be read so far, by whatever process; they are read once more to say why."""
        names, found = list(self.readers), []
        for index, m in self._failed.nonzero().tolist():
            row, name = self.rows[index], names[m]
            cell = self.manifest.cell(row, name)
            try:
                self.readers[name].read(self.manifest.resolve(cell, self.readers[name]))
                problem = "could not be read at first, but can be now"
            except (ValueError, OSError) as error:
                problem = str(error)
            found.append(Fault(row, name, problem))
        return found

    def report(self) -> str:
        """:meth:`faults` in sentences; empty if there are none."""
        faults = self.faults()
        return self.manifest.describe(faults) if faults else ""


def fit_readers(
    manifest: Manifest, readers: Mapping[str, Reader], *, rows: Sequence[int] | None = None, on_error: str = "stop"
) -> list[Fault]:
    """Fit every reader to its cells, and read all cells that are no files: they are cheap, and wrong ones are known
    before training.

    Returns:
        cells of files that could not be read and count as missing; only with ``on_error="missing"``.

    Raises:
        ManifestError: listing the rows.
    """
    manifest.check_files(readers)
    faults: list[Fault] = []
    skipped: list[Fault] = []
    for name, reader in readers.items():
        every = range(len(manifest)) if rows is None else list(rows)
        cells = {row: manifest.resolve(c, reader) for row in every if (c := manifest.cell(row, name)) is not None}
        if not cells:
            raise manifest.error(name, "all cells are empty, expected some to learn from")
        unfitted = copy.deepcopy(reader)
        try:
            reader.fit(cells.values())
        except (ValueError, OSError) as error:
            bad = _unfit(unfitted, name, cells)
            if not bad or len(bad) == len(cells):
                raise manifest.error(name, str(error)) from error
            if not (reader.reads_files and on_error == "missing"):
                faults += bad
                continue
            skipped += bad
            reader.fit([cell for row, cell in cells.items() if row not in {fault.row for fault in bad}])
        if not reader.reads_files:
            faults += check_cells(manifest, name, reader)
    manifest.refuse(faults)
    return skipped


def check_cells(manifest: Manifest, name: str, reader: Reader) -> list[Fault]:
    """The cells of a modality that its reader, which is fitted, refuses."""
    faults = []
    for row in range(len(manifest)):
        cell = manifest.cell(row, name)
        if cell is not None:
            try:
                reader.read(manifest.resolve(cell, reader))
            except (ValueError, OSError) as error:
                faults.append(Fault(row, name, str(error)))
    return faults


def _unfit(reader: Reader, name: str, cells: Mapping[int, Any]) -> list[Fault]:
    """The cells that a reader cannot even learn from alone."""
    faults = []
    for row, cell in cells.items():
        try:
            reader.probe(cell)
        except (ValueError, OSError) as error:
            faults.append(Fault(row, name, str(error)))
    return faults


class Labelled(Dataset):
    """A data set's samples with each row's class under "label", as :func:`mmvae_fast.systems.fit` takes them.

    Args:
        labels: int64 [N]; -1 where there is none.
    """

    def __init__(self, dataset: ManifestDataset, labels: Tensor) -> None:
        self.dataset, self.labels = dataset, labels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Tensor | None]:
        return {**self.dataset[index], "label": self.labels[index]}
