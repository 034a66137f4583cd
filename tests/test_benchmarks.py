"""The contestants of the benchmarks compute what the twins do: a baseline that rots would flatter the kernels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from benchmarks import cases, targets

ROWS, DIM = 6, 16
EXACT = {"rtol": 1e-6, "atol": 1e-6}  # peers add 1e-8 to variances


def contestants(name: str) -> list[str]:
    forms = cases.build(targets.at(name, ROWS, DIM)).compile_forms
    return ["eager", "peer", *(f.__name__ for f in forms)]


PAIRS = [(name, form) for name in cases.CASES for form in contestants(name)]


def outputs(name: str, form: str, *, noise: bool = True) -> tuple[cases.Case, list[Tensor], list[Tensor]]:
    """The case, the twin's outputs and a contestant's; without noise, posteriors are collapsed to their means."""
    torch.manual_seed(0)
    case = cases.build(targets.at(name, ROWS, DIM), dtype=torch.float64)
    if not noise:
        with torch.no_grad():
            for t in tree_leaves(case.arguments[1]):
                t -= 80.0
            if name.startswith("mopoe"):  # whichever subset is drawn
                for t in case.arguments[0]:
                    t.copy_(case.arguments[0][0])
    function = case.forms.get(form) or next(f for f in case.compile_forms if f.__name__ == form)
    return case, case.outputs(case.forms["twin"]), case.outputs(function)


def samples(name: str) -> bool:
    return "reparameterize" in name or "sample" in name


def drawn(name: str) -> list[int]:
    """The outputs that chance has a part in: the sample, and MoPoE's choice of a subset."""
    return [0, 2] if name.startswith("mopoe") else [0] if samples(name) else []


@pytest.mark.parametrize("name, form", PAIRS)
def test_same_values_and_gradients(name: str, form: str) -> None:
    case, twin, other = outputs(name, form)
    exact = [i for i in range(len(twin)) if i not in drawn(name)]
    for i in exact:
        torch.testing.assert_close(other[i], twin[i], **EXACT)
    used = [i for i in case.used if i in exact]
    if used:
        weights = [torch.randn_like(twin[i]) for i in used]
        expected = torch.autograd.grad([twin[i] for i in used], case.inputs, weights)
        actual = torch.autograd.grad([other[i] for i in used], case.inputs, weights)
        torch.testing.assert_close(actual, expected, **EXACT)


# with experts, the peers' epsilon is larger than a collapsed variance
NOISELESS = [(name, form) for name, form in PAIRS if samples(name) and (form != "peer" or "reparameterize" in name)]


@pytest.mark.parametrize("name, form", NOISELESS)
def test_same_samples_but_for_the_noise(name: str, form: str) -> None:
    _, twin, other = outputs(name, form, noise=False)
    torch.testing.assert_close(other[0], twin[0], **EXACT)


@pytest.mark.parametrize("name, form", [(name, form) for name, form in PAIRS if samples(name)])
def test_noise_of_the_same_spread(name: str, form: str) -> None:
    """Over many rows, samples of all contestants have the twin's mean and standard deviation."""
    torch.manual_seed(0)
    case = cases.build(targets.at(name, 20_000, 4))
    function = case.forms.get(form) or next(f for f in case.compile_forms if f.__name__ == form)
    with torch.no_grad():
        twin, other = (case.outputs(f)[0] for f in (case.forms["twin"], function))
    torch.testing.assert_close(other.mean(0), twin.mean(0), rtol=0, atol=0.06)
    torch.testing.assert_close(other.std(0), twin.std(0), rtol=0.06, atol=0)


@pytest.mark.parametrize("name", sorted(cases.CASES))
def test_ours_runs_both_ways(name: str) -> None:
    case = cases.build(targets.at(name, ROWS, DIM))
    _, grads = case.forward_backward(case.forms["ours"])()
    assert all(torch.isfinite(g).all() for g in grads)


def test_everything_owed_names_a_case() -> None:
    assert {w.case for w in targets.ROWS + targets.GPU_ROWS} <= set(cases.CASES)
    assert set(targets.GPU_SHARES) <= {w.case for w in targets.GPU_ROWS}
