"""``mmvae-fast classify``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmvae_fast.cli.app import app, plain_errors

if TYPE_CHECKING:
    from torch import Tensor

    from mmvae_fast.data.dataset import ManifestDataset

ENDINGS = (".csv", ".parquet")


@app.command()
def classify(
    run: Annotated[Path, typer.Argument(help="Folder that train wrote.")],
    data: Annotated[
        Path | None, typer.Argument(help="A manifest; it may lack some of the modalities' columns.")
    ] = None,
    given: Annotated[
        list[str] | None,
        typer.Option("--from", metavar="MODALITY=VALUE", help="One row instead: a file, a text or numbers; again."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write: .csv or .parquet. Needed for a manifest.")] = None,
    id: Annotated[str | None, typer.Option(help="A column of the manifest to copy, to know the rows by.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 256,
    workers: Annotated[int, typer.Option(min=0, help="Processes that load.")] = 0,
    on_error: Annotated[str | None, typer.Option(help="stop or missing, instead of the configuration's.")] = None,
) -> None:
    """The likeliest class of each row, and the probability of every class: columns row (from 1), class, p_<class>."""
    with plain_errors():
        import torch

        from mmvae_fast.cli import runs
        from mmvae_fast.cli.progress import track
        from mmvae_fast.data.dataset import ON_ERROR
        from mmvae_fast.data.errors import ConfigError
        from mmvae_fast.data.export import write_columns
        from mmvae_fast.systems import FusionClassifier

        if (data is None) == (not given):
            raise ConfigError("expected either a manifest or --from MODALITY=VALUE")
        if data is not None and out is None:
            raise ConfigError("--out: is missing, expected a file to write the rows' classes to")
        if out is not None and out.suffix.lower() not in ENDINGS:
            raise ConfigError(f"--out {out}: expected a name that ends in {', '.join(ENDINGS)}")
        if id is not None and (data is None or id in ("row", "class")):
            raise ConfigError(f"--id {id}: expected a column of the manifest, and neither row nor class")
        if on_error not in (None, *ON_ERROR):
            raise ConfigError(f"--on-error {on_error!r}: expected stop or missing")
        opened = runs.load(run, "classify")
        classifier = opened.model
        assert isinstance(classifier, FusionClassifier)  # says load
        if data is None:
            p = classifier.predict_proba(runs.read_given(opened, given or []))
            if out is None:
                print(_as_text(p[0], classifier.classes))
                return
            copied: dict[str, Any] = {}
        else:
            dataset = opened.dataset(data, on_error=on_error)
            copied = {} if id is None else {id: _column(dataset, id)}
            batches = track(opened.batches(dataset, batch_size, workers), -(-len(dataset) // batch_size), "classifying")
            told = [(classifier.predict_proba(batch, mask), mask) for batch, mask in batches]
            p = torch.cat([found for found, _ in told])
            runs.say_empty(dataset, [mask for _, mask in told])
            if text := dataset.report():
                print(f"{text}\nThey counted as missing.", file=sys.stderr)
        assert out is not None
        found: dict[str, Any] = {"row": list(range(1, len(p) + 1))}
        found |= copied
        found["class"] = [classifier.classes[i] for i in p.argmax(-1).tolist()]
        found |= {f"p_{name}": p[:, i].numpy(force=True) for i, name in enumerate(classifier.classes)}
        print(write_columns(out, found))


def _column(dataset: ManifestDataset, name: str) -> Any:
    """A column of a manifest as it is, whether or not it is a modality's."""
    from mmvae_fast.data.errors import ConfigError

    try:
        return dataset.manifest.column(name)
    except ValueError as error:
        raise ConfigError(f"--id: {error}") from error


def _as_text(p: Tensor, classes: tuple[str, ...]) -> str:
    """The likeliest class and its probability, then the others', a line each."""
    order = p.argsort(descending=True).tolist()
    return "\n".join(f"{classes[i]}\t{float(p[i]):.4f}" for i in order)
