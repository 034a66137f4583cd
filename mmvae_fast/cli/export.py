"""``mmvae-fast export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmvae_fast.cli.app import WRONG_USAGE, app, fail, plain_errors


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder that train wrote, or model.save.")],
    out: Annotated[Path, typer.Argument(help="Folder to write: new, empty, or with --overwrite an older bundle.")],
    opset: Annotated[int, typer.Option(min=18, max=23, help="ONNX operator set.")] = 20,
    sampling: Annotated[
        str, typer.Option(help="eps: noise is an input, made by the Runtime; philox: graphs make it from a seed.")
    ] = "eps",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an older bundle.")] = False,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Do not compare with torch.")] = False,
) -> None:
    """Write a trained model as a bundle of .onnx files, which needs no torch. Exit code 1 if it differs from torch."""
    with plain_errors():
        if sampling not in ("eps", "philox"):
            fail(f"--sampling {sampling}: expected eps or philox", WRONG_USAGE)
        from mmvae_fast.cli._model import open_model, preprocessing
        from mmvae_fast.onnx import export_onnx

        model = open_model(run)
        print(export_onnx(model, out, opset=opset, sampling=sampling, preprocessing=preprocessing(run),
                          overwrite=overwrite, verify=not no_verify))  # fmt: skip
