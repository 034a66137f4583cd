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
    scale = [torch.exp(0.5 * v) for v in logvar]
    pairs = [
        (nn.Reparameterize(4)(*clean, seed=1), functional.reparameterize(*clean, 4, seed=1)),
        (
            nn.Reparameterize(family="laplace")(*clean, seed=1),
            functional.reparameterize(*clean, family="laplace", seed=1),
        ),
        (nn.GaussianKL()(*clean), functional.gaussian_kl(*clean)),
        (nn.GaussianKL("mean")(*clean), functional.gaussian_kl(*clean).mean()),
        (nn.LaplaceKL("sum")(*clean), functional.laplace_kl(*clean).sum()),
        (nn.LaplaceKL()(*clean, *clean), torch.zeros(6)),
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
        (
            nn.GeneralizedProductOfExperts(3, 5, prior=False)(mu, logvar, mask),
            functional.product_of_experts(mu, logvar, mask, prior=False, weights=torch.ones(3, 5)),
        ),
        (
            nn.SubsetPosteriors(subsets=[1, 6], prior="all")(mu, logvar, mask),
            functional.subset_posteriors(mu, logvar, mask, subsets=[1, 6], prior="all"),
        ),
        (
            nn.MixtureLogProb(family="laplace")(clean[0], mu, scale, mask),
            functional.mixture_log_prob(clean[0], mu, scale, mask, family="laplace"),
        ),
        (
            nn.LogLikelihood("laplace", scale=0.5, event_dims=0)(*clean),
            functional.log_likelihood(*clean, family="laplace", scale=0.5, event_dims=0),
        ),
        (
            nn.LogLikelihood("normal")(*clean, scale=clean[1].exp(), mask=mask[:, 0]),
            functional.log_likelihood(*clean, family="normal", scale=clean[1].exp(), mask=mask[:, 0]),
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
    assert "weights=[3, 5]" in repr(nn.GeneralizedProductOfExperts(3, 5))
    assert "family='bernoulli'" in repr(nn.LogLikelihood("bernoulli"))
    with pytest.raises(ValueError, match="GaussianKL: reduction is 'max', expected 'none', 'mean' or 'sum'"):
        nn.GaussianKL("max")
    for layer in (nn.LogLikelihood, lambda f: nn.MixtureLogProb(family=f), lambda f: nn.Reparameterize(family=f)):
        with pytest.raises(ValueError, match="family is 'cauchy', expected 'normal'"):
            layer("cauchy")


@pytest.mark.parametrize("dim", [None, 3])
def test_weights_are_learned(dim):
    """Of two experts, the one that is right is trusted more and more."""
    torch.manual_seed(0)
    truth = torch.randn(64, 3)
    mu, logvar = [truth, torch.randn(64, 3)], [torch.zeros(64, 3)] * 2
    layer = nn.GeneralizedProductOfExperts(2, dim, prior=False)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(100):
        optimiser.zero_grad()
        (layer(mu, logvar)[0] - truth).square().mean().backward()
        optimiser.step()
    assert (layer.log_weights[0] > layer.log_weights[1] + 2).all()
    assert layer.log_weights.shape == ((2,) if dim is None else (2, 3))


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
