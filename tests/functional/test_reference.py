"""The twins themselves, against formulas and torch.distributions."""

from __future__ import annotations

import math

import pytest
import torch
from expert_cases import assert_close, make_experts
from torch.distributions import Bernoulli, Categorical, Independent, Laplace, Normal, kl_divergence

from mmvae_fast import functional, reference


def gaussian(mu, logvar):
    return Normal(mu, torch.exp(0.5 * logvar))


def test_kl_is_torch_distributions():
    mu, logvar, prior_mu, prior_logvar = torch.randn(4, 7, 5, dtype=torch.float64)
    standard = Normal(torch.zeros_like(mu), torch.ones_like(mu))
    assert_close(reference.gaussian_kl(mu, logvar), kl_divergence(gaussian(mu, logvar), standard).sum(-1), 1e-12)
    other = kl_divergence(gaussian(mu, logvar), gaussian(prior_mu, prior_logvar)).sum(-1)
    assert_close(functional.gaussian_kl(mu, logvar, prior_mu, prior_logvar), other, 1e-12)
    row = kl_divergence(gaussian(mu, logvar), gaussian(prior_mu[0], prior_logvar[0])).sum(-1)
    assert_close(functional.gaussian_kl(mu, logvar, prior_mu[0], prior_logvar[0]), row, 1e-12)


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


def test_weights():
    experts = make_experts(3, 5, 4, dtype=torch.float64, mask="random")
    ones = functional.product_of_experts(
        experts.mu, experts.logvar, experts.mask, weights=torch.ones(3, dtype=torch.float64)
    )
    plain = functional.product_of_experts(experts.mu, experts.logvar, experts.mask)
    for a, e in zip(ones, plain, strict=True):
        assert_close(a, e, 1e-12)
    twice = functional.product_of_experts(
        experts.mu, experts.logvar, weights=torch.tensor([2.0, 1.0, 0.0]).double()[:, None].expand(3, 4)
    )
    same = functional.product_of_experts(
        [experts.mu[0]] * 2 + [experts.mu[1]], [experts.logvar[0]] * 2 + [experts.logvar[1]]
    )
    unmasked = make_experts(3, 5, 4, dtype=torch.float64)
    twice = functional.product_of_experts(unmasked.mu, unmasked.logvar, weights=torch.tensor([2.0, 1.0, 0.0]).double())
    same = functional.product_of_experts(
        [unmasked.mu[0]] * 2 + [unmasked.mu[1]], [unmasked.logvar[0]] * 2 + [unmasked.logvar[1]]
    )
    for a, e in zip(twice, same, strict=True):
        assert_close(a, e, 1e-12)


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


def test_likelihood_of_missing_rows_is_zero_whatever_they_hold():
    x, params = torch.randn(4, 3), torch.randn(2, 4, 3)
    mask = torch.tensor([True, False, True, False])
    x[~mask], params[:, ~mask] = math.nan, math.nan
    params.requires_grad_()
    ll = functional.log_likelihood(x, params, family="normal", mask=mask)
    assert (ll[:, ~mask] == 0).all() and ll.isfinite().all()
    (grad,) = torch.autograd.grad(ll.sum(), params)
    assert (grad[:, ~mask] == 0).all() and grad.isfinite().all()
