"""The best plain PyTorch we know for each function, with torch's own noise: what a careful user writes today.

The twins of ``mmvae_fast.reference`` pay for exact, reproducible noise in int64 arithmetic; comparing only against
them would flatter the kernels. Each form here is written so that torch.compile can fuse it (running sums over the
experts, unrolled subsets); where another form is faster in eager mode, that one is used there.
"""

from __future__ import annotations

import torch
from torch import Tensor


def reparameterize(mu: Tensor, logvar: Tensor) -> Tensor:
    return torch.addcmul(mu, torch.exp(0.5 * logvar), torch.randn_like(mu))


def gaussian_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    return 0.5 * (mu * mu + torch.exp(logvar) - 1.0 - logvar).sum(-1)


def product_of_experts(mu: list[Tensor], logvar: list[Tensor], mask: Tensor) -> tuple[Tensor, Tensor]:
    total, weighted = torch.ones_like(mu[0]), torch.zeros_like(mu[0])
    for m, (mean, lv) in enumerate(zip(mu, logvar, strict=True)):
        seen = mask[:, m : m + 1]
        precision = torch.where(seen, torch.exp(-lv), 0.0)
        total = total + precision
        weighted = weighted + torch.where(seen, precision * mean, 0.0)
    return weighted / total, -torch.log(total)


def poe_sample_kl(mu: list[Tensor], logvar: list[Tensor], mask: Tensor) -> tuple[Tensor, ...]:
    joint_mu, joint_logvar = product_of_experts(mu, logvar, mask)
    return reparameterize(joint_mu, joint_logvar), joint_mu, joint_logvar, gaussian_kl(joint_mu, joint_logvar)


def _available(mask: Tensor) -> Tensor:
    """[S, B]: whether all members of each subset are observed."""
    count = mask.shape[1]
    subsets = torch.arange(1, 2**count, device=mask.device)
    members = (subsets[:, None] >> torch.arange(count, device=mask.device)) & 1
    return (members.float() @ (~mask).float().t()) == 0


def _choose(available: Tensor) -> tuple[Tensor, Tensor]:
    count = available.sum(0)
    pick = (torch.rand(available.shape[1]) * count).long()
    return count, (available.cumsum(0) <= pick).sum(0).clamp(max=available.shape[0] - 1)


def mopoe_sample_kl_stacked(mu: list[Tensor], logvar: list[Tensor], mask: Tensor) -> tuple[Tensor, ...]:
    """Eager: all subsets by one matrix product. Materialises [S, B, D]."""
    means, lvs = torch.stack(mu), torch.stack(logvar)
    count, rows, dim = means.shape
    seen = mask.t().unsqueeze(-1)
    precision = torch.where(seen, torch.exp(-lvs), 0.0)
    weighted = torch.where(seen, precision * means, 0.0)
    subsets = torch.arange(1, 2**count)
    members = ((subsets[:, None] >> torch.arange(count)) & 1).to(means.dtype)
    available = _available(mask)
    total = (members @ precision.flatten(1)).view(-1, rows, dim)
    total = torch.where(available.unsqueeze(-1), total, 1.0)
    total = torch.cat([total[:-1], total[-1:] + 1.0])  # the prior expert sits in the full subset
    var = 1.0 / total
    mean = (members @ weighted.flatten(1)).view(-1, rows, dim) * var
    kls = 0.5 * (mean * mean + var - 1.0 + torch.log(total)).sum(-1)
    n, pick = _choose(available)
    kl = torch.where(available, kls, 0.0).sum(0) / n.clamp(min=1)
    index = pick[None, :, None].expand(1, rows, dim)
    z_mean, z_var = mean.gather(0, index)[0], var.gather(0, index)[0]
    return torch.addcmul(z_mean, torch.sqrt(z_var), torch.randn_like(z_mean)), kl, pick


def mopoe_sample_kl_unrolled(mu: list[Tensor], logvar: list[Tensor], mask: Tensor) -> tuple[Tensor, ...]:
    """torch.compile: the lattice of subsets unrolled, one addition each; nothing of size [S, B, D] has to exist."""
    count = len(mu)
    available = _available(mask)
    n, pick = _choose(available)
    zero = torch.zeros_like(mu[0])
    precision, weighted = [], []
    for m, (mean, lv) in enumerate(zip(mu, logvar, strict=True)):
        seen = mask[:, m : m + 1]
        p = torch.where(seen, torch.exp(-lv), 0.0)
        precision.append(p)
        weighted.append(torch.where(seen, p * mean, 0.0))
    sums = {0: (zero, zero)}
    kl_sum, z_mean, z_var = torch.zeros_like(zero), zero, zero
    for s in range(1, 2**count):
        top = s.bit_length() - 1
        base_p, base_w = sums[s & ~(1 << top)]
        sums[s] = p, w = base_p + precision[top], base_w + weighted[top]
        total = p + 1.0 if s == 2**count - 1 else p
        use = available[s - 1].unsqueeze(-1)
        total = torch.where(use, total, 1.0)
        var = 1.0 / total
        mean = w * var
        kl_sum = kl_sum + torch.where(use, mean * mean + var - 1.0 + torch.log(total), 0.0)
        chosen = (pick == s - 1).unsqueeze(-1)
        z_mean, z_var = torch.where(chosen, mean, z_mean), torch.where(chosen, var, z_var)
    kl = 0.5 * kl_sum.sum(-1) / n.clamp(min=1)
    return torch.addcmul(z_mean, torch.sqrt(z_var), torch.randn_like(z_mean)), kl, pick
