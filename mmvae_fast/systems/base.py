"""What the systems share that are trained by :func:`mmvae_fast.systems.fit`: one step, and files."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from mmvae_fast.modalities import Modality
from mmvae_fast.models.base import number
from mmvae_fast.models.checkpoint import CONFIG, load_weights, read_checked
from mmvae_fast.models.trainable import Trainable

FORMAT = "mmvae_fast.system"
SCHEMA_VERSION = 1
RESERVED = ("label", "condition")  # keys of training data that are no modalities

Sums = dict[str, tuple[Tensor, int]]
"""By name, a sum over so many rows: means over an epoch are then over its rows, however they fall into batches."""
Self = TypeVar("Self", bound="System")


class System(Trainable):
    """Named modalities, networks, and a rule for one step of their training.

    Args:
        modalities: by name.
        networks: your own modules by the names of :attr:`networks`, instead of the default ones.
    """

    validated: ClassVar[bool] = False
    """Whether :meth:`evaluate` tells one epoch from a better one."""

    def __init__(self, modalities: Mapping[str, Modality], networks: Mapping[str, nn.Module] | None = None) -> None:
        super().__init__(modalities)
        for name in modalities:
            if name in RESERVED:
                raise ValueError(f"modality name {name!r} is reserved, expected another one")
        self._given = dict(networks or {})
        self._taken: set[str] = set()

    @property
    def extras(self) -> tuple[str, ...]:
        """Those of :data:`RESERVED` that the training data may hold."""
        return ()

    def _network(self, name: str, default: Any) -> nn.Module:
        """Your own network of that name, or what ``default()`` makes."""
        self._taken.add(name)
        network = self._given.get(name)
        if network is None:
            return default()
        if not isinstance(network, nn.Module):
            raise TypeError(f"network {name!r} is a {type(network).__name__}, expected an nn.Module")
        return network

    def _check_networks(self) -> None:
        """After the last :meth:`_network`: was every module given asked for?"""
        for name in self._given:
            if name not in self._taken:
                raise ValueError(f"networks names {name!r}, expected some of {sorted(self._taken)}")

    # --- training -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def optimizer(self) -> torch.optim.Optimizer:
        """One optimizer for all networks. It leaves alone what has no gradient, so each network can step by itself."""

    @abstractmethod
    def step(self, batch: Mapping[str, Any], optimizer: torch.optim.Optimizer, seed: int) -> Sums:
        """One step of the training on a batch; all its randomness comes from ``seed``."""

    def evaluate(self, batch: Mapping[str, Any], seed: int) -> Sums:
        """The same figures without a step; of their :meth:`figures`, "loss" is the one to be low."""
        raise NotImplementedError

    def figures(self, means: Mapping[str, float]) -> dict[str, float]:
        """What an epoch reports, of the means over its rows: as they are by default."""
        return dict(means)

    def complete(self, batch: Mapping[str, Any], data: Mapping[str, Any], seed: int) -> Mapping[str, Any]:
        """A batch for :meth:`step`, with rows of all the data that a step needs beside it; as it is by default."""
        return batch

    def previewed(self) -> list[str]:
        """The modalities that :meth:`preview` shows."""
        return []

    def preview(self) -> dict[str, Tensor]:
        """What to look at after an epoch, by modality, [n, *shape] in data space; nothing by default."""
        return {}

    def check_extra(self, what: str, key: str, value: Any, rows: int) -> None:
        """Refuse one of :attr:`extras`, all rows of it."""

    # --- files --------------------------------------------------------------------------------------------------------

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the constructor, as JSON."""

    def config(self) -> dict[str, Any]:
        """Everything but the weights, as JSON; networks of your own are noted, not described."""
        return {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "system": type(self).__name__,
            "dtype": str(self.dtype).removeprefix("torch."),
            "modalities": {name: modality.config() for name, modality in self.modalities.items()},
            "networks": sorted(self._given),
            "options": self.options(),
        }

    @classmethod
    def load(
        cls: type[Self],
        folder: str | os.PathLike,
        networks: Mapping[str, nn.Module] | None = None,
        encoders: Mapping[str, nn.Module] | None = None,
        decoders: Mapping[str, nn.Module] | None = None,
        *,
        allow_import: bool | str | Sequence[str] = False,
    ) -> Self:
        """A saved system. ``System.load`` takes any, ``GAN.load`` only a GAN.

        Args:
            networks: for every network of your own, a module of the same structure.
            encoders, decoders: likewise, for the modalities that had one.
            allow_import: import modalities' networks that were given by their import path: True, or only those in these
                packages (with all that is in them). Importing runs their code: allow what you trust.

        Raises:
            ValueError: no such folder, damaged, of another system, or networks missing, or their import not allowed.
        """
        from mmvae_fast.systems import SYSTEMS

        folder = Path(folder)
        config = read_config(folder)
        known = {**SYSTEMS, **({} if getattr(cls, "__abstractmethods__", None) else {cls.__name__: cls})}
        found = known.get(config["system"])
        if found is None or not issubclass(found, cls):
            raise ValueError(
                f"{folder / CONFIG}: holds a system {config['system']!r}, expected "
                f"{f'one of {sorted(known)}' if cls is System else cls.__name__}"
            )
        networks = dict(networks or {})
        if sorted(networks) != config["networks"]:
            raise ValueError(
                f"{folder}: was saved with networks of its own for {config['networks']}, got {sorted(networks)}"
            )
        encoders, decoders = encoders or {}, decoders or {}
        try:
            modalities = {
                name: Modality.from_config(description, encoders.get(name), decoders.get(name), allow_import)
                for name, description in config["modalities"].items()
            }
            given = {"networks": networks} if networks else {}
            system = found(modalities, **config["options"], **given)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{folder / CONFIG}: does not describe a {config['system']}: {error}") from error
        system.to(getattr(torch, config["dtype"]))
        load_weights(system, folder)
        return system.eval()


def adam(groups: list[dict[str, Any]], betas: Sequence[float] = (0.9, 0.999)) -> torch.optim.Optimizer:
    """Adam over groups of parameters, in one pass over all of them where torch has that."""
    parameters = [p for group in groups for p in group["params"]]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    return torch.optim.Adam(groups, betas=(betas[0], betas[1]), fused=fused)


def above_zero(what: str, value: Any) -> float:
    """A finite number above 0, checked."""
    if number(what, value) == 0:
        raise ValueError(f"{what} is {value}, expected a finite number above 0")
    return float(value)


def decay(what: str, value: Any) -> float:
    """The share of the past that an average keeps, checked."""
    if number(what, value) >= 1:
        raise ValueError(f"{what} is {value}, expected a decay of 0 or more, below 1")
    return float(value)


def read_config(folder: Path) -> dict[str, Any]:
    """The checked content of a system folder's ``config.json``.

    Raises:
        ValueError: missing, damaged, foreign, or of a newer version.
    """
    kinds = {"system": str, "modalities": dict, "options": dict, "networks": list}
    return read_checked(folder, "system", FORMAT, SCHEMA_VERSION, kinds)
