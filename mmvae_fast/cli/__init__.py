"""The command line, ``mmvae-fast``: one file a command. Commands import what they need when they run, so that
``--help`` comes at once."""

from mmvae_fast.cli.app import INTERRUPTED, app

from mmvae_fast.cli import (  # isort: skip - registers, in order
    demo, doctor, presets, train, evaluate, translate, sample, interpolate, embed, classify, align,
    export, verify, inspect, quantize, bench, run, serve,
)  # fmt: skip

__all__ = ["INTERRUPTED", "app", "main"]

_COMMANDS = (
    demo, doctor, presets, train, evaluate, translate, sample, interpolate, embed, classify, align,
    export, verify, inspect, quantize, bench, run, serve,
)  # fmt: skip


def main() -> None:
    """The entry point of ``mmvae-fast``."""
    app()
