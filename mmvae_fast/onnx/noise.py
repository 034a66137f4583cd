"""The noise of every backend, in NumPy: the same seed gives the same normals here, in torch, on CUDA and in C++.

Philox4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011) is a function from a counter and a key
to four random words; nothing is remembered between calls, so threads, batch sizes and call order do not matter:

- key: the 64-bit seed (low word, high word); counter: ``(d // 4, row, sample, stream)``, lane ``d % 4``;
- uniform: ``((x >> 9) + 0.5) * 2**-23``, exact in float32 and strictly inside (0, 1);
- normal: Box-Muller over the lane pairs (0, 1) and (2, 3): ``sqrt(-2 ln u0) * {cos, sin}(2 pi u1)``.

Stream 0 holds the normals, stream 1 the choice of a mixture component. Backends agree on the words bit for bit, and on
the normals to float32 rounding of log, sqrt, cos and sin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mmvae_fast.onnx import integers

SPEC = {
    "generator": "philox4x32-10",
    "key": ["seed & 0xffffffff", "seed >> 32"],
    "counter": ["d // 4", "row", "sample", "stream"],
    "uniform": "((x >> 9) + 0.5) * 2**-23",
    "normal": "box-muller: sqrt(-2 ln u0) * {cos, sin}(2 pi u1) over lanes (0, 1) and (2, 3)",
    "stream": 0,
}

_LOW32, _HIGH = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox_words(
    counter: Sequence[np.ndarray | int], key: Sequence[np.ndarray | np.uint64 | int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Four random 32-bit words, held in uint64, for every counter; the parts of counter and key broadcast."""
    # arrays, not scalars: the 64-bit products and the key schedule wrap, which NumPy reports for scalars only
    c0, c1, c2, c3 = (np.atleast_1d(np.asarray(c, dtype=np.uint64)) for c in counter)
    k0, k1 = (np.atleast_1d(np.asarray(k, dtype=np.uint64)) for k in key)
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (p1 >> _HIGH) ^ c1 ^ k0, p1 & _LOW32, (p0 >> _HIGH) ^ c3 ^ k1, p0 & _LOW32
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & _LOW32, (k1 + np.uint64(0xBB67AE85)) & _LOW32
    return c0, c1, c2, c3


def branch(seed: int, i: int) -> int:
    """The seed of the i-th independent draw: odd strides of 2^64 / golden ratio; the NumPy twin of ``models.seeds``."""
    return (seed + i * 0x9E3779B97F4A7C15) % 2**64


def _uniforms(seed: int, rows: int, dim: int, n_samples: int | None, stream: int) -> list[np.ndarray]:
    """The four lanes of every counter (d // 4, row, sample, stream), float32 in (0, 1): [K, rows, D / 4]."""
    seed, dim = integers.seed(seed), integers.count("dim", dim)
    sample = np.arange(1 if n_samples is None else integers.count("n_samples", n_samples))[:, None, None]
    row = np.arange(integers.count("rows", rows))[:, None]
    block = np.arange((dim + 3) // 4)
    words = philox_words((block, row, sample, stream), (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF))
    shape = np.broadcast_shapes(sample.shape, row.shape, block.shape)
    u = [((w >> np.uint64(9)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23) for w in words]
    return [np.broadcast_to(lane, shape) for lane in u]


def _interleave(lanes: list[np.ndarray], dim: int, n_samples: int | None) -> np.ndarray:
    noise = np.stack(lanes, axis=-1)
    flat = (
        np.ascontiguousarray(noise.reshape(*noise.shape[:2], -1)[..., :dim])
        if noise.size
        else noise.reshape(*noise.shape[:2], dim)
    )
    return flat[0] if n_samples is None else flat


def philox_uniform(seed: int, rows: int, dim: int, n_samples: int | None = None, stream: int = 0) -> np.ndarray:
    """Numbers in (0, 1), float32, from the same counters as :func:`philox_normal`."""
    return _interleave(_uniforms(seed, rows, dim, n_samples, stream), dim, n_samples)


def philox_laplace(seed: int, rows: int, dim: int, n_samples: int | None = None, stream: int = 0) -> np.ndarray:
    """Laplace(0, 1) noise, float32, from the same counters; the NumPy twin of ``reference.philox_laplace``."""
    lanes = []
    for u in _uniforms(seed, rows, dim, n_samples, stream):
        log_tail = np.log(np.float32(2.0) * np.minimum(u, np.float32(1.0) - u))
        lanes.append(np.where(u < 0.5, log_tail, -log_tail))
    return _interleave(lanes, dim, n_samples)


def make(kind: str, seed: int, shape: Sequence[int]) -> np.ndarray:
    """The noise of a part's input: kinds as in ``manifest.NoiseSpec``, shape [(K,) rows (, D)]."""
    if kind.startswith("uniform"):
        samples, rows = shape if len(shape) == 2 else (1, shape[0])
        if kind == "uniform":
            u = philox_uniform(seed, rows, 1, samples, stream=1)[..., 0]
        else:
            u = np.ascontiguousarray(philox_uniform(seed, rows, samples, stream=1).T)
        return u.reshape(shape)
    draw = philox_normal if kind == "normal" else philox_laplace
    return draw(seed, shape[-2], shape[-1], shape[0] if len(shape) == 3 else None)


def seeded(seed: int | None, count: int) -> list[np.ndarray]:
    """What a graph takes that makes its noise itself; without a seed it makes none."""
    signed = ((seed or 0) + 2**63) % 2**64 - 2**63
    return [np.asarray(signed, np.int64), np.asarray(count, np.int64), np.asarray(seed is not None, np.float32)]


def none(kind: str, shape: Sequence[int]) -> np.ndarray:
    """Noise that is none: what it is added to stays the mean."""
    return np.full(shape, 0.5 if kind.startswith("uniform") else 0.0, dtype=np.float32)


def philox_normal(seed: int, rows: int, dim: int, n_samples: int | None = None, stream: int = 0) -> np.ndarray:
    """Standard normals, float32 [rows, dim] or [n_samples, rows, dim]; the NumPy twin of ``reference.philox_normal``.

    Raises:
        InputError: a seed that is no int of 64 bits, or a size that is no int of 0 or more; a ValueError.
    """
    lanes = []
    u = _uniforms(seed, rows, dim, n_samples, stream)
    for u0, u1 in (u[:2], u[2:]):
        radius = np.sqrt(np.float32(-2.0) * np.log(u0))
        angle = np.float32(2.0 * math.pi) * u1
        lanes += [radius * np.cos(angle), radius * np.sin(angle)]
    return _interleave(lanes, dim, n_samples)
