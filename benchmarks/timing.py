"""Fair timing on a shared machine: contestants take turns within one run; medians and their ratios are what counts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

Call = Callable[[], object]


def cpu_clock() -> Callable[[], float]:
    """CPU time of this thread with one thread (neighbours do not count); wall time with several."""
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def seconds_of(call: Call, count: int, device: str) -> float:
    """Seconds that ``count`` calls take: on a GPU between two events of its stream, idle gaps between launches too."""
    if device != "cuda":
        now = cpu_clock()
        start = now()
        for _ in range(count):
            call()
        return now() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    for _ in range(count):
        call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


def interleaved(
    contestants: dict[str, Call], *, seconds: float = 0.6, rounds: int = 9, device: str = "cpu"
) -> dict[str, float]:
    """Median seconds a call of each contestant, over ``rounds`` rounds in which each runs in turn.

    Each round gives every contestant the same share of ``seconds``, at least one call; one that needs ten times its
    share for that sits out two rounds of three.
    """
    share = seconds / rounds / max(len(contestants), 1)
    calls, every = {}, {}
    for name, call in contestants.items():
        seconds_of(call, 2, device)
        once = max(seconds_of(call, 1, device), 1e-7)
        calls[name] = max(1, min(10_000, int(share / once)))
        every[name] = 3 if once > 10 * share else 1
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for r in range(rounds):
        for name, call in contestants.items():
            if r % every[name] == 0:
                samples[name].append(seconds_of(call, calls[name], device) / calls[name])
    return {name: statistics.median(times) for name, times in samples.items()}
