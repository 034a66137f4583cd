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


def philox_normal(seed: int, rows: int, dim: int, n_samples: int | None = None, stream: int = 0) -> np.ndarray:
    """Standard normals, float32 [rows, dim] or [n_samples, rows, dim]; the NumPy twin of ``reference.philox_normal``.

    Raises:
        InputError: a seed that is no int of 64 bits, or a size that is no int of 0 or more; a ValueError.
    """
    seed, dim = integers.seed(seed), integers.count("dim", dim)
    sample = np.arange(1 if n_samples is None else integers.count("n_samples", n_samples))[:, None, None]
    row = np.arange(integers.count("rows", rows))[:, None]
    block = np.arange((dim + 3) // 4)
    words = philox_words((block, row, sample, stream), (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF))
    u = [((w >> np.uint64(9)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23) for w in words]
    normals = np.empty((*np.broadcast_shapes(sample.shape, row.shape, block.shape), 4), dtype=np.float32)
    for lane in (0, 2):
        radius = np.sqrt(np.float32(-2.0) * np.log(u[lane]))
        angle = np.float32(2.0 * math.pi) * u[lane + 1]
        normals[..., lane] = radius * np.cos(angle)
        normals[..., lane + 1] = radius * np.sin(angle)
    flat = np.ascontiguousarray(normals.reshape(*normals.shape[:2], 4 * len(block))[..., :dim])
    return flat[0] if n_samples is None else flat
