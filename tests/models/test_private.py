"""Private latents beside the shared one: decoding, reconstruction, generation and likelihoods."""

import math

import pytest
import torch
from conftest import MODELS, PRIVATE
from torch import nn

from mmvae_fast.modalities import Vector
from mmvae_fast.models import CMVAE, DMVAE, MMVAE, MMVAEPlus, MoPoE, MultimodalVAE
from mmvae_fast.models import MODELS as REGISTRY
from mmvae_fast.models.seeds import branch
from mmvae_fast.reference import philox_laplace, philox_normal, seed_tensor

D = 5
KINDS = ("MoPoE private", "MMVAE+", "MMVAE+ iwae", "CMVAE", "CMVAE iwae", "DMVAE")


@pytest.fixture(params=KINDS)
def model(request):
    torch.manual_seed(3)
    model = MODELS[request.param]().double()
    for name, p in model.named_parameters():
        if "prior" in name and name.endswith("logits"):  # so that scales and weights differ
            p.data.copy_(torch.linspace(-1, 1, p.numel()))
    return model


def family(model):
    return getattr(model, "family", "normal")


def distribution(model, mu, logvar):
    kind = torch.distributions.Laplace if family(model) == "laplace" else torch.distributions.Normal
    return torch.distributions.Independent(kind(mu, torch.exp(logvar / 2)), 1)


def private_parts(model, name, x):
    mu, logvar = model.encoders[name](x)
    return mu[:, D:], logvar[:, D:]


# --- encode -----------------------------------------------------------------------------------------------------------


def test_private_posteriors_are_the_encoders_or_the_prior(model, batch, mask):
    private = model.encode_private(batch, mask)
    assert list(private) == [name for name, p in model.private_dims.items() if p]
    for name, q in private.items():
        observed = mask[:, list(model.modalities).index(name)]
        own = distribution(model, *private_parts(model, name, batch[name]))
        zero = torch.zeros(len(mask), model.private_dims[name], dtype=torch.float64)
        prior = distribution(model, zero, zero)
        torch.testing.assert_close(q.mu, torch.where(observed[:, None], own.mean, prior.mean))
        torch.testing.assert_close(q.logvar, torch.where(observed[:, None], own.variance, prior.variance).log())
        w = q.sample(4, seed=1)
        assert w.shape == (4, len(mask), model.private_dims[name])
        torch.testing.assert_close(q.log_prob(w), torch.where(observed, own.log_prob(w), prior.log_prob(w)))
        torch.testing.assert_close(q.sample(4, seed=1), w, rtol=0, atol=0)


def test_private_posteriors_of_what_is_not_in_the_batch(model, batch):
    """Left out of the batch is missing in every row; NaN in a missing row is never seen."""
    without = model.encode_private({"text": batch["text"], "image": batch["image"]})
    names = list(model.modalities)
    audio = names.index("audio"), names.index("vector")
    mask = torch.tensor([[i not in audio for i in range(4)]]).expand(6, -1)
    batch = {**batch, "vector": torch.full_like(batch["vector"], torch.nan)}
    for name, q in model.encode_private(batch, mask).items():
        torch.testing.assert_close(q.mu, without[name].mu)
        torch.testing.assert_close(q.logvar, without[name].logvar)
        assert q.mu.isfinite().all() and q.logvar.isfinite().all()


def test_private_posteriors_have_gradients(model, batch):
    sum(q.sample(seed=1).sum() for q in model.encode_private(batch).values()).backward()
    for name, p in model.private_dims.items():
        assert not p or all(w.grad is not None for w in model.encoders[name].parameters())


@pytest.mark.parametrize("kind", ["MoPoE", "MMVAE", "JMVAE", "Nexus", "CVAE"])
def test_without_private_latents_there_are_no_posteriors(kind, batch):
    assert MODELS[kind]().double().encode_private(batch) == {}


# --- decode -----------------------------------------------------------------------------------------------------------


def test_decoders_take_shared_latents_alone_or_with_private_ones(model):
    for name, p in model.private_dims.items():
        z = torch.randn(2, 3, D + p, dtype=torch.float64)
        params = model.decode(z, name, params=True)[name]
        assert params.shape == (2, 3, *model.modalities[name].param_shape)
        torch.testing.assert_close(params[1], model.decoders[name](z[1]))
        alone = model.decode(z[..., :D], name, params=True)[name]
        mean = torch.cat([z[1, :, :D], torch.zeros(3, p, dtype=torch.float64)], -1)
        torch.testing.assert_close(alone[1], model.decoders[name](mean))
    size = D + model.private_dims["image"]
    message = rf"z has shape \[2, 4\], expected \[..., 5\] or \[..., {size}\] with its private latent"
    with pytest.raises(ValueError, match=message):
        model.decode(torch.randn(2, 4).double(), "image")


def test_sample_from_given_latents(model):
    z = torch.randn(4, D + model.private_dims["vector"], dtype=torch.float64)
    torch.testing.assert_close(
        model.sample(z=z, to="vector")["vector"], model.decode(z, "vector")["vector"].detach(), rtol=0, atol=0
    )


# --- reconstruct, translate -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_reconstruct_decodes_what_each_row_knows_of_its_private_latent(model, batch, mask, masked):
    mask = mask if masked else torch.ones_like(mask)
    u = model.encode(batch, mask).point
    reconstructed = model.reconstruct(batch, mask)
    for i, (name, p) in enumerate(model.private_dims.items()):
        for b in range(6):
            w = private_parts(model, name, batch[name][b : b + 1])[0][0] if mask[b, i] else u.new_zeros(p)
            expected = model.modalities[name].predict(model.decoders[name](torch.cat([u[b], w])[None]))[0]
            torch.testing.assert_close(reconstructed[name][b], expected.detach())


def test_translate_decodes_the_mean_of_the_private_prior_or_a_draw_of_it(model, batch):
    image = batch.pop("image")
    u = model.encode(batch).point
    expected = model.decode(u, "image")["image"].detach()
    torch.testing.assert_close(model.translate(batch, "image"), expected)
    drawn = model.translate(batch, "image", seed=4)
    assert not torch.allclose(drawn, expected)
    torch.testing.assert_close(model.translate(batch, "image", seed=4), drawn, rtol=0, atol=0)
    w = model.prior_private("image", 6, seed_tensor(4)).double()
    torch.testing.assert_close(drawn, model.decode(torch.cat([u, w], -1), "image")["image"].detach())
    # what is there is not drawn, whether all rows have it, or some
    batch["image"] = image
    torch.testing.assert_close(model.translate(batch, "image", seed=4), model.translate(batch, "image"))
    some = torch.tensor([True, False] * 3)
    drawn, mean = (model.translate(batch, "image", {"image": some}, seed=s) for s in (4, None))
    torch.testing.assert_close(drawn[some], mean[some])
    assert not torch.isclose(drawn[~some], mean[~some]).all((1, 2, 3)).any()


# --- sample -----------------------------------------------------------------------------------------------------------


def test_samples_draw_private_latents_from_their_priors(model):
    received = {}

    def keep(name):
        return lambda _, inputs: received.update({name: inputs[0]})

    for name in model.modalities:
        model.decoders[name].register_forward_pre_hook(keep(name))
    n = 40_000
    model.sample(n, seed=1)
    unit = 2.0 if family(model) == "laplace" else 1.0
    shared = received["image"][:, :D]
    columns = []
    for name, p in model.private_dims.items():
        torch.testing.assert_close(received[name][:, :D], shared, rtol=0, atol=0)
        if p == 0:
            assert received[name].shape == (n, D)
            continue
        w = received[name][:, D:]
        assert w.shape == (n, p)
        torch.testing.assert_close(w.mean(0), torch.zeros(p).double(), atol=0.03, rtol=0)
        torch.testing.assert_close(w.var(0), torch.full((p,), unit).double(), atol=0.1, rtol=0)
        columns.append(w)
    if isinstance(model, CMVAE):
        torch.testing.assert_close(shared.mean(0), model.prior.mean.detach(), atol=0.03, rtol=0)
        torch.testing.assert_close(shared.var(0), model.prior.variance.detach(), atol=0.1, rtol=0)
    together = torch.corrcoef(torch.cat([shared - shared.mean(0), *columns], 1).t())
    if not isinstance(model, CMVAE):  # whose shared dimensions depend on each other
        together -= torch.eye(len(together))
        assert together.abs().max() < 0.03
    else:
        assert together[D:, :D].abs().max() < 0.03


def test_samples_from_auxiliary_priors(batch):
    torch.manual_seed(0)
    model = MODELS["MMVAE+"](generate_from="auxiliary").double()
    model.auxiliary_priors["image"].logits.data.copy_(torch.tensor([0.0, 1.0, 2.0]))
    w = model.prior_private("image", 50_000, seed_tensor(1))
    torch.testing.assert_close(
        w.abs().mean(0).double(), model.auxiliary_priors["image"].scale.detach(), atol=0.05, rtol=0
    )
    assert model.options()["generate_from"] == "auxiliary"
    with pytest.raises(ValueError, match=r"generate_from is 'r', expected one of \('prior', 'auxiliary'\)"):
        MODELS["MMVAE+"](generate_from="r")


# --- log_likelihood ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_log_likelihood_by_brute_force(model, batch, mask, masked):
    mask, samples, seed = mask if masked else torch.ones_like(mask), 4, 9
    noise = philox_laplace if family(model) == "laplace" else philox_normal
    u = model.encode(batch, mask).sample(samples, seed)
    estimate = model.log_likelihood(batch, mask, n_samples=samples, seed=seed, chunk=3)
    eps = {
        name: noise(branch(seed_tensor(seed), 100_000 + i), 6, p, samples, dtype=torch.float64)
        for i, (name, p) in enumerate(model.private_dims.items())
        if p
    }
    for b in range(6):
        there = [name for i, name in enumerate(model.modalities) if mask[b, i]]
        row = {name: batch[name][b : b + 1] for name in there}
        if not there:
            assert estimate[b] == 0
            continue
        log_weights = []
        for k in range(samples):
            z = u[k, b]
            if isinstance(model, MMVAE):
                experts = [[t[:, :D] for t in model.encoders[n](row[n])] for n in there]
                log_q = torch.logsumexp(torch.cat([distribution(model, *q).log_prob(z) for q in experts]), 0)
                log_q = log_q - math.log(len(there))
            else:
                log_q = distribution(model, *(t[b] for t in model.encode(batch, mask))).log_prob(z)
            total = model.prior.log_prob(z) - log_q
            for n in there:
                latent = z
                if model.private_dims[n]:
                    mu, logvar = (t[0] for t in private_parts(model, n, row[n]))
                    w = mu + torch.exp(logvar / 2) * eps[n][k, b]
                    total = total - distribution(model, mu, logvar).log_prob(w)
                    total = total + distribution(model, torch.zeros_like(mu), torch.zeros_like(mu)).log_prob(w)
                    latent = torch.cat([z, w])
                params = model.decoders[n](latent[None])
                total = total + model.modalities[n].log_likelihood(row[n], params)[0]
            log_weights.append(total)
        expected = torch.logsumexp(torch.stack(log_weights), 0) - math.log(samples)
        torch.testing.assert_close(estimate[b], expected.detach())


class LinearEncoder(nn.Module):
    def __init__(self, n, d):
        super().__init__()
        self.mu = nn.Linear(n, d)
        self.logvar = nn.Parameter(torch.full((d,), 1.0))

    def forward(self, x):
        return self.mu(x), self.logvar.expand(x.shape[0], -1)


LINEAR = {
    "MoPoE": lambda m: MoPoE(m, 2, private_dim={"v3": 1, "v4": 2}),
    "DMVAE": lambda m: DMVAE(m, 2, private_dim={"v3": 1, "v4": 2}),
    "MMVAE+": lambda m: MMVAEPlus(m, 2, family="normal", private_dim={"v3": 1, "v4": 2}),
}


@pytest.fixture(params=LINEAR)
def linear_gaussian(request):
    """x_m = W_m (u, w_m) + b_m + noise."""
    torch.manual_seed(0)
    sizes = {3: 3, 4: 4}  # dimensions of a modality, and of its latents: D + P
    modalities = {
        f"v{n}": Vector(n, scale=0.8, encoder=LinearEncoder(n, d), decoder=nn.Linear(d, n)) for n, d in sizes.items()
    }
    return LINEAR[request.param](modalities).double()


def exact(model, batch, names):
    means = torch.cat([model.decoders[n].bias for n in names])
    covariance = 0.8**2 * torch.eye(len(means)).double()
    shared = torch.cat([model.decoders[n].weight[:, :2] for n in names])
    private = torch.block_diag(*(model.decoders[n].weight[:, 2:] @ model.decoders[n].weight[:, 2:].t() for n in names))
    normal = torch.distributions.MultivariateNormal(means, covariance + shared @ shared.t() + private)
    return normal.log_prob(torch.cat([batch[n] for n in names], 1)).detach()


def test_log_likelihood_converges_to_the_exact_one(linear_gaussian):
    model = linear_gaussian
    batch = {"v3": torch.randn(5, 3).double(), "v4": torch.randn(5, 4).double()}
    both, one, other = (exact(model, batch, names) for names in (["v3", "v4"], ["v3"], ["v4"]))
    estimate = model.log_likelihood(batch, n_samples=40000, seed=0, chunk=10000)
    torch.testing.assert_close(estimate, both, atol=0.06, rtol=0)
    mask = torch.tensor([[True, True], [True, False], [False, True], [False, False], [True, True]])
    estimate = model.log_likelihood(batch, mask, n_samples=40000, seed=0, chunk=10000)
    expected = torch.stack([both[0], one[1], other[2], torch.zeros(()).double(), both[4]])
    torch.testing.assert_close(estimate, expected, atol=0.06, rtol=0)
    given = model.log_likelihood(batch, n_samples=40000, seed=0, chunk=10000, given="v3")
    torch.testing.assert_close(given, both - one, atol=0.1, rtol=0)


def test_bounds_stay_below_the_likelihood(linear_gaussian):
    model = linear_gaussian
    batch = {"v3": torch.randn(1, 3).double(), "v4": torch.randn(1, 4).double()}
    rows = {name: x.expand(3000, -1) for name, x in batch.items()}
    log_p = exact(model, batch, ["v3", "v4"])[0]
    assert model(rows, seed=2).elbo < log_p
    means = [model.log_likelihood(rows, n_samples=k, seed=1).mean() for k in (1, 10)]
    assert means[0] < means[1] < log_p + 0.05
    if isinstance(model, DMVAE):  # every summand is an ELBO
        assert -model(rows, seed=2).loss / 3 < log_p
        torch.testing.assert_close(model(rows, seed=2).elbo, means[0], atol=0.3, rtol=0)


@pytest.mark.parametrize("logvar", [-20.0, -60.0])
def test_log_likelihood_of_peaked_private_posteriors(logvar):
    class Peaked(nn.Module):
        def forward(self, x):
            return 3 * x, torch.full_like(x, logvar)

    torch.manual_seed(0)
    model = DMVAE({"v": Vector(4, encoder=Peaked()), "w": Vector(4, encoder=Peaked())}, 2, private_dim=2)
    batch = {"v": torch.randn(4, 4), "w": torch.randn(4, 4)}
    single = model.log_likelihood(batch, n_samples=20, seed=1)
    double = model.double().log_likelihood({n: x.double() for n, x in batch.items()}, n_samples=20, seed=1)
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-3)


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [MoPoE, MMVAEPlus, CMVAE, DMVAE])
@pytest.mark.parametrize(
    ("private_dim", "message"),
    [
        (-1, "private_dim of modality 'v' is -1, expected an integer, 0 or more"),
        (1.0, "private_dim of modality 'v' is 1.0"),
        ({"v": 1}, r"private_dim names \['v'\], expected a number for each of \['v', 'w'\]"),
        ({"v": 1, "x": 1}, "private_dim names"),
        ({"v": 1, "w": True}, "private_dim of modality 'w' is True"),
    ],
)
def test_private_dims_that_cannot_be(cls, private_dim, message):
    with pytest.raises(ValueError, match=message):
        cls({"v": Vector(2), "w": Vector(2)}, 2, private_dim=private_dim)


def test_private_dims_of_a_saved_model(tmp_path):
    modalities = {"v": Vector(2), "w": Vector(2)}
    for cls, default in ((MoPoE, 0), (MMVAEPlus, 2), (CMVAE, 2), (DMVAE, 2)):
        assert REGISTRY[cls.__name__] is cls
        assert cls(modalities, 2).options()["private_dim"] == default
        for given in (1, {"v": 3, "w": 0}):
            model = cls(modalities, 2, private_dim=given)
            assert model.options()["private_dim"] == given
            again = MultimodalVAE.load(model.save(tmp_path / "m"))
            assert again.private_dims == model.private_dims


def test_networks_that_forget_the_private_dimensions():
    model = DMVAE({"v": Vector(4, encoder=LinearEncoder(4, 2)), "w": Vector(3)}, 2, private_dim=1)
    with pytest.raises(
        ValueError, match=r"modality 'v': its encoder returned mu of shape \[5, 2\], expected .*\[5, 3\]"
    ):
        model({"v": torch.randn(5, 4)})


def test_private_dims_used(batch):
    assert PRIVATE["text"] == 0  # a modality without, in every test of this folder
    assert MODELS["DMVAE"]().private_dims == PRIVATE


@pytest.mark.parametrize("kind", [*KINDS, "MMVAE"])
def test_half_precision_and_autocast(kind, batch, mask):
    model = MODELS[kind]()
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype)
        data = {n: x.to(dtype) if x.is_floating_point() else x for n, x in batch.items()}
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            model(data, mask, seed=1).loss.backward()
            assert torch.isfinite(model.log_likelihood(data, mask, 3)).all()
            assert model.translate(data, "image", mask, seed=1).isfinite().all()
        assert model.sample(2)["vector"].dtype == dtype
