"""How much of the class can be read off the latents by a straight line?"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from mmvae_fast._lazy import require
from mmvae_fast.evaluate.clustering import labelled


class Probe(NamedTuple):
    accuracy: float
    """On rows that the probe was not fitted to."""
    chance: float
    """Share of the largest class among these."""
    rows: int


def linear_probe(
    latents: Tensor | np.ndarray,
    labels: Any,
    *,
    test: tuple[Tensor | np.ndarray, Any] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> Probe:
    """Accuracy of a logistic regression on standardised latents [N, D].

    Args:
        labels: int [N]; rows with -1 are left out.
        test: (latents, labels) to judge on; without it, cross-validation over the rows themselves.
        folds: of the cross-validation, no more than the smallest class has rows.

    Raises:
        ValueError: fewer than two classes, or a class with one row and no ``test``.
    """
    z, known = labelled(latents, labels, "linear_probe")
    classes, counts = np.unique(known, return_counts=True)
    if len(classes) < 2:
        raise ValueError(f"linear_probe: labels holds the classes {classes.tolist()}, expected two or more")
    probe = require("sklearn.pipeline", extra="evaluate").make_pipeline(
        require("sklearn.preprocessing", extra="evaluate").StandardScaler(),
        require("sklearn.linear_model", extra="evaluate").LogisticRegression(max_iter=1000, random_state=0),
    )
    if test is not None:
        test_z, truth = labelled(*test, "linear_probe: test")
        accuracy = float(probe.fit(z, known).score(test_z, truth))
    else:
        truth = known
        folds = min(folds, int(counts.min()))
        if folds < 2:
            raise ValueError(f"linear_probe: class {classes[counts.argmin()]} has one row, expected two or more")
        selection = require("sklearn.model_selection", extra="evaluate")
        split = selection.StratifiedKFold(folds, shuffle=True, random_state=seed % 2**32)
        accuracy = float(np.mean(selection.cross_val_predict(probe, z, known, cv=split) == known))
    return Probe(accuracy, float(np.unique(truth, return_counts=True)[1].max() / len(truth)), len(truth))
