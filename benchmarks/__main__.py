"""Time the fused functions against their twins, torch.compile, plain PyTorch and the maths as peers write it.

    python -m benchmarks                     everything section 6 of the design owes, targets beside the figures
    python -m benchmarks --sweep             every function from 16x8 to 4096x512: is anything ever slower?
    python -m benchmarks --quick --functions mixture --sizes 64x64 --threads 1

A ratio is contestant / ours, medians of interleaved rounds of one run: above 1 ours is faster. Contestants, on the same
inputs (float32, five experts in lists): see cases.py. Thread CPU time with one thread, wall time with more, events of
the stream on a GPU. "forward" records for autograd; "fwd+bwd" is a dense gradient to all inputs. "copy %" is the time
of torch's copy that moves as many bytes as the function ideally has to (inputs read once, outputs written once) over
ours: the fraction of this machine's copy bandwidth at that size, measured in the same rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import machine, measure, normals, overhead, report, training
from benchmarks.cases import CASES, CONTESTANTS
from benchmarks.targets import GPU_ROWS, ROWS, SMALL, SWEEP, Work, at
from mmvae_fast import _ext, _files

QUIET = {"KINETO_LOG_LEVEL": "99"}  # the profiler, which sees allocations, announces itself
SECTIONS = ("functions", "memory", "normals", "overhead", "training")


def parse_sizes(text: str) -> list[tuple[int, int]]:
    sizes = []
    for size in text.split(","):
        try:
            rows, dim = (int(n) for n in size.split("x"))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{size!r}: expected rows x dims, such as 256x512") from None
        sizes.append((rows, dim))
    return sizes


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    everything = range(1, (os.cpu_count() or 1) + 1)
    parser.add_argument("--sections", default=",".join(SECTIONS), help=f"comma separated, of {', '.join(SECTIONS)}")
    parser.add_argument("--functions", default="", help="only cases whose name holds one of these, comma separated")
    parser.add_argument("--sizes", type=parse_sizes, help="these rows x dims for every case, instead of the targets'")
    parser.add_argument("--threads", help=f"comma separated; default 1,{everything[-1]}")
    parser.add_argument("--contestants", default=",".join(CONTESTANTS), help="comma separated")
    parser.add_argument("--sweep", action="store_true", help="every function and size, against twin and compile only")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, no memory: for a first look")
    parser.add_argument("--seconds", type=float, help="per case, size and direction (default 0.8)")
    parser.add_argument("--device", choices=["cpu", "cuda", "both"], help="default: both where there is a GPU")
    parser.add_argument("--allocator", choices=["tuned", "default"], default="tuned")
    parser.add_argument("--markdown", type=Path, help="also write the tables as Markdown")
    parser.add_argument("--out", type=Path, help="JSON, default bench_out/*.json; on a GPU benchmarks/results/")
    return parser.parse_args()


def works(args: argparse.Namespace, device: str) -> Iterator[tuple[Work, bool]]:
    """What to time, and whether with all threads too."""
    wanted = [w.strip() for w in args.functions.split(",") if w.strip()]
    names = [name for name in CASES if not wanted or any(w in name for w in wanted)]
    if args.sizes or args.sweep:
        for rows, dim in args.sizes or SWEEP:
            yield from ((at(name, rows, dim), True) for name in names)
        return
    owed = GPU_ROWS if device == "cuda" else ROWS
    yield from ((work, True) for work in owed if work.case in names)
    if device == "cpu":
        yield from ((at(name, rows, dim), False) for rows, dim in SMALL for name in names)


class Printer:
    """Rows as they come, and everything again for Markdown."""

    def __init__(self) -> None:
        self.sections: list[tuple[str, report.Cells, list[report.Cells]]] = []

    def section(self, title: str, header: report.Cells, rows: list[report.Cells] | None = None) -> None:
        self.sections.append((title, header, rows or []))
        if rows is not None:
            print(f"\n{title}\n\n{report.table(header, rows)}", flush=True)

    def markdown(self, environment: dict[str, object], missed: list[str]) -> str:
        about = (__doc__ or "").split("\n\n")[2].replace("\n", " ")
        parts = ["# Kernels against twins, torch.compile, plain PyTorch and peers", about]
        parts.append("\n".join(f"- {k}: {v}" for k, v in environment.items()))
        for title, header, rows in self.sections:
            parts += [f"## {title}", report.markdown(header, rows)]
        parts += ["## Below what is owed", "\n".join(f"- {m}" for m in missed) or "Nothing."]
        return "\n\n".join(parts) + "\n"


def functions(args: argparse.Namespace, device: str, threads: list[int], printer: Printer) -> list[measure.Row]:
    options = measure.Options(device=device, contestants=tuple(args.contestants.split(",")))
    options.memory = "memory" in args.sections.split(",")
    if args.sweep:
        options.contestants, options.memory = ("twin", "compile"), False
        options.seconds, options.rounds = 0.3, 7
    if args.quick:
        options.memory, options.seconds, options.rounds = False, 0.2, 5
    options.seconds = args.seconds or options.seconds
    width = [28, 14, 9, 3, 9, 6, 6, 6, 6, 7, 6, 24, 8]
    title = f"Functions on {'the GPU' if device == 'cuda' else 'the CPU'}"
    print(f"\n{title}; ratio = contestant / ours\n\n{report.aligned(report.FUNCTIONS, report.FUNCTIONS, width)}")
    print("  ".join("-" * w for w in width))
    rows: list[measure.Row] = []
    for count in threads:
        torch.set_num_threads(count)
        for work, all_threads in works(args, device):
            if count != threads[0] and not all_threads:
                continue
            first = count == threads[0]  # memory is the same for any number of threads
            now = measure.measure(work, measure.Options(**{**vars(options), "memory": options.memory and first}))
            rows += now
            print("\n".join(report.aligned(report.function_cells(r), report.FUNCTIONS, width) for r in now), flush=True)
    printer.section(title, report.FUNCTIONS, None)
    printer.sections[-1][2].extend(report.function_cells(r) for r in rows)
    cells = [c for r in rows for c in report.memory_cells(r)]
    if cells:
        printer.section("Memory of a forward and backward, bytes", report.MEMORY, cells)
    if device == "cuda":
        printer.section("Share of the copy bandwidth", report.GPU, report.gpu_cells(rows))
    return rows


def main() -> None:
    args = arguments()
    settings = QUIET | (machine.KEEP_MEMORY if args.allocator == "tuned" else {})
    if not settings.keys() <= os.environ.keys():  # they are read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **settings})
    if not _ext.LOADED:
        sys.exit("bench: mmvae_fast was built without its kernels; there is nothing to compare")
    warnings.filterwarnings("ignore", module="torch")
    devices = {"cpu": ["cpu"], "cuda": ["cuda"], "both": ["cpu", "cuda"]}.get(args.device, ["cpu"])
    if args.device is None and torch.cuda.is_available():
        devices.append("cuda")
    threads = [int(n) for n in args.threads.split(",")] if args.threads else sorted({1, os.cpu_count() or 1})
    sections = [] if args.sweep else args.sections.split(",")

    environment = machine.environment(devices[-1])
    for count in threads:
        torch.set_num_threads(count)
        environment[f"copy bandwidth, {count} thread(s)"] = f"{machine.copy_bandwidth():.1f} GB/s"
    if "cuda" in devices:
        environment["copy bandwidth, GPU"] = f"{machine.copy_bandwidth('cuda', 4 << 30):.0f} GB/s"
    print("\n".join(f"{k}: {v}" for k, v in environment.items()))

    printer, rows = Printer(), []
    missed: list[str] = []
    results: dict[str, object] = {"environment": environment}
    if args.sweep or "functions" in sections:
        for device in devices:
            rows += functions(args, device, [1] if device == "cuda" else threads, printer)
        results["functions"] = [r.as_json() for r in rows]
    if "normals" in sections:
        found = normals.measure(threads)
        results["normals"] = found
        missed += [
            f"normals, {f['threads']} thread(s): {k}" for f in found for k, v in f["verdicts"].items() if v == "MISSED"
        ]
        printer.section("Random normals, in the cache", report.NORMALS, [report.normals_cells(r) for r in found])
    if "overhead" in sections:
        costs, floors = overhead.measure(0.3 if args.quick else 1.0)
        results["overhead"] = {"calls": [o.as_json() for o in costs], "floors": floors}
        missed += [f"tiny call of {o.case}: {k}" for o in costs for k, v in o.verdicts.items() if v == "MISSED"]
        title = f"Fixed cost of a call on 2x64, us, one thread; owed: {report.tiny_goals()}"
        printer.section(title, report.OVERHEAD, [report.overhead_cells(o) for o in costs])
        cells = [[name, f"{us:.1f}"] for name, us in floors.items()]
        printer.section("What it cannot be below", ["call", "us"], cells)
    if "training" in sections:
        torch.set_num_threads(1)
        trained = training.measure(0.5 if args.quick else 2.0)
        results["training"] = trained
        missed += [f"training step, {t['networks']}: {t['ratio']:.3f}" for t in trained if t["verdict"] == "MISSED"]
        title = "A MoPoE training step over its encoders and decoders alone"
        printer.section(title, report.TRAINING, [report.training_cells(r) for r in trained])

    missed = report.misses(rows) + missed + report.behind_eager(rows)
    slower = sum(1 for r in rows if min(r.ratios.get(c, 1.0) for c in ("twin", "compile")) < 1)
    print(f"\n{len(rows) - slower} of {len(rows)} rows no slower than twin and torch.compile")
    print("\n".join(f"  {m}" for m in missed))
    out = args.out or default_path(devices, "sweep" if args.sweep else "functions")
    out.parent.mkdir(parents=True, exist_ok=True)
    _files.write_atomic(out, json.dumps(results, indent=1) + "\n")
    print(f"written: {out}")
    pages = args.markdown or (out.with_suffix(".md") if "cuda" in devices else None)
    if pages:
        _files.write_atomic(pages, printer.markdown(environment, missed))
        print(f"written: {pages}")


def default_path(devices: list[str], name: str) -> Path:
    if "cuda" not in devices:
        return Path("bench_out") / f"{name}.json"
    device = torch.cuda.get_device_name().lower().replace(" ", "-")
    return Path(__file__).parent / "results" / f"{device}-{name}.json"


if __name__ == "__main__":
    main()
