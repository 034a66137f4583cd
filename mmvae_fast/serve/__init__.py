"""A bundle behind HTTP: ``mmvae-fast serve BUNDLE``, or :func:`create_app` for an ASGI server of one's own.

Needs the ``serve`` extra (FastAPI, uvicorn, ...) and the ``runtime`` one; never torch. Loads on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmvae_fast.serve.app import create_app
    from mmvae_fast.serve.limits import Limits

__all__ = ["Limits", "create_app"]

_HOME = {"create_app": "app", "Limits": "limits"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"mmvae_fast.serve.{_HOME[name]}"), name)
    raise AttributeError(f"module 'mmvae_fast.serve' has no attribute {name!r}")
