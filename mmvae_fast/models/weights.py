"""How much each modality's log-likelihood weighs in the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmvae_fast.modalities import Modality

_BOUND = 4.0  # of a learned log weight: where log-likelihoods are densities above 1, nothing else would stop it


class LikelihoodWeights(nn.Module):
    """Called with names of modalities and their log-likelihoods [names, ...], gives these with their weights.

    Args:
        weights: "none" (all 1); "dimension" (size of the largest modality over its own); numbers by modality; or
            "learned": p(x|z)^w, made a density again, with a parameter w_m from 1 on, kept in [e^-4, e^4]. A normal
            likelihood of variance s^2 is then one of variance s^2 / w, so that w settles at s^2 over the mean squared
            error; a Laplace one of scale b has b / w. Of the discrete ones the exact normaliser depends on their
            parameters; size / 2 log w stands for it (Kendall, Gal & Cipolla, Multi-Task Learning Using Uncertainty,
            2018, equation 10).
    """

    def __init__(self, weights: str | Mapping[str, float], modalities: Mapping[str, Modality]) -> None:
        super().__init__()
        self._option, self._modalities = weights, dict(modalities)
        self.fixed: dict[str, float] | None = None
        if weights == "learned":
            self.log_weights = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in modalities})
        else:
            self.fixed = _fixed(weights, modalities)

    def __getitem__(self, name: str) -> float | Tensor:
        return self._learned(name).exp() if self.fixed is None else self.fixed[name]

    def forward(self, names: Sequence[str], log_likelihood: Tensor, counted: Callable[[], Tensor]) -> Tensor:
        """``counted`` gives the share of rows that have each modality, [names, ...], which learned weights cost."""
        fixed = self.fixed
        if fixed is None and names:
            w = torch.stack([self._learned(name) for name in names])
            charge = torch.stack([_charge(self._modalities[name], log_w) for name, log_w in zip(names, w, strict=True)])
            shape = (-1, *[1] * (log_likelihood.dim() - 1))
            return w.exp().reshape(shape) * log_likelihood + charge.reshape(shape) * counted()
        if fixed is None or all(fixed[name] == 1 for name in names):
            return log_likelihood
        return torch.stack([fixed[name] * ll for name, ll in zip(names, log_likelihood.unbind(), strict=True)])

    def _learned(self, name: str) -> Tensor:
        return _BOUND * torch.tanh(self.log_weights[name] / _BOUND)

    def option(self) -> str | dict[str, float]:
        """As JSON, what the constructor takes."""
        return "learned" if self.fixed is None else dict(self.fixed)


def _charge(modality: Modality, log_w: Tensor) -> Tensor:
    """-log of the integral of p(x|z)^w over x, or what stands for it."""
    if modality.likelihood == "normal":
        return modality.size / 2 * (log_w + (log_w.exp() - 1) * math.log(2 * math.pi * modality.scale**2))
    if modality.likelihood == "laplace":
        return modality.size * (log_w + (log_w.exp() - 1) * math.log(2 * modality.scale))
    return modality.size / 2 * log_w


def _fixed(weights: Any, modalities: Mapping[str, Modality]) -> dict[str, float]:
    if weights == "none":
        return dict.fromkeys(modalities, 1.0)
    if weights == "dimension":
        largest = max(m.size for m in modalities.values())
        return {name: largest / m.size for name, m in modalities.items()}
    if not isinstance(weights, Mapping) or set(weights) != set(modalities):
        raise ValueError(
            f"likelihood_weights is {weights!r}, expected 'none', 'dimension', 'learned' or a number by name of "
            f"{list(modalities)}"
        )
    for name, value in weights.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"likelihood weight of modality {name!r} is a {type(value).__name__}, expected a number")
        if not 0 <= value < math.inf:
            raise ValueError(f"likelihood weight of modality {name!r} is {value}, expected a finite number, 0 or more")
    return {name: float(weights[name]) for name in modalities}
