"""``mmvae-fast demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmvae_fast.cli.app import INTERRUPTED, TERMINATED, app, fail


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo writes.")] = Path("demo_out"),
    epochs: Annotated[int, typer.Option(min=1, help="How long to train.")] = 30,
    seed: Annotated[
        int, typer.Option(min=0, help="Of data, weights and noise; the same seed gives the same figures.")
    ] = 0,
    threads: Annotated[
        int, typer.Option(min=1, help="Threads for training; these networks are small, so 1 is fastest.")
    ] = 1,
    draws: Annotated[int, typer.Option(min=100, help="Training rows.")] = 4000,
) -> None:
    """Train a model of images, captions and tones, judge it, export it, run it without torch, and show it all.

    Exit code 1 if it fails or a figure misses its target. The targets are for the default epochs and draws; with
    others, missing one is no failure.
    """
    try:
        from rich.console import Console

        from mmvae_fast.demo.run import Settings, run, summary
        from mmvae_fast.onnx import ExportError

        console = Console()
        try:
            result = run(out, Settings(seed=seed, epochs=epochs, draws=draws, threads=threads), console)
        except (ImportError, OSError, FloatingPointError, ExportError) as error:  # anything else is a bug: traceback
            fail(f"{type(error).__name__}: {error}\n{out} is as it was before.")
    except KeyboardInterrupt:
        fail(f"Stopped; {out} is as it was before.", code=INTERRUPTED)
    except SystemExit as stop:
        from mmvae_fast.training.stopping import is_termination

        if not is_termination(stop):
            raise
        fail(f"Stopped; {out} is as it was before.", code=TERMINATED)
    console.print()
    console.print(summary(result))
    console.print(f"took {result.timings['total']:.0f} s; open:", highlight=False)
    for name in ("report.html", "metrics.json", "checkpoint/best", "onnx"):
        print(f"  {out / name}")  # as it is: rich would take [...] and :...: in a path for markup
    if result.missed:
        console.print(f"[red]Below target: {', '.join(result.missed)}.[/red]", soft_wrap=True)
    if result.broken_promise:
        raise typer.Exit(1)
