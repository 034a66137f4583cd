"""``mmvae-fast evaluate``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mmvae_fast.cli.app import app, plain_errors


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder that train wrote.")],
    data: Annotated[
        Path | None, typer.Option(help="A manifest. Else: the configuration's test data, or what was held out.")
    ] = None,
    samples: Annotated[
        int, typer.Option(min=0, help="Importance samples for log p(x), which takes that many decodings; 0: leave out.")
    ] = 0,
    batch_size: Annotated[int, typer.Option(min=1)] = 256,
    workers: Annotated[int, typer.Option(min=0, help="Processes that load.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    report: Annotated[
        Path | None,
        typer.Option(help="Folder for report.json, report.md and pictures: every measure, for every subset."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Judge a model on data: loss, elbo and log-likelihoods in nats, and how well each modality predicts the others."""
    with plain_errors():
        import json

        from mmvae_fast.cli.progress import track
        from mmvae_fast.data.run import Run
        from mmvae_fast.data.scores import score

        opened = Run.load(run)
        dataset = opened.dataset(data)
        batches = track(opened.batches(dataset, batch_size, workers), -(-len(dataset) // batch_size), "evaluating")
        if report is not None and report.exists() and not report.is_dir():
            raise NotADirectoryError(f"--report {report} is a file, expected a folder to write to")
        found = score(opened.model, batches, n_samples=samples, seed=seed)
        if text := dataset.report():
            print(f"{text}\nThey counted as missing.", file=sys.stderr)
        found = {"data": str(dataset.manifest.path), **found}
        print(json.dumps(found, indent=1) if as_json else _as_text(found))
        if report is not None:
            _write_report(report, opened, dataset, samples, batch_size, seed)


def _write_report(folder: Path, opened: Any, dataset: Any, samples: int, batch_size: int, seed: int) -> None:
    """Everything that :mod:`mmvae_fast.evaluate` measures, and pictures; labels count if there are two or more."""
    from mmvae_fast.evaluate import Rows, evaluate, write_report

    rows = Rows.of(opened.model, dataset)
    ids = opened.label_ids(dataset)
    labels = ids if len(ids[ids >= 0].unique()) > 1 else None
    found = evaluate(opened.model, rows, labels, n_samples=samples, batch_size=batch_size, seed=seed)
    history = opened.folder / "history.json"
    written = write_report(folder, found, opened.model, rows, labels,
        history=history if history.is_file() else None, class_names=opened.classes)  # fmt: skip
    print(f"{folder}: {', '.join(path.name for path in written)}", file=sys.stderr)


def _as_text(found: dict[str, Any]) -> str:
    lines = [f"{found['data']}: {found['rows']} rows; means over rows, nats"]
    lines += [f"  {name:<24}{found[name]:12.4f}" for name in ("loss", "elbo", "kl", "log_likelihood") if name in found]
    lines += ["log p(x | z) of a modality, mean over the rows that have it"]
    lines += [f"  {name:<24}{value:12.4f}" for name, value in found["per_modality"].items()]
    targets = list(found["per_modality"])
    lines += ["", "predicted from (mean squared error; of tokens, the share that is right)"]
    lines += [f"  {'':<16}" + "".join(f"{name:>16}" for name in targets)]
    for given, row in found["reconstruction"].items():
        values = (row.get(name) for name in targets)
        cells = "".join(f"{'-':>16}" if v is None else f"{v['value']:>15.4f}{v['unit']}" for v in values)
        lines += [f"  {given:<16}{cells}"]
    return "\n".join(lines)
