"""The specification: every fused function in a few lines of plain PyTorch.

Kernels are tested against these twins in float64, ONNX export goes through them, and devices no kernel exists for
(MPS, XPU, ...) fall back to them. They favour being obvious over being fast; the contracts shared by all of them stand
in :mod:`mmvae_fast.functional`.

Missing experts are *selected* away (``torch.where``), never multiplied by the mask: NaN * 0 is NaN. For the same reason
a branch that is not taken is given harmless numbers first: its gradient is 0 times something, which has to be finite.
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
NEGLIGIBLE = 1e-30  # responsibilities below it are exact zeros: denormal gradients cost more than they say


class PoESample(NamedTuple):
    """What :func:`poe_sample_kl` returns; see there."""

    z: Tensor
    mu: Tensor
    logvar: Tensor
    kl: Tensor
    expert_kl: Tensor | None = None


class SubsetPosteriors(NamedTuple):
    """What :func:`subset_posteriors` returns; see there."""

    mu: Tensor
    logvar: Tensor
    kl: Tensor
    available: Tensor


class MoPoESample(NamedTuple):
    """What :func:`mopoe_sample_kl` returns; see there."""

    z: Tensor
    kl: Tensor
    subset: Tensor


# --- noise ------------------------------------------------------------------------------------------------------------

_LOW32 = 0xFFFFFFFF


def seed_tensor(seed: int | Tensor | None, generator: torch.Generator | None = None, device="cpu") -> Tensor:
    """The 64-bit seed as an int64 tensor of one element, or with a first row of two (see :func:`row_seed`); ``None``
    draws a fresh one from torch's generator."""
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or not (seed.numel() == 1 or (seed.dim() == 1 and seed.shape[0] == 2)):
            raise ValueError(
                "seed: expected an int64 tensor of one element, or [2] as row_seed makes, got "
                f"{seed.dtype} {tuple(seed.shape)}"
            )
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
    # torch.full, not torch.tensor: that would copy from the host, which waits and cannot be captured in a graph
    return torch.full((1,), seed - 2**64 if seed >= 2**63 else seed, dtype=torch.int64, device=device)


def row_seed(seed: int | Tensor, first_row: int | Tensor, *, device: torch.device | str | None = None) -> Tensor:
    """A seed for a part of some rows: row r of the part draws the noise that row ``first_row + r`` draws of ``seed``.

    So rows may be taken in parts of any size, with the same noise as all at once::

        whole = model.log_likelihood(batch, seed=7)
        parts = [
            model.log_likelihood({name: x[i : i + 100] for name, x in batch.items()}, seed=functional.row_seed(7, i))
            for i in range(0, rows, 100)
        ]

    Args:
        seed: 64-bit int, or int64 tensor of one element. Of another ``row_seed``, the rows are counted from its own.
        first_row: 0 to 2^32 - 1, or an int64 tensor of one element: not read on the host, so nothing waits for a
            device and nothing is compiled again when it changes. Rows are counted in 32 bits, and begin again at 0.
        device: where the noise will be drawn; default: where ``seed`` or ``first_row`` is, or the CPU.

    Returns:
        int64 [2], accepted wherever ``seed=`` is.

    Raises:
        ValueError, TypeError: no seed (None would draw one for each part), or no row.
    """
    if seed is None:
        raise TypeError("seed is None, expected an int or an int64 tensor: every part would draw a seed of its own")
    if device is None:
        given = [t for t in (seed, first_row) if isinstance(t, Tensor)]
        device = given[0].device if given else "cpu"
    if isinstance(first_row, Tensor):
        if first_row.numel() != 1 or first_row.dtype != torch.int64:
            raise ValueError(
                f"first_row: expected an int64 tensor of one element, got {first_row.dtype} {tuple(first_row.shape)}"
            )
        first = first_row.reshape(1).to(device)
    else:
        if isinstance(first_row, bool) or not hasattr(first_row, "__index__"):
            raise TypeError(f"first_row: expected an int or an int64 tensor, got {type(first_row).__name__}")
        if not 0 <= operator.index(first_row) <= _LOW32:
            raise ValueError(f"first_row is {first_row}, expected 0 to {_LOW32}")
        first = torch.full((1,), operator.index(first_row), dtype=torch.int64, device=device)
    numbers = seed_tensor(seed, device=device).reshape(-1)
    return torch.cat([numbers[:1], first if numbers.shape[0] == 1 else numbers[1:] + first])


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
    seed = seed.reshape(()) if seed.numel() == 1 else seed[0]
    return seed & _LOW32, (seed >> 32) & _LOW32


def _row_counters(seed: Tensor, rows: int) -> Tensor:
    """From the seed's first row on, in 32 bits."""
    row = torch.arange(rows, device=seed.device)
    return row if seed.numel() == 1 else (row + seed[1]) & _LOW32


def _uniforms(seed, rows: int, dim: int, n_samples: int | None, stream: int, dtype, device) -> list[Tensor]:
    """The four lanes of every counter (d // 4, row, sample, stream) as numbers in (0, 1), exact: [K, rows, D / 4]."""
    seed = seed_tensor(seed, device=device)
    sample = torch.arange(1 if n_samples is None else n_samples, device=device)[:, None, None]
    row = _row_counters(seed, rows)[:, None]
    block = torch.arange((dim + 3) // 4, device=device)
    words = philox_words((block, row, sample, stream), _key(seed))
    real = torch.float64 if dtype == torch.float64 else torch.float32
    return [((w >> 9).to(real) + 0.5) * 2.0**-23 for w in words]


def _interleave(lanes: list[Tensor], dim: int, n_samples: int | None, dtype) -> Tensor:
    noise = torch.stack(lanes, dim=-1).flatten(-2)[..., :dim].to(dtype)
    return noise[0] if n_samples is None else noise


def philox_uniform(seed: int | Tensor, rows: int, dim: int, stream: int = 0, *, device="cpu") -> Tensor:
    """Numbers in (0, 1), float32 [rows, dim], from the same counters as :func:`philox_normal`."""
    return _interleave(_uniforms(seed, rows, dim, None, stream, torch.float32, device), dim, None, torch.float32)


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

    Counter = (d // 4, row, sample, stream), rows from the seed's first one on (see :func:`row_seed`), key = (low, high
    word of the seed), u = ((x >> 9) + 0.5) * 2**-23, Box-Muller over the lane pairs (0, 1) and (2, 3).
    """
    u = _uniforms(seed, rows, dim, n_samples, stream, dtype, device)
    lanes = []
    for u0, u1 in (u[:2], u[2:]):
        radius, angle = torch.sqrt(-2.0 * torch.log(u0)), 2.0 * math.pi * u1
        lanes += [radius * torch.cos(angle), radius * torch.sin(angle)]
    return _interleave(lanes, dim, n_samples, dtype)


def philox_laplace(
    seed: int | Tensor,
    rows: int,
    dim: int,
    n_samples: int | None = None,
    stream: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    device="cpu",
) -> Tensor:
    """Laplace(0, 1) noise from the same counters: a lane's uniform through the inverse of the distribution function."""
    lanes = []
    for u in _uniforms(seed, rows, dim, n_samples, stream, dtype, device):
        log_tail = torch.log(2.0 * torch.minimum(u, 1.0 - u))  # both exact, also in float32
        lanes.append(torch.where(u < 0.5, log_tail, -log_tail))
    return _interleave(lanes, dim, n_samples, dtype)


def choose_component(seed: int | Tensor, n_available: Tensor, n_samples: int | None = None) -> Tensor:
    """For every row, which of its ``n_available`` [B] mixture components it draws: floor(u * n), exactly, as int64 [B],
    or [n_samples, B].

    Stream 1 of the noise; 0 where nothing is available. Depends on seed, row and sample, never on the batch size.
    """
    device = n_available.device
    seed = seed_tensor(seed, device=device)
    row = _row_counters(seed, n_available.shape[0])
    sample = 0 if n_samples is None else torch.arange(n_samples, device=device)[:, None]
    word = philox_words((0, row, sample, 1), _key(seed))[0]
    return ((2 * (word >> 9) + 1) * n_available) >> 24  # u = (2k + 1) * 2**-24: integer arithmetic, no rounding


# --- one distribution -------------------------------------------------------------------------------------------------


def _compute(x: Tensor) -> Tensor:
    """Half types are computed in float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def reparameterize(
    mu: Tensor, logvar: Tensor, n_samples: int | None = None, *, family: str = "normal", seed=None, generator=None
) -> Tensor:
    """z = mu + exp(logvar / 2) * eps, eps ~ N(0, 1) or Laplace(0, 1)."""
    _checks.gaussian("reparameterize", mu, logvar)
    _checks.n_samples("reparameterize", n_samples)
    _checks.family("reparameterize", family)
    seed = seed_tensor(seed, generator, mu.device)
    m, lv = _compute(mu), _compute(logvar)
    rows = math.prod(mu.shape[:-1])
    noise = philox_normal if family == "normal" else philox_laplace
    eps = noise(seed, rows, mu.shape[-1], n_samples, dtype=m.dtype, device=mu.device)
    eps = eps.reshape(mu.shape if n_samples is None else (n_samples, *mu.shape))
    return (m + torch.exp(0.5 * lv) * eps).to(mu.dtype)


def _excess(log_ratio: Tensor) -> Tensor:
    """e^x - 1 - x; +inf, not NaN, at +inf."""
    return torch.expm1(log_ratio) - log_ratio.clamp(max=torch.finfo(log_ratio.dtype).max)


def _or_zero(prior: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros((), dtype=like.dtype, device=like.device) if prior is None else _compute(prior)


def gaussian_kl(
    mu: Tensor, logvar: Tensor, prior_mu: Tensor | None = None, prior_logvar: Tensor | None = None
) -> Tensor:
    """KL( N(mu, e^logvar) || N(prior_mu, e^prior_logvar) ), summed over the last dimension."""
    _checks.gaussian("gaussian_kl", mu, logvar)
    _checks.prior("gaussian_kl", mu, prior_mu, prior_logvar)
    return gaussian_kl_terms(mu, logvar, prior_mu, prior_logvar).sum(-1)


def gaussian_kl_terms(mu: Tensor, logvar: Tensor, prior_mu: Tensor | None, prior_logvar: Tensor | None) -> Tensor:
    """The KL of every dimension by itself."""
    m, lv = _compute(mu), _compute(logvar)
    if prior_mu is None and prior_logvar is None:
        return 0.5 * (m.square() + _excess(lv))
    pm, plv = _or_zero(prior_mu, m), _or_zero(prior_logvar, m)
    return 0.5 * ((m - pm).square() * torch.exp(-plv) + _excess(lv - plv))


def laplace_kl(
    mu: Tensor, logvar: Tensor, prior_mu: Tensor | None = None, prior_logvar: Tensor | None = None
) -> Tensor:
    """KL( Laplace(mu, e^(logvar/2)) || Laplace(prior_mu, e^(prior_logvar/2)) ), summed over the last dimension."""
    _checks.gaussian("laplace_kl", mu, logvar)
    _checks.prior("laplace_kl", mu, prior_mu, prior_logvar)
    return laplace_kl_terms(mu, logvar, prior_mu, prior_logvar).sum(-1)


def laplace_kl_terms(mu: Tensor, logvar: Tensor, prior_mu: Tensor | None, prior_logvar: Tensor | None) -> Tensor:
    """The KL of every dimension by itself.

    With d = |mu - prior_mu|, t = d / b and r = log(b / b0) it is d / b0 * (1 - (1 - e^-t) / t) + (e^r - 1 - r).
    """
    m, lv = _compute(mu), _compute(logvar)
    pm, plv = _or_zero(prior_mu, m), _or_zero(prior_logvar, m)
    distance = (m - pm).abs()
    t = distance * torch.exp(-0.5 * lv)
    same = t == 0  # one mean, or b = +inf
    safe = torch.where(same, 1.0, t)
    apart = torch.where(same, 0.0, 1.0 + torch.expm1(-safe) / safe)
    return distance * torch.exp(-0.5 * plv) * apart + _excess(0.5 * (lv - plv))


def _log_density(x: Tensor, mean: Tensor, scale: Tensor, family: str) -> Tensor:
    """Of the normal or Laplace distribution, element by element."""
    d = (x - mean) / scale
    if family == "normal":
        return -0.5 * d.square() - scale.log() - 0.5 * math.log(2 * math.pi)
    return -d.abs() - scale.log() - math.log(2)


# --- products of experts ----------------------------------------------------------------------------------------------


def _stack(mu: Experts, spread: Experts, mask: Tensor | None, neutral: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Experts as [M, B, D], and which are observed as [M, B, 1]. A missing one gets mean 0 and a neutral logvar (or
    scale), whatever it holds."""
    mu = _compute(mu if isinstance(mu, Tensor) else torch.stack(list(mu)))
    spread = _compute(spread if isinstance(spread, Tensor) else torch.stack(list(spread)))
    if mask is None:
        return mu, spread, torch.ones(mu.shape[:2], dtype=torch.bool, device=mu.device).unsqueeze(-1)
    observed = mask.t().unsqueeze(-1)
    return torch.where(observed, mu, 0.0), torch.where(observed, spread, neutral), observed


def _dtype(experts: Experts) -> torch.dtype:
    return experts.dtype if isinstance(experts, Tensor) else experts[0].dtype


def _product(
    mu: Tensor, logvar: Tensor, observed: Tensor, prior: bool, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Precision-weighted product of the observed experts of [M, B, D]; the prior where there are none.

    Precisions are scaled by the largest one, so that none overflows: lv = s - log T, T = sum_m w_m exp(s - lv_m).
    """
    scaled = torch.where(observed, logvar, math.inf)
    if weights is None:
        shift = scaled.detach().amin(0)
    else:
        weights = (weights if weights.dim() == 2 else weights.unsqueeze(-1)).to(scaled.dtype).unsqueeze(1)
        weights = torch.where(observed, weights, 0.0)  # a missing expert's may be anything, too
        shift = (scaled - weights.log()).detach().amin(0)  # +inf at weight 0: such an expert says nothing
    shift = shift.clamp(max=0.0) if prior else torch.where(shift == math.inf, 0.0, shift)
    if weights is None:
        precision = torch.exp(shift - scaled)
    else:  # at weight 0 the exponent may be anything, and the gradient to the weight is still asked for
        precision = weights * torch.exp((shift - scaled).clamp(max=0.999 * math.log(torch.finfo(scaled.dtype).max)))
    total = precision.sum(0) + (torch.exp(shift) if prior else 0.0)
    empty = total == 0  # nothing observed, or only experts that say nothing (logvar = +inf, weight 0)
    safe = torch.where(empty, math.inf, total)
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


def _subset_posteriors(
    mu: Tensor, logvar: Tensor, observed: Tensor, subsets: Sequence[int] | None, prior: str
) -> SubsetPosteriors:
    """The product of every subset's experts; the standard normal in rows where one of them is missing."""
    n_experts = mu.shape[0]
    mus, logvars, usable = [], [], []
    for subset in all_subsets(n_experts) if subsets is None else subsets:
        members = [i for i in range(n_experts) if subset >> i & 1]
        with_prior = prior == "all" or (prior == "full" and len(members) == n_experts)
        # one index at a time: a list of them is a constant tensor, which exported graphs lose (see philox_words)
        s_mu, s_logvar, s_observed = (torch.stack([t[i] for i in members]) for t in (mu, logvar, observed))
        there = s_observed.all(0)
        s_mu, s_logvar = _product(s_mu, s_logvar, torch.ones_like(s_observed), with_prior)
        mus.append(torch.where(there, s_mu, 0.0))
        logvars.append(torch.where(there, s_logvar, 0.0))
        usable.append(there.squeeze(-1))
    means, spreads = torch.stack(mus), torch.stack(logvars)
    return SubsetPosteriors(means, spreads, gaussian_kl(means, spreads), torch.stack(usable))


def subset_posteriors(
    mu: Experts,
    logvar: Experts,
    mask: Tensor | None = None,
    *,
    subsets: Sequence[int] | None = None,
    prior: str = "full",
) -> SubsetPosteriors:
    """The posterior given every subset of the modalities, its KL to N(0, I), and in which rows it is available."""
    _checks.experts("subset_posteriors", mu, logvar, mask)
    _checks.subsets("subset_posteriors", mu, subsets, prior)
    s_mu, s_logvar, kl, available = _subset_posteriors(*_stack(mu, logvar, mask), subsets, prior)
    return SubsetPosteriors(s_mu.to(_dtype(mu)), s_logvar.to(_dtype(mu)), kl, available)


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
    m, lv, observed = _stack(mu, logvar, mask)
    seed = seed_tensor(seed, generator, m.device)
    posteriors = _subset_posteriors(m, lv, observed, subsets, prior)
    n_usable = posteriors.available.sum(0)
    kl = posteriors.kl.sum(0) / n_usable.clamp(min=1)
    # the k-th available subset of a row: where the running count of available ones first exceeds k
    pick = (posteriors.available.cumsum(0) <= choose_component(seed, n_usable)).sum(0)
    nothing = n_usable == 0
    index = torch.where(nothing, 0, pick)[None, :, None].expand(1, *m.shape[1:])
    z = reparameterize(posteriors.mu.gather(0, index)[0], posteriors.logvar.gather(0, index)[0], seed=seed)
    return MoPoESample(z.to(_dtype(mu)), kl, torch.where(nothing, -1, pick))


# --- mixtures of experts ----------------------------------------------------------------------------------------------


def mixture_log_prob(
    z: Tensor, mu: Experts, scale: Experts, mask: Tensor | None = None, *, family: str = "normal"
) -> Tensor:
    """log of the mean density of a row's observed experts at z; of the prior's density where there are none."""
    _checks.mixture("mixture_log_prob", z, mu, scale, mask, family)
    m, s, observed = _stack(mu, scale, mask, neutral=1.0)
    z, there = _compute(z), observed.squeeze(-1).t()  # [B, M]
    terms = [_log_density(z, m[i], s[i], family).sum(-1) for i in range(m.shape[0])]
    densities = torch.where(there, torch.stack(terms, -1), -math.inf)  # [..., B, M]
    peak = densities.detach().amax(-1, keepdim=True)
    peak = torch.where(peak == -math.inf, 0.0, peak)
    shares = torch.exp(densities - peak)
    total = torch.where(shares < NEGLIGIBLE, 0.0, shares).sum(-1)
    impossible = total == 0  # every density is 0, or nothing is observed
    log_total = torch.where(impossible, -math.inf, torch.log(torch.where(impossible, 1.0, total)))
    log_prob = peak.squeeze(-1) + log_total - there.sum(-1).clamp(min=1).to(z.dtype).log()
    prior = _log_density(z, torch.zeros_like(z), torch.ones_like(z), family).sum(-1)
    return torch.where(there.any(-1), log_prob, prior)


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
    _checks.likelihood("log_likelihood", x, params, family, scale, event_dims, mask)
    event_dims = x.dim() - 1 if event_dims is None else event_dims
    p = _compute(params)
    s = (
        _compute(scale).to(p.dtype)
        if isinstance(scale, Tensor)
        else torch.full((), scale, dtype=p.dtype, device=p.device)
    )
    if mask is not None:  # a missing row may hold anything, and so may its parameters
        per_row = mask.reshape(-1, *[1] * (x.dim() - 1))
        x = torch.where(per_row, x, torch.zeros((), dtype=x.dtype, device=x.device))
        p = torch.where(per_row.unsqueeze(-1) if family == "categorical" else per_row, p, 0.0)
        s = torch.where(per_row, s, 1.0)
    if family == "categorical":
        _checks.classes("log_likelihood", x, params)
        log_p = torch.log_softmax(p, -1)
        index = x.long().unsqueeze(-1)
        terms = log_p.gather(-1, index.expand(*log_p.shape[:-1], 1)).squeeze(-1)
    elif family == "bernoulli":
        terms = x.to(p.dtype) * p + torch.nn.functional.logsigmoid(-p)
    else:
        terms = _log_density(x.to(p.dtype), p, s.to(p.dtype), family)
    total = terms.flatten(terms.dim() - event_dims).sum(-1) if event_dims else terms
    return total if mask is None else torch.where(mask.reshape(-1, *[1] * (x.dim() - 1 - event_dims)), total, 0.0)
