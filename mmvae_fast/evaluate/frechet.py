"""The Fréchet distance of two sets of samples in a feature space, never without what two sets of real ones have."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from mmvae_fast.evaluate.features import Features
from mmvae_fast.evaluate.rows import shuffled


class Frechet(NamedTuple):
    """A distance and what to compare it with."""

    distance: float
    """Of generated samples from half of the real ones: the mean over the two halves."""
    floor: float
    """Of the two halves from each other: what perfect samples would have, as the distance grows with fewer rows."""
    rows: int
    """In every set."""
    features: str
    """The space."""


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of features [N, F], each taken for a Gaussian.

    Raises:
        ValueError: not two sets of two or more finite rows with the same F.

    Source: Heusel et al., GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium, 2017,
    equation 6; Dowson & Landau, The Fréchet distance between multivariate normal distributions, 1982.
    """
    a, b = (np.asarray(x, dtype=np.float64) for x in (a, b))
    for x in (a, b):
        if x.ndim != 2 or len(x) < 2 or x.shape[1] != a.shape[1] or not np.isfinite(x).all():
            raise ValueError(
                f"frechet_distance: got shapes {list(a.shape)} and {list(b.shape)}, expected finite features [N, F], "
                "N at least 2, the same F"
            )
    mean = np.square(a.mean(0) - b.mean(0)).sum()
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    # the root's trace is that of (A^(1/2) B A^(1/2))^(1/2), whose matrix is symmetric: real even where C_a is singular
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    trace = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(min=0)).sum()
    return float(max(mean + np.trace(cov_a) + np.trace(cov_b) - 2 * trace, 0.0))


def frechet(real: Tensor, generated: Tensor, features: Features, *, seed: int = 0) -> Frechet:
    """Compare samples [N, *shape] with real ones, all sets of one size: as the distance is biased upwards by few rows,
    only distances of as many are comparable.

    Args:
        features: the space; see :mod:`mmvae_fast.evaluate.features`.
        seed: of the halves.

    Raises:
        ValueError: fewer than 4 real or 2 generated samples.
    """
    if len(real) < 4 or len(generated) < 2:
        raise ValueError(f"frechet: got {len(real)} real and {len(generated)} generated samples, expected 4 and 2")
    rows = min(len(real) // 2, len(generated))
    seen = features(real[shuffled(len(real), seed, "halves").to(real.device)])
    first, second = seen[:rows], seen[rows : 2 * rows]
    made = features(generated[:rows])
    distance = (frechet_distance(made, first) + frechet_distance(made, second)) / 2
    return Frechet(distance, frechet_distance(first, second), rows, features.name)
