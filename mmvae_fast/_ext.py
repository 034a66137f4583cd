"""Finds and loads the native ops, and remembers what happened for ``mmvae-fast doctor``.

``mmvae_fast/_C`` holds them for the CPU, ``mmvae_fast/_C_cuda`` for CUDA. Absent is a choice (``MMVAE_FAST_NO_EXT=1``,
a build without nvcc: the twins serve). Present but not loadable is an error, raised at once: a silently slow package
would be worse. With a torch that knows no CUDA the latter is not even tried.
"""

from __future__ import annotations

import importlib
import importlib.util

import torch

OPS_VERSION = 4  # that of csrc/torch/module.h


def _load(name: str) -> bool:
    if importlib.util.find_spec(f"mmvae_fast.{name}") is None:
        return False
    try:
        library = importlib.import_module(f"mmvae_fast.{name}")
    except ImportError as error:
        raise ImportError(
            f"mmvae_fast/{name} was built but does not load with torch {torch.__version__}: {error}. "
            "It needs torch >= 2.10; reinstall mmvae_fast, or see `mmvae-fast doctor`."
        ) from error
    version = getattr(library, "OPS_VERSION", None)
    if version != OPS_VERSION:
        raise ImportError(
            f"{library.__file__} was built from other sources than the Python beside it (ops version {version}, "
            f"expected {OPS_VERSION}): reinstall mmvae_fast."
        )
    return True


LOADED: bool = _load("_C")
CUDA_LOADED: bool = LOADED and torch.version.cuda is not None and _load("_C_cuda")
