"""Time the fused functions against plain PyTorch and torch.compile; ratios from one interleaved run, and JSON.

    python -m benchmarks [--sizes 64x64,256x512] [--threads 1] [--allocator tuned|default] [--out FILE.json]

Contestants, on the same inputs (float32, five experts in a list, mask):
  twin          mmvae_fast.reference, with the same exact noise (int64 arithmetic)
  plain         the best plain PyTorch with torch's own noise (benchmarks/plain.py)
  compile twin  torch.compile(twin)        } fullgraph, fallback_random=True: Inductor's own CPU noise
  compile       torch.compile(plain form)  } would be about 15 times slower

A ratio above 1 means the kernel is faster. Thread CPU time with one thread, wall time with more.

With glibc's defaults, memory that one contestant frees is returned to the system and faulted in again by the next
(0.3 ms a MiB), which says more about their order than about them: by default all of them run with an allocator that
keeps what it has (the MALLOC_ variables the output shows).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import warnings
from pathlib import Path

import torch

import mmvae_fast
from benchmarks.cases import cases
from benchmarks.timing import interleaved
from mmvae_fast import functional

ABOUT = (
    "Written by `make bench ARGS='--markdown benchmarks/RESULTS.md'`. Ratios are contestant / kernel, medians of "
    "interleaved rounds of one run: above 1 the kernel is faster. Contestants: the twin in `reference.py` (same exact "
    "noise), the best plain PyTorch we know (`benchmarks/plain.py`, torch's noise), and torch.compile of both. GB/s is "
    "on the bytes that have to be moved."
)
CONTESTANTS = ["twin", "plain", "compile twin", "compile"]
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "2000000000",
    "MALLOC_TRIM_THRESHOLD_": "2000000000",
    "MALLOC_TOP_PAD_": "268435456",
}


def parse_size(text: str) -> tuple[int, int]:
    try:
        rows, dim = (int(n) for n in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected rows x dims, such as 256x512") from None
    return rows, dim


def environment(threads: int) -> dict[str, object]:
    native = None
    if functional._ext.LOADED:
        from mmvae_fast import _native

        native = _native.cpu_capability()
    return {
        "mmvae_fast": mmvae_fast.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": processor(),
        "kernels": native,
        "threads": threads,
        "allocator": {k: v for k, v in os.environ.items() if k.startswith("MALLOC_")} or "glibc's defaults",
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def markdown(environment: dict[str, object], results: list[dict]) -> str:
    """The table as it is committed in RESULTS.md."""
    lines = [
        "# Kernels against plain PyTorch and torch.compile",
        "",
        ABOUT,
        "",
        *(f"- {key}: {value}" for key, value in environment.items()),
        "",
        f"| function | rows x dims | direction | kernel, us | GB/s | {' | '.join(CONTESTANTS)} |",
        f"|---|---|---|--:|--:|{'--:|' * len(CONTESTANTS)}",
    ]
    for r in results:
        ours = r["microseconds"]["ours"]
        cells = [r["function"], f"{r['rows']}x{r['dim']}", r["direction"], f"{ours:.1f}"]
        cells += [f"{r['ideal_bytes'] / ours / 1e3:.1f}", *(f"{r['ratios'][c]:.2f}" for c in CONTESTANTS)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="64x64,128x64,256x512", help="rows x dims, comma separated")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.6, help="per function, size and direction")
    parser.add_argument("--allocator", choices=["tuned", "default"], default="tuned")
    parser.add_argument("--markdown", type=Path, help="also write the table as Markdown")
    parser.add_argument("--out", type=Path, default=Path("bench_out/functions.json"))
    args = parser.parse_args()
    if args.allocator == "tuned" and not KEEP_MEMORY.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **KEEP_MEMORY})  # read at start
    if not functional._ext.LOADED:
        sys.exit("bench: mmvae_fast was built without its kernels; there is nothing to compare")
    sizes = [parse_size(s) for s in args.sizes.split(",")]
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", module="torch")

    results = []
    header = f"{'function':<20}{'size':>10}{'':>9}{'ours us':>10}{'GB/s':>7}" + "".join(f"{c:>14}" for c in CONTESTANTS)
    print("\n".join(f"{k}: {v}" for k, v in environment(args.threads).items()))
    print("\nratio = contestant / ours; target: above 1 in every row (the kernel is faster)")
    print(f"\n{header}\n{'-' * len(header)}")
    for rows, dim in sizes:
        for case in cases(rows, dim):
            for direction in ("forward", "fwd+bwd"):
                bind = case.forward if direction == "forward" else case.forward_backward
                times = interleaved({n: bind(f) for n, f in case.forms.items()}, seconds=args.seconds)
                moved = case.bytes_forward + (case.bytes_backward if direction == "fwd+bwd" else 0)
                ratios = {c: times[c] / times["ours"] for c in CONTESTANTS}
                results.append(
                    {
                        "function": case.name,
                        "rows": rows,
                        "dim": dim,
                        "direction": direction,
                        "microseconds": {n: t * 1e6 for n, t in times.items()},
                        "ratios": ratios,
                        "ideal_bytes": moved,
                    }
                )
                print(
                    f"{case.name:<20}{f'{rows}x{dim}':>10}{direction:>9}{times['ours'] * 1e6:>10.1f}"
                    f"{moved / times['ours'] / 1e9:>7.1f}" + "".join(f"{ratios[c]:>13.2f}x" for c in CONTESTANTS),
                    flush=True,
                )
        torch._dynamo.reset()
    slower = [r for r in results if min(r["ratios"].values()) < 1]
    print(f"\n{len(results) - len(slower)} of {len(results)} rows: faster than every contestant")
    for r in slower:
        worst = min(r["ratios"], key=r["ratios"].get)
        print(f"  slower: {r['function']} {r['rows']}x{r['dim']} {r['direction']}: {r['ratios'][worst]:.2f}x {worst}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"environment": environment(args.threads), "results": results}, indent=1) + "\n")
    print(f"written: {args.out}")
    if args.markdown:
        args.markdown.write_text(markdown(environment(args.threads), results))
        print(f"written: {args.markdown}")


main()
