"""``mmvae-fast verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmvae_fast.cli.app import FAILED, app, plain_errors


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="Folder that export wrote.")],
    run: Annotated[Path, typer.Option(help="Folder of the model it was exported from: train's, or model.save's.")],
    rtol: Annotated[float, typer.Option(min=0.0, help="Relative tolerance.")] = 1e-4,
    atol: Annotated[float, typer.Option(min=0.0, help="Absolute tolerance.")] = 1e-5,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Compare a bundle with its model, whatever is missing. Exit code 1 if an output differs."""
    with plain_errors():
        import json

        from mmvae_fast.cli._model import open_model, preprocessing
        from mmvae_fast.onnx import verify as compare

        report = compare(bundle, open_model(run), rtol=rtol, atol=atol, preprocessing=preprocessing(run) or None)
        print(json.dumps(report.to_json(), indent=1) if as_json else report)
        if not report.passed:
            raise typer.Exit(FAILED)
