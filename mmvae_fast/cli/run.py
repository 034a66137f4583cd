"""``mmvae-fast run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mmvae_fast.cli.app import WRONG_USAGE, app, fail, plain_errors


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run(
    context: typer.Context,
    bundle: Annotated[Path, typer.Argument(help="Folder that export wrote.")],
    to: Annotated[str | None, typer.Option(help="The modality to make; a classifier tells the class without.")] = None,
    given: Annotated[
        list[str] | None,
        typer.Option("--from", metavar="MODALITY=VALUE", help="A file, a text or numbers; may come again."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; the modality's suffix is added if it lacks.")] = None,
    seed: Annotated[int | None, typer.Option(help="Draw what only the made modality has, from this seed.")] = None,
    threads: Annotated[int, typer.Option(min=0, help="Threads; 0: all cores.")] = 1,
    timeout: Annotated[float, typer.Option(min=0.01, help="Seconds that one part of the bundle may run.")] = 60.0,
) -> None:
    """Make one modality from others with a bundle: --from image=x.png --to text, or shorter --image x.png --to text.

    What can be printed is, unless --out is given. Numbers are in their own units, both ways, if the bundle is of a run
    of train. Needs no torch.
    """
    with plain_errors():
        from mmvae_fast.onnx import Runtime, values
        from mmvae_fast.onnx.errors import unknown
        from mmvae_fast.onnx.manifest import CLASSIFIER_PART

        runtime = Runtime.load(bundle, threads=threads, timeout=timeout)
        cells = _cells(given or [], context.args, list(runtime.modalities))
        if to is None and CLASSIFIER_PART not in runtime.manifest.parts:
            fail(f"--to is missing, expected one of {', '.join(runtime.modalities)}", WRONG_USAGE)
        if to is not None and to not in runtime.modalities:
            fail(f"--to: {unknown('modality', to, runtime.modalities)}", WRONG_USAGE)
        inputs = {name: values.from_text(runtime, name, value) for name, value in cells.items()}
        if to is None:
            shares = runtime.predict_proba(inputs)[0].tolist()
            ranked = sorted(zip(shares, runtime.manifest.classes or (), strict=True), reverse=True)
            print("\n".join([ranked[0][1], *(f"  {name} {share:.4f}" for share, name in ranked)]))
            return
        sample = runtime.cross_generate(inputs, to, seed=seed)[0]
        line = values.as_text(runtime, to, sample)
        if out is not None:
            print(values.write(runtime, to, sample, out))
        elif line is not None:
            print(line)
        else:
            fail(f"--to {to} is no text: say with --out which file to write", WRONG_USAGE)


def _cells(given: list[str], extra: list[str], names: list[str]) -> dict[str, Any]:
    """Modality -> value, from ``--from NAME=VALUE``, ``--NAME VALUE`` and ``--NAME=VALUE``."""
    from mmvae_fast.onnx.errors import unknown

    pairs = []
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not value:
            fail(f"--from {text!r}: expected MODALITY=VALUE", WRONG_USAGE)
        pairs.append((name, value))
    rest = iter(extra)
    for option in rest:
        name, equals, value = option.removeprefix("--").partition("=")
        if not option.startswith("--"):
            fail(f"{option!r} was not expected; give inputs as --from MODALITY=VALUE", WRONG_USAGE)
        pairs.append((name, value if equals else next(rest, "")))
    cells: dict[str, str] = {}
    for name, value in pairs:
        if name not in names:
            fail(unknown("modality or option", name, names), WRONG_USAGE)
        if not value:
            fail(f"--{name}: expected a value", WRONG_USAGE)
        if name in cells:
            fail(f"{name!r} is given twice, expected once", WRONG_USAGE)
        cells[name] = value
    if not cells:
        fail(f"nothing to start from: give --from MODALITY=VALUE with one of {', '.join(names)}", WRONG_USAGE)
    return cells
