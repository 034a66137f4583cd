"""Readers whose ``fitted`` is a scale."""

from __future__ import annotations

from typing import Any

from mmvae_fast.data.reader import Reader
from mmvae_fast.reading.scale import Scale as Scale


class ScaledReader(Reader):
    """A reader whose ``fitted`` is a scale, None before it is fitted."""

    scale: Scale | None

    @classmethod
    def _from_config(cls, options: dict[str, Any]) -> Reader:
        fitted = options.pop("fitted")
        reader = cls(**options)
        reader.scale = None if fitted is None else Scale(**fitted)
        return reader
