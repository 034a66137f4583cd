"""``mmvae-fast train``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mmvae_fast.cli.app import app, plain_errors


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(help="A YAML file: data, modalities, model, training, out.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="Instead of a file: write data and a config.yaml to edit, and train that.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the file's.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run, instead of the file's; of a preset, runs/NAME.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that load, instead of the file's.")] = None,
    resume: Annotated[
        bool | None,
        typer.Option(
            "--resume/--start-over", help="Insist on a run to continue, or replace it. Else: continue if there is one."
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Train a model or a system on a manifest of files. The same command continues what was interrupted.

    The folder of the run gets best/ and last/ (models), history.json, readers.json and run.yaml; of a GAN or CycleGAN
    also samples/. `mmvae-fast presets` lists what --preset knows.
    """
    with plain_errors():
        from mmvae_fast.data.config import read_config
        from mmvae_fast.data.errors import ConfigError
        from mmvae_fast.data.run import train as run

        if (config is None) == (preset is None):
            raise ConfigError("expected either a configuration, or --preset NAME (see mmvae-fast presets)")
        if preset is not None:
            config, out = _write_preset(preset, out), None
        assert config is not None
        settings = read_config(config)
        changes = {"epochs": epochs, "num_workers": workers}
        changed = {name: value for name, value in changes.items() if value is not None}
        settings = settings.model_copy(update={"training": settings.training.model_copy(update=changed)})
        if out is not None:
            settings = settings.model_copy(update={"out": out.absolute()})
        run(
            settings,
            resume="auto" if resume is None else resume,
            progress=not quiet,
            report=lambda text: print(text, file=sys.stderr),
        )
        print(settings.out)


def _write_preset(name: str, out: Path | None) -> Path:
    """The config.yaml of a preset, in a folder with its data; one that is there already is taken as it is."""
    from mmvae_fast.data.errors import ConfigError
    from mmvae_fast.data.manifest import nearest
    from mmvae_fast.presets import NAMES, write

    if name not in NAMES:
        raise ConfigError(f"--preset {name!r}: no such preset{nearest(name, NAMES)}")
    path = write(name, Path("runs") / name if out is None else out)
    print(f"{path}: edit it, and train that with mmvae-fast train {path}", file=sys.stderr)
    return path
