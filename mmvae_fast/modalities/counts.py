"""Counts: RNA or protein molecules of a cell, words of a document, events."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvae_fast.modalities.base import Modality, _common
from mmvae_fast.modalities.networks import MLPDecoder, MLPEncoder

_PARAMS = {"poisson": 1, "negative_binomial": 2, "zero_inflated_negative_binomial": 3}
_LARGE = 16.0  # from here on lgamma's series serves
_MOST = 80.0  # of logarithms: what float32 can hold the exponential of


class Counts(Modality):
    """Vectors of n counts [B, n], whole numbers stored as float32.

    The decoder gives [N, P, n]: the logarithm of the mean (P = 1, Poisson); that and the logarithm of the inverse
    dispersion theta (P = 2, variance = mean + mean^2 / theta); these and the logit of a dropout, of a zero whatever the
    mean (P = 3). The default decoder has one theta for each of the n, which does not depend on z, as in scVI and
    totalVI; your own may. The default encoder reads log(1 + x).

    Args:
        likelihood: "poisson", "negative_binomial" or "zero_inflated_negative_binomial".
        library: where the total of a row comes from. "model": mean = exp(parameter), so z accounts for it. "observed":
            mean = softmax(parameter) times the row's own total (at least 1), which is then given, not explained; and
            predictions, for which no total is known, are shares that sum to 1 (before dropout).

    See :class:`Modality` for the other arguments; ``scale`` has no meaning here.

    Source: Lopez et al., Deep generative modeling for single-cell transcriptomics, 2018; Gayoso et al., Joint
    probabilistic modeling of single-cell multi-omic data with totalVI, 2021.
    """

    kind = "counts"
    likelihoods = tuple(_PARAMS)

    def __init__(self, n: int, *, likelihood: str = "poisson", library: str = "model", **options: Any) -> None:
        super().__init__((n,), likelihood=likelihood, **options)
        if library not in ("model", "observed"):
            raise ValueError(f"Counts: library is {library!r}, expected 'model' or 'observed'")
        self.library = library

    @property
    def param_shape(self) -> tuple[int, ...]:
        return (_PARAMS[self.likelihood], *self.shape)

    def make_encoder(self, latent_dim: int) -> nn.Module:
        return CountEncoder(self.size, self.hidden, latent_dim) if self.encoder is None else self.encoder

    def make_decoder(self, latent_dim: int) -> nn.Module:
        if self.decoder is not None:
            return self.decoder
        return CountDecoder(latent_dim, self.hidden[::-1], self.param_shape)

    def log_likelihood(self, x: Tensor, params: Tensor, mask: Tensor | None = None) -> Tensor:
        """log p(x | params) in nats: x [B, n], params [..., B, P, n] -> [..., B]; a missing row counts 0."""
        real = torch.promote_types(params.dtype, torch.float32)
        x, params = x.to(real), params.to(real)
        if mask is not None:
            x = torch.where(mask[:, None], x, 0.0)
        log_mean = params[..., 0, :]
        if self.library == "observed":
            log_mean = F.log_softmax(log_mean, -1) + x.sum(-1, keepdim=True).clamp(min=1).log()
        if self.likelihood == "poisson":
            log_p = poisson(x, log_mean)
        else:
            log_p = negative_binomial(x, log_mean, params[..., 1, :])
        if self.likelihood == "zero_inflated_negative_binomial":
            dropout = params[..., 2, :]
            log_p = torch.where(x == 0, torch.logaddexp(dropout, log_p), log_p) - F.softplus(dropout)
        log_p = log_p.sum(-1)
        return log_p if mask is None else torch.where(mask, log_p, 0.0)

    def predict(self, params: Tensor) -> Tensor:
        """The mean: parameters [..., P, n] -> [..., n]."""
        mean = params[..., 0, :].softmax(-1) if self.library == "observed" else params[..., 0, :].clamp(max=_MOST).exp()
        return mean if params.shape[-2] < 3 else mean * torch.sigmoid(-params[..., 2, :])

    def comparable(self, x: Tensor) -> Tensor:
        """Counts, or with ``library="observed"``, where predictions know no total, the shares of a row's total."""
        return shares(x) if self.library == "observed" else x

    def check_values(self, name: str, x: Tensor) -> None:
        super().check_values(name, x)
        if not bool(((x >= 0) & (x == x.round())).all()):
            raise ValueError(f"modality {name!r}: holds negative or broken numbers, expected counts")

    def config(self) -> dict[str, Any]:
        return {**super().config(), "library": self.library}

    @classmethod
    def _from_config(cls, config: dict[str, Any], **networks: Any) -> Modality:
        (n,) = config["shape"]
        return cls(n, library=config["library"], **_common(config), **networks)


def shares(x: Tensor) -> Tensor:
    """Counts or weights [..., n] as shares of their sum; nothing of nothing is 0."""
    total = x.sum(-1, keepdim=True)
    return torch.where(total > 0, x / total, 0.0)


class CountEncoder(MLPEncoder):
    """x [B, n] -> mu, logvar, each [B, latent_dim]; it reads log(1 + x)."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(torch.log1p(x))


class CountDecoder(nn.Module):
    """z [N, latent_dim] -> parameters [N, P, n], of which the second are the same for every z."""

    def __init__(self, latent_dim: int, hidden: tuple[int, ...], param_shape: tuple[int, ...]) -> None:
        super().__init__()
        count, n = param_shape
        self.layers = MLPDecoder(latent_dim, hidden, (count - (count > 1), n))
        self.log_dispersion = nn.Parameter(torch.zeros(n)) if count > 1 else None

    def forward(self, z: Tensor) -> Tensor:
        params = self.layers(z)
        if self.log_dispersion is None:
            return params
        theta = self.log_dispersion.to(params.dtype).expand(params.shape[0], 1, -1)
        return torch.cat([params[:, :1], theta, params[:, 1:]], 1)


def poisson(x: Tensor, log_mean: Tensor) -> Tensor:
    """log p(x) of a Poisson distribution, elementwise."""
    log_mean = log_mean.clamp(max=_MOST)
    return x * log_mean - log_mean.exp() - torch.lgamma(x + 1)


def negative_binomial(x: Tensor, log_mean: Tensor, log_theta: Tensor) -> Tensor:
    """log p(x) of a negative binomial distribution of variance mean + mean^2 / theta, elementwise.

    lgamma(x + theta) - lgamma(theta) - lgamma(x + 1) + x log(mean / total) + theta log(theta / total), total = mean +
    theta, without epsilons. Where theta is large the first two are large and alike, and so are the logarithms: there
    the difference is that of lgamma's series, with x log theta taken out, so that float32 reaches the Poisson limit.
    """
    log_theta = log_theta.clamp(-_MOST, _MOST)
    theta, odds = log_theta.exp(), log_mean - log_theta
    large = theta > _LARGE
    t = torch.where(large, theta, _LARGE)
    shifted = x + t
    series = (shifted - 0.5) * torch.log1p(x / t) - x + (1 / shifted - 1 / t) / 12 - (shifted**-3 - t**-3) / 360
    t = torch.where(large, 1.0, theta)
    ratio = torch.lgamma(x + t) - torch.lgamma(t)
    both = torch.where(large, series + x * (log_mean - F.softplus(odds)), ratio - x * F.softplus(-odds))
    return both - theta * F.softplus(odds) - torch.lgamma(x + 1)
