"""Multimodal variational autoencoders: modalities x fusion x objective, one small file a published model."""

from mmvae_fast.models.base import MultimodalVAE
from mmvae_fast.models.mopoe import MoPoE
from mmvae_fast.models.mvae import MVAE
from mmvae_fast.models.outputs import Output, Posterior

MODELS: dict[str, type[MultimodalVAE]] = {model.__name__: model for model in (MVAE, MoPoE)}

__all__ = ["MODELS", "MVAE", "MoPoE", "MultimodalVAE", "Output", "Posterior"]
