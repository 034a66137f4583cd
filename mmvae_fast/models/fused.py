"""One ELBO with any rule of fusion to a Gaussian; the generalised product of experts by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from mmvae_fast import functional
from mmvae_fast.modalities import Modality
from mmvae_fast.models import fusion
from mmvae_fast.models.base import MultimodalVAE
from mmvae_fast.models.batch import Batch
from mmvae_fast.models.experts import Experts
from mmvae_fast.models.outputs import Output

FUSIONS: dict[str, Callable[[int, int], nn.Module]] = {
    "product": lambda count, dim: fusion.Product(prior=True),
    "product without prior": lambda count, dim: fusion.Product(prior=False),
    "weighted product": fusion.WeightedProduct,
    "moments": lambda count, dim: fusion.MomentBarycentre(),
    "wasserstein": lambda count, dim: fusion.WassersteinBarycentre(),
}


class FusedVAE(MultimodalVAE):
    """loss = mean over rows of [ -sum_m w_m log p(x_m | z) + beta * KL(q || p) ], q fused by a rule of choice.

    Args:
        fusion: "product", "product without prior", "weighted product", "moments" or "wasserstein"; see
            :mod:`mmvae_fast.models.fusion`.

    See :class:`MultimodalVAE` for the other arguments.
    """

    _rule: str

    def __init__(
        self, modalities: Mapping[str, Modality], latent_dim: int, *, fusion: str = "product", **options: Any
    ) -> None:
        if fusion not in FUSIONS:
            raise ValueError(f"fusion is {fusion!r}, expected one of {list(FUSIONS)}")
        self.__dict__["_rule"] = fusion  # before the module exists, which makes its fusion
        super().__init__(modalities, latent_dim, **options)

    def options(self) -> dict[str, Any]:
        return {**super().options(), "fusion": self._rule}

    def make_fusion(self) -> nn.Module:
        return FUSIONS[self._rule](len(self.modalities), self.latent_dim)

    def objective(self, batch: Batch, experts: Experts, *, beta: float | Tensor, seed: int | Tensor | None) -> Output:
        if isinstance(self.fusion, fusion.Product):  # in one kernel
            z, _, _, kl, _ = functional.poe_sample_kl(
                experts.mu, experts.logvar, experts.mask, prior=self.fusion.prior, seed=seed
            )
            return self.elbo(batch, z, kl, beta)
        q = self.fuse(experts.mu, experts.logvar, experts.mask)
        drawn = functional.poe_sample_kl([q.mu], [q.logvar], prior=False, seed=seed)
        return self.elbo(batch, drawn.z, drawn.kl, beta)


class WeightedPoE(FusedVAE):
    """gPoE: product of experts with learned weights for each expert and dimension, without a prior expert.

    Source: Cao & Fleet, Generalized Product of Experts, 2014; as a multimodal VAE: Lawry Aguila et al. 2023.
    """

    def __init__(self, modalities: Mapping[str, Modality], latent_dim: int, **options: Any) -> None:
        super().__init__(modalities, latent_dim, fusion="weighted product", **options)

    def options(self) -> dict[str, Any]:
        return {name: value for name, value in super().options().items() if name != "fusion"}
