"""CVAE: everything given a condition."""

import pytest
import torch
from conftest import JOINT, modalities
from naive import naive_loss

from mmvae_fast.modalities import Vector
from mmvae_fast.models import CVAE, VAE, MultimodalVAE


def build(**options):
    torch.manual_seed(0)
    return CVAE(modalities(), 5, **{"condition": ["text", "vector"], "context_dim": 3, **JOINT, **options}).double()


@pytest.mark.parametrize("masked", [False, True])
def test_a_fixed_prior_and_two_conditions(batch, mask, masked):
    model = build(learned_prior=False, beta=0.5)
    output = model(batch, mask if masked else None, seed=3)
    loss, kl, ll = naive_loss(model, batch, mask if masked else torch.ones_like(mask), 3)
    torch.testing.assert_close(output.loss, loss)
    torch.testing.assert_close(output.kl, kl.detach())
    assert set(output.log_likelihood) == set(ll) == {"image", "audio"}


def test_rows_without_a_target_are_their_prior(batch):
    model = build()
    condition = {n: batch[n] for n in ("text", "vector")}
    hidden = {n: torch.zeros(6, dtype=torch.bool) for n in ("image", "audio")}
    prior, masked = model.encode(condition), model.encode(batch, hidden)
    torch.testing.assert_close(masked, prior)
    assert torch.count_nonzero(prior.mu)
    for output in (model(condition), model(batch, hidden)):
        output.loss.backward()
        assert output.loss == output.kl == output.elbo == 0
    assert all(p.grad is None or torch.count_nonzero(p.grad) == 0 for p in model.parameters())
    assert not torch.allclose(model.encode(batch).mu, prior.mu)


def test_translate_and_decode_given_a_condition(batch):
    model = build()
    condition = {n: batch[n] for n in ("text", "vector")}
    z = model.encode(condition).mu
    image = model.translate(condition, "image")
    torch.testing.assert_close(image, model.decode(z, condition=condition)["image"].detach())
    torch.testing.assert_close(image, model.decode(z, condition=batch)["image"].detach())  # targets are ignored
    assert not torch.allclose(image, model.decode(z)["image"])
    some = {"text": torch.arange(6) < 3, "vector": torch.arange(6) < 3}
    partly = model.decode(z, condition=condition, mask=some)["image"]
    torch.testing.assert_close(partly[:3].detach(), image[:3])
    torch.testing.assert_close(partly[3:], model.decode(z)["image"][3:])  # nothing given
    from_both = model.reconstruct({**condition, "audio": batch["audio"]})
    assert list(from_both) == ["image", "audio"]
    assert not torch.allclose(from_both["image"], image)
    assert model.decode(torch.randn(2, 6, 5).double(), "audio", condition=condition)["audio"].shape == (2, 6, 2, 3)


def test_samples_given_a_condition(batch):
    model = build()
    condition = {n: batch[n] for n in ("text", "vector")}
    samples = model.sample(4, seed=1, condition=condition)
    assert {n: x.shape for n, x in samples.items()} == {"image": (4, 6, 1, 2, 2), "audio": (4, 6, 2, 3)}
    z = model.encode(condition).sample(4, seed=1)
    torch.testing.assert_close(samples["audio"], model.decode(z, condition=condition)["audio"].detach())
    torch.testing.assert_close(model.sample(z=z, condition=condition), samples)
    assert model.sample(4, seed=1)["image"].shape == (4, 1, 2, 2)
    with pytest.raises(ValueError, match="n is -1"):
        model.sample(-1, condition=condition)
    with pytest.raises(ValueError, match="pass either n"):
        model.sample(condition=condition)


def test_log_likelihood_given_the_condition(batch):
    model = build()
    z, seed = model.encode(batch).sample(1, seed=9), 9
    condition = {n: batch[n] for n in ("text", "vector")}
    params = model.decode(z[0], params=True, condition=condition)
    score = sum(model.modalities[n].log_likelihood(batch[n], params[n]) for n in ("image", "audio"))
    log_ratio = model.encode(condition).log_prob(z[0]) - model.encode(batch).log_prob(z[0])
    estimate = model.log_likelihood(batch, n_samples=1, seed=seed)
    torch.testing.assert_close(estimate, (score + log_ratio).detach())
    for rows in (model, model.float()):  # of nothing: no rounding of p / q = 1, with any number of samples
        nothing = {n: x.to(rows.dtype) if x.is_floating_point() else x for n, x in condition.items()}
        assert torch.count_nonzero(rows.log_likelihood(nothing, n_samples=7)) == 0
    model.double()
    given = model.log_likelihood(batch, n_samples=2000, given="audio", seed=1)
    alone = model.log_likelihood({**condition, "audio": batch["audio"]}, n_samples=2000, seed=2)
    both = model.log_likelihood(batch, n_samples=2000, seed=1)
    torch.testing.assert_close(given, both - alone, atol=0.2, rtol=0)
    given, estimate = (model.log_likelihood(batch, n_samples=5, given=g, seed=1) for g in ("text", None))
    torch.testing.assert_close(given, estimate)  # given already


def test_it_learns_what_the_condition_says():
    """x is c and noise: with the condition the likelihood rises above what a VAE has without it."""
    torch.manual_seed(0)
    c = torch.randn(256, 1)
    x = torch.cat([c, -c], 1) + 0.1 * torch.randn(256, 2)
    conditional = CVAE({"x": Vector(2, scale=0.1, hidden=(16,)), "c": Vector(1, hidden=(16,))}, 1, condition="c")
    alone = VAE({"x": Vector(2, scale=0.1, hidden=(16,))}, 1)
    elbos = []
    for model, batch in ((conditional, {"x": x, "c": c}), (alone, {"x": x})):
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        for step in range(500):
            loss = model(batch, seed=step).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        elbos.append(float(model(batch, seed=1000).elbo))
    assert elbos[0] > elbos[1] + 1
    error = (conditional.translate({"c": c}, "x") - torch.cat([c, -c], 1)).square().mean().sqrt()
    assert error < 0.15


def test_round_trip(tmp_path, batch):
    model = build(learned_prior=False, condition="vector")
    again = MultimodalVAE.load(model.save(tmp_path))
    assert (again.condition, again.targets) == (["vector"], ["image", "text", "audio"])
    torch.testing.assert_close(again(batch, seed=1), model(batch, seed=1))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"condition": []}, ValueError, r"condition is \[\], expected at least one"),
        ({"condition": ["smell"]}, ValueError, r"condition is \['smell'\]"),
        ({"condition": ["text", "smell"]}, ValueError, "condition is"),
        ({"condition": ["image", "text", "audio", "vector"]}, ValueError, "one left to be the target"),
        ({"learned_prior": 1}, TypeError, "learned_prior is 1"),
        ({"context_dim": 0}, ValueError, r"context_dim is \[0\]"),
        ({"joint_hidden": []}, ValueError, "joint_hidden is"),
    ],
)
def test_options_that_cannot_be(options, error, message):
    with pytest.raises(error, match=message):
        build(**options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, b: m.translate(b, "text"), "to names the condition 'text', expected some of the targets"),
        (lambda m, b: m.decode(torch.zeros(2, 5).double(), "smell"), "to names the modality 'smell'"),
        (
            lambda m, b: m.decode(torch.zeros(2, 5).double(), condition=b),
            r"shape \[2, 5\], expected \[..., 6, 5\]",
        ),
        (lambda m, b: m.decode(torch.zeros(6, 4).double(), condition=b), r"z has shape \[6, 4\]"),
        (lambda m, b: m.sample(2, condition={"audio": b["audio"]}), r"condition holds \['audio'\], expected some of"),
    ],
)
def test_calls_that_cannot_be(batch, call, message):
    with pytest.raises(ValueError, match=message):
        call(build(), batch)
