"""Where batches come from: tensors in memory, cut by index, or any map-style torch Dataset."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from mmvae_fast.models.batch import Mask, check_batch
from mmvae_fast.models.trainable import Trainable
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


def count_rows(what: str, model: Trainable, data: Data) -> int:
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


def fingerprint(what: str, data: Data | None) -> dict[str, str]:
    """What tells data from other data: dtype, shape and CRC-32 of every tensor; nothing of a Dataset."""
    found: dict[str, str] = {}
    for name, x in data.items() if isinstance(data, Mapping) else ():
        if isinstance(x, Mapping):
            found |= fingerprint(f"{what}.{name}", x)
            continue
        crc = 0
        for part in x.detach().split(4096):
            crc = zlib.crc32(part.cpu().contiguous().view(torch.uint8).numpy(), crc)
        found[f"{what}.{name}"] = f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)} {crc:08x}"
    return found


class Collate:
    """Rows of a Dataset -> a batch. A modality that a row lacks (no key, or None) is zeros there, masked out."""

    def __init__(self, model: Trainable) -> None:
        self.blanks = {
            name: torch.zeros(m.shape, dtype=model.dtype if m.dtype.is_floating_point else m.dtype)
            for name, m in model.modalities.items()
        }

    def __call__(self, rows: Sequence[Any]) -> dict[str, Any]:
        observed = torch.stack([self._observed(f"row {i} of a batch of the data", row) for i, row in enumerate(rows)])
        batch: dict[str, Any] = {name: default_collate(self._samples(name, rows)) for name in self.blanks}
        return batch if observed.all() else {**batch, MASK: observed}

    def _observed(self, where: str, row: Any) -> Tensor:
        """Which modalities a row has, bool [M]: those that are there, unless its own mask says otherwise."""
        if not isinstance(row, Mapping):
            raise TypeError(f"{where} is a {type(row).__name__}, expected a dict of tensors by modality")
        mask = row.get(MASK)
        masked = mask if isinstance(mask, Mapping) else {}
        for what, names in (("", [*row]), ("'s mask", [*masked])):
            for name in names:
                if name not in self.blanks and (what or name != MASK):
                    raise ValueError(f"{where}{what} names the modality {name!r}, expected some of {[*self.blanks]}")
        there = torch.tensor([row.get(name) is not None for name in self.blanks])
        if mask is None:
            return there
        if isinstance(mask, Mapping):
            mask = [torch.as_tensor(mask.get(name, True)) for name in self.blanks]
            mask = torch.stack(mask) if all(m.shape == () for m in mask) else mask[0].new_empty(0)
        mask = torch.as_tensor(mask)
        if mask.dtype != torch.bool or mask.shape != there.shape:
            raise ValueError(
                f"{where} has a mask of {mask.dtype} {list(mask.shape)}, expected a bool for every modality: a dict, "
                f"or [M] = {list(there.shape)}"
            )
        return there & mask.cpu()

    def _samples(self, name: str, rows: Sequence[Mapping[str, Any]]) -> list[Tensor]:
        blank = self.blanks[name]
        samples = [None if row.get(name) is None else torch.as_tensor(row[name]) for row in rows]
        for i, x in enumerate(samples):
            if x is not None and (x.shape != blank.shape or x.dtype != blank.dtype):
                raise ValueError(
                    f"row {i} of a batch of the data: modality {name!r} is {x.dtype} {list(x.shape)}, expected "
                    f"{blank.dtype} {list(blank.shape)}"
                )
        blank = blank.to(next((x.device for x in samples if x is not None), blank.device))
        return [blank if x is None else x for x in samples]


def batches(
    data: Data,
    model: Trainable,
    rows: int,
    batch_size: int,
    sampler: Shuffle | None,
    num_workers: int,
    collate: Callable[[Sequence[Any]], dict[str, Any]] | None = None,
) -> Any:
    """An iterable over the data in batches; ``sampler`` shuffles, None keeps the order; ``collate`` makes a batch of a
    Dataset's rows, None with :class:`Collate`."""
    if isinstance(data, Mapping):
        return TensorBatches(data, rows, batch_size, sampler)
    generator = None if sampler is None else sampler.workers
    collate = collate or Collate(model)
    return DataLoader(
        data, batch_size, sampler=sampler, num_workers=num_workers, generator=generator, collate_fn=collate
    )
