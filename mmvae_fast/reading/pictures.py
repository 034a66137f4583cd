"""Pictures as float32 arrays, the same in training and in serving. NumPy and Pillow only: no torch here."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmvae_fast._lazy import require

FITS = ("stretch", "crop", "pad")
GRAY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F")
"""Modes of Pillow without color."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""What is read of anyone's bytes. Pillow knows more: for EPS it would run Ghostscript on them."""
OWN_FORMATS = (*FORMATS, "PPM", "TGA", "JPEG2000")
"""What is read of one's own files, in training."""


def read(cell: Any, shape: Sequence[int], fit: str = "stretch", background: float = 1.0) -> np.ndarray:
    """A path, the bytes of a file, or pixels [H, W(, C)] -> float32 [channels, height, width] in [0, 1].

    Raises:
        ValueError, OSError: not an image, or a damaged one.
    """
    channels, height, width = shape
    ops = require("PIL.ImageOps", extra="image")
    bilinear = require("PIL.Image", extra="image").Resampling.BILINEAR  # averages over what it makes smaller
    image = _to_values(load(cell), channels, background)
    if image.size != (width, height):
        if fit == "stretch":
            image = image.resize((width, height), bilinear)
        elif fit == "crop":
            image = ops.fit(image, (width, height), bilinear)
        else:
            gray = background if image.mode == "F" else round(255 * background)
            color = gray if len(image.getbands()) == 1 else (gray,) * 3
            image = ops.pad(image, (width, height), bilinear, color=color)
    highest = 1 if image.mode == "F" else 255
    values = np.atleast_3d(np.asarray(image, dtype=np.float32) / np.float32(highest)).transpose(2, 0, 1)
    values = np.clip(values, 0, 1)
    return np.broadcast_to(values, (channels, height, width)).copy()


def load(cell: Any) -> Any:
    """A cell as a loaded Pillow image.

    Raises:
        ValueError, OSError: not an image, or a damaged one.
    """
    pillow = require("PIL.Image", extra="image")
    if isinstance(cell, Mapping):  # what Hugging Face's data sets call an image
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, np.ndarray):
        return _from_array(cell, pillow)
    if not isinstance(cell, (str, os.PathLike, bytes)):
        raise ValueError(f"is a {type(cell).__name__}, expected the path, the bytes or the pixels of an image")
    what = f"{len(cell)} bytes" if isinstance(cell, bytes) else os.fspath(cell)
    try:
        with pillow.open(io.BytesIO(cell) if isinstance(cell, bytes) else cell, formats=OWN_FORMATS) as image:
            image.load()
            return require("PIL.ImageOps", extra="image").exif_transpose(image)
    except pillow.UnidentifiedImageError:
        raise ValueError(
            f"{what}: not an image of a known format ({', '.join(OWN_FORMATS)}), or a damaged one"
        ) from None
    except FileNotFoundError:
        raise FileNotFoundError(f"{what}: no such file") from None
    except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as error:
        raise ValueError(f"{what}: a damaged image ({error})") from error


def _from_array(pixels: np.ndarray, pillow: Any) -> Any:
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)) or not pixels.size:
        raise ValueError(f"is an array of shape {list(pixels.shape)}, expected [H, W] or [H, W, 1 or 3]")
    if pixels.dtype == np.uint8:
        return pillow.fromarray(pixels)
    if pixels.dtype.kind != "f":
        raise ValueError(f"is an array of {pixels.dtype}, expected uint8, or floating point from 0 to 1")
    _check_range(pixels)
    if pixels.ndim == 2:
        return pillow.fromarray(pixels.astype(np.float32))
    return pillow.fromarray(np.round(pixels * 255).astype(np.uint8))


def _check_range(values: np.ndarray) -> None:
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise ValueError(f"holds values from {values.min():g} to {values.max():g}, expected 0 to 1")


def _to_values(image: Any, channels: int, background: float) -> Any:
    """In mode L or RGB, 8 bits; or F, gray values in [0, 1], where the image has more bits than that."""
    pillow = require("PIL.Image", extra="image")
    if image.mode == "F" or image.mode.startswith("I"):
        highest = 1 if image.mode == "F" else 65535  # a PNG of 16 bits also comes as mode I
        values = np.asarray(image, dtype=np.float32) / np.float32(highest)
        _check_range(values)
        return pillow.fromarray(values)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        below = pillow.new("RGBA", image.size, (round(255 * background),) * 3 + (255,))
        image = pillow.alpha_composite(below, image)
    return image.convert("L" if channels == 1 else "RGB")
