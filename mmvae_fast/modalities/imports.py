"""Networks by import path: a class and JSON arguments, which a saved model can name where it cannot hold the code."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from torch import nn

_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


class Imported:
    """A network that is made as ``Class(latent_dim, **options)``, the class found by ``"package.module:Class"``.

    Raises:
        ValueError: no such path, module or class, or one that is no subclass of nn.Module.
        TypeError: options that JSON cannot hold.
    """

    def __init__(self, path: str, options: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.options = _as_json(path, options)
        self._class = _find(path)

    def make(self, latent_dim: int) -> nn.Module:
        """A new network; ``latent_dim`` is the size of the encoder's mu and logvar, or of what the decoder takes.

        Raises:
            TypeError, ValueError: the class does not take these arguments.
        """
        try:
            return self._class(latent_dim, **self.options)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{self.path}, called with {latent_dim} and {self.options}: {error}") from error

    def config(self) -> dict[str, Any]:
        return {"path": self.path, "options": self.options}


def allows(path: str, allow_import: bool | str | Sequence[str]) -> bool:
    """Whether a path may be imported: ``allow_import`` is True or False, or the packages that may."""
    if isinstance(allow_import, bool):
        return allow_import
    packages = [allow_import] if isinstance(allow_import, str) else list(allow_import)
    module = path.partition(":")[0]
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _find(path: str) -> type[nn.Module]:
    if not _PATH.fullmatch(path):
        raise ValueError(f"import path is {path!r}, expected 'package.module:Class'")
    module, _, name = path.partition(":")
    try:
        found = getattr(import_module(module), name, None)
    except ImportError as error:
        raise ValueError(f"cannot import {path!r}: {error}") from error
    if found is None:
        raise ValueError(f"cannot import {path!r}: module {module!r} has no {name!r}")
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"{path!r} is {found!r}, expected a subclass of torch.nn.Module")
    return found


def _as_json(path: str, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """The options as they come back from a file, so that a network gets the same before and after: tuples as lists."""
    if options is None:
        return {}
    if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
        raise TypeError(f"options of {path!r} are {options!r}, expected a dict of keyword arguments")
    try:
        return json.loads(json.dumps(dict(options), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"options of {path!r} are {options!r}, expected what JSON can hold: {error}") from error
