"""``mmvae-fast embed``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mmvae_fast.cli.app import WRONG_USAGE, app, fail, plain_errors


@app.command()
def embed(
    run: Annotated[Path, typer.Argument(help="Folder that train wrote; for ray, a bundle that export wrote.")],
    data: Annotated[
        Path, typer.Argument(help="A manifest; it may lack some of the modalities' columns. For ray, a folder of them.")
    ],
    out: Annotated[Path, typer.Option(help="File to write: .parquet, .csv or .npy; for ray, a folder.")],
    batch_size: Annotated[int, typer.Option(min=1)] = 256,
    workers: Annotated[int, typer.Option(min=0, help="Processes that load.")] = 0,
    on_error: Annotated[str | None, typer.Option(help="stop or missing, instead of the configuration's.")] = None,
    engine: Annotated[
        str, typer.Option(help="torch, or ray: a folder of Parquet files, on many processes or machines.")
    ] = "torch",
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="MODALITY=COLUMN", help="Ray: where they are not called the same; may come again."),
    ] = None,
    keep: Annotated[list[str] | None, typer.Option(help="Ray: a column to copy; may come again.")] = None,
    address: Annotated[str | None, typer.Option(help="Ray: of a running cluster. Else: this machine.")] = None,
) -> None:
    """Where each row lies in the latent space: the posterior's mean, z_0, z_1, ..., in the order of the rows.

    Of a classifier, what it clusters: the latents of the VAE beside it, or without one its branches side by side.

    With --engine ray, every Parquet file below DATA becomes one below OUT, with as many rows; the same command goes on
    where an interrupted one stopped, and needs no torch.
    """
    with plain_errors():
        if engine == "ray":
            _on_ray(run, data, out, batch_size, workers, on_error or "stop", column or [], keep or [], address)
            return
        if engine != "torch":
            fail(f"--engine {engine}: expected torch or ray", WRONG_USAGE)
        if column or keep or address:
            fail("--column, --keep and --address: expected with --engine ray only", WRONG_USAGE)
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


def _on_ray(
    bundle: Path,
    data: Path,
    out: Path,
    batch_size: int,
    workers: int,
    on_error: str,
    column: list[str],
    keep: list[str],
    address: str | None,
) -> None:
    from mmvae_fast.onnx.embedding import ON_ERROR
    from mmvae_fast.onnx.ray_engine import embed_folder

    if on_error not in ON_ERROR:
        fail(f"--on-error {on_error}: expected {' or '.join(ON_ERROR)}", WRONG_USAGE)
    columns: dict[str, str] = {}
    for text in column:
        name, equals, value = text.partition("=")
        if not equals or not value or name in columns:
            fail(f"--column {text!r}: expected MODALITY=COLUMN, each modality once", WRONG_USAGE)
        columns[name] = value
    done = embed_folder(
        bundle, data, out, columns=columns, keep=keep, on_error=on_error, batch_rows=batch_size,
        workers=workers or None, address=address,
    )  # fmt: skip
    rows, faults, before = (sum(getattr(one, name) for one in done) for name in ("rows", "faults", "skipped"))
    print(f"{len(done)} files, {rows} rows; {before} files were done before", file=sys.stderr)
    if faults:
        print(f"{faults} cells could not be read and counted as missing.", file=sys.stderr)
    print(out)
