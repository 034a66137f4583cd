"""The maths as today's libraries of multimodal VAEs write it: distribution objects, stacked experts, Python loops.

Written from the papers and from what these libraries do (MultiVae, the authors' MoPoE, MMVAE), not from their code: the
idioms are theirs - validated ``torch.distributions``, a small epsilon on variances, missing experts overwritten with
infinite variance, subsets one by one with results concatenated, the M log-densities of every sample stacked.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Laplace, Normal, OneHotCategorical, kl_divergence

EPS = 1e-8  # added to every expert's variance
List = list[Tensor]
FAMILIES = {"normal": Normal, "laplace": Laplace}


def _scale(logvar: Tensor) -> Tensor:
    return torch.exp(0.5 * logvar)


def _standard(like: Tensor, family: str = "normal"):
    return FAMILIES[family](torch.zeros_like(like), torch.ones_like(like))


# --- one distribution -------------------------------------------------------------------------------------------------


def reparameterize(mu: Tensor, logvar: Tensor, family: str = "normal") -> Tensor:
    return FAMILIES[family](mu, _scale(logvar)).rsample()


def sample_and_kl(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    q = Normal(mu, _scale(logvar))
    return q.rsample(), kl_divergence(q, _standard(mu)).sum(-1)


def kl(mu: Tensor, logvar: Tensor, family: str = "normal") -> Tensor:
    return kl_divergence(FAMILIES[family](mu, _scale(logvar)), _standard(mu, family)).sum(-1)


def kl_between(mu: Tensor, logvar: Tensor, prior_mu: Tensor, prior_logvar: Tensor, family: str = "normal") -> Tensor:
    distribution = FAMILIES[family]
    p = distribution(prior_mu.expand_as(mu), _scale(prior_logvar.expand_as(mu)))
    return kl_divergence(distribution(mu, _scale(logvar)), p).sum(-1)


# --- products of experts ----------------------------------------------------------------------------------------------


def _poe(mus: Tensor, logvars: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Of stacked experts [M, B, D]."""
    precision = 1.0 / (torch.exp(logvars) + EPS)
    if weights is not None:
        precision = precision * weights
    variance = 1.0 / torch.sum(precision, dim=0)
    return torch.sum(mus * precision, dim=0) * variance, torch.log(variance)


def _with_prior(mu: List, logvar: List, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Stacked, what is missing made uninformative, and the prior as one more expert."""
    mus, logvars = torch.stack(mu), torch.stack(logvar)
    if mask is not None:
        logvars[~mask.t()] = math.inf
    prior = torch.zeros_like(mus[:1])
    return torch.cat([mus, prior]), torch.cat([logvars, prior])


def product_of_experts(
    mu: List, logvar: List, mask: Tensor | None, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    if weights is not None:
        weights = torch.cat([weights, torch.ones_like(weights[:1])])
        weights = weights.view(len(weights), 1, -1)
    return _poe(*_with_prior(mu, logvar, mask), weights)


def poe_sample_kl(mu: List, logvar: List, mask: Tensor | None) -> tuple[Tensor, ...]:
    joint_mu, joint_logvar = product_of_experts(mu, logvar, mask)
    q = Normal(joint_mu, _scale(joint_logvar))
    return q.rsample(), joint_mu, joint_logvar, kl_divergence(q, _standard(joint_mu)).sum(-1)


def poe_sample_kl_experts(mu: List, logvar: List, mask: Tensor) -> tuple[Tensor, ...]:
    z, joint_mu, joint_logvar, divergence = poe_sample_kl(mu, logvar, mask)
    q = Normal(joint_mu, _scale(joint_logvar))
    to_experts = []
    for m, (mean, lv) in enumerate(zip(mu, logvar, strict=True)):
        each = kl_divergence(q, Normal(mean, _scale(lv))).sum(-1)
        each = torch.where(mask[:, m], each, torch.zeros_like(each))
        to_experts.append(each)
    return z, joint_mu, joint_logvar, divergence, torch.stack(to_experts)


# --- subsets of experts -----------------------------------------------------------------------------------------------


def subset_posteriors(mu: List, logvar: List, mask: Tensor | None) -> tuple[Tensor, ...]:
    """Subset after subset; what is there so far is concatenated with each new one."""
    experts, rows = len(mu), len(mu[0])
    device = mu[0].device
    mus, logvars, kls = (torch.empty(0, device=device) for _ in range(3))
    available = torch.empty(0, dtype=torch.bool, device=device)
    for s in range(1, 2**experts):
        members = [m for m in range(experts) if s >> m & 1]
        s_mu, s_logvar = torch.stack([mu[m] for m in members]), torch.stack([logvar[m] for m in members])
        if len(members) == experts:  # the prior expert
            prior = torch.zeros_like(s_mu[:1])
            s_mu, s_logvar = torch.cat([s_mu, prior]), torch.cat([s_logvar, prior])
        s_mu, s_logvar = _poe(s_mu, s_logvar)
        usable = torch.ones(rows, dtype=torch.bool, device=device)
        if mask is not None:
            for m in members:
                usable = torch.logical_and(usable, mask[:, m])
            s_mu, s_logvar = s_mu * usable.unsqueeze(-1), s_logvar * usable.unsqueeze(-1)
        s_kl = kl_divergence(Normal(s_mu, _scale(s_logvar)), _standard(s_mu)).sum(-1)
        mus, logvars = torch.cat([mus, s_mu.unsqueeze(0)]), torch.cat([logvars, s_logvar.unsqueeze(0)])
        kls, available = torch.cat([kls, s_kl.unsqueeze(0)]), torch.cat([available, usable.unsqueeze(0)])
    return mus, logvars, kls, available


def _stratified(mus: Tensor, logvars: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Contiguous blocks of rows, one a subset; the last subset gets what is left."""
    subsets, rows = mus.shape[:2]
    weights = torch.full((subsets,), 1.0 / subsets, device=mus.device)
    starts, ends = [], []
    for s in range(subsets):
        starts.append(0 if s == 0 else ends[-1])
        ends.append(rows if s == subsets - 1 else starts[-1] + int(torch.floor(rows * weights[s])))
    blocks = list(enumerate(zip(starts, ends, strict=True)))
    chosen_mu = torch.cat([mus[s, a:b] for s, (a, b) in blocks])
    chosen_logvar = torch.cat([logvars[s, a:b] for s, (a, b) in blocks])
    pick = torch.cat([torch.full((b - a,), s, device=mus.device) for s, (a, b) in blocks])
    return chosen_mu, chosen_logvar, pick


def mopoe_sample_kl(mu: List, logvar: List, mask: Tensor | None) -> tuple[Tensor, ...]:
    mus, logvars, kls, available = subset_posteriors(mu, logvar, mask)
    if mask is None:
        chosen_mu, chosen_logvar, pick = _stratified(mus, logvars)
    else:
        choice = OneHotCategorical(probs=available.t().to(mus.dtype)).sample().bool()  # [B, S]
        chosen_mu, chosen_logvar = mus.transpose(0, 1)[choice], logvars.transpose(0, 1)[choice]
        pick = choice.int().argmax(1)
    weights = available.to(kls.dtype) / available.sum(0)
    return Normal(chosen_mu, _scale(chosen_logvar)).rsample(), (weights * kls).sum(0), pick


# --- mixtures ---------------------------------------------------------------------------------------------------------


def mixture_log_prob(z: Tensor, mu: List, scale: List, family: str = "normal") -> Tensor:
    """z [M, ..., B, D], from the experts in turn: M^2 log-densities, each of z's size before its sum."""
    results = []
    for samples in z:
        log_q = [FAMILIES[family](m, s).log_prob(samples).sum(-1) for m, s in zip(mu, scale, strict=True)]
        results.append(torch.logsumexp(torch.stack(log_q), dim=0) - math.log(len(mu)))
    return torch.stack(results)


# --- likelihoods ------------------------------------------------------------------------------------------------------


def log_likelihood(x: Tensor, params: Tensor, family: str, scale: float | Tensor = 1.0) -> Tensor:
    if family == "bernoulli":
        distribution = Bernoulli(logits=params, validate_args=False)  # grey values are no booleans
    elif family == "categorical":
        distribution = Categorical(logits=params)
    else:
        distribution = FAMILIES[family](params, scale)
    return distribution.log_prob(x).sum(-1)
