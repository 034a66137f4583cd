"""Encoding, decoding, generation and the likelihood estimate."""

import math

import pytest
import torch
from torch import nn

from mmvae_fast.modalities import Image, Vector
from mmvae_fast.models import CVAE, MHVAE, MVAE, MixturePosterior, MoPoE, MultimodalVAE, Nexus, Posterior


def test_encode_is_the_models_product_of_experts(model, batch, mask):
    if not isinstance(model, (MVAE, MoPoE)):
        pytest.skip("fused otherwise: the naive losses have it")
    mus, logvars, observed = model.encode_experts(batch, mask)
    assert torch.equal(observed, mask)
    mu, logvar = model.encode(batch, mask)
    for b in range(6):
        members = [m for m in range(4) if mask[b, m]]
        prior = not members or isinstance(model, MVAE) or len(members) == 4
        precision = sum((torch.exp(-logvars[m][b]) for m in members), start=torch.full((5,), float(prior)).double())
        torch.testing.assert_close(logvar[b], -torch.log(precision))
        numerator = sum((mus[m][b] * torch.exp(-logvars[m][b]) for m in members), start=torch.zeros(5).double())
        torch.testing.assert_close(mu[b], numerator / precision)


def test_encode_experts_are_the_encoders_outputs(model, several, batch):
    if getattr(model, "sparse", False):
        pytest.skip("its experts' variances are tied to their means")
    del batch["text"]
    mus, logvars, mask = model.encode_experts(batch)
    assert mask.tolist() == [[True, False, True, True]] * 6
    assert torch.count_nonzero(mus[1]) == torch.count_nonzero(logvars[1]) == 0
    mu, logvar = model.encoders["audio"](batch["audio"])
    torch.testing.assert_close((mus[2], logvars[2]), (mu[:, :5], logvar[:, :5]))  # private dimensions come behind


def test_posterior_samples_have_its_moments_and_its_gradient():
    mu, logvar = torch.tensor([[1.0, -2.0]], requires_grad=True), torch.tensor([[0.0, -1.0]])
    q = Posterior(mu, logvar)
    z = q.sample(20000, seed=1)
    assert z.shape == (20000, 1, 2)
    torch.testing.assert_close(z.mean(0), mu, atol=0.03, rtol=0)
    torch.testing.assert_close(z.var(0), logvar.exp(), atol=0.03, rtol=0)
    assert torch.equal(q.sample(seed=1), q.sample(seed=1))
    q.sample(seed=1).sum().backward()
    assert mu.grad.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("leading", [(), (6,), (2, 6), (0,), (2, 0)])
def test_decode_takes_any_leading_shape(model, several, leading):
    z = torch.randn(*leading, 5, dtype=torch.float64)
    for name, x in model.decode(z).items():
        assert x.shape == (*leading, *model.modalities[name].shape)
    for name, p in model.decode(z, params=True).items():
        assert p.shape == (*leading, *model.modalities[name].param_shape)
    assert list(model.decode(z, to=["text", "image"])) == ["text", "image"]
    assert list(model.decode(z, to="text")) == ["text"]


def test_decode_is_the_prediction_of_its_parameters(model):
    z = torch.randn(3, 5, dtype=torch.float64)
    params, decoded = model.decode(z, params=True), model.decode(z)
    if isinstance(model, CVAE):  # its decoders take a condition as well: none here
        z = torch.cat([z, torch.zeros(3, 3, dtype=torch.float64)], -1)
    assert list(decoded) == list(model.decoders)
    for name in decoded:
        latent = z if isinstance(model, CVAE) else model._latent_for(name, z)
        torch.testing.assert_close(decoded[name], model.modalities[name].predict(params[name]))
        torch.testing.assert_close(params[name], model.decoders[name](latent))


def test_reconstruct_and_translate_decode_the_posterior_mean(model, several, batch, mask):
    if isinstance(model, Nexus):
        pytest.skip("an observed modality is reconstructed from its own latent: see test_nexus")
    if isinstance(model, CVAE):
        batch.pop("vector")  # its condition, which decode would have to be told: see its own tests
        mask = mask & torch.tensor([True, True, True, False])
    z = model.encode(batch, mask).point
    if not any(model.private_dims.values()):  # else see test_private.py
        torch.testing.assert_close(model.reconstruct(batch, mask), {n: x.detach() for n, x in model.decode(z).items()})
    assert list(model.reconstruct(batch, to="audio")) == ["audio"]
    only_text = {"text": batch["text"]}
    image = model.translate(only_text, "image")
    torch.testing.assert_close(image, model.decode(model.encode(only_text).point)["image"].detach())
    assert not image.requires_grad


def test_samples_are_decoded_normals(model, several):
    z = torch.randn(7, 5, dtype=torch.float64)
    torch.testing.assert_close(model.sample(z=z), {n: x.detach() for n, x in model.decode(z).items()})
    a, b = model.sample(7, seed=3), model.sample(7, seed=3)
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert not torch.equal(a["image"], model.sample(7, seed=4)["image"])
    # a sample depends on its row, not on how many were asked for
    torch.testing.assert_close(model.sample(3, seed=3)["audio"], a["audio"][:3])
    assert model.sample(0)["image"].shape == (0, 1, 2, 2)
    assert list(model.sample(1, to=["text"])) == ["text"]


def test_gradients_flow_through_encode_and_decode(model, several, batch):
    if model.stage == 2:
        pytest.skip("the posterior of complete rows is frozen")
    z = model.encode(batch).sample(seed=1)
    model.decode(z, "audio", params=True)["audio"].sum().backward()
    networks = getattr(model, "joint", model.encoders)  # a joint encoder is the posterior where all is observed
    assert all(p.grad is not None for p in networks.parameters())


def test_mode_and_gradient_switches_are_left_alone(model, batch):
    model.train()
    model.reconstruct(batch)
    model.sample(2)
    model.log_likelihood(batch, n_samples=2)
    assert model.training
    assert torch.is_grad_enabled()


class LinearEncoder(nn.Module):
    """Wider than the true posterior, or the importance weights have infinite variance."""

    def __init__(self, n, d):
        super().__init__()
        self.mu = nn.Linear(n, d)
        self.logvar = nn.Parameter(torch.full((d,), 1.5))

    def forward(self, x):
        return self.mu(x), self.logvar.expand(x.shape[0], -1)


@pytest.fixture(params=[MVAE, MoPoE])
def linear_gaussian(request):
    """x_m = W_m z + b_m + noise: log p(x) is known."""
    torch.manual_seed(0)
    modalities = {f"v{n}": Vector(n, scale=0.8, encoder=LinearEncoder(n, 2), decoder=nn.Linear(2, n)) for n in (3, 4)}
    return request.param(modalities, 2).double()


def exact(model, batch, names):
    w = torch.cat([model.decoders[n].weight for n in names])
    b = torch.cat([model.decoders[n].bias for n in names])
    covariance = w @ w.t() + 0.8**2 * torch.eye(len(b), dtype=torch.float64)
    return (
        torch.distributions.MultivariateNormal(b, covariance).log_prob(torch.cat([batch[n] for n in names], 1)).detach()
    )


def test_log_likelihood_converges_to_the_exact_one(linear_gaussian):
    model = linear_gaussian
    batch = {"v3": torch.randn(5, 3).double(), "v4": torch.randn(5, 4).double()}
    estimate = model.log_likelihood(batch, n_samples=20000, seed=0, chunk=5000)
    torch.testing.assert_close(estimate, exact(model, batch, ["v3", "v4"]), atol=0.05, rtol=0)
    mask = torch.tensor([[True, True], [True, False], [False, True], [False, False], [True, True]])
    estimate = model.log_likelihood(batch, mask, n_samples=20000, seed=0, chunk=5000)
    torch.testing.assert_close(estimate[1], exact(model, batch, ["v3"])[1], atol=0.05, rtol=0)
    torch.testing.assert_close(estimate[2], exact(model, batch, ["v4"])[2], atol=0.05, rtol=0)
    assert estimate[3] == 0  # log p of nothing


def test_log_likelihood_bounds_get_tighter(linear_gaussian):
    """One sample is the ELBO in expectation; more samples raise the bound towards log p(x)."""
    model = linear_gaussian
    batch = {"v3": torch.randn(1, 3).double(), "v4": torch.randn(1, 4).double()}
    rows = {name: x.expand(4000, -1) for name, x in batch.items()}  # independent noise in every row
    means = [model.log_likelihood(rows, n_samples=k, seed=1).mean() for k in (1, 5, 50)]
    assert means[0] < means[1] < means[2] < exact(model, batch, ["v3", "v4"])[0] + 0.01
    if isinstance(model, MVAE):  # its joint ELBO is that of the proposal
        elbo = model(rows, seed=2).elbo
        torch.testing.assert_close(means[0], elbo, atol=0.3, rtol=0)
        assert means[2] > elbo


def test_no_network_sees_more_samples_than_a_chunk(model, batch, mask):
    """Whatever stands between latents, too: what is at hand for all samples are their latents alone."""
    seen = []
    for part in model.modules():
        if isinstance(part, torch.nn.Linear):
            part.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].numel() // inputs[0].shape[-1]))
    model.log_likelihood(batch, mask, n_samples=9, seed=1, chunk=2)
    few = max(seen)
    seen.clear()
    model.log_likelihood(batch, mask, n_samples=200, seed=1, chunk=2)
    assert max(seen) == few
    if isinstance(model, (MHVAE, Nexus)):
        assert few == 2 * len(mask)
    seen.clear()
    model.log_likelihood(batch, mask, n_samples=200, seed=1, chunk=50)
    assert max(seen) >= 50 * len(mask)  # the hook sees what it should


def test_log_likelihood_depends_on_seed_but_not_on_chunk(model, batch, mask):
    a = model.log_likelihood(batch, mask, n_samples=10, seed=1, chunk=10)
    torch.testing.assert_close(model.log_likelihood(batch, mask, n_samples=10, seed=1, chunk=3), a)
    assert not torch.equal(model.log_likelihood(batch, mask, n_samples=10, seed=2), a)
    assert a.shape == (6,)
    assert not a.requires_grad


def test_log_likelihood_of_one_sample_is_the_log_weight(model, batch):
    if isinstance(model, (MHVAE, Nexus)):
        pytest.skip("its weight is that of a hierarchy of latents: see its own tests")
    if isinstance(model, CVAE):
        pytest.skip("given a condition: see its own tests")
    if any(model.private_dims.values()):
        pytest.skip("it has private latents: test_private.py computes it with them")
    q = model.encode(batch)
    z = q.sample(seed=9)
    kind = torch.distributions.Laplace if getattr(model, "family", "") == "laplace" else torch.distributions.Normal
    if isinstance(q, MixturePosterior):
        densities = [kind(m, (v / 2).exp()).log_prob(z).sum(-1) for m, v in zip(q.mus, q.logvars, strict=True)]
        log_q = torch.stack(densities).logsumexp(0) - math.log(4)
    else:
        log_q = kind(q.mu, (q.logvar / 2).exp()).log_prob(z).sum(-1)
    log_prior = kind(0.0, 1.0).log_prob(z).sum(-1)
    params = model.decode(z, params=True)
    score = sum(m.log_likelihood(batch[n], params[n]) for n, m in model.modalities.items())
    expected = (score + log_prior - log_q).detach()
    torch.testing.assert_close(model.log_likelihood(batch, n_samples=1, seed=9), expected)


@pytest.mark.parametrize("cls", [MVAE, MoPoE])
@pytest.mark.parametrize("logvar", [0.0, -20.0, -60.0, -100.0])
def test_log_likelihood_of_peaked_posteriors(cls, logvar):
    """In float32, z - mu is rounding noise or 0 there, and exp(-logvar) overflows."""

    class Peaked(nn.Module):
        def forward(self, x):
            return 3 * x, torch.full_like(x, logvar)

    torch.manual_seed(0)
    model = cls({"v": Vector(3, encoder=Peaked()), "w": Vector(3, encoder=Peaked())}, 3)
    batch = {"v": torch.randn(4, 3), "w": torch.randn(4, 3)}
    single = model.log_likelihood(batch, n_samples=20, seed=1)
    double = model.double().log_likelihood({n: x.double() for n, x in batch.items()}, n_samples=20, seed=1)
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-4)


def test_autocast_with_something_absent():
    """The experts of what is absent have the type of those that are there."""
    torch.manual_seed(0)
    for cls in (MVAE, MoPoE):
        model = cls({"v": Vector(3), "w": Vector(2)}, 2)
        batch = {"w": torch.randn(4, 2)}
        with torch.autocast("cpu", torch.bfloat16):
            q = model.encode(batch)
            loss = model(batch, seed=1).loss
            assert q.mu.dtype == torch.bfloat16
            assert model.decode(q.mu, "v")["v"].shape == (4, 3)
            assert torch.isfinite(model.log_likelihood(batch, n_samples=3)).all()
        loss.backward()
        torch.testing.assert_close(loss.float(), model(batch, seed=1).loss, rtol=0.03, atol=0.03)


def test_compiled_with_something_absent():
    """Without graph breaks, with gradients: the training step, and encoding."""
    torch.manual_seed(0)
    model = MoPoE({n: Vector(2, hidden=()) for n in ("v", "w", "x")}, 2)
    batch = {"w": torch.randn(4, 2)}
    torch._dynamo.reset()
    for function in (lambda m: m(batch, seed=1).loss, lambda m: sum(t.sum() for t in m.encode(batch))):
        grads = []
        for call in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
            model.zero_grad()
            call(model).backward()
            grads.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        torch.testing.assert_close(grads[1], grads[0])


def test_half_and_single_precision_models(make_model, several, batch):
    model = make_model().float()
    single = {n: x.float() if x.is_floating_point() else x for n, x in batch.items()}
    reference = make_model()(batch, seed=1).loss
    torch.testing.assert_close(model(single, seed=1).loss.double(), reference, rtol=1e-4, atol=0)
    with pytest.raises(TypeError, match=r"modality 'image': got torch.float64, expected torch.float32"):
        model(batch)


def test_the_base_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        MultimodalVAE({"v": Vector(2)}, 2)


def test_many_samples_of_a_convolutional_decoder_are_decoded_in_parts():
    """Whole batches at a time, which batch norm sees; the same result and gradients."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 12), nn.Unflatten(-1, (3, 2, 2)), nn.Conv2d(3, 1, 1)).double()
    model = MVAE({"image": Image((1, 2, 2), decoder=network)}, 2).double()
    z = torch.randn(20, 100, 2, dtype=torch.float64, requires_grad=True)
    sizes = []
    network.register_forward_hook(lambda module, args, out: sizes.append(len(out)))
    params = model.decode(z, params=True)["image"]
    assert sizes == [500] * 4
    expected = network(z.reshape(-1, 2)).reshape(20, 100, 1, 2, 2)
    torch.testing.assert_close(params, expected)
    grads = [torch.autograd.grad(p.square().sum(), [z, *network.parameters()]) for p in (params, expected)]
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_log_likelihood_in_half_types(make_model, batch, mask, dtype):
    """About what the same numbers give in float64; of nothing, exactly 0."""
    model = make_model().to(dtype)
    data = {n: x.to(dtype) if x.is_floating_point() else x for n, x in batch.items()}
    estimate = model.log_likelihood(data, mask, n_samples=20, seed=1)
    assert estimate.dtype == torch.float32
    assert torch.count_nonzero(estimate[~mask.any(1)]) == 0
    data = {n: x.double() if x.is_floating_point() else x for n, x in data.items()}
    exact = model.double().log_likelihood(data, mask, n_samples=20, seed=1)
    torch.testing.assert_close(estimate.double(), exact, rtol=0.03, atol=0.15)
