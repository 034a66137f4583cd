"""On linear-Gaussian data everything is known: log p(x), its conditionals, and the exact posteriors.

x_m = W_m z + b_m + noise with W_m of orthogonal columns, so that every posterior is a diagonal Gaussian: the factor
p(x_m | z) is, as a function of z, an expert of precision diag(W_m'W_m) / s^2.
"""

import math

import pytest
import torch
from torch import nn

from mmvae_fast.modalities import Vector
from mmvae_fast.models import IWAE, JMVAE, MCVAE, MMVAE, MVAE, MVTCAE, VAE, FusedVAE, MoPoE, WeightedPoE

SCALE, SIZES, DIM, ROWS = 0.8, {"a": 3, "b": 4, "c": 5}, 2, 4


class Expert(nn.Module):
    """The factor p(x | z) as a Gaussian of z or, with ``prior``, the posterior p(z | x)."""

    def __init__(self, weight, bias, prior, wider=1.0):
        super().__init__()
        self.weight, self.bias, self.prior, self.wider = weight, bias, prior, wider

    def forward(self, x):
        precision = self.weight.square().sum(0) / SCALE**2
        weighted = (x - self.bias) @ self.weight / SCALE**2
        total = precision + (1.0 if self.prior else 0.0)
        return weighted / total, (math.log(self.wider) - total.log()).expand(len(x), -1)


def make(cls, names=tuple(SIZES), *, prior, wider=1.0, **options):
    g = torch.Generator().manual_seed(0)
    modalities = {}
    for name in names:
        weight = torch.linalg.qr(torch.randn(SIZES[name], DIM, generator=g, dtype=torch.float64))[0]
        weight = weight * torch.tensor([1.5, 0.6], dtype=torch.float64)
        decoder = nn.Linear(DIM, SIZES[name], dtype=torch.float64)
        with torch.no_grad():
            decoder.weight.copy_(weight)
            decoder.bias.copy_(torch.randn(SIZES[name], generator=g, dtype=torch.float64))
        encoder = Expert(weight, decoder.bias.detach(), prior, wider)
        modalities[name] = Vector(SIZES[name], scale=SCALE, encoder=encoder, decoder=decoder)
    return cls(modalities, DIM, **options).double()


def log_p(model, batch, names):
    w = torch.cat([model.decoders[n].weight for n in names])
    b = torch.cat([model.decoders[n].bias for n in names])
    covariance = w @ w.t() + SCALE**2 * torch.eye(len(b), dtype=torch.float64)
    x = torch.cat([batch[n] for n in names], 1)
    return torch.distributions.MultivariateNormal(b, covariance).log_prob(x).detach()


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(1)
    return {name: torch.randn(ROWS, n, generator=g, dtype=torch.float64) for name, n in SIZES.items()}


MASK = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]], dtype=torch.bool)


def expected(model, batch, mask):
    """log p of what each row has."""
    names = list(model.modalities)
    rows = []
    for b, row in enumerate(mask.tolist()):
        there = [n for n, observed in zip(names, row, strict=True) if observed]
        rows.append(log_p(model, {n: batch[n][b : b + 1] for n in there}, there)[0] if there else torch.tensor(0.0))
    return torch.stack([r.double() for r in rows])


def test_the_product_of_the_factors_is_the_posterior(batch):
    """Every importance weight is then p(x), whatever the noise; the ELBO, whose KL is not sampled, is it on average."""
    model = make(MVAE, prior=False)
    exact = expected(model, batch, MASK)
    for seed in (0, 1):
        many = {name: x.repeat(5000, 1) for name, x in batch.items()}
        elbo = model(many, MASK.repeat(5000, 1), seed=seed).elbo
        torch.testing.assert_close(elbo, exact.mean(), atol=0.03, rtol=0)
        torch.testing.assert_close(model.log_likelihood(batch, MASK, n_samples=3, seed=seed), exact)
    w = torch.cat([model.decoders[n].weight for n in SIZES])
    b = torch.cat([model.decoders[n].bias for n in SIZES])
    precision = torch.eye(DIM).double() + w.t() @ w / SCALE**2
    q = model.encode(batch)
    torch.testing.assert_close(torch.diag_embed(torch.exp(-q.logvar)), precision.expand(ROWS, -1, -1))
    x = torch.cat(list(batch.values()), 1)
    torch.testing.assert_close(q.mu, (x - b) @ w / SCALE**2 / precision.diagonal())


def test_a_vae_with_the_posterior_reaches_the_likelihood(batch):
    data, vae, iwae = {"b": batch["b"]}, make(VAE, ["b"], prior=True), make(IWAE, ["b"], prior=True, n_samples=4)
    exact = log_p(vae, batch, ["b"]).mean()
    torch.testing.assert_close(-iwae(data, seed=3).loss, exact)
    many = {"b": batch["b"].repeat(5000, 1)}
    torch.testing.assert_close(-vae(many, seed=3).loss, exact, atol=0.03, rtol=0)


CASES = {
    "MVAE": lambda **o: make(MVAE, prior=False, **o),
    "MVTCAE": lambda **o: make(MVTCAE, prior=True, **o),
    "MoPoE": lambda **o: make(MoPoE, prior=True, **o),
    "MMVAE": lambda **o: make(MMVAE, prior=True, family="normal", learned_prior=False, **o),
    "WeightedPoE": lambda **o: make(WeightedPoE, prior=True, **o),
    "moments": lambda **o: make(FusedVAE, prior=True, fusion="moments", **o),
    "wasserstein": lambda **o: make(FusedVAE, prior=True, fusion="wasserstein", **o),
}
LARGE = {"n_samples": 30000, "chunk": 30000}


@pytest.mark.parametrize("case", CASES)
def test_the_estimate_converges_to_the_likelihood(case, batch):
    """Joint and conditional, with whatever is missing; experts wider than the truth: bounded weights."""
    model = CASES[case](wider=2.0)
    estimate = model.log_likelihood(batch, MASK, seed=0, **LARGE)
    torch.testing.assert_close(estimate, expected(model, batch, MASK), atol=0.05, rtol=0)
    given = model.log_likelihood(batch, MASK, seed=0, given="a", **LARGE)
    only = expected(model, batch, MASK & torch.tensor([True, False, False]))
    torch.testing.assert_close(given, expected(model, batch, MASK) - only, atol=0.05, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_bounds_stay_below_the_likelihood_and_get_tighter(case, batch):
    model = CASES[case](wider=1.5)
    rows = {name: x[:1].expand(3000, -1) for name, x in batch.items()}  # independent noise in every row
    exact = log_p(model, {n: x[:1] for n, x in batch.items()}, list(SIZES))[0]
    means = [model.log_likelihood(rows, n_samples=k, seed=1).mean() for k in (1, 5, 50)]
    assert means[0] <= means[1] + 1e-9 and means[1] <= means[2] + 1e-9 and means[2] < exact + 0.02
    assert model(rows, seed=2).elbo < exact + 0.02


BOUNDS = {
    **{case: model for case, model in CASES.items() if case != "MMVAE"},  # which has a test of its own
    "product": lambda **o: make(FusedVAE, prior=False, **o),
    "product without prior": lambda **o: make(FusedVAE, prior=True, fusion="product without prior", **o),
    "MCVAE": lambda **o: make(MCVAE, prior=True, **o),
    "JMVAE": lambda **o: make(JMVAE, prior=True, joint_hidden=(4,), **o),
}


def what_it_bounds(case, model, row):
    """log p(x), unless the objective is of another kind."""
    joint = log_p(model, row, list(SIZES))[0]
    singles = sum(log_p(model, {n: row[n]}, [n])[0] for n in SIZES)
    if case == "MVAE":  # a sum of ELBOs
        return joint + singles
    if case == "MVTCAE":  # an ELBO, and the mean of those of all modalities but m given m, whose prior is q_m
        a, count = model.alpha, len(SIZES)
        return (1 - a) * joint + a / count * (count * joint - singles)
    return joint


@pytest.mark.parametrize("case", BOUNDS)
def test_minus_the_loss_is_a_bound_at_beta_1(case, batch):
    for wider in (1.0,) if case == "MVTCAE" else (1.0, 1.5):  # its q_m have to be the posteriors
        model = BOUNDS[case](wider=wider)
        rows = {name: x[:1].expand(3000, -1) for name, x in batch.items()}
        loss = model(rows, beta=1.0, seed=2).loss
        assert -loss < what_it_bounds(case, model, {n: x[:1] for n, x in batch.items()}) + 0.02


def test_the_importance_weighted_loss_is_a_bound_that_gets_tighter(batch):
    rows = {"b": batch["b"][:1].expand(3000, -1)}
    losses = [-make(IWAE, ["b"], prior=True, wider=1.5, n_samples=k)(rows, seed=0).loss for k in (1, 5, 50)]
    exact = log_p(make(IWAE, ["b"], prior=True), batch, ["b"])[0]
    assert losses[0] < losses[1] < losses[2] < exact + 0.01
    torch.testing.assert_close(losses[2].detach(), exact, atol=0.05, rtol=0)


def test_the_mixtures_loss_is_a_bound(batch):
    rows = {name: x[:1].expand(2000, -1) for name, x in batch.items()}
    exact = log_p(make(MMVAE, prior=True), {n: x[:1] for n, x in batch.items()}, list(SIZES))[0]
    for tight in (False, True):
        options = {"family": "normal", "learned_prior": False, "estimator": "iwae", "tight": tight, "wider": 1.5}
        losses = [-make(MMVAE, prior=True, n_samples=k, **options)(rows, seed=0).loss for k in (1, 10, 100)]
        assert losses[0] < losses[1] < losses[2] < exact + 0.01


def test_the_only_expert_of_a_weighted_product_weighs_1(batch):
    model, plain = make(WeightedPoE, ["b"], prior=True), make(VAE, ["b"], prior=True)
    data = {"b": batch["b"]}
    assert torch.equal(model.fusion.weights, torch.ones(1, DIM, dtype=torch.float64))
    torch.testing.assert_close(model.encode(data), plain.encode(data))
    loss = model(data, seed=1).loss
    torch.testing.assert_close(loss, plain(data, seed=1).loss)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
