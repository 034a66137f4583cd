"""A manifest: a CSV or Parquet file with one row a sample and one column a modality; an empty cell is missing.

Everything that can be known without opening a sample's file is checked when a manifest is read, and all that is wrong
comes as one error. Rows are counted from 1, the header not among them.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import itertools
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmvae_fast._lazy import require
from mmvae_fast.data.errors import ManifestError
from mmvae_fast.data.reader import Reader, is_missing

_SHOWN = 10  # so many of the faulty rows are listed


class Manifest:
    """The cells of some modalities, by row.

    Args:
        path: a .csv (comma, quotes as RFC 4180, UTF-8) or .parquet file; paths in it are relative to its folder.
        columns: the column of each modality, or the columns that make it up together.
        label: the column that holds each row's class, if one does.
        ignore: columns that are nobody's; "all" takes every column not named here for one.
        partial: modalities that the file has no column of are missing in all rows, as long as one is there.
        joined: modalities of several columns that a row has only if it has all of them.

    Raises:
        ManifestError: no such file, not of its format, empty, columns twice or unknown.
        ImportError: without the ``data`` extra.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        columns: Mapping[str, str | Sequence[str]],
        *,
        label: str | None = None,
        ignore: Sequence[str] | str = (),
        partial: bool = False,
        joined: Collection[str] = (),
    ) -> None:
        self.path = Path(path)
        self.joined = frozenset(joined)
        self.columns = {name: [of] if isinstance(of, str) else list(of) for name, of in columns.items()}
        self._single = {name: isinstance(of, str) for name, of in columns.items()}
        self.label = label
        self._table = _read(self.path)
        self._check_columns(ignore, partial)
        self._values = {name: self._table[name] for name in self._table.column_names}

    def _check_columns(self, ignore: Sequence[str] | str, partial: bool) -> None:
        there = self._table.column_names
        if not self._table.num_rows:
            raise ManifestError(f"{self.path}: has no rows, expected at least one")
        absent = {name: [c for c in of if c not in there] for name, of in self.columns.items()}
        if partial:
            wholly = [
                name
                for name, of in self.columns.items()
                if absent[name] == of or (name in self.joined and absent[name])
            ]
            if len(wholly) < len(self.columns):
                for name in wholly:
                    absent[name], self.columns[name] = [], []
        problems = [
            f"no column {c!r} for the modality {m!r}{nearest(c, there)}" for m, of in absent.items() for c in of
        ]
        if self.label is not None and self.label not in there:
            if partial:
                self.label = None
            else:
                problems.append(f"no column {self.label!r} for the label{nearest(self.label, there)}")
        if ignore != "all":
            known = {self.label, *ignore, *itertools.chain(*self.columns.values())}
            unknown = [repr(c) for c in there if c not in known]
            if unknown and not partial:
                problems.append(
                    f"{'columns' if len(unknown) > 1 else 'column'} {', '.join(unknown[:_SHOWN])}"
                    f"{_more(len(unknown))} of no modality: name them under data.ignore (or ignore: all)"
                )
        if problems:
            raise ManifestError(f"{self.path}: {'; '.join(problems)}")

    def __len__(self) -> int:
        return self._table.num_rows

    def cell(self, row: int, name: str) -> Any:
        """What a row, counted from 0, has of a modality; None if it is missing."""
        cells = [self._values[column][row].as_py() for column in self.columns[name]]
        cells = [None if is_missing(cell) else cell for cell in cells]
        if all(cell is None for cell in cells) or (name in self.joined and None in cells):
            return None
        return cells[0] if self._single[name] else cells

    def cells(self, name: str, rows: Iterable[int] | None = None) -> Iterable[Any]:
        """The cells of a modality that are not missing."""
        for row in range(len(self)) if rows is None else rows:
            cell = self.cell(row, name)
            if cell is not None:
                yield cell

    def resolve(self, cell: Any, reader: Reader) -> Any:
        """A cell as its reader takes it: a path becomes one from here, and so does each of several."""
        if not reader.reads_files:
            return cell
        if reader.n_columns is not None and isinstance(cell, list):
            return [self._resolved(part) for part in cell]
        return self._resolved(cell)

    def _resolved(self, cell: Any) -> Any:
        return str(self.path.parent / cell) if isinstance(cell, str) else cell

    def labels(self) -> list[str | None]:
        """Each row's class as text without the spaces around it, None where it is missing."""
        if self.label is None:
            return [None] * len(self)
        cells = self._values[self.label].to_pylist()
        return [None if is_missing(cell) else str(cell).strip() for cell in cells]

    def column(self, name: str) -> list[Any]:
        """All cells of a column, whether or not it is a modality's.

        Raises:
            ManifestError: there is none.
        """
        if name not in self._values:
            raise ManifestError(f"{self.path}: no column {name!r}{nearest(name, self._values)}")
        return self._values[name].to_pylist()

    def where(self, row: int, name: str) -> str:
        """For a message: file, row (counted from 1) and column of a cell."""
        of = self.columns[name]
        columns = f"column {of[0]!r}" if len(of) == 1 else f"columns {of[0]!r} to {of[-1]!r}"
        return f"{self.path}, row {row + 1}, {columns}"

    def digest(self) -> str:
        """Of the file's bytes: whether a run continues on what it began with."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def check_files(self, readers: Mapping[str, Reader]) -> None:
        """Refuse paths of files that cannot be read, and cells that are nothing a reader of files takes.

        Raises:
            ManifestError: listing the rows.
        """
        faults = []
        for name, reader in readers.items():
            if not (reader.reads_files and self.columns[name]):
                continue
            for row in range(len(self)):
                cell = self.resolve(self.cell(row, name), reader)
                for part in cell if reader.n_columns is not None and isinstance(cell, list) else [cell]:
                    if isinstance(part, str):
                        problem = _unreadable(part)
                    else:
                        problem = None if part is None else _not_taken(part, reader)
                    if problem is not None:
                        faults.append(Fault(row, name, problem))
        self.refuse(faults)

    def error(self, name: str, problem: str) -> ManifestError:
        """What is wrong with a modality as a whole."""
        return ManifestError(f"{self.path}, {', '.join(self.columns[name])}: {problem}")

    def refuse(self, faults: Sequence[Fault]) -> None:
        """Raise a ManifestError of these cells, if there are any."""
        if faults:
            raise ManifestError(self.describe(faults))

    def describe(self, faults: Sequence[Fault]) -> str:
        """Cells and what is wrong with them, a line each; the first ten and how many more."""
        faults = sorted(faults)
        lines = [f"{self.path}: {len(faults)} {'cell' if len(faults) == 1 else 'cells'} cannot be read"]
        lines += [
            f"  row {f.row + 1}, {', '.join(self.columns.get(f.name, [f.name]))}: {f.problem}" for f in faults[:_SHOWN]
        ]
        if len(faults) > _SHOWN:
            lines += [f" {_more(len(faults))}"]
        return "\n".join(lines)


@dataclass(frozen=True, order=True)
class Fault:
    """A cell that cannot be read: its row, counted from 0, its modality (or the column of the label), and why."""

    row: int
    name: str
    problem: str


def nearest(name: str, known: Iterable[str]) -> str:
    """For a message: what was probably meant, or else what there is."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there is {', '.join(map(repr, known[:_SHOWN]))}{_more(len(known))}" if known else ""


def _more(count: int) -> str:
    return f" and {count - _SHOWN} more" if count > _SHOWN else ""


def _unreadable(path: str) -> str | None:
    if os.path.isdir(path):
        return f"{path}: is a folder, expected a file"
    if not os.path.exists(path):
        return f"{path}: no such file"
    return None if os.access(path, os.R_OK) else f"{path}: no permission to read it"


def _not_taken(cell: Any, reader: Reader) -> str | None:
    if reader.takes and not isinstance(cell, reader.takes):
        return f"is a {type(cell).__name__}, expected a path or what else a reader of kind {reader.kind!r} takes"
    if isinstance(cell, Mapping) and all(value is None for value in cell.values()):
        return "holds neither bytes nor a path"
    return None


def _read(path: Path) -> Any:
    """The file as a pyarrow table; of a CSV, every column as text."""
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise ManifestError(f"{path}: expected a manifest that ends in .csv or .parquet")
    if not path.is_file():
        raise ManifestError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}, expected a manifest")
    arrow = require("pyarrow", extra="data")
    is_csv = path.suffix.lower() == ".csv"
    try:
        names = _header(path) if is_csv else require("pyarrow.parquet", extra="data").read_schema(path).names
        _check_names(path, names)
        if not is_csv:
            return require("pyarrow.parquet", extra="data").read_table(path)
        reading = require("pyarrow.csv", extra="data")
        ragged: list[str] = []

        def note(row: Any) -> str:
            ragged.append(f"  row {row.number - 1}: {row.actual_columns} cells, expected {row.expected_columns}")
            return "skip"

        table = reading.read_csv(
            path,
            read_options=reading.ReadOptions(use_threads=False),  # else rows have no numbers
            parse_options=reading.ParseOptions(
                newlines_in_values=True,
                invalid_row_handler=note,
                ignore_empty_lines=len(names) > 1,  # of one column, it is a row whose cell is empty
            ),
            convert_options=reading.ConvertOptions(
                column_types=dict.fromkeys(names, arrow.string()), strings_can_be_null=True, null_values=[""]
            ),
        )
        if ragged:
            raise ManifestError("\n".join([f"{path}: rows of another length", *ragged[:_SHOWN]]) + _more(len(ragged)))
        return table
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error})") from error
    except (arrow.ArrowException, UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{path}: not {'CSV in UTF-8' if is_csv else 'Parquet'}, or damaged: {error}") from error


def _header(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return next(csv.reader(file), [])


def _check_names(path: Path, names: Sequence[str]) -> None:
    if not any(name.strip() for name in names):
        raise ManifestError(f"{path}: is empty, expected a header that names the columns")
    for name in names:
        if not name.strip():
            raise ManifestError(f"{path}: column {names.index(name) + 1} has no name")
        if names.count(name) > 1:
            raise ManifestError(f"{path}: the column {name!r} is there {names.count(name)} times, expected once")
