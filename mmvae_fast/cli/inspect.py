"""``mmvae-fast inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mmvae_fast.cli.app import app, plain_errors


@app.command()
def inspect(
    bundle: Annotated[Path, typer.Argument(help="Folder that export wrote.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Say what a bundle holds, once every file in it is found to be what was exported. Needs no torch."""
    with plain_errors():
        import json

        from mmvae_fast.onnx import Runtime

        runtime = Runtime.load(bundle)
        print(json.dumps(runtime.manifest.to_json(), indent=2, ensure_ascii=False) if as_json else _as_text(runtime))


def _as_text(runtime: Any) -> str:
    m = runtime.manifest
    versions = ", ".join(f"{name} {version}" for name, version in m.versions.items())
    lines = [f"{m.model}, {m.latent_dim} latent dimensions; opset {m.opset}; {versions}", "modalities"]
    for spec in runtime.modalities.values():
        words = f", {spec.vocabulary_size} words" if spec.vocabulary_size else ""
        lines.append(f"  {spec.name:<20} {spec.kind:<10} {spec.dtype} {list(spec.shape)}, {spec.likelihood}{words}")
    lines.append("files")
    lines += [f"  {name:<28} {(runtime.folder / name).stat().st_size / 2**10:>10.1f} KiB" for name in m.files]
    return "\n".join(lines)
