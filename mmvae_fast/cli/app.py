"""The application itself, and what all commands share: how they end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, NoReturn

try:
    import typer
except ModuleNotFoundError:  # no traceback for who only wants to know what to install
    raise SystemExit("mmvae-fast needs typer and rich: pip install 'mmvae_fast[cli]'") from None

from mmvae_fast import __version__

FAILED = 1
WRONG_USAGE = 2  # of the command line or of a configuration
INTERRUPTED = 130  # what a shell reports of a process that Ctrl-C ended
TERMINATED = 143  # and of one that SIGTERM did

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


def fail(message: str, code: int = FAILED) -> NoReturn:
    """The reason on standard error, and an exit code."""
    print(message, file=sys.stderr)
    raise typer.Exit(code)


@contextmanager
def plain_errors() -> Iterator[None]:
    """What a user can put right is said without a traceback; whatever else happens is a bug and keeps its own."""
    try:
        yield
    except KeyboardInterrupt as stop:
        fail(_capitalised(str(stop)) or "Stopped.", INTERRUPTED)
    except SystemExit as stop:
        training = sys.modules.get("mmvae_fast.training.stopping")  # as below; what stops no training is not ours
        if training is None or not training.is_termination(stop):
            raise
        fail(_capitalised(str(stop)) or "Stopped.", TERMINATED)
    except (ImportError, OSError, ValueError, FloatingPointError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "torch":
            fail("torch is not installed; this command works on the model itself and needs it: pip install torch. "
                 "A bundle needs none: inspect, run, bench, embed and serve.")  # fmt: skip
        data = sys.modules.get("mmvae_fast.data.errors")  # importing it takes torch; an error of it has done so
        wrong_usage = data is not None and isinstance(error, data.ConfigError)
        fail(str(error) or type(error).__name__, WRONG_USAGE if wrong_usage else FAILED)


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
