"""Does what a model decodes show the class it was given, and do the modalities of one sample show the same?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmvae_fast.evaluate.oracles import Judge, classes_of
from mmvae_fast.evaluate.rows import (
    Judged,
    Rows,
    batch_seed,
    choose_subsets,
    generate,
    judged,
    name_of,
    reconstructions,
    size_of_batch,
    targets,
)
from mmvae_fast.models import MultimodalVAE
from mmvae_fast.training.data import Data
from mmvae_fast.training.seeding import derive


def cross_coherence(
    model: MultimodalVAE,
    data: Data | Rows,
    judges: Mapping[str, Judge],
    labels: Any = None,
    *,
    subsets: str | Sequence[Sequence[str]] = "all",
    sampled: bool = False,
    batch_size: int = 256,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """The share of rows whose decoded target shows the row's class, by source and by target outside it.

    Over the rows that have all of the source and a known label; they need not have the target.

    Args:
        judges: by modality, who tells the class: :func:`mmvae_fast.evaluate.fit_oracles`, or any function
            x [B, *shape] -> classes [B], -1 for none.
        labels: int [N], -1 where unknown.
        sampled: decode a draw of the posterior (and of private priors) instead of ``model.reconstruct``'s mean.

    Source: Shi et al., Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep Generative Models, 2019.
    """
    rows = Rows.of(model, data, labels).with_known_label()
    size_of_batch(batch_size)
    check_judges(model, judges)
    found: dict[str, dict[str, float]] = {}
    for source in choose_subsets(model, subsets):
        others = [name for name in targets(model) if name not in source and name in judges]
        shown = rows.take(rows.having(source))
        if not others or not len(shown):
            continue
        truth = shown.labels.numpy()  # type: ignore[union-attr]
        if sampled:
            noise = derive(seed, "coherence", name_of(source))
            decoded = generate(model, shown, source, others, seed=noise, batch_size=batch_size)
            told = {name: classes_of(judges, name, x) for name, x in decoded.items()}
        else:
            parts: dict[str, list[np.ndarray]] = {name: [] for name in others}
            with judged(model):
                for _, predictions in reconstructions(model, shown, source, others, batch_size):
                    for name, x in predictions.items():
                        parts[name].append(classes_of(judges, name, x))
            told = {name: np.concatenate(part) for name, part in parts.items()}
        found[name_of(source)] = {name: float(np.mean(classes == truth)) for name, classes in told.items()}
    return found


def agreement(decoded: Mapping[str, Tensor], judges: Mapping[str, Judge]) -> float:
    """Joint coherence: the share of rows in which all modalities show the same class.

    Args:
        decoded: by modality [B, *shape], of samples; those without a judge do not count.
    """
    told = np.stack([classes_of(judges, name, x) for name, x in decoded.items() if name in judges])
    if not told.shape[1]:
        return float("nan")
    return float(np.mean((told == told[0]).all(0) & (told[0] >= 0)))


def joint_coherence(
    model: MultimodalVAE, judges: Mapping[str, Judge], *, n: int = 1000, seed: int = 0, prior: Any = None
) -> float:
    """:func:`agreement` of ``n`` samples of the prior, or of another sampler (see :meth:`MultimodalVAE.sample`)."""
    check_judges(model, judges)
    with judged(model):
        return agreement(samples(model, n, seed=seed, prior=prior), judges)


@torch.no_grad()
def samples(
    model: MultimodalVAE, n: int, *, seed: int = 0, prior: Any = None, batch_size: int = 256
) -> dict[str, Tensor]:
    """``n`` decoded samples of the prior, drawn in parts: by modality [n, *shape], on the CPU."""
    if type(n) is not int or n < 1:
        raise ValueError(f"n is {n!r}, expected 1 or more samples")
    parts = []
    for first in range(0, n, batch_size):
        part = model.sample(min(batch_size, n - first), seed=batch_seed(seed, first, "samples"), prior=prior)
        parts.append({name: x.cpu() for name, x in part.items()})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def check_judges(model: Judged, judges: Mapping[str, Judge]) -> None:
    """Refuse judges of what the model does not have, or of nothing that it decodes."""
    for name in judges:
        if name not in model.modalities:
            raise ValueError(f"judges names the modality {name!r}, expected some of {list(model.modalities)}")
    if not any(name in judges for name in targets(model)):
        raise ValueError(f"judges has none of the modalities {targets(model)}, expected at least one")
