"""MMVAE+: MMVAE with private latents, and auxiliary priors that keep shared information out of them.

Palumbo, Daunhawer & Vogt, MMVAE+: Enhancing the Generative Quality of Multimodal VAEs without Compromises, ICLR 2023
(https://openreview.net/forum?id=sdQGxouELX).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmvae_fast import functional
from mmvae_fast.modalities import Modality
from mmvae_fast.models.base import over_sources
from mmvae_fast.models.batch import Batch
from mmvae_fast.models.experts import Experts
from mmvae_fast.models.importance import estimate, normalized, weigh_gradient
from mmvae_fast.models.mmvae import MMVAE
from mmvae_fast.models.outputs import MixturePosterior, Output, Posterior
from mmvae_fast.models.priors import LearnedScale
from mmvae_fast.models.seeds import branch
from mmvae_fast.reference import seed_tensor

PRIVATE_SOURCES = ("prior", "auxiliary")


class MMVAEPlus(MMVAE):
    """MMVAE whose decoders also see a private latent w_m of their modality, which no other modality can use.

    With u ~ q_m(u|x_m) and w_m ~ q_m(w|x_m), each K times,

    lw_{m,k} = sum_d v_d log p(x_d | u, w_d) + beta ( log p(u) + log p(w_m) - log (1/M) sum_j q_j(u) - log q_m(w_m) ),

    v_d the likelihood weights. Modality m itself is decoded from its w_m; every other d from a draw w_d ~ r_d, an
    auxiliary prior whose scales are learned, so that what all share has to be in u. The loss is minus the mean over
    rows of (1/M) sum_m log (1/K) sum_k e^lw_{m,k}, the looser bound. Missing data (our rule): sums over m, j and d are
    over what the row has. A decoder sees all M K B latents in one call. ``kl`` and ``log_likelihood`` of the output are
    means over m and k.

    p(u), p(w_m) and at first r_m have mean 0 and scale 1. Missing modalities are decoded from the mean of their w,
    which is 0; :meth:`sample`, and :meth:`translate` with a seed, draw it.

    Args:
        private_dim: P, dimensions of w_m: one number, or by modality; default: as many as ``latent_dim``. Encoders
            give, and decoders take, D + P.
        n_samples: K; 10 or 1 in the paper, with beta 2.5 on PolyMNIST.
        family: of experts and priors: "laplace" (the paper's; an encoder's logvar is then 2 log scale) or "normal".
        estimator: of the gradient: "dreg" (doubly reparameterised, in u and w; biased as :class:`MMVAE`'s), "iwae"
            (plain) or "stl" (sticking the landing, in u and w; see :func:`mmvae_fast.models.importance.stl`).
        learned_prior: whether the scales of p(u) are learned (their mean stays 1).
        generate_from: where draws of w come from: "prior", p(w_m), as in the paper; or "auxiliary", r_m.

    ``encode`` gives the :class:`MixturePosterior` of u. See :class:`MultimodalVAE` for the other arguments.
    """

    auxiliary_priors: Any  # by modality

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        latent_dim: int,
        *,
        private_dim: int | Mapping[str, int] | None = None,
        n_samples: int = 10,
        family: str = "laplace",
        estimator: str = "dreg",
        learned_prior: bool = False,
        generate_from: str = "prior",
        **options: Any,
    ) -> None:
        if generate_from not in PRIVATE_SOURCES:
            raise ValueError(f"generate_from is {generate_from!r}, expected one of {PRIVATE_SOURCES}")
        super().__init__(
            modalities,
            latent_dim,
            n_samples=n_samples,
            family=family,
            estimator=estimator,
            tight=False,
            learned_prior=learned_prior,
            _private_dim=latent_dim if private_dim is None else private_dim,
            **options,
        )
        self.generate_from = generate_from
        sizes = {name: p for name, p in self.private_dims.items() if p}
        self.private_priors = nn.ModuleDict({n: LearnedScale(p, family, learned=False) for n, p in sizes.items()})
        self.auxiliary_priors = nn.ModuleDict({n: LearnedScale(p, family) for n, p in sizes.items()})

    def options(self) -> dict[str, Any]:
        inherited = {name: value for name, value in super().options().items() if name != "tight"}
        return {**inherited, "private_dim": self.private_option(), "generate_from": self.generate_from}

    def objective(self, batch: Batch, experts: Experts, *, beta: float | Tensor, seed: int | Tensor | None) -> Output:
        seed = seed_tensor(seed, device=self.device)
        names = list(self.modalities)
        sources = [m for m, name in enumerate(names) if name in batch.data]
        mu, logvar = experts.stacked()
        z = self._draw_each(batch, mu, logvar, seed)  # [K, sources, B, D]
        w = {name: self._draw(*q, self._private_seed(seed, name)) for name, q in experts.private.items()}
        divergence = self._log_q(z, mu, logvar, experts.mask) - self.prior.log_prob(z)
        if w:
            divergence = divergence + torch.stack([self._private_divergence(m, w, experts) for m in sources], 1)
        scores = self.scores(batch, {name: self._latents(name, sources, z, w, seed) for name in batch.data})
        log_weights = self.weighted(batch, scores).sum(0) - beta * divergence
        if self.estimator != "dreg":
            bound = estimate(self.estimator, log_weights, z, beta)
        else:
            weights = normalized(log_weights)  # [K, sources, B]
            bound = (weights * log_weights).sum(0)
            weigh_gradient(z, weights, beta)
            for i, m in enumerate(sources):
                if names[m] in w:
                    weigh_gradient(w[names[m]], weights[:, i], beta)

        observed = batch.of_present(experts.mask.t())  # [sources, B]
        ll = over_sources(scores.mean(1), observed)
        return self.output(batch, -over_sources(bound, observed), over_sources(divergence.mean(0), observed), ll)

    def _private_divergence(self, m: int, w: Mapping[str, Tensor], experts: Experts) -> Tensor:
        """log q_m(w_m) - log p(w_m) of a source's own private latent, [K, B]."""
        name = list(self.modalities)[m]
        if name not in w:
            return experts.mu[m].new_zeros(self.n_samples, experts.mask.shape[0])
        q = experts.private[name]
        log_q = self._log_q(w[name], q.mu[None], q.logvar[None], experts.mask[:, m : m + 1])
        return log_q - self.private_priors[name].log_prob(w[name])

    def _latents(self, name: str, sources: list[int], z: Tensor, w: Mapping[str, Tensor], seed: Tensor) -> Tensor:
        """What a decoder takes, [K, sources, B, D + P]: u of every source, with the modality's own private latent where
        it is the source itself, and independent draws of its auxiliary prior elsewhere."""
        if name not in w:
            return z
        own, place, count = w[name], list(self.modalities).index(name), len(self.modalities)
        zero = torch.zeros_like(own[0])
        eps = functional.reparameterize(
            zero, zero, count * self.n_samples, family=self.family, seed=branch(seed, 200_000 + place)
        )
        drawn = (eps * self.auxiliary_priors[name].scale.to(eps.dtype)).unflatten(0, (count, self.n_samples))
        private = torch.stack([own if m == place else drawn[m] for m in sources], 1)
        return torch.cat([z, private], -1)

    def prior_private(self, name: str, n: int, seed: Tensor) -> Tensor:
        priors = self.private_priors if self.generate_from == "prior" else self.auxiliary_priors
        return priors[name].sample(n, self._private_seed(seed, name))

    def _private_posterior(self, name: str, experts: Experts) -> MixturePosterior:
        mu, logvar, observed = self._private_expert(name, experts)
        return MixturePosterior([mu], [logvar], observed, self.family, self.private_priors[name])

    def _propose_private(self, q: Posterior, name: str, n_samples: int, seed: Tensor) -> tuple[Tensor, Tensor]:
        w = functional.reparameterize(q.mu, q.logvar, n_samples, family=self.family, seed=seed)
        log_q = functional.mixture_log_prob(w, [q.mu], [torch.exp(0.5 * q.logvar)], family=self.family)
        return w, self.private_priors[name].log_prob(w) - log_q
