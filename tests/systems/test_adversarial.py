"""The pieces of adversarial training against formulas worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mmvae_fast.reference import philox_uniform
from mmvae_fast.systems import adversarial as adv


@pytest.mark.parametrize(
    "kind, discriminator, generator",
    [
        ("hinge", (0 + 1.5) / 2 + (0 + 3.0) / 2, -0.0),
        ("wasserstein", 0.0 - 0.75, -0.0),
        ("nonsaturating", None, (math.log1p(math.exp(2)) + math.log1p(math.exp(-2))) / 2),
        ("least squares", 0.5 * ((1.0 + 2.25) / 2 + 4.0), 0.5 * (9 + 1) / 2),
    ],
)
def test_losses(kind, discriminator, generator):
    real, fake = torch.tensor([2.0, -0.5]), torch.tensor([-2.0, 2.0])
    if kind == "nonsaturating":  # -log sigmoid(real) - log (1 - sigmoid(fake))
        discriminator = float(-(real.sigmoid().log().mean() + (1 - fake.sigmoid()).log().mean()))
    assert float(adv.discriminator_loss(kind, real, fake)) == pytest.approx(discriminator)
    assert float(adv.generator_loss(kind, fake)) == pytest.approx(generator)
    nothing = torch.zeros(0)
    assert math.isfinite(float(adv.discriminator_loss(kind, nothing, fake)))


def test_gradient_penalty_of_a_linear_critic():
    """Its gradient is w everywhere: (|w| - 1)^2, and the penalty's own gradient 2 (|w| - 1) w / |w|."""
    w = torch.tensor([3.0, -4.0], dtype=torch.float64, requires_grad=True)
    real, fake = torch.randn(2, 5, 2, dtype=torch.float64)
    penalty = adv.gradient_penalty(lambda x: x @ w, real, fake, seed=1)
    assert penalty.item() == pytest.approx(16.0)
    (gradient,) = torch.autograd.grad(penalty, w)
    torch.testing.assert_close(gradient, 2 * 4 * w.detach() / 5)


def test_gradient_penalty_of_a_curved_critic():
    """Row by row: the place on the line from the counters, the gradient by finite differences."""
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0)).double()
    real, fake = torch.randn(2, 4, 2, 3, dtype=torch.float64)
    u, total = philox_uniform(7, 4, 1).double(), 0.0
    for i in range(4):
        x = u[i] * real[i] + (1 - u[i]) * fake[i]
        slopes = []
        for j in range(6):
            step = torch.zeros(6, dtype=torch.float64)
            step[j] = 1e-5
            up, down = (critic((x + s * step.reshape(2, 3))[None]) for s in (1, -1))
            slopes.append((up - down).item() / 2e-5)
        total += (math.hypot(*slopes) - 1) ** 2
    assert adv.gradient_penalty(critic, real, fake, seed=7).item() == pytest.approx(total / 4, rel=1e-6)


def test_r1_of_a_quadratic_critic():
    """f(x) = a |x|^2 / 2 has the gradient a x: the penalty is a^2 |x|^2 / 2, its gradient a |x|^2."""
    a = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    x = torch.randn(6, 3, dtype=torch.float64)
    penalty = adv.r1_penalty(lambda x: a * x.square().sum(1) / 2, x)
    square = x.square().sum(1).mean()
    torch.testing.assert_close(penalty, a.detach() ** 2 * square / 2, check_dtype=False)
    torch.testing.assert_close(torch.autograd.grad(penalty, a)[0], a.detach() * square)
    assert not x.requires_grad


def test_spectral_norm_bounds_every_layer():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    for layer in (network[0], network[2]):
        nn.init.normal_(layer.weight, std=3.0)
    assert adv.normalize_spectrum(network) is network
    network.train()
    for _ in range(30):
        network(torch.randn(2, 8))
    for layer in (network[0], network[2]):
        assert torch.linalg.matrix_norm(layer.weight, 2).item() == pytest.approx(1, abs=1e-3)
    a, b = torch.randn(2, 50, 8)
    network.eval()
    assert bool((((network(a) - network(b)).norm(dim=1) / (a - b).norm(dim=1)) <= 1.001).all())


def test_average_by_hand():
    network = nn.BatchNorm1d(2)
    average = adv.Average(network, decay=0.15)
    expected = network.weight.detach().clone()
    for t, keep in enumerate((0.1, 0.15, 0.15)):  # (1 + 0) / (10 + 0), then the cap
        with torch.no_grad():
            network.weight.fill_(float(t + 2))
            network.num_batches_tracked.fill_(t + 5)
        average.update(network)
        expected = keep * expected + (1 - keep) * network.weight.detach()
        torch.testing.assert_close(average.network.weight.data, expected)
    assert int(average.updates) == 3 and int(average.network.num_batches_tracked) == 7
    assert not any(p.requires_grad for p in average.parameters())
    assert float(network.weight.detach()[0]) == 4.0


def test_history_of_samples():
    history = adv.SampleHistory(4, (1,))
    first, second = torch.arange(6.0)[:, None], torch.arange(10.0, 210.0)[:, None]
    out = history.exchange(first, seed=0)
    assert torch.equal(out[:4], first[:4])  # while it fills up
    before = second.clone()
    out = history.exchange(second, seed=1)
    assert torch.equal(second, before)
    old = out != second
    assert 60 < int(old.sum()) < 140  # half of 200
    # nothing is made up or doubled: what came out earlier and what is held are what went in
    seen = torch.cat([out, history.held]).flatten().sort().values
    assert torch.equal(seen.unique(), seen)
    again = adv.SampleHistory(4, (1,))
    again.exchange(first, seed=0)
    assert torch.equal(again.exchange(second, seed=1), out)
    assert torch.equal(adv.SampleHistory(0, (1,)).exchange(first, seed=0), first)


def test_one_optimizer_steps_one_network_at_a_time():
    a, b = nn.Linear(2, 2), nn.Linear(2, 1)
    optimizer = torch.optim.Adam([{"params": a.parameters(), "lr": 0.1}, {"params": b.parameters(), "lr": 0.2}])
    before = [p.detach().clone() for p in (*a.parameters(), *b.parameters())]
    loss = 100 * b(a(torch.randn(4, 2))).sum()
    adv.descend(optimizer, loss, list(b.parameters()), clip=None)
    after = [*a.parameters(), *b.parameters()]
    assert [torch.equal(x, y) for x, y in zip(before, after, strict=True)] == [True, True, False, False]
    assert all(p.grad is None for p in after)
    # Adam's first step is lr * sign(gradient)
    torch.testing.assert_close((after[3] - before[3]).abs(), torch.full((1,), 0.2), atol=1e-4, rtol=0)


def test_clipping_is_of_all_parameters_together():
    layer = nn.Linear(2, 1)
    before = [p.detach().clone() for p in layer.parameters()]
    loss = layer(torch.tensor([[3.0, 4.0]])).sum()  # gradient (3, 4; 1)
    adv.descend(torch.optim.SGD(layer.parameters(), lr=1.0), loss, list(layer.parameters()), clip=0.5)
    moved = torch.cat([(a - b).flatten() for a, b in zip(before, layer.parameters(), strict=True)])
    torch.testing.assert_close(moved, 0.5 * torch.tensor([3.0, 4.0, 1.0]) / math.sqrt(26), atol=1e-4, rtol=0)
