"""A generative adversarial network for the space of one modality, conditional if you like.

Goodfellow et al., Generative Adversarial Nets, NeurIPS 2014; the condition: Mirza & Osindero 2014, in the discriminator
as a projection (Miyato & Koyama, cGANs with Projection Discriminator, ICLR 2018).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmvae_fast.modalities import BagOfWords, Modality, Vector
from mmvae_fast.models.base import number, positive
from mmvae_fast.models.batch import check_batch
from mmvae_fast.models.seeds import branch
from mmvae_fast.reference import philox_normal, philox_uniform, seed_tensor
from mmvae_fast.systems.adversarial import (
    LOSSES,
    Average,
    descend,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    normalize_spectrum,
    r1_penalty,
)
from mmvae_fast.systems.base import Sums
from mmvae_fast.systems.networks import is_picture, make_features, make_generator
from mmvae_fast.systems.two_rates import TwoRateSystem
from mmvae_fast.training.data import split_mask

PENALTIES = ("none", "gradient", "r1")
_PREVIEW_SEED, _PREVIEW = 0, 10  # samples a class to look at


class GAN(TwoRateSystem):
    """Samples of one modality from noise, and from a class or another modality's embedding.

    The training data holds the modality and, of a conditional GAN, "label" (int64 [N], 0 to classes - 1) or "condition"
    (floating point [N, condition_dim], for example ``model.encode(...).mu`` of another modality). Rows that lack the
    modality by the mask are left out.

    Args:
        modalities: one by name, of floating-point data. Of a Bernoulli modality samples lie in [0, 1].
        latent_dim: of the noise.
        classes, condition_dim: what the samples depend on; at most one of them, both None for nothing.
        loss: "hinge", "wasserstein", "nonsaturating" or "least squares"; see
            :func:`mmvae_fast.systems.adversarial.discriminator_loss`.
        spectral_norm: of the discriminator's layers; also of your own network, in place.
        penalty: "none", "gradient" (WGAN-GP) or "r1", times ``penalty_weight``.
        discriminator_steps: for one of the generator, each on noise of its own.
        lr_generator, lr_discriminator: of Adam; by default the discriminator learns faster (two time scales, Heusel et
            al. 2017). ``betas`` are Adam's.
        gradient_clip: largest norm of each network's gradient, or None.
        ema: decay of the average of the generator's weights, which :meth:`sample` uses.
        network: "conv", "mlp", or "auto": convolutions where the shape suits them. ``width``: of their first layer.
        networks: "generator" (noise and embedded condition [N, latent_dim + latent_dim or 0] -> [N, *shape], any real
            numbers) and "features" (samples [N, *shape] -> [N, F]) of your own.

    :func:`mmvae_fast.systems.fit` reports "generator_loss", "discriminator_loss" (both without the penalty), "penalty",
    "real_score" and "fake_score".
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        latent_dim: int = 64,
        *,
        classes: int | None = None,
        condition_dim: int | None = None,
        loss: str = "hinge",
        spectral_norm: bool = True,
        penalty: str = "none",
        penalty_weight: float = 10.0,
        discriminator_steps: int = 1,
        lr_generator: float = 2e-4,
        lr_discriminator: float = 4e-4,
        betas: Sequence[float] = (0.0, 0.9),
        gradient_clip: float | None = None,
        ema: float = 0.999,
        network: str = "auto",
        width: int = 32,
        networks: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__(modalities, networks)
        if len(self.modalities) != 1:
            raise ValueError(f"GAN: got the modalities {list(self.modalities)}, expected exactly one")
        ((self.name, modality),) = self.modalities.items()
        check_continuous("GAN", self.name, modality)
        self.latent_dim = positive("latent_dim", latent_dim)
        if classes is not None and condition_dim is not None:
            raise ValueError("GAN: got both classes and condition_dim, expected at most one of them")
        self.classes = None if classes is None else positive("classes", classes)
        self.condition_dim = None if condition_dim is None else positive("condition_dim", condition_dim)
        self.loss, self.penalty = one_of("loss", loss, LOSSES), one_of("penalty", penalty, PENALTIES)
        self.spectral_norm = spectral_norm
        self.penalty_weight = number("penalty_weight", penalty_weight)
        self.discriminator_steps = positive("discriminator_steps", discriminator_steps)
        self._set_rates(lr_generator, lr_discriminator, betas, gradient_clip, ema)
        self.width = positive("width", width)
        self.network = one_of("network", network, ("auto", "conv", "mlp"))
        kind = network_kind(network, [modality.shape])
        self.generator = Conditional(self, kind)
        self.discriminator = Discriminator(self, kind)
        self._check_networks()
        if spectral_norm:
            normalize_spectrum(self.discriminator)
        self.average = Average(self.generator, self.ema)

    @property
    def extras(self) -> tuple[str, ...]:
        return ("label",) if self.classes is not None else ("condition",) if self.condition_dim is not None else ()

    def options(self) -> dict[str, Any]:
        names = (
            "latent_dim", "classes", "condition_dim", "loss", "spectral_norm", "penalty", "penalty_weight",
            "discriminator_steps", "lr_generator", "lr_discriminator", "gradient_clip", "ema", "network", "width",
        )  # fmt: skip
        return {**{name: getattr(self, name) for name in names}, "betas": list(self.betas)}

    # --- training -----------------------------------------------------------------------------------------------------

    def optimizer(self) -> torch.optim.Optimizer:
        return self._adam(self.generator.parameters(), self.discriminator.parameters())

    def step(self, batch: Mapping[str, Any], optimizer: torch.optim.Optimizer, seed: int) -> Sums:
        real, condition = self._real(batch)
        if not len(real):
            return {}
        base = seed_tensor(seed, device=self.device)
        for i in range(self.discriminator_steps):
            with torch.no_grad():
                fake = self._generate(self.generator, self._noise(len(real), branch(base, 2 * i)), condition)
            real_score, fake_score = self.discriminator(real, condition), self.discriminator(fake, condition)
            d_loss = discriminator_loss(self.loss, real_score, fake_score)
            penalty = self._penalty(real, fake, condition, branch(base, 2 * i + 1))
            parameters = list(self.discriminator.parameters())
            descend(optimizer, d_loss + self.penalty_weight * penalty, parameters, self.gradient_clip)
        noise = self._noise(len(real), branch(base, -1))
        fake = self._generate(self.generator, noise, condition)
        g_loss = generator_loss(self.loss, self.discriminator(fake, condition))
        descend(optimizer, g_loss, list(self.generator.parameters()), self.gradient_clip)
        self.average.update(self.generator)
        n = len(real)
        sums = {"generator_loss": (g_loss * n, n), "discriminator_loss": (d_loss * n, n)}
        if self.penalty != "none":
            sums["penalty"] = (penalty * n, n)
        return {**sums, "real_score": (real_score.sum(), n), "fake_score": (fake_score.sum(), n)}

    def _real(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
        """The rows that have the modality, and their condition."""
        inputs, mask = split_mask({key: value for key, value in batch.items() if key not in self.extras})
        checked = check_batch(self.modalities, inputs, mask, dtype=self.dtype, device=self.device)
        real, observed = checked.data[self.name], checked.observed[self.name]
        condition = batch[self.extras[0]] if self.extras else None
        if observed is None:
            return real, condition
        return real[observed], None if condition is None else condition[observed]

    def _penalty(self, real: Tensor, fake: Tensor, condition: Tensor | None, seed: Tensor) -> Tensor:
        if self.penalty == "gradient":
            return gradient_penalty(lambda x: self.discriminator(x, condition), real, fake, seed)
        if self.penalty == "r1":
            return r1_penalty(lambda x: self.discriminator(x, condition), real)
        return real.new_zeros(())

    def _noise(self, n: int, seed: Tensor) -> Tensor:
        return philox_normal(seed, n, self.latent_dim, device=self.device).to(self.dtype)

    def _generate(self, generator: nn.Module, noise: Tensor, condition: Tensor | None) -> Tensor:
        return self.modalities[self.name].predict(generator(noise, condition))

    def check_extra(self, what: str, key: str, value: Any, rows: int) -> None:
        self._check_condition(what, value, rows)

    # --- generation ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self, n: int | None = None, condition: Tensor | None = None, *, seed: int | Tensor | None = None
    ) -> Tensor:
        """Samples of the averaged generator, [n, *shape] in data space.

        Args:
            n: how many; of a conditional GAN, None is one for each row of ``condition``.
            condition: labels int64 [n] or embeddings [n, condition_dim]; None draws labels uniformly.

        Raises:
            ValueError, TypeError: a condition that is not what this GAN was made for.
        """
        base = seed_tensor(seed, device=self.device)
        if n is None:
            if condition is None:
                raise ValueError("sample: pass n, the number of samples, or a condition for each")
            n = len(condition)
        if type(n) is not int or n < 0:
            raise ValueError(f"sample: n is {n!r}, expected 0 or more")
        if condition is None and self.classes is not None:
            u = philox_uniform(branch(base, 1), n, 1, device=self.device)[:, 0]
            condition = (u * self.classes).long().clamp(max=self.classes - 1)
        self._check_condition("sample: condition", condition, n)
        return self._generate(self.average, self._noise(n, base), condition)

    def previewed(self) -> list[str]:
        return [] if self.condition_dim is not None else [self.name]

    def preview(self) -> dict[str, Tensor]:
        """The same noise every epoch: a row of ten for each class; nothing where a condition would have to be given."""
        if self.condition_dim is not None:
            return {}
        if self.classes is None:
            return {self.name: self.sample(_PREVIEW**2, seed=_PREVIEW_SEED)}
        labels = torch.arange(min(self.classes, 20), device=self.device).repeat_interleave(_PREVIEW)
        return {self.name: self.sample(condition=labels, seed=_PREVIEW_SEED)}

    def _check_condition(self, what: str, value: Any, rows: int) -> None:
        if self.classes is not None:
            check_labels(what, value, rows, self.classes, least=0)
        elif self.condition_dim is None:
            if value is not None:
                raise ValueError(f"{what}: this GAN has no condition, expected None")
        else:
            shape = (rows, self.condition_dim)
            if not isinstance(value, Tensor) or value.dtype != self.dtype or tuple(value.shape) != shape:
                raise ValueError(f"{what} is {_describe(value)}, expected {self.dtype} {list(shape)}")


class Conditional(nn.Module):
    """The generator: noise [N, latent_dim] and a condition -> parameters of a sample [N, *shape]."""

    def __init__(self, gan: GAN, kind: str) -> None:
        super().__init__()
        self.embedding = _embedding(gan, gan.latent_dim)
        n_in = gan.latent_dim * (1 if self.embedding is None else 2)
        modality = gan.modalities[gan.name]
        self.network = gan._network("generator", lambda: make_generator(n_in, modality.shape, gan.width, kind))

    def forward(self, noise: Tensor, condition: Tensor | None) -> Tensor:
        return self.network(noise if self.embedding is None else torch.cat([noise, self.embedding(condition)], -1))


class Discriminator(nn.Module):
    """Samples [B, *shape] and a condition c -> scores [B]: v . f(x) + b, and of a condition also V(c) . f(x)."""

    def __init__(self, gan: GAN, kind: str) -> None:
        super().__init__()
        shape = gan.modalities[gan.name].shape
        self.features = gan._network("features", lambda: make_features(shape, gan.width, kind)[0])
        with torch.no_grad():
            size = self.features(torch.zeros(1, *shape)).shape[-1]
        self.score = nn.Linear(size, 1)
        self.projection = _embedding(gan, size)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        features = self.features(x)
        score = self.score(features).squeeze(-1)
        return score if self.projection is None else score + (self.projection(condition) * features).sum(-1)


def _embedding(gan: GAN, size: int) -> nn.Module | None:
    if gan.classes is not None:
        return nn.Embedding(gan.classes, size)
    return None if gan.condition_dim is None else nn.Linear(gan.condition_dim, size)


def network_kind(network: str, shapes: Sequence[Sequence[int]]) -> str:
    """What "auto" comes to, and whether "conv" can be."""
    suited = all(is_picture(shape) for shape in shapes)
    if network == "conv" and not suited:
        raise ValueError(
            f"network is 'conv', but a shape is {[list(shape) for shape in shapes]}: expected [H, W] or [C, H, W] with "
            "sides of 16 or more that 4 divides"
        )
    return ("conv" if suited else "mlp") if network == "auto" else network


def check_continuous(owner: str, name: str, modality: Modality) -> None:
    """A generator's gradient has to come through the sample, and real samples have to look like generated ones."""
    if isinstance(modality, BagOfWords):
        raise ValueError(
            f"{owner}: modality {name!r} (BagOfWords) holds counts or weights, and a generator makes shares; expected "
            "floating-point data without such a likelihood; use the latents of a trained encoder, as a Vector"
        )
    if isinstance(modality, Vector) and modality.missing:
        raise ValueError(
            f"{owner}: modality {name!r} is a Vector(missing=True), whose gaps no discriminator can read; expected one "
            "without gaps: fill them in, mask such rows, or use the latents of a trained encoder"
        )
    if not modality.dtype.is_floating_point or modality.param_shape != modality.shape:
        raise ValueError(
            f"{owner}: modality {name!r} ({type(modality).__name__}) is discrete, expected floating-point data; use "
            "the latents of a trained encoder, as a Vector"
        )


def check_labels(what: str, value: Any, rows: int, classes: int, least: int) -> None:
    """int64 [rows], from ``least`` to classes - 1; reads the values."""
    if not isinstance(value, Tensor) or value.dtype != torch.int64 or tuple(value.shape) != (rows,):
        raise ValueError(f"{what} is {_describe(value)}, expected torch.int64 [{rows}]")
    if value.numel():
        low, high = (int(v) for v in torch.aminmax(value))
        if low < least or high >= classes:
            raise ValueError(f"{what} holds {low} to {high}, expected {least} to {classes - 1}")


def one_of(what: str, value: Any, allowed: Sequence[str]) -> str:
    """One of some words, checked."""
    if value not in allowed:
        raise ValueError(f"{what} is {value!r}, expected one of {tuple(allowed)}")
    return value


def _describe(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
