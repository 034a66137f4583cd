"""Images as bags of small patches: a dictionary of visual words, and what an image has of each."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mmvae_fast._lazy import require

_CONTRAST = 0.01  # of patches, as a standard deviation in [0, 1]; flatter ones keep being flat


def read_image(source: str | os.PathLike | bytes, channels: int = 1) -> np.ndarray:
    """An image file, or the bytes of one, as uint8 [H, W, channels], gray (1) or RGB (3).

    Read by OpenCV where it is installed, else by Pillow; what is transparent shows the color it has all the same.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an image.
        ImportError: without the ``image`` extra.
    """
    if channels not in (1, 3):
        raise ValueError(f"read_image: channels is {channels!r}, expected 1 or 3")
    if isinstance(source, bytes):
        name, data = "the image", source
    else:
        name, path = str(source), Path(source)
        if not path.is_file():
            raise FileNotFoundError(f"{name}: no such file, expected an image")
        data = path.read_bytes()
    try:
        import cv2  # of the extra "image", as Pillow is, which is everywhere
    except ImportError:
        return _read_with_pillow(name, data, channels)
    try:
        how = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), how)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise ValueError(f"{name}: not an image that OpenCV reads, or a damaged one")
    return pixels[..., None] if channels == 1 else np.ascontiguousarray(pixels[..., ::-1])


def extract_patches(image: np.ndarray, size: int, n: int, seed: int = 0) -> np.ndarray:
    """``n`` patches of ``size`` x ``size`` pixels, drawn at random places (all there are, if fewer).

    Args:
        image: [H, W] or [H, W, C]; uint8, or float in [0, 1].

    Returns:
        float32 [n, size * size * C] in [0, 1].

    Raises:
        ValueError: an image smaller than a patch, or no image.
        ImportError: without the ``image`` extra.
    """
    pixels = _pixels("extract_patches", image, size)
    extract = require("sklearn.feature_extraction.image", extra="image").extract_patches_2d
    total = (pixels.shape[0] - size + 1) * (pixels.shape[1] - size + 1)
    return extract(pixels, (size, size), max_patches=min(n, total), random_state=seed).reshape(min(n, total), -1)


def patch_grid(image: np.ndarray, size: int, stride: int = 1) -> np.ndarray:
    """All patches of an image, every ``stride`` pixels: float32 [rows, columns, size * size * C] in [0, 1].

    Arguments and errors as in :func:`extract_patches`.
    """
    pixels = _pixels("patch_grid", image, size)
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (size, size), axis=(0, 1))[::stride, ::stride]
    return windows.transpose(0, 1, 3, 4, 2).reshape(*windows.shape[:2], -1)


def normalise(patches: np.ndarray) -> np.ndarray:
    """Patches [..., p] of mean 0 and standard deviation 1 each; less, where there is hardly any contrast."""
    centred = patches - patches.mean(-1, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + _CONTRAST**2)


class PatchDictionary:
    """Visual words: centres of normalised, whitened patches, found by k-means.

    :meth:`words` counts how many patches of an image are nearest to each word. :meth:`pooled` keeps roughly where: how
    near patches are to each word, averaged over each quarter of the image.

    Args:
        size: of patches, in pixels.
        n_words: K.
        stride: pixels between patches of an image that is described.
        n_patches: drawn from each image to learn from.
        variance: share of the patches' variance that the principal components keep, which are then scaled to the same
            variance (whitening); None: no whitening.
        seed: of the patches drawn and of k-means.

    Source: Coates, Lee & Ng, An analysis of single-layer networks in unsupervised feature learning, 2011 (k-means,
    whitening, "triangle" activations, pooling over quadrants); Sivic & Zisserman, Video Google, 2003 (visual words).
    """

    def __init__(
        self,
        *,
        size: int = 6,
        n_words: int = 64,
        stride: int = 1,
        n_patches: int = 50,
        variance: float | None = 0.99,
        seed: int = 0,
    ) -> None:
        counts = {"size": size, "n_words": n_words, "stride": stride, "n_patches": n_patches}
        for what, value in counts.items():
            if type(value) is not int or value < 1:
                raise ValueError(f"PatchDictionary: {what} is {value!r}, expected a positive integer")
        if size < 2:
            raise ValueError(f"PatchDictionary: size is {size}, expected 2 or more: one pixel has no contrast")
        if variance is not None and not (isinstance(variance, float) and 0 < variance < 1):
            raise ValueError(f"PatchDictionary: variance is {variance!r}, expected a number between 0 and 1, or None")
        if type(seed) is not int or seed < 0:
            raise ValueError(f"PatchDictionary: seed is {seed!r}, expected an integer, 0 or more")
        self.size, self.n_words, self.stride, self.n_patches = size, n_words, stride, n_patches
        self.variance, self.seed = variance, seed
        self.mean: np.ndarray | None = None  # of normalised patches, [p]
        self.components: np.ndarray | None = None  # [q, p], scaled
        self.centres: np.ndarray | None = None  # [K, q]

    def fit(self, images: Iterable[np.ndarray]) -> PatchDictionary:
        """Learn the words from images [H, W] or [H, W, C], all of as many channels; returns itself.

        Raises:
            ValueError: images smaller than a patch, or fewer different patches than words.
            ImportError: without the ``image`` extra.
        """
        drawn = [extract_patches(image, self.size, self.n_patches, self.seed + i) for i, image in enumerate(images)]
        if len({part.shape[1] for part in drawn}) > 1:
            raise ValueError("PatchDictionary.fit: images of different numbers of channels")
        patches = normalise(np.concatenate(drawn).astype(np.float64)) if drawn else np.zeros((0, 1))
        different = len(np.unique(patches.round(4), axis=0))
        if different < self.n_words:
            raise ValueError(
                f"PatchDictionary.fit: {different} different patches, expected at least n_words, {self.n_words}"
            )
        self.mean = patches.mean(0)
        centred = patches - self.mean
        self.components = np.eye(patches.shape[1])
        if self.variance is not None:
            pca = require("sklearn.decomposition", extra="image").PCA(self.variance, svd_solver="full").fit(centred)
            self.components = pca.components_ / np.sqrt(pca.explained_variance_[:, None])
        kmeans = require("sklearn.cluster", extra="image").MiniBatchKMeans(
            self.n_words, random_state=self.seed, n_init=3, batch_size=1024
        )
        self.centres = kmeans.fit(centred @ self.components.T).cluster_centers_
        return self

    def words(self, image: np.ndarray) -> np.ndarray:
        """How many patches of the image are nearest to each word: int64 [K]."""
        nearest = self._distances(image).argmin(-1)
        return np.bincount(nearest.ravel(), minlength=self.n_words)

    def pooled(self, image: np.ndarray) -> np.ndarray:
        """Mean of max(0, mean distance - distance to the word) over the patches of each quarter (upper left, upper
        right, lower left, lower right): float32 [4 K]."""
        distances = np.sqrt(self._distances(image))
        near = np.maximum(0, distances.mean(-1, keepdims=True) - distances)
        quarters = [half for rows in _halves(near, 0) for half in _halves(rows, 1)]
        return np.concatenate([quarter.mean((0, 1)) for quarter in quarters]).astype(np.float32)

    def _distances(self, image: np.ndarray) -> np.ndarray:
        """Squared, of each patch to each word: [rows, columns, K]."""
        if self.mean is None or self.components is None or self.centres is None:
            raise ValueError("PatchDictionary: fit comes first")
        patches = normalise(patch_grid(image, self.size, self.stride).astype(np.float64))
        if patches.shape[-1] != len(self.mean):
            raise ValueError(
                f"PatchDictionary: patches hold {patches.shape[-1]} numbers, expected {len(self.mean)}: an image of "
                "another number of channels"
            )
        codes = (patches - self.mean) @ self.components.T
        cross = codes @ self.centres.T
        squares = np.square(codes).sum(-1, keepdims=True) - 2 * cross + np.square(self.centres).sum(-1)
        return np.maximum(squares, 0)

    def config(self) -> dict[str, Any]:
        """JSON, what was learned included."""
        options = ("size", "n_words", "stride", "n_patches", "variance", "seed")
        learned = {key: getattr(self, key) for key in ("mean", "components", "centres")}
        return {key: getattr(self, key) for key in options} | {
            key: None if value is None else value.tolist() for key, value in learned.items()
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PatchDictionary:
        """The dictionary a :meth:`config` describes.

        Raises:
            ValueError, KeyError, TypeError: a malformed description.
        """
        options = dict(config)
        learned = {key: options.pop(key) for key in ("mean", "components", "centres")}
        found = cls(**options)
        if learned["centres"] is not None:
            found.mean, found.components, found.centres = (np.asarray(v, np.float64) for v in learned.values())
            (p,), (q, width), (k, codes) = found.mean.shape, found.components.shape, found.centres.shape
            if width != p or codes != q or k != found.n_words:
                raise ValueError("a dictionary of visual words whose mean, components and centres do not fit together")
        return found


def _halves(values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Both with the middle one, if their number is odd: so neither is ever empty."""
    n = values.shape[axis]
    first = np.take(values, range((n + 1) // 2), axis)
    return first, np.take(values, range(n // 2, n), axis)


def _pixels(caller: str, image: np.ndarray, size: int) -> np.ndarray:
    """float32 [H, W, C] in [0, 1]."""
    image = np.asarray(image)
    if image.ndim not in (2, 3) or image.dtype.kind not in "fu" or not image.size:
        raise ValueError(
            f"{caller}: the image is {image.dtype} of shape {list(image.shape)}, expected uint8 or float, [H, W] or "
            "[H, W, C]"
        )
    if min(image.shape[:2]) < size:
        raise ValueError(f"{caller}: the image has {image.shape[0]} x {image.shape[1]} pixels, a patch {size} x {size}")
    pixels = image.astype(np.float32) / (1 if image.dtype.kind == "f" else np.iinfo(image.dtype).max)
    if not np.isfinite(pixels).all():
        raise ValueError(f"{caller}: the image holds NaN or infinite values")
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _read_with_pillow(name: str, data: bytes, channels: int) -> np.ndarray:

    pillow = require("PIL.Image", extra="image")
    ops = require("PIL.ImageOps", extra="image")
    try:
        with pillow.open(io.BytesIO(data)) as image:
            turned = ops.exif_transpose(image).convert("L" if channels == 1 else "RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{name}: not an image that Pillow reads, or a damaged one ({error})") from error
    pixels = np.asarray(turned)
    return pixels[..., None] if channels == 1 else pixels
