"""Latents of a Parquet file's rows, as another Parquet file: one row out for every row in, in the same order.

The output is there when it is complete, and says in its metadata what it was made from; so whoever is interrupted calls
again, and what is done is not done twice. NumPy, pyarrow and the Runtime; no torch.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmvae_fast import _files, _lazy
from mmvae_fast.onnx import values
from mmvae_fast.onnx.errors import BadShape, BadValue, InputError, unknown
from mmvae_fast.onnx.runtime import Runtime

_MADE_FROM = b"mmvae_fast.made_from"
ON_ERROR = ("stop", "missing")


@dataclass(frozen=True)
class Job:
    """One file to embed.

    Attributes:
        columns: modality -> the column that holds it; null is missing, and so is a column that the file lacks.
        keep: columns to copy to the output.
        on_error: what a cell that cannot be read does: "stop", or count as "missing".
    """

    source: str
    target: str
    columns: Mapping[str, str]
    keep: Sequence[str] = ()
    on_error: str = "stop"
    batch_rows: int = 256

    def made_from(self, runtime: Runtime) -> bytes:
        """What the output depends on, as a digest: the file as it is, the bundle, and how it is read."""
        stat = os.stat(self.source)
        what = (sorted(runtime.manifest.files.items()), sorted(self.columns.items()), list(self.keep), self.on_error,
                stat.st_size, stat.st_mtime_ns)  # fmt: skip
        return hashlib.sha256(repr(what).encode()).hexdigest().encode()


@dataclass(frozen=True)
class Done:
    """What became of a job; ``skipped`` if it had been done before, ``faults`` the cells that counted as missing."""

    source: str
    rows: int
    faults: int
    skipped: bool


def embed_file(runtime: Runtime, job: Job) -> Done:
    """Write ``job.target``: columns z_0, z_1, ... of the posterior's mean, after those to keep.

    Raises:
        InputError: a cell that makes no sample, with ``on_error="stop"``; names file, row and column.
        ValueError: no Parquet file, or none of the columns is in it.
    """
    arrow, parquet = _lazy.require("pyarrow", extra="data"), _lazy.require("pyarrow.parquet", extra="data")
    made_from = job.made_from(runtime)
    target = Path(job.target)
    if (before := _rows_made(parquet, arrow, target, made_from)) is not None:
        return Done(job.source, *before, True)
    try:
        file = parquet.ParquetFile(job.source)
    except (arrow.ArrowInvalid, arrow.ArrowTypeError, OSError) as error:
        raise ValueError(f"{job.source}: not a Parquet file ({error})") from error
    with file:
        there = [name for name, column in job.columns.items() if column in file.schema_arrow.names]
        for column in job.keep:
            if column not in file.schema_arrow.names:
                raise ValueError(f"{job.source}: {unknown('column to keep', column, file.schema_arrow.names)}")
        if not there:
            wanted = ", ".join(job.columns.values())
            raise ValueError(f"{job.source}: has columns {file.schema_arrow.names}, expected some of {wanted}")
        names = [*job.keep, *(f"z_{d}" for d in range(runtime.latent_dim))]
        kept = [file.schema_arrow.field(column) for column in job.keep]
        fields = [*kept, *(arrow.field(name, arrow.float32()) for name in names[len(kept) :])]
        rows = faults = 0
        chunks = []
        columns = list(dict.fromkeys([*job.keep, *(job.columns[name] for name in there)]))
        for batch in file.iter_batches(job.batch_rows, columns=columns):
            arrays, mask, bad = _read(runtime, job, there, batch, rows)
            mu = runtime.encode(arrays, mask).mu
            parts = [*(batch.column(c) for c in job.keep), *(arrow.array(mu[:, d]) for d in range(mu.shape[1]))]
            chunks.append(arrow.RecordBatch.from_arrays(parts, schema=arrow.schema(fields)))
            rows, faults = rows + batch.num_rows, faults + bad
    table = arrow.Table.from_batches(chunks, arrow.schema(fields))
    assert table.num_rows == rows
    metadata = {_MADE_FROM: made_from, b"mmvae_fast.faults": str(faults).encode()}
    data = io.BytesIO()
    parquet.write_table(table.replace_schema_metadata(metadata), data)
    _files.write_atomic(target, data.getvalue())
    return Done(job.source, rows, faults, False)


def _rows_made(parquet: Any, arrow: Any, target: Path, made_from: bytes) -> tuple[int, int] | None:
    """Rows and faults of an earlier output that is still what would be made; None if there is none."""
    try:
        found = parquet.read_metadata(target)
    except (OSError, arrow.ArrowInvalid):
        return None
    metadata = found.metadata or {}
    if metadata.get(_MADE_FROM) != made_from:
        return None
    return found.num_rows, int(metadata.get(b"mmvae_fast.faults", b"0"))


def _read(
    runtime: Runtime, job: Job, names: Sequence[str], batch: Any, first: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], int]:
    """Arrays [B, *shape], which rows are observed, and how many cells could not be read."""
    arrays, mask, faults = {}, {}, 0
    for name in names:
        spec = runtime.modalities[name]
        x = np.zeros((batch.num_rows, *spec.shape), dtype=spec.dtype)
        there = np.zeros(batch.num_rows, dtype=bool)
        for row, cell in enumerate(batch.column(job.columns[name]).to_pylist()):
            if cell is None:
                continue
            try:
                x[row] = _sample(runtime, name, cell, Path(job.source).parent)
                there[row] = True
            except (InputError, OSError) as error:
                if job.on_error == "stop":
                    where = f"{job.source}: row {first + row + 1}, column {job.columns[name]!r}"
                    raise BadValue(f"{where}: {error}") from error
                faults += 1
        arrays[name], mask[name] = x, there
    return arrays, mask, faults


def _sample(runtime: Runtime, name: str, cell: Any, folder: Path) -> np.ndarray:
    """One cell [*shape]: a text, the path or the bytes of a file, or numbers, nested as the shape is or flat."""
    spec = runtime.modalities[name]
    if isinstance(cell, dict):  # what Hugging Face's data sets call an image
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes):
        found = values.from_bytes(runtime, name, cell, "the cell")
    elif isinstance(cell, str):
        path = folder / cell
        found = values.from_text(runtime, name, str(path) if not values.takes_text(spec) and path.is_file() else cell)
    else:
        found = values.from_list(runtime, name, [cell])
        if found.ndim == 2 and found.size == int(np.prod(spec.shape)):
            found = found.reshape(1, *spec.shape)
    if found.shape != (1, *spec.shape):
        raise BadShape(f"modality {name!r} has shape {list(found.shape[1:])}, expected {list(spec.shape)}")
    x = found[0]
    if spec.dtype == "float32" and not (np.isfinite(x) | (np.isnan(x) if spec.gaps else False)).all():
        raise BadValue(f"modality {name!r} holds NaN or infinity, expected finite values")
    if spec.dtype == "int64" and ((x < 0) | (x >= (spec.vocabulary_size or 0))).any():
        raise BadValue(f"modality {name!r} holds tokens out of 0 to {(spec.vocabulary_size or 0) - 1}")
    return x
