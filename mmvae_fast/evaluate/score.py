"""One pass over batches, as they come: a model's objective, and every modality predicted from every other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from mmvae_fast.evaluate.compare import errors, hits, is_numeric
from mmvae_fast.evaluate.rows import batch_seed, judged, targets
from mmvae_fast.models import MultimodalVAE

ALL = "all"


class _Means:
    """Weighted means by name."""

    def __init__(self) -> None:
        self.sums: dict[Any, float] = {}
        self.weights: dict[Any, float] = {}

    def add(self, name: Any, total: Tensor | float, weight: float) -> None:
        if weight:
            self.sums[name] = self.sums.get(name, 0.0) + float(total)
            self.weights[name] = self.weights.get(name, 0.0) + weight

    def read(self) -> dict[Any, float]:
        return {name: total / self.weights[name] for name, total in self.sums.items()}


def score(
    model: MultimodalVAE, batches: Iterable[tuple[dict[str, Tensor], Tensor]], *, n_samples: int = 0, seed: int = 0
) -> dict[str, Any]:
    """Figures of a model on batches and their masks, bool [B, M]; the same for batches of any size, one of which is
    in memory at a time. :func:`mmvae_fast.evaluate.evaluate` tells more, and holds all rows.

    Args:
        n_samples: importance samples for log p(x) of all that a row has; 0 leaves it out.
        seed: of the noise.

    Returns:
        "rows"; "loss", "elbo", "kl" (and "log_likelihood"), means over rows in nats; "per_modality", log p(x_m | z)
        as a mean over the rows that have it; "reconstruction", by what was given (a modality, or "all" that a row has)
        and by target, over rows that have both: the mean squared error of an entry, or of tokens the share that is
        right ("value" and "unit", "" or "="; errors and shares as in :func:`mmvae_fast.evaluate.reconstruction`).

    Raises:
        ValueError: there is no batch.
        TypeError: ``n_samples`` for a model without a density.
    """
    objective, likelihood, predicted = _Means(), _Means(), _Means()
    rows, names = 0, list(model.modalities)
    with judged(model):
        for batch, mask in batches:
            count = mask.shape[0]
            out = model(batch, mask, seed=batch_seed(seed, rows, "evaluation"))
            for name, value in (("loss", out.loss), ("elbo", out.elbo), ("kl", out.kl)):
                objective.add(name, value * count, count)
            for name, value in out.log_likelihood.items():
                likelihood.add(name, value * count, int(mask[:, names.index(name)].sum()))
            if n_samples:
                log_p = model.log_likelihood(batch, mask, n_samples, batch_seed(seed, rows, "log p"))
                objective.add("log_likelihood", log_p.sum(), count)
            for given in [*names, ALL]:
                _predict(model, batch, mask, given, predicted)
            rows += count
    if not rows:
        raise ValueError("score: batches is empty, expected at least one row")
    reconstruction: dict[str, dict[str, Any]] = {}
    for (given, target), value in predicted.read().items():
        unit = "" if is_numeric(model.modalities[target]) else "="
        reconstruction.setdefault(given, {})[target] = {"value": value, "unit": unit}
    ll = likelihood.read()
    return {
        "rows": rows,
        **objective.read(),
        "per_modality": {name: ll[name] for name in names if name in ll},
        "reconstruction": reconstruction,
    }


def _predict(model: MultimodalVAE, batch: dict[str, Tensor], mask: Tensor, given: str, into: _Means) -> None:
    """Add up what is predicted from one modality, and what the model always takes as given, or from all of them."""
    names = list(model.modalities)
    kept = [given in (ALL, name) or name in model.always_given for name in names]
    shown = mask & torch.tensor(kept, device=mask.device)
    source = shown.any(1) if given == ALL else mask[:, names.index(given)]
    if not source.any():
        return
    predictions = model.reconstruct(batch, shown)
    for target in targets(model):
        both = source & mask[:, names.index(target)]
        if target not in batch or not both.any():
            continue
        modality = model.modalities[target]
        predicted, truth = predictions[target][both], batch[target][both]
        if is_numeric(modality):
            found = errors(modality, predicted, truth).square()
        else:
            found = hits(modality, predicted, truth)
        into.add((given, target), found.sum(), found.numel())
