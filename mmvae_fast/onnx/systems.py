"""The systems beside the models taken apart: a classifier around a model, a GAN's generator, CycleGAN's translators."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmvae_fast.models import MultimodalVAE
from mmvae_fast.onnx.manifest import (
    CLASSIFIER_SYSTEM,
    CYCLEGAN_SYSTEM,
    GAN_SYSTEM,
    GENERATOR_PART,
    NO_PRIOR,
    Interface,
    ModalitySpec,
    NoiseSpec,
    translator_part,
)
from mmvae_fast.onnx.parts import Part, Taken, modality_spec, take_apart
from mmvae_fast.systems import GAN, CycleGAN, FusionClassifier

EXPORTABLE = (MultimodalVAE, FusionClassifier, GAN, CycleGAN)


def take_any_apart(model: Any) -> Taken:
    """:func:`mmvae_fast.onnx.parts.take_apart` for everything that can be exported."""
    if isinstance(model, FusionClassifier):
        return take_apart(model.model, model, model.classes, CLASSIFIER_SYSTEM)
    if isinstance(model, GAN):
        return _gan(model)
    return _cyclegan(model) if isinstance(model, CycleGAN) else take_apart(model)


def _gan(gan: GAN) -> Taken:
    classes = tuple(str(i) for i in range(gan.classes or 0))
    noise = (NoiseSpec("eps", "normal"),)
    interface = Interface(
        gan.latent_dim,
        [_spec(gan, gan.name)],
        prior_noise=noise,
        classes=len(classes),
        system=GAN_SYSTEM,
        condition_dim=gan.condition_dim or 0,
    )
    part = Part(Generator(gan), interface.io()[GENERATOR_PART], noise)
    return Taken({GENERATOR_PART: part}, interface, classes=classes)


def _cyclegan(model: CycleGAN) -> Taken:
    specs = [_spec(model, name) for name in model.names]
    interface = Interface(model.code_dim, specs, NO_PRIOR, system=CYCLEGAN_SYSTEM)
    modules = {translator_part(name): Translator(model, name) for name in model.names}
    io = interface.io()
    return Taken({name: Part(module, io[name]) for name, module in modules.items()}, interface)


def _spec(system: Any, name: str) -> ModalitySpec:
    return modality_spec(name, system.modalities[name])


class Generator(nn.Module):
    """eps [N, D] and a condition, labels [N] or embeddings [N, C] -> samples [N, *shape]."""

    def __init__(self, gan: GAN):
        super().__init__()
        self.gan = gan

    def forward(self, *given: Tensor) -> Tensor:
        *condition, eps = given
        return self.gan._generate(self.gan.average, eps, condition[0] if condition else None) + 0


class Translator(nn.Module):
    """One modality [B, *shape] -> the other."""

    def __init__(self, model: CycleGAN, to: str):
        super().__init__()
        self.model, self.to_ = model, to

    def forward(self, x: Tensor) -> Tensor:
        return self.model.modalities[self.to_].predict(self.model.averages[self.to_](x)) + 0
