"""``mmvae-fast translate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmvae_fast.cli.app import app, plain_errors
from mmvae_fast.cli.runs import Temperature, TopK, TopP


@app.command()
def translate(
    run: Annotated[Path, typer.Argument(help="Folder that train wrote.")],
    given: Annotated[
        list[str], typer.Option("--from", metavar="MODALITY=VALUE", help="A file, a text or numbers; may come again.")
    ],
    to: Annotated[str, typer.Option(help="The modality to make.")],
    out: Annotated[Path | None, typer.Option(help="File to write; the modality's suffix is added if it lacks.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Draw what is left to chance; else its mean.")] = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
) -> None:
    """Make one modality from others: --from image=x.png --to text. What can be printed is, unless --out is given."""
    with plain_errors():
        from mmvae_fast.cli import runs
        from mmvae_fast.data.errors import ConfigError
        from mmvae_fast.data.export import as_line
        from mmvae_fast.systems import CycleGAN

        opened = runs.load(run, "translate")
        batch = runs.read_given(opened, given)
        runs.check_name(opened, to)
        runs.draw_texts(opened, [to], temperature, top_k, top_p, seed)
        if isinstance(opened.model, CycleGAN):
            if seed is not None:
                raise ConfigError("--seed: a CycleGAN leaves nothing to chance, expected no such option")
            if list(batch) != [source := opened.model.other(to)]:
                raise ConfigError(f"--from names {', '.join(batch)}, expected {source}: a CycleGAN makes {to} from it")
            sample = opened.model.translate(batch, to)[0]
        else:
            sample = runs.vae(opened).translate(batch, to, seed=seed)[0]
        reader = opened.readers[to]
        shown = as_line(reader.show(sample))
        if out is not None:
            print(reader.write(sample, out))
        elif shown is not None:
            print(shown)
        else:
            raise ConfigError(f"--to {to} is no text: say with --out which file to write")
