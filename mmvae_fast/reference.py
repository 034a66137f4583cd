"""The specification: every fused function in a few lines of plain PyTorch.

Kernels are tested against these twins in float64, ONNX export goes through them, and tensors no kernel exists
for (float16, bfloat16, MPS, XPU, ...) fall back to them. They favour being obvious over being fast; the contracts
shared by all of them stand in :mod:`mmvae_fast.functional`.

Missing experts are *selected* away (``torch.where``), never multiplied by the mask: NaN * 0 is NaN.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmvae_fast import _checks

Experts = Sequence[Tensor] | Tensor
PRIOR_PLACES = _checks.PRIOR_PLACES


class PoESample(NamedTuple):
    """What :func:`poe_sample_kl` returns; see there."""

    z: Tensor
    mu: Tensor
    logvar: Tensor
    kl: Tensor
    expert_kl: Tensor | None = None


class MoPoESample(NamedTuple):
    """What :func:`mopoe_sample_kl` returns; see there."""

    z: Tensor
    kl: Tensor
    subset: Tensor


# --- noise ------------------------------------------------------------------------------------------------------------

_LOW32 = 0xFFFFFFFF


def seed_tensor(seed: int | Tensor | None, generator: torch.Generator | None = None, device="cpu") -> Tensor:
    """The 64-bit seed as an int64 tensor of one element; ``None`` draws a fresh one from torch's generator."""
    if isinstance(seed, Tensor):
        if seed.numel() != 1 or seed.dtype != torch.int64:
            raise ValueError(f"seed: expected an int64 tensor of one element, got {seed.dtype} {tuple(seed.shape)}")
        if seed.device.type != torch.device(device).type:
            raise ValueError(f"seed: expected a tensor on {device} like mu, got one on {seed.device}")
        return seed
    if seed is None:
        return torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, generator=generator, device=device)
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise TypeError(f"seed: expected an int, an int64 tensor or None, got {type(seed).__name__}")
    seed = operator.index(seed)
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed: expected 64 bits, got {seed}")
    return torch.tensor([seed - 2**64 if seed >= 2**63 else seed], dtype=torch.int64, device=device)


def philox_words(counter: Sequence[Tensor | int], key: Sequence[Tensor | int]) -> list[Tensor]:
    """Philox4x32-10 (Salmon et al. 2011) on int64 tensors that hold 32-bit words; broadcasts over the counters."""
    # torch.full, not torch.tensor: constants are lifted out of exported graphs, and decomposing loses them again
    c0, c1, c2, c3, k0, k1 = (
        w if isinstance(w, Tensor) else torch.full((), w, dtype=torch.int64) for w in (*counter, *key)
    )
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # int64 wraps: the low 64 bits are the exact product
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _LOW32) ^ c1 ^ k0,
            p1 & _LOW32,
            ((p0 >> 32) & _LOW32) ^ c3 ^ k1,
            p0 & _LOW32,
        )
        k0, k1 = (k0 + 0x9E3779B9) & _LOW32, (k1 + 0xBB67AE85) & _LOW32
    return [c0, c1, c2, c3]


def _key(seed: Tensor) -> tuple[Tensor, Tensor]:
    seed = seed.reshape(())
    return seed & _LOW32, (seed >> 32) & _LOW32


def philox_normal(
    seed: int | Tensor,
    rows: int,
    dim: int,
    n_samples: int | None = None,
    stream: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    device="cpu",
) -> Tensor:
    """Standard normals [rows, dim], or [n_samples, rows, dim], as every backend of this package draws them.

    Counter = (d // 4, row, sample, stream), key = (low, high word of the seed), u = ((x >> 9) + 0.5) * 2**-23,
    Box-Muller over the lane pairs (0, 1) and (2, 3).
    """
    k0, k1 = _key(seed_tensor(seed, device=device))
    sample = torch.arange(1 if n_samples is None else n_samples, device=device)[:, None, None]
    row = torch.arange(rows, device=device)[:, None]
    block = torch.arange((dim + 3) // 4, device=device)
    words = philox_words((block, row, sample, stream), (k0, k1))
    real = torch.float64 if dtype == torch.float64 else torch.float32
    u = [((w >> 9).to(real) + 0.5) * 2.0**-23 for w in words]
    lanes = []
    for u0, u1 in (u[:2], u[2:]):
        radius, angle = torch.sqrt(-2.0 * torch.log(u0)), 2.0 * math.pi * u1
        lanes += [radius * torch.cos(angle), radius * torch.sin(angle)]
    normals = torch.stack(lanes, dim=-1).flatten(-2)[..., :dim].to(dtype)
    return normals[0] if n_samples is None else normals


def choose_component(seed: int | Tensor, n_available: Tensor) -> Tensor:
    """For every row, which of its ``n_available`` [B] mixture components it draws: floor(u * n), exactly, as int64 [B].

    Stream 1 of the noise; 0 where nothing is available. Depends on seed and row only, never on the batch size.
    """
    device = n_available.device
    row = torch.arange(n_available.shape[0], device=device)
    word = philox_words((0, row, 0, 1), _key(seed_tensor(seed, device=device)))[0]
    return ((2 * (word >> 9) + 1) * n_available) >> 24  # u = (2k + 1) * 2**-24: integer arithmetic, no rounding


# --- one Gaussian -----------------------------------------------------------------------------------------------------


def _compute(x: Tensor) -> Tensor:
    """Half types are computed in float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def reparameterize(mu: Tensor, logvar: Tensor, n_samples: int | None = None, *, seed=None, generator=None) -> Tensor:
    """z = mu + exp(logvar / 2) * eps."""
    _checks.gaussian("reparameterize", mu, logvar)
    _checks.n_samples("reparameterize", n_samples)
    seed = seed_tensor(seed, generator, mu.device)
    m, lv = _compute(mu), _compute(logvar)
    rows = math.prod(mu.shape[:-1])
    eps = philox_normal(seed, rows, mu.shape[-1], n_samples, dtype=m.dtype, device=mu.device)
    eps = eps.reshape(mu.shape if n_samples is None else (n_samples, *mu.shape))
    return (m + torch.exp(0.5 * lv) * eps).to(mu.dtype)


def _excess_variance(logvar: Tensor) -> Tensor:
    """e^logvar - 1 - logvar; +inf, not NaN, at +inf."""
    return torch.expm1(logvar) - logvar.clamp(max=torch.finfo(logvar.dtype).max)


def gaussian_kl(
    mu: Tensor, logvar: Tensor, prior_mu: Tensor | None = None, prior_logvar: Tensor | None = None
) -> Tensor:
    """KL( N(mu, e^logvar) || N(prior_mu, e^prior_logvar) ), summed over the last dimension."""
    _checks.gaussian("gaussian_kl", mu, logvar)
    _checks.prior("gaussian_kl", mu, prior_mu, prior_logvar)
    m, lv = _compute(mu), _compute(logvar)
    if prior_mu is None and prior_logvar is None:
        return 0.5 * (m.square() + _excess_variance(lv)).sum(-1)
    zero = torch.zeros((), dtype=m.dtype, device=m.device)
    pm = zero if prior_mu is None else _compute(prior_mu)
    plv = zero if prior_logvar is None else _compute(prior_logvar)
    return 0.5 * ((m - pm).square() * torch.exp(-plv) + _excess_variance(lv - plv)).sum(-1)


# --- products of experts ----------------------------------------------------------------------------------------------


def _stack(mu: Experts, logvar: Experts, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Experts as [M, B, D] with whatever a missing one holds replaced by 0, and which are observed as [M, B, 1]."""
    mu = _compute(mu if isinstance(mu, Tensor) else torch.stack(list(mu)))
    logvar = _compute(logvar if isinstance(logvar, Tensor) else torch.stack(list(logvar)))
    if mask is None:
        return mu, logvar, torch.ones(mu.shape[:2], dtype=torch.bool, device=mu.device).unsqueeze(-1)
    observed = mask.t().unsqueeze(-1)
    return torch.where(observed, mu, 0.0), torch.where(observed, logvar, 0.0), observed


def _dtype(experts: Experts) -> torch.dtype:
    return experts.dtype if isinstance(experts, Tensor) else experts[0].dtype


def _product(
    mu: Tensor, logvar: Tensor, observed: Tensor, prior: bool, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Precision-weighted product of the observed experts of [M, B, D]; the prior where there are none.

    Precisions are scaled by the largest one, so that none overflows: lv = s - log T, T = sum_m exp(s - lv_m).
    """
    scaled = torch.where(observed, logvar, math.inf)
    shift = scaled.detach().amin(0)
    shift = shift.clamp(max=0.0) if prior else torch.where(shift == math.inf, 0.0, shift)
    precision = torch.exp(shift - scaled)
    if weights is not None:
        precision = precision * (weights if weights.dim() == 2 else weights.unsqueeze(-1)).unsqueeze(1)
    total = precision.sum(0) + (torch.exp(shift) if prior else 0.0)
    empty = total == 0  # nothing observed, or only experts that say nothing (logvar = +inf)
    safe = torch.where(empty, 1.0, total)
    uninformed = torch.where(observed.any(0), math.inf, 0.0).to(safe.dtype)
    return (precision * mu).sum(0) / safe, torch.where(empty, uninformed, shift - torch.log(safe))


def product_of_experts(
    mu: Experts, logvar: Experts, mask: Tensor | None = None, *, prior: bool = True, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The product of Gaussian experts: precisions add, means are averaged by precision."""
    _checks.experts("product_of_experts", mu, logvar, mask)
    _checks.flag("product_of_experts", "prior", prior)
    _checks.weights("product_of_experts", mu, weights)
    joint_mu, joint_logvar = _product(*_stack(mu, logvar, mask), prior, weights)
    return joint_mu.to(_dtype(mu)), joint_logvar.to(_dtype(mu))


def poe_sample_kl(
    mu: Experts,
    logvar: Experts,
    mask: Tensor | None = None,
    *,
    prior: bool = True,
    n_samples: int | None = None,
    expert_kl: bool = False,
    seed=None,
    generator=None,
) -> PoESample:
    """Product of experts, a sample of it, its KL to N(0, I) and, when asked for, its KL to every expert."""
    _checks.experts("poe_sample_kl", mu, logvar, mask)
    _checks.flag("poe_sample_kl", "prior", prior)
    _checks.n_samples("poe_sample_kl", n_samples)
    out_dtype = _dtype(mu)
    m, lv, observed = _stack(mu, logvar, mask)
    joint_mu, joint_logvar = _product(m, lv, observed, prior)
    z = reparameterize(joint_mu, joint_logvar, n_samples, seed=seed, generator=generator)
    kl = gaussian_kl(joint_mu, joint_logvar)
    to_experts = None
    if expert_kl:
        to_experts = torch.where(
            observed.squeeze(-1), gaussian_kl(joint_mu.expand_as(m), joint_logvar.expand_as(m), m, lv), 0.0
        )
    return PoESample(z.to(out_dtype), joint_mu.to(out_dtype), joint_logvar.to(out_dtype), kl, to_experts)


def all_subsets(n_experts: int) -> list[int]:
    """Every non-empty subset of the experts as a bitmask, in counting order."""
    return list(range(1, 2**n_experts))


def mopoe_sample_kl(
    mu: Experts,
    logvar: Experts,
    mask: Tensor | None = None,
    *,
    subsets: Sequence[int] | None = None,
    prior: str = "full",
    seed=None,
    generator=None,
) -> MoPoESample:
    """Mixture of products of experts (Sutter et al. 2021): mean KL over available subsets, a sample of one of them."""
    _checks.experts("mopoe_sample_kl", mu, logvar, mask)
    _checks.subsets("mopoe_sample_kl", mu, subsets, prior)
    out_dtype = _dtype(mu)
    m, lv, observed = _stack(mu, logvar, mask)
    n_experts, rows, dim = m.shape
    seed = seed_tensor(seed, generator, m.device)
    mus, logvars, kls, available = [], [], [], []
    for subset in all_subsets(n_experts) if subsets is None else subsets:
        members = [i for i in range(n_experts) if subset >> i & 1]
        with_prior = prior == "all" or (prior == "full" and len(members) == n_experts)
        # one index at a time: a list of them is a constant tensor, which exported graphs lose (see philox_words)
        s_m, s_lv, s_observed = (torch.stack([t[i] for i in members]) for t in (m, lv, observed))
        s_mu, s_logvar = _product(s_m, s_lv, torch.ones_like(s_observed), with_prior)
        mus.append(s_mu)
        logvars.append(s_logvar)
        kls.append(gaussian_kl(s_mu, s_logvar))
        available.append(s_observed[..., 0].all(0))
    usable = torch.stack(available)  # [S, B]
    n_usable = usable.sum(0)
    kl = torch.where(usable, torch.stack(kls), 0.0).sum(0) / n_usable.clamp(min=1)
    # the k-th available subset of a row: where the running count of available ones first exceeds k
    pick = (usable.cumsum(0) <= choose_component(seed, n_usable)).sum(0)
    nothing = n_usable == 0
    index = torch.where(nothing, 0, pick)[None, :, None].expand(1, rows, dim)
    z_mu = torch.where(nothing[:, None], 0.0, torch.stack(mus).gather(0, index)[0])
    z_logvar = torch.where(nothing[:, None], 0.0, torch.stack(logvars).gather(0, index)[0])
    z = reparameterize(z_mu, z_logvar, seed=seed)
    return MoPoESample(z.to(out_dtype), kl, torch.where(nothing, -1, pick))


# --- likelihoods ------------------------------------------------------------------------------------------------------


def log_likelihood(
    x: Tensor,
    params: Tensor,
    *,
    family: str,
    scale: float | Tensor = 1.0,
    event_dims: int | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """log p(x | params), summed over the event; x [B, ...] broadcasts over the leading sample dimensions of params."""
    _checks.likelihood("log_likelihood", x, params, family, event_dims, mask)
    event_dims = x.dim() - 1 if event_dims is None else event_dims
    p = _compute(params)
    if mask is not None:  # a missing row may hold anything, and so may its parameters
        per_row = mask.reshape(-1, *[1] * (x.dim() - 1))
        x = torch.where(per_row, x, torch.zeros((), dtype=x.dtype, device=x.device))
        p = torch.where(per_row.unsqueeze(-1) if family == "categorical" else per_row, p, 0.0)
    if family == "categorical":
        log_p = torch.log_softmax(p, -1)
        index = x.long().unsqueeze(-1)
        terms = log_p.gather(-1, index.expand(*log_p.shape[:-1], 1)).squeeze(-1)
    elif family == "bernoulli":
        terms = x.to(p.dtype) * p - torch.nn.functional.softplus(p)
    else:
        s = torch.as_tensor(scale, dtype=p.dtype, device=p.device)
        d = (x.to(p.dtype) - p) / s
        if family == "normal":
            terms = -0.5 * d.square() - s.log() - 0.5 * math.log(2 * math.pi)
        else:
            terms = -d.abs() - s.log() - math.log(2)
    total = terms.flatten(terms.dim() - event_dims).sum(-1) if event_dims else terms
    return total if mask is None else torch.where(mask.reshape(-1, *[1] * (x.dim() - 1 - event_dims)), total, 0.0)
