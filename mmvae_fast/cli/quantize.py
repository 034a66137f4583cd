"""``mmvae-fast quantize``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmvae_fast.cli.app import WRONG_USAGE, app, fail, plain_errors


@app.command()
def quantize(
    bundle: Annotated[Path, typer.Argument(help="Folder that export wrote.")],
    out: Annotated[Path, typer.Argument(help="Folder to write: new, empty, or with --overwrite an older bundle.")],
    preset: Annotated[str, typer.Option(help="int8, or int8-vnni for processors that have VNNI.")] = "int8",
    limit: Annotated[float, typer.Option(help="Largest relative RMS error of any output.")] = 0.03,
    data: Annotated[
        Path | None, typer.Option(help="An .npz of rows by modality to compare on. Else: what the model makes.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an older bundle.")] = False,
) -> None:
    """Write a bundle with 8-bit weights; print errors, size and speed. Exit code 1 if it answers too differently."""
    with plain_errors():
        from mmvae_fast.onnx.quantize import PRESETS, quantize_onnx

        if preset not in PRESETS:
            fail(f"--preset {preset}: expected {' or '.join(PRESETS)}", WRONG_USAGE)
        if not 0 < limit <= 1:
            fail(f"--limit {limit:g}: expected a share above 0, at most 1", WRONG_USAGE)
        rows = None if data is None else _rows(data)
        print(quantize_onnx(bundle, out, preset=preset, limit=limit, data=rows, overwrite=overwrite))


def _rows(path: Path) -> dict:
    import zipfile

    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, AttributeError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not an .npz file of arrays ({error})") from error
