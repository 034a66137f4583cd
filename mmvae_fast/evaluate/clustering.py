"""Do clusters of latents agree with classes that the model was never told?"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmvae_fast._lazy import require
from mmvae_fast.evaluate.rows import UNKNOWN

METHODS = ("kmeans", "gmm")


class Clustering(NamedTuple):
    ari: float
    """Adjusted Rand index: 0 by chance, 1 if clusters are classes."""
    nmi: float
    """Normalised mutual information, 0 to 1."""
    accuracy: float
    """Share of rows in the cluster of their class, clusters matched to classes at best."""
    clusters: int
    rows: int


def clustering(
    latents: Tensor | np.ndarray,
    labels: Any,
    *,
    method: str = "kmeans",
    n_clusters: int | None = None,
    seed: int = 0,
) -> Clustering:
    """Cluster latents [N, D], and compare with labels.

    Args:
        labels: int [N]; rows with -1 are left out.
        method: "kmeans", or "gmm" (a Gaussian mixture with diagonal covariances).
        n_clusters: as many as classes unless told.
    """
    if method not in METHODS:
        raise ValueError(f"clustering: method is {method!r}, expected one of {METHODS}")
    z, known = labelled(latents, labels, "clustering")
    count = len(np.unique(known)) if n_clusters is None else n_clusters
    if type(count) is not int or not 1 <= count <= len(z):
        raise ValueError(f"clustering: n_clusters is {count!r}, expected 1 to the number of rows, {len(z)}")
    state = seed % 2**32
    if method == "kmeans":
        found = require("sklearn.cluster", extra="evaluate").KMeans(count, n_init=10, random_state=state).fit_predict(z)
    else:
        mixture = require("sklearn.mixture", extra="evaluate").GaussianMixture(
            count, covariance_type="diag", reg_covar=1e-4, n_init=3, random_state=state
        )
        found = mixture.fit_predict(z)
    metrics = require("sklearn.metrics", extra="evaluate")
    return Clustering(
        float(metrics.adjusted_rand_score(known, found)),
        float(metrics.normalized_mutual_info_score(known, found)),
        matched_accuracy(known, found),
        count,
        len(z),
    )


def matched_accuracy(labels: Any, clusters: Any) -> float:
    """The share of rows whose cluster is that of their class, in the one-to-one matching of clusters and classes that
    makes it largest (Hungarian method); a cluster too many has no class."""
    contingency = require("sklearn.metrics.cluster", extra="evaluate").contingency_matrix(labels, clusters)
    matching = require("scipy.optimize", extra="evaluate").linear_sum_assignment(contingency, maximize=True)
    return float(contingency[matching].sum() / contingency.sum())


def labelled(latents: Tensor | np.ndarray, labels: Any, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Latents and labels of the rows that have one, as arrays, checked."""
    z = torch.as_tensor(latents).double().numpy(force=True)
    known = np.asarray(torch.as_tensor(labels).cpu())
    if z.ndim != 2 or not np.isfinite(z).all():
        raise ValueError(f"{where}: latents has shape {list(z.shape)}, expected finite values [N, D]")
    if known.shape != (len(z),):
        raise ValueError(f"{where}: labels has shape {list(known.shape)}, expected [N] = [{len(z)}]")
    there = known != UNKNOWN
    if not there.any():
        raise ValueError(f"{where}: no row has a label, expected some that are not -1")
    return z[there], known[there]
