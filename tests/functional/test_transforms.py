"""gradcheck, opcheck, torch.compile, torch.export, torch.func; threads, instruction sets; what must raise."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch
from expert_cases import assert_close, make_experts
from function_cases import FUNCTIONS, SEED, gradients

from mmvae_fast import functional, reference

needs_kernels = pytest.mark.skipif(not functional._ext.LOADED, reason="built without kernels")


@pytest.mark.parametrize("layout", ["list", "stacked"])
@pytest.mark.parametrize("fn", FUNCTIONS)
def test_gradcheck(fn, layout):
    experts = make_experts(3, 5, 3, dtype=torch.float64, layout=layout, mask="random", rubbish=0.5)

    def f(*tensors):
        x = copy.copy(experts)
        half = len(tensors) // 2
        x.mu, x.logvar = tensors if layout == "stacked" else (list(tensors[:half]), list(tensors[half:]))
        return FUNCTIONS[fn](functional, x)

    assert torch.autograd.gradcheck(f, experts.tensors())


def test_gradcheck_single_gaussian():
    mu, logvar = torch.randn(2, 4, 5, dtype=torch.float64).requires_grad_().unbind(0)
    for n_samples in (None, 2):
        assert torch.autograd.gradcheck(
            lambda m, v, k=n_samples: functional.reparameterize(m, v, k, seed=3), (mu, logvar)
        )
    assert torch.autograd.gradcheck(functional.gaussian_kl, (mu, logvar))


@needs_kernels
def test_opcheck():
    ops = torch.ops.mmvae_fast
    seed, mu, logvar = torch.tensor([3]), torch.randn(4, 6), torch.randn(4, 6)
    experts = make_experts(3, 4, 6, mask="random", rubbish=0.0).to(torch.float32, requires_grad=False)
    m, v, mask = experts.mu, experts.logvar, experts.mask
    stacked = ([torch.stack(m)], [torch.stack(v)])
    z, joint_mu, joint_logvar, kl = ops.poe_sample_kl(m, v, mask, True, 2, seed)
    mz, mkl, subset = ops.mopoe_sample_kl(m, v, mask, None, 1, seed)
    calls = [
        (ops.reparameterize, (mu, logvar, seed, None)),
        (ops.reparameterize, (mu, logvar, seed, 3)),
        (ops.reparameterize_backward, (torch.randn(4, 6), mu, mu, logvar, seed)),
        (ops.gaussian_kl, (mu, logvar)),
        (ops.gaussian_kl_backward, (torch.randn(4), mu, logvar)),
        (ops.product_of_experts, (m, v, mask, True)),
        (ops.product_of_experts, (*stacked, None, False)),
        (ops.product_of_experts_backward, (joint_mu, None, m, v, mask, joint_mu, joint_logvar)),
        (ops.poe_sample_kl, (m, v, mask, True, None, seed)),
        (ops.poe_sample_kl, (*stacked, mask, False, 2, seed)),
        (ops.poe_sample_kl_backward, (z, None, joint_logvar, kl, m, v, mask, z, joint_mu, joint_logvar, seed)),
        (ops.mopoe_sample_kl, (m, v, mask, None, 1, seed)),
        (ops.mopoe_sample_kl, (*stacked, None, [3, 5], 0, seed)),
        (ops.mopoe_sample_kl_backward, (mz, mkl, m, v, mask, None, 1, mz, subset, seed)),
    ]
    for op, args in calls:
        torch.library.opcheck(op.default, args)


@needs_kernels
@pytest.mark.parametrize("fn", FUNCTIONS)
def test_compile_fullgraph(fn):
    """No graph break; the same numbers; a second batch size does not fail."""
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: FUNCTIONS[fn](functional, x), fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (6, 9):
        experts = make_experts(3, rows, 10, mask="random")
        outputs, expected = compiled(experts), FUNCTIONS[fn](functional, experts)
        for a, e in zip(outputs, expected, strict=True):
            assert_close(a, e, 1e-6)
        inputs = experts.tensors()
        for a, e in zip(gradients(outputs, inputs), gradients(expected, inputs), strict=True):
            assert_close(a, e, 1e-6)


@needs_kernels
@pytest.mark.parametrize("fn", ["product_of_experts", "poe_sample_kl", "mopoe_sample_kl"])
@pytest.mark.parametrize("inputs", ["stacked", "stacked without gradients", "one expert", "tied", "no mask"])
def test_compile_takes_every_form_of_experts(fn, inputs):
    torch._dynamo.reset()
    experts = make_experts(3, 6, 10, layout="stacked" if "stacked" in inputs else "list")
    mu, logvar = experts.mu, experts.logvar
    if inputs == "stacked without gradients":
        mu, logvar = mu.detach(), logvar.detach()
    elif inputs == "one expert":
        mu, logvar = mu[:1], logvar[:1]
    elif inputs == "tied":  # one learned variance, and one expert twice
        mu, logvar = [mu[0], mu[1], mu[0]], [logvar[0]] * 3
    call = getattr(functional, fn)
    options = {} if fn == "product_of_experts" else {"seed": SEED}
    outputs = torch.compile(call, fullgraph=True, backend="aot_eager")(mu, logvar, **options)
    expected = call(mu, logvar, **options)
    for a, e in zip(outputs[:2], expected[:2], strict=True):
        assert_close(a, e, 1e-6)
    leaves = list({id(t): t for t in [*mu, *logvar]}.values()) if isinstance(mu, list) else [mu, logvar]
    if leaves[0].requires_grad:
        for a, e in zip(gradients(outputs[:2], leaves), gradients(expected[:2], leaves), strict=True):
            assert_close(a, e, 1e-6)


@needs_kernels
def test_inductor_draws_fresh_reproducible_noise():
    torch._dynamo.reset()
    mu = torch.zeros(4, 8)
    sample = torch.compile(lambda m: functional.reparameterize(m, m), fullgraph=True)
    torch.manual_seed(3)
    first, second = sample(mu), sample(mu)
    torch.manual_seed(3)
    assert torch.equal(sample(mu), first)
    assert not torch.equal(first, second)


@needs_kernels
@pytest.mark.parametrize("fn", FUNCTIONS)
def test_export(fn):
    class Fusion(torch.nn.Module):
        def forward(self, mu: list[torch.Tensor], logvar: list[torch.Tensor], mask: torch.Tensor):
            x = copy.copy(experts)
            x.mu, x.logvar, x.mask = mu, logvar, mask
            return FUNCTIONS[fn](functional, x)

    experts = make_experts(2, 5, 6, mask="random", rubbish=0.0).to(torch.float32, requires_grad=False)
    args = (experts.mu, experts.logvar, experts.mask)
    rows = torch.export.Dim("rows", min=1)
    shapes = ([{0: rows}] * 2, [{0: rows}] * 2, {0: rows})
    with torch.no_grad():
        exported = torch.export.export(Fusion(), args, dynamic_shapes=shapes)
        assert any("mmvae_fast" in str(node.target) for node in exported.graph.nodes)
        more = make_experts(2, 11, 6, mask="random", rubbish=0.0).to(torch.float32, requires_grad=False)
        args = (more.mu, more.logvar, more.mask)
        for a, e in zip(exported.module()(*args), Fusion()(*args), strict=True):
            assert_close(a, e, 1e-6)


@needs_kernels
@pytest.mark.parametrize("fn", ["poe_sample_kl", "mopoe_sample_kl"])
def test_a_module_exported_for_training_trains(fn):
    """Exported ops have no autograd; exported in grad mode, the twin stands in, and gradients arrive."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = torch.nn.Linear(6, 8)

        def forward(self, x):
            mu, logvar = self.encoder(x).chunk(2, -1)
            out = getattr(functional, fn)([mu, mu + 1], [logvar, logvar], seed=5)
            return out.z, out.kl

    torch.manual_seed(0)
    model, x = Model(), torch.randn(3, 6)
    exported = torch.export.export(model, (x,)).module()
    parameters, originals = list(exported.parameters()), list(model.parameters())
    outputs, expected = exported(x), model(x)
    for a, e in zip(gradients(outputs, parameters), gradients(expected, originals), strict=True):
        assert_close(a, e, 1e-5)


@pytest.mark.parametrize("fn", FUNCTIONS)
def test_torch_func_grad(fn):
    experts = make_experts(2, 4, 5, dtype=torch.float64)

    def total(mu, logvar):
        x = copy.copy(experts)
        x.mu, x.logvar = mu, logvar
        return sum(o.sum() for o in FUNCTIONS[fn](functional, x))

    grads = torch.func.grad(total, argnums=(0, 1))(
        [m.detach() for m in experts.mu], [v.detach() for v in experts.logvar]
    )
    expected = torch.autograd.grad(total(experts.mu, experts.logvar), experts.tensors())
    for a, e in zip([*grads[0], *grads[1]], expected, strict=True):
        assert_close(a, e, 1e-12)


@needs_kernels
@pytest.mark.parametrize("fn", [*FUNCTIONS, "reparameterize", "gaussian_kl"])
def test_double_backward_raises(fn):
    """Gradients under create_graph are right; differentiating them again raises instead of missing our part."""
    experts = make_experts(2, 3, 4)
    if fn in FUNCTIONS:
        outputs, inputs = FUNCTIONS[fn](functional, experts), experts.tensors()
    else:
        inputs = [experts.mu[0], experts.logvar[0]]
        outputs = (getattr(functional, fn)(*inputs),)
    total = sum(o.sum() for o in outputs)
    plain = torch.autograd.grad(total, inputs, retain_graph=True)
    grads = torch.autograd.grad(total, inputs, create_graph=True)
    assert all(torch.equal(a, e) for a, e in zip(grads, plain, strict=True))
    with pytest.raises(NotImplementedError, match="no double backward"):
        (sum(g.square().sum() for g in grads) + experts.mu[0].square().sum()).backward()


@needs_kernels
@pytest.mark.parametrize("grad_mode", [True, False])
@pytest.mark.parametrize("fn", FUNCTIONS)
def test_forward_mode_raises(fn, grad_mode):
    experts = make_experts(2, 3, 4).to(torch.float32, requires_grad=False)
    with torch.autograd.forward_ad.dual_level(), torch.set_grad_enabled(grad_mode):
        experts.mu[0] = torch.autograd.forward_ad.make_dual(experts.mu[0], torch.ones_like(experts.mu[0]))
        with pytest.raises((NotImplementedError, RuntimeError), match="forward|jvp"):
            FUNCTIONS[fn](functional, experts)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fn", FUNCTIONS)
def test_half_types_run_on_the_twin(fn, dtype):
    """Half in, half out, float32 inside; kl is float32."""
    experts = make_experts(3, 6, 8, dtype=dtype, mask="random")
    outputs = FUNCTIONS[fn](functional, experts)
    exact = FUNCTIONS[fn](reference, experts.to(torch.float64))
    kl = None if fn.startswith("product") else outputs[-1]
    assert kl is None or kl.dtype == torch.float32
    assert outputs[0].dtype == dtype
    for a, e in zip(outputs, exact, strict=True):
        assert_close(a, e, 1e-5 if a is kl else 1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("fn", FUNCTIONS)
def test_any_number_of_threads(fn, dtype):
    experts = make_experts(4, 300, 130, dtype=dtype, mask="random")
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            outputs = FUNCTIONS[fn](functional, experts)
            results.append([*outputs, *gradients(outputs, experts.tensors())])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


PROBE = """
import sys, torch
from mmvae_fast import functional, _native
g = torch.Generator().manual_seed(0)
mu = torch.randn(3, 9, 37, generator=g).requires_grad_(); logvar = torch.randn(3, 9, 37, generator=g).requires_grad_()
mask = torch.rand(9, 3, generator=g) > .4
a = functional.poe_sample_kl(mu, logvar, mask, seed=7); b = functional.mopoe_sample_kl(mu, logvar, mask, seed=7)
(a.z.sum() + a.kl.sum() + b.z.sum() + b.kl.sum()).backward()
torch.save({"capability": _native.cpu_capability(), "noise": torch.from_numpy(_native.philox_normal(7, 9, 37)),
            "out": [a.z, a.mu, a.logvar, a.kl, b.z, b.kl, mu.grad, logvar.grad], "subset": b.subset}, sys.argv[1])
"""


@needs_kernels
def test_every_instruction_set(tmp_path):
    """The same numbers from baseline, AVX2 and AVX-512 code; the noise of the two with FMA bit for bit."""
    results = {}
    for wanted in ("default", "avx2", "avx512"):
        path = tmp_path / f"{wanted}.pt"
        env = {**os.environ, "ATEN_CPU_CAPABILITY": wanted}
        subprocess.run([sys.executable, "-c", PROBE, str(path)], check=True, env=env)
        results[wanted] = torch.load(path)
    assert results["default"]["capability"] == "DEFAULT"
    for wanted in ("avx2", "avx512"):
        for a, e in zip(results[wanted]["out"], results["default"]["out"], strict=True):
            assert_close(a, e, 2e-6, wanted)
        assert torch.equal(results[wanted]["subset"], results["default"]["subset"])
    if results["avx2"]["capability"] == "AVX2":
        assert torch.equal(results["avx2"]["noise"], results["avx512"]["noise"])


def test_inputs_are_not_changed():
    experts = make_experts(3, 8, 6, mask="random")
    before = [t.clone() for t in experts.tensors()]
    for fn in FUNCTIONS:
        gradients(FUNCTIONS[fn](functional, experts), experts.tensors())
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(experts.tensors(), before, strict=True))


def test_rows_are_exchangeable():
    """With the noise taken out of the comparison (mu, logvar, kl), permuting rows or experts permutes results."""
    experts = make_experts(3, 10, 7, dtype=torch.float64, mask="random")
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    a = functional.poe_sample_kl(experts.mu, experts.logvar, experts.mask, seed=SEED)
    b = functional.poe_sample_kl(
        [m[order] for m in experts.mu], [v[order] for v in experts.logvar], experts.mask[order], seed=SEED
    )
    c = functional.poe_sample_kl(experts.mu[::-1], experts.logvar[::-1], experts.mask.flip(1), seed=SEED)
    for x, y, w in zip(a[1:4], b[1:4], c[1:4], strict=True):
        assert_close(y, x[order], 1e-13)
        assert_close(w, x, 1e-13)
