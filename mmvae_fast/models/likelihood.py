"""The one estimator of marginal likelihoods, for all models."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmvae_fast.models.batch import Batch

if TYPE_CHECKING:
    from mmvae_fast.models.base import MultimodalVAE


def log_marginal(model: MultimodalVAE, batch: Batch, n_samples: int, seed: Tensor, chunk: int) -> Tensor:
    """log (1/K) sum_k p(x | z_k) p(z_k) / q(z_k) of what each row has, z_k from :meth:`MultimodalVAE.propose`: [B].

    ``chunk`` samples pass the networks at a time; the result does not depend on it.
    """
    latents, log_weights = model.propose(batch, n_samples, seed, chunk)
    for name in model.scored(batch):
        z = latents if isinstance(latents, Tensor) else latents[name]
        log_weights = log_weights + torch.cat([model.score(batch, name, part) for part in z.split(chunk)])
    estimate = log_weights.logsumexp(0) - math.log(n_samples)
    something = batch.only(model.scored(batch)).mask.any(1)
    return torch.where(something, estimate, 0.0)  # log p of nothing, without the rounding of p / q = 1
