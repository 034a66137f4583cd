"""Rows of numbers: tables, sensor readings, embeddings."""

from __future__ import annotations

from typing import Any

from mmvae_fast.modalities.base import Modality, _common


class Vector(Modality):
    """Vectors [B, n], float32; normal (default) or Laplace likelihood.

    See :class:`Modality` for the other arguments.
    """

    kind = "vector"
    likelihoods = ("normal", "laplace")

    def __init__(self, n: int, *, likelihood: str = "normal", **options: Any) -> None:
        super().__init__((n,), likelihood=likelihood, **options)

    @classmethod
    def _from_config(cls, config: dict[str, Any], **networks: Any) -> Modality:
        (n,) = config["shape"]
        return cls(n, **_common(config), **networks)
