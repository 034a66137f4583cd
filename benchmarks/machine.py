"""What we ran on, and how fast it copies."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path

import torch

import mmvae_fast
from benchmarks.timing import interleaved
from mmvae_fast import _ext

# With glibc's defaults, memory that one contestant frees is returned to the system and faulted in again by the next
# (0.3 ms a MiB), which says more about their order than about them.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "2000000000",
    "MALLOC_TRIM_THRESHOLD_": "2000000000",
    "MALLOC_TOP_PAD_": "268435456",
}


def copy(size: int, device: str = "cpu") -> Callable[[], object]:
    """torch's copy of half of ``size`` bytes: reads and writes as many as a kernel that has to move ``size``."""
    source = torch.zeros(max(size // 8, 1), device=device)
    target = torch.ones_like(source)
    return lambda: target.copy_(source)


def copy_bandwidth(device: str = "cpu", size: int = 512 << 20) -> float:
    """GB/s, read plus written, beyond any cache."""
    return size / interleaved({"copy": copy(size, device)}, device=device)["copy"] / 1e9


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def allocator() -> str:
    kept = all(os.environ.get(k) == v for k, v in KEEP_MEMORY.items())
    return "glibc malloc, told to keep freed memory (MALLOC_*)" if kept else "glibc's defaults"


def environment(device: str) -> dict[str, object]:
    native = None
    if _ext.LOADED:
        from mmvae_fast import _native

        native = _native.cpu_capability()
    described: dict[str, object] = {
        "mmvae_fast": mmvae_fast.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "kernels": native,
        "allocator": allocator(),
    }
    if device == "cuda":
        described |= {
            "device": torch.cuda.get_device_name(),
            "compute capability": "{}.{}".format(*torch.cuda.get_device_capability()),
            "cuda": torch.version.cuda,
            "driver": _driver(),
        }
    return described


def _driver() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return "unknown"
    return next((word for word in text.split() if word[:1].isdigit() and "." in word), "unknown")
