"""Multimodal variational autoencoders: modalities x fusion x objective, one small file a published model."""

from mmvae_fast.models.base import MultimodalVAE
from mmvae_fast.models.cmvae import CMVAE
from mmvae_fast.models.crmvae import CRMVAE
from mmvae_fast.models.cvae import CVAE
from mmvae_fast.models.dmvae import DMVAE
from mmvae_fast.models.fused import FusedVAE, WeightedPoE
from mmvae_fast.models.jmvae import JMVAE
from mmvae_fast.models.jnf import JNF
from mmvae_fast.models.mcvae import MCVAE
from mmvae_fast.models.mhvae import MHVAE
from mmvae_fast.models.mmjsd import MMJSD
from mmvae_fast.models.mmvae import MMVAE
from mmvae_fast.models.mmvae_plus import MMVAEPlus
from mmvae_fast.models.mopoe import MoPoE
from mmvae_fast.models.mvae import MVAE
from mmvae_fast.models.mvtcae import MVTCAE
from mmvae_fast.models.nexus import Nexus
from mmvae_fast.models.outputs import MixturePosterior, Output, Posterior
from mmvae_fast.models.telbo import TELBO
from mmvae_fast.models.vae import IWAE, VAE, BetaVAE

MODELS: dict[str, type[MultimodalVAE]] = {
    model.__name__: model
    for model in (
        VAE, BetaVAE, IWAE, CVAE, MVAE, FusedVAE, WeightedPoE, MMVAE, MoPoE, MMJSD, MVTCAE, MCVAE, CRMVAE,
        JMVAE, TELBO, JNF, MMVAEPlus, CMVAE, DMVAE, Nexus, MHVAE,
    )
}  # fmt: skip

__all__ = [*MODELS, "MODELS", "MixturePosterior", "MultimodalVAE", "Output", "Posterior"]
