"""What only CUDA has: graphs that are captured and replayed, streams, several devices."""

from __future__ import annotations

import function_cases
import pytest
import torch
from expert_cases import assert_close, make_experts
from function_cases import FUNCTIONS, SEED, allowed, gradients, make_inputs

from mmvae_fast import functional

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not functional._ext.CUDA_LOADED, reason="built without CUDA kernels"),
]
SHAPE = 3, 33, 20
SAMPLERS = [fn for fn in FUNCTIONS if fn.startswith("reparameterize") or "sample_kl" in fn]
functions = pytest.mark.parametrize("fn", FUNCTIONS)


class Step:
    """Forward and backward of a function on tensors that stay where they are."""

    def __init__(self, function, inputs):
        self.function, self.inputs = function, inputs
        self.weights = [torch.randn_like(o) for o in function(functional, inputs)]

    def __call__(self):
        """Outputs, then gradients."""
        outputs = self.function(functional, self.inputs)
        grads = torch.autograd.grad(outputs, self.inputs.tensors(), self.weights)
        return [o.detach() for o in outputs] + list(grads)

    def change_inputs(self):
        with torch.no_grad():
            for t in self.inputs.tensors():
                t.mul_(0.75)  # scales and weights stay positive


def step_of(fn: str, device: str = "cuda") -> Step:
    return Step(FUNCTIONS[fn], make_inputs(fn, *SHAPE, mask="random", device=device))


def captured(step):
    """A graph of the step and the tensors it writes, after the warm-up that torch asks for."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    return graph, results


def replayed(graph, results):
    """What a replay writes, and not what an earlier one left."""
    for t in results:
        t.fill_(torch.nan)
    graph.replay()
    return [t.clone() for t in results]


def assert_same(results, expected):
    assert len(results) == len(expected)
    for i, (a, e) in enumerate(zip(results, expected, strict=True)):
        assert torch.equal(a.cpu(), e.cpu()), f"result {i}"


@functions
def test_a_replay_is_the_call(fn):
    step = step_of(fn)
    expected = step()
    graph, results = captured(step)
    for _ in range(2):
        assert_same(replayed(graph, results), expected)
    step.change_inputs()
    changed = replayed(graph, results)
    assert_same(changed, step())
    assert not torch.equal(changed[0], expected[0])


@pytest.mark.parametrize("fn", SAMPLERS)
def test_every_replay_draws_anew(fn, monkeypatch):
    monkeypatch.setattr(function_cases, "SEED", None)
    step = step_of(fn)
    graph, results = captured(step)
    (z, *_), (other, *_) = first, second = replayed(graph, results), replayed(graph, results)
    assert not (z == other).all(-1).any()  # in no row
    if fn.startswith("reparameterize, normal"):  # forward and backward of a replay draw the same
        mu, weight = step.inputs["mu"], step.weights[0]
        for of_replay, *_, grad in (first, second):
            exact = 0.5 * weight * (of_replay - mu)
            assert_close(grad, exact.sum(0) if exact.dim() == 3 else exact, 1e-4)


@pytest.mark.parametrize("count, listed", [(4, 7), (9, 120), (9, 121), (11, 1100)])
def test_lists_of_subsets_are_captured(count, listed):
    """However long: nothing that the first call made of a list has to live as long as the graph."""
    subsets = list(range(2**count - 1, 2**count - 1 - listed, -1))

    def both(f, x):
        return (
            *f.mopoe_sample_kl(x.mu, x.logvar, x.mask, subsets=subsets, seed=SEED)[:2],
            *f.subset_posteriors(x.mu, x.logvar, x.mask, subsets=subsets)[:3],
        )

    step = Step(both, make_experts(count, 9, 10, mask="random", device="cuda"))
    expected = step()
    graph, results = captured(step)
    for first in range(1, 2**count, 2**count // 15):  # other lists meanwhile
        other = list(range(2**count - 1, first - 1, -1))
        functional.subset_posteriors(step.inputs.mu, step.inputs.logvar, subsets=other)
    assert_same(replayed(graph, results), expected)


@functions
def test_the_current_stream_is_used(fn):
    """There the inputs come late: kernels on another stream would read what was there before."""
    step = step_of(fn)
    late = [t.detach().clone() for t in step.inputs.tensors()]
    expected = step()
    with torch.no_grad():
        for t in step.inputs.tensors():
            t.fill_(torch.nan)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # clock cycles, about 10 ms
        with torch.no_grad():
            for t, now in zip(step.inputs.tensors(), late, strict=True):
                t.copy_(now)
        results = step()
    stream.synchronize()
    assert_same(results, expected)


@functions
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_device_that_is_not_the_current_one(fn):
    inputs = make_inputs(fn, *SHAPE, mask="random", device="cuda:1")
    twin = inputs.to(torch.float32)  # on the CPU
    with torch.cuda.device(0):
        outputs, expected = FUNCTIONS[fn](functional, inputs), FUNCTIONS[fn](functional, twin)
        grads, exact = gradients(outputs, inputs.tensors()), gradients(expected, twin.tensors())
        assert torch.cuda.current_device() == 0
    for a, e in zip([*outputs, *grads], [*expected, *exact], strict=True):
        assert a.device == torch.device("cuda:1")
        assert_close(a, e, 2 * allowed(fn, torch.float32, SHAPE[2]))
