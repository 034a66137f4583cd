"""Where batches come from: tensors in memory, cut by index, or any map-style torch Dataset."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from mmvae_fast.models import MultimodalVAE
from mmvae_fast.models.batch import Mask, check_batch
from mmvae_fast.training.seeding import derive

MASK = "mask"
Data = Mapping[str, Any] | Dataset


class Shuffle(Sampler[int]):
    """An order of the rows that depends on the seed and the epoch alone. Lightning calls :meth:`set_epoch`."""

    def __init__(self, rows: int, seed: int, first_epoch: int) -> None:
        self.rows, self.seed, self.first_epoch = rows, seed, first_epoch
        self.workers = torch.Generator()  # what a DataLoader seeds its workers from
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """``epoch`` counts from the start of this call of fit, which may continue an earlier one."""
        self.epoch = self.first_epoch + epoch
        self.workers.manual_seed(derive(self.seed, "workers", self.epoch))

    def order(self) -> Tensor:
        generator = torch.Generator().manual_seed(derive(self.seed, "order", self.epoch))
        return torch.randperm(self.rows, generator=generator)

    def __iter__(self) -> Iterator[int]:
        yield from self.order().tolist()

    def __len__(self) -> int:
        return self.rows


class TensorBatches:
    """Batches of tensors in memory: one index operation a tensor, no row is ever touched by Python."""

    def __init__(self, tensors: Mapping[str, Any], rows: int, batch_size: int, sampler: Shuffle | None) -> None:
        self.tensors, self.rows, self.batch_size = tensors, rows, batch_size
        self.order = None if sampler is None else sampler.order
        if sampler is not None:
            self.sampler = sampler  # where Lightning looks for set_epoch

    def __len__(self) -> int:
        return math.ceil(self.rows / self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        order = torch.arange(self.rows) if self.order is None else self.order()
        for rows in order.split(self.batch_size):
            yield _take(self.tensors, rows)


def _take(tensors: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    return {
        key: _take(value, rows) if isinstance(value, Mapping) else value[rows.to(value.device)]
        for key, value in tensors.items()
    }


def split_mask(batch: Mapping[str, Any]) -> tuple[dict[str, Tensor], Mask]:
    """The modalities of a batch, and its mask."""
    if not isinstance(batch, Mapping):
        raise TypeError(f"a batch of the data is a {type(batch).__name__}, expected a dict of tensors by modality")
    return {name: x for name, x in batch.items() if name != MASK}, batch.get(MASK)


def count_rows(what: str, model: MultimodalVAE, data: Data) -> int:
    """How many rows the data has, checked: tensors against the modalities, values included.

    Raises:
        ValueError, TypeError: naming what came and what was expected.
    """
    if isinstance(data, Mapping):
        tensors, mask = split_mask(data)
        first = next((x for x in tensors.values() if isinstance(x, Tensor)), None)
        device = model.device if first is None else first.device
        try:
            checked = check_batch(model.modalities, tensors, mask, dtype=model.dtype, device=device)
            for name, x in checked.data.items():
                model.modalities[name].check_values(name, x)
        except (ValueError, TypeError) as error:
            raise type(error)(f"{what}: {error}") from None
        rows = checked.rows
    elif hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        rows = len(data)
    else:
        raise TypeError(
            f"{what} is a {type(data).__name__}, expected a dict of tensors by modality or a Dataset with a length"
        )
    if rows < 1:
        raise ValueError(f"{what} has no rows, expected at least one")
    return rows


def batches(data: Data, rows: int, batch_size: int, sampler: Shuffle | None, num_workers: int) -> Any:
    """An iterable over the data in batches; ``sampler`` shuffles, None keeps the order."""
    if isinstance(data, Mapping):
        return TensorBatches(data, rows, batch_size, sampler)
    generator = None if sampler is None else sampler.workers
    return DataLoader(data, batch_size, sampler=sampler, num_workers=num_workers, generator=generator)
