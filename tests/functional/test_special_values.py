"""Values at the ends of what a function takes: infinities, weights and scales of any size, logits far from 0."""

from __future__ import annotations

import math

import pytest
import torch
from expert_cases import DEVICES, assert_close
from function_cases import gradients

from mmvae_fast import functional, reference

pytestmark = pytest.mark.skipif(not functional._ext.LOADED, reason="built without kernels")
on_devices = pytest.mark.parametrize("device", DEVICES)
in_both = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
of_both = pytest.mark.parametrize("module", [functional, reference], ids=["kernel", "twin"])

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def same(function, *tensors, dtype=torch.float32, device="cpu"):
    """Values and gradients of functional's function on the device against the twin's in float64; both are returned."""
    mine = [None if t is None else t.to(dtype).to(device).requires_grad_() for t in tensors]
    exact = [None if t is None else t.detach().cpu().double().requires_grad_() for t in mine]
    actual, expected = (
        [getattr(module, function)(*arguments)] for module, arguments in ((functional, mine), (reference, exact))
    )
    grads, exact_grads = (
        gradients(out, [t for t in inputs if t is not None]) for out, inputs in ((actual, mine), (expected, exact))
    )
    for a, e in zip([*actual, *grads], [*expected, *exact_grads], strict=True):
        assert_close(a, e, TOLERANCE[dtype], function)
    return actual[0], grads


@on_devices
@in_both
@pytest.mark.parametrize("function", ["gaussian_kl", "laplace_kl"])
@pytest.mark.parametrize("where", ["logvar", "prior_logvar"])
@pytest.mark.parametrize("value", [math.inf, 100.0, -100.0])
def test_a_kl_that_has_no_finite_scale(function, where, value, dtype, device):
    mu, prior_mu = torch.randn(2, 3, 5, dtype=torch.float64).unbind(0)
    logvar, prior_logvar = torch.zeros(2, 3, 5, dtype=torch.float64).unbind(0)
    {"logvar": logvar, "prior_logvar": prior_logvar}[where][0, 3] = value
    kl, grads = same(function, mu, logvar, prior_mu, prior_logvar, dtype=dtype, device=device)
    if value == math.inf:
        assert kl[0] == math.inf
    assert kl[1:].isfinite().all() and not any(g.isnan().any() for g in grads)
    if where == "logvar":
        same(function, mu, logvar, dtype=dtype, device=device)
    same(function, prior_mu, logvar, prior_mu, prior_logvar, dtype=dtype, device=device)


@on_devices
@pytest.mark.parametrize("function", ["gaussian_kl", "laplace_kl"])
def test_a_point_is_infinitely_far_from_everything(function, device):
    mu, logvar = torch.ones(2, 5), torch.zeros(2, 5)
    logvar[0, 1] = -math.inf
    for module in (functional, reference):
        kl = getattr(module, function)(mu.to(device), logvar.to(device))
        assert kl[0] == math.inf and kl[1].isfinite()


@on_devices
@of_both
def test_the_kl_to_an_expert_that_says_nothing_is_infinite(module, device):
    one, zero = torch.ones(1, 2, device=device), torch.zeros(1, 2, device=device)
    silent = torch.tensor([[math.inf, 0.0]], device=device)
    to_experts = module.poe_sample_kl([one, one], [zero, silent], expert_kl=True, seed=0).expert_kl
    assert to_experts[0].isfinite().all() and (to_experts[1] == math.inf).all()


@on_devices
@in_both
def test_laplace_scales_far_apart(dtype, device):
    """The ratio of the scales overflows, or the distance in units of the smaller one does."""
    mu = torch.tensor([0.0, 1e-10, 1e-3, 1.0, 1e10, 1e30], dtype=torch.float64)
    for logvar, prior_logvar in ((100.0, -100.0), (-100.0, 100.0), (-100.0, -100.0), (100.0, 100.0)):
        for m in mu:
            x, own, prior = (torch.full((1, 1), float(t), dtype=dtype) for t in (m, logvar, prior_logvar))
            mine = [t.to(device).requires_grad_() for t in (x, own, torch.zeros_like(x), prior)]
            kl = functional.laplace_kl(*mine)
            expected = reference.laplace_kl(x.double(), own.double(), torch.zeros(1, 1).double(), prior.double())
            assert_close(kl, expected, TOLERANCE[dtype], floor=1e-3)  # below it the twin's own differences cancel
            assert kl >= 0 and not any(g.isnan().any() for g in gradients((kl,), mine))


@on_devices
@in_both
@pytest.mark.parametrize("classes", [2, 8, 33, 100])
def test_logits_far_from_zero(classes, dtype, device):
    """Their gradients keep the digits that the twin keeps in the same type, however far the chosen class is off."""
    x = torch.randint(classes, (20, 7))
    noise = torch.randn(20, 7, classes, dtype=torch.float64)
    for offset in (1e4, -1e4):
        for chosen in (0.0, 0.5 * offset, -0.1 * offset, 30.0, -15.0, -25.0, -60.0):
            logits = (offset + noise).scatter_add(-1, x[..., None], torch.full_like(noise, chosen)).to(dtype)
            exact = logits.double().requires_grad_()
            mine = logits.to(device).requires_grad_()
            out = functional.log_likelihood(x.to(device), mine, family="categorical")
            expected = reference.log_likelihood(x, exact, family="categorical")
            assert_close(out, expected, TOLERANCE[dtype] * 0.1, floor=1.0)
            (grad,), (truth,) = gradients((out,), [mine]), gradients((expected,), [exact])
            assert_close(grad, truth, 16 * torch.finfo(dtype).eps, floor=1.0)


@on_devices
@pytest.mark.parametrize("classes", [4, 50])
def test_an_impossible_class(classes, device):
    logits = torch.randn(3, 5, classes, dtype=torch.float64)
    logits[0, 1, 2] = logits[1, 1, 2] = -math.inf
    x = torch.zeros(3, 5, dtype=torch.int64)
    x[0, 1] = 2
    mine, exact = (logits.to(t).to(d).requires_grad_() for t, d in ((torch.float32, device), (torch.float64, "cpu")))
    out = functional.log_likelihood(x.to(device), mine, family="categorical")
    expected = reference.log_likelihood(x, exact, family="categorical")
    assert_close(out, expected, 1e-5)
    assert_close(gradients((out,), [mine])[0], gradients((expected,), [exact])[0], 1e-5)
    assert out[0] == -math.inf and out[1:].isfinite().all()


@pytest.mark.cuda
def test_on_cuda_a_class_out_of_range_is_nan():
    """Nothing can look at it there without waiting for the GPU."""
    x = torch.zeros(3, 4, dtype=torch.int64)
    x[0, 1], x[2, 3] = -1, 6
    logits = torch.randn(3, 4, 6, device="cuda", requires_grad=True)
    out = functional.log_likelihood(x.cuda(), logits, family="categorical")
    assert out.isnan().tolist() == [True, False, True]
    (grad,) = torch.autograd.grad(out.sum(), logits)
    wrong = grad.isnan().any(-1).cpu()
    assert wrong.nonzero().tolist() == [[0, 1], [2, 3]]


def weighted(module, mu, logvar, weights, dtype, device, **options):
    """One row and dimension: M means, log-variances and weights."""
    experts = (torch.tensor(t, dtype=dtype, device=device)[:, None, None].requires_grad_() for t in (mu, logvar))
    weights = torch.tensor(weights, dtype=dtype, device=device).requires_grad_()
    mu, logvar = experts
    out = module.product_of_experts(mu, logvar, weights=weights, **options)
    return out, gradients(out, [mu, logvar, weights])


@on_devices
@in_both
@of_both
@pytest.mark.parametrize("prior", [True, False])
@pytest.mark.parametrize("weights", [(-1.0, 1e-3), (-0.7, -0.8), (-0.7, 2.0), (math.inf, 1.0), (math.nan, 0.0)])
def test_what_is_no_weight_comes_out_as_nan(weights, prior, module, dtype, device):
    (mu, logvar), _ = weighted(module, [1.0, 2.0], [0.0, 0.5], weights, dtype, device, prior=prior)
    assert mu.isnan().all() and logvar.isnan().all()


@on_devices
@in_both
@pytest.mark.parametrize("prior", [True, False])
@pytest.mark.parametrize(
    "logvar, weights",
    [
        ((-88.0, 0.0), (1e-36, 1.0)),
        ((100.0, 0.0), (1e38, 1.0)),
        ((-100.0, 100.0), (1e-30, 1e30)),
        ((-70.0, -75.0), (1e-30, 1e-36)),
        ((0.3, -0.2), (1e-36, 2e-36)),
        ((100.0, 100.0), (1e-20, 0.0)),
    ],
)
def test_weights_of_any_size(logvar, weights, prior, dtype, device):
    """A weight moves an expert's precision as far as its log-variance does."""
    actual = weighted(functional, [1.0, -2.0], logvar, weights, dtype, device, prior=prior)
    weights = torch.tensor(weights, dtype=dtype).double().tolist()
    expected = weighted(reference, [1.0, -2.0], logvar, weights, torch.float64, "cpu", prior=prior)
    for a, e in zip(actual[0], expected[0], strict=True):
        assert_close(a, e, TOLERANCE[dtype], floor=0.1)
    for a, e in zip(actual[1], expected[1], strict=True):
        assert_close(a, e, 2 * TOLERANCE[dtype], floor=1e-25)


@on_devices
@in_both
@of_both
def test_a_weight_of_zero_is_no_mask(dtype, module, device):
    """It silences numbers; NaN in an observed expert is never hidden."""
    options = {"dtype": dtype, "device": device}
    (mu, logvar), _ = weighted(module, [math.nan, 1.0], [0.0, 0.0], [0.0, 1.0], **options)
    assert mu.isnan().all() and logvar.isfinite().all()
    (mu, logvar), _ = weighted(module, [0.0, 1.0], [math.nan, 0.0], [0.0, 1.0], **options)
    assert mu.isnan().all() and logvar.isnan().all()
    for silenced in (math.inf, 100.0, -80.0, -100.0):
        (mu, logvar), grads = weighted(module, [5.0, 1.0], [silenced, 0.0], [0.0, 1.0], **options)
        assert mu == 0.5 and abs(logvar + math.log(2)) < 1e-6
        assert grads[0][0] == 0 and grads[1][0] == 0


@on_devices
@pytest.mark.parametrize("family", ["normal", "laplace"])
@pytest.mark.parametrize("scale", [1e-38, 1e-39, 1e-44])
def test_the_smallest_scales(scale, family, device):
    """Where 1 / scale overflows: a distance of 0 is still 0."""
    scale, x = float(torch.tensor(scale)), torch.randn(3, 40, device=device)
    one = torch.ones(1, dtype=torch.float64)
    expected = reference.log_likelihood(one, one, family=family, scale=scale, event_dims=0) * 40
    for given in (scale, torch.tensor(scale), torch.full((40,), scale), torch.full((3, 40), scale)):
        given = given.to(device) if isinstance(given, torch.Tensor) else given
        out = functional.log_likelihood(x, x, family=family, scale=given)
        assert_close(out, expected.expand(3), 1e-5)


@pytest.mark.parametrize("shape", [(40000, 3), (3, 20000, 40)], ids=str)
@pytest.mark.parametrize("family", ["normal", "laplace"])
def test_one_scale_gets_the_same_gradient_from_any_number_of_threads(shape, family):
    x, params = torch.randn(shape[-2:]), torch.randn(shape)
    scale = torch.tensor(0.7, requires_grad=True)
    before, grads = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = functional.log_likelihood(x, params, family=family, scale=scale)
            grads += gradients((out,), [scale])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(grads[0], grads[1]) and torch.equal(grads[0], grads[2])
    exact = scale.detach().double().requires_grad_()
    out = reference.log_likelihood(x.double(), params.double(), family=family, scale=exact)
    assert_close(grads[0], gradients((out,), [exact])[0], 1e-5)


@on_devices
@in_both
@pytest.mark.parametrize("family", ["normal", "laplace"])
@pytest.mark.parametrize("samples", [1, 4])
def test_samples_of_an_infinite_scale(samples, family, dtype, device):
    """z is infinite; its gradient to logvar is so too, but it is no NaN: noise of both signs is summed first."""
    mu = torch.zeros(2, 5, dtype=dtype, device=device)
    logvar = torch.zeros(2, 5, dtype=dtype, device=device)
    logvar[0, 3] = math.inf
    grads = []
    for module, lv in ((functional, logvar), (reference, logvar.cpu().double())):
        lv = lv.requires_grad_()
        z = module.reparameterize(mu.to(lv), lv, samples, family=family, seed=5)
        grads += torch.autograd.grad(z.sum(), lv)
    assert_close(grads[0], grads[1], TOLERANCE[dtype])
    assert grads[0][0, 3].isinf()


@on_devices
@of_both
@pytest.mark.parametrize("prior", ["none", "all"])
def test_an_expert_that_says_nothing_hides_no_nan(prior, module, device):
    mu, logvar = torch.zeros(2, 1, 3, device=device).unbind(0)
    mu[0, 1], logvar[0, 1] = math.nan, math.inf
    for experts in ((mu[None], logvar[None]), (mu.expand(2, 1, 3), logvar.expand(2, 1, 3))):
        subsets = module.subset_posteriors(*experts, prior=prior)
        assert subsets.mu[:, 0, 1].isnan().all() and subsets.kl.isnan().all()
        assert module.mopoe_sample_kl(*experts, prior=prior, seed=1).kl.isnan().all()
        assert module.product_of_experts(*experts, prior=False)[0][0, 1].isnan()
