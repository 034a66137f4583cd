"""Drop-ins for ``torch.distributions`` on our kernels: ``from mmvae_fast.distributions import Normal, kl_divergence``.

- :class:`Normal` and :class:`Laplace` are torch's, with torch's shapes: batch_shape [B, D], no event dimension, hence
  ``q.log_prob(z)`` and ``kl_divergence(q, p)`` one number an element. They are instances of torch's classes, so what
  torch knows of those (cdf, KL to other families, ...) holds.
- :class:`Independent` is torch's too: it makes the last dimension the event. Log-densities and KL become sums [B], and
  each is one kernel: ``Independent(Normal.from_logvar(mu, logvar), 1)`` is the form to train with.
- :class:`ProductOfExperts` (an Independent) and :class:`MixtureOfExperts` have batch_shape [B], event_shape [D].

What differs from torch: ``validate_args`` is off unless asked for, because reading values stops a GPU (shapes, types
and devices are checked, which costs nothing); the noise is the package's own, so the numbers differ from torch's under
one ``torch.manual_seed``, and ``seed=`` repeats them; log-densities of half types are float32; ``from_logvar`` keeps
log-variances as they are, without exp and log on the way.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributions
from torch.distributions import Distribution, constraints, kl_divergence
from torch.distributions.kl import _kl_independent_independent, register_kl

from mmvae_fast import _checks, functional, reference
from mmvae_fast.reference import Experts, seed_tensor

__all__ = ["Independent", "Laplace", "MixtureOfExperts", "Normal", "ProductOfExperts", "kl_divergence"]

Number = int | float
Seed = int | Tensor | None
Shape = Sequence[int]


def _sum_last(x: Tensor, dims: int) -> Tensor:
    return x.flatten(x.dim() - dims).sum(-1) if dims else x


def _widest(tensors: Sequence[Tensor]) -> torch.dtype:
    dtypes = {t.dtype for t in tensors} or {torch.get_default_dtype()}
    return functools.reduce(torch.promote_types, dtypes)


def _broadcast_shapes(a: torch.Size, b: torch.Size) -> torch.Size:
    """torch's is slow, and mostly there is nothing to do."""
    return a if a == b or not b else b if not a else torch.broadcast_shapes(a, b)


def _expand(x: Tensor, shape: torch.Size) -> Tensor:
    return x if x.shape == shape else x.expand(shape)


def _recorded(x: Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled()


def _count(sample_shape: Shape) -> int | None:
    """``sample_shape`` as the functions' ``n_samples``."""
    return math.prod(sample_shape) if len(sample_shape) else None


def _noise(like: Tensor, n_samples: int | None, family: str, seed: Seed) -> Tensor:
    """Draws of scale 1 in the shape of ``like`` [..., D], samples in front; float32 for half types."""
    zero = reference._compute(like).new_zeros(like.shape[-1:]).expand(like.shape)
    return functional.reparameterize(zero, zero, n_samples, family=family, seed=seed)


# --- one Gaussian, one Laplace ----------------------------------------------------------------------------------------


class _LocationScale(Distribution):
    """What Normal and Laplace share.

    Parameters are kept as they came and broadcast when asked for. Numbers stay numbers: a tensor of one is a copy to
    the device. Nothing derived is kept, since it might have been computed under ``no_grad``.
    """

    family: str  # its name in mmvae_fast.functional
    has_rsample = True
    _unit_entropy: float  # entropy at scale 1
    _loc: Any  # tensors or numbers; one of scale and logvar is None
    _scale: Any
    _logvar: Any
    _dtype: torch.dtype
    _device: torch.device | None

    def __init__(self, loc: Tensor | Number, scale: Tensor | Number, validate_args: bool | None = False) -> None:
        self._set(("loc", loc), ("scale", scale))
        if not isinstance(scale, Tensor) and not scale > 0:
            _checks._fail(f"distributions.{type(self).__name__}", f"scale is {scale}, expected more than 0")
        self._loc, self._scale, self._logvar = loc, scale, None
        Distribution.__init__(self, self._batch_shape, validate_args=validate_args)

    @classmethod
    def from_logvar(cls, mu: Tensor | Number, logvar: Tensor | Number, validate_args: bool | None = False):
        """The distribution of scale e^(logvar/2), which is the standard deviation of a Normal and the b of a Laplace
        (so a Laplace's ``logvar`` is 2 log b, not the log of its variance 2 b^2)."""
        self = cls.__new__(cls)
        self._set(("mu", mu), ("logvar", logvar))
        self._loc, self._scale, self._logvar = mu, None, logvar
        Distribution.__init__(self, self._batch_shape, validate_args=validate_args)
        return self

    def _set(self, *arguments: tuple[str, Any]) -> None:
        """Checks kinds, types and devices; finds the shape, type and device of the whole."""
        fn, tensors = f"distributions.{type(self).__name__}", []
        for name, value in arguments:
            if isinstance(value, Tensor):
                _checks._floating(fn, name, value)
                tensors.append(value)
            elif isinstance(value, bool) or not isinstance(value, (int, float)):
                _checks._fail(fn, f"{name} is a {type(value).__name__}, expected a tensor or a number", TypeError)
        if len({t.device for t in tensors}) > 1:
            (name, second), first = arguments[1], tensors[0]
            _checks._fail(fn, f"{name} is on {second.device}, expected {first.device} like {arguments[0][0]}")
        try:
            self._batch_shape = functools.reduce(_broadcast_shapes, (t.shape for t in tensors), torch.Size())
        except RuntimeError:
            what = " and ".join(f"{name} {list(value.shape)}" for name, value in arguments)
            _checks._fail(fn, f"{what} do not broadcast")
        self._dtype = _widest(tensors)
        self._device = tensors[0].device if tensors else None

    def _tensor(self, value: Tensor | Number, device: torch.device | None = None) -> Tensor:
        """The broadcast tensor; where all are numbers, on the ``device`` of whatever asks."""
        if not isinstance(value, Tensor):
            value = torch.full((), value, dtype=self._dtype, device=self._device or device)
        return _expand(value.to(self._dtype), self._batch_shape)

    def _raw_scale(self) -> Tensor | Number:
        if self._logvar is None:
            return self._scale
        return torch.exp(0.5 * self._logvar) if isinstance(self._logvar, Tensor) else math.exp(0.5 * self._logvar)

    def _raw_log_scale(self) -> Tensor | Number:
        if self._logvar is not None:
            return 0.5 * self._logvar
        return torch.log(self._scale) if isinstance(self._scale, Tensor) else math.log(self._scale)

    def _raw_logvar(self) -> Tensor | Number:
        return 2 * self._raw_log_scale() if self._logvar is None else self._logvar

    @property
    def loc(self) -> Tensor:
        return self._tensor(self._loc)

    @property
    def scale(self) -> Tensor:
        return self._tensor(self._raw_scale())

    @property
    def logvar(self) -> Tensor:
        """2 log scale."""
        return self._tensor(self._raw_logvar())

    def expand(self, batch_shape: Shape, _instance=None):
        new = self._get_checked_instance(type(self), _instance)
        new.__dict__.update(self.__dict__)  # parameters broadcast when asked for: nothing to do but the shape
        new._batch_shape = torch.Size(batch_shape)
        if torch.broadcast_shapes(self._batch_shape, new._batch_shape) != new._batch_shape:
            raise ValueError(f"{type(self).__name__}: {list(self._batch_shape)} does not expand to {list(batch_shape)}")
        return new

    def rsample(self, sample_shape: Shape = (), *, seed: Seed = None) -> Tensor:
        """A sample [*sample_shape, *batch_shape]. ``seed``: as in :func:`mmvae_fast.functional.reparameterize`."""
        shape = self._extended_shape(torch.Size(sample_shape))
        loc = self.loc if self._batch_shape else self.loc.unsqueeze(0)
        n_samples = _count(sample_shape)
        if self._logvar is not None:
            logvar = self.logvar.expand(loc.shape)
            return functional.reparameterize(loc, logvar, n_samples, family=self.family, seed=seed).reshape(shape)
        eps = _noise(loc, n_samples, self.family, seed).reshape(shape)
        return (self.loc + self.scale * eps).to(self._dtype)

    def sample(self, sample_shape: Shape = (), *, seed: Seed = None) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape, seed=seed)

    def log_prob(self, value: Tensor) -> Tensor:
        return self._log_prob(value, 0)

    def _log_prob(self, value: Tensor, event_dims: int) -> Tensor:
        """log-density summed over the last ``event_dims`` dimensions, by a kernel where there is one.

        ``log_likelihood`` is symmetric in data and mean, and serves where one of them has no gradient; a mixture of one
        expert serves vectors where both have.
        """
        if self._validate_args:
            self._validate_sample(value)
        dtype = torch.promote_types(self._dtype, value.dtype)
        value, loc, scale = value.to(dtype), self._tensor(self._loc, value.device).to(dtype), self._raw_scale()
        scale = scale.to(dtype) if isinstance(scale, Tensor) else scale
        full = _broadcast_shapes(value.shape, loc.shape)
        for x, params in ((value, loc), (loc, value)):
            if len(full) > event_dims and not _recorded(x) and loc.device == value.device:
                if x.dim() <= event_dims or x.shape != full[len(full) - x.dim() :]:
                    x = x.expand(full)
                return functional.log_likelihood(
                    x, params.expand(full), family=self.family, scale=scale, event_dims=event_dims
                )
        if event_dims == 1 and len(full) > 1 and self._batch_shape == full[len(full) - len(self._batch_shape) :]:
            rows, dim = math.prod(self._batch_shape[:-1]), full[-1]
            z = value.expand(full).reshape(*full[: len(full) - len(self._batch_shape)], rows, dim)
            expert = (t.reshape(1, rows, dim) for t in (loc, self.scale.to(dtype)))
            return functional.mixture_log_prob(z, *expert, family=self.family).reshape(full[:-1])
        value, loc, scale = (reference._compute(t) for t in (value, loc, self.scale.to(dtype)))
        return _sum_last(reference._log_density(value, loc, scale, self.family), event_dims)

    def __repr__(self) -> str:
        spread = ("scale", self._scale) if self._logvar is None else ("logvar", self._logvar)
        shown = (f"{n}: {list(v.shape) if isinstance(v, Tensor) else v}" for n, v in (("loc", self._loc), spread))
        return f"{type(self).__name__}({', '.join(shown)}, batch_shape: {list(self._batch_shape)})"

    def entropy(self) -> Tensor:
        return self._unit_entropy + self._tensor(self._raw_log_scale())


class Normal(_LocationScale, distributions.Normal):  # type: ignore[override]
    """Gaussian with the shapes of :class:`torch.distributions.Normal`; ``Normal.from_logvar(mu, logvar)`` skips exp and
    log.

    Args:
        loc, scale: mean and standard deviation, tensors that broadcast, or numbers; ``Normal(0.0, 1.0)`` is the
            standard prior on any device.
        validate_args: check values too (stops a GPU); off unless asked for.
    """

    family = "normal"
    _unit_entropy = 0.5 + 0.5 * math.log(2 * math.pi)


class Laplace(_LocationScale, distributions.Laplace):  # type: ignore[override]
    """Laplace distribution with the shapes of :class:`torch.distributions.Laplace`; see :class:`Normal`.

    Args:
        loc, scale: median and scale b (the standard deviation is b sqrt(2)).
    """

    family = "laplace"
    _unit_entropy = 1 + math.log(2)


# --- over vectors -----------------------------------------------------------------------------------------------------


class Independent(distributions.Independent):
    """:class:`torch.distributions.Independent`, fused where the base is ours: ``Independent(Normal(mu, sd), 1)``.

    Any other base distribution behaves as in torch.
    """

    def __init__(self, base_distribution: Distribution, reinterpreted_batch_ndims: int, validate_args=False) -> None:
        super().__init__(base_distribution, reinterpreted_batch_ndims, validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance=None):
        new = self.__new__(type(self)) if _instance is None else _instance
        new.__dict__.update(self.__dict__)
        new._batch_shape = torch.Size(batch_shape)
        new.base_dist = self.base_dist.expand(new._batch_shape + self.event_shape[: self.reinterpreted_batch_ndims])
        return new

    @property
    def stddev(self) -> Tensor:
        return self.base_dist.stddev

    def rsample(self, sample_shape: Shape = (), *, seed: Seed = None) -> Tensor:
        given: dict[str, Any] = {} if seed is None else {"seed": seed}  # not every base knows it
        return self.base_dist.rsample(torch.Size(sample_shape), **given)

    def sample(self, sample_shape: Shape = (), *, seed: Seed = None) -> Tensor:
        with torch.no_grad():
            given: dict[str, Any] = {} if seed is None else {"seed": seed}
            return self.base_dist.sample(torch.Size(sample_shape), **given)

    def log_prob(self, value: Tensor) -> Tensor:
        if isinstance(self.base_dist, _LocationScale):
            return self.base_dist._log_prob(value, self.reinterpreted_batch_ndims)
        return super().log_prob(value)


class ProductOfExperts(Independent):
    """The product of Gaussian experts, which is a Gaussian: batch_shape [B], event_shape [D].

    Everything of a Gaussian is there (``kl_divergence(q, Normal(0.0, 1.0))``, entropy, ...). Where fusion, sample and
    KL are all that is needed, :func:`mmvae_fast.functional.poe_sample_kl` is one kernel instead of three.

    Args: those of :func:`mmvae_fast.functional.product_of_experts`.
    """

    def __init__(
        self,
        mu: Experts,
        logvar: Experts,
        mask: Tensor | None = None,
        *,
        prior: bool = True,
        weights: Tensor | None = None,
        validate_args: bool | None = False,
    ) -> None:
        fused = functional.product_of_experts(mu, logvar, mask, prior=prior, weights=weights)
        super().__init__(Normal.from_logvar(*fused, validate_args=validate_args), 1, validate_args=validate_args)

    @property
    def mu(self) -> Tensor:
        return self.base_dist.loc

    @property
    def logvar(self) -> Tensor:
        return self.base_dist.logvar


class MixtureOfExperts(Distribution):
    """Every row's observed experts in equal parts: batch_shape [B], event_shape [D]. A row without any is the prior
    (mean 0, scale 1). Entropy and KL have no closed form and raise NotImplementedError; ``log_prob`` estimates them.

    Args:
        mu, scale: M experts as a list of [B, D] or stacked [M, B, D]; standard deviations (normal) or b (laplace).
            ``MixtureOfExperts.from_logvar(mu, logvar)`` takes 2 log scale.
        mask: bool [B, M], True = observed; what a missing expert holds is never read.
        family: "normal" or "laplace".
    """

    has_rsample = True
    arg_constraints = {"mu": constraints.real, "scale": constraints.positive}  # noqa: RUF012 (torch's own form)
    support = constraints.real_vector
    _scale: Any  # one of scale and logvar is None
    _logvar: Any

    def __init__(
        self,
        mu: Experts,
        scale: Experts,
        mask: Tensor | None = None,
        *,
        family: str = "normal",
        validate_args: bool | None = False,
    ) -> None:
        self._scale, self._logvar = scale, None
        self._set(mu, scale, mask, family, validate_args)

    @classmethod
    def from_logvar(
        cls,
        mu: Experts,
        logvar: Experts,
        mask: Tensor | None = None,
        *,
        family: str = "normal",
        validate_args: bool | None = False,
    ):
        self = cls.__new__(cls)
        self._scale, self._logvar = None, logvar
        self._set(mu, logvar, mask, family, validate_args)
        return self

    def _set(self, mu, spread, mask, family, validate_args) -> None:
        fn = "distributions.MixtureOfExperts"
        _checks.experts(fn, mu, spread, mask)
        if family not in ("normal", "laplace"):
            _checks._fail(fn, f"family is {family!r}, expected 'normal' or 'laplace'")
        self._mu, self._mask, self.family = mu, mask, family
        first = mu[0]  # of a list, or of stacked ones
        self._rows = first.shape[0]
        self._dtype, self._device = first.dtype, first.device
        Distribution.__init__(self, first.shape[:1], first.shape[1:], validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance=None):
        new = self._get_checked_instance(MixtureOfExperts, _instance)
        new.__dict__.update(self.__dict__)
        new._batch_shape = torch.Size(batch_shape)
        new._rows = math.prod(batch_shape)
        leading = [1] * (len(batch_shape) - len(self._batch_shape))

        def rows(t: Tensor) -> Tensor:  # [M, B, D] with more rows
            t = t.reshape(t.shape[0], *leading, *self._batch_shape, t.shape[-1])
            return t.expand(-1, *batch_shape, -1).reshape(t.shape[0], new._rows, t.shape[-1])

        def experts(given: Experts | None) -> Experts | None:
            return rows(given) if isinstance(given, Tensor) else given and [rows(t.unsqueeze(0))[0] for t in given]

        new._mu, new._scale, new._logvar = experts(self._mu), experts(self._scale), experts(self._logvar)
        new._mask = self._mask if self._mask is None else rows(self._mask.unsqueeze(0))[0]
        return new

    def _stacked(self) -> tuple[Tensor, Tensor, Tensor]:
        """mu and scale [M, B, D], 0 and 1 where missing, and which are observed [M, B, 1]."""
        if self._logvar is None:
            return reference._stack(self._mu, self._scale, self._mask, neutral=1.0)
        mu, logvar, observed = reference._stack(self._mu, self._logvar, self._mask)
        return mu, torch.exp(0.5 * logvar), observed

    def _shaped(self, x: Tensor) -> Tensor:
        """[..., B, D] as callers see it."""
        return x.to(self._dtype).reshape(*x.shape[:-2], *self._batch_shape, *self._event_shape)

    @property
    def mu(self) -> Tensor:
        """[M, *batch_shape, D], 0 where missing."""
        return self._shaped(self._stacked()[0])

    @property
    def scale(self) -> Tensor:
        """[M, *batch_shape, D], 1 where missing."""
        return self._shaped(self._stacked()[1])

    @property
    def mean(self) -> Tensor:
        mu, _, observed = self._stacked()
        return self._shaped(mu.sum(0) / observed.sum(0).clamp(min=1))

    @property
    def variance(self) -> Tensor:
        """Law of total variance: the mean of the variances plus the variance of the means."""
        mu, scale, observed = self._stacked()
        count = observed.sum(0)
        unit = 1.0 if self.family == "normal" else 2.0
        within = unit * scale.square()
        between = (mu - mu.sum(0) / count.clamp(min=1)).square()
        total = torch.where(observed, within + between, 0.0).sum(0)
        return self._shaped(torch.where(count == 0, unit, total / count.clamp(min=1)))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        shape = self._batch_shape + self._event_shape
        full = torch.broadcast_shapes(value.shape, shape)
        z = value.expand(full).reshape(*full[: len(full) - len(shape)], self._rows, full[-1])
        mu, scale = self._mu, self._scale
        if self._logvar is not None:  # selected before exp, whose gradient at a missing NaN would be NaN
            mu, scale, _ = self._stacked()
            z = reference._compute(z)  # as these are
        log_p = functional.mixture_log_prob(z, mu, scale, self._mask, family=self.family)
        return log_p.reshape(full[:-1])

    def rsample(self, sample_shape: Shape = (), *, seed: Seed = None) -> Tensor:
        """A sample [*sample_shape, *batch_shape, D]: a component drawn uniformly from the row's observed ones, then a
        reparameterised draw of it. (The weights are constants, so this gradient is unbiased.)"""
        shape = self._extended_shape(torch.Size(sample_shape))
        n_samples, count = _count(sample_shape), len(self._mu)
        if n_samples is None and self.family == "normal" and self._logvar is not None:
            # the MoPoE step over subsets of one is a mixture of experts, in one kernel
            singles = [1 << m for m in range(count)]
            sample = functional.mopoe_sample_kl(
                self._mu, self._logvar, self._mask, subsets=singles, prior="none", seed=seed
            )
            return sample.z.reshape(shape)
        mu, scale, observed = self._stacked()
        seed = seed_tensor(seed, None, mu.device)
        n_observed = observed.sum(0).squeeze(-1)
        drawn = reference.choose_component(seed, n_observed, 1 if n_samples is None else n_samples)  # [K, B]
        running = observed.squeeze(-1).cumsum(0)  # [M, B]
        index = (running.unsqueeze(1) <= drawn).sum(0).clamp(max=count - 1)[..., None].expand(-1, -1, mu.shape[-1])
        # (a row without experts picks any of them: they all hold the prior there)
        eps = _noise(mu[0], drawn.shape[0], self.family, seed)
        return (mu.gather(0, index) + scale.gather(0, index) * eps).to(self._dtype).reshape(shape)

    def sample(self, sample_shape: Shape = (), *, seed: Seed = None) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape, seed=seed)

    def __repr__(self) -> str:
        rows, dim = list(self._batch_shape), self._event_shape[0]
        return f"{type(self).__name__}({len(self._mu)} {self.family} experts, batch {rows}, event [{dim}])"


# --- KL ---------------------------------------------------------------------------------------------------------------


def _parameters(d: Any) -> tuple[Tensor | Number, Tensor | Number]:
    """Location and 2 log scale, ours as they were given, or torch's."""
    return (d._loc, d._raw_logvar()) if isinstance(d, _LocationScale) else (d.loc, 2 * d.scale.log())


def _kl(p: Distribution, q: Distribution, event_dims: int) -> Tensor:
    """KL of two Normals or two Laplaces, summed over the last ``event_dims`` dimensions."""
    fn = "gaussian_kl" if isinstance(p, distributions.Normal) else "laplace_kl"
    shape = _broadcast_shapes(p.batch_shape, q.batch_shape)
    given = [*_parameters(p), *_parameters(q)]
    tensors = [t for t in given if isinstance(t, Tensor)]
    dtype, device = _widest(tensors), tensors[0].device if tensors else None

    def tensor(value: Tensor | Number) -> Tensor | None:
        if isinstance(value, Tensor):  # (torch lets a number in a CPU tensor meet any device)
            return value.to(dtype=dtype, device=device) if value.dim() == 0 else value.to(dtype)
        return torch.full((), value, dtype=dtype, device=device) if value else None

    mu, logvar, prior_mu, prior_logvar = map(tensor, given)
    mu, logvar = (_expand(torch.zeros((), dtype=dtype, device=device) if t is None else t, shape) for t in (mu, logvar))
    if event_dims == 1:
        return getattr(functional, fn)(mu, logvar, prior_mu, prior_logvar)
    return _sum_last(getattr(reference, f"{fn}_terms")(mu, logvar, prior_mu, prior_logvar), event_dims)


def _kl_elements(p: Distribution, q: Distribution) -> Tensor:
    return _kl(p, q, 0)


def _kl_independent(p: distributions.Independent, q: distributions.Independent) -> Tensor:
    bases, dims = (p.base_dist, q.base_dist), p.reinterpreted_batch_ndims
    for family in (distributions.Normal, distributions.Laplace):
        if all(isinstance(base, family) for base in bases) and dims == q.reinterpreted_batch_ndims:
            if p.event_shape != q.event_shape:
                raise ValueError(f"kl_divergence: event shapes {list(p.event_shape)} and {list(q.event_shape)} differ")
            return _kl(*bases, dims)
    return _kl_independent_independent(p, q)


def _kl_product(p: ProductOfExperts, q: distributions.Normal) -> Tensor:
    """A Normal without event dimension stands for one over vectors: ``kl_divergence(product, Normal(0.0, 1.0))``."""
    if torch.broadcast_shapes(p.base_dist.batch_shape, q.batch_shape) != p.base_dist.batch_shape:
        raise ValueError(
            f"kl_divergence: {list(q.batch_shape)} of the Normal does not broadcast to {list(p.base_dist.batch_shape)}"
        )
    return _kl(p.base_dist, q, 1)


for _ours, _torchs, _function in (
    (Normal, distributions.Normal, _kl_elements),
    (Laplace, distributions.Laplace, _kl_elements),
    (Independent, distributions.Independent, _kl_independent),
):
    for _pair in ((_ours, _ours), (_ours, _torchs), (_torchs, _ours)):
        register_kl(*_pair)(_function)
register_kl(ProductOfExperts, distributions.Normal)(_kl_product)
