"""The model or system that a command line names: of a run that train wrote, or of a folder that its ``save`` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def open_model(folder: Path) -> Any:
    """The trained model or system in a folder.

    Raises:
        ValueError: neither a run nor a saved model.
    """
    from mmvae_fast.data.run import READERS_FILE, Run
    from mmvae_fast.models import MultimodalVAE
    from mmvae_fast.models.checkpoint import CONFIG, read_json
    from mmvae_fast.systems import System
    from mmvae_fast.systems.base import FORMAT as SYSTEM

    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder, expected one that mmvae-fast train or model.save wrote")
    if (folder / READERS_FILE).exists():
        return Run.load(folder).model
    is_system = (folder / CONFIG).is_file() and read_json(folder / CONFIG).get("format") == SYSTEM
    return (System if is_system else MultimodalVAE).load(folder).eval()


def preprocessing(folder: Path) -> dict[str, dict[str, Any]]:
    """How a run's data were read, where a bundle can do the same, for ``export_onnx``; of a model, nobody noted it."""
    from mmvae_fast.data.run import READERS_FILE
    from mmvae_fast.models.checkpoint import read_json
    from mmvae_fast.reading.recipes import is_readable

    if not (folder / READERS_FILE).exists():
        return {}
    readers = read_json(folder / READERS_FILE)["readers"]
    return {name: config for name, config in readers.items() if is_readable(config.get("kind"))}
