"""Sets of samples beside one another: each against the same half of the real ones, as the other half is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmvae_fast.evaluate.classifier_score import classifier_score
from mmvae_fast.evaluate.features import Features
from mmvae_fast.evaluate.frechet import frechet_distance
from mmvae_fast.evaluate.oracles import Judge, Oracle
from mmvae_fast.evaluate.precision_recall import precision_recall
from mmvae_fast.evaluate.rows import shuffled

REAL = "real half"
NEIGHBOURS, LEAST = 3, 8  # of precision and recall; rows below which sets of samples are not compared


def sample_quality(
    real: Tensor,
    made: Mapping[str, Tensor],
    features: Features | Callable[[Tensor], Features],
    *,
    judge: Judge | None = None,
    labels: Any = None,
    intended: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """How good samples of one modality are, for each of some sets that were made, and for real ones.

    Half of the real rows is what every set is compared with; the other half is one of the sets, "real half", and its
    figures are what perfect samples would have. All sets are compared with one size, that of the smallest, on which all
    of these measures depend; which rows stand for a larger set, the seed draws. Only the shares of classes are of all
    samples of a set.

    Args:
        real: [N, *shape].
        made: sets of samples [N', *shape] by name.
        features: the space, see :mod:`mmvae_fast.evaluate.features`; or what finds one of real samples, and is given
            the half that sets are compared with alone, so that it knows no more of "real half" than of the others.
        judge: who tells the class of a sample; of an :class:`Oracle` also the classifier score.
        labels: of the real rows, int [N], -1 where unknown.
        intended: by name of a set, the classes that its samples should show, int [N'].

    Returns:
        by set: "distance" (Fréchet), "precision", "recall"; of an oracle "classifier_score"; where the classes are
        known "intended", the share of samples that show theirs, "worst_class", that share of the class that has the
        least, and "judged", how many samples of the set these are of; "rows", how many of every set the other measures
        are of, and "features", the space.

    Raises:
        ValueError: fewer than 8 samples in a set, or 16 real ones; classes without a judge, or for another number of
            samples.
    """
    asked = {name: _classes(f"intended: {name}", of, made.get(name)) for name, of in (intended or {}).items()}
    of_real = None if labels is None else _classes("labels", labels, real)
    if judge is None and (asked or of_real is not None):
        raise ValueError("sample_quality: classes are given, but judge is None, expected who tells them")
    if REAL in made:
        raise ValueError(f"sample_quality: made names a set {REAL!r}, expected another name")
    rows = min(len(real) // 2, *(len(x) for x in made.values())) if made else len(real) // 2
    if rows < LEAST:
        sizes = {name: len(x) for name, x in made.items()}
        raise ValueError(
            f"sample_quality: got {len(real)} real samples and {sizes} made ones, expected {2 * LEAST} and {LEAST} or "
            "more"
        )
    order = shuffled(len(real), seed, "halves")
    half, other = order.tensor_split([len(real) // 2])
    space = features if isinstance(features, Features) else features(_take(real, half))
    reference = space(_take(real, half[:rows]))
    sets = {name: (x, shuffled(len(x), seed, "samples", name)[:rows]) for name, x in made.items()}
    sets[REAL] = (_take(real, other), torch.arange(rows))
    classes = asked if of_real is None else {**asked, REAL: of_real[other]}
    found: dict[str, dict[str, Any]] = {}
    for name, (every, some) in sets.items():
        x = _take(every, some)
        seen = space(x)
        shares = precision_recall(reference, seen, k=NEIGHBOURS)
        found[name] = {
            "distance": frechet_distance(seen, reference), "precision": shares.precision, "recall": shares.recall,
        }  # fmt: skip
        if isinstance(judge, Oracle):
            found[name]["classifier_score"] = classifier_score(judge.probabilities(x), splits=1).score
        if name in classes:
            assert judge is not None
            found[name] |= _shown(np.asarray(judge(every)), classes[name])
        found[name] |= {"rows": rows, "features": space.name}
    return found


def _shown(told: np.ndarray, wanted: Tensor) -> dict[str, Any]:
    """The share of samples that show their class, of all and of the worst, and how many have one; nothing where no
    class is known."""
    truth = wanted.numpy()
    known = truth >= 0
    if not known.any():
        return {}
    right, truth = (told == truth)[known], truth[known]
    return {
        "intended": float(right.mean()),
        "worst_class": float(min(right[truth == one].mean() for one in np.unique(truth))),
        "judged": len(truth),
    }


def _classes(what: str, given: Any, x: Tensor | None) -> Tensor:
    if x is None:
        raise ValueError(f"sample_quality: {what} is no set of made samples, expected the name of one")
    found = torch.as_tensor(given).cpu()
    if tuple(found.shape) != (len(x),):
        raise ValueError(f"sample_quality: {what} has shape {list(found.shape)}, expected [{len(x)}]")
    return found


def _take(x: Tensor, rows: Tensor) -> Tensor:
    return x[rows.to(x.device)]
