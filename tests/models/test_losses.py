"""The objectives against the papers' formulas, written out with loops over rows, subsets and modalities in float64."""

import itertools
import math

import pytest
import torch
from conftest import moments
from naive import naive_loss

from mmvae_fast import functional
from mmvae_fast.modalities import Vector
from mmvae_fast.models import IWAE, JNF, MHVAE, MMVAE, MVAE, MoPoE, Nexus
from mmvae_fast.models.weights import LikelihoodWeights
from mmvae_fast.reference import seed_tensor

SEED = 11


@pytest.mark.parametrize("masked", [False, True])
def test_loss_and_gradients_are_the_papers(make_model, batch, mask, masked):
    model, twin = make_model(likelihood_weights="dimension"), make_model(likelihood_weights="dimension")
    full = torch.ones_like(mask)
    output = model(batch, mask if masked else None, seed=SEED)
    output.loss.backward()
    loss, kl, ll = naive_loss(twin, batch, mask if masked else full, SEED)
    loss.backward()
    if getattr(model, "estimator", None) != "dreg":  # a surrogate, whose value says nothing
        torch.testing.assert_close(output.loss, loss)
    torch.testing.assert_close(output.kl, kl.detach())
    for name, value in ll.items():
        torch.testing.assert_close(output.log_likelihood[name], value.detach())
    torch.testing.assert_close(output.elbo, sum(ll.values()).detach() - kl.detach())
    for (name, own), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        if own.grad is None and other.grad is None:
            continue
        torch.testing.assert_close(own.grad, other.grad, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("masked", [False, True])
def test_learned_weights(make_model, batch, mask, masked):
    """They are charged for every likelihood that counts, as often as it does, and for no other."""
    model = make_model(likelihood_weights="learned")
    parameters = list(model.likelihood_weights.parameters())
    if not all(p.requires_grad for p in parameters):
        pytest.skip("the second stage does not train them")
    observed = mask if masked else torch.ones_like(mask)
    with torch.no_grad():
        for i, log_weight in enumerate(model.likelihood_weights.log_weights.values()):
            log_weight.fill_(0.3 * i - 0.4)
    loss, _, _ = naive_loss(model, batch, observed, SEED)
    output = model(batch, observed if masked else None, seed=SEED)
    if getattr(model, "estimator", None) != "dreg":  # a surrogate, whose value says nothing
        torch.testing.assert_close(output.loss, loss)
    ours, theirs = (torch.autograd.grad(of, parameters, allow_unused=True) for of in (output.loss, loss))
    for own, other in zip(ours, theirs, strict=True):
        assert (own is None) == (other is None) or not (own if other is None else other).any()
        if own is not None and other is not None:
            torch.testing.assert_close(own, other)


@pytest.mark.parametrize("likelihood", ["normal", "laplace"])
def test_a_learned_weight_settles_at_the_residual_spread(likelihood):
    """p(x|z)^w, normalised, is the same family with another scale: at the optimum that of the residuals."""
    modality = Vector(3, likelihood=likelihood, scale=0.7)
    weights = LikelihoodWeights("learned", {"x": modality}).double()
    residual = torch.randn(500, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    score = modality.log_likelihood(residual, torch.zeros_like(residual)).mean()[None]
    optimizer = torch.optim.Adam(weights.parameters(), lr=0.02)
    for _ in range(600):
        optimizer.zero_grad()
        (-weights(["x"], score, lambda: torch.ones(1, dtype=torch.float64)).sum()).backward()
        optimizer.step()
    spread = residual.square().mean() / 0.7**2 if likelihood == "normal" else residual.abs().mean() / 0.7
    torch.testing.assert_close(weights["x"], 1 / spread, rtol=1e-3, atol=0)


def test_beta_and_weights_enter_the_loss_only(make_model, batch):
    weights = {n: w for n, w in {"image": 2.0, "text": 0.0, "audio": 0.5, "vector": 0.8}.items() if n in batch}
    plain, weighted = make_model(), make_model(likelihood_weights=weights)
    if isinstance(plain, JNF) and plain.stage == 2:
        pytest.skip("its second stage has neither")
    a, b = plain(batch, seed=1), weighted(batch, seed=1)
    assert b.loss != a.loss
    torch.testing.assert_close(a[1:], b[1:])
    c = plain(batch, seed=1, beta=0.0)
    torch.testing.assert_close(a[1:], c[1:])
    if isinstance(plain, MoPoE) and not any(plain.private_dims.values()):
        torch.testing.assert_close(
            b.loss.detach(), 1.7 * b.kl - sum(weights[m] * v for m, v in b.log_likelihood.items())
        )
        torch.testing.assert_close(c.loss.detach(), -sum(c.log_likelihood.values()))


def test_only_the_loss_carries_a_gradient(model, batch):
    output = model(batch)
    assert output.loss.requires_grad
    assert not any(t.requires_grad for t in (output.elbo, output.kl, *output.log_likelihood.values()))


def test_seed_makes_the_noise(model, batch):
    assert model(batch, seed=4).loss == model(batch, seed=4).loss
    assert model(batch, seed=4).loss != model(batch, seed=5).loss
    torch.manual_seed(0)
    first = [model(batch).loss for _ in range(2)]
    torch.manual_seed(0)
    assert [model(batch).loss for _ in range(2)] == first
    assert first[0] != first[1]


class Constant(torch.nn.Module):
    """A decoder that ignores z, so that a loss has no noise in it."""

    def __init__(self, shape):
        super().__init__()
        self.value = torch.nn.Parameter(torch.linspace(-1, 1, math.prod(shape)).reshape(shape))

    def forward(self, z):
        return self.value.expand(z.shape[0], *self.value.shape)


def noisy(model):
    """Whether its loss has noise in it even so: KL divergences estimated from samples, or at sampled latents above."""
    return isinstance(model, (IWAE, MMVAE, MHVAE, Nexus)) or (isinstance(model, JNF) and model.stage == 2)


@pytest.fixture
def noiseless(make_model, monkeypatch):
    """Nothing in its loss depends on the place of a row or of a modality, as noise does.

    Where the decoders cannot keep noise out, it is the same for all rows, modalities and subsets; samples differ.
    """
    model = make_model().eval()  # random subsets are noise, too
    if noisy(model):
        period = getattr(model, "n_samples", 1)

        def draw(mu, logvar, n_samples=None, **_):
            d = torch.arange(mu.shape[-1], dtype=mu.dtype) % model.latent_dim  # experts may stand side by side
            eps = torch.sin(1 + d + 7 * torch.arange(period, dtype=mu.dtype)[:, None, None])
            z = mu + torch.exp(0.5 * logvar) * torch.stack([eps[k % period] for k in range(n_samples or 1)])
            return z[0] if n_samples is None else z

        monkeypatch.setattr(functional, "reparameterize", draw)
        return model
    for name, modality in model.modalities.items():
        model.decoders[name] = Constant(modality.param_shape).double()
    return model


def test_losses_are_means_over_rows(noiseless, batch, mask):
    twice = {name: torch.cat([x, x]) for name, x in batch.items()}
    torch.testing.assert_close(noiseless(twice, torch.cat([mask, mask])).loss, noiseless(batch, mask).loss)


def test_order_of_rows_does_not_matter(noiseless, batch, mask):
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    moved = noiseless({name: x[order] for name, x in batch.items()}, mask[order])
    torch.testing.assert_close(moved, noiseless(batch, mask))


def test_order_of_modalities_does_not_matter(noiseless, several, batch, mask):
    names = ["vector", "image", "audio", "text"]
    other = type(noiseless)({n: noiseless.modalities[n] for n in names}, 5, **noiseless.options()).double().eval()
    other.decoders = noiseless.decoders
    other.load_state_dict(noiseless.state_dict())
    columns = [list(noiseless.modalities).index(n) for n in names]
    ours, theirs = noiseless(batch, mask), other(batch, mask[:, columns])
    torch.testing.assert_close(theirs.loss, ours.loss)
    torch.testing.assert_close(theirs.kl, ours.kl)
    torch.testing.assert_close(moments(other.encode(batch, mask[:, columns])), moments(noiseless.encode(batch, mask)))


def test_a_loss_is_the_sum_of_its_rows(model, batch, mask):
    """With the noise of its place, a row counts the same among others as alone, and in a larger batch."""
    alone = [model(batch, mask & (torch.arange(6) == b)[:, None], seed=SEED) for b in range(6)]
    together = model(batch, mask, seed=SEED)
    torch.testing.assert_close(sum(output.loss for output in alone), together.loss)
    torch.testing.assert_close(sum(output.kl for output in alone), together.kl)
    longer = model({n: torch.cat([x, x]) for n, x in batch.items()}, torch.cat([mask, mask & False]), seed=SEED)
    torch.testing.assert_close(2 * longer.loss, together.loss)
    torch.testing.assert_close(2 * longer.kl, together.kl)


def test_one_modality_is_an_ordinary_vae(batch):
    """With M = 1 the prior is in the full product; MVAE must not count its single ELBO twice."""
    from mmvae_fast.modalities import Vector

    for cls in (MVAE, MoPoE):
        torch.manual_seed(0)
        model = cls({"vector": Vector(4, hidden=(6,))}, 3).double()
        data = {"vector": batch["vector"]}
        output = model(data, seed=2)
        torch.testing.assert_close(output.loss.detach(), -output.elbo)
        if cls is MoPoE:
            loss, _, _ = naive_loss(model, data, torch.ones(6, 1, dtype=torch.bool), 2)
            torch.testing.assert_close(output.loss, loss)


def test_random_subsets_are_different_middle_sized_and_uniform():
    from mmvae_fast.modalities import Vector

    model = MVAE({f"v{i}": Vector(1, hidden=()) for i in range(4)}, 1, n_random_subsets=2)
    pool = {tuple(i in c for i in range(4)) for k in (2, 3) for c in itertools.combinations(range(4), k)}
    counts = dict.fromkeys(pool, 0)
    draws = 600
    for seed in range(draws):
        first, second = map(tuple, model._random_subsets(seed_tensor(seed)).tolist())
        assert first != second
        counts[first] += 1
        counts[second] += 1
    expected = 2 * draws / len(pool)
    assert all(abs(n - expected) < 5 * math.sqrt(expected) for n in counts.values())
    assert len(model.eval()._random_subsets(seed_tensor(0))) == 0


def test_compiles_into_one_graph(model, batch, mask):
    """No data-dependent shape, no host sync: either would break the graph."""
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    name, *_ = [*list(batch)[1:], *batch]
    chosen = {name: mask[:, list(batch).index(name)]}  # with and without a mask, in one
    expected = model(batch, chosen, seed=SEED)
    expected.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    output = compiled(batch, chosen, seed=SEED)
    output.loss.backward()
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, gradients)


@pytest.mark.slow
def test_inference_compiles_into_one_graph(model, batch, mask):
    if isinstance(model, JNF):
        model.hmc_steps = model.hmc_leapfrogs = 1  # all are unrolled

    def infer(batch, mask, seed):
        return model.encode(batch, mask).sample(seed=seed), model.log_likelihood(batch, mask, n_samples=2, seed=seed)

    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(infer, fullgraph=True, backend="eager")(batch, mask, torch.tensor(SEED))
        torch.testing.assert_close(compiled, infer(batch, mask, SEED))
