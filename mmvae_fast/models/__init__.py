"""Multimodal variational autoencoders: modalities x fusion x objective, one small file a published model."""

from mmvae_fast.models.base import MultimodalVAE
from mmvae_fast.models.cmvae import CMVAE
from mmvae_fast.models.dmvae import DMVAE
from mmvae_fast.models.fused import FusedVAE, WeightedPoE
from mmvae_fast.models.mmvae import MMVAE
from mmvae_fast.models.mmvae_plus import MMVAEPlus
from mmvae_fast.models.mopoe import MoPoE
from mmvae_fast.models.mvae import MVAE
from mmvae_fast.models.mvtcae import MVTCAE
from mmvae_fast.models.outputs import MixturePosterior, Output, Posterior
from mmvae_fast.models.vae import IWAE, VAE, BetaVAE

MODELS: dict[str, type[MultimodalVAE]] = {
    model.__name__: model
    for model in (
        VAE, BetaVAE, IWAE, MVAE, MMVAE, MoPoE, MVTCAE, FusedVAE, WeightedPoE, MMVAEPlus, CMVAE,
        DMVAE,
    )
}  # fmt: skip

__all__ = [*MODELS, "MODELS", "MixturePosterior", "MultimodalVAE", "Output", "Posterior"]
