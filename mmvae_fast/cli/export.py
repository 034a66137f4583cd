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
    layout: Annotated[
        str, typer.Option(help="bundle: a folder; single: one file, OUT being its path *.onnx.")
    ] = "bundle",
    quantize: Annotated[str, typer.Option(help="int8 or int8-vnni: deliver 8-bit weights. Else: 32 bits.")] = "",
    rtol: Annotated[float, typer.Option(min=0.0, help="Relative tolerance of the comparison with torch.")] = 1e-4,
    atol: Annotated[float, typer.Option(min=0.0, help="Absolute tolerance.")] = 1e-5,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an older bundle.")] = False,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Do not compare with torch.")] = False,
) -> None:
    """Write a trained model as .onnx files, which need no torch. Exit code 1 if they differ from torch."""
    with plain_errors():
        if sampling not in ("eps", "philox"):
            fail(f"--sampling {sampling}: expected eps or philox", WRONG_USAGE)
        if layout not in ("bundle", "single"):
            fail(f"--layout {layout}: expected bundle or single", WRONG_USAGE)
        if quantize not in ("", "int8", "int8-vnni"):
            fail(f"--quantize {quantize}: expected int8 or int8-vnni", WRONG_USAGE)
        if layout == "single" and (quantize or out.suffix != ".onnx"):
            fail("--layout single: expected a path *.onnx and no --quantize", WRONG_USAGE)
        from mmvae_fast.cli._model import open_model, preprocessing
        from mmvae_fast.onnx import export_onnx

        model = open_model(run)
        print(export_onnx(model, out, opset=opset, sampling=sampling, preprocessing=preprocessing(run),
                          layout=layout, quantize=quantize or None, rtol=rtol, atol=atol,
                          overwrite=overwrite, verify=not no_verify))  # fmt: skip
