"""Bad input: an error that names function, argument, what came and what was expected; kernel and twin say the same."""

from __future__ import annotations

import pytest
import torch

from mmvae_fast import functional, reference

A, B = torch.zeros(4, 6), torch.zeros(4, 6)
WIDE, LONG = torch.zeros(4, 7), torch.zeros(5, 6)
DOUBLE, INT, META = A.double(), A.long(), A.to("meta")
MASK = torch.ones(4, 2, dtype=torch.bool)

EXPERT_CALLS = ["product_of_experts", "poe_sample_kl", "mopoe_sample_kl", "subset_posteriors"]

BAD_EXPERTS = {
    "dims differ": (([A, WIDE], [A, B], None), r"mu\[1\] has shape \[4, 7\], expected \[4, 6\] like mu\[0\]"),
    "rows differ": (([A, B], [A, LONG], None), r"logvar\[1\] has shape \[5, 6\], expected \[4, 6\] like mu\[0\]"),
    "rank": (([A[0], B[0]], [A[0], B[0]], None), r"mu\[0\] has shape \[6\], expected \[B, D\]"),
    "rank of a stack": ((A, B, None), r"mu has shape \[4, 6\], expected stacked experts \[M, B, D\]"),
    "a stack in a list": (([WIDE.expand(3, 4, 7)], [WIDE.expand(3, 4, 7)], None), r"mu\[0\] has shape \[3, 4, 7\]"),
    "no dimensions": ((A.sum(), B.sum(), None), "mu has no dimensions"),
    "counts differ": (([A, B], [A], None), "got 2 mu and 1 logvar"),
    "no experts": (([], [], None), "mu is empty"),
    "dtypes differ": (([A, DOUBLE], [A, B], None), r"mu\[1\] is torch.float64, expected torch.float32 like mu\[0\]"),
    "integers": (([INT, INT], [INT, INT], None), r"mu\[0\] is torch.int64, expected float32, float64"),
    "devices differ": (([A, META], [A, B], None), r"mu\[1\] is on meta, expected cpu like mu\[0\]"),
    "mask dtype": (([A, B], [A, B], MASK.float()), r"mask is torch.float32, expected torch.bool \(True = observed\)"),
    "mask shape": (([A, B], [A, B], MASK.t()), r"mask has shape \[2, 4\], expected \[B, M\] = \[4, 2\]"),
    "mask device": (([A, B], [A, B], MASK.to("meta")), "mask is on meta, expected cpu like mu"),
    "mask rank": (([A, B], [A, B], MASK[:, 0]), r"mask has shape \[4\], expected \[B, M\] = \[4, 2\]"),
    "list and stack": (([A, B], torch.stack([A, B]), None), "both be lists"),
    "not tensors": (([A, 1.0], [A, B], None), r"mu\[1\] is a float, expected a tensor"),
}


@pytest.mark.parametrize("module", [functional, reference], ids=["kernel", "twin"])
@pytest.mark.parametrize("fn", EXPERT_CALLS)
@pytest.mark.parametrize("case", BAD_EXPERTS)
def test_experts(case, fn, module):
    (mu, logvar, mask), sentence = BAD_EXPERTS[case]
    with pytest.raises((ValueError, TypeError), match=sentence) as error:
        getattr(module, fn)(mu, logvar, mask)
    assert f"mmvae_fast.{fn}" in str(error.value)


@pytest.mark.parametrize("module", [functional, reference], ids=["kernel", "twin"])
@pytest.mark.parametrize("fn", ["reparameterize", "gaussian_kl", "laplace_kl"])
@pytest.mark.parametrize(
    "mu, logvar, sentence",
    [
        (A, WIDE, r"logvar has shape \[4, 7\], expected \[4, 6\] like mu"),
        (A, DOUBLE, "logvar is torch.float64, expected torch.float32 like mu"),
        (INT, INT, "mu is torch.int64, expected float32"),
        (torch.tensor(1.0), torch.tensor(1.0), r"mu has no dimensions, expected \[..., D\]"),
        (A, META, "logvar is on meta, expected cpu like mu"),
        (A, None, "logvar is a NoneType, expected a tensor"),
        ([1.0], [2.0], "mu is a list, expected a tensor"),
    ],
)
def test_gaussians(fn, mu, logvar, sentence, module):
    with pytest.raises((ValueError, TypeError), match=sentence) as error:
        getattr(module, fn)(mu, logvar)
    assert f"mmvae_fast.{fn}" in str(error.value)


@pytest.mark.parametrize("module", [functional, reference], ids=["kernel", "twin"])
def test_options(module):
    with pytest.raises(ValueError, match="n_samples is -1, expected 0 or more"):
        module.reparameterize(A, B, -1)
    with pytest.raises(TypeError, match="n_samples is a float"):
        module.poe_sample_kl([A], [B], n_samples=2.0)
    with pytest.raises(ValueError, match="prior is 'some', expected 'none', 'full' or 'all'"):
        module.mopoe_sample_kl([A], [B], prior="some")
    with pytest.raises(ValueError, match="subsets holds 4, expected bitmasks from 1 to 3 for 2 experts"):
        module.mopoe_sample_kl([A, A], [B, B], subsets=[4])
    with pytest.raises(ValueError, match="names one twice"):
        module.mopoe_sample_kl([A, A], [B, B], subsets=[1, 1])
    with pytest.raises(ValueError, match="non-empty list"):
        module.mopoe_sample_kl([A, A], [B, B], subsets=[])
    with pytest.raises(ValueError, match="subset_posteriors: subsets holds 4"):
        module.subset_posteriors([A, A], [B, B], subsets=[4])
    with pytest.raises(ValueError, match="at most 16"):
        module.mopoe_sample_kl([A] * 17, [B] * 17)
    with pytest.raises(ValueError, match=r"weights has shape \[3\], expected \[M\] = \[2\] or \[M, D\] = \[2, 6\]"):
        module.product_of_experts([A, A], [B, B], weights=torch.ones(3))
    with pytest.raises(ValueError, match=r"prior_mu has shape \[7\], expected one that broadcasts to \[4, 6\]"):
        module.gaussian_kl(A, B, torch.zeros(7))
    with pytest.raises(ValueError, match=r"seed: expected a tensor on cpu like mu, got one on meta"):
        module.reparameterize(A, B, seed=torch.zeros(1, dtype=torch.int64, device="meta"))
    for fn in ("product_of_experts", "poe_sample_kl"):
        with pytest.raises(TypeError, match="prior is 'none', expected True or False"):
            getattr(module, fn)([A], [B], prior="none")
    with pytest.raises(ValueError, match="expected 1 to 62"):
        module.product_of_experts([A] * 63, [B] * 63)


@pytest.mark.skipif(not functional._ext.LOADED, reason="built without kernels")
def test_raw_ops_check_too():
    """Called past the Python layer, the ops still refuse before a kernel starts."""
    ops, seed = torch.ops.mmvae_fast, torch.tensor([1])
    z, joint_mu, joint_logvar, kl, _ = ops.poe_sample_kl([A], [B], None, True, None, seed, False)
    with pytest.raises(ValueError, match="subsets holds 9, expected bitmasks from 1 to 3"):
        ops.mopoe_sample_kl([A, A], [B, B], None, [9], 1, seed)
    with pytest.raises(ValueError, match="names 1 twice"):
        ops.subset_posteriors([A, A], [B, B], None, [1, 1], 1)
    with pytest.raises(ValueError, match=r"expected 0 \(none\)"):
        ops.mopoe_sample_kl([A], [B], None, None, 7, seed)
    with pytest.raises(ValueError, match="n_samples is -2"):
        ops.reparameterize(A, B, seed, -2, 0)
    with pytest.raises(ValueError, match=r"family is 2, expected 0 \(normal\) or 1 \(laplace\)"):
        ops.reparameterize(A, B, seed, None, 2)
    with pytest.raises(ValueError, match="seed is torch.int64"):
        ops.reparameterize(A, B, torch.zeros(3, dtype=torch.int64), None, 0)
    with pytest.raises(ValueError, match="grad_kl has shape"):
        ops.poe_sample_kl_backward(
            None, None, None, kl[:2], None, [A], [B], None, True, z, joint_mu, joint_logvar, seed
        )
    with pytest.raises(ValueError, match="subset holds -100000000, expected -1 to 0"):
        ops.mopoe_sample_kl_backward(None, kl, [A], [B], None, None, 1, z, torch.full((4,), -100000000), seed)
    with pytest.raises(ValueError, match="subset holds 5"):
        ops.mopoe_sample_kl_backward(None, kl, [A], [B], None, None, 1, z, torch.full((4,), 5), seed)
    with pytest.raises(ValueError, match=r"z has shape \[4, 7\], expected \[..., B, D\]"):
        ops.mixture_log_prob(WIDE, [A], [B], None, 0)
    with pytest.raises(ValueError, match="family is 7, expected 0 to 3"):
        ops.log_likelihood(A, B, None, 1.0, 7, 1, None)
    with pytest.raises(ValueError, match="event_dims is 2, expected 0 to 1"):
        ops.log_likelihood(A, B, None, 1.0, 0, 2, None)


@pytest.mark.parametrize(
    "kwargs, sentence",
    [
        ({"x": torch.zeros(4, 3), "params": torch.zeros(4, 2), "family": "normal"}, r"params has shape \[4, 2\]"),
        ({"x": torch.zeros(4, 3), "params": torch.zeros(4, 3), "family": "gamma"}, "family is 'gamma'"),
        ({"x": torch.zeros(4, 3), "params": torch.zeros(4, 3, 5), "family": "categorical"}, "expected integer class"),
        (
            {"x": torch.zeros(4, 3), "params": torch.zeros(4, 3), "family": "normal", "mask": torch.ones(3).bool()},
            r"mask has shape \[3\], expected \[B\] = \[4\]",
        ),
        ({"x": torch.zeros(4, 3), "params": torch.zeros(4, 3), "family": "normal", "event_dims": 2}, "event_dims is 2"),
        (
            {"x": torch.zeros(4, 3), "params": torch.zeros(4, 3), "family": "normal", "event_dims": 1.0},
            "event_dims is a float",
        ),
        (
            {"x": torch.zeros(4, 3), "params": torch.zeros(4, 3), "family": "normal", "scale": 0},
            "scale is 0, expected a p",
        ),
        ({"x": torch.zeros(4, 3), "params": torch.zeros(4, 3), "family": "normal", "scale": "1"}, "scale is a str"),
        (
            {"x": torch.zeros(4, 3), "params": torch.zeros(4, 3), "family": "normal", "scale": torch.ones(4)},
            r"scale has shape \[4\], expected one that broadcasts to \[4, 3\] like params",
        ),
        (
            {"x": torch.zeros(4, 3), "params": torch.zeros(4, 3), "family": "laplace", "scale": torch.ones(3).int()},
            "scale is torch.int32",
        ),
        (
            {"x": torch.zeros(4, 3), "params": torch.zeros(4, 3), "family": "bernoulli", "scale": 0.5},
            "scale is 0.5, expected none: family='bernoulli' has no scale",
        ),
        (
            {"x": torch.full((4, 3), 5), "params": torch.zeros(4, 3, 5), "family": "categorical"},
            "x holds 5, expected class indices from 0 to 4",
        ),
        (
            {"x": torch.full((4, 3), -1), "params": torch.zeros(4, 3, 5), "family": "categorical"},
            "x holds -1, expected class indices from 0 to 4",
        ),
    ],
)
@pytest.mark.parametrize("module", [functional, reference], ids=["kernel", "twin"])
def test_log_likelihood(kwargs, sentence, module):
    with pytest.raises((ValueError, TypeError), match="mmvae_fast.log_likelihood: .*" + sentence):
        module.log_likelihood(**kwargs)


def test_categorical_classes_of_missing_rows_are_not_looked_at():
    x = torch.tensor([[1, 2], [-100, 99]])
    mask = torch.tensor([True, False])
    ll = functional.log_likelihood(x, torch.zeros(2, 2, 3), family="categorical", mask=mask)
    assert ll[1] == 0 and ll[0].isfinite()


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"z": torch.zeros(4, 2)}, r"z has shape \[4, 2\], expected \[..., B, D\] = \[..., 4, 3\] for"),
        ({"z": torch.zeros(3)}, r"z has shape \[3\]"),
        ({"z": torch.zeros(4, 3).double()}, "z is torch.float64, expected torch.float32 like mu"),
        ({"scale": [torch.ones(4, 3), torch.ones(4, 2)]}, r"scale\[1\] has shape \[4, 2\], expected \[4, 3\]"),
        ({"scale": [torch.ones(4, 3)]}, "got 2 mu and 1 scale"),
        ({"scale": torch.ones(2, 4, 3)}, "mu and scale must both be"),
        ({"mask": torch.ones(4, 3).bool()}, r"mask has shape \[4, 3\], expected \[B, M\] = \[4, 2\]"),
        ({"family": "cauchy"}, "family is 'cauchy', expected 'normal' or 'laplace'"),
    ],
)
@pytest.mark.parametrize("module", [functional, reference], ids=["kernel", "twin"])
def test_mixture_log_prob(change, sentence, module):
    call = {"z": torch.zeros(4, 3), "mu": [torch.zeros(4, 3)] * 2, "scale": [torch.ones(4, 3)] * 2, **change}
    with pytest.raises((ValueError, TypeError), match="mixture_log_prob: " + sentence):
        module.mixture_log_prob(**call)


@pytest.mark.parametrize("module", [functional, reference], ids=["kernel", "twin"])
@pytest.mark.parametrize("fn", ["gaussian_kl", "laplace_kl"])
def test_prior(fn, module):
    mu = torch.zeros(4, 3)
    for prior, sentence in (
        (torch.zeros(4, 1, 3), r"prior_mu has shape \[4, 1, 3\], expected one that broadcasts to \[4, 3\] like mu"),
        (torch.zeros(3).double(), "prior_mu is torch.float64, expected torch.float32 like mu"),
        (0.5, "prior_mu is a float, expected a tensor"),
    ):
        with pytest.raises((ValueError, TypeError), match=f"{fn}: {sentence}"):
            getattr(module, fn)(mu, mu, prior)


@pytest.mark.parametrize("module", [functional, reference], ids=["kernel", "twin"])
def test_families_and_weights(module):
    mu = torch.zeros(2, 4, 3)
    with pytest.raises(ValueError, match="reparameterize: family is 'cauchy', expected 'normal' or 'laplace'"):
        module.reparameterize(mu, mu, family="cauchy")
    for weights, sentence in (
        (torch.ones(3), r"weights has shape \[3\], expected \[M\] = \[2\] or \[M, D\] = \[2, 3\]"),
        (torch.ones(2).double(), "weights is torch.float64, expected torch.float32 like mu"),
        ([1.0, 1.0], "weights is a list, expected a tensor"),
    ):
        with pytest.raises((ValueError, TypeError), match=f"product_of_experts: {sentence}"):
            module.product_of_experts(mu, mu, weights=weights)
