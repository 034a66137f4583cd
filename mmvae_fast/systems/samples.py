"""What a system generates after an epoch, as files: ``.npy`` always, ``.png`` where there is something to look at."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from mmvae_fast._files import write_atomic
from mmvae_fast._lazy import require


def write_preview(folder: Path, epoch: int, samples: Mapping[str, Tensor]) -> None:
    """``epoch-0001-<name>.npy`` [n, *shape], and a ``.png`` of images and of anything else with two dimensions.

    What an earlier run left there of later epochs goes, and with the first epoch all of it.
    """
    _remove_stale(folder, epoch)
    for name, x in samples.items():
        array = x.detach().float().cpu().numpy()
        file = io.BytesIO()
        np.save(file, array)
        write_atomic(folder / f"epoch-{epoch:04d}-{name}.npy", file.getvalue())
        if len(array) and is_drawn(array.shape[1:]):
            write_atomic(folder / f"epoch-{epoch:04d}-{name}.png", png(grid(array)))


def _remove_stale(folder: Path, epoch: int) -> None:
    """Of files that we wrote alone: a picture that has no ``.npy`` beside it is somebody else's."""
    for array in list(folder.glob("epoch-*.npy")):
        named = re.fullmatch(r"epoch-(\d{4,})-.+\.npy", array.name)
        if named and (epoch == 1 or int(named[1]) > epoch):
            array.with_name(f"{array.stem}.png").unlink(missing_ok=True)
            array.unlink(missing_ok=True)


def is_drawn(shape: Sequence[int]) -> bool:
    """Whether samples of this shape are pictures: [H, W], or [1, H, W], or [3, H, W]."""
    return len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))


def grid(samples: np.ndarray, columns: int = 10) -> np.ndarray:
    """Pictures [n, H, W] or [n, C, H, W] side by side: one picture [H', W'] or [H', W', C]; spectrograms' first row,
    the lowest band, goes to the bottom. Gaps are the least value."""
    pictures = samples[:, None, ::-1] if samples.ndim == 3 else samples
    n, channels, height, width = pictures.shape
    rows = math.ceil(n / columns)
    page = np.full((channels, rows * (height + 1) - 1, columns * (width + 1) - 1), samples.min(), samples.dtype)
    for i, picture in enumerate(pictures):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        page[:, top : top + height, left : left + width] = picture
    return page[0] if channels == 1 else page.transpose(1, 2, 0)


def png(picture: np.ndarray) -> bytes:
    """A picture as a PNG file: 0 is black and 1 white, unless values lie outside, which then are."""
    low, high = min(0.0, float(picture.min())), max(1.0, float(picture.max()))
    scaled = (picture - low) / (high - low)
    file = io.BytesIO()
    require("PIL.Image", extra="systems").fromarray((255 * scaled).round().astype(np.uint8)).save(file, "PNG")
    return file.getvalue()
