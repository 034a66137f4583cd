"""Every kernel against its plain-PyTorch twin in float64: values and gradients."""

from __future__ import annotations

import math
import zlib

import pytest
import torch
from expert_cases import DEVICES, DTYPES, HALVES, LAYOUTS, TOLERANCE, assert_close, make_experts
from function_cases import EXPERTS, FUNCTIONS, SEED, allowed, gradients, make_inputs, summed_tolerance

from mmvae_fast import functional, reference

pytestmark = pytest.mark.skipif(not functional._ext.LOADED, reason="built without kernels")
on_devices = pytest.mark.parametrize("device", DEVICES)

# experts, rows, dims: single elements, tails of every vector width, several tiles, rows longer than a tile
SHAPES = [(1, 1, 1), (2, 3, 3), (3, 33, 64), (5, 9, 100), (3, 2, 2100), (6, 65, 17), (4, 70, 20)]


def compare(fn, inputs, tolerance, what="", gradient_tolerance=None):
    """Outputs and gradients of the kernel against those of the twin in float64, on the same numbers."""
    twin = inputs.to(torch.float64)
    outputs, expected = FUNCTIONS[fn](functional, inputs), FUNCTIONS[fn](reference, twin)
    for i, (a, e) in enumerate(zip(outputs, expected, strict=True)):
        assert_close(a, e, tolerance, f"output {i}, {what}")
    grads, expected_grads = gradients(outputs, inputs.tensors()), gradients(expected, twin.tensors())
    gradient_tolerance = max(gradient_tolerance or tolerance, summed_tolerance(fn, grads[0].dtype))
    for i, (a, e) in enumerate(zip(grads, expected_grads, strict=True)):
        assert_close(a, e, gradient_tolerance, f"gradient {i}, {what}")
    return [*outputs, *grads], [*expected, *expected_grads]


@on_devices
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fn", FUNCTIONS)
def test_values_and_gradients(fn, dtype, device):
    for shape in SHAPES:
        for mask in ("none", "random", "bits") if fn in EXPERTS else ("none", "random"):
            seed = zlib.crc32(repr((shape, mask)).encode())
            inputs = make_inputs(fn, *shape, dtype=dtype, mask=mask, seed=seed, device=device)
            compare(fn, inputs, allowed(fn, dtype, shape[2]), f"{shape}, mask {mask}")


@on_devices
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fn", FUNCTIONS)
def test_layouts(fn, dtype, device):
    for layout in LAYOUTS:
        inputs = make_inputs(fn, 3, 12, 20, dtype=dtype, layout=layout, mask="bits", device=device)
        compare(fn, inputs, allowed(fn, dtype, 20), layout)


@on_devices
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fn", [fn for fn in FUNCTIONS if not fn.startswith("log_likelihood")])
def test_extreme_logvar(fn, dtype, device):
    """logvar up to +-100: finite where the type can hold the result, and right."""
    inputs = make_inputs(fn, 3, 40, 37, dtype=dtype, mask="random", spread=60.0, device=device)
    if fn in EXPERTS:
        logvars = [] if fn.startswith("mixture") else inputs.logvar
    else:
        logvars = [t for name, t in inputs.differentiable.items() if "logvar" in name]
    with torch.no_grad():  # e^88.7 is the largest float32: around it either side may round to inf
        for logvar in logvars:
            if "expert_kl" in fn or ("_kl, " in fn and "prior" in fn.split(", ")[1]):
                limit = 5 if dtype == torch.float16 else 43  # the KL has ratios of variances
                logvar.clamp_(-limit, limit)
            elif "no prior" in fn or "kl" in fn or "subset" in fn:
                logvar.clamp_(max=86)  # a KL beyond it is inf, and so are products of its gradient with tiny weights
            logvar[(logvar > 86) & (logvar < 90)] = 86
    actual, expected = compare(fn, inputs, allowed(fn, dtype, 37), gradient_tolerance=10 * allowed(fn, dtype, 37))
    if dtype != torch.float32:
        return
    # the largest element must not excuse the small ones: each by its own size, no worse than the twin in this type
    twin = inputs.to(dtype)
    outputs = FUNCTIONS[fn](reference, twin)
    same = [*outputs, *gradients(outputs, twin.tensors())]
    for a, t, e in zip(actual, same, expected, strict=True):
        mine, theirs = relative_errors(a, e), relative_errors(t, e)
        for share in (0.5, 0.9, 0.97):
            assert mine.quantile(share) <= 10 * theirs.quantile(share) + 100 * torch.finfo(dtype).eps


def relative_errors(actual, exact):
    """Element by element; 0 where the type cannot hold the exact value."""
    a, e = actual.detach().double().cpu(), exact.detach().double()
    holds = e.isfinite() & (e.abs() > 1e-30) & (e.abs() < 1e30)
    return torch.where(holds, (a - e).abs() / e.abs().clamp(min=1e-30), 0.0).flatten()


@on_devices
@pytest.mark.parametrize("fn", [f for f in EXPERTS if "sample_kl" in f])
@pytest.mark.parametrize("size", [1.0, 30.0])
@pytest.mark.parametrize("logvar", [-10.0, -16.0, -24.0])
def test_peaked_posteriors(fn, logvar, size, device):
    """Where sd vanishes beside mu, z - mu has lost the noise: the gradient to logvar must not."""
    experts = make_experts(3, 9, 25, mask="bits", device=device)
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
        error, twins = ((g.double().cpu() - e).abs().max() / scale for g in (m, t))
        # of several experts, logvar's gradient holds differences of means, which cost the twin as much
        assert error <= 8 * twins + 1e-5


@on_devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [1e-1, 1e-3, 1e-5])
def test_peaked_and_collapsed_single_gaussian(size, dtype, device):
    mu, logvar = torch.randn(2, 7, 40, dtype=torch.float64).mul(size).to(device, dtype).requires_grad_().unbind(0)
    mu64, logvar64 = (t.detach().cpu().double().requires_grad_() for t in (mu, logvar))
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


@on_devices
@pytest.mark.parametrize("size", [1e-1, 1e-3, 1e-4])
def test_mopoe_kl_near_the_prior(size, device):
    """A collapsed posterior's KL is far below the rounding of the terms it is a difference of."""
    experts = make_experts(3, 8, 33, mask="bits", device=device)
    with torch.no_grad():
        for t in experts.tensors():
            t.mul_(size)
    twin = experts.to(torch.float64)
    lone = twin.mask.sum(1) == 1
    kl = functional.mopoe_sample_kl(experts.mu, experts.logvar, experts.mask, seed=0).kl
    exact = reference.mopoe_sample_kl(twin.mu, twin.logvar, twin.mask, seed=0).kl
    assert_close(kl.cpu()[lone], exact[lone], 1e-5)
    assert_close(kl, exact, 1e-5)


def test_an_uninformative_posterior_is_infinitely_far_from_the_prior():
    logvar = torch.tensor([[math.inf, 0.0]])
    for module in (functional, reference):
        assert module.gaussian_kl(torch.zeros(1, 2), logvar).item() == math.inf
        assert module.mopoe_sample_kl([torch.zeros(1, 2)], [logvar], prior="none").kl.item() == math.inf


@on_devices
def test_no_samples(device):
    experts = make_experts(2, 3, 5, device=device)
    out = functional.poe_sample_kl(experts.mu, experts.logvar, n_samples=0)
    assert out.z.shape == (0, 3, 5)
    grads = torch.autograd.grad(out.z.sum() + out.kl.sum(), experts.tensors())
    assert all(g.isfinite().all() for g in grads)
    mu = torch.randn(3, 5, device=device, requires_grad=True)
    (grad,) = torch.autograd.grad(functional.reparameterize(mu, torch.zeros_like(mu), 0).sum(), mu)
    assert (grad == 0).all()


@on_devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("fn", ["product_of_experts", "product_of_experts, weights", "poe_sample_kl, 3 samples"])
def test_uninformative_expert_changes_nothing(fn, dtype, device):
    """logvar = +inf says nothing: the same result as leaving that expert out, and gradient 0 for it."""
    experts, without = (make_inputs(fn, 3, 8, 21, dtype=dtype, device=device) for _ in range(2))
    with torch.no_grad():
        experts.logvar[1].fill_(math.inf)
    without.mask = torch.tensor([True, False, True], device=device).expand(8, 3)
    outputs, expected = FUNCTIONS[fn](functional, experts), FUNCTIONS[fn](functional, without)
    for a, e in zip(outputs, expected, strict=True):
        assert_close(a, e, 1e-6 if dtype == torch.float32 else 1e-14)
    for g, e in zip(gradients(outputs, experts.tensors()), gradients(expected, without.tensors()), strict=True):
        assert_close(g, e, 1e-6 if dtype == torch.float32 else 1e-14)


@on_devices
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_only_uninformative_experts(dtype, device):
    mu = torch.randn(2, 3, 5).to(dtype).to(device)
    logvar = torch.full_like(mu, math.inf)
    joint_mu, joint_logvar = functional.product_of_experts(mu, logvar, prior=False)
    assert (joint_mu == 0).all() and (joint_logvar == math.inf).all()
    joint_mu, joint_logvar = functional.product_of_experts(mu, logvar, prior=True)
    assert (joint_mu == 0).all() and (joint_logvar == 0).all()


@on_devices
@pytest.mark.parametrize("module", [functional, reference], ids=["kernel", "twin"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_subset_of_an_uninformative_expert(dtype, module, device):
    """It says nothing where its expert does not, about the mean either; and elsewhere is that expert."""
    mu = torch.tensor([[3.0, 3.0]], dtype=dtype, device=device).requires_grad_()
    logvar = torch.tensor([[math.inf, 0.0]], dtype=dtype, device=device).requires_grad_()
    for experts in ([mu], [mu, mu]):
        out = module.subset_posteriors(experts, [logvar] * len(experts), subsets=[1], prior="none")
        assert out.mu.tolist() == [[[0.0, 3.0]]] and out.logvar.tolist() == [[[math.inf, 0.0]]]
        assert out.kl.item() == math.inf
        grads = torch.autograd.grad(out.mu.sum() + out.kl.sum(), [mu, logvar])
        assert [g.tolist() for g in grads] == [[[0.0, 4.0]], [[0.0, 0.0]]]
    out = module.mopoe_sample_kl([mu], [logvar], prior="none", seed=SEED)
    assert out.kl.item() == math.inf and out.z[0].isinf().tolist() == [True, False]
    grads = torch.autograd.grad(out.kl.sum(), [mu, logvar])
    assert [g.tolist() for g in grads] == [[[0.0, 3.0]], [[0.0, 0.0]]]


@on_devices
@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("module", [functional, reference], ids=["kernel", "twin"])
@pytest.mark.parametrize("fn", EXPERTS)
def test_missing_means_untouched(fn, module, rubbish, device):
    """Whatever a masked-out expert holds: finite results, gradient exactly 0 there."""
    for dtype in (torch.float32, torch.bfloat16):
        experts = make_inputs(fn, 3, 16, 9, dtype=dtype, mask="bits", rubbish=rubbish, device=device)
        outputs = FUNCTIONS[fn](module, experts)
        assert all(o.isfinite().all() for o in outputs)
        grads = gradients(outputs, experts.tensors())
        assert all(g.isfinite().all() for g in grads)
        for g, m in zip(grads[:6], [0, 1, 2, 0, 1, 2], strict=True):
            assert (g[~experts.mask[:, m]] == 0).all() and (g[experts.mask[:, m]] != 0).any()


@on_devices
@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("module", [functional, reference], ids=["kernel", "twin"])
@pytest.mark.parametrize("fn", [fn for fn in FUNCTIONS if fn.startswith("log_likelihood")])
def test_missing_rows_count_nothing(fn, module, rubbish, device):
    """Data, parameters and scales of a missing row: 0 and gradient exactly 0, whatever they hold."""
    inputs = make_inputs(fn, 2, 12, 9, mask="random", rubbish=rubbish, device=device)
    (out,) = FUNCTIONS[fn](module, inputs)
    gone, row = ~inputs.mask, -2 if "event" in fn else -1
    assert out.isfinite().all() and (out.movedim(row, 0)[gone] == 0).all() and (out.movedim(row, 0)[~gone] != 0).all()
    for name, g in zip(inputs.differentiable, gradients((out,), inputs.tensors()), strict=True):
        assert g.isfinite().all() and (g != 0).any()
        if name == "params":
            assert (g.movedim(int(g.shape[0] == 2), 0)[gone] == 0).all()


@on_devices
@pytest.mark.parametrize("module", [functional, reference], ids=["kernel", "twin"])
@pytest.mark.parametrize("fn", EXPERTS)
def test_nothing_observed_is_the_prior(fn, module, device):
    experts = make_inputs(fn, 3, 4, 9, mask="nothing", device=device)
    outputs = FUNCTIONS[fn](module, experts)
    grads = gradients(outputs, experts.tensors())
    if fn.startswith("mixture"):
        z = experts.extra[0]
        make = torch.distributions.Normal if "normal" in fn else torch.distributions.Laplace
        expected = make(torch.zeros_like(z), 1.0).log_prob(z).sum(-1)
        assert_close(outputs[0], expected, 1e-6)
        assert_close(grads.pop(), gradients((expected,), [z])[0], 1e-6)
    assert all((g == 0).all() for g in grads)
    if fn.startswith(("product", "subset")):
        assert all((o == 0).all() for o in outputs)
    elif "sample_kl" in fn:
        assert all((o == 0).all() for o in outputs[1:])
        assert_close(outputs[0], reference.philox_normal(SEED, 4, 9, 3 if "samples" in fn else None), 1e-6)
    if fn.startswith("mopoe"):
        assert (module.mopoe_sample_kl(experts.mu, experts.logvar, experts.mask, seed=SEED).subset == -1).all()


@on_devices
@pytest.mark.parametrize("module", [functional, reference], ids=["kernel", "twin"])
@pytest.mark.parametrize("where", ["mu", "logvar"])
@pytest.mark.parametrize("fn", EXPERTS)
def test_nan_in_an_observed_expert_is_not_hidden(fn, where, module, device):
    experts = make_inputs(fn, 2, 3, 20, mask="all", device=device)
    with torch.no_grad():
        getattr(experts, where)[1][1, 17] = math.nan
    outputs = FUNCTIONS[fn](module, experts)
    if fn.startswith("mopoe"):  # z may come from the subset without it; the KL covers all subsets
        assert outputs[1][1].isnan()
    elif fn.startswith("mixture"):
        assert outputs[0][..., 1].isnan().all() and outputs[0][..., ::2].isfinite().all()
        return
    else:
        everywhere = fn.startswith("subset")  # but in the subset of the other expert
        assert outputs[0][..., 1, 17].isnan().any() if everywhere else outputs[0][..., 1, 17].isnan().all()
    assert outputs[0][..., 0, :].isfinite().all()


@on_devices
@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("fn", FUNCTIONS)
def test_empty_batch(fn, rows, device):
    inputs = make_inputs(fn, 3, rows, 5, mask="random", device=device)
    outputs, expected = FUNCTIONS[fn](functional, inputs), FUNCTIONS[fn](reference, inputs)
    assert [(o.shape, o.dtype) for o in outputs] == [(e.shape, e.dtype) for e in expected]
    grads = gradients(outputs, inputs.tensors())
    assert [g.shape for g in grads] == [t.shape for t in inputs.tensors()]
    if rows == 0:
        assert all((g == 0).all() for g in grads)


@on_devices
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("fn", FUNCTIONS)
def test_halves_come_out_as_halves(fn, dtype, device):
    """Moments and samples have the type of the inputs, KLs and log probabilities are float32."""
    for outputs in (
        FUNCTIONS[fn](m, make_inputs(fn, 2, 3, 5, dtype=dtype, device=device)) for m in (functional, reference)
    ):
        moments = {"product": 2, "poe_sam": 3, "subset_": 2, "mopoe_s": 1, "reparam": 1}.get(fn[:7], 0)
        assert [o.dtype for o in outputs] == [dtype] * moments + [torch.float32] * (len(outputs) - moments)


@on_devices
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1,), (5, 3), (2, 7, 64), (2, 5000), (0, 4), (3, 0)], ids=str)
def test_leading_dimensions(shape, dtype, device):
    """One distribution of any number of dimensions; rows are counted over all but the last."""
    mu, logvar = (torch.randn(shape, dtype=torch.float64).to(dtype).to(device).requires_grad_() for _ in range(2))
    mu64, logvar64 = (t.detach().double().cpu().requires_grad_() for t in (mu, logvar))

    def outputs(f, mu, logvar):
        samples = [
            f.reparameterize(mu, logvar, k, family=family, seed=9)
            for k in (None, 1, 4)
            for family in ("normal", "laplace")
        ]
        return [*samples, f.gaussian_kl(mu, logvar), f.laplace_kl(mu, logvar)]

    actual, expected = outputs(functional, mu, logvar), outputs(reference, mu64, logvar64)
    grads, exact = gradients(actual, [mu, logvar]), gradients(expected, [mu64, logvar64])
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, TOLERANCE[dtype])
    for a, e in zip(grads, exact, strict=True):  # of halves, eight gradients are rounded and added
        assert_close(a, e, 4 * torch.finfo(dtype).eps if dtype in HALVES else TOLERANCE[dtype])


@on_devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_kl_is_accurate_and_not_negative_near_the_prior(dtype, device):
    logvar = torch.logspace(-10, 0, 64, dtype=torch.float64).outer(torch.tensor([1.0, -1.0]).double()).t().to(dtype)
    for row in logvar.reshape(-1, 1):
        kl, exact = (
            functional.gaussian_kl(torch.zeros_like(row, device=device), row.to(device)).cpu(),
            0.5 * (math.expm1(row) - row.double()),
        )
        if abs(row) < 1e-5:  # expm1(x) - x cancels even in float64: its series does not
            exact = row.double() ** 2 / 4 * (1 + row.double() / 3)
        assert kl >= 0
        assert abs(kl.double() - exact) <= (2e-6 if dtype == torch.float32 else 1e-5) * exact


@on_devices
def test_strided_and_broadcast_gaussians(device):
    h = torch.randn(6, 4, 10, dtype=torch.float64, device=device)
    mu, logvar = h.chunk(2, -1)
    assert not mu.is_contiguous()
    assert_close(functional.gaussian_kl(mu, logvar), reference.gaussian_kl(mu, logvar), 1e-12)
    wide = torch.randn(5, dtype=torch.float64, device=device).expand(3, 4, 5)
    assert_close(functional.reparameterize(wide, wide, seed=1), reference.reparameterize(wide, wide, seed=1), 1e-12)
    t = torch.randn(3, 5, 4, dtype=torch.float64, device=device).permute(1, 2, 0)
    assert_close(functional.gaussian_kl(t, t), reference.gaussian_kl(t, t), 1e-12)


@on_devices
@pytest.mark.parametrize("module", [functional, reference], ids=["kernel", "twin"])
def test_chosen_subsets(module, device):
    """A list of subsets: only those count, in the caller's order; rows without any of them get the prior."""
    experts = make_experts(4, 32, 6, dtype=torch.float64, mask="bits", device=device)
    subsets = [0b1100, 0b0001, 0b0111]
    out = module.mopoe_sample_kl(experts.mu, experts.logvar, experts.mask, subsets=subsets, prior="none", seed=4)
    patterns = (experts.mask.cpu().long() << torch.arange(4)).sum(1)
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


@on_devices
@pytest.mark.parametrize("prior", ["none", "full", "all"])
@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
def test_all_subsets_in_any_order(count, prior, device):
    """All 2^M - 1 subsets have code of their own, for up to so many experts: it serves them in any order."""
    experts = make_experts(count, 40, 37, dtype=torch.float64, mask="random", device=device)
    twin = make_experts(count, 40, 37, dtype=torch.float64, mask="random")
    order = (torch.randperm(2**count - 1, generator=torch.Generator().manual_seed(count)) + 1).tolist()
    for subsets in (None, order):
        out, expected = (
            f.mopoe_sample_kl(x.mu, x.logvar, x.mask, subsets=subsets, prior=prior, seed=SEED)
            for f, x in ((functional, experts), (reference, twin))
        )
        assert torch.equal(out.subset.cpu(), expected.subset)
        for i in (0, 1):
            assert_close(out[i], expected[i], 1e-11)
        grads, exact = (
            gradients(out[:2], [*experts.mu, *experts.logvar]),
            gradients(expected[:2], [*twin.mu, *twin.logvar]),
        )
        for g, e in zip(grads, exact, strict=True):
            assert_close(g, e, 1e-11)


@on_devices
@pytest.mark.parametrize("listed", [119, 120, 121, 500, 501])
def test_long_lists_of_subsets(listed, device):
    """CUDA takes up to 120 along in a kernel's arguments, and more by 500 at a time."""
    experts = make_experts(9, 5, 7, dtype=torch.float64, mask="random", device=device)
    twin = experts.to(torch.float64)
    subsets = (torch.randperm(511, generator=torch.Generator().manual_seed(listed))[:listed] + 1).tolist()
    out, expected = (
        (
            *f.subset_posteriors(x.mu, x.logvar, x.mask, subsets=subsets, prior="all")[:3],
            *f.mopoe_sample_kl(x.mu, x.logvar, x.mask, subsets=subsets, prior="all", seed=SEED),
        )
        for f, x in ((functional, experts), (reference, twin))
    )
    assert torch.equal(out[-1].cpu(), expected[-1])
    for a, e in zip(out[:-1], expected[:-1], strict=True):
        assert_close(a, e, 1e-11)
    for g, e in zip(gradients(out[:-1], experts.tensors()), gradients(expected[:-1], twin.tensors()), strict=True):
        assert_close(g, e, 1e-11)


@on_devices
def test_every_available_subset_is_drawn_equally_often(device):
    experts = make_experts(3, 8192, 1, device=device)
    experts.mask = torch.tensor([True, False, True], device=device).expand(8192, 3)
    subset = functional.mopoe_sample_kl(experts.mu, experts.logvar, experts.mask, seed=11).subset.cpu()
    counts = torch.bincount(subset, minlength=7)
    assert counts.nonzero().flatten().tolist() == [0, 3, 4]  # {0}, {2}, {0, 2}
    expected = 8192 / 3
    assert ((counts[[0, 3, 4]] - expected) ** 2 / expected).sum() < 13.8  # chi-square, 2 dof, p = 1e-3


@on_devices
@pytest.mark.parametrize("fn", [fn for fn in EXPERTS if "chosen" in fn or not fn.startswith(("mopoe", "subset"))])
def test_sixteen_experts(fn, device):
    inputs = make_inputs(fn, 16, 3, 18, dtype=torch.float64, mask="random", device=device)
    compare(fn, inputs, allowed(fn, torch.float64, 18))


@on_devices
@pytest.mark.parametrize("fn", ["mopoe_sample_kl", "subset_posteriors"])
def test_all_subsets_of_sixteen_experts(fn, device):
    inputs = make_inputs(fn, 16, 1, 3, dtype=torch.float64, device=device)
    compare(fn, inputs, allowed(fn, torch.float64, 3))


@on_devices
@pytest.mark.parametrize("fn", ["poe_sample_kl", "mopoe_sample_kl", "subset_posteriors"])
def test_more_experts_than_registers(fn, device):
    inputs = make_inputs(fn, 9, 3, 18, dtype=torch.float64, mask="random", device=device)
    compare(fn, inputs, allowed(fn, torch.float64, 18))


@on_devices
def test_a_thousand_samples(device):
    experts = make_experts(3, 2, 9, dtype=torch.float64, mask="bits", device=device)
    twin = experts.to(torch.float64)
    many = [
        f.poe_sample_kl(x.mu, x.logvar, x.mask, n_samples=1000, seed=SEED)[:4]
        for f, x in ((functional, experts), (reference, twin))
    ]
    z = many[1][0].detach()
    scale = [torch.exp(0.5 * v.detach()) for v in twin.logvar]
    many[0] += (functional.mixture_log_prob(z.to(device), experts.mu, [s.to(device) for s in scale], experts.mask),)
    many[1] += (reference.mixture_log_prob(z, twin.mu, scale, twin.mask),)
    for a, e in zip(*many, strict=True):
        assert_close(a, e, 1e-11)
    for a, e in zip(gradients(many[0], experts.tensors()), gradients(many[1], twin.tensors()), strict=True):
        assert_close(a, e, 1e-11)


def test_a_mixture_density_may_be_changed_in_place():
    experts = make_experts(2, 3, 5, scales=True)
    z = torch.randn(3, 5, requires_grad=True)
    functional.mixture_log_prob(z, experts.mu, experts.logvar).add_(1).sum().backward()
    assert z.grad.isfinite().all()


@on_devices
@pytest.mark.parametrize("fn", FUNCTIONS)
def test_every_output_alone(fn, device):
    """Absent gradients count as zero; those that come may be a single number repeated, or transposed."""
    inputs = make_inputs(fn, 3, 7, 19, dtype=torch.float64, mask="random", device=device)
    twin = inputs.to(torch.float64)
    outputs, expected = FUNCTIONS[fn](functional, inputs), FUNCTIONS[fn](reference, twin)
    for i, (a, e) in enumerate(zip(outputs, expected, strict=True)):
        transposed = torch.randn(e.shape[::-1], dtype=torch.float64)
        for weight in (torch.ones(()).double().expand(e.shape), transposed.permute(*reversed(range(e.dim())))):
            options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
            grads = torch.autograd.grad(a, inputs.tensors(), weight.to(device), **options)
            exact = torch.autograd.grad(e, twin.tensors(), weight, **options)
            for g, h in zip(grads, exact, strict=True):
                assert_close(g, h, allowed(fn, torch.float64, 19), f"output {i}")


@on_devices
@pytest.mark.parametrize("fn", FUNCTIONS)
def test_inputs_that_need_no_gradient(fn, device):
    """Each input alone gets the gradient it gets among the others, bit for bit; nobody wants one: none is recorded."""
    inputs = make_inputs(fn, 2, 4, 6, mask="random", device=device)
    tensors = inputs.tensors()
    everything = gradients(FUNCTIONS[fn](functional, inputs), tensors)
    for i in range(len(tensors)):
        some = [t if k == i else t.detach() for k, t in enumerate(tensors)]
        (alone,) = gradients(FUNCTIONS[fn](functional, inputs.replaced(some, inputs.mask)), [some[i]])
        assert torch.equal(alone, everything[i])
    frozen = inputs.replaced([t.detach() for t in tensors], inputs.mask)
    assert not any(o.requires_grad for o in FUNCTIONS[fn](functional, frozen))
