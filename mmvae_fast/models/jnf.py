"""JNF: a joint encoder and the decoders first, then unimodal posteriors with flows that follow the joint one.

Senellart, Chadebec & Allassonnière, Improving Multimodal Joint Variational Autoencoders through Normalizing Flows and
Correlation Analysis, 2023 (https://arxiv.org/abs/2305.11832).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmvae_fast import functional
from mmvae_fast.modalities import Modality
from mmvae_fast.models.base import layer_sizes, mean, positive
from mmvae_fast.models.batch import Batch
from mmvae_fast.models.experts import Experts
from mmvae_fast.models.flows import MAF
from mmvae_fast.models.hierarchy import at, noise
from mmvae_fast.models.hmc import hmc
from mmvae_fast.models.importance import iwae
from mmvae_fast.models.joint import TwoStageVAE
from mmvae_fast.models.outputs import MixturePosterior, Output, Posterior
from mmvae_fast.models.priors import StandardNormal
from mmvae_fast.models.seeds import branch
from mmvae_fast.reference import seed_tensor

_DRAWS = 64  # of every expert, from which the moments and the normaliser of products are estimated


class JNF(TwoStageVAE):
    """Unimodal posteriors q_m(z | x_m) = N(f_m(z); mu_m, var_m) |det df_m/dz|, f_m a masked autoregressive flow.

    First stage: mean over rows of -sum_m w_m log p(x_m | z) + beta KL(q_J || p), z ~ q_J. Second stage, with the joint
    encoder and the decoders frozen: mean over rows of -sum_m log q_m(z | x_m), z ~ q_J, which is
    sum_m KL(q_J || q_m) and a constant. All sums are over what the row has (our rule; the paper trains on complete
    rows). In the second stage beta, free bits and the likelihoods' weights have no part, and nothing is decoded:
    ``log_likelihood`` of the output holds log q_m(z | x_m), and ``kl`` is 0.

    ``encode`` gives q_J where the batch has all modalities and the mask none of them, else a :class:`FlowPosterior`
    (no value of a mask is read to choose), in which complete rows have q_J: for a set S of modalities the density
    proportional to prod_{m in S} q_m(z | x_m) / p(z)^(|S| - 1), sampled by Hamiltonian Monte Carlo, as in the paper
    (which writes 1 / p(z): right for two). ``log_likelihood`` draws from the Gaussian with its moments.

    Args:
        flow_layers, flow_hidden: how many layers each flow has, and the sizes of their hidden layers.
        hmc_steps, hmc_leapfrogs: Monte Carlo steps, and how often each evaluates the density;
            100 and 10 in the authors' code. ``torch.compile`` of ``sample`` unrolls them all: take few for it.
        joint_hidden: sizes of the hidden layers between the joint encoder's features and q_J.

    See :class:`MultimodalVAE` for the other arguments.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        latent_dim: int,
        *,
        flow_layers: int = 2,
        flow_hidden: Sequence[int] = (128, 128),
        hmc_steps: int = 100,
        hmc_leapfrogs: int = 10,
        **options: Any,
    ) -> None:
        super().__init__(modalities, latent_dim, **options)
        counts = {"flow_layers": flow_layers, "hmc_steps": hmc_steps, "hmc_leapfrogs": hmc_leapfrogs}
        for what, value in counts.items():
            positive(what, value)
        self.flow_layers, self.flow_hidden = flow_layers, layer_sizes("flow_hidden", flow_hidden)
        self.hmc_steps, self.hmc_leapfrogs = hmc_steps, hmc_leapfrogs
        # of the draws that tell a flow's moments: from names, so that the order of modalities is nothing
        self._streams = {name: zlib.crc32(name.encode()) for name in self.modalities}
        self.flows = nn.ModuleDict({name: MAF(latent_dim, flow_layers, self.flow_hidden) for name in self.modalities})

    def options(self) -> dict[str, Any]:
        own = ("flow_layers", "flow_hidden", "hmc_steps", "hmc_leapfrogs")
        return {**super().options(), **{name: getattr(self, name) for name in own}}

    def second_objective(
        self, batch: Batch, experts: Experts, *, beta: float | Tensor, seed: int | Tensor | None
    ) -> Output:
        with torch.no_grad():
            z = self.joint_posterior(batch, experts).sample(seed=seed)
        ll = []
        for m, name in enumerate(self.modalities):
            if name in batch.data:
                observed = batch.mask[:, m]
                u, log_det = self._flow(name).to_base(z)
                scale = torch.exp(0.5 * experts.logvar[m])
                log_base = functional.mixture_log_prob(u, [experts.mu[m]], [scale], observed[:, None])
                ll.append(mean(torch.where(observed, log_base + log_det, 0.0)))
        loss = -torch.stack(ll).sum()
        return self.output(batch, loss, torch.zeros_like(loss), torch.stack(ll))

    def _flow(self, name: str) -> Any:
        return self.flows[name]

    def posterior(self, batch: Batch, experts: Experts) -> Any:
        joint = self.joint_posterior(batch, experts) if len(batch.data) == len(self.modalities) else None
        if joint is not None and all(observed is None for observed in batch.observed.values()):
            return joint
        return FlowPosterior(self, batch, experts, joint)

    def proposal(self, batch: Batch, experts: Experts) -> Posterior | MixturePosterior:
        q = self.posterior(batch, experts)
        return q if isinstance(q, Posterior) else Posterior(q.mu, q.logvar)


class FlowPosterior:
    """q(z | what is observed) of :class:`JNF`, by row: q_J, q_m of the one modality, or their product over the prior's.

    ``mu`` and ``logvar``, each [B, D], are of a Gaussian: q_J itself; for one modality the moments of 64 samples; for
    several the product of such Gaussians, no expert wider than the prior, which is divided out.
    """

    def __init__(self, model: JNF, batch: Batch, experts: Experts, joint: Posterior | None) -> None:
        self._model, self._joint = model, joint
        self._count, self._complete = batch.mask.sum(1), batch.mask.all(1)
        self._prior = StandardNormal(model.latent_dim)
        self._base: dict[str, Posterior] = {}
        self._observed: dict[str, Tensor] = {}
        for m, name in enumerate(model.modalities):
            if name in batch.data:
                self._observed[name] = observed = batch.mask[:, m]
                # blank where missing: nothing that an encoder says there may matter
                mu, logvar = (torch.where(observed[:, None], t[m], 0.0) for t in (experts.mu, experts.logvar))
                self._base[name] = Posterior(mu, logvar)
        # now, as nearly every use needs them: torch.compile cannot trace what is computed at first use and kept
        self._draws = self._draw_each()
        self._gaussian = self._moments()

    @property
    def mu(self) -> Tensor:
        mu = self._gaussian.mu
        return mu if self._joint is None else torch.where(self._complete[:, None], self._joint.mu, mu)

    @property
    def logvar(self) -> Tensor:
        logvar = self._gaussian.logvar
        return logvar if self._joint is None else torch.where(self._complete[:, None], self._joint.logvar, logvar)

    @property
    def point(self) -> Tensor:
        """The latent to decode where one has to stand for all, [B, D]: q_J's mean; else the most probable of ``mu`` and
        the experts' Gaussian means, each through its flow."""
        z = torch.stack([self._gaussian.mu, *(self._model._flow(n).from_base(q.mu)[0] for n, q in self._base.items())])
        allowed = torch.stack([torch.ones_like(self._complete), *self._observed.values()])
        best = torch.where(allowed, self._log_product(z), -torch.inf).argmax(0)
        point = z.gather(0, best[None, :, None].expand(1, *z.shape[1:]))[0]
        return point if self._joint is None else torch.where(self._complete[:, None], self._joint.mu, point)

    def sample(self, n_samples: int | None = None, seed: int | Tensor | None = None) -> Tensor:
        """z [B, D], or [n_samples, B, D]. Of a product, the last states of so many Hamiltonian chains, each begun at a
        draw of the Gaussian with ``mu`` and ``logvar``; no gradient there."""
        seed, k = seed_tensor(seed, device=self._count.device), 1 if n_samples is None else n_samples
        zero = torch.zeros_like(self._gaussian.mu)
        z = functional.reparameterize(zero, zero, k, seed=seed)
        for name, q in self._base.items():
            z = torch.where(self._observed[name][:, None], self._model._flow(name).from_base(q.sample(k, seed))[0], z)
        model, q = self._model, self._gaussian
        if len(self._base) > 1 and len(model.modalities) > 2:
            steps, leapfrogs, scale = model.hmc_steps, model.hmc_leapfrogs, torch.exp(0.5 * q.logvar)
            start = q.sample(k, seed)
            chains = hmc(self._log_product, start, scale, steps=steps, leapfrogs=leapfrogs, seed=seed)
            z = torch.where((self._count > 1)[:, None], chains, z)
        if self._joint is not None:
            z = torch.where(self._complete[:, None], self._joint.sample(k, seed), z)
        return z[0] if n_samples is None else z

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z) in nats, z [..., B, D] -> [..., B]. Of a product, normalised by an importance estimate."""
        value = self._log_product(z) - self._log_normalizer()
        return value if self._joint is None else torch.where(self._complete, self._joint.log_prob(z), value)

    def _log_each(self, z: Tensor) -> list[Tensor]:
        """log q_m(z | x_m), [..., B] each; anything where it is not observed."""
        return [self._model._flow(name).log_prob(z, q) for name, q in self._base.items()]

    def _log_product(self, z: Tensor) -> Tensor:
        """log prod_m q_m(z | x_m) / p(z)^(|S| - 1): the prior's where S is empty."""
        total = (1 - self._count) * self._prior.log_prob(z)
        for log_q, observed in zip(self._log_each(z), self._observed.values(), strict=True):
            total = total + torch.where(observed, log_q, 0.0)
        return total

    def _draw_each(self) -> dict[str, Tensor]:
        """[draws, B, D] by modality, always the same: one noise for all rows, so that a row's posterior does not depend
        on its place in the batch."""
        seed = seed_tensor(0, device=self._count.device)
        draws = {}
        for name, q in self._base.items():
            eps = noise(1, q.mu.shape[1], _DRAWS, branch(seed, self._model._streams[name]), q.mu.dtype)
            draws[name] = self._model._flow(name).from_base(at(q, eps))[0]
        return draws

    def _moments(self) -> Posterior:
        """The moments, in incomplete rows."""
        count = self._count[:, None]
        total: Any = 1 - count
        weighted: Any = 0.0
        for name, z in self._draws.items():
            mu = z.mean(0)
            precision = 1 / (z - mu).square().mean(0).clamp(min=1e-10)
            precision = torch.where(count > 1, precision.clamp(min=1), precision)
            precision = torch.where(self._observed[name][:, None], precision, 0.0)
            total, weighted = total + precision, weighted + precision * mu
        return Posterior(weighted / total, -torch.log(total))

    def _log_normalizer(self) -> Tensor:
        """log of the integral of the product, [B], from all draws of its experts; 0 where it is one expert or none."""
        z = torch.stack(list(self._draws.values()), 1)  # [draws, m, B, D]
        observed = torch.stack(list(self._observed.values()))  # [m, B]
        of_each = [torch.where(o, log_q, -torch.inf) for o, log_q in zip(observed, self._log_each(z), strict=True)]
        log_mixture = torch.stack(of_each).logsumexp(0) - self._count.clamp(min=1).log()
        log_weights = (self._log_product(z) - log_mixture).flatten(0, 1)
        estimate = iwae(log_weights, observed.repeat(_DRAWS, 1))
        return torch.where(self._count > 1, estimate, 0.0)
