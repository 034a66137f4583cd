"""Images from files, bytes or arrays: to one size and number of channels, as float32 [C, H, W] in [0, 1]."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from mmvae_fast._checks import is_number
from mmvae_fast._files import with_ending, write_atomic
from mmvae_fast._lazy import require
from mmvae_fast.data.reader import Reader
from mmvae_fast.modalities import Image
from mmvae_fast.reading import pictures


class ImageReader(Reader):
    """A path, the bytes of a file (also as a dict with "bytes", as Parquet data sets have them), or an array [H, W] or
    [H, W, C] (uint8, or floating point in [0, 1]) -> float32 [channels, height, width] in [0, 1].

    Every mode of Pillow is read: palettes, 16 bits, CMYK; what is transparent shows ``background``. The orientation
    that a camera noted is applied.

    Args:
        size: (height, width); None takes that of the first training image.
        channels: 1 (gray) or 3 (RGB); None takes what the first training image has.
        fit: how an image of another shape becomes one of ``size``: "stretch", "crop" (its middle) or "pad" (with
            ``background``).
        background: gray value in [0, 1].
        augment: of training images: {"flip": True} mirrors half of them left to right, {"crop": n} shifts by up to n
            pixels either way, {"jitter": f} varies brightness and contrast by a factor of 1 - f to 1 + f.
        options: of the modality: likelihood, network, hidden, ...; see :class:`mmvae_fast.modalities.Image`.

    Raises:
        ValueError, TypeError: options that cannot be.
    """

    kind = "image"
    reads_files = True
    takes = (os.PathLike, bytes, Mapping, np.ndarray)

    def __init__(
        self,
        *,
        size: Sequence[int] | None = None,
        channels: int | None = None,
        fit: str = "stretch",
        background: float = 1.0,
        augment: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        if size is not None and (
            not isinstance(size, Sequence) or len(size) != 2 or not all(type(n) is int and n > 0 for n in size)
        ):
            raise ValueError(f"ImageReader: size is {size!r}, expected (height, width), positive integers")
        if channels not in (None, 1, 3):
            raise ValueError(f"ImageReader: channels is {channels!r}, expected 1 or 3")
        if fit not in pictures.FITS:
            raise ValueError(f"ImageReader: fit is {fit!r}, expected one of {pictures.FITS}")
        if not is_number(background) or not 0 <= background <= 1:
            raise ValueError(f"ImageReader: background is {background!r}, expected a gray value from 0 to 1")
        self.size = None if size is None else (size[0], size[1])
        self.channels = channels
        self.how, self.background = fit, float(background)
        self.augmentation = _augmentation(augment)
        self.options = options
        Image((channels or 1, *(self.size or (8, 8))), **options)  # what the modality refuses is refused now

    def fit(self, cells: Iterable[Any]) -> None:
        if self.size is not None and self.channels is not None:
            return
        for cell in cells:
            image = pictures.load(cell)
            if self.size is None:
                self.size = (image.height, image.width)
            if self.channels is None:
                self.channels = 1 if image.mode in pictures.GRAY else 3
            return
        raise ValueError("ImageReader: there is no image to take size and channels from; set both")

    def read(self, cell: Any) -> Tensor:
        (height, width), channels = self._fitted("read")
        values = pictures.read(cell, (channels, height, width), self.how, self.background)
        return torch.from_numpy(values)

    def augment(self, sample: Tensor, generator: Generator) -> Tensor:
        crop, jitter = self.augmentation["crop"], self.augmentation["jitter"]
        if self.augmentation["flip"] and torch.rand((), generator=generator) < 0.5:
            sample = sample.flip(-1)
        if crop:
            top, left = torch.randint(2 * crop + 1, (2,), generator=generator).tolist()
            padded = F.pad(sample[None], (crop,) * 4, mode="replicate")[0]
            sample = padded[:, top : top + sample.shape[1], left : left + sample.shape[2]]
        if jitter:
            brightness, contrast = 1 + jitter * (2 * torch.rand(2, generator=generator) - 1)
            mean = sample.mean()
            sample = ((sample - mean) * contrast + mean * brightness).clamp(0, 1)
        return sample

    def write(self, sample: Tensor, path: Path) -> Path:
        path = with_ending(path, ".png")
        pixels = self.show(sample)
        file = io.BytesIO()
        image = require("PIL.Image", extra="image")
        image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, format="PNG")
        write_atomic(path, file.getvalue())
        return path

    def show(self, sample: Tensor) -> np.ndarray:
        """uint8 [H, W, C]."""
        return (sample.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy(force=True)

    def modality(self) -> Image:
        size, channels = self._fitted("modality")
        return Image((channels, *size), **self.options)

    def config(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "size": None if self.size is None else list(self.size),
            "channels": self.channels,
            "fit": self.how,
            "background": self.background,
            "augment": dict(self.augmentation),
            **self.options,
        }

    def _fitted(self, method: str) -> tuple[tuple[int, int], int]:
        if self.size is None or self.channels is None:
            raise ValueError(f"ImageReader.{method}: size and channels are not known yet; set them or call fit")
        return self.size, self.channels


def _augmentation(wanted: Mapping[str, Any] | None) -> dict[str, Any]:
    found = {"flip": False, "crop": 0, "jitter": 0.0, **(wanted or {})}
    flip, crop, jitter = found["flip"], found["crop"], found["jitter"]
    if len(found) > 3:
        raise ValueError(f"ImageReader: augment names {sorted(found)}, expected some of 'flip', 'crop', 'jitter'")
    if type(flip) is not bool:
        raise ValueError(f"ImageReader: augment: flip is {flip!r}, expected True or False")
    if type(crop) is not int or crop < 0:
        raise ValueError(f"ImageReader: augment: crop is {crop!r}, expected a number of pixels, 0 or more")
    if not is_number(jitter) or not 0 <= jitter < 1:
        raise ValueError(f"ImageReader: augment: jitter is {jitter!r}, expected a number from 0 to below 1")
    return found
