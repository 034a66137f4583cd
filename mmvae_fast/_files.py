"""Files that are either wholly there or not at all, whatever interrupts the writing; and folders that may be replaced.

A temporary is a sibling ``.NAME.PID-COUNT.tmp``, so that what a killed process left behind can be told from what a
living one is writing; the next write of the same target sweeps it away.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_count = itertools.count()
_writing: set[Path] = set()  # temporaries of this process: in containers, the one killed before us often had our pid


def write_atomic(path: str | os.PathLike, data: bytes | str) -> None:
    """Write ``data`` to ``path``: into a temporary sibling first, then renamed over it in one step."""
    with _temporary(path) as temp:
        with open(temp, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temp, path)


def with_ending(path: str | os.PathLike, suffix: str) -> Path:
    """A path that ends in ``suffix``, which is added unless it is there: "a.v2" becomes "a.v2.png"."""
    path = Path(path)
    return path if path.suffix.lower() == suffix else path.with_name(path.name + suffix)


def check_replaceable(target: Path, is_ours: Callable[[Path], bool], what: str) -> None:
    """Refuse to replace a folder with anything of others in it; absent, empty and recognised ones may go.

    Args:
        is_ours: does this folder, which is not empty, hold what we wrote earlier?
        what: names that in the error, for example "a training checkpoint of mmvae_fast".

    Raises:
        FileExistsError: naming what is there.
    """
    target = Path(target)
    if not target.exists():
        return
    if not target.is_dir():
        raise FileExistsError(f"{target} is a file, expected {what} or nothing; choose another folder")
    names = sorted(path.name for path in target.iterdir())
    if names and not is_ours(target):
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise FileExistsError(
            f"{target} is not {what} and would be replaced: it holds {', '.join(names[:3])}{more}; choose another "
            "folder, or remove it yourself"
        )


def replace_folder(temp: str | os.PathLike, target: str | os.PathLike) -> None:
    """Put the finished folder ``temp`` (a sibling) in the place of ``target``, which may or may not exist.

    Whether it may be replaced is for :func:`check_replaceable` to say, before the work. No system renames one full
    folder over another, so the old one steps aside first. If that is all that happened before a crash,
    :func:`recover_folder` brings it back.
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


def fill_folder(temp: str | os.PathLike, folder: str | os.PathLike, last: str) -> None:
    """Move what the finished folder ``temp`` holds up into ``folder``, in which it lies and which is else empty; unlike
    :func:`replace_folder`, also where ``folder`` is a mount point or a process stands in it.

    Args:
        last: the entry that says that the others are there.

    Raises:
        FileExistsError: somebody has put something there meanwhile.
    """
    temp, folder = Path(temp), Path(folder)
    strangers = sorted(path.name for path in folder.iterdir() if path.name != temp.name)
    if strangers:
        raise FileExistsError(f"{folder} was empty and now holds {strangers}, so nothing is put there")
    entries = sorted(temp.iterdir(), key=lambda path: path.name == last)
    try:
        for entry in entries:
            os.rename(entry, folder / entry.name)
    except BaseException:
        for entry in entries:
            if not entry.exists():  # it has moved
                _remove(folder / entry.name)
        raise


def recover_folder(target: str | os.PathLike) -> None:
    """Undo a :func:`replace_folder` that was killed between its two renames, or finish one killed after them."""
    target = Path(target)
    _sweep(target)
    old = _aside(target)
    if old.exists():
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, target)


@contextmanager
def temporary_sibling(target: str | os.PathLike) -> Iterator[Path]:
    """An empty folder beside ``target`` to build its replacement in; whatever is left of it is removed at the end."""
    with _temporary(target) as temp:
        temp.mkdir()
        yield temp


@contextmanager
def _temporary(target: str | os.PathLike) -> Iterator[Path]:
    """A free path beside ``target`` for a file or a folder; what is left there is removed at the end."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    target = _resolved(target)
    _sweep(target)
    temp = target.with_name(f".{target.name}.{os.getpid()}-{next(_count)}.tmp")
    _writing.add(temp)
    try:
        yield temp
    finally:
        _remove(temp)
        _writing.discard(temp)


def _sweep(target: Path) -> None:
    """Remove the temporaries that killed processes left beside ``target``."""
    target = _resolved(target)
    pattern = re.compile(rf"\.{re.escape(target.name)}\.(\d+)-\d+\.tmp")
    for path in target.parent.iterdir() if target.parent.is_dir() else ():
        match = pattern.fullmatch(path.name)
        if match and path not in _writing and not _is_alive(int(match[1])):
            _remove(path)


def _is_alive(pid: int) -> bool:
    """Whether another process of that number runs; in doubt, it does."""
    if pid == os.getpid():
        return False
    if os.name == "nt":
        return True  # there, signal 0 kills
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _resolved(target: Path) -> Path:
    return Path(os.path.realpath(target.parent)) / target.name


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")
