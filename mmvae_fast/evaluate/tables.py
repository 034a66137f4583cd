"""What was measured as tables for people and as JSON for machines."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmvae_fast._files import write_atomic

FORMAT, SCHEMA_VERSION = "mmvae_fast.evaluation", 1
_WIDEST = 20  # classes whose confusion fits on a page; of more, it is in the JSON
Table = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Report:
    """What :func:`evaluate` found; see there for what the figures are."""

    figures: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """As JSON can hold it: what is not a number is None."""
        return _plain({"format": FORMAT, "schema_version": SCHEMA_VERSION, **self.figures})

    def tables(self) -> list[tuple[str, Table]]:
        """(title, rows of named cells) of everything that was measured."""
        return _tables(self.figures)

    def as_text(self) -> str:
        """Aligned tables for a terminal."""
        parts = [_heading(self.figures)]
        for title, table in self.tables():
            cells = _cells(table)
            widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
            lines = [
                "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
                for row in cells
            ]
            parts.append("\n".join([title, *(f"  {line}".rstrip() for line in lines)]))
        if skipped := _skipped(self.figures):
            parts.append("\n".join(["Left out", *(f"  {line}" for line in skipped)]))
        return "\n\n".join(parts) + "\n"

    def as_markdown(self) -> str:
        """The same for a page."""
        parts = ["# Evaluation", _heading(self.figures)]
        for title, table in self.tables():
            head, *rows = _cells(table)
            rule = ["---", *["---:"] * (len(head) - 1)]
            parts.append(f"## {title}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows]))
        if skipped := _skipped(self.figures):
            parts.append("## Left out\n\n" + "\n".join(f"- {line}" for line in skipped))
        return "\n\n".join(parts) + "\n"

    def save(self, path: str | os.PathLike) -> Path:
        """Write it to a ``.json``, ``.md`` or ``.txt`` file, wholly or not at all."""
        path = Path(path)
        if path.suffix not in (".json", ".md", ".txt"):
            raise ValueError(f"Report.save: {path} ends in {path.suffix!r}, expected .json, .md or .txt")
        if path.suffix == ".json":
            write_atomic(path, json.dumps(self.as_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        else:
            write_atomic(path, self.as_markdown() if path.suffix == ".md" else self.as_text())
        return path


# --- tables -----------------------------------------------------------------------------------------------------------


def _heading(figures: Mapping[str, Any]) -> str:
    observed = ", ".join(f"{name} {count}" for name, count in figures["observed"].items())
    return f"{figures['model']} on {figures['rows']} rows ({observed})"


def _tables(figures: Mapping[str, Any]) -> list[tuple[str, Table]]:
    tables: list[tuple[str, Table]] = []

    def add(title: str, table: Table) -> None:
        if table:
            tables.append((title, table))

    likelihood = figures.get("log_likelihood", {})
    add("Log-likelihood of a subset, log p(x_S), nats", likelihood.get("joint", {}))
    add("Log-likelihood of the others given a subset, nats", likelihood.get("conditional", {}))
    add(
        "Reconstruction",
        {
            f"{target} from {source}": measures
            for source, of in figures.get("reconstruction", {}).items()
            for target, measures in of.items()
        },
    )
    coherence = figures.get("coherence", {})
    add("Coherence: share of rows whose decoded target shows the class of the source", coherence)
    if "joint_coherence" in figures:
        share = figures["joint_coherence"]
        add("Joint coherence: share of samples whose modalities agree", {"prior": {"share": share}})
    add("Judges: the share of rows whose class they tell", figures.get("oracles", {}))
    add("Samples of the prior against the data (Fréchet distance, and its floor between real halves)",
        figures.get("samples", {}))  # fmt: skip
    add("Samples against half of the real ones: Fréchet distance, precision, recall, as many rows of each; the other "
        "half as reference. Intended class, and that of the worst: the share of all that were judged",
        figures.get("quality", {}))  # fmt: skip
    add("There and back again: errors of the cycle", figures.get("cycle", {}))
    add("Translations that show the class of their source", figures.get("translation", {}))
    add("Classes told, by what was shown", figures.get("classification", {}))
    if len(names := figures.get("classes", ())) <= _WIDEST:
        counts = [dict(zip(names, row, strict=True)) for row in figures.get("confusion", ())]
        add("Rows of a class (down) by what they were taken for (across)", dict(zip(names, counts, strict=False)))
    add("Classes told of all rows", figures.get("told", {}))
    add("Latents by what they were inferred from", figures.get("latents", {}))
    return tables


def _skipped(figures: Mapping[str, Any]) -> list[str]:
    """A line a reason: "latents of a, b: why", where it is the same for several."""
    lines: dict[tuple[str, str], list[str]] = {}
    for what, why in figures.get("skipped", {}).items():
        kind, of, name = what.partition(" of ")
        lines.setdefault((f"{kind}{of}", why), []).append(name)
    return [f"{head}{', '.join(names)}: {why}" for (head, why), names in lines.items()]


def _cells(table: Table) -> list[list[str]]:
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    head = ["", *(column.replace("_", " ") for column in columns)]
    return [head, *([name, *(_format(row.get(column)) for column in columns)] for name, row in table.items())]


def _format(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) >= 1000 else f"{value:.2f}" if abs(value) >= 10 else f"{value:.4f}"
    return str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(of) for key, of in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(of) for of in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
