"""``mmvae-fast embed``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mmvae_fast.cli.app import app, plain_errors


@app.command()
def embed(
    run: Annotated[Path, typer.Argument(help="Folder that train wrote.")],
    data: Annotated[Path, typer.Argument(help="A manifest; it may lack some of the modalities' columns.")],
    out: Annotated[Path, typer.Option(help="File to write: .parquet, .csv or .npy.")],
    batch_size: Annotated[int, typer.Option(min=1)] = 256,
    workers: Annotated[int, typer.Option(min=0, help="Processes that load.")] = 0,
    on_error: Annotated[str | None, typer.Option(help="stop or missing, instead of the configuration's.")] = None,
) -> None:
    """Where each row lies in the latent space: the posterior's mean, z_0, z_1, ..., in the order of the rows.

    Of a classifier, what it clusters: the latents of the VAE beside it, or without one its branches side by side.
    """
    with plain_errors():
        import torch

        from mmvae_fast.cli import runs
        from mmvae_fast.cli.progress import track
        from mmvae_fast.data.dataset import ON_ERROR
        from mmvae_fast.data.errors import ConfigError
        from mmvae_fast.data.export import TABLES, write_latents
        from mmvae_fast.systems import FusionClassifier

        if out.suffix.lower() not in TABLES:
            raise ConfigError(f"--out {out}: expected a name that ends in {', '.join(TABLES)}")
        if on_error not in (None, *ON_ERROR):
            raise ConfigError(f"--on-error {on_error!r}: expected stop or missing")
        opened = runs.load(run, "embed")
        model = opened.model if isinstance(opened.model, FusionClassifier) else runs.vae(opened)
        dataset = opened.dataset(data, on_error=on_error)
        batches = track(opened.batches(dataset, batch_size, workers), -(-len(dataset) // batch_size), "embedding")
        with torch.no_grad():
            latents = ((model.encode(batch, mask), mask) for batch, mask in batches)
            kept = [(found if isinstance(found, torch.Tensor) else found.mu, mask) for found, mask in latents]
        z = torch.cat([found for found, _ in kept])
        runs.say_empty(dataset, [mask for _, mask in kept])
        if text := dataset.report():
            print(f"{text}\nThey counted as missing.", file=sys.stderr)
        write_latents(out, z.numpy(force=True))
        print(out)
