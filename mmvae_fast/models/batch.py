"""One view of every way to say what is observed: absent keys, a dict of masks, a [B, M] mask, or nothing missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmvae_fast.modalities import Modality

Mask = Tensor | Mapping[str, Tensor] | None


@dataclass(frozen=True)
class Batch:
    """A checked batch. The caller's tensors and dicts are never modified."""

    data: dict[str, Tensor]
    """What is present, in modality order; rows marked as missing are 0 whatever they held."""
    observed: dict[str, Tensor | None]
    """For every modality of ``data``, bool [B]; None where every row has it."""
    mask: Tensor
    """bool [B, M], columns in modality order, True = observed."""
    order: tuple[str, ...]
    """The modalities of those columns."""

    @property
    def rows(self) -> int:
        return self.mask.shape[0]

    def of_present(self, values: Tensor, dim: int = 0) -> Tensor:
        """Of values for every modality in dimension ``dim``, those of the modalities in the batch; contiguous."""
        of_all = values.unbind(dim)
        return torch.stack([of_all[m] for m, name in enumerate(self.order) if name in self.data], dim)

    def only(self, names: Sequence[str]) -> Batch:
        """Of some modalities, the others missing everywhere; those of them that the batch lacks are missing, too."""
        nowhere = torch.zeros_like(self.mask[:, 0])  # made on the device: a list of what to keep would be copied to it
        columns = [self.mask[:, i] if name in names else nowhere for i, name in enumerate(self.order)]
        data = {name: x for name, x in self.data.items() if name in names}
        return Batch(data, {name: self.observed[name] for name in data}, torch.stack(columns, 1), self.order)

    def split(self, size: int) -> Iterator[Batch]:
        """The same rows, ``size`` at a time."""
        for start in range(0, self.rows, size):
            some = slice(start, start + size)
            observed = {name: o if o is None else o[some] for name, o in self.observed.items()}
            data = {name: x[some] for name, x in self.data.items()}
            yield Batch(data, observed, self.mask[some], self.order)


def hide(batch: Batch, mask: Tensor) -> Batch:
    """The batch with less observed: ``mask`` bool [B, M], nowhere True where the batch's is not."""
    observed: dict[str, Tensor | None] = {n: mask[:, i] for i, n in enumerate(batch.order) if n in batch.data}
    data = {name: blank_missing(x, observed[name]) for name, x in batch.data.items()}
    return Batch(data, observed, mask, batch.order)


def check_batch(
    modalities: Mapping[str, Modality],
    batch: Mapping[str, Tensor],
    mask: Mask,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> Batch:
    """Check a batch and its mask against the modalities of a model; shapes and types only, no value is read.

    Raises:
        ValueError, TypeError: naming the modality, what came and what was expected.
    """
    if not isinstance(batch, Mapping):
        raise TypeError(f"batch is a {type(batch).__name__}, expected a dict of tensors by modality {list(modalities)}")
    _known("batch", batch, modalities)
    if not batch:
        raise ValueError(f"batch is empty, expected at least one of the modalities {list(modalities)}")
    present = [name for name in modalities if name in batch]
    for name in present:
        modalities[name].check(name, batch[name], dtype=dtype)
        if batch[name].device != device:
            raise ValueError(f"modality {name!r}: is on {batch[name].device}, expected {device} like the model")
    rows = batch[present[0]].shape[0]
    for name in present:
        if batch[name].shape[0] != rows:
            raise ValueError(
                f"modality {name!r}: has {batch[name].shape[0]} rows, expected {rows} like modality {present[0]!r}"
            )
    columns = _columns(modalities, mask, rows, device)
    observed = {name: columns.get(name) for name in present}
    return Batch(
        data={name: blank_missing(batch[name], observed[name]) for name in present},
        observed=observed,
        mask=_stack(modalities, observed, rows, device),
        order=tuple(modalities),
    )


def _known(what: str, names: Mapping[str, Any], modalities: Mapping[str, Modality]) -> None:
    for name in names:
        if name not in modalities:
            raise ValueError(f"{what} names the modality {name!r}, expected some of {list(modalities)}")


def _columns(modalities: Mapping[str, Modality], mask: Mask, rows: int, device: torch.device) -> dict[str, Tensor]:
    """The mask of each modality that has one, bool [B]."""
    if mask is None:
        return {}
    if isinstance(mask, Mapping):
        _known("mask", mask, modalities)
        for name, column in mask.items():
            _check_mask(f"mask of modality {name!r}", column, (rows,), "[B]", device)
        return dict(mask)
    _check_mask("mask", mask, (rows, len(modalities)), "[B, M]", device)
    return {name: mask[:, i] for i, name in enumerate(modalities)}


def _check_mask(what: str, mask: Any, shape: tuple[int, ...], letters: str, device: torch.device) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"{what} is a {type(mask).__name__}, expected a bool tensor {letters}")
    if mask.dtype != torch.bool:
        raise TypeError(f"{what} is {mask.dtype}, expected torch.bool (True = observed)")
    if tuple(mask.shape) != shape:
        raise ValueError(f"{what} has shape {list(mask.shape)}, expected {letters} = {list(shape)}")
    if mask.device != device:
        raise ValueError(f"{what} is on {mask.device}, expected {device} like the model")


def blank_missing(x: Tensor, observed: Tensor | None) -> Tensor:
    """Zeros in missing rows: selected, because NaN times the zero gradient of a missing row is NaN in the weights'."""
    if observed is None:
        return x
    return torch.where(observed.reshape(-1, *[1] * (x.dim() - 1)), x, 0)


def _stack(
    modalities: Mapping[str, Modality], observed: Mapping[str, Tensor | None], rows: int, device: torch.device
) -> Tensor:
    if len(observed) == len(modalities) and all(column is None for column in observed.values()):
        return torch.ones(rows, len(modalities), dtype=torch.bool, device=device)
    everywhere = torch.ones(rows, dtype=torch.bool, device=device)
    nowhere = torch.zeros(rows, dtype=torch.bool, device=device)
    columns = (observed.get(name, nowhere) for name in modalities)
    return torch.stack([everywhere if column is None else column for column in columns], dim=1)
