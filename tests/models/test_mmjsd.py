"""What only mmJSD promises; its loss is compared with a naive one in test_losses."""

import torch
from conftest import modalities

from mmvae_fast.modalities import Vector
from mmvae_fast.models import MMJSD, MixturePosterior
from mmvae_fast.models.experts import Experts


def experts(mu, logvar, mask=None):
    mask = torch.ones(mu.shape[1], mu.shape[0], dtype=torch.bool) if mask is None else mask
    return Experts(list(mu), list(logvar), mask)


def divergence(mu, logvar, mask=None):
    model = MMJSD({f"v{i}": Vector(2) for i in range(len(mu))}, mu.shape[-1])
    return model._divergence(*model._compared(experts(mu, logvar, mask)))


def test_the_divergence_vanishes_where_everything_is_the_prior_and_is_positive_elsewhere():
    zero = torch.zeros(3, 4, 2)
    assert torch.count_nonzero(divergence(zero, zero)) == 0
    torch.manual_seed(0)
    assert (divergence(torch.randn(3, 4, 2), torch.randn(3, 4, 2)) > 0).all()


def test_two_unit_gaussians_have_a_known_divergence():
    """q = N(m, 1) and p = N(0, 1): f = N(m / 2, 1), so JS = m^2 / 8 in every dimension."""
    mu = torch.tensor([[[2.0, 0.0, 1.0]]])
    torch.testing.assert_close(divergence(mu, torch.zeros_like(mu)), torch.tensor([5 / 8]))


def test_missing_experts_are_not_compared():
    torch.manual_seed(0)
    mu, logvar = torch.randn(3, 4, 2), torch.randn(3, 4, 2)
    mask = torch.ones(4, 3, dtype=torch.bool)
    mask[:, 1] = False
    expected = divergence(mu[[0, 2]], logvar[[0, 2]])
    mu[1], logvar[1] = float("nan"), float("inf")
    torch.testing.assert_close(divergence(mu, logvar, mask), expected)


def test_encode_is_the_mixture(batch):
    assert isinstance(MMJSD(modalities(), 5).double().encode(batch), MixturePosterior)
