"""Optional dependencies: imported where they are used, and an error that names the extra when one is missing."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, *, extra: str) -> ModuleType:
    """Import ``module``; raise an ImportError that says which extra of mmvae_fast brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise  # the module is there; something it needs is not
        raise ImportError(
            f"{module.split('.')[0]} is not installed; it comes with the '{extra}' extra: "
            f"pip install 'mmvae_fast[{extra}]'"
        ) from error
