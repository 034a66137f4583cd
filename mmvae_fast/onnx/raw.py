"""Inputs as people have them, for the Runtime: texts, and pictures by path, by their bytes or as pixels."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mmvae_fast import _pictures
from mmvae_fast.onnx.errors import BadDtype, BadValue
from mmvae_fast.onnx.manifest import ModalitySpec

_RAW = (str, bytes, os.PathLike)
_UNIT = ("bernoulli", "discretized_logistic")  # likelihoods of values from 0 to 1, as pictures are read


def arrays(specs: Mapping[str, ModalitySpec], inputs: Any, tokenize: Callable[[list[str], str], np.ndarray]) -> Any:
    """The inputs with what is raw replaced by arrays; a lone text or picture is a batch of one."""
    if not isinstance(inputs, Mapping):
        return inputs  # refused where inputs are checked
    return {name: _array(specs[name], x, tokenize) if name in specs else x for name, x in inputs.items()}


def _array(spec: ModalitySpec, value: Any, tokenize: Callable[[list[str], str], np.ndarray]) -> Any:
    pixels = isinstance(value, np.ndarray) and value.dtype == np.uint8 and spec.preprocessing is not None
    cells: Any = [value] if isinstance(value, _RAW) else value
    listed = isinstance(cells, (list, tuple)) and any(isinstance(cell, _RAW) for cell in cells)
    if not listed and not (pixels and spec.kind == "image"):
        return value
    if spec.kind == "image":
        return np.stack([_picture(spec, cell, i) for i, cell in enumerate(cells)]) if len(cells) else _none(spec)
    if spec.dtype == "int64":
        return tokenize(list(cells), spec.name)
    raise BadDtype(
        f"modality {spec.name!r} is {type(value).__name__}, expected an array of numbers: a bundle reads texts and "
        f"pictures by itself, but no {spec.kind}"
    )


def _none(spec: ModalitySpec) -> np.ndarray:
    return np.zeros((0, *spec.shape), np.float32)


def _picture(spec: ModalitySpec, cell: Any, row: int) -> np.ndarray:
    how = spec.preprocessing
    if how is None and spec.likelihood not in _UNIT:
        raise BadValue(
            f"modality {spec.name!r}: the bundle does not say how pictures become its values, whose likelihood is "
            f"{spec.likelihood!r}; pass arrays, or export it with preprocessing="
        )
    fit, background = (how or {}).get("fit", "stretch"), (how or {}).get("background", 1.0)
    try:
        return _pictures.read(cell, spec.shape, fit, background)
    except (OSError, ValueError) as error:
        raise BadValue(f"modality {spec.name!r}, row {row}: {error}") from error
