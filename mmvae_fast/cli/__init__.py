"""The command line, ``mmvae-fast``: one file a command. Commands import what they need when they run, so that
``--help`` comes at once."""

from mmvae_fast.cli.app import INTERRUPTED, app

from mmvae_fast.cli import demo, doctor, train, evaluate, translate, sample, embed, align  # isort: skip - registers, in order

__all__ = ["INTERRUPTED", "app", "main"]

_COMMANDS = (demo, doctor, train, evaluate, translate, sample, embed, align)


def main() -> None:
    """The entry point of ``mmvae-fast``."""
    app()
