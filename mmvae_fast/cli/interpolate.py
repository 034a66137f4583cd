"""``mmvae-fast interpolate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmvae_fast.cli.app import app, plain_errors
from mmvae_fast.cli.runs import Temperature, TopK, TopP


@app.command()
def interpolate(
    run: Annotated[Path, typer.Argument(help="Folder that train wrote.")],
    a: Annotated[str, typer.Argument(help="Where to start: a text, a file, or numbers with commas between.")],
    b: Annotated[str, typer.Argument(help="Where to end.")],
    of: Annotated[str | None, typer.Option(help="The modality of the two; the only one unless told.")] = None,
    to: Annotated[str | None, typer.Option(help="The modality to make; the same unless told.")] = None,
    steps: Annotated[int, typer.Option(min=2, help="How many, both ends included.")] = 7,
    out: Annotated[Path | None, typer.Option(help="Folder to write; one of earlier samples is replaced.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
) -> None:
    """Walk through the latent space from one text, image, sound, ... to another: "text a" "text b", or
    a.png b.png --of image. What can be printed is, a line a step, unless --out is given."""
    with plain_errors():
        import torch

        from mmvae_fast.cli import runs
        from mmvae_fast.cli.progress import track
        from mmvae_fast.data.errors import ConfigError
        from mmvae_fast.data.export import as_line, write_samples

        opened = runs.load(run, "interpolate")
        if of is None:
            if len(opened.readers) > 1:
                raise ConfigError(f"--of: is missing, expected one of {', '.join(opened.readers)}")
            (of,) = opened.readers
        to = to or of
        for name in (of, to):
            runs.check_name(opened, name)
        runs.draw_texts(opened, [to], temperature, top_k, top_p, seed)
        ends = torch.stack([runs.read(opened, of, value, value) for value in (a, b)])
        model = runs.vae(opened)
        with torch.no_grad():
            first, last = model.encode({of: ends}).point
            way = torch.linspace(0, 1, steps, dtype=first.dtype)[:, None]
            made = model.decode(first * (1 - way) + last * way, to=[to])
        shown = [as_line(opened.readers[to].show(sample)) for sample in made[to]] if out is None else []
        if out is not None:
            write_samples(out, opened.readers, made, lambda rows: track(rows, steps, "writing"))
            print(out)
        elif None in shown:
            raise ConfigError(f"--to {to} is no text: say with --out which folder to write")
        else:
            print(*shown, sep="\n")
