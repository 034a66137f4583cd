"""The layers are the functions with their options set once."""

from __future__ import annotations

import pytest
import torch
from expert_cases import make_experts

from mmvae_fast import functional, nn


def test_layers_call_the_functions():
    experts = make_experts(3, 6, 5, mask="random")
    mu, logvar, mask = experts.mu, experts.logvar, experts.mask
    clean = (torch.randn(6, 5), torch.randn(6, 5))
    pairs = [
        (nn.Reparameterize(4)(*clean, seed=1), functional.reparameterize(*clean, 4, seed=1)),
        (nn.GaussianKL()(*clean), functional.gaussian_kl(*clean)),
        (nn.GaussianKL("mean")(*clean), functional.gaussian_kl(*clean).mean()),
        (
            nn.ProductOfExperts(prior=False)(mu, logvar, mask),
            functional.product_of_experts(mu, logvar, mask, prior=False),
        ),
        (
            nn.PoESampleKL(n_samples=2)(mu, logvar, mask, seed=1),
            functional.poe_sample_kl(mu, logvar, mask, n_samples=2, seed=1),
        ),
        (
            nn.MoPoESampleKL(subsets=[1, 6], prior="all")(mu, logvar, mask, seed=1),
            functional.mopoe_sample_kl(mu, logvar, mask, subsets=[1, 6], prior="all", seed=1),
        ),
    ]
    for mine, expected in pairs:
        mine, expected = (x if isinstance(x, tuple) else (x,) for x in (mine, expected))
        assert all(a is e is None or torch.equal(a, e) for a, e in zip(mine, expected, strict=True))


def test_mean_in_eval():
    layer, mu = nn.Reparameterize(mean_in_eval=True), torch.randn(3, 4)
    assert not torch.equal(layer(mu, mu), mu)
    layer.eval()
    assert torch.equal(layer(mu, mu), mu)


def test_options_are_shown_and_checked():
    assert "n_samples=4" in repr(nn.Reparameterize(4))
    assert "prior='all'" in repr(nn.MoPoESampleKL(prior="all"))
    assert list(nn.PoESampleKL().parameters()) == []
    with pytest.raises(ValueError, match="reduction is 'max'"):
        nn.GaussianKL("max")


def test_drop_in_replacement_trains():
    """An existing VAE with these layers in place of its own lines: the loss falls."""
    torch.manual_seed(0)
    x = torch.randn(64, 2) @ torch.randn(2, 12)
    encoder, decoder = torch.nn.Linear(12, 2 * 3), torch.nn.Linear(3, 12)
    sample, kl = nn.Reparameterize(), nn.GaussianKL("mean")
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-2)
    losses = []
    for _ in range(150):
        mu, logvar = encoder(x).chunk(2, -1)
        loss = (decoder(sample(mu, logvar)) - x).square().sum(-1).mean() + kl(mu, logvar)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
