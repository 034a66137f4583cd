"""Seeds and counts, checked: any kind of int, but neither bools nor floats that happen to be whole."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from mmvae_fast.onnx.errors import BadDtype, BadValue


def count(what: str, value: Any) -> int:
    found = _integer(what, value)
    if found < 0:
        raise BadValue(f"{what} is {found}, expected 0 or more")
    return found


def seed(value: Any) -> int:
    found = _integer("seed", value)
    if not -(2**63) <= found < 2**64:
        raise BadValue(f"seed is {found}, expected 64 bits")
    return found


def _integer(what: str, value: Any) -> int:
    if not isinstance(value, (bool, np.bool_)) and hasattr(value, "__index__"):
        try:
            return operator.index(value)
        except TypeError:  # an array of several numbers has the method, and refuses
            pass
    raise BadDtype(f"{what} is a {type(value).__name__}, expected an int")
