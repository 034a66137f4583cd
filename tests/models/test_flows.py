"""Autoregressive flows: exact inverses and determinants, densities that integrate to 1. Hamiltonian chains."""

import math

import pytest
import torch

from mmvae_fast.models import Posterior
from mmvae_fast.models.flows import IAF, MADE, MAF
from mmvae_fast.models.hmc import hmc
from mmvae_fast.reference import seed_tensor


def flow(cls, dim, layers=3):
    torch.manual_seed(1)
    made = cls(dim, layers, (16, 16)).double()
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(1.5)  # further from the identity
    return made


@pytest.mark.parametrize("hidden", [(8,), (7, 9)])
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_a_made_looks_back_only_and_at_all_that_is_there(dim, hidden):
    torch.manual_seed(0)
    made, x = MADE(dim, hidden).double(), torch.randn(dim, dtype=torch.float64)
    for out in torch.autograd.functional.jacobian(made, x):
        assert torch.equal(out, out.tril(-1))
        if dim == 2:
            assert out[1, 0] != 0


@pytest.mark.parametrize("cls", [MAF, IAF])
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_inverse_and_determinant(cls, dim):
    model, z = flow(cls, dim), torch.randn(3, 4, dim, dtype=torch.float64)
    u, log_det = model.to_base(z)
    back, inverse_log_det = model.from_base(u)
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(inverse_log_det, -log_det)
    for point, expected in zip(z.flatten(0, 1), log_det.flatten(), strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda x: model.to_base(x)[0], point)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, expected)
    for layer in (model.to_base, model.from_base):  # and both have gradients
        assert torch.autograd.gradcheck(layer, (z[0].clone().requires_grad_(),))


def test_an_iaf_is_a_maf_the_other_way_round():
    maf, iaf, z = flow(MAF, 3), flow(IAF, 3), torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(iaf.from_base(z), maf.to_base(z))


@pytest.mark.parametrize("cls", [MAF, IAF])
@pytest.mark.parametrize("dim", [1, 2])
def test_densities_integrate_to_one(cls, dim):
    model = flow(cls, dim)
    grid, step = torch.linspace(-25, 25, 501 if dim == 2 else 20001, dtype=torch.float64), 50.0
    z = torch.cartesian_prod(*[grid] * dim).reshape(-1, dim)
    base = Posterior(torch.full((1, dim), 0.7, dtype=torch.float64), torch.full((1, dim), -0.5, dtype=torch.float64))
    volume = (step / (len(grid) - 1)) ** dim
    with torch.no_grad():
        total = model.log_prob(z).exp().sum() * volume
        conditional = model.log_prob(z[:, None], base).exp().sum() * volume
    assert float(total) == pytest.approx(1, abs=2e-3)
    assert float(conditional) == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("cls", [MAF, IAF])
def test_samples_follow_the_density(cls):
    model = flow(cls, 2).float()
    with torch.no_grad():
        z = model.sample(100000, seed=3)
        assert torch.equal(model.sample(10, seed=3), z[:10])
        grid = torch.linspace(-25, 25, 1001)[1:] - 0.025  # the middles of cells
        points = torch.cartesian_prod(grid, grid)
        p = model.log_prob(points).exp() * 0.05**2
    mean = (p[:, None] * points).sum(0)
    second = (p[:, None] * points.square()).sum(0)
    torch.testing.assert_close(z.mean(0), mean, atol=0.03, rtol=0.02)
    torch.testing.assert_close(z.square().mean(0), second, atol=0.05, rtol=0.04)
    inside = (z < 0).all(1).float().mean()
    torch.testing.assert_close(inside, p[(points < 0).all(1)].sum(), atol=0.01, rtol=0)


def test_a_maf_learns_a_bent_density():
    torch.manual_seed(0)
    model = MAF(2, 3, (32, 32))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(300):
        x = torch.randn(256, 1)
        z = torch.cat([x, x**2 + 0.3 * torch.randn(256, 1)], 1)
        loss = -model.log_prob(z).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    entropy = 2 * 0.5 * math.log(2 * math.pi * math.e) + math.log(0.3)
    assert entropy - 0.1 < loss < entropy + 0.2


def test_a_flow_compiles():
    torch._dynamo.reset()
    model, z = flow(MAF, 3), torch.randn(4, 3, dtype=torch.float64)
    for f in (lambda z: model.log_prob(z), lambda z: model.from_base(z)[0]):
        torch.testing.assert_close(torch.compile(f, fullgraph=True, backend="eager")(z), f(z))


def gaussian(dim):
    torch.manual_seed(2)
    root = torch.randn(dim, dim, dtype=torch.float64)
    covariance = root @ root.t() + 0.3 * torch.eye(dim, dtype=torch.float64)
    return torch.distributions.MultivariateNormal(torch.randn(dim, dtype=torch.float64), covariance)


@pytest.mark.parametrize("dim", [1, 4, 20])
def test_chains_reach_a_correlated_gaussian(dim):
    target = gaussian(dim)
    scale = target.covariance_matrix.diagonal().sqrt()[None]
    start = torch.zeros(4000, 1, dim, dtype=torch.float64)
    z = hmc(target.log_prob, start, scale, steps=60, leapfrogs=10, seed=seed_tensor(0))[:, 0]
    spread = scale.max()
    torch.testing.assert_close(z.mean(0), target.mean, atol=0.1 * spread, rtol=0)
    torch.testing.assert_close(z.t().cov().reshape(dim, dim), target.covariance_matrix, atol=0.15 * spread**2, rtol=0)


def test_chains_of_a_row_are_its_own():
    """Whatever the others are; and what has no density is never gone to."""

    def log_density(z):
        return torch.where(z[..., 0] > 0, -0.5 * z.square().sum(-1), torch.nan)

    start = torch.rand(5, 3, 2)
    options = {"steps": 10, "leapfrogs": 3, "seed": seed_tensor(4)}
    z = hmc(log_density, start, torch.ones(3, 2), **options)
    assert torch.equal(z[:, :2], hmc(log_density, start[:, :2], torch.ones(2, 2), **options))
    assert (z[..., 0] > 0).all()
    assert (z != start).any(-1).all()
    assert not z.requires_grad
