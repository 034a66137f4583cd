"""Joint and conditional log-likelihoods of a data set, for every subset of its modalities, in nats."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmvae_fast.evaluate.rows import Rows, Subset, batch_seed, choose_subsets, judged, name_of, size_of_batch, targets
from mmvae_fast.models import MultimodalVAE
from mmvae_fast.models.base import positive
from mmvae_fast.training.data import Data


class Mean(NamedTuple):
    """Of one figure over the rows that have it."""

    mean: float
    error: float
    """Standard error over the rows; NaN of fewer than two."""
    rows: int

    @classmethod
    def of(cls, values: Tensor) -> Mean:
        """Of values [N], leaving out NaN."""
        some = values[~values.isnan()].double()
        error = float(some.std()) / math.sqrt(len(some)) if len(some) > 1 else math.nan
        return cls(float(some.mean()) if len(some) else math.nan, error, len(some))


def log_likelihood(
    model: MultimodalVAE,
    data: Data | Rows,
    subset: Sequence[str] | None = None,
    *,
    given: Sequence[str] | None = None,
    n_samples: int = 100,
    batch_size: int = 256,
    seed: int = 0,
    chunk: int = 100,
) -> Tensor:
    """log p(x_subset) of each row, or log p(x_subset | x_given), in nats: [N], NaN where the row lacks any of them.

    The conditional one is the difference of two importance-weighted estimates, each with its own posterior: no bound,
    but right in the limit. See :meth:`mmvae_fast.models.MultimodalVAE.log_likelihood`.

    Args:
        subset: of the modalities; None for all (that are not given).
        n_samples: K of the importance-weighted estimate.
        batch_size, chunk: rows and samples that pass the networks at a time.
        seed: of the noise.
    """
    rows = Rows.of(model, data)
    positive("n_samples", n_samples)
    size_of_batch(batch_size)
    given = [] if given is None else list(given)
    wanted = [name for name in model.modalities if name not in given] if subset is None else list(subset)
    if set(wanted) & set(given):
        raise ValueError(
            f"subset and given both name {sorted(set(wanted) & set(given))}, expected different modalities"
        )
    (both,) = choose_subsets(model, [[*wanted, *given]])
    whole = joint(model, rows, both, n_samples, batch_size, seed, chunk)
    if not given:
        return whole
    (condition,) = choose_subsets(model, [given])
    return whole - joint(model, rows, condition, n_samples, batch_size, seed, chunk)


def log_likelihoods(
    model: MultimodalVAE,
    data: Data | Rows,
    *,
    subsets: str | Sequence[Sequence[str]] = "all",
    n_samples: int = 100,
    batch_size: int = 256,
    seed: int = 0,
    chunk: int = 100,
) -> dict[str, dict[str, Mean]]:
    """Means over rows for every subset.

    Returns:
        "joint": log p(x_S) by subset S, over the rows that have all of it; "conditional": log p(the others | x_S) by S,
        over the rows that have everything. What the model always takes as given is never explained, and belongs to
        every subset.
    """
    rows = Rows.of(model, data)
    positive("n_samples", n_samples)
    size_of_batch(batch_size)
    chosen = choose_subsets(model, subsets)
    each = {s: joint(model, rows, s, n_samples, batch_size, seed, chunk) for s in needed(model, chosen)}
    return means(model, chosen, each)


def needed(model: MultimodalVAE, chosen: Sequence[Subset]) -> list[Subset]:
    """The subsets whose :func:`joint` it takes for the :func:`means` of some: everything, too."""
    return list(dict.fromkeys([*chosen, tuple(model.modalities)]))


def means(model: MultimodalVAE, chosen: Sequence[Subset], each: Mapping[Subset, Tensor]) -> dict[str, dict[str, Mean]]:
    """What :func:`log_likelihoods` returns, from the rows' log-likelihoods of each subset."""
    everything, explained = tuple(model.modalities), set(targets(model))
    return {
        "joint": {name_of(s): Mean.of(each[s]) for s in chosen if explained & set(s)},
        "conditional": {name_of(s): Mean.of(each[everything] - each[s]) for s in chosen if s != everything},
    }


def joint(
    model: MultimodalVAE,
    rows: Rows,
    subset: Sequence[str],
    n_samples: int,
    batch_size: int,
    seed: int,
    chunk: int = 100,
) -> Tensor:
    """log p(x_subset) of each row, [N], NaN where it lacks any of them."""
    there = rows.having(subset).cpu()
    found = torch.full((len(rows),), math.nan, dtype=torch.float64)
    parts = []
    with judged(model):
        for first, batch, _ in rows.take(there).batches(batch_size, model.device):
            shown = {name: batch[name] for name in subset}
            noise = batch_seed(seed, first, "likelihood", name_of(subset))
            parts.append(model.log_likelihood(shown, n_samples=n_samples, seed=noise, chunk=chunk).double().cpu())
    if parts:
        found[there] = torch.cat(parts)
    return found
