"""What texts as token ids have in common, however they are split and decoded."""

from __future__ import annotations

import torch
from torch import Tensor

from mmvae_fast.modalities.base import Modality


class Tokens(Modality):
    """Token ids [B, length], int64, of 0 to ``vocabulary_size`` - 1; decoders give logits [N, length, V]."""

    likelihoods = ("categorical",)
    dtype = torch.int64
    vocabulary_size: int

    @property
    def length(self) -> int:
        """Tokens in a sample."""
        return self.shape[0]

    @property
    def param_shape(self) -> tuple[int, ...]:
        return (self.length, self.vocabulary_size)

    def check_values(self, name: str, x: Tensor) -> None:
        if x.numel():
            low, high = (int(v) for v in torch.aminmax(x))
            if low < 0 or high >= self.vocabulary_size:
                raise ValueError(
                    f"modality {name!r}: token ids from {low} to {high}, expected 0 to {self.vocabulary_size - 1}"
                )

    def _check_rows(self, method: str, ids: Tensor) -> None:
        """Refuse what is no batch of samples."""
        if ids.dim() != 2:
            raise ValueError(
                f"{type(self).__name__}.{method}: got shape {list(ids.shape)}, expected [B, {self.length}]"
            )
        Tokens.check_values(self, "ids", ids)
