"""How far ONNX is from torch: outputs compared element by element, and the report of the worst ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmvae_fast.onnx.errors import ExportVerificationError


@dataclass(frozen=True)
class Check:
    """One output of one part (or of the Runtime): the worst element over all cases."""

    part: str
    output: str
    cases: int
    difference: float
    """Of the worst element: the absolute difference, inf where one side is NaN or the shapes differ."""
    passed: bool
    detail: str
    """The worst element, which is the one farthest above (or least below) its tolerance: case, index, both values."""
    excess: float = 0.0
    """By how much its difference is above its tolerance."""

    def __str__(self) -> str:
        verdict = "ok" if self.passed else f"FAILED  {self.detail}"
        return f"{self.part:<28} {self.output:<16} {self.cases:>5} {self.difference:>10.2e}  {verdict}"


@dataclass(frozen=True)
class Report:
    """What :func:`verify` found. Printable; ``passed`` is the verdict, ``worst`` the largest absolute difference
    of the elements shown."""

    checks: tuple[Check, ...]
    rtol: float
    atol: float

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(c.passed for c in self.checks)  # nothing compared is nothing shown

    @property
    def worst(self) -> float:
        return max((c.difference for c in self.checks), default=0.0)

    @property
    def failures(self) -> list[Check]:
        return [c for c in self.checks if not c.passed]

    def raise_if_failed(self) -> None:
        """Raise ExportVerificationError naming the worst failure: part, output, index and both values."""
        if not self.checks:
            raise ExportVerificationError("nothing was compared with torch, expected at least one output")
        if not self.passed:
            worst = max(self.failures, key=lambda c: c.excess)
            raise ExportVerificationError(
                f"{worst.part}: output {worst.output!r} differs from torch by {worst.difference:.3g}, expected at most "
                f"{self.atol:g} + {self.rtol:g} * |torch|: {worst.detail} "
                f"({len(self.failures)} of {len(self.checks)} checks failed)"
            )

    def to_json(self) -> dict[str, Any]:
        checks = [{k: getattr(c, k) for k in ("part", "output", "cases", "difference", "passed")} for c in self.checks]
        return {"passed": self.passed, "worst": self.worst, "rtol": self.rtol, "atol": self.atol, "checks": checks}

    def __str__(self) -> str:
        verdict = "passed" if self.passed else f"FAILED ({len(self.failures)} of {len(self.checks)} checks)"
        header = f"{'part':<28} {'output':<16} {'cases':>5} {'worst abs':>10}"
        worst = f"worst absolute difference {self.worst:.2e}"
        summary = f"ONNX against torch: {verdict}, {worst} (rtol {self.rtol:g}, atol {self.atol:g})"
        return "\n".join([header, *map(str, self.checks), summary])


def check_tolerance(name: str, value: float) -> None:
    """Raise ValueError unless it is a finite number of 0 or more."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise ValueError(f"{name} is {value!r}, expected a finite number of 0 or more")


class Record:
    """Compares outputs, and keeps the worst element of every one."""

    def __init__(self, rtol: float, atol: float):
        check_tolerance("rtol", rtol)
        check_tolerance("atol", atol)
        self.rtol, self.atol = rtol, atol
        self._worst: dict[tuple[str, str], Check] = {}

    def checks(self) -> tuple[Check, ...]:
        return tuple(self._worst.values())

    def add(
        self,
        part: str,
        output: str,
        case: str,
        expected: Tensor,
        actual: np.ndarray,
        logits: Tensor | None = None,
        *,
        by_row: bool = False,
    ) -> None:
        """Compare one output.

        Args:
            logits: [..., V], torch's, for outputs that are their argmax.
            by_row: values [..., V] mean something beside each other only, and each is a sum in which terms cancel: what
                counts for the relative tolerance is at least the RMS of the (finite) row.
        """
        reference = expected.numpy()
        if reference.shape != actual.shape or reference.dtype != actual.dtype:
            ours, theirs = f"{reference.dtype}{list(reference.shape)}", f"{actual.dtype}{list(actual.shape)}"
            self.fail(part, output, f"{case}: torch gives {ours}, onnx {theirs}")
            return
        values, found = reference.astype(np.float64), actual.astype(np.float64)
        if logits is not None:  # ids are names, not numbers: compare what was maximised
            values, found = (
                logits.double().gather(-1, torch.from_numpy(ids).unsqueeze(-1)).squeeze(-1).numpy()
                for ids in (reference, np.clip(actual, 0, logits.shape[-1] - 1))
            )
        with np.errstate(invalid="ignore"):
            difference = np.abs(found - values)
            difference[found == values] = 0.0  # equal infinities
            difference[np.isnan(difference)] = np.inf
            size = np.where(np.isfinite(values), np.abs(values), 0.0)
            if by_row:
                size = np.maximum(size, np.sqrt(np.square(size).mean(-1, keepdims=True)))
            tolerance = self.atol + self.rtol * size
        if not difference.size:
            self._keep(part, output, 0.0, -self.atol, f"{case}: empty")
            return
        excess = difference - tolerance
        index = np.unravel_index(np.argmax(excess), excess.shape)
        where = f"{case}, index {[int(i) for i in index]}: torch {reference[index]}, onnx {actual[index]}"
        self._keep(part, output, float(difference[index]), float(excess[index]), where)

    def fail(self, part: str, output: str, detail: str) -> None:
        """What there is no value to compare of."""
        self._keep(part, output, float("inf"), float("inf"), detail)

    def _keep(self, part: str, output: str, difference: float, excess: float, detail: str) -> None:
        key = (part, output)
        old = self._worst.get(key)
        cases = 1 + (old.cases if old else 0)
        if old is not None and excess <= old.excess:
            difference, detail, excess = old.difference, old.detail, old.excess
        self._worst[key] = Check(part, output, cases, difference, excess <= 0, detail, excess)
