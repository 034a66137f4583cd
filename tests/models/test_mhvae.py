"""What only MHVAE promises: its levels. Its loss is compared with a naive one in test_losses."""

import pytest
import torch
from conftest import modalities
from torch import nn

from mmvae_fast.modalities import Vector
from mmvae_fast.models import MHVAE
from mmvae_fast.reference import all_subsets, subset_posteriors


def make(**options):
    torch.manual_seed(0)
    return MHVAE(modalities(), 5, **{"hidden": (6,), **options}).double()


def test_one_level_is_the_mean_over_products_of_experts(batch, mask):
    model = make(levels=1)
    posteriors = subset_posteriors(*model.encode_experts(batch, mask), prior="all")
    expected = torch.where(posteriors.available, posteriors.kl, 0.0).sum(0) / posteriors.available.sum(0).clamp(min=1)
    torch.testing.assert_close(model(batch, mask).kl, expected.mean().detach())
    q = model.encode(batch)
    full = all_subsets(4).index(15)
    torch.testing.assert_close(
        tuple(q), tuple(t[full] for t in subset_posteriors(*model.encode_experts(batch)[:2], prior="all")[:2])
    )
    samples = model.sample(4000, seed=0, to="vector")["vector"]
    z = torch.randn(4000, 5, dtype=torch.float64)
    torch.testing.assert_close(samples.mean(0), model.decode(z)["vector"].mean(0).detach(), rtol=0, atol=0.05)


def test_nothing_observed_is_the_prior_given_the_levels_above(batch):
    model = make()
    q = model.encode(batch, torch.zeros(6, 4, dtype=torch.bool))
    z = torch.zeros(5, dtype=torch.float64)
    for level in (2, 1):
        _, p = model.prior.step(level, z)
        z = p.mu
    torch.testing.assert_close(tuple(q), tuple(t.expand(6, 5) for t in p))


def test_a_listed_subset_that_a_row_lacks_does_not_count(batch):
    model = make(subsets=[["image", "text"], ["audio"]])
    output = model({"vector": batch["vector"], "text": batch["text"]})
    assert output.loss == output.kl == 0
    alone = make(subsets=[["image", "text"]])
    both = {n: batch[n] for n in ("image", "text", "vector")}
    torch.testing.assert_close(model(both, seed=1).loss, alone(both, seed=1).loss)  # the noise is the subset's place's


def test_every_network_is_trained(batch):
    model = make()
    model(batch).loss.backward()
    assert all(p.grad.count_nonzero() for p in model.parameters())


def test_log_likelihood_is_that_of_the_hierarchy():
    """All linear: z_2 ~ N(0, 1), z_1 = c z_2 + d + s noise, x = W z_1 + b + noise."""

    class Features(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.both = nn.Linear(n, 2)

        def forward(self, x):
            return (0.2 * self.both(x)).chunk(2, -1)

    torch.manual_seed(1)
    dims = {"v": 2, "w": 3}
    made = {n: Vector(k, scale=0.8, encoder=Features(k), decoder=nn.Linear(1, k)) for n, k in dims.items()}
    model = MHVAE(made, 1, levels=2, hidden=()).double()
    with torch.no_grad():
        model.prior.given[0].weight[1].zero_()  # p's variance is a constant
        for linear in [*model.posteriors, *(u for path in model.bottom_up.values() for u in path)]:
            linear[0].weight.mul_(0.2)
            linear[0].bias.copy_(torch.tensor([0.0, 3.0]))  # wide experts
    batch = {n: torch.randn(4, k).double() for n, k in dims.items()}
    mask = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
    estimate = model.log_likelihood(batch, mask, n_samples=30000, seed=0, chunk=30000)
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    _, p = model.prior.step(1, zero)
    slope = model.prior.step(1, one)[1].mu - p.mu
    variance = slope**2 + p.logvar.exp()
    for b in range(4):
        there = [n for i, n in enumerate(dims) if mask[b, i]]
        if not there:
            torch.testing.assert_close(estimate[b], torch.zeros_like(estimate[b]), rtol=0, atol=1e-9)
            continue
        w = torch.cat([model.decoders[n].weight for n in there])
        mean = torch.cat([model.decoders[n](p.mu) for n in there])
        covariance = variance * w @ w.t() + 0.8**2 * torch.eye(len(mean), dtype=torch.float64)
        exact = torch.distributions.MultivariateNormal(mean, covariance).log_prob(
            torch.cat([batch[n][b] for n in there])
        )
        torch.testing.assert_close(estimate[b], exact.detach(), rtol=0, atol=0.03)
    # and what is sampled has the moments of the model
    z = model.prior.sample(20000, torch.zeros(1, dtype=torch.int64))
    torch.testing.assert_close(z.mean(0), p.mu.detach(), rtol=0, atol=0.05)
    torch.testing.assert_close(z.var(0), variance.detach(), rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 0}, "levels is 0, expected 1 or more"),
        ({"levels": True}, "levels is True"),
        ({"hidden": (0,)}, r"hidden is \(0,\), expected positive integer"),
        ({"subsets": [["image", "smell"]]}, r"MHVAE: subsets holds \['image', 'smell'\], expected some of"),
        ({"subsets": [[]]}, r"MHVAE: subsets holds \[\]"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_many_modalities_need_subsets():
    many = {f"v{i}": Vector(1, hidden=()) for i in range(17)}
    with pytest.raises(ValueError, match="MHVAE: got 17 modalities, expected at most 16"):
        MHVAE(many, 1)
    assert torch.isfinite(MHVAE(many, 1, hidden=(), subsets=[list(many)])({n: torch.zeros(2, 1) for n in many}).loss)
