"""Nexus: a shared latent above the latents of single-modality VAEs.

Vasco, Yin, Melo & Paiva, Leveraging hierarchy in multimodal generative models for effective cross-modality inference,
Neural Networks 2022 (https://doi.org/10.1016/j.neunet.2021.11.019).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmvae_fast import functional
from mmvae_fast.modalities import Modality
from mmvae_fast.modalities.networks import mlp
from mmvae_fast.models import fusion
from mmvae_fast.models.base import Latents, MultimodalVAE, layer_sizes, mean, number
from mmvae_fast.models.batch import Batch
from mmvae_fast.models.experts import Experts
from mmvae_fast.models.hierarchy import at, in_parts, log_density_at, noise
from mmvae_fast.models.outputs import Output, Posterior
from mmvae_fast.models.priors import StandardNormal
from mmvae_fast.models.seeds import branch
from mmvae_fast.reference import philox_uniform, seed_tensor

_LOG_2PI = math.log(2 * math.pi)


class Nexus(MultimodalVAE):
    """A VAE a modality, and one on top of their latents: p(z) prod_m p(z_m | z) p(x_m | z_m).

    loss = mean over rows of [ sum_m ( -w_m log p(x_m | z_m) + beta * KL(q(z_m | x_m) || N(0, I)) )
                               - sum_m gamma_m log N(sg z_m; D_m(z), scale^2) + beta * KL(q(z | sg z_1..M) || p(z)) ],

    z_m ~ q(z_m | x_m), z ~ q(z | z_1..M) = the top encoder of the mean of the messages T_m(z_m). Nothing of the top
    (second line) reaches the bottom: sg stops gradients. *Forced perceptual dropout*: in training, a row hides some of
    its messages from the mean with probability ``dropout``, as many as drawn uniformly from 1 to all but one.

    Missing data (the paper has none in training): sums and the mean are over the n modalities of the row, and dropout
    hides up to n - 1 of them. ``latent_dim`` is the size of z, which ``encode`` describes (from the means of the z_m)
    and ``decode`` and ``sample`` take, by the means D_m(z). ``reconstruct`` decodes an observed modality from its own
    latent. ``kl`` of the output is that of the whole hierarchy, log q(z, z_1..M | x) - log p(z, z_1..M), estimated at
    the step's sample, so that ``elbo`` bounds what :meth:`log_likelihood` estimates.

    The paper has weights beta_m of the single latents' divergences and one more of the top's; here one ``beta`` weighs
    both levels. The paper also fits the scale of one modality's p(z_m | z) to the batch; here it is a constant.

    Args:
        modality_dim: size of the z_m, one or by modality; ``latent_dim`` unless told.
        message_dim: size of the messages.
        hidden: sizes of the hidden layers of the top encoder, and of the top decoders, which have ``message_dim`` after
            them. Messages are linear.
        gamma: weights of the top's reconstructions, one or by modality.
        scale: standard deviation of p(z_m | z).
        dropout: probability of dropout in a row.

    See :class:`MultimodalVAE` for the other arguments.
    """

    prior: StandardNormal

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        latent_dim: int,
        *,
        modality_dim: int | Mapping[str, int] | None = None,
        message_dim: int = 512,
        hidden: Sequence[int] = (512, 512),
        gamma: float | Mapping[str, float] = 1.0,
        scale: float = 1.0,
        dropout: float = 0.2,
        **options: Any,
    ) -> None:
        super().__init__(
            modalities, latent_dim, _modality_dim=latent_dim if modality_dim is None else modality_dim, **options
        )
        weights = gamma if isinstance(gamma, Mapping) else dict.fromkeys(self.modalities, gamma)
        if set(weights) != set(self.modalities):
            raise ValueError(f"gamma names {sorted(weights)}, expected a number for each of {list(self.modalities)}")
        self.gamma = {name: number(f"gamma of modality {name!r}", weights[name]) for name in self.modalities}
        self.scale, self.dropout = number("scale", scale), number("dropout", dropout)
        if self.scale == 0:
            raise ValueError("scale is 0, expected a positive number")
        if self.dropout > 1:
            raise ValueError(f"dropout is {dropout}, expected a probability")
        (self.message_dim,) = layer_sizes("message_dim", [message_dim])
        self.hidden = layer_sizes("hidden", hidden, may_be_empty=True)
        dims = self.network_dims
        self.messages = nn.ModuleDict({name: nn.Linear(dims[name], message_dim) for name in self.modalities})
        self.top_encoder = mlp([message_dim, *hidden, 2 * latent_dim])
        self.top_decoders = nn.ModuleDict({
            name: mlp([latent_dim, *hidden, message_dim, dims[name]]) for name in self.modalities
        })  # fmt: skip

    def options(self) -> dict[str, Any]:
        own = ("message_dim", "hidden", "gamma", "scale", "dropout")
        return {
            **super().options(), "modality_dim": self.network_dims, **{name: getattr(self, name) for name in own}
        }  # fmt: skip

    def make_fusion(self) -> nn.Module:
        return fusion.Product()  # never asked: the top encoder fuses

    def objective(self, batch: Batch, experts: Experts, *, beta: float | Tensor, seed: int | Tensor | None) -> Output:
        seed, count = seed_tensor(seed, device=self.device), len(self.modalities)
        bottom, there = self._bottom(batch, experts)
        z = {
            name: functional.reparameterize(*bottom[name], seed=branch(seed, m))
            for m, name in enumerate(self.modalities)
            if name in bottom
        }
        fixed = {name: value.detach() for name, value in z.items()}
        top = self._top(fixed, self._heard(experts.mask, branch(seed, count + 1)))
        above = functional.reparameterize(*top, seed=branch(seed, count))

        def of_rows(name: str, values: Tensor) -> Tensor:
            return mean(torch.where(there[name], values, 0.0))

        ll = mean(self.scores(batch, z))
        fit = {name: of_rows(name, self._log_below(name, value, above)) for name, value in fixed.items()}
        kls = [mean(functional.gaussian_kl(*top))]
        kls += [of_rows(name, functional.gaussian_kl(*q)) for name, q in bottom.items()]
        top_fit = sum(self.gamma[name] * value for name, value in fit.items())
        loss = beta * sum(self.paid(kl) for kl in kls) - self.weighted(batch, ll, mean).sum() - top_fit
        entropy = sum(of_rows(name, 0.5 * (q.logvar + 1 + _LOG_2PI).sum(-1)) for name, q in bottom.items())
        return self.output(batch, loss, kls[0] - entropy - sum(fit.values()), ll)

    def _bottom(self, batch: Batch, experts: Experts) -> tuple[dict[str, Posterior], dict[str, Tensor]]:
        """q(z_m | x_m) of what is in the batch, and which rows have it."""
        places = {name: m for m, name in enumerate(self.modalities) if name in batch.data}
        bottom = {name: Posterior(experts.mu[m], experts.logvar[m]) for name, m in places.items()}
        return bottom, {name: experts.mask[:, m] for name, m in places.items()}

    def _top(self, z: Mapping[str, Tensor], mask: Tensor) -> Posterior:
        """q(z | z_1..M) of latents [..., B, D_m] of which mask [B, M] says whose are heard; the prior where none is."""
        total = sum(
            torch.where(mask[:, m, None], self.messages[name](z[name]), 0.0)
            for m, name in enumerate(self.modalities)
            if name in z
        )
        message = total / mask.sum(1, keepdim=True).clamp(min=1)
        mu, logvar = self.top_encoder(message.to(self.dtype)).chunk(2, -1)
        heard = mask.any(1, keepdim=True)
        return Posterior(torch.where(heard, mu, 0.0), torch.where(heard, logvar, 0.0))

    def _heard(self, mask: Tensor, seed: Tensor) -> Tensor:
        """Forced perceptual dropout of a mask [B, M]."""
        if not self.training or self.dropout == 0:
            return mask
        u = philox_uniform(seed, mask.shape[0], 2 + mask.shape[1], device=mask.device)
        place = torch.where(mask, u[:, 2:], 2.0).argsort(1).argsort(1)  # of the row's own, in random order
        kept = 1 + (u[:, 1] * (mask.sum(1) - 1)).floor()
        return mask & ((u[:, :1] >= self.dropout) | (place < kept[:, None]))

    def _log_below(self, name: str, z: Tensor, above: Tensor) -> Tensor:
        """log p(z_m | z), [..., B]."""
        return functional.log_likelihood(
            z, self.top_decoders[name](above).to(z.dtype), family="normal", scale=self.scale, event_dims=1
        )

    def fuse(self, mus: Sequence[Tensor], logvars: Sequence[Tensor], mask: Tensor) -> Posterior:
        raise NotImplementedError(
            f"{type(self).__name__}: its latents form a hierarchy, with no fusion of experts alone; use encode"
        )

    # --- inference ----------------------------------------------------------------------------------------------------

    def posterior(self, batch: Batch, experts: Experts) -> Posterior:
        bottom, _ = self._bottom(batch, experts)
        return self._top({name: q.mu for name, q in bottom.items()}, experts.mask)

    def _latent_for(self, name: str, z: Any) -> Tensor:
        return self.top_decoders[name](super()._latent_for(name, z))

    def with_private(
        self, name: str, z: Tensor, experts: Experts, observed: Tensor | None, seed: Tensor | None = None
    ) -> Tensor:
        place = list(self.modalities).index(name)
        return torch.where(experts.mask[:, place, None], experts.mu[place], self.top_decoders[name](z))

    def with_prior_private(self, name: str, z: Tensor, seed: Tensor) -> Tensor:
        return self.top_decoders[name](z)

    def propose(self, batch: Batch, n_samples: int, seed: Tensor, chunk: int) -> tuple[Latents, Tensor]:
        bottom, there = self._bottom(batch, self._experts(batch))
        dims: dict[str | None, int] = {name: q.mu.shape[1] for name, q in bottom.items()} | {None: self.latent_dim}
        order = [*self.modalities, None]  # None: the latent above
        eps = {
            name: noise(batch.rows, dim, n_samples, branch(seed, order.index(name)), self.dtype)
            for name, dim in dims.items()
        }
        parts = [self._weigh(batch, bottom, there, of) for of in in_parts(eps, chunk)]
        return {name: torch.cat([z[name] for z, _ in parts]) for name in bottom}, torch.cat([w for _, w in parts])

    def _weigh(
        self,
        batch: Batch,
        bottom: Mapping[str, Posterior],
        there: Mapping[str, Tensor],
        eps: Mapping[str | None, Tensor],
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The latents z_m [K, B, D_m] that noise makes, and log p(z, z_1..M) - log q(z, z_1..M | x), [K, B]."""
        z = {name: at(q, eps[name]) for name, q in bottom.items()}
        top = self._top(z, batch.mask)
        above = at(top, eps[None])
        log_weights = self.prior.log_prob(above) - log_density_at(top, eps[None])
        for name, q in bottom.items():
            log_ratio = self._log_below(name, z[name], above) - log_density_at(q, eps[name])
            log_weights = log_weights + torch.where(there[name], log_ratio, 0.0)
        return z, log_weights
