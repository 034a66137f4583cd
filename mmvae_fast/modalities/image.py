"""Images, channels first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmvae_fast.modalities.base import Modality, _common
from mmvae_fast.modalities.convolutions import PictureModality

DISCRETIZED = "discretized_logistic"
_LOG_SCALE = 12.0  # at its negative a level holds all the mass there is, and float32 still all the distances


class Image(PictureModality):
    """Images [B, C, H, W], float32; the default likelihood is Bernoulli on [0, 1] (decoder gives logits).

    ``likelihood="normal"`` or ``"laplace"`` take values of any range. ``"discretized_logistic"`` is a probability of
    pixels that have ``levels`` values from 0 to 1: what a logistic distribution, whose mean and log-scale the decoder
    gives ([N, 2, C, H, W]), holds between the middles of neighbouring levels, the first and the last one open to the
    outside. Its log-likelihood is comparable between models, in nats, and over C * H * W * log 2 in bits per dimension.

    Args:
        levels: of the discretized likelihood.

    ``network`` is "mlp" (default), "conv" or "residual"; see :class:`PictureModality` for the other arguments.

    Source: Kingma et al., Improving Variational Inference with Inverse Autoregressive Flow, 2016; the open
    ends are those of Salimans et al., PixelCNN++, 2017.
    """

    kind = "image"
    likelihoods = ("bernoulli", "normal", "laplace", DISCRETIZED)

    def __init__(
        self, shape: Sequence[int], *, likelihood: str = "bernoulli", levels: int = 256, **options: Any
    ) -> None:
        super().__init__(shape, likelihood=likelihood, **options)
        if len(self.shape) != 3:
            raise ValueError(f"Image: shape is {self.shape}, expected (channels, height, width)")
        if type(levels) is not int or levels < 2:
            raise ValueError(f"Image: levels is {levels!r}, expected an integer, 2 or more")
        self.levels = levels

    @property
    def param_shape(self) -> tuple[int, ...]:
        return (2, *self.shape) if self.likelihood == DISCRETIZED else self.shape

    def log_likelihood(self, x: Tensor, params: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.likelihood != DISCRETIZED:
            return super().log_likelihood(x, params, mask)
        real = torch.promote_types(params.dtype, torch.float32)
        x, params = x.to(real), params.to(real)
        if mask is not None:
            x = torch.where(mask.reshape(-1, 1, 1, 1), x, 0.0)
        log_p = discretized_logistic(x, params.select(-4, 0), params.select(-4, 1), self.levels).flatten(-3).sum(-1)
        return log_p if mask is None else torch.where(mask, log_p, 0.0)

    def predict(self, params: Tensor) -> Tensor:
        """The mean of p(x | params), [..., C, H, W]; of a discretized logistic, that of the logistic, within 0 to 1."""
        return params.select(-4, 0).clamp(0, 1) if self.likelihood == DISCRETIZED else super().predict(params)

    def check_values(self, name: str, x: Tensor) -> None:
        super().check_values(name, x)
        if self.likelihood in ("bernoulli", DISCRETIZED) and x.numel():
            low, high = (float(v) for v in torch.aminmax(x))
            if low < 0 or high > 1:
                family = "Bernoulli" if self.likelihood == "bernoulli" else self.likelihood
                raise ValueError(
                    f"modality {name!r}: values from {low:g} to {high:g}, expected 0 to 1 for a {family} likelihood; "
                    "rescale them or use likelihood='normal'"
                )

    def config(self) -> dict[str, Any]:
        return {**super().config(), "levels": self.levels} if self.likelihood == DISCRETIZED else super().config()

    @classmethod
    def _from_config(cls, config: dict[str, Any], **networks: Any) -> Modality:
        # absent from images of another likelihood, and from models saved before there was a choice of networks
        own = {key: config[key] for key in ("levels", "network", "width", "norm") if key in config}
        return cls(config["shape"], **own, **_common(config), **networks)


def discretized_logistic(x: Tensor, mean: Tensor, log_scale: Tensor, levels: int) -> Tensor:
    """log P(x) elementwise, of x in [0, 1], rounded to the nearest of ``levels`` values.

    With a and b the standardised upper and lower end of x's bin, sigmoid(a) - sigmoid(b) is sigmoid(a) * sigmoid(-b) *
    (1 - exp(b - a)): three logarithms without cancellation, however far x is from the mean.
    """
    level = (x * (levels - 1)).round()
    rate = torch.exp(-log_scale.clamp(-_LOG_SCALE, _LOG_SCALE))
    width = rate / (levels - 1)
    upper = (level + 0.5) / (levels - 1) - mean
    lower = (level - 0.5) / (levels - 1) - mean
    below, above = F.logsigmoid(upper * rate), F.logsigmoid(-lower * rate)
    inside = below + above + torch.log(-torch.expm1(-width))
    return torch.where(level == 0, below, torch.where(level == levels - 1, above, inside))
