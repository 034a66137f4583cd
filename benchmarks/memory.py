"""What a call keeps, moves and allocates, in bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def size_of(tensors: Iterable[object]) -> int:
    """Bytes of the elements of all tensors."""
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))


def _storages(tree: object) -> dict[int, int]:
    """data pointer -> bytes of everything a tree of tensors keeps alive."""
    storages = [t.untyped_storage() for t in tree_leaves(tree) if isinstance(t, Tensor)]
    return {s.data_ptr(): s.nbytes() for s in storages}


def saved_for_backward(call: Callable[[], object], inputs: object) -> int:
    """Bytes autograd keeps for the backward beyond the inputs and outputs, which are alive anyway."""
    saved: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        outputs = call()
    alive = _storages(inputs) | _storages(outputs)
    return sum(size for pointer, size in _storages(saved).items() if pointer not in alive)


def peak(call: Callable[[], object], device: str = "cpu") -> tuple[int, int]:
    """(highest total of live allocations during a call, what of it the results are), in bytes.

    Sees whatever goes through torch's allocator, native ops and compiled code too; not a kernel's scratch on its stack.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before, sum(_storages(result).values())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as session:
        result = call()
    kept = sum(_storages(result).values())
    events = [e for e in session.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    live = highest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        highest = max(highest, live)
    return highest, kept


class _Traffic(TorchDispatchMode):
    """Counts the bytes of arguments and results of every op that is not a view: what kernel after kernel moves."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.bytes += size_of(tree_leaves((args, kwargs))) + size_of(tree_leaves(result))
        return result


def moved(call: Callable[[], object]) -> int:
    """Bytes read and written by the ops of a call, each counted once an op. Cannot look into compiled code."""
    with _Traffic() as traffic:
        call()
    return traffic.bytes
