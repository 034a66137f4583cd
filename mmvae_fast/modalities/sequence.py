"""Time series of a fixed number of steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmvae_fast.modalities.base import Modality, _common

_CELLS: dict[str, type[nn.LSTM] | type[nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}


class Sequence(Modality):
    """Time series [B, length, channels], float32; normal (default) or Laplace likelihood.

    The default encoder reads both ways and keeps the last states; the default decoder starts from states that z
    gives, and sees z again at each step, so that steps are independent given z, as in every other modality.
    ``torch.compile`` takes no recurrent networks as one graph unless ``torch._dynamo.config.allow_rnn`` is set.

    Args:
        cell: "lstm" or "gru".
        hidden: sizes of the recurrent layers, which must be equal: ``(128, 128)`` is two layers of 128.

    See :class:`Modality` for the other arguments.
    """

    kind = "sequence"
    likelihoods = ("normal", "laplace")

    def __init__(
        self,
        length: int,
        channels: int,
        *,
        cell: str = "lstm",
        likelihood: str = "normal",
        hidden: tuple[int, ...] = (128,),
        **options: Any,
    ) -> None:
        super().__init__((length, channels), likelihood=likelihood, hidden=hidden, **options)
        if cell not in _CELLS:
            raise ValueError(f"Sequence: cell is {cell!r}, expected one of {tuple(_CELLS)}")
        if len(set(self.hidden)) != 1:
            raise ValueError(f"Sequence: hidden is {hidden!r}, expected one size or several equal ones")
        self.cell = cell

    def make_encoder(self, latent_dim: int) -> nn.Module:
        if self.encoder is not None:
            return self.encoder
        return RecurrentEncoder(self.shape[1], self.hidden, latent_dim, self.cell)

    def make_decoder(self, latent_dim: int) -> nn.Module:
        if self.decoder is not None:
            return self.decoder
        return RecurrentDecoder(latent_dim, self.hidden, self.shape, self.cell)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "cell": self.cell}

    @classmethod
    def _from_config(cls, config: dict[str, Any], **networks: Any) -> Modality:
        length, channels = config["shape"]
        return cls(length, channels, cell=config["cell"], **_common(config), **networks)


class RecurrentEncoder(nn.Module):
    """x [B, length, channels] -> mu, logvar, each [B, latent_dim], from the last states of both directions."""

    def __init__(self, channels: int, hidden: tuple[int, ...], latent_dim: int, cell: str) -> None:
        super().__init__()
        self.cell = _CELLS[cell](channels, hidden[0], len(hidden), batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden[0], 2 * latent_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        outputs, _ = self.cell(x)
        forwards, backwards = outputs.unflatten(-1, (2, -1)).unbind(-2)
        last = self.head(torch.cat([forwards[:, -1], backwards[:, 0]], -1))
        mu, logvar = last.chunk(2, -1)
        return mu, logvar


class RecurrentDecoder(nn.Module):
    """z [N, latent_dim] -> likelihood parameters [N, length, channels]."""

    def __init__(self, latent_dim: int, hidden: tuple[int, ...], shape: tuple[int, ...], cell: str) -> None:
        super().__init__()
        self.length, channels = shape
        self.layers = len(hidden)
        self.states = 2 if cell == "lstm" else 1
        self.start = nn.Linear(latent_dim, self.states * self.layers * hidden[0])
        self.cell = _CELLS[cell](latent_dim, hidden[0], self.layers, batch_first=True)
        self.head = nn.Linear(hidden[0], channels)

    def forward(self, z: Tensor) -> Tensor:
        start = self.start(z).tanh().unflatten(-1, (self.states, self.layers, -1)).permute(1, 2, 0, 3).contiguous()
        repeated = z[:, None].expand(-1, self.length, -1)
        outputs, _ = self.cell(repeated, (start[0], start[1]) if self.states == 2 else start[0])
        return self.head(outputs)
