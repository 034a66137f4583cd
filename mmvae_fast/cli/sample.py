"""``mmvae-fast sample``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmvae_fast.cli.app import app, plain_errors


@app.command()
def sample(
    run: Annotated[Path, typer.Argument(help="Folder that train wrote.")],
    out: Annotated[Path, typer.Option(help="Folder to write; one of earlier samples is replaced.")],
    n: Annotated[int, typer.Option("-n", min=1, help="How many.")] = 16,
    to: Annotated[list[str] | None, typer.Option(help="A modality; may come again. Else: all.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same samples.")] = 0,
) -> None:
    """Make samples of the model's prior: one file a modality and sample, and samples.csv, which names them."""
    with plain_errors():
        from mmvae_fast.cli.progress import track
        from mmvae_fast.data.errors import ConfigError
        from mmvae_fast.data.export import write_samples
        from mmvae_fast.data.manifest import nearest
        from mmvae_fast.data.run import Run

        opened = Run.load(run)
        for name in to or ():
            if name not in opened.readers:
                raise ConfigError(f"no modality {name!r}{nearest(name, opened.readers)}")
        write_samples(out, opened.readers, opened.model.sample(n, seed=seed, to=to or None),
                      lambda rows: track(rows, n, "writing"))  # fmt: skip
        print(out)
