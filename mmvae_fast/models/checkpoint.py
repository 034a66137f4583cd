"""A model in a folder: ``config.json`` and ``model.safetensors``, nothing executable."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmvae_fast._lazy import require
from mmvae_fast.modalities import Modality

FORMAT = "mmvae_fast.model"
SCHEMA_VERSION = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
ELSEWHERE = {"Autoencoder": "mmvae_fast.systems.autoencoder"}
"""Models that are not among MODELS, and the modules that have them: imported when one is loaded."""
DTYPES = ("float32", "float64", "bfloat16", "float16")


def load(
    cls: type,
    folder: str | os.PathLike,
    encoders: Mapping[str, nn.Module],
    decoders: Mapping[str, nn.Module],
    allow_import: bool | str | Sequence[str] = False,
) -> Any:
    """The model in ``folder``, which must be a ``cls``; see :meth:`MultimodalVAE.load`."""
    folder = Path(folder)
    config = read_config(folder)
    model_class = _model_class(cls, config["model"], folder)
    for what, networks in (("encoders", encoders), ("decoders", decoders)):
        for name in networks:
            if name not in config["modalities"]:
                raise ValueError(f"{what} names the modality {name!r}, expected some of {list(config['modalities'])}")
    modalities = {}
    for name, description in config["modalities"].items():
        try:
            modalities[name] = Modality.from_config(description, encoders.get(name), decoders.get(name), allow_import)
        except ValueError as error:
            raise ValueError(f"{folder / CONFIG}: modality {name!r}: {error}") from error
    try:
        model = model_class(modalities, config["latent_dim"], **config["options"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / CONFIG}: does not describe a {config['model']}: {error}") from error
    model.to(getattr(torch, config["dtype"]))
    load_weights(model, folder)
    return model


def read_config(folder: Path) -> dict[str, Any]:
    """The checked content of a model folder's ``config.json``.

    Raises:
        ValueError: missing, damaged, foreign, or of a newer version.
    """
    kinds = {"model": str, "latent_dim": int, "modalities": dict, "options": dict}
    return read_checked(folder, "model", FORMAT, SCHEMA_VERSION, kinds)


def read_checked(folder: Path, what: str, format: str, version: int, kinds: Mapping[str, type]) -> dict[str, Any]:
    """The content of a folder's ``config.json``: of a format and version, with keys of certain types, and a dtype.

    Raises:
        ValueError: missing, damaged, foreign, or of a newer version.
    """
    path = folder / CONFIG
    config = read_json(path)
    if config.get("format") != format:
        raise ValueError(f"{path}: format is {config.get('format')!r}, expected {format!r}: not a {what} of mmvae_fast")
    if config.get("schema_version") != version:
        raise ValueError(
            f"{path}: schema_version is {config.get('schema_version')!r}, expected {version}: written by another "
            "version of mmvae_fast"
        )
    for key, kind in kinds.items():
        if not isinstance(config.get(key), kind):
            raise ValueError(f"{path}: {key} is {config.get(key)!r}, expected a {kind.__name__}")
    if config.get("dtype") not in DTYPES:
        raise ValueError(f"{path}: dtype is {config.get('dtype')!r}, expected one of {DTYPES}")
    return config


def load_weights(model: nn.Module, folder: Path) -> None:
    """Fill a model from a folder's weights; every tensor must be there with the right shape.

    Raises:
        ValueError: missing or damaged file, or weights of another structure.
    """
    path = folder / WEIGHTS
    weights = unpack(path)
    own = model.state_dict()
    problems = [f"{name} is missing" for name in own if name not in weights]
    problems += [f"{name} is not part of the model" for name in weights if name not in own]
    problems += [
        f"{name} has shape {list(weights[name].shape)}, expected {list(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise ValueError(f"{path}: weights of another model: {'; '.join(problems[:5])}{more}")
    model.load_state_dict(weights)


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors by name as the bytes of a safetensors file; tied ones are simply stored twice."""
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    return require("safetensors.torch", extra="train").save(plain)


def unpack(path: Path) -> dict[str, Tensor]:
    """Read what :func:`pack` made.

    Raises:
        ValueError: missing or damaged file.
    """
    safetensors = require("safetensors", extra="train")
    try:
        return require("safetensors.torch", extra="train").load(path.read_bytes())
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file, expected weights in the safetensors format") from error
    except (safetensors.SafetensorError, KeyError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: damaged, expected weights in the safetensors format ({error})") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ValueError: missing or damaged file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{path}: no such file") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: damaged, expected JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, expected a JSON object")
    return content


def _model_class(cls: type, name: str, folder: Path) -> type:
    from mmvae_fast.models import MODELS

    known = {**MODELS, **({cls.__name__: cls} if not getattr(cls, "__abstractmethods__", None) else {})}
    if name in ELSEWHERE and name not in known:
        known[name] = getattr(import_module(ELSEWHERE[name]), name)
    if name not in known:
        raise ValueError(f"{folder / CONFIG}: model is {name!r}, expected one of {sorted({*known, *ELSEWHERE})}")
    if not issubclass(known[name], cls):
        raise ValueError(f"{folder / CONFIG}: holds a model of class {name}, expected {cls.__name__}")
    return known[name]
