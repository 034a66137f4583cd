"""Systems around the multimodal VAE: autoencoder, fusion classifier, GAN and CycleGAN.

An :class:`Autoencoder` is a model like any other and trains with :func:`mmvae_fast.training.fit`; the others train with
:func:`mmvae_fast.systems.fit`.
"""

from mmvae_fast.systems.autoencoder import Autoencoder
from mmvae_fast.systems.base import System
from mmvae_fast.systems.classifier import FusionClassifier
from mmvae_fast.systems.cyclegan import CycleGAN
from mmvae_fast.systems.gan import GAN
from mmvae_fast.systems.loop import fit

SYSTEMS: dict[str, type[System]] = {system.__name__: system for system in (FusionClassifier, GAN, CycleGAN)}
"""What :meth:`System.load` finds by name."""

__all__ = ["Autoencoder", *SYSTEMS, "SYSTEMS", "System", "fit"]
