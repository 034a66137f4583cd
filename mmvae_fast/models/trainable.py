"""What models and systems share: named modalities, where their networks compute, and a folder they are saved in."""

from __future__ import annotations

import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmvae_fast._files import write_atomic
from mmvae_fast.modalities import Modality
from mmvae_fast.models.checkpoint import CONFIG, WEIGHTS, pack


class Trainable(nn.Module, ABC):
    """Networks over named modalities; see :mod:`mmvae_fast.training.checkpoints` for how a run of them is saved."""

    _zero: Tensor

    def __init__(self, modalities: Mapping[str, Modality]) -> None:
        super().__init__()
        _check_modalities(modalities)
        self.modalities: dict[str, Modality] = dict(modalities)
        # follows .to(): where and in which type the networks compute, even if they have no parameters
        self.register_buffer("_zero", torch.zeros(()), persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        return self._zero.dtype

    @property
    def device(self) -> torch.device:
        return self._zero.device

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Everything but the weights, as JSON."""

    def save(self, folder: str | os.PathLike) -> Path:
        """Write ``config.json`` and ``model.safetensors`` into a folder, each atomically. No pickled code."""
        folder = Path(folder)
        write_atomic(folder / WEIGHTS, pack(self.state_dict()))
        write_atomic(folder / CONFIG, json.dumps(self.config(), indent=2) + "\n")
        return folder


_RESERVED = {"mask"}  # training data carries its masks under this key


def _check_modalities(modalities: Any) -> None:
    if not isinstance(modalities, Mapping) or not modalities:
        raise ValueError(f"modalities is {modalities!r}, expected a dict of at least one Modality by name")
    taken = nn.ModuleDict()  # an instance: some of its attributes are not the class's
    for name, modality in modalities.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise ValueError(f"modality name {name!r}: expected letters, digits, '_' and '-' only")
        if name in _RESERVED or hasattr(taken, name):
            raise ValueError(f"modality name {name!r} is reserved, expected another one")
        if not isinstance(modality, Modality):
            raise TypeError(f"modality {name!r} is a {type(modality).__name__}, expected a Modality")
