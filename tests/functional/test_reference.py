"""The twins themselves, against formulas and torch.distributions."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
from expert_cases import assert_close, make_experts
from torch.distributions import Bernoulli, Categorical, Independent, Laplace, MixtureSameFamily, Normal, kl_divergence

from mmvae_fast import functional, reference


def gaussian(mu, logvar):
    return Normal(mu, torch.exp(0.5 * logvar))


def laplace(mu, logvar):
    return Laplace(mu, torch.exp(0.5 * logvar))


def assert_same_gradients(actual, expected, inputs, tolerance=1e-11):
    weight = torch.randn(expected.shape, dtype=expected.dtype)
    grads, exact = (torch.autograd.grad((o * weight).sum(), inputs, retain_graph=True) for o in (actual, expected))
    for a, e in zip(grads, exact, strict=True):
        assert_close(a, e, tolerance)


@pytest.mark.parametrize("kl, distribution", [(functional.gaussian_kl, gaussian), (reference.laplace_kl, laplace)])
def test_kl_is_torch_distributions(kl, distribution):
    mu, logvar, prior_mu, prior_logvar = torch.randn(4, 7, 5, dtype=torch.float64).requires_grad_().unbind()
    zero = torch.zeros_like(mu)
    own, other = distribution(mu, logvar), distribution(prior_mu, prior_logvar)
    for actual, expected, inputs in (
        (kl(mu, logvar), kl_divergence(own, distribution(zero, zero)), [mu, logvar]),
        (kl(mu, logvar, prior_mu), kl_divergence(own, distribution(prior_mu, zero)), [mu, logvar, prior_mu]),
        (kl(mu, logvar, None, prior_logvar), kl_divergence(own, distribution(zero, prior_logvar)), [mu, prior_logvar]),
        (kl(mu, logvar, prior_mu, prior_logvar), kl_divergence(own, other), [mu, logvar, prior_mu, prior_logvar]),
        (
            kl(mu, logvar, prior_mu[0], prior_logvar[:, :1]),
            kl_divergence(own, distribution(prior_mu[0], prior_logvar[:, :1])),
            [mu, logvar, prior_mu, prior_logvar],
        ),
    ):
        assert_close(actual, expected.sum(-1), 1e-12)
        assert_same_gradients(actual, expected.sum(-1), inputs)
    assert torch.autograd.gradcheck(kl, (mu, logvar, prior_mu[0], prior_logvar[:, :1]))


def test_laplace_kl_at_its_edges():
    zero, one = torch.zeros(1, 2, requires_grad=True), torch.ones(1, 2, requires_grad=True)
    kl = reference.laplace_kl(zero, zero)
    assert kl == 0 and (torch.autograd.grad(kl.sum(), zero)[0] == 0).all()
    flat = torch.full((1, 2), math.inf, requires_grad=True)
    kl = reference.laplace_kl(one, flat)
    grad_mu, grad_logvar = torch.autograd.grad(kl.sum(), [one, flat])
    assert kl == math.inf and (grad_mu == 0).all() and (grad_logvar == math.inf).all()
    sharp = torch.full((1, 2), -100.0, requires_grad=True)
    kl = reference.laplace_kl(one, sharp)  # a point mass: d + 50 - 1 a dimension
    assert_close(kl, torch.tensor([100.0]), 1e-6)
    assert_close(torch.autograd.grad(kl.sum(), one)[0], torch.ones(1, 2), 1e-6)
    assert reference.laplace_kl(torch.full((1, 2), math.nan), zero.detach()).isnan()


@pytest.mark.parametrize("prior", [True, False])
def test_product_is_the_normalised_product_of_densities(prior):
    """On a grid: the pointwise product of the densities, normalised, is the fused Gaussian."""
    mu, logvar = torch.randn(2, 3, 1, 1, dtype=torch.float64)
    x = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    log_density = sum(gaussian(m, v).log_prob(x) for m, v in zip(mu.flatten(), logvar.flatten(), strict=True))
    if prior:
        log_density = log_density - 0.5 * x**2
    density = torch.exp(log_density - log_density.max())
    density = density / density.sum()
    mean = (density * x).sum()
    variance = (density * (x - mean) ** 2).sum()
    joint_mu, joint_logvar = reference.product_of_experts(mu, logvar, prior=prior)
    assert abs(joint_mu.item() - mean) < 1e-8 and abs(joint_logvar.exp().item() - variance) < 1e-8


def test_weights_multiply_precisions():
    experts = make_experts(3, 5, 4, dtype=torch.float64, mask="random")
    ones = functional.product_of_experts(experts.mu, experts.logvar, experts.mask, weights=torch.ones(3).double())
    plain = functional.product_of_experts(experts.mu, experts.logvar, experts.mask)
    for a, e in zip(ones, plain, strict=True):
        assert_close(a, e, 1e-12)
    experts = make_experts(3, 5, 4, dtype=torch.float64)
    mu, logvar = experts.mu, experts.logvar
    weights = torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64)
    same = functional.product_of_experts([mu[0], mu[0], mu[1]], [logvar[0], logvar[0], logvar[1]])
    for w in (weights, weights[:, None].expand(3, 4)):
        for a, e in zip(functional.product_of_experts(mu, logvar, weights=w), same, strict=True):
            assert_close(a, e, 1e-12)


@pytest.mark.parametrize("prior", [True, False])
@pytest.mark.parametrize("size", [0.0, 80.0])
def test_an_expert_of_weight_zero_says_nothing_however_sure_it_is(prior, size):
    """It changes no result and gets gradient 0, but the gradient to its weight is that of the formula."""
    experts = make_experts(3, 5, 4, dtype=torch.float32)
    mu, logvar = experts.mu, [experts.logvar[0] - size, *experts.logvar[1:]]
    weights = torch.tensor([0.0, 1.5, 0.5], requires_grad=True)
    outputs = functional.product_of_experts(mu, logvar, weights=weights, prior=prior)
    without = functional.product_of_experts(mu[1:], logvar[1:], weights=weights[1:], prior=prior)
    for a, e in zip(outputs, without, strict=True):
        assert_close(a, e, 1e-6)
    grad_mu, grad_weights = torch.autograd.grad(outputs[0].sum(), [mu[0], weights])
    assert (grad_mu == 0).all()
    joint_mu, joint_logvar = (t.double() for t in outputs)
    exact = ((mu[0].double() - joint_mu) * torch.exp(joint_logvar - logvar[0].double())).sum()
    assert_close(grad_weights[0], exact, 1e-5)


def test_only_experts_of_weight_zero():
    """As where only uninformative ones are observed."""
    mu, logvar, weights = torch.ones(1, 2, 3), torch.zeros(1, 2, 3), torch.zeros(1, requires_grad=True)
    joint_mu, joint_logvar = functional.product_of_experts(mu, logvar, weights=weights, prior=False)
    assert (joint_mu == 0).all() and (joint_logvar == math.inf).all()
    (grad,) = torch.autograd.grad(joint_mu.sum(), weights)
    assert grad == 0
    joint_mu, joint_logvar = functional.product_of_experts(mu, logvar, weights=weights)
    assert (joint_mu == 0).all() and (joint_logvar == 0).all()


def test_expert_kl():
    experts = make_experts(3, 6, 4, dtype=torch.float64, mask="bits")
    out = functional.poe_sample_kl(experts.mu, experts.logvar, experts.mask, expert_kl=True, seed=0)
    q = gaussian(out.mu, out.logvar)
    for m in range(3):
        seen = experts.mask[:, m]
        expected = kl_divergence(q, gaussian(experts.mu[m].nan_to_num(), experts.logvar[m].nan_to_num())).sum(-1)
        assert_close(out.expert_kl[m][seen], expected[seen], 1e-12)
        assert (out.expert_kl[m][~seen] == 0).all()
    assert functional.poe_sample_kl(experts.mu, experts.logvar, experts.mask).expert_kl is None


def test_mixture_is_unbiased():
    """z of the MoPoE step really is a draw from the uniform mixture of subset posteriors: its mean over seeds."""
    mu, logvar = torch.tensor([[[-3.0]], [[3.0]]]), torch.tensor([[[-2.0]], [[-2.0]]])
    rows = 20000
    z = functional.mopoe_sample_kl(mu.expand(2, rows, 1), logvar.expand(2, rows, 1), prior="none", seed=1).z
    means = torch.tensor([-3.0, 3.0, 0.0])
    variances = torch.tensor([math.exp(-2), math.exp(-2), math.exp(-2) / 2])
    variance = (variances + means**2).mean() - means.mean() ** 2
    assert abs(z.mean() - means.mean()) < 5 * (variance / rows).sqrt()
    assert abs(z.var() - variance) < 0.05 * variance


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)], ids=str)
def test_likelihoods_are_torch_distributions(lead):
    g = torch.Generator().manual_seed(0)
    x = torch.rand(5, 2, 3, generator=g, dtype=torch.float64)
    params = torch.randn(*lead, 5, 2, 3, generator=g, dtype=torch.float64)
    logits = torch.randn(*lead, 5, 2, 3, 7, generator=g, dtype=torch.float64)
    classes = torch.randint(7, (5, 2, 3), generator=g)

    def event(distribution, value):
        return Independent(distribution, 2).log_prob(value)

    ll = functional.log_likelihood
    assert_close(ll(x, params, family="normal", scale=0.7), event(Normal(params, 0.7), x), 1e-12)
    assert_close(ll(x, params, family="laplace", scale=0.7), event(Laplace(params, 0.7), x), 1e-12)
    assert_close(ll(x.round(), params, family="bernoulli"), event(Bernoulli(logits=params), x.round()), 1e-12)
    expected = event(Categorical(logits=logits), classes.expand(*lead, 5, 2, 3))
    assert_close(ll(classes, logits, family="categorical"), expected, 1e-12)
    per_row = Independent(Normal(params, 1.0), 1).log_prob(x)
    assert_close(ll(x, params, family="normal", event_dims=1), per_row, 1e-12)


def test_event_dims_of_a_mask():
    x, params, mask = torch.rand(5, 2, 3), torch.randn(4, 5, 2, 3), torch.tensor([True, False, True, True, False])
    per_row = functional.log_likelihood(x, params, family="normal", event_dims=1, mask=mask)
    assert per_row.shape == (4, 5, 2) and (per_row[:, ~mask] == 0).all()
    assert_close(per_row.sum(-1), functional.log_likelihood(x, params, family="normal", mask=mask), 1e-6)
    assert functional.log_likelihood(x, params, family="normal", event_dims=0).shape == params.shape


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1), (5, 1, 1), (5, 2, 3), (4, 5, 2, 3), (4, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("family, distribution", [("normal", Normal), ("laplace", Laplace)])
def test_a_learned_scale_is_torch_distributions(family, distribution, shape):
    x, params = torch.rand(5, 2, 3, dtype=torch.float64), torch.randn(4, 5, 2, 3, dtype=torch.float64).requires_grad_()
    scale = torch.rand(shape, dtype=torch.float64).add_(0.3).requires_grad_()
    actual = functional.log_likelihood(x, params, family=family, scale=scale)
    expected = Independent(distribution(params, scale.expand(params.shape)), 2).log_prob(x)
    assert_close(actual, expected, 1e-12)
    assert_same_gradients(actual, expected, [params, scale])


def test_bernoulli_far_out_keeps_its_digits():
    """torch's softplus is linear beyond 20: wrong in the ninth digit."""
    p = torch.tensor([[21.0]], dtype=torch.float64)
    assert_close(
        reference.log_likelihood(torch.ones_like(p), p, family="bernoulli") * math.exp(21), -torch.ones(1), 1e-6
    )


@pytest.mark.parametrize("family, distribution", [("normal", Normal), ("laplace", Laplace)])
@pytest.mark.parametrize("lead", [(), (4,), (2, 3)], ids=str)
def test_mixture_is_torch_distributions(family, distribution, lead):
    experts = make_experts(3, 6, 4, dtype=torch.float64, mask="bits")
    mu, logvar = torch.stack(experts.mu).detach().requires_grad_(), torch.stack(experts.logvar).detach()
    scale = torch.exp(0.5 * logvar).requires_grad_()
    z = torch.randn(*lead, 6, 4, dtype=torch.float64, requires_grad=True)
    actual = reference.mixture_log_prob(z, mu, scale, experts.mask, family=family)
    for row in range(6):
        seen = experts.mask[row]
        if not seen.any():
            expected = distribution(torch.zeros(4).double(), 1.0).log_prob(z[..., row, :]).sum(-1)
        else:
            components = Independent(distribution(mu[seen, row], scale[seen, row]), 1)
            uniform = Categorical(logits=torch.zeros(int(seen.sum()), dtype=torch.float64))
            expected = MixtureSameFamily(uniform, components).log_prob(z[..., row, :])
        assert_close(actual[..., row], expected, 1e-12)
        assert_same_gradients(actual[..., row], expected, [z])
    for g in torch.autograd.grad(actual.sum(), [mu, scale]):
        assert g.isfinite().all() and (g[~experts.mask.t()] == 0).all() and (g[experts.mask.t()] != 0).any()
    clean = make_experts(3, 6, 4, dtype=torch.float64, mask="bits", rubbish=0.5)
    assert torch.autograd.gradcheck(
        lambda z, m, s: reference.mixture_log_prob(z, m, s.exp(), clean.mask, family=family),
        (z, torch.stack(clean.mu), torch.stack(clean.logvar)),
    )


@pytest.mark.parametrize("family", ["normal", "laplace"])
def test_mixture_where_every_density_vanishes(family):
    """-inf, and gradients that are 0 rather than NaN; a component that vanishes beside another gets exactly 0."""
    mu = torch.tensor([[[0.0]], [[1.0]]], requires_grad=True)
    far, unit = torch.full((1, 5), 1e38, requires_grad=True), torch.full((2, 1, 5), 1.0, requires_grad=True)
    wide = mu.expand(2, 1, 5)
    log_prob = reference.mixture_log_prob(far, wide, unit, family=family)
    assert log_prob == -math.inf
    assert all((g == 0).all() for g in torch.autograd.grad(log_prob.sum(), [far, mu, unit]))
    scale = torch.full((2, 1, 1), 0.01, requires_grad=True)
    log_prob = reference.mixture_log_prob(torch.zeros(1, 1), mu, scale, family=family)
    for g in torch.autograd.grad(log_prob.sum(), [mu, scale]):
        assert g[1] == 0


def test_mixture_hides_no_nan():
    experts = make_experts(2, 3, 4, mask="all")
    with torch.no_grad():
        experts.mu[1][1, 2] = math.nan
    scale = [v.exp() for v in experts.logvar]
    log_prob = reference.mixture_log_prob(torch.zeros(3, 4), experts.mu, scale, experts.mask)
    assert log_prob.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("prior", ["none", "full", "all"])
def test_subset_posteriors_are_products(prior):
    experts = make_experts(3, 8, 4, dtype=torch.float64, mask="bits")
    out = reference.subset_posteriors(experts.mu, experts.logvar, experts.mask, prior=prior)
    assert [tuple(t.shape) for t in out] == [(7, 8, 4), (7, 8, 4), (7, 8), (7, 8)] and out.available.dtype == torch.bool
    for i in range(7):
        members = [m for m in range(3) if (i + 1) >> m & 1]
        there = experts.mask[:, members].all(1)
        assert torch.equal(out.available[i], there)
        with_prior = prior == "all" or (prior == "full" and i == 6)
        mu, logvar = ([t[m] for m in members] for t in (experts.mu, experts.logvar))
        expected = reference.product_of_experts(mu, logvar, prior=with_prior)
        for a, e in zip(
            (out.mu[i], out.logvar[i], out.kl[i]), (*expected, reference.gaussian_kl(*expected)), strict=True
        ):
            assert torch.equal(a[there], e[there]) and (a[~there] == 0).all()
    step = reference.mopoe_sample_kl(experts.mu, experts.logvar, experts.mask, prior=prior, seed=3)
    assert_close(step.kl, out.kl.sum(0) / out.available.sum(0).clamp(min=1), 1e-12)


def test_laplace_noise():
    """The inverse of the distribution function of the documented uniforms, exact in float32."""
    words = reference.philox_words([torch.arange(2), torch.arange(5)[:, None], 0, 0], [7, 0])
    u = (torch.stack(words, -1).flatten(-2)[:, :6] >> 9).double().add(0.5) * 2.0**-23
    expected = Laplace(0.0, 1.0, validate_args=False).icdf(u)
    assert_close(reference.philox_laplace(7, 5, 6, dtype=torch.float64), expected, 1e-12)
    assert_close(reference.philox_laplace(7, 5, 6), expected, 1e-6)
    z = reference.reparameterize(torch.full((5, 6), 2.0), torch.full((5, 6), 1.0), family="laplace", seed=7)
    assert_close(z, 2 + math.exp(0.5) * expected, 1e-6)


def test_laplace_noise_is_laplace():
    x = reference.philox_laplace(11, 2000, 100).double().flatten()
    n = x.numel()
    assert abs(x.mean()) < 5 * math.sqrt(2 / n)
    assert abs(x.var() - 2) < 5 * math.sqrt(20 / n)
    assert scipy.stats.kstest(x.numpy(), "laplace").pvalue > 1e-3
    assert x.abs().max() < 16.7  # -ln 2^-24


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_kl_and_log_probabilities_of_halves_are_float32(dtype):
    experts = make_experts(2, 3, 4, dtype=dtype, mask="bits")
    mu, logvar, mask = experts.mu, experts.logvar, experts.mask
    scale = [torch.full_like(m, 0.7) for m in mu]
    posteriors = reference.subset_posteriors(mu, logvar, mask)
    assert posteriors.mu.dtype == posteriors.logvar.dtype == dtype and posteriors.kl.dtype == torch.float32
    assert reference.mixture_log_prob(mu[0].detach().nan_to_num(), mu, scale, mask).dtype == torch.float32
    assert reference.laplace_kl(mu[0], logvar[0]).dtype == torch.float32
    assert reference.reparameterize(mu[0], logvar[0], family="laplace").dtype == dtype
    assert reference.log_likelihood(torch.rand(3, 4), mu[0], family="normal", scale=0.5).dtype == torch.float32
    assert reference.log_likelihood(torch.rand(3, 4).to(dtype), mu[0].float(), family="laplace").dtype == torch.float32


def test_vmap_draws_for_every_row():
    draw = torch.func.vmap(lambda m: reference.reparameterize(m, m, family="laplace"), randomness="different")
    a, b = draw(torch.zeros(2, 3, 4))
    assert not torch.equal(a, b)
    seeded = torch.func.vmap(lambda m, seed: reference.mopoe_sample_kl(m, m, seed=seed).z)
    mu = torch.randn(3, 2, 5, 4)
    for i, z in enumerate(seeded(mu, torch.tensor([3, 4, 3]))):
        assert_close(z, reference.mopoe_sample_kl(mu[i], mu[i], seed=[3, 4, 3][i]).z, 1e-6)


def test_likelihood_of_missing_rows_is_zero_whatever_they_hold():
    x, params = torch.randn(4, 3), torch.randn(2, 4, 3)
    mask = torch.tensor([True, False, True, False])
    x[~mask], params[:, ~mask] = math.nan, math.nan
    params.requires_grad_()
    ll = functional.log_likelihood(x, params, family="normal", mask=mask)
    assert (ll[:, ~mask] == 0).all() and ll.isfinite().all()
    (grad,) = torch.autograd.grad(ll.sum(), params)
    assert (grad[:, ~mask] == 0).all() and grad.isfinite().all()
