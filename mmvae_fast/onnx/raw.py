"""Inputs as people have them, for the Runtime: files, texts and numbers in their own units, read as in training."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmvae_fast.onnx import inputs as checks
from mmvae_fast.onnx.errors import BadDtype, BadValue
from mmvae_fast.onnx.manifest import ModalitySpec
from mmvae_fast.reading import recipes
from mmvae_fast.reading.recipes import Documents, Pictures, Recipe, Texts

Tokenize = Callable[..., np.ndarray]

_FILES = (str, bytes, os.PathLike)
_UNIT = ("bernoulli", "discretized_logistic")  # likelihoods of values from 0 to 1, as pictures are read


def recipe(spec: ModalitySpec) -> Recipe | None:
    """How a modality's values were read, if the bundle says so or there is but one way."""
    if spec.preprocessing is not None:
        return recipes.make(spec.kind, spec.preprocessing, spec.shape, spec.vocabulary)
    if spec.kind == "image" and spec.likelihood in _UNIT and len(spec.shape) == 3 and spec.shape[0] in (1, 3):
        return Pictures()
    return Texts() if spec.dtype == "int64" and (spec.vocabulary or spec.tokens) else None


class Reading:
    """Raw values of one modality to what its encoder takes, and what its decoder gives back to raw values."""

    def __init__(self, spec: ModalitySpec, tokenize: Tokenize, detokenize: Callable[..., list[str]]):
        self.spec, self.tokenize, self.detokenize = spec, tokenize, detokenize
        self.recipe = recipe(spec)
        self._vectorizer: Any = None

    def read(self, raw: Any) -> np.ndarray:
        """[B, *shape]."""
        spec, cells = self.spec, _cells(self.spec, raw)
        if self.recipe is None:
            raise BadValue(
                f"modality {spec.name!r}: the bundle does not say how its values were read ({spec.kind}, likelihood "
                f"{spec.likelihood!r}); pass what the model takes, or export it with preprocessing="
            )
        if isinstance(self.recipe, Texts):
            return self.tokenize(cells, spec.name, truncate=self.recipe.too_long == "cut")
        x = np.zeros((len(cells), *spec.shape), dtype=np.float32)
        for row, cell in enumerate(cells):
            try:
                x[row] = self._one(cell)
            except (OSError, ValueError, TypeError, OverflowError) as error:
                raise BadValue(f"modality {spec.name!r}, row {row}: {error}") from error
        checks.check_values(spec, x, np.arange(len(x)))
        return x

    def show(self, samples: Any) -> Any:
        """Of [B, *shape]: a list of B texts, (waveform, rate) or so, or an array."""
        x = checks.samples(self.spec, samples)
        if self.recipe is None:
            return x
        if isinstance(self.recipe, Texts):
            return self.detokenize(x, self.spec.name)
        if isinstance(self.recipe, Documents):
            return [self.recipe.top_words(row, self.spec.vocabulary or ()) for row in x]
        found = [self.recipe.show(row) for row in x]
        return np.stack(found) if found and isinstance(found[0], np.ndarray) else found

    def _one(self, cell: Any) -> np.ndarray:
        assert self.recipe is not None
        if not isinstance(self.recipe, Documents):
            return self.recipe.read(cell, self.spec.shape)
        if not isinstance(cell, str):
            raise ValueError(f"is a {type(cell).__name__}, expected text")
        if self._vectorizer is None:
            self._vectorizer = self.recipe.vectorizer(self.spec.vocabulary or ())
        return self._vectorizer.transform([cell]).toarray()[0]


def _cells(spec: ModalitySpec, raw: Any) -> Sequence[Any]:
    """One a row; a lone text, file or (waveform, rate) is a row."""
    if isinstance(raw, (*_FILES, Mapping)) or (spec.kind == "audio" and isinstance(raw, tuple) and _is_sound(raw)):
        return [raw]
    if isinstance(raw, (list, tuple)) or (isinstance(raw, np.ndarray) and raw.ndim):
        return list(raw)
    raise BadDtype(f"modality {spec.name!r} is a {type(raw).__name__}, expected a list of raw values, one a row")


def _is_sound(raw: tuple[Any, ...]) -> bool:
    return len(raw) == 2 and np.ndim(raw[0]) > 0 and isinstance(raw[1], (int, float, np.number))


def arrays(specs: Mapping[str, ModalitySpec], inputs: Any, read: Callable[[str, Any], np.ndarray]) -> Any:
    """The inputs with texts, files and uint8 pixels replaced by arrays; arrays are what the model takes."""
    if not isinstance(inputs, Mapping):
        return inputs  # refused where inputs are checked
    return {name: _array(specs[name], x, read) if name in specs else x for name, x in inputs.items()}


def _array(spec: ModalitySpec, value: Any, read: Callable[[str, Any], np.ndarray]) -> Any:
    pixels = isinstance(value, np.ndarray) and value.dtype == np.uint8 and spec.preprocessing is not None
    cells = [value] if isinstance(value, _FILES) else value
    listed = isinstance(cells, (list, tuple)) and any(isinstance(cell, _FILES) for cell in cells)
    if not listed and not (pixels and spec.kind == "image"):
        return value
    if spec.preprocessing is None and spec.kind != "image" and spec.dtype != "int64":
        raise BadDtype(
            f"modality {spec.name!r} is {type(value).__name__}, expected an array of numbers: the bundle does not say "
            f"how this {spec.kind} was read"
        )
    return read(spec.name, cells)
