"""Every kernel against its plain-PyTorch twin in float64: values and gradients."""

from __future__ import annotations

import math
import zlib

import pytest
import torch
from expert_cases import DTYPES, TOLERANCE, assert_close, make_experts
from function_cases import FUNCTIONS, SEED, gradients

from mmvae_fast import functional, reference

pytestmark = pytest.mark.skipif(not functional._ext.LOADED, reason="built without kernels")

# experts, rows, dims: single elements, tails of every vector width, several tiles, rows longer than a tile
SHAPES = [(1, 1, 1), (2, 3, 3), (3, 33, 64), (5, 9, 100), (3, 2, 2100), (6, 65, 17), (4, 70, 20)]


def both(fn, experts, dtype):
    """Outputs and gradients of the kernel in ``dtype`` and of the twin in float64, on the same numbers."""
    mine, twin = experts, experts.to(torch.float64)
    outputs, expected = FUNCTIONS[fn](functional, mine), FUNCTIONS[fn](reference, twin)
    return outputs, expected, gradients(outputs, mine.tensors()), gradients(expected, twin.tensors())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("fn", FUNCTIONS)
def test_values_and_gradients(fn, shape, dtype):
    for mask in ("none", "random", "bits"):
        experts = make_experts(*shape, dtype=dtype, mask=mask, seed=zlib.crc32(repr((shape, mask)).encode()))
        outputs, expected, grads, expected_grads = both(fn, experts, dtype)
        for i, (a, e) in enumerate(zip(outputs, expected, strict=True)):
            assert_close(a, e, TOLERANCE[dtype], f"output {i}, mask {mask}")
        for i, (a, e) in enumerate(zip(grads, expected_grads, strict=True)):
            assert_close(a, e, TOLERANCE[dtype], f"gradient {i}, mask {mask}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["list", "chunked", "stacked", "strided"])
@pytest.mark.parametrize("fn", FUNCTIONS)
def test_layouts(fn, layout, dtype):
    experts = make_experts(3, 12, 20, dtype=dtype, layout=layout, mask="bits")
    outputs, expected, grads, expected_grads = both(fn, experts, dtype)
    for a, e in zip([*outputs, *grads], [*expected, *expected_grads], strict=True):
        assert_close(a, e, TOLERANCE[dtype], layout)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fn", FUNCTIONS)
def test_extreme_logvar(fn, dtype):
    """logvar up to +-100: finite where the type can hold the result, and right."""
    experts = make_experts(3, 40, 37, dtype=dtype, mask="random", spread=60.0)
    with torch.no_grad():  # e^88.7 is the largest float32: around it either side may round to inf
        for logvar in experts.logvar:
            if fn == "poe_sample_kl, no prior":
                logvar.clamp_(max=86)  # a KL beyond it is inf, and so are products of its gradient with tiny weights
            logvar[(logvar > 86) & (logvar < 90)] = 86
    outputs, expected, grads, expected_grads = both(fn, experts, dtype)
    for i, (a, e) in enumerate(zip(outputs, expected, strict=True)):
        assert_close(a, e, TOLERANCE[dtype], f"output {i}")
    for g, e in zip(grads, expected_grads, strict=True):
        assert_close(g, e, TOLERANCE[dtype] * 10, "gradient")
    if dtype == torch.float64:
        return  # there the twin is the measure
    # the largest element must not excuse the small ones: each by its own size, no worse than the twin in this type
    twin = experts.to(dtype)
    same = FUNCTIONS[fn](reference, twin)
    same_grads = gradients(same, twin.tensors())
    for a, t, e in zip([*outputs, *grads], [*same, *same_grads], [*expected, *expected_grads], strict=True):
        mine, theirs = relative_errors(a, e), relative_errors(t, e)
        for share in (0.5, 0.9, 0.97):
            assert mine.quantile(share) <= 10 * theirs.quantile(share) + 100 * torch.finfo(dtype).eps


def relative_errors(actual, exact):
    """Element by element; 0 where the type cannot hold the exact value."""
    a, e = actual.detach().double(), exact.detach().double()
    holds = e.isfinite() & (e.abs() > 1e-30) & (e.abs() < 1e30)
    return torch.where(holds, (a - e).abs() / e.abs().clamp(min=1e-30), 0.0).flatten()


@pytest.mark.parametrize("fn", [f for f in FUNCTIONS if "sample" in f])
@pytest.mark.parametrize("size", [1.0, 30.0])
@pytest.mark.parametrize("logvar", [-10.0, -16.0, -24.0])
def test_peaked_posteriors(fn, logvar, size):
    """Where sd vanishes beside mu, z - mu has lost the noise: the gradient to logvar must not."""
    experts = make_experts(3, 9, 25, mask="bits")
    with torch.no_grad():
        for m, v in zip(experts.mu, experts.logvar, strict=True):
            m.copy_(m * 0.01 * size + size)  # experts that agree, as trained ones do
            v.mul_(0.1).add_(logvar)
    exact, same = experts.to(torch.float64), experts.to(torch.float32)
    mine, theirs, truth = (
        gradients(FUNCTIONS[fn](module, x)[:1], x.tensors())
        for module, x in ((functional, experts), (reference, same), (reference, exact))
    )
    for m, t, e in zip(mine, theirs, truth, strict=True):
        scale = e.abs().max()
        error, twins = ((g.double() - e).abs().max() / scale for g in (m, t))
        # of several experts, logvar's gradient holds differences of means, which cost the twin as much
        assert error <= 8 * twins + 1e-5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1e-1, 1e-3, 1e-5])
def test_peaked_and_collapsed_single_gaussian(size, dtype):
    mu, logvar = torch.randn(2, 7, 40, dtype=torch.float64).mul(size).to(dtype).requires_grad_().unbind(0)
    mu64, logvar64 = (t.detach().double().requires_grad_() for t in (mu, logvar))
    kl, expected = functional.gaussian_kl(mu, logvar), reference.gaussian_kl(mu64, logvar64)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-15 / size**2  # the twin's own: e^x - 1 - x cancels
    assert_close(kl, expected, tolerance)
    for a, e in zip(gradients((kl,), [mu, logvar]), gradients((expected,), [mu64, logvar64]), strict=True):
        assert_close(a, e, tolerance)
    sharp, sharp64 = logvar.detach() - 30, logvar64.detach() - 30
    sharp.requires_grad_()
    sharp64.requires_grad_()
    z, z64 = functional.reparameterize(mu + 1, sharp, 2, seed=1), reference.reparameterize(mu64 + 1, sharp64, 2, seed=1)
    assert_close(gradients((z,), [sharp])[0], gradients((z64,), [sharp64])[0], TOLERANCE[dtype])


@pytest.mark.parametrize("size", [1e-1, 1e-3, 1e-4])
def test_mopoe_kl_near_the_prior(size):
    """A collapsed posterior's KL is far below the rounding of the terms it is a difference of."""
    experts = make_experts(3, 8, 33, mask="bits")
    with torch.no_grad():
        for t in experts.tensors():
            t.mul_(size)
    twin = experts.to(torch.float64)
    lone = experts.mask.sum(1) == 1
    kl = functional.mopoe_sample_kl(experts.mu, experts.logvar, experts.mask, seed=0).kl
    exact = reference.mopoe_sample_kl(twin.mu, twin.logvar, twin.mask, seed=0).kl
    assert_close(kl[lone], exact[lone], 1e-5)
    assert_close(kl, exact, 1e-5)


def test_an_uninformative_posterior_is_infinitely_far_from_the_prior():
    logvar = torch.tensor([[math.inf, 0.0]])
    for module in (functional, reference):
        assert module.gaussian_kl(torch.zeros(1, 2), logvar).item() == math.inf
        assert module.mopoe_sample_kl([torch.zeros(1, 2)], [logvar], prior="none").kl.item() == math.inf


def test_no_samples():
    experts = make_experts(2, 3, 5)
    out = functional.poe_sample_kl(experts.mu, experts.logvar, n_samples=0)
    assert out.z.shape == (0, 3, 5)
    grads = torch.autograd.grad(out.z.sum() + out.kl.sum(), experts.tensors())
    assert all(g.isfinite().all() for g in grads)
    mu = torch.randn(3, 5, requires_grad=True)
    (grad,) = torch.autograd.grad(functional.reparameterize(mu, torch.zeros(3, 5), 0).sum(), mu)
    assert (grad == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fn", ["product_of_experts", "poe_sample_kl", "poe_sample_kl, 3 samples"])
def test_uninformative_expert_changes_nothing(fn, dtype):
    """logvar = +inf says nothing: the same result as leaving that expert out, and gradient 0 for it."""
    experts = make_experts(3, 8, 21, dtype=dtype)
    with torch.no_grad():
        experts.logvar[1].fill_(math.inf)
    without = make_experts(3, 8, 21, dtype=dtype)
    without.mask = torch.tensor([True, False, True]).expand(8, 3)
    outputs, expected = FUNCTIONS[fn](functional, experts), FUNCTIONS[fn](functional, without)
    for a, e in zip(outputs, expected, strict=True):
        assert_close(a, e, 1e-6 if dtype == torch.float32 else 1e-14)
    for g, e in zip(gradients(outputs, experts.tensors()), gradients(expected, without.tensors()), strict=True):
        assert_close(g, e, 1e-6 if dtype == torch.float32 else 1e-14)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_only_uninformative_experts(dtype):
    mu, logvar = torch.randn(2, 3, 5, dtype=dtype), torch.full((2, 3, 5), math.inf, dtype=dtype)
    joint_mu, joint_logvar = functional.product_of_experts(mu, logvar, prior=False)
    assert (joint_mu == 0).all() and (joint_logvar == math.inf).all()
    joint_mu, joint_logvar = functional.product_of_experts(mu, logvar, prior=True)
    assert (joint_mu == 0).all() and (joint_logvar == 0).all()


@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("module", [functional, reference], ids=["kernel", "twin"])
@pytest.mark.parametrize("fn", FUNCTIONS)
def test_missing_means_untouched(fn, module, rubbish):
    """Whatever a masked-out expert holds: finite results, gradient exactly 0 there."""
    experts = make_experts(3, 16, 9, mask="bits", rubbish=rubbish)
    outputs = FUNCTIONS[fn](module, experts)
    assert all(o.isfinite().all() for o in outputs)
    grads = gradients(outputs, experts.tensors())
    for g, m in zip(grads, [0, 1, 2, 0, 1, 2], strict=True):
        assert (g[~experts.mask[:, m]] == 0).all()
        assert g.isfinite().all() and (g[experts.mask[:, m]] != 0).any()


@pytest.mark.parametrize("module", [functional, reference], ids=["kernel", "twin"])
@pytest.mark.parametrize("fn", FUNCTIONS)
def test_nothing_observed_is_the_prior(fn, module):
    experts = make_experts(3, 4, 9, mask="nothing")
    outputs = FUNCTIONS[fn](module, experts)
    assert all((g == 0).all() for g in gradients(outputs, experts.tensors()))
    if fn.startswith("product"):
        assert (outputs[0] == 0).all() and (outputs[1] == 0).all()
        return
    assert (outputs[-1] == 0).all()  # kl
    noise = reference.philox_normal(SEED, 4, 9, 3 if "samples" in fn else None)
    assert_close(outputs[0], noise, 1e-6)
    if fn.startswith("mopoe"):
        assert (module.mopoe_sample_kl(experts.mu, experts.logvar, experts.mask, seed=SEED).subset == -1).all()


@pytest.mark.parametrize("module", [functional, reference], ids=["kernel", "twin"])
@pytest.mark.parametrize("where", ["mu", "logvar"])
@pytest.mark.parametrize("fn", FUNCTIONS)
def test_nan_in_an_observed_expert_is_not_hidden(fn, where, module):
    experts = make_experts(2, 3, 20, mask="all")
    with torch.no_grad():
        getattr(experts, where)[1][1, 17] = math.nan
    z_or_mu = FUNCTIONS[fn](module, experts)[0]
    if fn.startswith("mopoe"):  # z may come from the subset without it; the KL covers all subsets
        assert FUNCTIONS[fn](module, experts)[1][1].isnan()
    else:
        assert z_or_mu[..., 1, 17].isnan().all()
    assert FUNCTIONS[fn](module, experts)[0][..., 0, :].isfinite().all()


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("fn", FUNCTIONS)
def test_empty_batch(fn, rows):
    experts = make_experts(3, rows, 5, mask="random")
    outputs, expected = FUNCTIONS[fn](functional, experts), FUNCTIONS[fn](reference, experts)
    assert [o.shape for o in outputs] == [e.shape for e in expected]
    assert [g.shape for g in gradients(outputs, experts.tensors())] == [t.shape for t in experts.tensors()]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1,), (5, 3), (2, 7, 64), (33, 100), (2, 5000), (0, 4)], ids=str)
@pytest.mark.parametrize("n_samples", [None, 1, 4])
def test_reparameterize_and_kl(shape, n_samples, dtype):
    g = torch.Generator().manual_seed(3)
    mu, logvar = (torch.randn(shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_() for _ in range(2))
    mu64, logvar64 = (t.detach().double().requires_grad_() for t in (mu, logvar))
    outputs = (functional.reparameterize(mu, logvar, n_samples, seed=9), functional.gaussian_kl(mu, logvar))
    expected = (reference.reparameterize(mu64, logvar64, n_samples, seed=9), reference.gaussian_kl(mu64, logvar64))
    for a, e in zip(outputs, expected, strict=True):
        assert_close(a, e, TOLERANCE[dtype])
    for a, e in zip(gradients(outputs, [mu, logvar]), gradients(expected, [mu64, logvar64]), strict=True):
        assert_close(a, e, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kl_is_accurate_and_not_negative_near_the_prior(dtype):
    logvar = torch.logspace(-10, 0, 64, dtype=torch.float64).outer(torch.tensor([1.0, -1.0]).double()).t().to(dtype)
    for row in logvar.reshape(-1, 1):
        kl, exact = functional.gaussian_kl(torch.zeros_like(row), row), 0.5 * (math.expm1(row) - row.double())
        if abs(row) < 1e-5:  # expm1(x) - x cancels even in float64: its series does not
            exact = row.double() ** 2 / 4 * (1 + row.double() / 3)
        assert kl >= 0
        assert abs(kl.double() - exact) <= (2e-6 if dtype == torch.float32 else 1e-5) * exact


def test_strided_and_broadcast_gaussians():
    h = torch.randn(6, 4, 10, dtype=torch.float64)
    mu, logvar = h.chunk(2, -1)
    assert not mu.is_contiguous()
    assert_close(functional.gaussian_kl(mu, logvar), reference.gaussian_kl(mu, logvar), 1e-12)
    wide = torch.randn(5, dtype=torch.float64).expand(3, 4, 5)
    assert_close(functional.reparameterize(wide, wide, seed=1), reference.reparameterize(wide, wide, seed=1), 1e-12)
    t = torch.randn(3, 5, 4, dtype=torch.float64).permute(1, 2, 0)
    assert_close(functional.gaussian_kl(t, t), reference.gaussian_kl(t, t), 1e-12)


@pytest.mark.parametrize("module", [functional, reference], ids=["kernel", "twin"])
def test_chosen_subsets(module):
    """A list of subsets: only those count, in the caller's order; rows without any of them get the prior."""
    experts = make_experts(4, 32, 6, dtype=torch.float64, mask="bits")
    subsets = [0b1100, 0b0001, 0b0111]
    out = module.mopoe_sample_kl(experts.mu, experts.logvar, experts.mask, subsets=subsets, prior="none", seed=4)
    patterns = (experts.mask.long() << torch.arange(4)).sum(1)
    for row, pattern in enumerate(patterns.tolist()):
        usable = [i for i, s in enumerate(subsets) if s & ~pattern == 0]
        if not usable:
            assert out.subset[row] == -1 and out.kl[row] == 0
            continue
        assert int(out.subset[row]) in usable
        kls = []
        for i in usable:
            members = [m for m in range(4) if subsets[i] >> m & 1]
            mu, logvar = reference.product_of_experts(
                [experts.mu[m][row : row + 1] for m in members],
                [experts.logvar[m][row : row + 1] for m in members],
                prior=False,
            )
            kls.append(reference.gaussian_kl(mu, logvar)[0])
        assert_close(out.kl[row], torch.stack(kls).mean(), 1e-12)


def test_every_available_subset_is_drawn_equally_often():
    experts = make_experts(3, 8192, 1)
    experts.mask = torch.tensor([True, False, True]).expand(8192, 3)
    subset = functional.mopoe_sample_kl(experts.mu, experts.logvar, experts.mask, seed=11).subset
    counts = torch.bincount(subset, minlength=7)
    assert counts.nonzero().flatten().tolist() == [0, 3, 4]  # {0}, {2}, {0, 2}
    expected = 8192 / 3
    assert ((counts[[0, 3, 4]] - expected) ** 2 / expected).sum() < 13.8  # chi-square, 2 dof, p = 1e-3


def test_more_experts_than_registers():
    experts = make_experts(9, 3, 18, dtype=torch.float64, mask="random")
    for fn in ("poe_sample_kl", "mopoe_sample_kl"):
        outputs, expected, grads, expected_grads = both(fn, experts, torch.float64)
        for a, e in zip([*outputs, *grads], [*expected, *expected_grads], strict=True):
            assert_close(a, e, 1e-12, fn)


def test_partial_gradients():
    """Only some outputs used: absent gradients count as zero."""
    for index in range(4):
        experts = make_experts(3, 7, 19, dtype=torch.float64, mask="random")
        twin = experts.to(torch.float64)
        a = functional.poe_sample_kl(experts.mu, experts.logvar, experts.mask, seed=1)[index].sum()
        e = reference.poe_sample_kl(twin.mu, twin.logvar, twin.mask, seed=1)[index].sum()
        actual = torch.autograd.grad(a, experts.tensors())
        expected = torch.autograd.grad(e, twin.tensors(), allow_unused=True, materialize_grads=True)
        for g, h in zip(actual, expected, strict=True):
            assert_close(g, h, 1e-12, f"output {index}")


def test_inputs_that_need_no_gradient():
    experts = make_experts(2, 4, 6)
    frozen, rest = experts.mu[0].detach(), [experts.mu[1], *experts.logvar]
    expected = torch.autograd.grad(functional.poe_sample_kl(experts.mu, experts.logvar, seed=1).kl.sum(), rest)
    out = functional.poe_sample_kl([frozen, experts.mu[1]], experts.logvar, seed=1)
    grads = torch.autograd.grad(out.kl.sum(), rest)
    assert all(torch.equal(g, e) for g, e in zip(grads, expected, strict=True))
    assert not functional.poe_sample_kl([frozen], [frozen], seed=1).z.requires_grad
