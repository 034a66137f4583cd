"""Files that are either wholly there or not at all, whatever interrupts the writing."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomic(path: str | os.PathLike, data: bytes | str) -> None:
    """Write ``data`` to ``path``: into a temporary sibling first, then renamed over it in one step."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temp, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temp, path)
    finally:
        temp.unlink(missing_ok=True)


def replace_folder(temp: str | os.PathLike, target: str | os.PathLike) -> None:
    """Put the finished folder ``temp`` (a sibling) in the place of ``target``, which may or may not exist.

    No system renames one full folder over another, so the old one steps aside first. If that is all that happened
    before a crash, :func:`recover_folder` brings it back.
    """
    temp, target = Path(temp), Path(target)
    recover_folder(target)
    old = _aside(target)
    try:
        if target.exists():
            os.rename(target, old)
        os.rename(temp, target)
    except BaseException:
        recover_folder(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(target: str | os.PathLike) -> None:
    """Undo a :func:`replace_folder` that was killed between its two renames, or finish one killed after them."""
    target = Path(target)
    old = _aside(target)
    if old.exists():
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, target)


@contextmanager
def temporary_sibling(target: str | os.PathLike) -> Iterator[Path]:
    """An empty folder beside ``target`` to build its replacement in; whatever is left of it is removed at the end."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temp = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    os.chmod(temp, 0o777 & ~_umask())  # mkdtemp's 0700 would stay with the finished folder
    try:
        yield temp
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value
