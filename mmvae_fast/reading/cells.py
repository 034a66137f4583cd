"""What every reader of cells asks of one. No torch here, but its tensors are understood."""

from __future__ import annotations

import math
from typing import Any


def without_torch(value: Any) -> Any:
    """A tensor as an array; anything else as it is."""
    return value.numpy(force=True) if type(value).__module__.split(".")[0] == "torch" else value


def is_missing(cell: Any) -> bool:
    """Whether a cell holds nothing: None, an empty string, NaN, or a list of only such."""
    if cell is None:
        return True
    if isinstance(cell, str):
        return not cell.strip()
    if isinstance(cell, (list, tuple)):
        return all(is_missing(part) for part in cell)
    return isinstance(cell, float) and math.isnan(cell)
