"""What an epoch reports: means over its rows, however they fell into batches."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Means:
    """Means of named figures, each over the rows that had it, summed on the device: reading them is the only wait for
    it."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], Tensor] = {}  # of figures that came together
        self._rows: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self._sums)

    def add(self, sums: Mapping[str, tuple[Tensor, int]]) -> None:
        """Sums over so many rows, by name."""
        if not sums:
            return
        names = tuple(sums)
        devices = [value.device for value, _ in sums.values()]  # a figure that no network computed may be on the CPU
        device = next((device for device in devices if device.type != "cpu"), devices[0])
        values = torch.stack([_wide(value.detach()).to(device) for value, _ in sums.values()])
        self._sums[names] = self._sums[names] + values if names in self._sums else values
        for name, (_, rows) in sums.items():
            self._rows[name] = self._rows.get(name, 0) + rows

    def read(self) -> dict[str, float]:
        """Means by name; of what had no rows, nothing."""
        totals: dict[str, float] = {}
        for names, values in self._sums.items():
            for name, value in zip(names, values.tolist(), strict=True):
                totals[name] = totals.get(name, 0.0) + value
        return {name: total / self._rows[name] for name, total in totals.items() if self._rows[name]}


def _wide(value: Tensor) -> Tensor:
    return value if value.dtype == torch.float64 else value.float()
