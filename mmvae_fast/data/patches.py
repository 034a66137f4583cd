"""Images as what they have of visual words."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmvae_fast.data._scale import Scale
from mmvae_fast.data.reader import Reader
from mmvae_fast.features.patches import PatchDictionary, extract_patches, read_image
from mmvae_fast.modalities import Counts, Modality, Vector
from mmvae_fast.reading.numbers import write_table

_FEATURES = ("words", "pooled")


class PatchesReader(Reader):
    """The path or the bytes of an image, or an array [H, W] or [H, W, C] -> float32, of whatever size the image is:
    what its patches are like (:class:`mmvae_fast.features.PatchDictionary`), the dictionary learned from the training
    images. There is no way back to an image: what it writes is a table.

    Args:
        features: "words": how many patches are nearest to each visual word, [n_words], a :class:`Counts` modality.
            "pooled": how near the patches of each quarter of the image are to each word, [4 n_words], each with mean 0
            and standard deviation 1, a :class:`Vector` modality.
        channels: 1 (gray) or 3 (RGB).
        size, n_words, stride, n_patches, variance, seed: of the dictionary.
        likelihood, hidden, scale, library: of the modality; None is its own default.
    """

    kind = "patches"
    reads_files = True
    takes = (os.PathLike, bytes, Mapping, np.ndarray)

    def __init__(
        self,
        *,
        features: str = "words",
        channels: int = 1,
        size: int = 6,
        n_words: int = 64,
        stride: int = 1,
        n_patches: int = 50,
        variance: float | None = 0.99,
        seed: int = 0,
        likelihood: str | None = None,
        hidden: Sequence[int] | None = None,
        scale: float | None = None,
        library: str | None = None,
    ) -> None:
        if features not in _FEATURES:
            raise ValueError(f"patches reader: features is {features!r}, expected one of {_FEATURES}")
        if channels not in (1, 3):
            raise ValueError(f"patches reader: channels is {channels!r}, expected 1 or 3")
        self.features, self.channels = features, channels
        options = {"likelihood": likelihood, "hidden": hidden, "scale": scale, "library": library}
        self.options: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
        self.dictionary = PatchDictionary(
            size=size, n_words=n_words, stride=stride, n_patches=n_patches, variance=variance, seed=seed
        )
        self.scale: Scale | None = None
        self.modality()  # what it refuses is refused now

    def fit(self, cells: Iterable[Any]) -> None:
        cells = list(cells)
        self.dictionary.fit(self._image(cell) for cell in cells)
        if self.features == "pooled":
            self.scale = Scale.of(self.dictionary.pooled(self._image(cell)) for cell in cells)

    def probe(self, cell: Any) -> None:
        extract_patches(self._image(cell), self.dictionary.size, 1)

    def read(self, cell: Any) -> Tensor:
        image = self._image(cell)
        if self.features == "words":
            return torch.from_numpy(self.dictionary.words(image).astype(np.float32))
        if self.scale is None:
            raise ValueError("patches reader: read comes after fit")
        return torch.from_numpy(self.scale.scaled(self.dictionary.pooled(image)).astype(np.float32))

    def write(self, sample: Tensor, path: Path) -> Path:
        words = [f"word{i + 1}" for i in range(self.dictionary.n_words)]
        if self.features == "words":
            return write_table(path, words, self.show(sample)[None])
        return write_table(path, words, self.show(sample).reshape(4, -1))

    def show(self, sample: Tensor) -> np.ndarray:
        """float64 [n_words] or [4 n_words]."""
        values = sample.numpy(force=True).astype(np.float64)
        return values if self.scale is None else self.scale.unscaled(values)

    def modality(self) -> Modality:
        if self.features == "words":
            return Counts(self.dictionary.n_words, **self.options)
        return Vector(4 * self.dictionary.n_words, **self.options)

    def config(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "features": self.features,
            "channels": self.channels,
            **self.options,
            "dictionary": self.dictionary.config(),
            "fitted": None if self.scale is None else self.scale.config(),
        }

    @classmethod
    def _from_config(cls, options: dict[str, Any]) -> Reader:
        fitted, dictionary = options.pop("fitted"), PatchDictionary.from_config(options.pop("dictionary"))
        reader = cls(**options, n_words=dictionary.n_words)
        reader.dictionary = dictionary
        reader.scale = None if fitted is None else Scale(**fitted)
        return reader

    def _image(self, cell: Any) -> np.ndarray:
        if isinstance(cell, Mapping):  # what Hugging Face's data sets call an image
            cell = cell.get("bytes") or cell.get("path")
        if isinstance(cell, (str, os.PathLike, bytes)):
            return read_image(cell, self.channels)
        if isinstance(cell, np.ndarray):
            channels = cell.shape[2] if cell.ndim == 3 else 1
            if channels != self.channels:
                raise ValueError(f"is an array of shape {list(cell.shape)}, expected {self.channels} channels")
            return cell
        raise ValueError(f"is a {type(cell).__name__}, expected the path, the bytes or the pixels of an image")
