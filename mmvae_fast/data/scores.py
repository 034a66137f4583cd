"""How good a model is on batches of data: its objective, and every modality predicted from every other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from mmvae_fast.functional import row_seed
from mmvae_fast.modalities import Modality, Text
from mmvae_fast.models import MultimodalVAE
from mmvae_fast.training.seeding import derive

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


@torch.no_grad()
def score(
    model: MultimodalVAE, batches: Iterable[tuple[dict[str, Tensor], Tensor]], *, n_samples: int = 0, seed: int = 0
) -> dict[str, Any]:
    """Figures of a model on batches and their masks, bool [B, M]; the same for batches of any size.

    Args:
        n_samples: importance samples for log p(x) of all that a row has; 0 leaves it out.

    Returns:
        "rows"; "loss", "elbo", "kl" (and "log_likelihood"), means over rows in nats; "per_modality", log p(x_m | z)
        as a mean over the rows that have it; "reconstruction", by what was given (a modality, or "all" that a row has)
        and by target, over rows that have both: the mean squared error of an entry, or of tokens the share that is
        right, where the text or its prediction is not padding ("value" and "unit", "" or "=").
    """
    objective, likelihood, predicted = _Means(), _Means(), _Means()
    rows, names = 0, list(model.modalities)
    for batch, mask in batches:
        count = mask.shape[0]
        out = model(batch, mask, seed=row_seed(derive(seed, "evaluation"), rows))
        for name, value in (("loss", out.loss), ("elbo", out.elbo), ("kl", out.kl)):
            objective.add(name, value * count, count)
        for name, value in out.log_likelihood.items():
            likelihood.add(name, value * count, int(mask[:, names.index(name)].sum()))
        if n_samples:
            log_p = model.log_likelihood(batch, mask, n_samples, row_seed(derive(seed, "log p"), rows))
            objective.add("log_likelihood", log_p.sum(), count)
        for given in [*names, ALL]:
            _predict(model, batch, mask, given, predicted)
        rows += count
    reconstruction: dict[str, dict[str, Any]] = {}
    for (given, target), value in predicted.read().items():
        tokens = not model.modalities[target].dtype.is_floating_point
        reconstruction.setdefault(given, {})[target] = {"value": value, "unit": "=" if tokens else " "}
    ll = likelihood.read()
    return {
        "rows": rows,
        **objective.read(),
        "per_modality": {name: ll[name] for name in names if name in ll},
        "reconstruction": reconstruction,
    }


def _predict(model: MultimodalVAE, batch: dict[str, Tensor], mask: Tensor, given: str, into: _Means) -> None:
    names = list(model.modalities)
    kept = [given in (ALL, name) or name in model.always_given for name in names]
    shown = mask & torch.tensor(kept)
    source = shown.any(1) if given == ALL else mask[:, names.index(given)]
    if not source.any():
        return
    for target, prediction in model.reconstruct(batch, shown).items():
        both = source & mask[:, names.index(target)]
        if target not in batch or not both.any():
            continue
        x, y = batch[target][both], prediction[both]
        if x.is_floating_point():
            there = x.isfinite()  # a vector may lack some of its entries
            into.add((given, target), (x - y)[there].square().sum(), int(there.sum()))
        else:
            counted = torch.ones_like(x, dtype=torch.bool)
            if (padding := _padding(model.modalities[target])) is not None:
                counted = (x != padding) | (y != padding)
            into.add((given, target), (x == y)[counted].sum(), int(counted.sum()))


def _padding(modality: Modality) -> int | None:
    """The token that stands where a text has ended."""
    return getattr(modality, "padding", 0 if isinstance(modality, Text) else None)
