"""How much one request may ask of a server, and how many may wait."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """What is beyond is refused with a status of its own: 413 (too large), 408 (sent too slowly), 503 (too many
    waiting), 504 (took too long).

    Raises:
        ValueError: a limit that is not above 0.
    """

    body_bytes: int = 16 * 2**20
    """Of a request."""
    rows: int = 1024
    """Of a request, and samples it may ask for."""
    output_values: int = 2**22
    """Numbers in an answer."""
    body_seconds: float = 10.0
    """Until a request has arrived."""
    seconds: float = 30.0
    """From then until its answer is computed; time spent waiting for others counts."""
    queue: int = 256
    """Requests that may wait."""
    pixels: int = 2**22
    """Of an uploaded picture, before it is decoded: a file of a few kB can hold gigapixels."""
    batch_rows: int = 256
    """Rows that requests answered together may have in all."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            kinds = int if isinstance(field.default, int) else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < math.inf:
                raise ValueError(f"Limits: {field.name} is {value!r}, expected a number above 0 like {field.default!r}")
