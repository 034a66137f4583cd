"""The pieces of adversarial training: losses, gradient penalties, spectral norm, averages, the history of samples."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized

from mmvae_fast.reference import philox_uniform

Critic = Callable[[Tensor], Tensor]

LOSSES = ("hinge", "wasserstein", "nonsaturating", "least squares")


def discriminator_loss(kind: str, real: Tensor, fake: Tensor) -> Tensor:
    """Of scores [B] of real samples and [N] of generated ones; an empty side counts 0.

    "hinge": Lim & Ye 2017; "wasserstein": Arjovsky et al. 2017; "nonsaturating": Goodfellow et al. 2014; "least
    squares": Mao et al. 2017, with targets 1 and 0.
    """
    if kind == "hinge":
        return mean(F.relu(1 - real)) + mean(F.relu(1 + fake))
    if kind == "wasserstein":
        return mean(fake) - mean(real)
    if kind == "nonsaturating":
        return mean(F.softplus(-real)) + mean(F.softplus(fake))
    return 0.5 * (mean((real - 1).square()) + mean(fake.square()))


def generator_loss(kind: str, fake: Tensor) -> Tensor:
    """Of scores [N] of generated samples."""
    if kind == "nonsaturating":
        return mean(F.softplus(-fake))
    if kind == "least squares":
        return 0.5 * mean((fake - 1).square())
    return -mean(fake)


def mean(values: Tensor) -> Tensor:
    """The mean; 0, not NaN, of nothing."""
    return values.sum() / max(values.numel(), 1)


def gradient_penalty(critic: Critic, real: Tensor, fake: Tensor, seed: int | Tensor) -> Tensor:
    """Mean over rows of (|grad critic(x)| - 1)^2 at a random place x on the line from each real row to a fake one.

    Source: Gulrajani et al., Improved Training of Wasserstein GANs, 2017, equation 3 without its weight.
    """
    u = philox_uniform(seed, len(real), 1, device=real.device).to(real.dtype)
    u = u.reshape(-1, *[1] * (real.dim() - 1))
    between = (u * real + (1 - u) * fake).detach()
    return mean((_gradient(critic, between).norm(dim=1) - 1).square())


def r1_penalty(critic: Critic, real: Tensor) -> Tensor:
    """Mean over rows of |grad critic(x)|^2 / 2 at real rows.

    Source: Mescheder, Geiger & Nowozin, Which Training Methods for GANs do actually Converge?, 2018, equation 9
    without its weight.
    """
    return mean(_gradient(critic, real.detach()).square().sum(1)) / 2


def _gradient(critic: Critic, x: Tensor) -> Tensor:
    """Of every row's score with respect to that row, [B, size], itself differentiable."""
    x = x.requires_grad_(True) if not x.requires_grad else x.clone()
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return gradient.flatten(1)


def normalize_spectrum(network: nn.Module) -> nn.Module:
    """Divide the weight of every linear, convolutional and embedding layer by an estimate of its largest singular
    value, so that each layer is 1-Lipschitz. In place.

    Source: Miyato et al., Spectral Normalization for Generative Adversarial Networks, 2018.
    """
    for layer in list(network.modules()):
        weighted = isinstance(layer, (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd))
        if weighted and not is_parametrized(layer, "weight"):  # or it is normalised already
            spectral_norm(layer)
    return network


class Average(nn.Module):
    """An exponential moving average of a network's weights: average <- d * average + (1 - d) * weights.

    In the t-th update, t from 0 on, d is the least of ``decay`` and (1 + t) / (10 + t), so that the start is soon
    forgotten. Buffers that are no floating-point numbers are copied. Called, it is the averaged network.

    Source: Yazıcı et al., The Unusual Effectiveness of Averaging in GAN Training, 2019.
    """

    updates: Tensor

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        t = int(self.updates)
        keep = min(self.decay, (1 + t) / (10 + t))
        for own, new in zip(_state(self.network), _state(network), strict=True):
            if own.is_floating_point():
                own.lerp_(new, 1 - keep)
            else:
                own.copy_(new)
        self.updates += 1

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.network(*inputs)


def _state(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]


class SampleHistory(nn.Module):
    """Generated samples of earlier steps, for a discriminator not to forget what they looked like.

    Until ``size`` samples are held, each comes back as it went in. From then on each comes back with probability 1/2;
    else an earlier one comes back, and it takes that one's place. Part of the state, so a continued run has it.

    Source: Shrivastava et al., Learning from Simulated and Unsupervised Images through Adversarial Training, 2017,
    section 2.3; as in Zhu et al. 2017.
    """

    held: Tensor
    count: Tensor

    def __init__(self, size: int, shape: Sequence[int]) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("held", torch.zeros(size, *shape))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def exchange(self, samples: Tensor, seed: int | Tensor) -> Tensor:
        """Samples [B, *shape] for samples [B, *shape]; the caller's stay as they are."""
        out = samples.detach().clone()
        if not self.size:
            return out
        fresh = min(len(out), self.size - int(self.count))
        if fresh > 0:
            self.held[int(self.count) : int(self.count) + fresh] = out[:fresh]
            self.count += fresh
        u = philox_uniform(seed, len(out), 2).tolist()
        for row in range(max(fresh, 0), len(out)):
            if u[row][0] >= 0.5:
                place = int(u[row][1] * self.size)
                earlier = self.held[place].clone()
                self.held[place] = out[row]
                out[row] = earlier
        return out


def descend(
    optimizer: torch.optim.Optimizer, loss: Tensor, parameters: Sequence[nn.Parameter], clip: float | None
) -> None:
    """One step of some parameters down a loss; the others, without a gradient, stay where they are.

    Args:
        clip: largest norm of the gradient of all these parameters together, or None.
    """
    optimizer.zero_grad(set_to_none=True)
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
        parameter.grad = gradient
    if clip is not None:
        nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
