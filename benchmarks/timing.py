"""Fair timing on a shared machine: contestants take turns within one run; medians and their ratios are what counts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def clock() -> Callable[[], float]:
    """CPU time of this thread with one thread (neighbours do not count); wall time with several."""
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def interleaved(
    contestants: dict[str, Callable[[], object]], *, seconds: float = 0.6, rounds: int = 9
) -> dict[str, float]:
    """Median seconds a call of each contestant, over ``rounds`` rounds in which each runs in turn.

    Each round gives every contestant the same share of ``seconds``, at least one call.
    """
    now = clock()
    calls = {}
    for name, f in contestants.items():
        f()
        start = now()
        f()
        once = max(now() - start, 1e-7)
        calls[name] = max(1, min(10_000, int(seconds / rounds / len(contestants) / once)))
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, f in contestants.items():
            start = now()
            for _ in range(calls[name]):
                f()
            samples[name].append((now() - start) / calls[name])
    return {name: statistics.median(times) for name, times in samples.items()}
