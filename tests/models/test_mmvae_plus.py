"""MMVAE+ and CMVAE beyond what every model is tested for."""

import pytest
import torch
from conftest import MODELS, modalities

from mmvae_fast.modalities import Vector
from mmvae_fast.models import CMVAE, MMVAE, MMVAEPlus
from mmvae_fast.models.importance import normalized, weigh_gradient
from mmvae_fast.models.priors import Clusters
from mmvae_fast.reference import seed_tensor


@pytest.mark.parametrize("options", [{}, {"estimator": "iwae", "family": "normal", "learned_prior": True}])
def test_without_private_latents_it_is_mmvae(batch, mask, options):
    options = {"n_samples": 3, "learned_prior": False, **options}
    models = []
    for make in (lambda **o: MMVAE(modalities(), 5, **o), lambda **o: MMVAEPlus(modalities(), 5, private_dim=0, **o)):
        torch.manual_seed(0)
        models.append(make(**options).double())
    a, b = (m(batch, mask, seed=1) for m in models)
    torch.testing.assert_close(a, b)
    a.loss.backward()
    b.loss.backward()
    for (name, p), q in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=lambda text, name=name: f"{name}: {text}")


def test_one_cluster_at_the_origin_is_mmvae_plus(batch, mask):
    torch.manual_seed(0)
    plain = MMVAEPlus(modalities(), 5, n_samples=3).double()
    clustered = CMVAE(modalities(), 5, n_samples=3, n_clusters=1).double()
    clustered.load_state_dict({**clustered.state_dict(), **plain.state_dict(), "prior.logits": torch.zeros(1)})
    clustered.prior.mu.data.zero_()
    torch.testing.assert_close(clustered(batch, mask, seed=1), plain(batch, mask, seed=1))


def test_cross_reconstruction_does_not_see_the_private_latents_of_others(batch):
    """Only a modality's own decoder has a gradient to its private encoder, and only as its own source."""
    torch.manual_seed(0)
    model = MMVAEPlus(modalities(), 5, n_samples=2, private_dim=2, beta=0.0).double()
    weights = dict.fromkeys(model.modalities, 0.0)
    model.likelihood_weights.fixed = {**weights, "audio": 1.0}
    experts = model._experts(model._check(batch, None))
    for q in experts.private.values():
        q.mu.retain_grad()
    model.objective(model._check(batch, None), experts, beta=0.0, seed=1).loss.backward()
    assert [n for n, q in experts.private.items() if q.mu.grad is not None and q.mu.grad.any()] == ["audio"]
    for p in ("audio", "image"):
        gradient = model.auxiliary_priors[p].logits.grad
        assert (gradient is not None and gradient.any()) == (p == "audio")


def test_a_modality_alone_in_its_row_draws_nothing_from_its_auxiliary_prior(batch):
    torch.manual_seed(0)
    model = MMVAEPlus(modalities(), 5, n_samples=2).double()
    model({"audio": batch["audio"]}, seed=1).loss.backward()
    assert model.auxiliary_priors["audio"].logits.grad is None


def test_dreg_gradients_estimate_those_of_the_bound_of_one_modality():
    """With one expert the proposal is the density in the weights, and DReG is unbiased: in u and in w."""
    batch = {"v": torch.randn(2, 4, dtype=torch.float64)}
    rows = {"v": batch["v"].repeat_interleave(30_000, 0)}
    gradients = []
    for estimator in ("dreg", "iwae"):
        torch.manual_seed(1)
        model = MMVAEPlus(
            {"v": Vector(4, hidden=())}, 2, private_dim=2, n_samples=4, family="normal", estimator=estimator
        ).double()
        model(rows, seed=7 if estimator == "dreg" else 8).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.encoders.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], atol=0.03, rtol=0.02)


def test_weighed_gradients():
    z = torch.ones(2, 3, requires_grad=True)
    y = z * 1
    weigh_gradient(y, torch.tensor([2.0, 0.0]))
    y.sum().backward()
    assert z.grad.tolist() == [[2.0] * 3, [0.0] * 3]
    weigh_gradient(torch.ones(2, 3), torch.ones(2))  # nothing to do
    w = normalized(torch.tensor([[0.0, 1.0], [-200.0, 1.0]]), torch.tensor([[True, False], [True, False]]))
    assert w.tolist() == [[1.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_clusters": 0}, ValueError, "n_clusters is 0, expected 1 or more"),
        ({"n_clusters": 2.0}, ValueError, "n_clusters is 2.0"),
        ({"learned_prior": True}, TypeError, "learned_prior"),
        ({"tight": True}, TypeError, "tight"),
        ({"n_samples": 0}, ValueError, "n_samples is 0"),
        ({"family": "cauchy"}, ValueError, "family is 'cauchy'"),
        ({"estimator": "elbo"}, ValueError, "estimator is 'elbo'"),
    ],
)
def test_options_that_cannot_be(options, error, message):
    with pytest.raises(error, match=message):
        CMVAE(modalities(), 5, **options)


# --- clusters ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["laplace", "normal"])
def clusters(request):
    torch.manual_seed(0)
    prior = Clusters(3, 2, request.param, learned_scale=True).double()
    prior.logits.data.copy_(torch.tensor([0.0, 1.0, -1.0]))
    prior.log_scale.data.uniform_(-1, 1)
    return prior


def mixture(prior):
    kind = torch.distributions.Laplace if prior.family == "laplace" else torch.distributions.Normal
    components = torch.distributions.Independent(kind(prior.mu, prior.log_scale.exp()), 1)
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=prior.logits), components)


def test_clusters_are_torchs_mixture(clusters):
    z = torch.randn(4, 5, 2, dtype=torch.float64, requires_grad=True)
    expected = mixture(clusters).log_prob(z)
    inputs = (z, *clusters.parameters())
    torch.testing.assert_close(clusters.log_prob(z), expected)
    torch.testing.assert_close(
        torch.autograd.grad(clusters.log_prob(z).sum(), inputs), torch.autograd.grad(expected.sum(), inputs)
    )
    torch.testing.assert_close(clusters.mean, mixture(clusters).mean)
    torch.testing.assert_close(clusters.variance, mixture(clusters).variance)
    torch.testing.assert_close(clusters.probabilities(z).sum(-1), torch.ones(4, 5).double())
    torch.testing.assert_close(clusters.point, clusters.mu[1])


def test_samples_of_clusters(clusters):
    z = clusters.sample(60_000, seed_tensor(1))
    assert z.dtype == torch.float32
    torch.testing.assert_close(z.mean(0).double(), clusters.mean, atol=0.05, rtol=0)
    torch.testing.assert_close(z.var(0).double(), clusters.variance, atol=0.1, rtol=0.03)
    entropy = -mixture(clusters).log_prob(mixture(clusters).sample((60_000,))).mean()
    torch.testing.assert_close(-clusters.log_prob(z.double()).mean(), entropy, atol=0.03, rtol=0)
    torch.testing.assert_close(clusters.sample(10, seed_tensor(1)), z[:10], rtol=0, atol=0)
    several = clusters.sample(10, seed_tensor(1), 3)
    assert several.shape == (3, 10, 2)
    assert clusters.sample(0, seed_tensor(1)).shape == (0, 2)
    torch.testing.assert_close(clusters.sample(4, seed_tensor(1), 3), several[:, :4], rtol=0, atol=0)


def test_cluster_gives_the_mean_probability_over_what_is_observed(batch, mask):
    torch.manual_seed(0)
    model = MODELS["CMVAE"]().double()
    model.prior.logits.data.copy_(torch.tensor([0.0, 1.0, -1.0, 0.5]))
    assignment, probability = model.cluster(batch, mask)
    pi = torch.softmax(model.prior.logits, -1)
    for b in range(6):
        there = [n for i, n in enumerate(model.modalities) if mask[b, i]]
        posteriors = []
        for n in there:
            u = model.encoders[n](batch[n][b : b + 1])[0][0, :5]
            joint = pi * torch.exp(-(u - model.prior.mu).abs().sum(-1))  # Laplace, scale 1
            posteriors.append(joint / joint.sum())
        expected = sum(posteriors) / len(there) if there else pi
        torch.testing.assert_close(probability[b], expected.detach())
        assert assignment[b] == expected.argmax()
    assert not probability.requires_grad
    without = model.cluster({"audio": batch["audio"]})
    only = torch.tensor([False, False, True, False]).expand(6, -1)
    torch.testing.assert_close(without, model.cluster(batch, only))


def test_clusters_are_found():
    """Two well separated kinds of rows, seen by two modalities: one cluster each."""
    torch.manual_seed(0)
    kind = torch.arange(200) % 2
    batch = {n: (4.0 * kind - 2)[:, None] + 0.3 * torch.randn(200, 3) for n in ("v", "w")}
    model = CMVAE({n: Vector(3, hidden=(16,)) for n in batch}, 2, private_dim=1, n_clusters=2, n_samples=5)
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)
    for step in range(150):
        optimizer.zero_grad()
        model(batch, seed=step).loss.backward()
        optimizer.step()
    agreement = (model.cluster(batch).assignment == kind).double().mean()
    assert max(agreement, 1 - agreement) > 0.95
    mask = {"v": kind == 0}  # half the rows lack a modality
    agreement = (model.cluster(batch, mask).assignment == kind).double().mean()
    assert max(agreement, 1 - agreement) > 0.95


def spread(centres, rows=60, noise=0.05):
    """A CMVAE whose experts say what the data are, and data around some centres."""
    g = torch.Generator().manual_seed(0)

    class Reader(torch.nn.Module):
        def forward(self, x):
            return torch.cat([x, x[:, :1]], 1), torch.zeros(len(x), 3, dtype=x.dtype)  # u = x, and w

    where = torch.tensor(centres, dtype=torch.float64)[torch.arange(rows) % len(centres)]
    data = {n: where + noise * torch.randn(rows, 2, generator=g, dtype=torch.float64) for n in ("v", "w")}
    modalities = {n: Vector(2, encoder=Reader(), hidden=()) for n in data}
    return (lambda **o: CMVAE(modalities, 2, private_dim=1, **o).double()), data


def with_means(model, means, logits):
    model.prior.mu.data.copy_(torch.tensor(means, dtype=torch.float64))
    model.prior.logits.data.copy_(torch.tensor(logits, dtype=torch.float64))
    return model


MEANS = [[-4.0, 0.0], [4.0, 0.0], [0.0, 5.0], [0.2, 5.2], [9.0, 9.0]]


def test_pruning_keeps_as_many_clusters_as_the_data_have():
    make, data = spread([[-4.0, 0.0], [4.0, 0.0], [0.0, 5.0]])
    model = with_means(make(n_clusters=5), MEANS, [0.1, 0.2, 0.3, 0.0, -0.1])
    before = model.prior
    entropy = model.prune_clusters(data)
    assert list(entropy) == [5, 4, 3, 2] and min(entropy, key=entropy.get) == 3
    assert model.n_clusters == 3 and len(model.prior.weights) == 3
    torch.testing.assert_close(model.prior.mu, before.mu[:3])
    torch.testing.assert_close(model.prior.weights, torch.softmax(before.logits[:3], 0))
    assert len(before.weights) == 5  # nothing was written into the old parameters
    assert model.cluster(data).assignment.tolist() == [0, 1, 2] * 20
    model(data, seed=0).loss.backward()
    assert model.prior.mu.grad.shape == (3, 2)


def test_pruned_models_are_saved(tmp_path):
    _, data = spread([[-4.0, 0.0], [4.0, 0.0], [0.0, 5.0]])
    model = CMVAE({n: Vector(2) for n in data}, 2, private_dim=1, n_clusters=5, learned_scale=True).double()
    with_means(model, MEANS, [0.0] * 5).prune_clusters(data)
    again = CMVAE.load(model.save(tmp_path))
    assert again.n_clusters == model.n_clusters < 5
    torch.testing.assert_close(again(data, seed=1), model(data, seed=1), rtol=0, atol=0)


@pytest.mark.parametrize("family", ["laplace", "normal"])
def test_the_penalised_entropy_is_the_papers(family):
    """Written out, over what the rows have; the first round, and the second without the least cluster."""
    make, data = spread([[-4.0, 0.0], [1.0, 2.0], [0.0, 5.0]], rows=9, noise=0.5)
    model = with_means(make(n_clusters=4, family=family, beta=1.7), MEANS[:4], [0.1, 0.9, 0.3, 0.0])
    mask = torch.ones(9, 2, dtype=torch.bool)
    mask[0] = mask[1, 0] = mask[4, 1] = False
    data["v"][0], data["w"][4] = torch.nan, torch.nan
    kind = torch.distributions.Laplace if family == "laplace" else torch.distributions.Normal
    means, pi = model.prior.mu.detach(), model.prior.weights.detach()
    left, expected = [0, 1, 2, 3], {}
    while len(left) > 1:
        values, sizes = [], dict.fromkeys(left, 0)
        for b in range(1, 9):
            of_row, probabilities = [], []
            for m, name in enumerate(data):
                if mask[b, m]:
                    u = data[name][b]
                    joint = torch.stack(
                        [(pi[c] / pi[left].sum()).log() + kind(means[c], 1.0).log_prob(u).sum() for c in left]
                    )
                    p = joint.softmax(0)
                    entropy = -(p * p.log()).sum() / torch.tensor(float(len(left))).log()
                    of_row.append(1.7 * entropy - joint.logsumexp(0) / 2)
                    probabilities.append(p)
            values.append(sum(of_row) / len(of_row))
            sizes[left[int((sum(probabilities) / len(probabilities)).argmax())]] += 1
        expected[len(left)] = float(sum(values) / len(values))
        left.remove(min(left, key=lambda c: sizes[c]))
    for chunk in (1024, 2):
        other = with_means(make(n_clusters=4, family=family, beta=1.7), MEANS[:4], [0.1, 0.9, 0.3, 0.0])
        assert other.prune_clusters(data, mask, chunk=chunk) == pytest.approx(expected)


def test_nothing_to_prune():
    make, data = spread([[0.0, 0.0]])
    with pytest.raises(ValueError, match="prune_clusters: n_clusters is 1, expected 2 or more"):
        make(n_clusters=1).prune_clusters(data)
    with pytest.raises(ValueError, match="prune_clusters: no row has anything observed"):
        make(n_clusters=2).prune_clusters(data, torch.zeros(60, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="chunk is 0"):
        make(n_clusters=2).prune_clusters(data, chunk=0)
