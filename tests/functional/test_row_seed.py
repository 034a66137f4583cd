"""Seeds with a first row: a part of some rows draws the noise that it has among all of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from expert_cases import DEVICES, DTYPES, assert_close, make_experts
from function_cases import OpCalls
from torch._dynamo.testing import CompileCounterWithBackend

from mmvae_fast import distributions, functional, nn, reference
from mmvae_fast.functional import row_seed
from mmvae_fast.models.seeds import branch, of_all_rows

needs_kernels = pytest.mark.skipif(not functional._ext.LOADED, reason="built without kernels")
on_devices = pytest.mark.parametrize("device", DEVICES)

SEED = 0x1234_5678_9ABC_DEF0
ROWS, PARTS = 23, [(0, 1), (1, 9), (9, 10), (10, 23)]

# name -> f(module, mu, logvar, mask, seed) -> outputs whose last but one dimension counts the rows
CALLS = {
    "reparameterize": lambda f, mu, lv, mask, s: (f.reparameterize(mu[0], lv[0], seed=s),),
    "reparameterize, samples": lambda f, mu, lv, mask, s: (f.reparameterize(mu[0], lv[0], 3, seed=s),),
    "reparameterize, laplace": lambda f, mu, lv, mask, s: (
        f.reparameterize(mu[0], lv[0], 2, family="laplace", seed=s),
    ),
    "poe_sample_kl": lambda f, mu, lv, mask, s: (f.poe_sample_kl(mu, lv, mask, seed=s).z,),
    "poe_sample_kl, samples": lambda f, mu, lv, mask, s: (f.poe_sample_kl(mu, lv, mask, n_samples=3, seed=s).z,),
    "mopoe_sample_kl": lambda f, mu, lv, mask, s: (
        (out := f.mopoe_sample_kl(mu, lv, mask, seed=s)).z,
        out.subset.unsqueeze(-1),
    ),
    "mopoe_sample_kl, chosen": lambda f, mu, lv, mask, s: (
        (out := f.mopoe_sample_kl(mu, lv, mask, subsets=[4, 1, 7, 3], seed=s)).z,
        out.subset.unsqueeze(-1),
    ),
}
ONE_OF_EACH = ["reparameterize, laplace", "poe_sample_kl, samples", "mopoe_sample_kl"]


def experts(rows, dim, dtype=torch.float32, device="cpu"):
    """mu, logvar [3, rows, dim], some of them so that a backward has to draw the noise again; and a mask."""
    made = make_experts(3, rows, dim, dtype=dtype, layout="stacked", mask="random", rubbish=0.0, device=device)
    mu, logvar = made.mu.detach().clone(), made.logvar.detach().clone()
    logvar[:, rows // 2 :, :3] -= 20
    return mu.requires_grad_(), logvar.requires_grad_(), made.mask


def evaluated(call, module, mu, logvar, mask, seed, weights):
    """The outputs, and the gradients to mu and logvar of a fixed linear form of what has gradients."""
    outputs = CALLS[call](module, mu, logvar, mask, seed)
    grads = torch.autograd.grad((outputs[0].float() * weights).sum(), (mu, logvar))
    return [t.detach() for t in (*outputs, *grads)]


def cut(t, begin, end):
    return t[..., begin:end, :]


def assert_same(a, e, *, bits):
    if bits or not a.is_floating_point():
        assert torch.equal(a, e)
    else:
        assert_close(a, e, 1e-6)


@on_devices
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("module", [functional, reference], ids=["functional", "reference"])
def test_parts_are_parts_of_the_whole(call, module, dtype, device):
    """Forward and backward, from the kernels with the very same bits."""
    dim = 13
    mu, logvar, mask = experts(ROWS, dim, dtype, device)
    shape = CALLS[call](module, mu, logvar, mask, SEED)[0].shape
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16().float().to(device)
    whole = evaluated(call, module, mu, logvar, mask, SEED, weights)
    for first in (0, 2):  # the whole may itself begin anywhere
        for begin, end in PARTS:
            if begin < first:
                continue
            mu_p, logvar_p = (cut(t, begin, end).detach().requires_grad_() for t in (mu, logvar))
            seed = row_seed(row_seed(SEED, first, device=device), begin - first)
            part = evaluated(call, module, mu_p, logvar_p, mask[begin:end], seed, cut(weights, begin, end))
            for a, e in zip(part, whole, strict=True):
                assert_same(a, cut(e, begin, end), bits=module is functional and functional._ext.LOADED)


@pytest.mark.parametrize("dim", [1, 64, 2049, 5000])
def test_parts_of_wide_rows(dim):
    """Rows that a kernel draws in several tiles, and tiles of many rows."""
    zero = torch.zeros(70, dim)
    whole = functional.reparameterize(zero, zero, 2, seed=SEED)
    part = functional.reparameterize(zero[:33], zero[:33], 2, seed=row_seed(SEED, 37))
    assert torch.equal(part, whole[:, 37:])


@pytest.mark.parametrize("first", [0, 5, 2**31 - 1, 2**31 + 3, 2**32 - 2])
def test_known_answers(first):
    """Philox itself, with the row in its counter; rows are counted in 32 bits, which wrap."""
    seed, rows, dim = row_seed(SEED, first), 4, 8
    key = (SEED & 0xFFFFFFFF, SEED >> 32)
    counted = torch.tensor([(first + r) % 2**32 for r in range(rows)])
    words = torch.stack(reference.philox_words((torch.arange(2), counted[:, None], 0, 0), key), -1)  # [rows, 2, 4]
    u = (((words >> 9).double() + 0.5) * 2**-23).reshape(rows, dim)
    assert torch.equal(reference.philox_uniform(seed, rows, dim).double(), u)
    radius, angle = (-2 * u[:, ::2].log()).sqrt(), 2 * torch.pi * u[:, 1::2]
    normals = torch.stack([radius * angle.cos(), radius * angle.sin()], -1).reshape(rows, dim)
    laplace = torch.where(u < 0.5, (2 * u).log(), -(2 * (1 - u)).log())
    zero = torch.zeros(rows, dim, dtype=torch.float64)
    for module in (functional, reference):
        assert_close(module.reparameterize(zero, zero, seed=seed), normals, 1e-12)
        assert_close(module.reparameterize(zero, zero, family="laplace", seed=seed), laplace, 1e-12)
    word = reference.philox_words((0, counted, 0, 1), key)[0]
    assert torch.equal(
        reference.choose_component(seed, torch.full((rows,), 7)), ((word >> 9).double().add(0.5) * 2**-23 * 7).long()
    )


def test_what_it_is():
    seed = row_seed(7, 3)
    assert seed.dtype == torch.int64 and seed.tolist() == [7, 3]
    assert row_seed(2**64 - 1, np.int32(3)).tolist() == [-1, 3]
    assert row_seed(torch.tensor(7), torch.tensor([[3]])).tolist() == [7, 3]
    assert row_seed(row_seed(7, 3), 4).tolist() == [7, 7]
    zero = torch.zeros(4, 8)
    every_other = torch.tensor([7, -1, 3, -1])[::2]
    assert torch.equal(
        functional.reparameterize(zero, zero, seed=every_other), functional.reparameterize(zero, zero, seed=seed)
    )
    assert not torch.equal(
        functional.reparameterize(zero, zero, seed=seed), functional.reparameterize(zero, zero, seed=7)
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None, 0), TypeError, "seed is None"),
        ((1.5, 0), TypeError, "seed: expected an int"),
        ((2**64, 0), ValueError, "seed: expected 64 bits"),
        ((torch.zeros(3, dtype=torch.int64), 0), ValueError, r"seed: .* got torch.int64 \(3,\)"),
        ((0, -1), ValueError, "first_row is -1, expected 0 to 4294967295"),
        ((0, 2**32), ValueError, "first_row is 4294967296, expected 0 to 4294967295"),
        ((0, 1.0), TypeError, "first_row: expected an int or an int64 tensor, got float"),
        ((0, True), TypeError, "first_row: expected an int or an int64 tensor, got bool"),
        ((0, torch.zeros(2, dtype=torch.int64)), ValueError, r"first_row: .* got torch.int64 \(2,\)"),
        ((0, torch.zeros(1)), ValueError, r"first_row: .* got torch.float32 \(1,\)"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        row_seed(*arguments)


@needs_kernels
@on_devices
@pytest.mark.parametrize("call", ONE_OF_EACH)
def test_ops(call, device):
    """Schema, fake, and what torch.compile makes of an op with such a seed; a wrong one is refused by the op itself."""
    mu, logvar, mask = experts(4, 6, device=device)
    with OpCalls() as recorded:
        evaluated(call, functional, mu, logvar, mask, row_seed(SEED, 5, device=device), 1.0)
    assert len(recorded.calls) == 2
    for op, args in recorded.calls:
        torch.library.opcheck(op, args)
        wrong = [torch.zeros(3, dtype=torch.int64, device=device) if _is_seed(a) else a for a in args]
        with pytest.raises(ValueError, match=r"seed is torch.int64 \[3\], expected one int64"):
            op(*wrong)


def _is_seed(a):
    return isinstance(a, torch.Tensor) and a.dtype == torch.int64 and a.shape == (2,)


@needs_kernels
@on_devices
@pytest.mark.parametrize("call", ONE_OF_EACH)
def test_compile(call, device):
    """No graph break, and no compilation for another first row."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def f(mu, logvar, mask, seed, first):
        return CALLS[call](functional, mu, logvar, mask, row_seed(seed, first))

    compiled = torch.compile(f, fullgraph=True, backend=counter)
    inputs = experts(5, 6, device=device)
    for first in (3, 11):
        numbers = (torch.tensor([n], device=device) for n in (SEED, first))
        expected = CALLS[call](functional, *inputs, row_seed(SEED, first, device=device))
        for a, e in zip(compiled(*inputs, *numbers), expected, strict=True):
            assert_same(a, e, bits=False)
    assert counter.frame_count == 1


def test_inside_torch_func():
    mu, logvar = torch.randn(2, 6, 5).unbind()

    def total(mu, seed):
        return functional.reparameterize(mu, logvar[2:], seed=seed).square().sum()

    expected = 2 * functional.reparameterize(mu, logvar, seed=SEED)[2:]
    assert_close(torch.func.grad(total)(mu[2:], row_seed(SEED, 2)), expected, 1e-5)


@pytest.mark.parametrize("n_samples", [None, 3])
@pytest.mark.parametrize("kind", ["Normal", "Laplace", "Independent", "ProductOfExperts", "normal mix", "laplace mix"])
def test_distributions(kind, n_samples):
    mu, logvar, mask = (t.detach() for t in experts(ROWS, 6))

    def of(begin, end):
        m, lv, k = mu[:, begin:end], logvar[:, begin:end], mask[begin:end]
        scale = (0.5 * lv).exp()
        if kind == "ProductOfExperts":
            return distributions.ProductOfExperts(m, lv, k)
        if kind == "normal mix":
            return distributions.MixtureOfExperts.from_logvar(m, lv, k)
        if kind == "laplace mix":
            return distributions.MixtureOfExperts(m, scale, k, family="laplace")
        if kind == "Independent":
            return distributions.Independent(distributions.Normal(m[0], scale[0]), 1)
        return getattr(distributions, kind)(m[0], scale[0])

    shape = () if n_samples is None else (n_samples,)
    whole = of(0, ROWS).rsample(shape, seed=SEED)
    for begin, end in PARTS:
        part = of(begin, end).rsample(shape, seed=row_seed(SEED, begin))
        assert_close(part, whole[..., begin:end, :], 1e-6)


def test_layers():
    mu, logvar, mask = (t.detach() for t in experts(ROWS, 6))
    whole = nn.PoESampleKL()(mu, logvar, mask, seed=SEED).z
    assert torch.equal(nn.PoESampleKL()(mu[:, 9:], logvar[:, 9:], mask[9:], seed=row_seed(SEED, 9)).z, whole[9:])


def test_seeds_of_several_draws():
    seed = row_seed(SEED, 5)
    for i in (-3, 0, 4, 100_001):
        branched = branch(seed, i)
        assert branched.shape == (2,) and branched[1] == 5
        assert torch.equal(branched[:1], branch(torch.tensor([SEED]), i))
        assert torch.equal(of_all_rows(branched), branch(torch.tensor([SEED]), i))
    assert torch.equal(of_all_rows(torch.tensor(SEED)), torch.tensor([SEED]))
