"""The fixed cost of a call, taken apart, on inputs so small (2x64) that the kernels cost nothing.

op          the registered op alone, as the dispatcher runs it, its allocations included
other ops   what the public function dispatches besides: drawing a seed
Python      the public function without autograd, minus both: argument checks and the way to the op
autograd    what recording adds to that: torch.autograd.Function
backward    forward+backward minus the forward; of it the backward op alone, the rest is torch's engine
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.cases import build
from benchmarks.targets import TINY_FORWARD, TINY_FORWARD_BACKWARD, at
from benchmarks.timing import Call, interleaved

CASES = [
    "reparameterize",
    "gaussian_kl",
    "product_of_experts, mask",
    "poe_sample_kl, mask",
    "mopoe_sample_kl, mask",
    "subset_posteriors, mask",
    "mixture_log_prob, normal",
    "log_likelihood, normal",
    "log_likelihood, bernoulli",
    "log_likelihood, categorical",
]


@dataclass
class Overhead:
    """Microseconds."""

    case: str
    forward: float
    forward_backward: float
    op: float
    other_ops: float
    python: float
    autograd: float
    backward_op: float

    @property
    def verdicts(self) -> dict[str, str]:
        return {
            "forward": TINY_FORWARD.verdict(self.forward),
            "forward_backward": TINY_FORWARD_BACKWARD.verdict(self.forward_backward),
        }

    def as_json(self) -> dict[str, object]:
        return {**asdict(self), "verdicts": self.verdicts}


class _Record(TorchDispatchMode):
    """The ops a call dispatches, to be run again by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.ours: list[Call] = []
        self.others: list[Call] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == "mmvae_fast":
            self.ours.append(_without_autograd(lambda: func(*args, **kwargs)))
        elif func.overloadpacket is torch.ops.aten.randint:
            self.others.append(_without_autograd(draw_seed))
        elif func.overloadpacket is not torch.ops.aten.detach:
            self.others.append(_without_autograd(lambda: func(*args, **kwargs)))
        return func(*args, **kwargs)


def draw_seed() -> Tensor:
    return torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64)


def _without_autograd(call: Call) -> Call:
    def run() -> object:
        with torch.no_grad():
            return call()

    return run


def _recorded(call: Call) -> tuple[list[Call], list[Call]]:
    with _Record() as record:
        call()
    return record.ours, record.others


def overhead(name: str, seconds: float = 1.0) -> Overhead:
    work = at(name, 2, 64)
    case = build(work)
    ours = case.forms["ours"]
    public, both = case.forward(ours), case.forward_backward(ours)
    with torch.no_grad():
        op, other = _recorded(public)
    result = case.outputs(ours)
    grads = [torch.randn_like(result[i]) for i in case.used]
    used = [result[i] for i in case.used]
    backward_op, _ = _recorded(lambda: torch.autograd.grad(used, case.inputs, grads))
    plain = _without_autograd(public)
    nothing = _without_autograd(lambda: None)
    calls = {"public": plain, "forward": public, "both": both, "nothing": nothing}
    calls |= {f"op {i}": c for i, c in enumerate(op)} | {f"other {i}": c for i, c in enumerate(other)}
    calls |= {f"backward {i}": c for i, c in enumerate(backward_op)}
    times = {k: t * 1e6 for k, t in interleaved(calls, seconds=seconds, rounds=15).items()}

    def total(kind: str) -> float:
        return sum(t - times["nothing"] for k, t in times.items() if k.startswith(f"{kind} "))

    without = times["public"] - times["nothing"]
    return Overhead(
        case=name,
        forward=times["forward"],
        forward_backward=times["both"],
        op=total("op"),
        other_ops=total("other"),
        python=without - total("op") - total("other"),
        autograd=times["forward"] - without,
        backward_op=total("backward"),
    )


class _Nothing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        return x.detach()

    @staticmethod
    def backward(ctx, grad: Tensor):
        ctx.saved_tensors  # noqa: B018
        return grad, grad


def floors(seconds: float = 0.5) -> dict[str, float]:
    """Microseconds of what nobody who calls autograd from Python gets below."""
    x, y, grad = torch.randn(2, 64).requires_grad_(), torch.randn(2, 64).requires_grad_(), torch.randn(2, 64)

    def both(form: Callable[..., Tensor]) -> Call:
        return lambda: torch.autograd.grad(form(x, y), (x, y), grad)

    calls: dict[str, Call] = {
        "torch.add": lambda: torch.add(x, y),
        "torch.add + autograd.grad": both(torch.add),
        "empty autograd.Function": lambda: _Nothing.apply(x, y),
        "empty autograd.Function + autograd.grad": both(_Nothing.apply),
        "drawing a seed (torch.randint)": draw_seed,
    }
    return {name: t * 1e6 for name, t in interleaved(calls, seconds=seconds, rounds=15).items()}


def measure(seconds: float = 1.0) -> tuple[list[Overhead], dict[str, float]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [overhead(name, seconds) for name in CASES], floors()
    finally:
        torch.set_num_threads(threads)
