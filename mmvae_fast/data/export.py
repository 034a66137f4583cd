"""What a model makes as files: samples that a person can open, and tables of latents."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mmvae_fast._files import check_replaceable, replace_folder, temporary_sibling, write_atomic
from mmvae_fast._lazy import require
from mmvae_fast.data.reader import Reader

SAMPLES = "samples.csv"
TABLES = (".parquet", ".csv", ".npy")


def write_samples(
    folder: str | os.PathLike,
    readers: Mapping[str, Reader],
    samples: Mapping[str, Tensor],
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
    labels: Sequence[str] | None = None,
) -> Path:
    """Samples [N, *shape] by modality as files ``<modality>/<row>.<suffix>``, and a manifest of them, ``samples.csv``,
    with a text itself where the others have a path; the folder is there when it is complete.

    Args:
        labels: of each row, for a column "label".

    Raises:
        FileExistsError: the folder holds anything but earlier samples.
    """
    folder = Path(folder)
    check_replaceable(folder, lambda path: (path / SAMPLES).is_file(), "a folder of samples")
    rows = min((len(x) for x in samples.values()), default=0)
    digits = max(4, len(str(rows)))
    table = io.StringIO()
    lines = csv.writer(table, lineterminator="\n")
    lines.writerow([*samples, *([] if labels is None else ["label"])])
    with temporary_sibling(folder) as temp:
        for name in samples:
            (temp / name).mkdir()
        for row in track(range(rows)):
            cells = []
            for name, x in samples.items():
                path = readers[name].write(x[row], temp / name / f"{row:0{digits}}")
                shown = None if readers[name].reads_files else as_line(readers[name].show(x[row]))
                cells.append(path.relative_to(temp).as_posix() if shown is None else shown)
            lines.writerow(cells if labels is None else [*cells, labels[row]])
        write_atomic(temp / SAMPLES, table.getvalue())
        replace_folder(temp, folder)
    return folder


def as_line(shown: Any) -> str | None:
    """What a reader shows as a line of text, if it is one."""
    if isinstance(shown, str):
        return shown
    if isinstance(shown, (list, tuple)) and all(isinstance(value, (int, float)) for value in shown):
        shown = np.asarray(shown)
    if isinstance(shown, np.ndarray) and shown.ndim == 1:
        return ",".join(f"{value:g}" for value in shown.tolist())
    return None


def write_latents(path: str | os.PathLike, z: np.ndarray) -> Path:
    """Latents [N, D] as columns z_0, z_1, ... of a .parquet or .csv file, or as a .npy array.

    Raises:
        ValueError: another suffix.
    """
    path = Path(path)
    if path.suffix.lower() != ".npy":
        return write_columns(path, {f"z_{d}": z[:, d] for d in range(z.shape[1])}, TABLES)
    data = io.BytesIO()
    np.save(data, z, allow_pickle=False)
    write_atomic(path, data.getvalue())
    return path


def write_columns(
    path: str | os.PathLike, columns: Mapping[str, Any], endings: Sequence[str] = (".parquet", ".csv")
) -> Path:
    """Columns of equal length, by name, as a .parquet or .csv file.

    Args:
        endings: for the error.

    Raises:
        ValueError: another suffix.
    """
    path, data = Path(path), io.BytesIO()
    suffix = path.suffix.lower()
    if suffix not in (".parquet", ".csv"):
        raise ValueError(f"{path}: expected a name that ends in {', '.join(endings)}")
    table = require("pyarrow", extra="data").table(dict(columns))
    if suffix == ".csv":
        require("pyarrow.csv", extra="data").write_csv(table, data)
    else:
        require("pyarrow.parquet", extra="data").write_table(table, data)
    write_atomic(path, data.getvalue())
    return path
