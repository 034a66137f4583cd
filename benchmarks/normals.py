"""Nanoseconds a random normal: the noise alone, a sample of it, and torch's own."""

from __future__ import annotations

import torch

from benchmarks.targets import NORMAL_NANOSECONDS, NORMAL_SPEEDUP
from benchmarks.timing import interleaved
from mmvae_fast import _native, functional

ROWS, DIM = 512, 512  # 1 MiB of float32: stays in the second level cache


def measure(threads: list[int], seconds: float = 1.0) -> list[dict[str, object]]:
    before = torch.get_num_threads()
    zero, out = torch.zeros(ROWS, DIM), torch.empty(ROWS, DIM)
    results: list[dict[str, object]] = []

    def sample() -> object:
        with torch.no_grad():
            return functional.reparameterize(zero, zero)

    try:
        for count in threads:
            torch.set_num_threads(count)
            calls = {
                "reparameterize": sample,  # reads two tensors and exponentiates one besides
                "torch.normal_": out.normal_,
            }
            if count == 1:  # has no threads
                calls["philox_normal"] = lambda: _native.philox_normal(1, ROWS, DIM)
            times = {k: t / (ROWS * DIM) * 1e9 for k, t in interleaved(calls, seconds=seconds).items()}
            best = min(times.get("philox_normal", float("inf")), times["reparameterize"])
            results.append(
                {
                    "threads": count,
                    "nanoseconds": times,
                    "speedup": times["torch.normal_"] / best,
                    "verdicts": {
                        "nanoseconds": NORMAL_NANOSECONDS.verdict(best),
                        "speedup": NORMAL_SPEEDUP.verdict(times["torch.normal_"] / best),
                    },
                }
            )
    finally:
        torch.set_num_threads(before)
    return results
