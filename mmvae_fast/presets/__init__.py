"""Whole runs to start from: a configuration with comments, and real files for it, of data that come with pip packages.

Each ``<name>.yaml`` here is the ``config.yaml`` of a preset as it is written; its first line says what it is.
"""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from mmvae_fast._files import fill_folder, replace_folder, temporary_sibling, write_atomic

CONFIG, DATA = "config.yaml", "data"
NAMES = ("vae", "autoencoder", "multimodal", "fusion", "classifier", "gan", "cyclegan", "text")


def text(name: str) -> str:
    """The configuration of a preset.

    Raises:
        ValueError: no such preset.
    """
    if name not in NAMES:
        from mmvae_fast.data.manifest import nearest

        raise ValueError(f"no preset {name!r}{nearest(name, NAMES)}")
    return (resources.files(__name__) / f"{name}.yaml").read_text(encoding="utf-8")


def describe(name: str) -> str:
    """One line about a preset; see :func:`text`."""
    return text(name).partition("\n")[0].removeprefix("# ")


def write(name: str, folder: str | os.PathLike, rows: int | None = None) -> Path:
    """A folder with ``config.yaml`` and ``data/`` (manifest.csv, test.csv and the files they name), there when it is
    complete; returns the path of the former. One that is there already stays as it is; an empty one is filled.

    Args:
        rows: at most so many for training, and for testing; None for all.

    Raises:
        ValueError: no such preset.
        FileExistsError: the folder holds something else, or a configuration that was edited.
        ImportError: without the extra that the data need.
    """
    from mmvae_fast.presets.data import WRITERS

    config, folder = text(name), Path(folder)
    path = folder / CONFIG
    if path.is_file():
        if path.read_text(encoding="utf-8") == config:
            return path
        raise FileExistsError(
            f"{path} is not (or no longer) that of the preset {name!r}: train it with `mmvae-fast train {path}`, or "
            "choose another --out"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there and holds no {CONFIG}, expected nothing or an earlier preset")
    place = folder.resolve()  # "." has no name, and a link to a folder stays
    fill = place.is_dir()  # a shell may stand in it
    with temporary_sibling(place / name if fill else place) as temp:
        WRITERS[name](temp / DATA, rows)
        write_atomic(temp / CONFIG, config)
        if fill:
            fill_folder(temp, place, last=CONFIG)
        else:
            replace_folder(temp, place)
    return path
