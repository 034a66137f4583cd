"""The inception score with any classifier: does each sample show one class clearly, and do all together show all?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class ClassifierScore(NamedTuple):
    score: float
    """From 1 to the number of classes."""
    deviation: float
    """Standard deviation over the splits."""


def classifier_score(probabilities: np.ndarray, *, splits: int = 10) -> ClassifierScore:
    """exp of the mean KL divergence of p(class | x) from its mean over samples, averaged over splits.

    Args:
        probabilities: [N, C], rows that sum to 1.
        splits: of the samples, in the order they come in; no more than N.

    Source: Salimans et al., Improved Techniques for Training GANs, 2016.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 2 or not len(p) or (p < 0).any() or not np.allclose(p.sum(1), 1, atol=1e-3):
        raise ValueError(f"classifier_score: got shape {list(p.shape)}, expected [N, C], rows of which sum to 1")
    if type(splits) is not int or splits < 1:
        raise ValueError(f"classifier_score: splits is {splits!r}, expected 1 or more")
    scores = []
    for part in np.array_split(p, min(splits, len(p))):
        marginal = part.mean(0)
        ratio = np.divide(part, marginal, out=np.ones_like(part), where=part > 0)
        scores.append(np.exp((part * np.log(ratio)).sum(1).mean()))
    return ClassifierScore(float(np.mean(scores)), float(np.std(scores)))
