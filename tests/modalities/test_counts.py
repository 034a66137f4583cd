"""Count likelihoods against torch.distributions, at the ends of their range, and the modality around them."""

import json
import math

import pytest
import torch
from torch import distributions, nn

from mmvae_fast.modalities import Counts, Modality, Vector
from mmvae_fast.modalities.counts import negative_binomial
from mmvae_fast.models import MVAE

LIKELIHOODS = ["poisson", "negative_binomial", "zero_inflated_negative_binomial"]


def expected(x, params, kind, library):
    """Element by element, from torch's distributions, in float64."""
    mean = params[..., 0, :].exp()
    if library == "observed":
        mean = params[..., 0, :].softmax(-1) * x.sum(-1, keepdim=True).clamp(min=1)
    if kind == "poisson":
        return distributions.Poisson(mean).log_prob(x).sum(-1)
    theta = params[..., 1, :].exp()
    log_p = distributions.NegativeBinomial(theta, logits=mean.log() - theta.log(), validate_args=False).log_prob(x)
    if kind == "negative_binomial":
        return log_p.sum(-1)
    dropout = params[..., 2, :].sigmoid()
    return torch.log(dropout * (x == 0) + (1 - dropout) * log_p.exp()).sum(-1)


@pytest.fixture
def x():
    torch.manual_seed(0)
    counts = torch.poisson(torch.full((5, 7), 3.0).double())
    counts[1] = 0  # an empty cell
    counts[2, 3] = 400
    return counts


def params_of(modality, *leading):
    torch.manual_seed(1)
    return torch.randn(*leading, *modality.param_shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("library", ["model", "observed"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_log_likelihood_and_gradient_are_those_of_torch_distributions(x, likelihood, library):
    modality = Counts(7, likelihood=likelihood, library=library)
    params = params_of(modality, 2, 5)
    log_p, reference = modality.log_likelihood(x, params), expected(x, params, likelihood, library)
    assert log_p.shape == (2, 5)
    torch.testing.assert_close(log_p, reference)
    (own,), (other,) = (torch.autograd.grad(t.sum(), params) for t in (log_p, reference))
    torch.testing.assert_close(own, other)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_probabilities_sum_to_one(likelihood):
    modality = Counts(1, likelihood=likelihood)
    params = params_of(modality, 1).detach()
    every = torch.arange(2000, dtype=torch.float64)[:, None]
    total = modality.log_likelihood(every, params.expand(2000, -1, -1)).exp().sum()
    torch.testing.assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_missing_row_counts_nothing_whatever_it_holds(x, likelihood):
    modality = Counts(7, likelihood=likelihood, library="observed")
    params = params_of(modality, 5)
    mask = torch.tensor([True, False, True, False, True])
    dirty = torch.where(mask[:, None], x, float("nan"))
    log_p = modality.log_likelihood(dirty, params, mask)
    torch.testing.assert_close(log_p, torch.where(mask, modality.log_likelihood(x, params), 0.0))
    (gradient,) = torch.autograd.grad(log_p.sum(), params)
    assert torch.isfinite(gradient).all()
    assert torch.count_nonzero(gradient[~mask]) == 0


@pytest.mark.parametrize("log_theta", [-20.0, 0.0, 2.77, 2.78, 10.0, 20.0, 40.0])
@pytest.mark.parametrize("log_mean", [-30.0, 0.0, 8.0])
@pytest.mark.parametrize("count", [0.0, 1.0, 3000.0])
def test_single_precision_is_exact_at_the_ends(count, log_mean, log_theta):
    """Against exact sums, lgamma(x + theta) - lgamma(theta) = sum of log(theta + i); float32's lgamma would be off by
    whole nats at theta = e^10."""
    theta, mean = math.exp(log_theta), math.exp(log_mean)
    ratio = math.fsum(math.log(theta + i) for i in range(int(count)))
    exact = ratio - math.lgamma(count + 1) - theta * math.log1p(mean / theta)
    exact += count * (log_mean - math.log(theta + mean))
    values = [torch.tensor(v, requires_grad=True) for v in (log_mean, log_theta)]
    log_p = negative_binomial(torch.tensor(count), *values)
    torch.testing.assert_close(log_p.item(), exact, rtol=2e-6, atol=3e-3 if count > 1 else 1e-5)
    assert all(torch.isfinite(g) for g in torch.autograd.grad(log_p, values))


def test_the_dispersion_may_be_anything():
    log_mean = torch.tensor([0.0, 0.0, 3.0, 3.0])
    count = torch.tensor([0.0, 2.0, 0.0, 20.0])
    poisson = distributions.Poisson(log_mean.exp()).log_prob(count)
    log_theta = torch.full((4,), 200.0, requires_grad=True)
    log_p = negative_binomial(count, log_mean, log_theta)
    torch.testing.assert_close(log_p, poisson)
    log_p = log_p + negative_binomial(count, log_mean, -log_theta)
    assert torch.isfinite(log_p).all()
    assert torch.isfinite(torch.autograd.grad(log_p.sum(), log_theta)[0]).all()


def test_half_types_are_computed_in_single_precision(x):
    modality = Counts(7, likelihood="negative_binomial")
    params = params_of(modality, 5).detach().bfloat16()
    log_p = modality.log_likelihood(x.bfloat16(), params)
    assert log_p.dtype == torch.float32
    torch.testing.assert_close(log_p, modality.log_likelihood(x.bfloat16().float(), params.float()))


@pytest.mark.parametrize("library", ["model", "observed"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_predictions_are_means(likelihood, library):
    modality = Counts(3, likelihood=likelihood, library=library)
    params = params_of(modality, 1).detach()
    mean = modality.predict(params)
    if library == "model":
        every = torch.arange(3000, dtype=torch.float64)[:, None].expand(-1, 3)
        alone = Counts(1, likelihood=likelihood)
        for i in range(3):
            log_p = alone.log_likelihood(every[:, :1], params[..., i : i + 1].expand(3000, -1, -1))
            torch.testing.assert_close(mean[0, i], (log_p.exp() * every[:, 0]).sum())
    else:
        dropout = params[0, 2].sigmoid() if len(params[0]) == 3 else 0.0
        torch.testing.assert_close((mean / (1 - dropout)).sum(), torch.ones(()).double())


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_networks(likelihood):
    modality = Counts(4, likelihood=likelihood, hidden=(6,))
    x = torch.poisson(torch.full((3, 4), 2.0))
    encoder = modality.make_encoder(2)
    vector = Vector(4, hidden=(6,)).make_encoder(2)
    vector.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(encoder(x), vector(x.log1p()))
    decoder = modality.make_decoder(2)
    params = decoder(torch.randn(5, 2))
    assert params.shape == (5, *modality.param_shape)
    assert decoder(torch.randn(0, 2)).shape == (0, *modality.param_shape)
    if likelihood != "poisson":
        decoder.log_dispersion.data = torch.arange(4.0)
        torch.testing.assert_close(decoder(torch.randn(5, 2))[:, 1], torch.arange(4.0).expand(5, 4))
    own = nn.Linear(2, 4)
    assert Counts(4, decoder=own).make_decoder(2) is own
    assert Counts(4, encoder=own).make_encoder(2) is own


def test_config_round_trip():
    modality = Counts(4, likelihood="zero_inflated_negative_binomial", library="observed", hidden=(3,))
    again = Modality.from_config(json.loads(json.dumps(modality.config())))
    assert type(again) is Counts
    assert again.config() == modality.config()
    assert (again.library, again.param_shape, again.size) == ("observed", (3, 4), 4)


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="likelihood is 'normal', expected one of"):
        Counts(3, likelihood="normal")
    with pytest.raises(ValueError, match="library is 'learned', expected 'model' or 'observed'"):
        Counts(3, library="learned")
    modality = Counts(2)
    modality.check_values("rna", torch.tensor([[0.0, 7.0]]))
    modality.check_values("rna", torch.zeros(0, 2))
    for bad in (-1.0, 0.5):
        with pytest.raises(ValueError, match="modality 'rna': holds negative or broken numbers, expected counts"):
            modality.check_values("rna", torch.tensor([[bad, 0.0]]))
    with pytest.raises(ValueError, match="NaN or infinite"):
        modality.check_values("rna", torch.tensor([[float("nan"), 0.0]]))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_model_learns_from_counts_with_rows_missing(likelihood, tmp_path):
    torch.manual_seed(0)
    model = MVAE({"rna": Counts(5, likelihood=likelihood, hidden=(8,)), "w": Vector(2, hidden=(8,))}, 2)
    rate = torch.exp(torch.randn(64, 1) + torch.linspace(-1, 2, 5))
    batch = {"rna": torch.poisson(rate), "w": torch.randn(64, 2)}
    mask = {"rna": torch.rand(64) < 0.7}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for step in range(60):
        optimizer.zero_grad()
        loss = model(batch, mask, seed=step).loss
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    again = MVAE.load(model.save(tmp_path))
    torch.testing.assert_close(again(batch, mask, seed=1), model(batch, mask, seed=1), rtol=0, atol=0)
    assert again.reconstruct(batch)["rna"].shape == (64, 5)


def test_a_model_of_counts_compiles_into_one_graph():
    torch.manual_seed(0)
    model = MVAE({"rna": Counts(5, likelihood="zero_inflated_negative_binomial", hidden=(8,))}, 2)
    batch, mask = {"rna": torch.poisson(torch.ones(6, 5))}, torch.arange(6)[:, None] > 2
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(batch, mask, seed=1), model(batch, mask, seed=1))


def test_a_model_of_counts_is_exported(tmp_path):
    for extra in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(extra)
    from mmvae_fast.onnx import export_onnx

    torch.manual_seed(0)
    likelihood = "zero_inflated_negative_binomial"
    export_onnx(MVAE({"rna": Counts(3, likelihood=likelihood, hidden=(4,))}, 2), tmp_path / "bundle")  # which verifies


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_log_means_beyond_float32(likelihood):
    """e^89 is infinite in float32: neither the likelihood, nor its gradient, nor a prediction may be."""
    modality = Counts(2, likelihood=likelihood)
    params = torch.zeros(3, *modality.param_shape)
    params[:, 0] = torch.tensor([[79.0, 89.0], [120.0, -120.0], [1e30, 5.0]])
    params.requires_grad_()
    log_p = modality.log_likelihood(torch.tensor([[3.0, 0.0]]).expand(3, -1), params)
    log_p.sum().backward()
    assert torch.isfinite(log_p).all() and torch.isfinite(params.grad).all()
    assert torch.isfinite(modality.predict(params)).all()
