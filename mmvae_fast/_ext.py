"""Finds and loads the native ops (``mmvae_fast/_C``), and remembers what happened for ``mmvae-fast doctor``.

Absent is a choice (``MMVAE_FAST_NO_EXT=1``: the twins serve). Present but not loadable is an error, raised at once:
a silently slow package would be worse.
"""

from __future__ import annotations

import importlib
import importlib.util

import torch

OPS_VERSION = 2  # that of csrc/torch/library.cpp


def _load() -> bool:
    if importlib.util.find_spec("mmvae_fast._C") is None:
        return False
    try:
        library = importlib.import_module("mmvae_fast._C")
    except ImportError as error:
        raise ImportError(
            f"mmvae_fast/_C was built but does not load with torch {torch.__version__}: {error}. "
            "It needs torch >= 2.10; reinstall mmvae_fast, or see `mmvae-fast doctor`."
        ) from error
    if getattr(library, "OPS_VERSION", None) != OPS_VERSION:
        raise ImportError(
            f"{library.__file__} was built from other sources than the Python beside it (ops version "
            f"{getattr(library, 'OPS_VERSION', None)}, expected {OPS_VERSION}): reinstall mmvae_fast."
        )
    return True


LOADED: bool = _load()
CUDA_LOADED: bool = False
