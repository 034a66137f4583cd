"""Improved precision and recall: are samples where real ones are, and are they everywhere there?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mmvae_fast._lazy import require


class PrecisionRecall(NamedTuple):
    precision: float
    """The share of generated samples that lie among the real ones: quality."""
    recall: float
    """The share of real samples that lie among the generated ones: diversity."""
    k: int


def precision_recall(real: np.ndarray, generated: np.ndarray, *, k: int = 3) -> PrecisionRecall:
    """Of features [N, F] and [N', F]. A point lies among others if it is within the distance that one of them has to
    its own k-th neighbour.

    Take sets of about one size: the more points, the smaller these distances.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, or no more than ``k`` rows.

    Source: Kynkäänniemi et al., Improved Precision and Recall Metric for Assessing Generative Models, 2019.
    """
    real, generated = (np.asarray(x, dtype=np.float64) for x in (real, generated))
    if type(k) is not int or k < 1:
        raise ValueError(f"precision_recall: k is {k!r}, expected 1 or more")
    for x in (real, generated):
        if x.ndim != 2 or len(x) <= k or x.shape[1] != real.shape[1] or not np.isfinite(x).all():
            raise ValueError(
                f"precision_recall: got shapes {list(real.shape)} and {list(generated.shape)}, expected finite "
                f"features [N, F], N more than k = {k}, the same F"
            )
    return PrecisionRecall(_covered(generated, real, k), _covered(real, generated, k), k)


def _covered(points: np.ndarray, others: np.ndarray, k: int) -> float:
    """The share of points that lie among others."""
    neighbours = require("sklearn.neighbors", extra="evaluate").NearestNeighbors(n_neighbors=k)
    radii = neighbours.fit(others).kneighbors()[0][:, -1]  # without points: a point is no neighbour of itself
    chunked = require("sklearn.metrics", extra="evaluate").pairwise_distances_chunked
    # a duplicate has the distance 0 but for rounding
    slack = 1e-6 * np.sqrt(np.square(others).sum(1)).max(initial=0.0)
    inside = [(distances <= radii + slack).any(1) for distances in chunked(points, others)]
    return float(np.concatenate(inside).mean())
