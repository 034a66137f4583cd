"""gradcheck, opcheck, torch.compile, torch.export, torch.func; threads, instruction sets; what must raise."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import function_cases
import pytest
import torch
from expert_cases import DEVICES, DTYPES, TOLERANCE, assert_close, make_experts
from function_cases import EXPERTS, FUNCTIONS, ONE_OF_EACH, SEED, OpCalls, gradients, make_inputs

from mmvae_fast import functional

needs_kernels = pytest.mark.skipif(not functional._ext.LOADED, reason="built without kernels")
on_devices = pytest.mark.parametrize("device", DEVICES)


@on_devices
@pytest.mark.parametrize("fn", FUNCTIONS)
def test_gradcheck(fn, device):
    for layout in ("list", "stacked") if fn in EXPERTS else ("list",):
        inputs = make_inputs(fn, 2, 4, 3, dtype=torch.float64, layout=layout, mask="bits", rubbish=0.5, device=device)

        def f(*tensors, inputs=inputs):
            return tuple(FUNCTIONS[fn](functional, inputs.replaced(tensors, inputs.mask)))

        assert torch.autograd.gradcheck(f, inputs.tensors())


@needs_kernels
@on_devices
@pytest.mark.parametrize("fn", ONE_OF_EACH)
def test_opcheck(fn, device):
    """Every native call a function and its backward make: schema, fake, and what torch.compile makes of it."""
    layout, dtype = [("list", torch.float32), ("stacked", torch.bfloat16)][ONE_OF_EACH.index(fn) % 2]
    inputs = make_inputs(fn, 3, 4, 6, layout=layout, mask="random", rubbish=0.0, dtype=dtype, device=device)
    with OpCalls() as recorded:
        gradients(FUNCTIONS[fn](functional, inputs), inputs.tensors())
    assert len(recorded.calls) == 2
    for op, args in recorded.calls:
        torch.library.opcheck(op, args)


@needs_kernels
def test_every_op_is_checked():
    """ONE_OF_EACH does hold one of each."""
    with OpCalls() as recorded:
        for fn in ONE_OF_EACH:
            inputs = make_inputs(fn, 2, 3, 4)
            gradients(FUNCTIONS[fn](functional, inputs), inputs.tensors())
    called = {op.name().split("::")[1] for op, _ in recorded.calls}
    forward = [name for name in functional.__all__ if name.islower() and name != "row_seed"]
    assert called == {*forward, *(f"{name}_backward" for name in forward)}


@needs_kernels
@on_devices
@pytest.mark.parametrize("fn", ONE_OF_EACH)
def test_compile_fullgraph(fn, device):
    """No graph break; the same numbers; a second batch size does not fail."""
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: FUNCTIONS[fn](functional, x), fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (6, 9):
        inputs = make_inputs(fn, 3, rows, 10, mask="random", device=device)
        outputs, expected = compiled(inputs), FUNCTIONS[fn](functional, inputs)
        for a, e in zip(outputs, expected, strict=True):
            assert_close(a, e, 1e-6)
        tensors = inputs.tensors()
        for a, e in zip(gradients(outputs, tensors), gradients(expected, tensors), strict=True):
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
def test_compile_once_for_new_tensors():
    """Inputs of a compiled function are other objects each time; that alone is no reason to compile again."""
    torch._dynamo.reset()

    def call(mu, logvar):
        joint, _ = functional.product_of_experts([mu, logvar, mu], [logvar, logvar, mu])  # some twice
        return functional.reparameterize(mu, logvar, seed=SEED) + functional.gaussian_kl(mu, logvar)[:, None] + joint

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            inputs = [torch.randn(6, 10, requires_grad=True) for _ in range(2)]
            output, expected = compiled(*inputs), call(*inputs)
            assert_close(output, expected, 1e-6)
            for a, e in zip(gradients([output], inputs), gradients([expected], inputs), strict=True):
                assert_close(a, e, 1e-6)
    shared = torch.randn(6, 10, requires_grad=True)
    assert_close(compiled(shared, shared), call(shared, shared), 1e-6)


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
@pytest.mark.parametrize("fn", ONE_OF_EACH)
def test_export(fn):
    class Call(torch.nn.Module):
        def forward(self, tensors: list[torch.Tensor], fixed: dict[str, torch.Tensor]):
            return tuple(FUNCTIONS[fn](functional, arranged(inputs, tensors, fixed)))

    def example(rows):
        inputs = make_inputs(fn, 2, rows, 6, mask="random", rubbish=0.0).to(torch.float32, requires_grad=False)
        if fn in EXPERTS:
            return inputs, (inputs.tensors(), {"mask": inputs.mask})
        return inputs, (inputs.tensors(), dict(inputs.fixed))

    def arranged(inputs, tensors, fixed):
        mask = fixed.get("mask")
        if fn in EXPERTS:
            return inputs.replaced(tensors, mask)
        return replace(inputs.replaced(tensors, mask), fixed=fixed)

    def rows_of(t):  # every dimension of 7 is one of rows; where one row would be broadcast, a graph is for 2 or more
        return {i: torch.export.Dim("rows", min=2 if "broadcast" in fn else 1) for i, n in enumerate(t.shape) if n == 7}

    inputs, args = example(7)
    shapes = ([rows_of(t) for t in args[0]], {k: rows_of(t) for k, t in args[1].items()})
    with torch.no_grad():
        exported = torch.export.export(Call(), args, dynamic_shapes=shapes)
        assert any("mmvae_fast" in str(node.target) for node in exported.graph.nodes)
        _, args = example(11)
        for a, e in zip(exported.module()(*args), Call()(*args), strict=True):
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


@on_devices
@pytest.mark.parametrize("fn", FUNCTIONS)
def test_torch_func_grad(fn, device):
    inputs = make_inputs(fn, 2, 4, 5, dtype=torch.float64, mask="random", rubbish=0.5, device=device)

    def total(*tensors):
        return sum(o.sum() for o in FUNCTIONS[fn](functional, inputs.replaced(tensors, inputs.mask)))

    tensors = inputs.tensors()
    grads = torch.func.grad(total, argnums=tuple(range(len(tensors))))(*[t.detach() for t in tensors])
    for a, e in zip(grads, torch.autograd.grad(total(*tensors), tensors), strict=True):
        assert_close(a, e, 1e-12)


@on_devices
@pytest.mark.parametrize("fn", FUNCTIONS)
def test_vmap(fn, device):
    """A batch of calls is the calls one by one, and so are their gradients (per-sample gradients)."""
    inputs = make_inputs(fn, 2, 4, 5, dtype=torch.float64, mask="random", rubbish=0.5, device=device)

    def call(*tensors):
        return tuple(FUNCTIONS[fn](functional, inputs.replaced(tensors, inputs.mask)))

    def total(*tensors):
        return sum(o.sum() for o in call(*tensors))

    batch = [torch.stack([t.detach(), 1.1 * t.detach()]) for t in inputs.tensors()]
    together = torch.func.vmap(call)(*batch)
    grads = torch.func.vmap(torch.func.grad(total, argnums=tuple(range(len(batch)))))(*batch)
    for i in range(2):
        alone = [b[i].clone().requires_grad_() for b in batch]
        for a, e in zip(together, call(*alone), strict=True):
            assert_close(a[i], e, 1e-12)
        for a, e in zip(grads, torch.autograd.grad(total(*alone), alone), strict=True):
            assert_close(a[i], e, 1e-12)


@on_devices
@pytest.mark.parametrize("fn", ["reparameterize", "poe_sample_kl", "mopoe_sample_kl"])
def test_vmapped_noise(fn, device):
    """randomness="different" draws anew for every entry, "same" once; torch's generator governs both; or seeds do."""

    def z(mu, **options):
        call = getattr(functional, fn)
        out = call(mu, mu, **options) if fn == "reparameterize" else call([mu], [mu], **options)
        return out if fn == "reparameterize" else out.z

    mu = torch.zeros(3, 4, 6, device=device)
    for randomness, alike in (("different", False), ("same", True)):
        torch.manual_seed(5)
        draw = torch.func.vmap(z, randomness=randomness)
        first, second, third = draw(mu)
        assert torch.equal(first, second) == torch.equal(first, third) == alike
        again = draw(mu)
        assert not torch.equal(again[0], first)
        torch.manual_seed(5)
        assert torch.equal(draw(mu)[2], third)
    seeds = torch.tensor([7, 8, 7], device=device)
    drawn = torch.func.vmap(lambda m, s: z(m, seed=s))(mu, seeds)
    for i, seed in enumerate((7, 8, 7)):
        assert_close(drawn[i], z(mu[i], seed=seed), 1e-6)


@needs_kernels
@on_devices
@pytest.mark.parametrize("fn", FUNCTIONS)
def test_double_backward_raises(fn, device):
    """Gradients under create_graph are right; differentiating them again raises instead of missing our part."""
    inputs = make_inputs(fn, 2, 3, 4, device=device)
    outputs, tensors = FUNCTIONS[fn](functional, inputs), inputs.tensors()
    total = sum(o.sum() for o in outputs)
    plain = torch.autograd.grad(total, tensors, retain_graph=True)
    grads = torch.autograd.grad(total, tensors, create_graph=True)
    assert all(torch.equal(a, e) for a, e in zip(grads, plain, strict=True))
    with pytest.raises(NotImplementedError, match="no double backward"):
        (sum(g.square().sum() for g in grads) + tensors[0].square().sum()).backward()


@needs_kernels
@on_devices
@pytest.mark.parametrize("grad_mode", [True, False])
@pytest.mark.parametrize("fn", FUNCTIONS)
def test_forward_mode_raises(fn, grad_mode, device):
    inputs = make_inputs(fn, 2, 3, 4, device=device)
    plain = [t.detach() for t in inputs.tensors()]
    with torch.autograd.forward_ad.dual_level(), torch.set_grad_enabled(grad_mode):
        for i in range(len(plain)):
            dual = torch.autograd.forward_ad.make_dual(plain[i], torch.ones_like(plain[i]))
            tensors = [dual if k == i else t for k, t in enumerate(plain)]
            with pytest.raises((NotImplementedError, RuntimeError), match="forward|jvp"):
                FUNCTIONS[fn](functional, inputs.replaced(tensors, inputs.mask))


@needs_kernels
def test_forward_mode_through_the_data_raises():
    x, mean = torch.randn(2, 3), torch.randn(2, 3)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(NotImplementedError, match="forward-mode"):
            functional.log_likelihood(dual, mean, family="normal")


@needs_kernels
def test_shapes_without_data():
    """On the meta device every function answers with shapes."""
    a, b = (torch.randn(2, 3, device="meta") for _ in range(2))
    assert functional.gaussian_kl(a, b, a).shape == (2,)
    assert functional.product_of_experts([a, b], [a, b], weights=torch.ones(2, device="meta"))[0].shape == (2, 3)
    assert functional.poe_sample_kl([a, b], [a, b], n_samples=4, seed=1).z.shape == (4, 2, 3)
    assert functional.mixture_log_prob(a, [a, b], [a, b]).shape == (2,)
    assert functional.log_likelihood(a, b, family="normal").shape == (2,)


@needs_kernels
@on_devices
def test_autocast_promotes_to_the_widest(device):
    """Under autocast encoders hand over halves beside float32; outside it that is an error."""
    half, full = (torch.randn(2, 4, 6, device=device).to(t).requires_grad_() for t in (torch.bfloat16, torch.float32))
    calls = {
        "reparameterize": lambda: functional.reparameterize(half[0], full[0], seed=1),
        "gaussian_kl": lambda: functional.gaussian_kl(half[0], full[0]),
        "laplace_kl": lambda: functional.laplace_kl(half[0], half[1], full[0]),
        "product_of_experts": lambda: functional.product_of_experts([half[0], full[0]], [half[1], full[1]])[0],
        "poe_sample_kl": lambda: functional.poe_sample_kl([half[0], full[0]], [half[1], full[1]], seed=1).z,
        "mopoe_sample_kl": lambda: functional.mopoe_sample_kl(half, full, seed=1).z,
        "subset_posteriors": lambda: functional.subset_posteriors(half, full).mu,
        "mixture_log_prob": lambda: functional.mixture_log_prob(full[0], half, full.exp()),
    }
    for name, call in calls.items():
        with torch.autocast(device, dtype=torch.bfloat16):
            out = call()
        assert out.dtype == torch.float32
        assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), [half, full]))
        with pytest.raises(ValueError, match=f"mmvae_fast.{name}: .* expected torch"):
            call()


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fn", [fn for fn in FUNCTIONS if "prior of one number" not in fn])  # that sum is torch's
def test_any_number_of_threads(fn, dtype):
    """Bit for bit: rows, and sums over rows, are cut in the same places."""
    inputs = make_inputs(fn, 4, 300, 130, dtype=dtype, mask="random")
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            outputs = FUNCTIONS[fn](functional, inputs)
            results.append([*outputs, *gradients(outputs, inputs.tensors())])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(results[0], other, strict=True))


PROBE = """
import sys, torch
from function_cases import FUNCTIONS, gradients, make_inputs
from mmvae_fast import functional, _native
results = {}
for fn in FUNCTIONS:
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        inputs = make_inputs(fn, 3, 9, 37, dtype=dtype, mask="random")
        outputs = FUNCTIONS[fn](functional, inputs)
        results[fn, dtype] = [t.detach() for t in (*outputs, *gradients(outputs, inputs.tensors()))]
torch.save({"capability": _native.cpu_capability(), "noise": torch.from_numpy(_native.philox_normal(7, 9, 37)),
            "results": results}, sys.argv[1])
"""


@needs_kernels
def test_every_instruction_set(tmp_path):
    """The same numbers from baseline, AVX2 and AVX-512 code; the noise of the two with FMA bit for bit."""
    results = {}
    helpers = str(Path(function_cases.__file__).parent)
    for wanted in ("default", "avx2", "avx512"):
        path = tmp_path / f"{wanted}.pt"
        paths = os.pathsep.join([helpers, *filter(None, [os.environ.get("PYTHONPATH")])])
        env = {**os.environ, "ATEN_CPU_CAPABILITY": wanted, "PYTHONPATH": paths}
        subprocess.run([sys.executable, "-c", PROBE, str(path)], check=True, env=env)
        results[wanted] = torch.load(path)
    assert results["default"]["capability"] == "DEFAULT"
    for wanted in ("avx2", "avx512"):
        for (fn, dtype), expected in results["default"]["results"].items():
            # a mixture's responsibilities are exponentials of log-densities that are sums over the dimensions
            tolerance = {torch.float64: 1e-13}.get(dtype, 2 * TOLERANCE[dtype])
            tolerance *= 10 if "mixture" in fn else 1
            for a, e in zip(results[wanted]["results"][fn, dtype], expected, strict=True):
                assert_close(a, e, tolerance, f"{wanted}, {fn}")
    if results["avx2"]["capability"] == "AVX2":
        assert torch.equal(results["avx2"]["noise"], results["avx512"]["noise"])


@pytest.mark.parametrize("fn", FUNCTIONS)
def test_inputs_are_not_changed(fn):
    inputs = make_inputs(fn, 3, 8, 6, mask="random")
    before = inputs.to(torch.float32)
    gradients(FUNCTIONS[fn](functional, inputs), inputs.tensors())
    assert all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(inputs.tensors(), before.tensors(), strict=True)
    )


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
