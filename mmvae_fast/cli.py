"""The command line, ``mmvae-fast``. Commands import what they need when they run, so that ``--help`` comes at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

try:
    import typer
except ModuleNotFoundError:  # no traceback for who only wants to know what to install
    raise SystemExit("mmvae-fast needs typer and rich: pip install 'mmvae_fast[cli]'") from None

from mmvae_fast import __version__

INTERRUPTED = 130  # what a shell reports of a process that Ctrl-C ended

app = typer.Typer(
    name="mmvae-fast",
    help="Fused kernels, models and ONNX serving for multimodal variational autoencoders.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"mmvae_fast {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


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
            _fail(f"{type(error).__name__}: {error}\n{out} is as it was before.")
    except KeyboardInterrupt:
        _fail(f"Stopped; {out} is as it was before.", code=INTERRUPTED)
    console.print()
    console.print(summary(result))
    console.print(f"took {result.timings['total']:.0f} s; open:", highlight=False)
    for name in ("report.html", "metrics.json", "checkpoint/best", "onnx"):
        print(f"  {out / name}")  # as it is: rich would take [...] and :...: in a path for markup
    if result.missed:
        console.print(f"[red]Below target: {', '.join(result.missed)}.[/red]", soft_wrap=True)
    if result.broken_promise:
        raise typer.Exit(1)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Say what was built, what was found, and whether the two fit. Exit code 1 if there is a problem."""
    from mmvae_fast import doctor as doctor_

    try:
        found = doctor_.examine()
    except KeyboardInterrupt:
        _fail("Stopped.", code=INTERRUPTED)
    print(doctor_.as_json(found) if as_json else doctor_.as_text(found))
    if found["problems"]:
        raise typer.Exit(1)


def _fail(message: str, code: int = 1) -> NoReturn:
    """One line on standard error, and an exit code."""
    print(message, file=sys.stderr)
    raise typer.Exit(code)


def main() -> None:
    """The entry point of ``mmvae-fast``."""
    app()
