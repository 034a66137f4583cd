"""mmvae_fast: fused kernels, models and ONNX serving for multimodal variational autoencoders.

Submodules load on first use, so that ``mmvae_fast.onnx.Runtime`` works in an environment without torch and the
command line starts at once.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from typing import Any

__version__ = "0.1.0"

_SUBMODULES = (
    "data", "demo", "distributions", "evaluate", "functional", "modalities", "models", "nn", "onnx", "plots",
    "reference", "sklearn", "training",
)  # fmt: skip

__all__ = ["__version__", "kernels_available", *_SUBMODULES]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"mmvae_fast.{name}")
    raise AttributeError(f"module 'mmvae_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_SUBMODULES])


def kernels_available() -> bool:
    """Whether the native kernels were built (False only for a ``MMVAE_FAST_NO_EXT=1`` build)."""
    return importlib.util.find_spec("mmvae_fast._C") is not None


if not kernels_available():
    warnings.warn(
        "mmvae_fast was built without its native kernels (MMVAE_FAST_NO_EXT=1): every function runs as plain PyTorch. "
        "Reinstall without that variable for the fast ones.",
        RuntimeWarning,
        stacklevel=2,
    )
