"""``mmvae-fast evaluate``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mmvae_fast.cli.app import app, plain_errors

_SHOWN = 10  # so many rows of unknown classes are listed


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder that train wrote.")],
    data: Annotated[
        Path | None, typer.Option(help="A manifest. Else: the configuration's test data, or what was held out.")
    ] = None,
    samples: Annotated[
        int, typer.Option(min=0, help="Importance samples for log p(x), which takes that many decodings; 0: leave out.")
    ] = 0,
    generated: Annotated[
        int, typer.Option(min=1, help="Samples that are compared with the data: of a GAN, or with --report of a prior.")
    ] = 1000,
    batch_size: Annotated[int, typer.Option(min=1)] = 256,
    workers: Annotated[int, typer.Option(min=0, help="Processes that load.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    report: Annotated[
        Path | None,
        typer.Option(help="Folder for report.json, report.md and pictures: every measure, for every subset."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Judge a model or a system on data.

    A model: loss, elbo and log-likelihoods in nats, and how well each modality predicts the others; with --report every
    measure. A classifier: accuracy, calibration and confusion; a GAN: its samples beside real ones; a CycleGAN: its
    translations, and the way back.
    """
    with plain_errors():
        import json

        from mmvae_fast.data.errors import ConfigError
        from mmvae_fast.data.run import Run
        from mmvae_fast.models import MultimodalVAE

        opened = Run.load(run)
        dataset = opened.dataset(data)
        if report is not None and report.exists() and not report.is_dir():
            raise NotADirectoryError(f"--report {report} is a file, expected a folder to write to")
        model: Any = opened.model
        manifest = str(dataset.manifest.path)
        plain = isinstance(model, MultimodalVAE)
        if samples and not (plain and model.generative):
            raise ConfigError(f"--samples is {samples}, but {type(model).__name__} has no density: leave it out")
        if plain:
            found = {"data": manifest, **_score(opened, dataset, samples, batch_size, workers, seed)}
            print(json.dumps(found, indent=1) if as_json else _as_text(found))
        if report is not None or not plain:
            rows, labels = _read(opened, dataset, batch_size, workers)
            judged = _judge(model, rows, labels, samples, generated, batch_size, seed)
            if unknown := opened.unknown_labels(dataset):
                _leave_out(judged, dataset, unknown)
            if not plain:
                content = {"data": manifest, **judged.as_dict()}
                print(json.dumps(content, indent=1) if as_json else f"{manifest}: {judged.as_text()}", end="")
            if report is not None:
                _write(report, judged, opened, rows, labels)
        if text := dataset.report():
            print(f"{text}\nThey counted as missing.", file=sys.stderr)


def _score(opened: Any, dataset: Any, samples: int, batch_size: int, workers: int, seed: int) -> dict[str, Any]:
    """What one pass over the data tells, a batch in memory at a time."""
    from mmvae_fast.cli.progress import track
    from mmvae_fast.evaluate import score

    batches = track(opened.batches(dataset, batch_size, workers), -(-len(dataset) // batch_size), "evaluating")
    return score(opened.model, batches, n_samples=samples, seed=seed)


def _read(opened: Any, dataset: Any, batch_size: int, workers: int) -> tuple[Any, Any]:
    """All rows, and their classes if any is known."""
    from mmvae_fast.cli.progress import track
    from mmvae_fast.evaluate import Rows

    batches = track(opened.batches(dataset, batch_size, workers), -(-len(dataset) // batch_size), "reading")
    ids = opened.label_ids(dataset)
    return Rows.gather(opened.model, batches), ids if bool((ids >= 0).any()) else None


def _leave_out(judged: Any, dataset: Any, unknown: list[Any]) -> None:
    """Say in the report and on standard error which rows nothing that takes classes could count."""
    rows = "1 row has" if len(unknown) == 1 else f"{len(unknown)} rows have"
    said = f"{rows} a class that the training data did not, so what takes classes left them out"
    classes = list(dict.fromkeys(fault.problem.partition(" is the class")[0] for fault in unknown))
    judged.figures.setdefault("skipped", {})["rows of unknown classes"] = f"{said}: {_few(classes)}"
    lines = [f"  row {fault.row + 1}, {fault.name}: {fault.problem}" for fault in unknown[:_SHOWN]]
    if len(unknown) > _SHOWN:
        lines.append(f"  and {len(unknown) - _SHOWN} more")
    print("\n".join([f"{dataset.manifest.path}: {said}", *lines]), file=sys.stderr)


def _few(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _judge(model: Any, rows: Any, labels: Any, samples: int, generated: int, batch_size: int, seed: int) -> Any:
    """Everything that :mod:`mmvae_fast.evaluate` measures."""
    from mmvae_fast.cli.progress import stages
    from mmvae_fast.evaluate import evaluate

    with stages() as progress:
        return evaluate(
            model, rows, labels, n_samples=samples, generated=generated, batch_size=batch_size, seed=seed,
            progress=progress,
        )  # fmt: skip


def _write(folder: Path, judged: Any, opened: Any, rows: Any, labels: Any) -> None:
    """The report and its pictures."""
    from mmvae_fast.cli.progress import stages
    from mmvae_fast.evaluate import write_report

    history = opened.folder / "history.json"
    with stages() as progress:
        progress("pictures", 0, 1)
        written = write_report(folder, judged, opened.model, rows, labels,
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
        cells = "".join(f"{'-':>16}" if v is None else f"{v['value']:>15.4f}{v['unit'] or ' '}" for v in values)
        lines += [f"  {given:<16}{cells}"]
    return "\n".join(lines)
