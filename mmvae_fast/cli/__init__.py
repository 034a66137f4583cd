"""The command line, ``mmvae-fast``: one file a command. Commands import what they need when they run, so that
``--help`` comes at once."""

from mmvae_fast.cli.app import INTERRUPTED, app

from mmvae_fast.cli import demo, doctor, train, evaluate, translate, sample, embed  # isort: skip - registers, in order
from mmvae_fast.cli import export, verify, inspect, quantize, bench, run, serve  # isort: skip

__all__ = ["INTERRUPTED", "app", "main"]

_COMMANDS = (
    demo,
    doctor,
    train,
    evaluate,
    translate,
    sample,
    embed,
    export,
    verify,
    inspect,
    quantize,
    bench,
    run,
    serve,
)


def main() -> None:
    """The entry point of ``mmvae-fast``."""
    app()
