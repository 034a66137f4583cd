"""Finds and loads the native ops (``mmvae_fast/_C``), and remembers what happened for ``mmvae-fast doctor``.

Absent is a choice (``MMVAE_FAST_NO_EXT=1``: the twins serve). Present but not loadable is an error, raised at once:
a silently slow package would be worse.
"""

from __future__ import annotations

import importlib
import importlib.util

import torch


def _load() -> bool:
    if importlib.util.find_spec("mmvae_fast._C") is None:
        return False
    try:
        importlib.import_module("mmvae_fast._C")
    except ImportError as error:
        raise ImportError(
            f"mmvae_fast/_C was built but does not load with torch {torch.__version__}: {error}. "
            "It needs torch >= 2.10; reinstall mmvae_fast, or see `mmvae-fast doctor`."
        ) from error
    return True


LOADED: bool = _load()
