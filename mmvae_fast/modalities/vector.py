"""Rows of numbers: tables, sensor readings, embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmvae_fast import functional
from mmvae_fast.modalities.base import Modality, _common
from mmvae_fast.modalities.networks import MLPEncoder


class Vector(Modality):
    """Vectors [B, n], float32; normal (default) or Laplace likelihood.

    Args:
        missing: entries of an observed row may be missing: NaN. They do not count in the likelihood, and the default
            encoder is shown 0 in their place and, beside the n numbers, which n of them are missing. An encoder of your
            own gets x with its NaN. A row of nothing but NaN should be masked: here it is data that says nothing.

    See :class:`Modality` for the other arguments.

    Source: Nazabal et al., Handling incomplete heterogeneous data using VAEs, 2020, section 2 (zeros for what is
    missing; the likelihood of the observed entries alone).
    """

    kind = "vector"
    likelihoods = ("normal", "laplace")

    def __init__(self, n: int, *, likelihood: str = "normal", missing: bool = False, **options: Any) -> None:
        super().__init__((n,), likelihood=likelihood, **options)
        if not isinstance(missing, bool):
            raise TypeError(f"Vector: missing is a {type(missing).__name__}, expected True or False")
        self.missing = missing

    def make_encoder(self, latent_dim: int) -> nn.Module:
        if self.encoder is not None or not self.missing:
            return super().make_encoder(latent_dim)
        return GappyEncoder(self.size, self.hidden, latent_dim)

    def log_likelihood(self, x: Tensor, params: Tensor, mask: Tensor | None = None) -> Tensor:
        """log p(x | params) in nats, summed over what is there of a row: x [B, n], params [..., B, n] -> [..., B]."""
        if not self.missing:
            return super().log_likelihood(x, params, mask)
        gaps = x.isnan()
        filled = torch.where(gaps, 0, x)  # before the logarithm: NaN times the zero gradient of a gap would be NaN
        each = functional.log_likelihood(
            filled, params, family=self.likelihood, scale=self.scale, event_dims=0, mask=mask
        )
        return torch.where(gaps, 0.0, each).sum(-1)

    def check_values(self, name: str, x: Tensor) -> None:
        super().check_values(name, torch.where(x.isnan(), 0, x) if self.missing else x)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "missing": self.missing}

    @classmethod
    def _from_config(cls, config: dict[str, Any], **networks: Any) -> Modality:
        (n,) = config["shape"]
        # absent from models saved before there was a choice
        return cls(n, missing=config.get("missing", False), **_common(config), **networks)


class GappyEncoder(MLPEncoder):
    """x [B, n] with NaN where an entry is missing -> mu, logvar, each [B, latent_dim]."""

    def __init__(self, n: int, hidden: Sequence[int], latent_dim: int) -> None:
        super().__init__(2 * n, hidden, latent_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gaps = x.isnan()
        return super().forward(torch.cat([torch.where(gaps, 0, x), gaps.to(x.dtype)], -1))
