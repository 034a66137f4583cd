"""Our distributions against torch's: values, gradients, shapes, KL; mixtures against torch's mixtures."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from expert_cases import assert_close, make_experts
from torch import distributions as td
from torch.utils._python_dispatch import TorchDispatchMode

from mmvae_fast import distributions as ours
from mmvae_fast import functional, reference
from mmvae_fast.distributions import Independent, Laplace, MixtureOfExperts, Normal, ProductOfExperts, kl_divergence

FAMILIES = {"normal": (Normal, td.Normal), "laplace": (Laplace, td.Laplace)}
SHAPE = (6, 5)
needs_kernels = pytest.mark.skipif(not functional._ext.LOADED, reason="built without kernels")


class NoHostSync(TorchDispatchMode):
    """Fails on operations that wait for a device: reading a value, or a shape that depends on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in (
            "_local_scalar_dense",
            "is_nonzero",
            "item",
            "nonzero",
            "equal",
            "_is_all_true",
            "masked_select",
        ), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


def leaves(*shapes, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def same(actual, expected, inputs, tolerance=1e-10):
    """Values and gradients."""
    assert_close(actual, expected, tolerance)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    grads = [
        torch.autograd.grad((x * weight).sum(), inputs, allow_unused=True, retain_graph=True)
        for x in (actual, expected)
    ]
    for a, e, t in zip(*grads, inputs, strict=True):
        assert_close(*(torch.zeros_like(t) if g is None else g for g in (a, e)), tolerance)


def both(family, form, loc, spread):
    """The same distribution from us and from torch."""
    mine, theirs = FAMILIES[family]
    scale = torch.exp(0.5 * spread)
    return (mine(loc, scale) if form == "scale" else mine.from_logvar(loc, spread)), theirs(loc, scale)


@pytest.mark.parametrize("form", ["scale", "logvar"])
@pytest.mark.parametrize("family", FAMILIES)
class TestAgainstTorch:
    def test_properties(self, family, form):
        inputs = leaves(SHAPE, SHAPE)
        mine, theirs = both(family, form, *inputs)
        assert isinstance(mine, type(theirs))
        assert mine.batch_shape == theirs.batch_shape and mine.event_shape == theirs.event_shape
        assert mine.support == theirs.support and mine.has_rsample
        for name in ("mean", "mode", "stddev", "variance", "loc", "scale"):
            same(getattr(mine, name), getattr(theirs, name), inputs)
        same(mine.entropy(), theirs.entropy(), inputs)
        same(mine.perplexity(), theirs.perplexity(), inputs)
        same(mine.logvar, 2 * theirs.scale.log(), inputs)

    @pytest.mark.parametrize("value_grad", [True, False])
    @pytest.mark.parametrize("shape", [SHAPE, (3, *SHAPE), (4, 3, *SHAPE), (5,), (1, 5), ()], ids=str)
    def test_log_prob(self, family, form, shape, value_grad):
        value, *inputs = leaves(shape, SHAPE, SHAPE)
        value.requires_grad_(value_grad)
        inputs += [value] * value_grad
        mine, theirs = both(family, form, *inputs[:2])
        same(mine.log_prob(value), theirs.log_prob(value), inputs)
        for dims in (1, 2):
            same(Independent(mine, dims).log_prob(value), td.Independent(theirs, dims).log_prob(value), inputs)
        # torch's Independent around ours works too, and so does a distribution without gradients
        same(td.Independent(mine, 1).log_prob(value), td.Independent(theirs, 1).log_prob(value), inputs)
        if value_grad:
            mine, theirs = both(family, form, *(t.detach() for t in inputs[:2]))
            same(Independent(mine, 1).log_prob(value), td.Independent(theirs, 1).log_prob(value), [value])

    @pytest.mark.parametrize(
        "shapes", [((5,), (5,)), ((6, 5), (5,)), ((), (6, 5)), ((), ()), ((2, 3, 4), (3, 1))], ids=str
    )
    def test_broadcast_parameters(self, family, form, shapes):
        inputs = leaves(*shapes)
        mine, theirs = both(family, form, *inputs)
        assert mine.batch_shape == theirs.batch_shape
        value = torch.randn(2, *theirs.batch_shape, dtype=torch.float64)
        same(mine.log_prob(value), theirs.log_prob(value), inputs)
        assert mine.rsample().shape == theirs.rsample().shape
        assert mine.rsample((2, 3)).shape == theirs.rsample((2, 3)).shape
        if theirs.batch_shape:
            same(Independent(mine, 1).log_prob(value), td.Independent(theirs, 1).log_prob(value), inputs)
            assert Independent(mine, 1).sample((3,)).shape == td.Independent(theirs, 1).sample((3,)).shape

    def test_cdf(self, family, form):
        mine, theirs = both(family, form, *leaves(SHAPE, SHAPE))
        value = torch.rand(SHAPE, dtype=torch.float64)
        assert_close(mine.cdf(value), theirs.cdf(value), 1e-12)
        assert_close(mine.icdf(value), theirs.icdf(value), 1e-12)

    def test_rsample_is_the_functions(self, family, form):
        loc, logvar = leaves(SHAPE, SHAPE)
        mine, _ = both(family, form, loc, logvar)
        for sample_shape, n_samples in (((), None), ((3,), 3), ((2, 3), 6)):
            z = mine.rsample(sample_shape, seed=7)
            expected = functional.reparameterize(loc, logvar, n_samples, family=family, seed=7)
            assert z.shape == (*sample_shape, *SHAPE)
            same(z, expected.reshape(z.shape), [loc, logvar])
            assert torch.equal(mine.sample(sample_shape, seed=7), z)
        assert not mine.sample().requires_grad
        torch.manual_seed(0)
        first, second = mine.sample(), mine.sample()
        torch.manual_seed(0)
        assert torch.equal(mine.sample(), first) and not torch.equal(first, second)

    def test_samples_have_these_moments(self, family, form):
        mine, theirs = both(family, form, *leaves((3,), (3,)))
        draws = mine.sample((20000,), seed=1)
        assert (draws.mean(0) - theirs.mean).abs().max() < 4 * theirs.stddev.max() / math.sqrt(20000)
        assert (draws.std(0) / theirs.stddev - 1).abs().max() < 0.05

    def test_expand_copy_pickle_repr(self, family, form):
        inputs = leaves((5,), (5,))
        mine, theirs = both(family, form, *inputs)
        for grown, expected in (
            (mine.expand((6, 5)), theirs.expand((6, 5))),
            (Independent(mine, 1).expand((6,)), td.Independent(theirs, 1).expand((6,))),
        ):
            value = torch.randn(SHAPE, dtype=torch.float64)
            assert grown.batch_shape == expected.batch_shape and grown.event_shape == expected.event_shape
            same(grown.log_prob(value), expected.log_prob(value), inputs)
            assert grown.rsample((2,)).shape == (2, 6, 5)
        with pytest.raises((ValueError, RuntimeError), match="expand|broadcast"):
            mine.expand((7,))
        with pytest.raises((ValueError, RuntimeError), match="expand|broadcast"):
            mine.expand(())
        detached, _ = both(family, form, *(t.detach() for t in inputs))
        for twin in (copy.deepcopy(detached), pickle.loads(pickle.dumps(detached))):
            assert torch.equal(twin.sample(seed=1), detached.sample(seed=1))
        assert type(mine).__name__ in repr(mine) and "[5]" in repr(mine)
        assert repr(mine) in repr(Independent(mine, 1))


# --- KL ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("q_form", ["ours", "torch", "ours, smaller"])
@pytest.mark.parametrize("p_form", ["scale", "logvar", "torch"])
@pytest.mark.parametrize("family", FAMILIES)
def test_kl(family, p_form, q_form):
    small = (5,) if "smaller" in q_form else SHAPE
    inputs = leaves(SHAPE, SHAPE, small, small)
    p_ours, p_torch = both(family, "scale" if p_form == "torch" else p_form, *inputs[:2])
    q_ours, q_torch = both(family, "logvar", *inputs[2:])
    p = p_torch if p_form == "torch" else p_ours
    q = q_torch if q_form == "torch" else q_ours
    same(kl_divergence(p, q), kl_divergence(p_torch, q_torch), inputs)
    if "smaller" in q_form:
        q, q_torch = q.expand(SHAPE), q_torch.expand(SHAPE)
    expected = kl_divergence(td.Independent(p_torch, 1), td.Independent(q_torch, 1))
    for wrap_p in (Independent, td.Independent):
        for wrap_q in (Independent, td.Independent):
            same(kl_divergence(wrap_p(p, 1), wrap_q(q, 1)), expected, inputs)
    same(kl_divergence(Independent(p, 2), Independent(q, 2)), expected.sum(), inputs)


@pytest.mark.parametrize("family", FAMILIES)
def test_kl_to_the_standard_prior(family):
    """Normal(0.0, 1.0) is one without touching a tensor; the KL to it is exact and never negative near it."""
    mine, theirs = FAMILIES[family]
    inputs = leaves(SHAPE, SHAPE)
    q, q_torch = both(family, "logvar", *inputs)
    expected = kl_divergence(q_torch, theirs(0.0, 1.0))
    same(kl_divergence(q, mine(0.0, 1.0)), expected, inputs)
    prior = Independent(mine(0.0, 1.0).expand((5,)), 1)
    same(kl_divergence(Independent(q, 1), prior), expected.sum(-1), inputs)
    near = mine.from_logvar(torch.full((1, 5), 1e-4), torch.full((1, 5), -1e-4))
    exact = mine.from_logvar(near.loc.double(), near.logvar.double())
    for a, e in ((near, exact), (Independent(near, 1), Independent(exact, 1))):
        prior = mine(0.0, 1.0) if a is near else Independent(mine(0.0, 1.0).expand((5,)), 1)
        assert (kl_divergence(a, prior) >= 0).all()
        assert_close(kl_divergence(a, prior), kl_divergence(e, prior), 1e-3)


def test_kl_of_other_pairs_is_torchs():
    p, q = both("normal", "scale", *leaves(SHAPE, SHAPE))
    for other in (td.Laplace(torch.zeros(SHAPE), torch.ones(SHAPE)), td.Gumbel(torch.zeros(SHAPE), torch.ones(SHAPE))):
        assert_close(kl_divergence(p, other), kl_divergence(q, other), 1e-6)
    bernoulli = [td.Bernoulli(torch.rand(SHAPE)) for _ in range(2)]
    assert_close(
        kl_divergence(*(Independent(b, 1) for b in bernoulli)),
        kl_divergence(*(td.Independent(b, 1) for b in bernoulli)),
        0,
    )
    with pytest.raises(NotImplementedError):
        kl_divergence(Independent(p, 1), Independent(p, 2))
    with pytest.raises(ValueError, match="event shapes"):
        kl_divergence(Independent(p, 1), Independent(Normal(0.0, 1.0).expand((4,)), 1))


# --- products and mixtures --------------------------------------------------------------------------------------------


def test_product_of_experts():
    experts = make_experts(3, *SHAPE, dtype=torch.float64, mask="random")
    inputs = experts.tensors()
    q = ProductOfExperts(experts.mu, experts.logvar, experts.mask)
    mu, logvar = reference.product_of_experts(experts.mu, experts.logvar, experts.mask)
    theirs = td.Independent(td.Normal(mu, torch.exp(0.5 * logvar)), 1)
    assert q.batch_shape == (6,) and q.event_shape == (5,)
    assert q.support.event_dim == 1 and "ProductOfExperts" in repr(q)
    for name in ("mean", "variance", "stddev"):
        same(getattr(q, name), getattr(theirs, name), inputs)
    same(q.mu, mu, inputs)
    same(q.logvar, logvar, inputs)
    same(q.entropy(), theirs.entropy(), inputs)
    z = torch.randn(2, *SHAPE, dtype=torch.float64)
    same(q.log_prob(z), theirs.log_prob(z), inputs)
    expected = functional.poe_sample_kl(experts.mu, experts.logvar, experts.mask, seed=3)
    same(q.rsample(seed=3), expected.z, inputs)
    standard = Independent(Normal(0.0, 1.0).expand((5,)), 1)
    for prior in (
        Normal(0.0, 1.0),
        td.Normal(torch.zeros(5), 1.0),
        standard,
        td.Independent(td.Normal(mu * 0, 1.0), 1),
    ):
        same(kl_divergence(q, prior), expected.kl, inputs)
    single = Independent(Normal.from_logvar(*leaves(SHAPE, SHAPE, seed=5)), 1)  # KL to one expert, as MVTCAE has it
    same(
        kl_divergence(q, single),
        kl_divergence(theirs, td.Independent(td.Normal(*single_parameters(single)), 1)),
        inputs,
    )
    weights = torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64)
    weighted = ProductOfExperts(experts.mu, experts.logvar, experts.mask, prior=False, weights=weights)
    same(
        weighted.mu,
        reference.product_of_experts(experts.mu, experts.logvar, experts.mask, prior=False, weights=weights)[0],
        inputs,
    )
    assert type(q.expand((4, 6))) is ProductOfExperts and q.expand((4, 6)).rsample().shape == (4, 6, 5)
    with pytest.raises(ValueError, match="does not broadcast"):
        kl_divergence(q, Normal(torch.zeros(4, 6, 5), 1.0))


def single_parameters(d):
    return d.base_dist.loc, d.base_dist.scale


def torch_mixture(q, experts, family):
    """Row by row: torch's mixtures know no masks."""
    rows = []
    for b in range(SHAPE[0]):
        seen = [m for m in range(len(experts.mu)) if experts.mask is None or experts.mask[b, m]]
        loc = torch.stack([experts.mu[m][b] for m in seen]) if seen else torch.zeros(1, SHAPE[1], dtype=torch.float64)
        scale = [torch.exp(0.5 * experts.logvar[m][b]) if q._scale is None else q._scale[m][b] for m in seen]
        part = td.Independent(FAMILIES[family][1](loc, torch.stack(scale) if seen else torch.ones_like(loc)), 1)
        rows.append(td.MixtureSameFamily(td.Categorical(torch.ones(len(loc), dtype=torch.float64)), part))
    return rows


@pytest.mark.parametrize("mask", ["none", "bits"])
@pytest.mark.parametrize("form", ["scale", "logvar", "stacked"])
@pytest.mark.parametrize("family", FAMILIES)
class TestMixture:
    def make(self, family, form, mask):
        experts = make_experts(
            3, *SHAPE, dtype=torch.float64, mask=mask, layout="stacked" if form == "stacked" else "list"
        )
        if form == "scale":  # leaves of their own: the gradient of exp at a missing NaN is NaN, whoever asks
            scale = [torch.exp(0.5 * v.detach()).requires_grad_() for v in experts.logvar]
            return MixtureOfExperts(experts.mu, scale, experts.mask, family=family), experts
        return MixtureOfExperts.from_logvar(experts.mu, experts.logvar, experts.mask, family=family), experts

    def leaves(self, q, experts):
        return [*q._mu, *q._scale] if q._logvar is None else experts.tensors()

    def test_against_torch(self, family, form, mask):
        q, experts = self.make(family, form, mask)
        theirs, inputs = torch_mixture(q, experts, family), self.leaves(q, experts)
        assert q.batch_shape == (6,) and q.event_shape == (5,) and q.support == td.constraints.real_vector
        same(q.mean, torch.stack([t.mean for t in theirs]), inputs)
        same(q.variance, torch.stack([t.variance for t in theirs]), inputs)
        same(q.stddev, torch.stack([t.variance for t in theirs]).sqrt(), inputs)
        for shape in (SHAPE, (2, 3, *SHAPE)):
            z = leaves(shape, seed=4)[0]
            expected = torch.stack([t.log_prob(z[..., b, :]) for b, t in enumerate(theirs)], -1)
            same(q.log_prob(z), expected, [*inputs, z])
        assert q.log_prob(torch.zeros(5, dtype=torch.float64)).shape == (6,)
        assert q.mu.shape == q.scale.shape == (3, 6, 5) and q.mu.isfinite().all() and (q.scale > 0).all()

    def test_samples(self, family, form, mask):
        """Each from one observed expert, as the noise contract draws it; K = 1 is the kernel of the MoPoE step."""
        q, experts = self.make(family, form, mask)
        z = q.rsample((4,), seed=11)
        assert z.shape == (4, *SHAPE)
        assert_close(q.rsample(seed=11), z[0], 1e-12)
        observed = torch.ones(6, 3, dtype=torch.bool) if experts.mask is None else experts.mask
        eps = reference.reparameterize(
            torch.zeros(SHAPE).double(), torch.zeros(SHAPE).double(), 4, family=family, seed=11
        )
        pick = reference.choose_component(11, observed.sum(1))
        for b in range(6):
            seen = observed[b].nonzero().flatten().tolist()
            loc, scale = (q.mu[seen[pick[b]], b], q.scale[seen[pick[b]], b]) if seen else (0.0, 1.0)
            assert_close(z[0, b], loc + scale * eps[0, b], 1e-12)
        same(q.rsample((1,), seed=11)[0], q.rsample(seed=11), self.leaves(q, experts))
        grads = torch.autograd.grad(z.square().sum(), self.leaves(q, experts))
        assert all(g.isfinite().all() for g in grads)

    def test_moments_of_samples(self, family, form, mask):
        q, _ = self.make(family, form, mask)
        draws = q.sample((20000,), seed=2)
        assert not draws.requires_grad
        assert ((draws.mean(0) - q.mean).abs() / q.stddev).max() < 5 / math.sqrt(20000)
        assert (draws.var(0) / q.variance - 1).abs().max() < 0.2

    def test_kl_by_monte_carlo(self, family, form, mask):
        """No closed form: torch's error; log_prob and samples estimate it."""
        q, _ = self.make(family, form, mask)
        prior = Independent(FAMILIES[family][0](0.0, 1.0).expand(SHAPE), 1)
        with pytest.raises(NotImplementedError):
            kl_divergence(q, prior)
        with pytest.raises(NotImplementedError):
            q.entropy()
        with torch.no_grad():
            z = q.sample((4000,), seed=5)
            kl = (q.log_prob(z) - prior.log_prob(z)).mean(0)
            parts = Independent(FAMILIES[family][0](q.mu, q.scale), 1)
            observed = torch.ones(6, 3) if q._mask is None else q._mask
            each = torch.where(observed.t() > 0, kl_divergence(parts, prior.expand((3, 6))), 0.0)
        bound = each.sum(0) / observed.sum(1).clamp(min=1)  # KL is convex
        assert (kl <= bound + 0.1 * bound.abs() + 0.1).all()
        assert (kl >= bound - math.log(3) - 0.1 * bound.abs() - 0.1).all()  # and loses at most the choice's information

    def test_expand(self, family, form, mask):
        q, _ = self.make(family, form, mask)
        grown = q.expand((4, 6))
        z = torch.randn(2, 4, *SHAPE, dtype=torch.float64)
        assert grown.batch_shape == (4, 6) and grown.event_shape == (5,)
        assert_close(grown.log_prob(z), q.log_prob(z), 1e-12)
        assert grown.mean.shape == (4, 6, 5) and grown.rsample((3,)).shape == (3, 4, 6, 5)
        assert grown.rsample().shape == (4, 6, 5)
        assert "3 " + family in repr(grown)


# --- bad input, types -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: Normal([0.0], 1.0), "distributions.Normal: loc is a list, expected a tensor or a number"),
        (lambda: Laplace(torch.zeros(3), None), "distributions.Laplace: scale is a NoneType"),
        (lambda: Normal(torch.zeros(3), 0.0), "scale is 0.0, expected more than 0"),
        (lambda: Normal(torch.zeros(3).int(), 1.0), "loc is torch.int32, expected float32"),
        (lambda: Normal(torch.zeros(3), torch.ones(4)), r"loc \[3\] and scale \[4\] do not broadcast"),
        (lambda: Normal(torch.zeros(3), torch.ones(3, device="meta")), "scale is on meta, expected cpu like loc"),
        (lambda: Normal.from_logvar(torch.zeros(3), "1"), "logvar is a str"),
        (lambda: MixtureOfExperts([torch.zeros(2, 3)], [torch.ones(2, 4)]), r"MixtureOfExperts: .*shape \[2, 4\]"),
        (lambda: MixtureOfExperts([torch.zeros(2, 3)], [torch.ones(2, 3)], family="cauchy"), "family is 'cauchy'"),
        (lambda: ProductOfExperts([torch.zeros(2, 3)], [torch.ones(2, 4)]), "product_of_experts"),
        (lambda: Independent(Normal(0.0, 1.0), 1), "reinterpreted_batch_ndims"),
    ],
)
def test_bad_arguments(make, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        make()


def test_values_are_validated_when_asked():
    bad = torch.tensor([1.0, -1.0])
    Normal(bad, bad)
    for make in (Normal, Laplace):
        with pytest.raises(ValueError, match="scale"):
            make(bad, bad, validate_args=True)
    with pytest.raises(ValueError, match="logvar|loc"):
        Normal.from_logvar(bad * math.nan, bad, validate_args=True)
    with pytest.raises(ValueError, match="scale"):
        MixtureOfExperts([bad[None]], [bad[None]], validate_args=True)
    missing = torch.zeros(1, 1, dtype=torch.bool)
    q = MixtureOfExperts([bad[None]], [bad[None]], missing, validate_args=True)  # a missing expert may hold anything
    with pytest.raises(ValueError, match="support|real"):
        q.log_prob(torch.full((1, 2), math.nan))
    with pytest.raises(ValueError, match="support|Real"):
        Independent(Normal(bad, 1.0, validate_args=True), 1).log_prob(bad * math.nan)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_half_types(family, dtype):
    """Samples of the input's type; densities and KL in float32, computed in float32."""
    inputs = leaves(SHAPE, SHAPE, dtype=dtype)
    q = FAMILIES[family][0].from_logvar(*inputs)
    exact = FAMILIES[family][0].from_logvar(*(t.detach().double() for t in inputs))
    z = q.rsample((2,), seed=1)
    assert z.dtype == dtype
    assert_close(z, exact.rsample((2,), seed=1), 1e-2)
    scaled = FAMILIES[family][0](inputs[0], q.scale)
    assert scaled.rsample((2,), seed=1).dtype == dtype
    for dims in (0, 1):
        a, e = (d if not dims else Independent(d, 1) for d in (q, exact))
        prior = FAMILIES[family][0](0.0, 1.0)
        prior = Independent(prior.expand((5,)), 1) if dims else prior
        for value in (z, z.detach()):
            assert a.log_prob(value).dtype == torch.float32
            assert_close(a.log_prob(value), e.log_prob(value.detach().double()), 2e-2)
        assert kl_divergence(a, prior).dtype == torch.float32
        assert_close(kl_divergence(a, prior), kl_divergence(e, prior), 2e-2)


def test_mixed_types_promote():
    """Under autocast exp() makes float32 of a bfloat16 log-variance."""
    loc, scale = torch.zeros(3, 4, dtype=torch.bfloat16), torch.ones(3, 4)
    q = Normal(loc, scale)
    assert q.rsample().dtype == q.loc.dtype == torch.float32
    assert Independent(q, 1).log_prob(loc).dtype == torch.float32
    assert kl_divergence(Independent(q, 1), Independent(Normal(loc, 1.0), 1)).dtype == torch.float32


# --- the hot path -----------------------------------------------------------------------------------------------------


def training_step(mu, logvar, mask, x, q_form):
    """What VAE code does with distributions, in each way of writing it."""
    if q_form == "elements":
        q, p = Normal(mu[0], torch.exp(0.5 * logvar[0])), Normal(0.0, 1.0)
        z = q.rsample((2,))
        kl = kl_divergence(q, p).sum(-1)
    elif q_form == "independent":
        q, p = Independent(Normal.from_logvar(mu[0], logvar[0]), 1), Independent(Normal(0.0, 1.0).expand((5,)), 1)
        z = q.rsample((2,))
        kl = kl_divergence(q, p) + 0.1 * (q.log_prob(z) - p.log_prob(z)).mean(0)
    elif q_form == "laplace":
        q, p = Independent(Laplace.from_logvar(mu[0], logvar[0]), 1), Independent(Laplace(0.0, 1.0).expand((5,)), 1)
        z = q.rsample((2,))
        kl = kl_divergence(q, p)
    elif q_form == "product":
        q = ProductOfExperts(mu, logvar, mask)
        z = q.rsample((2,))
        kl = kl_divergence(q, Normal(0.0, 1.0))
    else:
        q = MixtureOfExperts.from_logvar(mu, logvar, mask)
        p = Independent(Normal(0.0, 1.0).expand((5,)), 1)
        z = q.rsample((2,))
        kl = (q.log_prob(z) - p.log_prob(z)).mean(0) + 0.0 * q.variance.sum(-1)
    log_p = Independent(Normal(z * 2, 0.75), 1).log_prob(x).mean(0)
    return (kl - log_p).mean()


FORMS = ["elements", "independent", "laplace", "product", "mixture"]


@pytest.mark.parametrize("q_form", FORMS)
def test_no_host_sync(q_form):
    experts = make_experts(3, *SHAPE, mask="random")
    with NoHostSync():
        loss = training_step(experts.mu, experts.logvar, experts.mask, torch.randn(SHAPE), q_form)
        loss.backward()


@pytest.mark.parametrize("q_form", FORMS)
def test_meta_device(q_form):
    """Shapes without values: nothing on the way looks at one."""
    mu = [torch.zeros(SHAPE, device="meta", requires_grad=True) for _ in range(3)]
    mask = torch.ones(6, 3, dtype=torch.bool, device="meta")
    loss = training_step(mu, mu, mask, torch.zeros(SHAPE, device="meta"), q_form)
    assert loss.shape == () and loss.device.type == "meta"


@needs_kernels
@pytest.mark.parametrize("q_form", FORMS)
def test_compile_fullgraph(q_form):
    torch._dynamo.reset()
    compiled = torch.compile(training_step, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (6, 9):
        experts = make_experts(3, rows, 5, mask="random", rubbish=0.0)
        x, inputs = torch.randn(rows, 5), experts.tensors()
        results = []
        for step in (compiled, training_step):
            torch.manual_seed(3)
            loss = step(experts.mu, experts.logvar, experts.mask, x, q_form)
            results.append([loss, *torch.autograd.grad(loss, inputs, allow_unused=True)])
        for a, e in zip(*results, strict=True):
            assert (a is None) == (e is None)
            if a is not None:
                assert_close(a, e, 1e-5)


def test_exports():
    assert set(ours.__all__) == {
        "Independent", "Laplace", "MixtureOfExperts", "Normal", "ProductOfExperts", "kl_divergence"
    }  # fmt: skip
