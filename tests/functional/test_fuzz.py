"""Random shapes, strides, masks, types and special values through every function, against the twin in float64."""

from __future__ import annotations

import math

import function_cases
import pytest
import torch
from expert_cases import DTYPES, LAYOUTS, Experts, assert_close
from function_cases import FUNCTIONS, allowed, make_inputs, rows_of, summed_tolerance
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmvae_fast import functional, reference

pytestmark = pytest.mark.skipif(not functional._ext.LOADED, reason="built without kernels")

SEEDS = [0, 1, -1, 2**63 - 1, -(2**63), 2**64 - 1, 0x1234_5678_9ABC_DEF0]
FLOOR = 0.1  # some results are differences that come out as 0
SPECIAL = [100.0, -100.0, 0.0, 1e-36, 1e30, math.inf, -math.inf, math.nan]
# With these a row is still compared: what a mean, or a number that is looked at like one, and the others may be.
MEANS = [100.0, -100.0, 0.0, 1e-36]
COMPARED = {"logvar": [*MEANS, math.inf], "scale": [100.0, 1e-36, math.inf], "weights": [100.0, 0.0, 1e-36]}


@st.composite
def calls(draw, fn):
    every_subset = fn.startswith(("mopoe", "subset")) and "chosen" not in fn
    return {
        "shape": (
            draw(st.integers(1, 6 if every_subset else 16)),
            draw(st.integers(0, 12)),
            draw(st.one_of(st.integers(0, 40), st.sampled_from([64, 100, 257]))),
        ),
        "options": {
            "dtype": draw(st.sampled_from(DTYPES)),
            "layout": draw(st.sampled_from(LAYOUTS)),
            "mask": draw(st.sampled_from(["none", "all", "random", "bits", "nothing"])),
            "spread": draw(st.sampled_from([1e-3, 1.0, 4.0])),
            "rubbish": draw(st.sampled_from([math.nan, math.inf, -math.inf])),
            "seed": draw(st.integers(0, 2**31)),
        },
        "noise": (draw(st.sampled_from(SEEDS)), draw(st.integers(0, 5))),
        # where special values go: (tensor, row, column) as fractions
        "plants": draw(
            st.lists(st.tuples(*[st.floats(0, 1, exclude_max=True)] * 3, st.sampled_from(SPECIAL)), max_size=3)
        ),
        "wants_grad": draw(st.integers(1, 2**40 - 1)),
        "used": draw(st.integers(1, 31)),
        "form": draw(st.sampled_from(["plain", "expanded", "transposed"])),
    }


def names_of(fn, inputs):
    """What the tensors are called."""
    if not isinstance(inputs, Experts):
        return [name.removeprefix("prior_") for name in inputs.differentiable]
    count = (len(inputs.tensors()) - len(inputs.extra)) // 2
    spread, extra = ("scale", "z") if fn.startswith("mixture") else ("logvar", "weights")
    return [*["mu"] * count, *[spread] * count, *[extra] * len(inputs.extra)]


def plant(fn, inputs, call):
    """Writes the special values; returns the rows that hold one, and those that are compared nevertheless."""
    rows = call["shape"][1]
    touched, beyond = torch.zeros(2, rows, dtype=torch.bool)
    if rows == 0 or call["options"]["layout"] == "expanded":
        return touched, touched
    tensors, names = inputs.tensors(), names_of(fn, inputs)
    dims = rows_of(fn, inputs, ())[1]
    for which, row, column, value in call["plants"]:
        k = int(which * len(tensors))
        if tensors[k].numel() == 0:
            continue
        with torch.no_grad():
            index = [int(column * n) for n in tensors[k].shape]
            if dims[k] is not None:
                index[dims[k]] = int(row * rows)
            tensors[k][tuple(index)] = value
            held = float(tensors[k][tuple(index)])  # 1e30 is infinite in float16
        reached = slice(None) if dims[k] is None else int(row * rows)
        touched[reached] = True
        beyond[reached] |= held not in COMPARED.get(names[k], MEANS)
    return touched, touched & ~beyond


def compare(kind, actual, expected, dims, rows, tolerance):
    """The given rows of every tensor; what all rows share only where all rows are asked for."""
    for i, (a, e, dim) in enumerate(zip(actual, expected, dims, strict=True)):
        if dim is None and rows.all():
            assert_close(a, e, tolerance, f"{kind} {i}", FLOOR)
        elif dim is not None:
            assert_close(a.movedim(dim, 0)[rows], e.movedim(dim, 0)[rows], tolerance, f"{kind} {i}", FLOOR)


def compare_touched(kind, actual, expected, dims, rows, tolerance):
    """Row by row, each by its own size; not where the twin, or its derivative, is NaN: a kernel may know better."""
    for i, (a, e, dim) in enumerate(zip(actual, expected, dims, strict=True)):
        if dim is None:
            continue
        a, e = a.detach().movedim(dim, 0), e.detach().movedim(dim, 0)
        a = a.masked_fill(e.isnan(), math.nan)
        for row in rows.nonzero().flatten().tolist():
            assert_close(a[row], e[row], tolerance, f"{kind} {i}, row {row}", FLOOR)


@pytest.mark.parametrize("public", sorted({fn.split(",")[0].split(" ")[0] for fn in FUNCTIONS}))
@settings(derandomize=True, database=None, deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_fuzz(public, data):
    fn = data.draw(st.sampled_from([f for f in FUNCTIONS if f.split(",")[0].split(" ")[0] == public]))
    call = data.draw(calls(fn))
    before = function_cases.SEED, function_cases.SAMPLES
    function_cases.SEED, function_cases.SAMPLES = call["noise"]
    try:
        check(fn, call)
    finally:
        function_cases.SEED, function_cases.SAMPLES = before


def check(fn, call):
    dtype = call["options"]["dtype"]
    inputs = make_inputs(fn, *call["shape"], **call["options"])
    touched, compared = plant(fn, inputs, call)
    wanted = [bool(call["wants_grad"] >> i & 1) for i in range(len(inputs.tensors()))]
    wanted[0] = wanted[0] or not any(wanted)
    tensors = [t.detach().requires_grad_(w) for t, w in zip(inputs.tensors(), wanted, strict=True)]
    inputs, twin = inputs.replaced(tensors, inputs.mask), inputs.to(torch.float64)
    outputs, expected = list(FUNCTIONS[fn](functional, inputs)), list(FUNCTIONS[fn](reference, twin))
    of_outputs, of_inputs = rows_of(fn, inputs, outputs)

    calm = ~touched
    tolerance = allowed(fn, dtype, call["shape"][2])
    compare("output", outputs, expected, of_outputs, calm, tolerance)
    if dtype in (torch.float32, torch.float64):
        compare_touched("output", outputs, expected, of_outputs, compared, 10 * tolerance)
    # NaN is not hidden; the twin also makes it of -inf - -inf, where a kernel may know better
    planted = {value for *_, value in call["plants"]}
    hidden_from = [] if -math.inf in planted else zip(outputs, expected, of_outputs, strict=True)
    for a, e, dim in hidden_from:
        by_row, exact = (t.detach().movedim(dim, 0).flatten(1) if t.dim() > 1 else t[:, None] for t in (a, e))
        assert not (exact.isnan() & by_row.isfinite()).any()

    used = [i for i in range(len(outputs)) if call["used"] >> i & 1] or [0]
    g = torch.Generator().manual_seed(1)
    weights = []
    for i in used:
        shape = outputs[i].shape
        weight = torch.randn(shape[::-1], generator=g).bfloat16()
        weight = weight.permute(*reversed(range(len(shape))))
        if call["form"] == "plain":
            weight = weight.contiguous()
        elif call["form"] == "expanded":
            weight = torch.full((), 1.5).bfloat16().expand(shape)
        weights.append(weight)
    differentiable = [t for t in tensors if t.requires_grad]
    exact_inputs = [t for t, w in zip(twin.tensors(), wanted, strict=True) if w]
    dims = [d for d, w in zip(of_inputs, wanted, strict=True) if w]
    options = {"allow_unused": True, "materialize_grads": True}
    arriving = [w.to(outputs[i].dtype) for i, w in zip(used, weights, strict=True)]
    grads = torch.autograd.grad([outputs[i] for i in used], differentiable, arriving, **options)
    exact = torch.autograd.grad([expected[i] for i in used], exact_inputs, [w.double() for w in weights], **options)
    tolerance = max(10 * tolerance, summed_tolerance(fn, dtype))
    compare("gradient", grads, exact, dims, calm, tolerance)
    if dtype in (torch.float32, torch.float64):
        compare_touched("gradient", grads, exact, dims, compared, 10 * tolerance)
