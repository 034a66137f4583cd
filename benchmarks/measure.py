"""One piece of work measured: how long each contestant takes, what it keeps, moves and allocates."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.utils._pytree import tree_leaves

from benchmarks import memory
from benchmarks.cases import CONTESTANTS, Case, Function, build, compiled
from benchmarks.machine import copy
from benchmarks.targets import NEVER_SLOWER, Goal, Work
from benchmarks.timing import Call, interleaved

DIRECTIONS = ("forward", "fwd+bwd")


@dataclass
class Options:
    seconds: float = 0.6
    rounds: int = 9
    device: str = "cpu"
    contestants: tuple[str, ...] = CONTESTANTS
    memory: bool = True


@dataclass
class Row:
    """A line of the table: one work, one direction, one number of threads."""

    work: Work
    direction: str
    threads: int
    device: str
    seconds: dict[str, float]  # by contestant, ours, and the copy of as many bytes
    ideal_bytes: int  # inputs read and outputs written, once each
    compile_form: str | None = None
    memory: dict[str, dict[str, int | None]] = field(default_factory=dict)

    @property
    def ratios(self) -> dict[str, float]:
        ours = self.seconds["ours"]
        return {c: self.seconds[c] / ours for c in CONTESTANTS if c in self.seconds}

    @property
    def copy_share(self) -> float:
        return self.seconds["copy"] / self.seconds["ours"]

    @property
    def gigabytes_per_second(self) -> float:
        return self.ideal_bytes / self.seconds["ours"] / 1e9

    @property
    def goals(self) -> dict[str, Goal]:
        """What is owed in this row: the design's ratios where they hold, and never to be slower anywhere."""
        goals = {"twin": NEVER_SLOWER, "compile": NEVER_SLOWER}
        owed_here = self.direction == "fwd+bwd" and (self.device == "cuda" or self.threads == 1)
        return goals | self.work.goals if owed_here else goals

    @property
    def verdicts(self) -> dict[str, str]:
        ratios = self.ratios
        return {c: goal.verdict(ratios[c]) for c, goal in self.goals.items() if c in ratios}

    def as_json(self) -> dict[str, object]:
        goals = {c: {"must": g.must, "aim": g.aim, "verdict": self.verdicts.get(c)} for c, g in self.goals.items()}
        return {
            "case": self.work.case,
            "size": self.work.size,
            "direction": self.direction,
            "threads": self.threads,
            "device": self.device,
            "microseconds": {c: s * 1e6 for c, s in self.seconds.items()},
            "ratios": self.ratios,
            "goals": goals,
            "ideal_bytes": self.ideal_bytes,
            "gigabytes_per_second": self.gigabytes_per_second,
            "fraction_of_copy": self.copy_share,
            "memory": self.memory,
            "compile_form": self.compile_form,
        }


def measure(work: Work, options: Options) -> list[Row]:
    """Both directions of a piece of work, with as many threads as torch has now."""
    torch._dynamo.reset()  # else its limit of compilations of one function ends the run
    torch.manual_seed(0)
    case = build(work, options.device)
    forms = {c: f for c, f in case.forms.items() if c == "ours" or c in options.contestants}
    candidates = {}
    if "compile" in options.contestants:
        candidates = {f.__name__: compiled(f, options.device) for f in case.compile_forms}
    rows = []
    for direction, ideal in zip(DIRECTIONS, ideal_bytes(case), strict=True):
        bind = case.forward if direction == "forward" else case.forward_backward
        best = _fastest({name: bind(form) for name, form in candidates.items()}, options)
        if best:
            forms["compile"] = candidates[best]
        calls = {name: bind(form) for name, form in forms.items()}
        calls["copy"] = copy(ideal, options.device)
        seconds = interleaved(calls, seconds=options.seconds, rounds=options.rounds, device=options.device)
        rows.append(Row(work, direction, torch.get_num_threads(), options.device, seconds, ideal, best))
    if options.memory:
        rows[-1].memory = {name: footprint(case, form, name, options.device) for name, form in forms.items()}
    return rows


def _fastest(calls: dict[str, Call], options: Options) -> str | None:
    """Which of the compiled forms competes; None without any."""
    if len(calls) < 2:
        return next(iter(calls), None)
    times = interleaved(calls, seconds=options.seconds / 4, rounds=5, device=options.device)
    return min(times, key=lambda name: times[name])


def ideal_bytes(case: Case) -> tuple[int, int]:
    """Forward; and forward + backward, where the backward reads the inputs again and the gradients that come in."""
    read = memory.size_of(tree_leaves(case.arguments))
    outputs = case.outputs(case.forms["ours"])
    written = memory.size_of(outputs)
    incoming = memory.size_of(outputs[i] for i in case.used)
    forward = read + written
    return forward, forward + read + incoming + memory.size_of(case.inputs)


def footprint(case: Case, form: Function, name: str, device: str) -> dict[str, int | None]:
    """Of one forward and backward, in bytes."""
    call = case.forward_backward(form)
    call()
    highest, kept = memory.peak(call, device)
    return {
        "saved_for_backward": memory.saved_for_backward(case.forward(form), case.arguments),
        "peak": highest,
        "temporary": max(highest - kept, 0),
        "moved": None if name == "compile" else memory.moved(call),
    }
