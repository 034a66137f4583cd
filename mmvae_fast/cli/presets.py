"""``mmvae-fast presets``."""

from __future__ import annotations

from mmvae_fast.cli.app import app, plain_errors


@app.command()
def presets() -> None:
    """List what `train --preset NAME` can start from: real data, a configuration to edit, and the training."""
    with plain_errors():
        from mmvae_fast.presets import NAMES, describe

        for name in NAMES:
            print(f"{name:<12} {describe(name)}")
