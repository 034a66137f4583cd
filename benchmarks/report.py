"""The tables, for the terminal and for RESULTS.md; what was missed is listed again at the end."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.measure import Row
from benchmarks.overhead import Overhead
from benchmarks.targets import GPU_SHARES, TINY_FORWARD, TINY_FORWARD_BACKWARD, TRAINING_STEP, Goal

CONTESTANTS = ("twin", "eager", "compile", "peer")
Cells = Sequence[str]


def _size(n: float | None) -> str:
    """Bytes in few characters."""
    if n is None:
        return "-"
    for unit in ("", "K", "M"):
        if n < 1024:
            return f"{n:.0f}{unit}" if n >= 10 or unit == "" else f"{n:.1f}{unit}"
        n /= 1024
    return f"{n:.1f}G"


def _ratio(value: float | None) -> str:
    return (
        "-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    )


def _goal(contestant: str, goal: Goal) -> str:
    return f"{contestant} {goal.must:g}" if goal.must == goal.aim else f"{contestant} {goal.must:g}/{goal.aim:g}"


FUNCTIONS = ["function", "size", "direction", "thr", "ours us", "GB/s", "copy %", *CONTESTANTS, "must/aim", "verdict"]
MEMORY = ["function", "size", "form", "saved", "temporary", "peak", "moved", "ideal", "moved/ideal"]
OVERHEAD = [
    "function", "op", "other ops", "Python", "autograd", "forward", "verdict", "backward op", "fwd+bwd", "verdict"
]  # fmt: skip


def function_cells(row: Row) -> Cells:
    ratios, verdicts = row.ratios, row.verdicts
    owed = {c: g for c, g in row.goals.items() if c in row.work.goals} or {"twin, compile": row.goals["compile"]}
    shown = {c: v for c, v in verdicts.items() if c in owed or v == "MISSED"} or verdicts
    verdict = next(iter(shown.values()), "") if len(set(shown.values())) == 1 else ", ".join(
        f"{c} {v}" for c, v in shown.items()
    )  # fmt: skip
    return [
        row.work.case,
        row.work.size,
        row.direction,
        "gpu" if row.device == "cuda" else str(row.threads),
        f"{row.seconds['ours'] * 1e6:.1f}",
        f"{row.gigabytes_per_second:.1f}",
        f"{row.copy_share * 100:.0f}",
        *(_ratio(ratios.get(c)) for c in CONTESTANTS),
        "; ".join(_goal(c, g) for c, g in owed.items()),
        verdict,
    ]


def memory_cells(row: Row) -> list[Cells]:
    return [
        [
            row.work.case if name == "ours" else "",
            row.work.size if name == "ours" else "",
            name,
            *(_size(found[what]) for what in ("saved_for_backward", "temporary", "peak", "moved")),
            _size(row.ideal_bytes),
            "-" if found["moved"] is None else f"{found['moved'] / row.ideal_bytes:.2f}",
        ]
        for name, found in row.memory.items()
    ]


def overhead_cells(o: Overhead) -> Cells:
    numbers = [
        f"{v:.1f}" for v in (o.op, o.other_ops, o.python, o.autograd, o.forward, o.backward_op, o.forward_backward)
    ]
    verdicts = o.verdicts
    return [o.case, *numbers[:5], verdicts["forward"], *numbers[5:], verdicts["forward_backward"]]


NORMALS = ["threads", "philox_normal ns", "reparameterize ns", "torch.normal_ ns", "speedup", "<= 1.3/0.9 ns", ">= 3x"]


def normals_cells(result: dict) -> Cells:
    ns, verdicts = result["nanoseconds"], result["verdicts"]
    philox = f"{ns['philox_normal']:.2f}" if "philox_normal" in ns else "-"
    return [
        str(result["threads"]),
        philox,
        f"{ns['reparameterize']:.2f}",
        f"{ns['torch.normal_']:.2f}",
        _ratio(result["speedup"]),
        verdicts["nanoseconds"],
        verdicts["speedup"],
    ]


TRAINING = ["networks", "threads", "step ms", "networks alone ms", "ratio", "must/aim", "verdict"]


def training_cells(result: dict) -> Cells:
    goal, ms = TRAINING_STEP[result["networks"]], result["milliseconds"]
    return [
        result["networks"],
        str(result["threads"]),
        f"{ms['step']:.2f}",
        f"{ms['networks']:.2f}",
        f"{result['ratio']:.3f}",
        f"<= {goal.must:g}/{goal.aim:g}",
        result["verdict"],
    ]


GPU = ["function", "size", "forward copy %", "owed", "verdict", "backward copy %", "owed", "verdict"]


def gpu_cells(rows: Sequence[Row]) -> list[Cells]:
    """Shares of the copy bandwidth, the backward by itself, where the chip is full."""
    cells = []
    for forward, both in zip(rows[::2], rows[1::2], strict=True):
        share = GPU_SHARES.get(forward.work.case)
        if forward.device != "cuda" or share is None or forward.work.rows * forward.work.dim < 500_000:
            continue
        alone = both.seconds["ours"] - forward.seconds["ours"]
        backward = (both.seconds["copy"] - forward.seconds["copy"]) / alone
        cells.append([forward.work.case, forward.work.size])
        for value, bound in ((forward.copy_share, share.forward), (backward, share.backward)):
            cells[-1] += [f"{value * 100:.0f}", f"{bound * 100:.0f}", Goal(bound, bound).verdict(value)]
    return cells


# --- tables -----------------------------------------------------------------------------------------------------------


def widths(header: Cells, rows: Sequence[Cells]) -> list[int]:
    return [max(len(r[i]) for r in (header, *rows)) for i in range(len(header))]


WORDS = {
    "function",
    "direction",
    "form",
    "networks",
    "call",
    "must/aim",
    "owed",
    "verdict",
}  # columns that are not numbers


def aligned(cells: Cells, header: Cells, width: Sequence[int]) -> str:
    columns = zip(cells, header, width, strict=True)
    return "  ".join(c.ljust(w) if h in WORDS else c.rjust(w) for c, h, w in columns).rstrip()


def table(header: Cells, rows: Sequence[Cells]) -> str:
    width = widths(header, rows)
    lines = [aligned(header, header, width), "  ".join("-" * w for w in width)]
    return "\n".join(lines + [aligned(r, header, width) for r in rows])


def markdown(header: Cells, rows: Sequence[Cells]) -> str:
    lines = [header, ["---" if h in WORDS else "--:" for h in header], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def misses(rows: Sequence[Row]) -> list[str]:
    """Every figure below what is owed."""
    found = []
    for row in rows:
        for contestant, verdict in row.verdicts.items():
            if verdict == "MISSED":
                where = f"{row.work.case} {row.work.size}, {row.direction}, {row.device}, {row.threads} thread(s)"
                ratio = row.ratios[contestant]
                found.append(f"{where}: {ratio:.2f} against {contestant}, owed {row.goals[contestant].must:g}")
    return found


def behind_eager(rows: Sequence[Row]) -> list[str]:
    """Nothing is owed against eager PyTorch with its own noise, but nobody wants to lose to it."""
    return [
        f"{row.work.case} {row.work.size}, {row.direction}, {row.device}, {row.threads} thread(s): "
        f"{row.ratios['eager']:.2f} against eager, nothing owed"
        for row in rows
        if row.ratios.get("eager", 1.0) < 1
    ]


def tiny_goals() -> str:
    f, b = TINY_FORWARD, TINY_FORWARD_BACKWARD
    return f"forward <= {f.must:g}/{f.aim:g} us, forward+backward <= {b.must:g}/{b.aim:g} us"
