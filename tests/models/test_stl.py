"""Sticking the landing: value and gradient written out, and what the estimator is for, on data where all is known."""

import math

import pytest
import torch
from conftest import PRIVATE, modalities
from naive import naive_loss
from naive.common import Record, experts_of_row, log_normal, log_p, sticking
from test_linear_gaussian import SIZES, make
from torch import nn

from mmvae_fast.modalities import Vector
from mmvae_fast.models import CMVAE, IWAE, MMVAE, MMVAEPlus
from mmvae_fast.models.importance import estimate
from mmvae_fast.reference import philox_normal, seed_tensor


@pytest.mark.parametrize("n_samples", [1, 4])
def test_iwae_is_the_papers(n_samples):
    torch.manual_seed(0)
    model = IWAE({"v": Vector(4, scale=0.7)}, 3, n_samples=n_samples, estimator="stl", beta=1.7).double()
    x = {"v": torch.randn(5, 4, dtype=torch.float64)}
    mask = {"v": torch.tensor([True, True, False, True, True])}
    out = model(x, mask, seed=2)
    ours = torch.autograd.grad(out.loss, list(model.parameters()))
    eps = philox_normal(seed_tensor(2), 5, 3, n_samples, dtype=torch.float64)
    record = Record(model, 5)
    for b in (0, 1, 3, 4):
        mu, logvar = experts_of_row(model, x, b, ["v"])["v"]
        log_weights = []
        for k in range(n_samples):
            z = mu + torch.exp(logvar / 2) * eps[k, b]
            fit = log_p(model.modalities["v"], x["v"][b], model.decoders["v"](z[None])[0])
            log_prior = log_normal(z, torch.zeros(3), torch.zeros(3))
            kl = log_normal(z, mu.detach(), logvar.detach()) - log_prior
            record.add(0.0, kl / n_samples, v=fit / n_samples)
            log_weights.append(fit - 1.7 * kl)
        record.add(-sticking(torch.stack(log_weights)))
    loss, kl, ll = record.result()
    torch.testing.assert_close(out.loss, loss)
    torch.testing.assert_close(out.kl, kl.detach())
    torch.testing.assert_close(out.log_likelihood["v"], ll["v"].detach())
    torch.testing.assert_close(ours, torch.autograd.grad(loss, list(model.parameters())))


KINDS = {
    "tight": lambda: MMVAE(modalities(), 5, n_samples=2, estimator="stl", tight=True, family="normal", beta=1.7),
    "private": lambda: MMVAEPlus(modalities(), 5, n_samples=2, estimator="stl", private_dim=PRIVATE, beta=1.7),
    "clusters": lambda: CMVAE(modalities(), 5, n_samples=2, estimator="stl", private_dim=1, n_clusters=3, beta=1.7),
}


@pytest.mark.parametrize("kind", KINDS)
def test_mixtures_are_the_papers(kind, batch, mask):
    """As test_losses has it for the looser bound without private latents."""
    torch.manual_seed(0)
    model = KINDS[kind]().double()
    out, (loss, kl, _) = model(batch, mask, seed=3), naive_loss(model, batch, mask, 3)
    torch.testing.assert_close(out.loss, loss)
    torch.testing.assert_close(out.kl, kl.detach())
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = [torch.autograd.grad(of, parameters, allow_unused=True) for of in (out.loss, loss)]
    torch.testing.assert_close(*gradients)


class Movable(nn.Module):
    """An encoder with parameters: mu and logvar moved by numbers that are 0, or not, at first."""

    def __init__(self, encoder, by=0.0):
        super().__init__()
        self.encoder, self.by = encoder, nn.Parameter(torch.full((2, 2), by, dtype=torch.float64))

    def forward(self, x):
        mu, logvar = self.encoder(x)
        return mu + self.by[0], logvar + self.by[1]


def gradient_of_rows(estimator, n_samples, by=0.0, rows=1, seed=0):
    """Of the loss by the encoder's four parameters, from the mean over so many draws."""
    model = make(IWAE, ["b"], prior=True, n_samples=n_samples, estimator=estimator)
    model.encoders["b"] = Movable(model.encoders["b"], by)
    x = torch.linspace(-1, 1, SIZES["b"], dtype=torch.float64)
    loss = model({"b": x.expand(rows, -1)}, seed=seed).loss
    return torch.autograd.grad(loss, model.encoders["b"].by)[0]


@pytest.mark.parametrize("n_samples", [1, 5])
def test_no_variance_at_the_posterior(n_samples):
    """log p(x, z) - log q(z) is then the same for every z, so that its gradient along z is 0, draw by draw."""
    for seed in range(5):
        gradient = gradient_of_rows("stl", n_samples, seed=seed)
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)
    assert gradient_of_rows("iwae", n_samples).abs().min() > 1e-3  # right on average only


def test_one_sample_is_unbiased_and_many_are_not():
    exact, ours = (gradient_of_rows(e, 1, by=0.5, rows=200_000, seed=i) for i, e in enumerate(("iwae", "stl")))
    torch.testing.assert_close(ours, exact, atol=0.02, rtol=0)
    exact, ours, dreg = (
        gradient_of_rows(e, 5, by=0.5, rows=100_000, seed=i) for i, e in enumerate(("iwae", "stl", "dreg"))
    )
    torch.testing.assert_close(dreg, exact, atol=0.02, rtol=0)
    assert (ours - exact).abs().max() > 0.1


def test_mixtures_are_unbiased_with_one_sample():
    """The score of the mixture that is left out has mean 0 over all its components together."""
    gradients = []
    for seed, estimator in enumerate(("iwae", "stl")):
        model = make(MMVAE, prior=True, wider=2.0, n_samples=1, family="normal", estimator=estimator)
        for i, name in enumerate(SIZES):
            model.encoders[name] = Movable(model.encoders[name], 0.2 * i)
        rows = {n: torch.linspace(-1, 1, d, dtype=torch.float64).expand(100_000, -1) for n, d in SIZES.items()}
        loss = model(rows, seed=seed).loss
        gradients.append(torch.stack(torch.autograd.grad(loss, [model.encoders[n].by for n in SIZES])))
    torch.testing.assert_close(gradients[1], gradients[0], atol=0.05, rtol=0)


def test_the_value_is_the_bound():
    log_weights = torch.tensor([[0.0, 1.0], [2.0, -300.0]], dtype=torch.float64)
    z = torch.zeros(2, 2, 3)
    expected = torch.tensor([math.log((1 + math.exp(2)) / 2), 1 - math.log(2)], dtype=torch.float64)
    for name in ("iwae", "stl"):
        torch.testing.assert_close(estimate(name, log_weights, z, 1.0), expected)


def test_unknown_names():
    with pytest.raises(ValueError, match=r"estimator is 'score', expected one of \('dreg', 'iwae', 'stl'\)"):
        IWAE({"v": Vector(2)}, 2, estimator="score")
