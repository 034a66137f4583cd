"""``mmvae-fast translate``."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated, Any

import typer

from mmvae_fast.cli.app import app, plain_errors


@app.command()
def translate(
    run: Annotated[Path, typer.Argument(help="Folder that train wrote.")],
    given: Annotated[
        list[str], typer.Option("--from", metavar="MODALITY=VALUE", help="A file, a text or numbers; may come again.")
    ],
    to: Annotated[str, typer.Option(help="The modality to make.")],
    out: Annotated[Path | None, typer.Option(help="File to write; the modality's suffix is added if it lacks.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Draw what is left to chance; else its mean.")] = None,
) -> None:
    """Make one modality from others: --from image=x.png --to text. What can be printed is, unless --out is given."""
    with plain_errors():
        from mmvae_fast.data.errors import ConfigError
        from mmvae_fast.data.export import as_line
        from mmvae_fast.data.manifest import nearest
        from mmvae_fast.data.run import Run

        opened = Run.load(run)
        cells: dict[str, Any] = {}
        for text in given:
            name, equals, value = text.partition("=")
            if not equals or not value:
                raise ConfigError(f"--from {text!r}: expected MODALITY=VALUE")
            if name in cells:
                raise ConfigError(f"--from names {name!r} twice, expected once")
            cells[name] = value
        for name in (*cells, to):
            if name not in opened.readers:
                raise ConfigError(f"no modality {name!r}{nearest(name, opened.readers)}")
        batch = {}
        for name, value in cells.items():
            columns = opened.config.columns()[name]
            cell = value if isinstance(columns, str) else next(csv.reader([value]))
            if isinstance(columns, list) and len(cell) != len(columns):
                raise ConfigError(f"--from {name}: {len(cell)} values, expected {len(columns)}: {', '.join(columns)}")
            try:
                batch[name] = opened.readers[name].read(cell)[None]
            except (ValueError, OSError) as error:
                raise type(error)(f"--from {name}: {error}") from error
        reader = opened.readers[to]
        sample = opened.model.translate(batch, to, seed=seed)[0]
        shown = as_line(reader.show(sample))
        if out is not None:
            print(reader.write(sample, out))
        elif shown is not None:
            print(shown)
        else:
            raise ConfigError(f"--to {to} is no text: say with --out which file to write")
