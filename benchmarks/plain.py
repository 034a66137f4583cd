"""The best plain PyTorch we know for each function, with torch's own noise: what a careful user writes today.

The twins of ``mmvae_fast.reference`` pay for exact, reproducible noise in int64 arithmetic; comparing only against
them would flatter the kernels. Each form here is written so that torch.compile can fuse it: running sums over the
experts, the lattice of subsets unrolled, no [S, B, D] or [M, K, B, D] that has to exist. Where another form is faster
in eager mode that one is used there (``*_stacked``), and where it depends on sizes which form torch.compile likes best,
the benchmark tries the candidates and keeps the fastest. Tried under torch.compile and never better: mixtures over
stacked experts (2.3 times slower backward), Bernoulli as binary_cross_entropy_with_logits writes it, a categorical
unrolled over its classes (1.7 to 4 times slower) or as logit minus logsumexp by gather.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
List = list[Tensor]


# --- one distribution -------------------------------------------------------------------------------------------------


def reparameterize(mu: Tensor, logvar: Tensor) -> Tensor:
    return torch.addcmul(mu, torch.exp(0.5 * logvar), torch.randn_like(mu))


def reparameterize_laplace(mu: Tensor, logvar: Tensor) -> Tensor:
    u = torch.rand_like(mu) - 0.5
    tail = torch.log((1.0 - 2.0 * u.abs()).clamp_min(torch.finfo(mu.dtype).tiny))
    return mu - torch.exp(0.5 * logvar) * torch.copysign(tail, u)  # tail <= 0


def gaussian_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    return 0.5 * (mu * mu + torch.exp(logvar) - 1.0 - logvar).sum(-1)


def sample_and_kl(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    sd = torch.exp(0.5 * logvar)
    return torch.addcmul(mu, sd, torch.randn_like(mu)), 0.5 * (mu * mu + sd * sd - 1.0 - logvar).sum(-1)


def gaussian_kl_between(mu: Tensor, logvar: Tensor, prior_mu: Tensor, prior_logvar: Tensor) -> Tensor:
    d = mu - prior_mu
    return 0.5 * (d * d * torch.exp(-prior_logvar) + torch.exp(logvar - prior_logvar) - 1 - logvar + prior_logvar).sum(
        -1
    )


def laplace_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    d = mu.abs()
    scale = torch.exp(0.5 * logvar)
    return (scale * torch.exp(-d / scale) + d - 1.0 - 0.5 * logvar).sum(-1)


def laplace_kl_between(mu: Tensor, logvar: Tensor, prior_mu: Tensor, prior_logvar: Tensor) -> Tensor:
    d = (mu - prior_mu).abs()
    log_ratio = 0.5 * (logvar - prior_logvar)
    return (
        torch.exp(log_ratio - d * torch.exp(-0.5 * logvar)) + d * torch.exp(-0.5 * prior_logvar) - 1.0 - log_ratio
    ).sum(-1)


# --- products of experts ----------------------------------------------------------------------------------------------


def _weighted(mu: List, logvar: List, mask: Tensor | None) -> tuple[List, List]:
    """Every expert's precision, and precision times mean; 0 where it is missing."""
    precision, weighted = [], []
    for m, (mean, lv) in enumerate(zip(mu, logvar, strict=True)):
        p = torch.exp(-lv)
        w = p * mean
        if mask is not None:
            p, w = torch.where(mask[:, m : m + 1], p, 0.0), torch.where(mask[:, m : m + 1], w, 0.0)
        precision.append(p)
        weighted.append(w)
    return precision, weighted


def product_of_experts(mu: List, logvar: List, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    precision, weighted = _weighted(mu, logvar, mask)
    total = sum(precision, start=torch.ones_like(mu[0]))
    return sum(weighted[1:], start=weighted[0]) / total, -torch.log(total)


def product_of_experts_weights(mu: List, logvar: List, mask: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    precision, weighted = _weighted(mu, logvar, mask)
    total = sum((weights[m] * p for m, p in enumerate(precision)), start=torch.ones_like(mu[0]))
    return sum((weights[m] * w for m, w in enumerate(weighted)), start=torch.zeros_like(mu[0])) / total, -total.log()


def poe_sample_kl(mu: List, logvar: List, mask: Tensor | None) -> tuple[Tensor, ...]:
    joint_mu, joint_logvar = product_of_experts(mu, logvar, mask)
    return reparameterize(joint_mu, joint_logvar), joint_mu, joint_logvar, gaussian_kl(joint_mu, joint_logvar)


def poe_sample_kl_experts(mu: List, logvar: List, mask: Tensor) -> tuple[Tensor, ...]:
    """The same, and KL(q || q_m)."""
    z, joint_mu, joint_logvar, kl = poe_sample_kl(mu, logvar, mask)
    to_experts = [gaussian_kl_between(joint_mu, joint_logvar, m, lv) for m, lv in zip(mu, logvar, strict=True)]
    return z, joint_mu, joint_logvar, kl, torch.where(mask.t(), torch.stack(to_experts), 0.0)


# --- subsets of experts -----------------------------------------------------------------------------------------------


def _available(mask: Tensor) -> Tensor:
    """[S, B]: whether all members of each subset are observed."""
    count = mask.shape[1]
    subsets = torch.arange(1, 2**count, device=mask.device)
    members = (subsets[:, None] >> torch.arange(count, device=mask.device)) & 1
    return (members.float() @ (~mask).float().t()) == 0


def _choose(available: Tensor) -> tuple[Tensor, Tensor]:
    """How many subsets a row has, and one of them."""
    count = available.sum(0)
    pick = (torch.rand(available.shape[1], device=available.device) * count).long()
    return count, (available.cumsum(0) <= pick).sum(0).clamp(max=available.shape[0] - 1)


def _lattice(terms: List) -> list[Tensor]:
    """The sum over every subset, one addition each, in counting order."""
    sums = {1 << m: t for m, t in enumerate(terms)}
    for s in range(1, 2 ** len(terms)):
        top = 1 << s.bit_length() - 1
        if s != top:
            sums[s] = sums[s ^ top] + sums[top]
    return [sums[s] for s in range(1, 2 ** len(terms))]


def mopoe_sample_kl(mu: List, logvar: List, mask: Tensor | None) -> tuple[Tensor, ...]:
    """The lattice unrolled; the sample is that of its subset's members alone.

    Logarithms of two subsets at a time, as that of a product: 1.6 times faster compiled, and good to |logvar| of 44.
    """
    experts, rows = len(mu), mu[0].shape[0]
    count = 2**experts - 1
    precision, weighted = _weighted(mu, logvar, mask)
    if mask is None:
        pick = torch.randint(count, (rows,), device=mu[0].device)
    else:
        available = _available(mask)
        n, pick = _choose(available)
    kl_sum, waiting = torch.zeros_like(mu[0]), None
    for s, (total, w) in enumerate(zip(_lattice(precision), _lattice(weighted), strict=True)):
        total = total + 1.0 if s == count - 1 else total  # the prior expert sits in the full subset
        if mask is not None:
            use = available[s].unsqueeze(-1)
            total, w = torch.where(use, total, 1.0), torch.where(use, w, 0.0)
        var = 1.0 / total
        mean = w * var
        kl_sum = kl_sum + (mean * mean + var - 1.0)
        if waiting is None and s < count - 1:
            waiting = total
        else:
            kl_sum, waiting = kl_sum + torch.log(total if waiting is None else waiting * total), None
    kl = 0.5 * kl_sum.sum(-1) / (count if mask is None else n.clamp(min=1))
    total, w = (pick == count - 1).unsqueeze(-1).to(mu[0].dtype), torch.zeros_like(mu[0])
    for m in range(experts):
        member = ((pick + 1 >> m & 1) == 1).unsqueeze(-1)
        total, w = torch.where(member, total + precision[m], total), torch.where(member, w + weighted[m], w)
    if mask is not None:
        total = torch.where((n > 0).unsqueeze(-1), total, 1.0)
    var = 1.0 / total
    return torch.addcmul(w * var, torch.sqrt(var), torch.randn_like(w)), kl, pick


def subset_posteriors(mu: List, logvar: List, mask: Tensor | None) -> tuple[Tensor, ...]:
    precision, weighted = _weighted(mu, logvar, mask)
    available = None if mask is None else _available(mask)
    mus, logvars, kls = [], [], []
    for s, (total, w) in enumerate(zip(_lattice(precision), _lattice(weighted), strict=True)):
        total = total + 1.0 if s == 2 ** len(mu) - 2 else total
        if available is not None:
            use = available[s].unsqueeze(-1)
            total, w = torch.where(use, total, 1.0), torch.where(use, w, 0.0)
        var, log_total = 1.0 / total, torch.log(total)
        mean = w * var
        mus.append(mean)
        logvars.append(-log_total)
        kls.append(0.5 * (mean * mean + var - 1.0 + log_total).sum(-1))
    if available is None:
        available = torch.ones(len(mus), mu[0].shape[0], dtype=torch.bool, device=mu[0].device)
    return torch.stack(mus), torch.stack(logvars), torch.stack(kls), available


def subset_posteriors_stacked(mu: List, logvar: List, mask: Tensor | None) -> tuple[Tensor, ...]:
    """Eager: all subsets by one matrix product."""
    precision, weighted = (torch.stack(t) for t in _weighted(mu, logvar, mask))
    experts, rows, dim = precision.shape
    device = precision.device
    bits = torch.arange(1, 2**experts, device=device)[:, None] >> torch.arange(experts, device=device)
    members = (bits & 1).to(precision.dtype)
    full = torch.zeros(len(members), 1, 1, dtype=precision.dtype, device=device)
    full[-1] = 1.0
    total = (members @ precision.flatten(1)).view(-1, rows, dim) + full
    w = (members @ weighted.flatten(1)).view(-1, rows, dim)
    available = torch.ones(total.shape[:2], dtype=torch.bool, device=device)
    if mask is not None:
        available = _available(mask)
        use = available.unsqueeze(-1)
        total, w = torch.where(use, total, 1.0), torch.where(use, w, 0.0)
    var, log_total = 1.0 / total, torch.log(total)
    mean = w * var
    return mean, -log_total, 0.5 * (mean * mean + var - 1.0 + log_total).sum(-1), available


def mopoe_sample_kl_stacked(mu: List, logvar: List, mask: Tensor | None) -> tuple[Tensor, ...]:
    """Eager: materialises [S, B, D]."""
    mean, lv, kls, available = subset_posteriors_stacked(mu, logvar, mask)
    n, pick = _choose(available)
    index = pick[None, :, None].expand(1, *mean.shape[1:])
    return reparameterize(mean.gather(0, index)[0], lv.gather(0, index)[0]), kls.sum(0) / n.clamp(min=1), pick


# --- mixtures ---------------------------------------------------------------------------------------------------------


def _mixture(log_q: List) -> Tensor:
    return torch.logsumexp(torch.stack(log_q), 0) - math.log(len(log_q))


def mixture_normal(z: Tensor, mu: List, scale: List) -> Tensor:
    """The sum over dimensions expert by expert; nothing of z's size times M."""
    constant = z.shape[-1] * HALF_LOG_2PI
    return _mixture(
        [
            -0.5 * (((z - m) * (1.0 / s)) ** 2).sum(-1) - (s.log().sum(-1) + constant)
            for m, s in zip(mu, scale, strict=True)
        ]
    )


def mixture_laplace(z: Tensor, mu: List, scale: List) -> Tensor:
    constant = z.shape[-1] * math.log(2)
    return _mixture(
        [-((z - m).abs() * (1.0 / s)).sum(-1) - (s.log().sum(-1) + constant) for m, s in zip(mu, scale, strict=True)]
    )


# --- likelihoods: x [B, ...], params [..., B, ...] --------------------------------------------------------------------


def normal(x: Tensor, mean: Tensor) -> Tensor:
    d = x - mean
    return -0.5 * (d * d).sum(-1) - x.shape[-1] * HALF_LOG_2PI


def normal_scale(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    d = (x - mean) / scale
    return -0.5 * (d * d).sum(-1) - x.shape[-1] * (HALF_LOG_2PI + scale.log())


def laplace(x: Tensor, mean: Tensor) -> Tensor:
    return -(x - mean).abs().sum(-1) - x.shape[-1] * math.log(2)


def bernoulli(x: Tensor, logits: Tensor) -> Tensor:
    return (x * logits - F.softplus(logits)).sum(-1)


def categorical(x: Tensor, logits: Tensor) -> Tensor:
    """Log-softmax and gather."""
    index = x.expand(logits.shape[:-1]).unsqueeze(-1)
    return F.log_softmax(logits, -1).gather(-1, index).squeeze(-1).sum(-1)


def categorical_select(x: Tensor, logits: Tensor) -> Tensor:
    """The chosen logit by comparison: its gradient is no scatter."""
    chosen = x.unsqueeze(-1) == torch.arange(logits.shape[-1], device=x.device)
    return (torch.where(chosen, logits, 0.0).sum(-1) - torch.logsumexp(logits, -1)).sum(-1)


def categorical_cross_entropy(x: Tensor, logits: Tensor) -> Tensor:
    index = x.expand(logits.shape[:-1])
    return -F.cross_entropy(logits.flatten(0, -2), index.flatten(), reduction="none").view(index.shape).sum(-1)
