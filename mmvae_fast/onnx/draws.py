"""Draws of a model's posteriors and priors from noise that is given, where the model itself draws it from a seed.

The noise is an input of the exported graphs, so these are the draws that a bundle makes; that they are the model's is
what ``verify`` compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmvae_fast.models import MixturePosterior, Posterior
from mmvae_fast.models.hierarchy import at
from mmvae_fast.models.jnf import FlowPosterior
from mmvae_fast.models.mhvae import HierarchicalPrior
from mmvae_fast.models.priors import Clusters, LearnedScale, StandardNormal
from mmvae_fast.onnx.errors import ExportError
from mmvae_fast.onnx.manifest import NoiseSpec

Noise = Mapping[str, Tensor]
EPS, PICK, PRIOR_PICK = "eps", "u", "u_prior"


def posterior_kind(q: Any) -> str:
    """ "gaussian", "mixture" or "flow"."""
    kinds = {Posterior: "gaussian", MixturePosterior: "mixture", FlowPosterior: "flow"}
    if type(q) not in kinds:
        raise ExportError(f"the posterior is a {type(q).__name__}, expected one of {[k.__name__ for k in kinds]}")
    return kinds[type(q)]


def posterior_noise(q: Any) -> list[NoiseSpec]:
    """What :func:`draw` needs."""
    if not isinstance(q, MixturePosterior):
        return [NoiseSpec(EPS, "normal")]
    noise = [NoiseSpec(EPS, q.family), NoiseSpec(PICK, "uniform")]
    return [*noise, NoiseSpec(PRIOR_PICK, "uniform_of_samples")] if isinstance(q._prior, Clusters) else noise


def draw(q: Any, noise: Noise) -> Tensor:
    """z [K, B, D] of a posterior; eps [K, B, D], u [K, B]. Of :class:`FlowPosterior`, where it would run Markov chains,
    what they begin at: a draw of the Gaussian with its moments."""
    if isinstance(q, Posterior):
        return at(q, noise[EPS])
    return _draw_mixture(q, noise) if isinstance(q, MixturePosterior) else _draw_flow(q, noise[EPS])


def _draw_mixture(q: MixturePosterior, noise: Noise) -> Tensor:
    mu, scale, observed = q._mixture._stacked()  # [M, B, D], [M, B, D], [M, B, 1]
    there = observed.squeeze(-1)
    place = (noise[PICK].double() * there.sum(0)).floor().long()  # in double: exact, as the integers it stands for
    index = (there.long().cumsum(0).unsqueeze(1) <= place).sum(0).clamp(max=len(mu) - 1)  # [K, B]
    index = index.unsqueeze(-1).expand(-1, -1, mu.shape[-1])
    z = mu.gather(0, index) + scale.gather(0, index) * noise[EPS]
    if q._prior is None:
        return z
    pick = {PICK: noise[PRIOR_PICK]} if PRIOR_PICK in noise else {}
    return q._or_prior(z, draw_prior(q._prior, {EPS: noise[EPS], **pick}))


def _draw_flow(q: FlowPosterior, eps: Tensor) -> Tensor:
    z = eps
    for name, base in q._base.items():
        bent = q._model._flow(name).from_base(at(base, eps))[0]
        z = torch.where(q._observed[name][:, None], bent, z)
    z = torch.where((q._count > 1)[:, None], at(q._gaussian, eps), z)
    return z if q._joint is None else torch.where(q._complete[:, None], at(q._joint, eps), z)


# --- priors -----------------------------------------------------------------------------------------------------------


def prior_noise(prior: Any) -> list[NoiseSpec]:
    """What :func:`draw_prior` needs."""
    if isinstance(prior, HierarchicalPrior):
        levels = range(len(prior.given), 0, -1)
        return [NoiseSpec(EPS, "normal"), *(NoiseSpec(_level(i), "normal", branch=i) for i in levels)]
    if not isinstance(prior, (StandardNormal, LearnedScale, Clusters)):
        raise ExportError(f"has a {type(prior).__name__} prior, whose draws a bundle does not know")
    noise = [NoiseSpec(EPS, getattr(prior, "family", "normal"))]
    return [*noise, NoiseSpec(PICK, "uniform")] if isinstance(prior, Clusters) else noise


def draw_prior(prior: Any, noise: Noise) -> Tensor:
    """z [..., D] of a prior; eps [..., D], u [...]."""
    eps = noise[EPS]
    if isinstance(prior, StandardNormal):
        return eps
    if isinstance(prior, LearnedScale):
        return prior.scale * eps
    if isinstance(prior, Clusters):
        ends = prior.weights.cumsum(-1)
        chosen = (ends < noise[PICK].unsqueeze(-1)).sum(-1).clamp(max=len(ends) - 1)
        return prior.mu[chosen] + prior.log_scale.exp()[chosen] * eps
    z = eps
    for level in range(len(prior.given), 0, -1):
        z = at(prior.step(level, z)[1], noise[_level(level)])
    return z


def _level(level: int) -> str:
    return f"level_{level}"
