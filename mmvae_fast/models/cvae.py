"""CVAE: some modalities given others.

Sohn, Lee & Yan, Learning Structured Output Representation using Deep Conditional Generative Models, NeurIPS 2015
(https://proceedings.neurips.cc/paper/2015/hash/8d55a249e6baa5c06772297520da2051-Abstract.html).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmvae_fast import functional
from mmvae_fast.modalities import Modality
from mmvae_fast.models import fusion
from mmvae_fast.models.base import Latents, MultimodalVAE, draw, layer_sizes
from mmvae_fast.models.batch import Batch, Mask
from mmvae_fast.models.experts import Experts
from mmvae_fast.models.hierarchy import log_density
from mmvae_fast.models.joint import Pool
from mmvae_fast.models.outputs import Output, Posterior
from mmvae_fast.reference import seed_tensor


class CVAE(MultimodalVAE):
    """log p(x | c) of the target modalities x given the condition c: all others.

    loss = mean over rows of [ -sum_m w_m log p(x_m | z, c) + beta KL(q(z | x, c) || p(z | c)) ], z ~ q, the sum over
    the targets that the row has.

    Every modality is encoded once, conditions too; its encoder's mu and logvar are features, no expert. Pools of the
    features (:class:`mmvae_fast.models.joint.Pool`) give q(z | x, c), p(z | c) and what the decoders see of c: they
    take z and, appended, ``context_dim`` numbers.

    Missing data (our rule): pools leave out what a row lacks. A row without a target has q = p(z | c) and counts 0; a
    row without a condition has p(z | c) = N(0, I) and a context of zeros. Train with some such rows
    (``modality_dropout``) if you mean to ask for that.

    ``encode`` gives q, so that ``reconstruct`` and ``translate`` from a batch with the condition alone decode the mean
    of p(z | c). ``decode`` and ``sample`` take the condition as a batch. ``log_likelihood`` estimates log p(x | c).

    Args:
        condition: names of the modalities that are given.
        learned_prior: False for p(z | c) = N(0, I).
        context_dim: how many numbers the decoders see of c.
        joint_hidden: sizes of the hidden layers of the three pools.

    See :class:`MultimodalVAE` for the other arguments.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        latent_dim: int,
        *,
        condition: Sequence[str],
        learned_prior: bool = True,
        context_dim: int = 64,
        joint_hidden: Sequence[int] = (256,),
        **options: Any,
    ) -> None:
        super().__init__(modalities, latent_dim, **options)
        given = [condition] if isinstance(condition, str) else list(condition)
        self.condition = self.always_given = [name for name in self.modalities if name in given]
        self.targets = [name for name in self.modalities if name not in given]
        if not self.condition or not self.targets or not set(given) <= set(self.condition):
            raise ValueError(
                f"condition is {condition!r}, expected at least one of the modalities {list(self.modalities)}, and one "
                "left to be the target"
            )
        if not isinstance(learned_prior, bool):
            raise TypeError(f"learned_prior is {learned_prior!r}, expected True or False")
        self.learned_prior, self.joint_hidden = learned_prior, layer_sizes("joint_hidden", joint_hidden)
        (self.context_dim,) = layer_sizes("context_dim", [context_dim])
        size = 2 * latent_dim
        self.decoders = nn.ModuleDict(
            {name: self.modalities[name].decoder_for(latent_dim + context_dim) for name in self.targets}
        )
        self.recognition = Pool(self.modalities, size, self.joint_hidden, size)
        self.conditional_prior = Pool(self.condition, size, self.joint_hidden, size) if learned_prior else None
        self.context = Pool(self.condition, size, self.joint_hidden, context_dim)

    def options(self) -> dict[str, Any]:
        own = ("condition", "learned_prior", "context_dim", "joint_hidden")
        return {**super().options(), **{name: getattr(self, name) for name in own}}

    def make_fusion(self) -> nn.Module:
        return fusion.Product(prior=False)

    def scored(self, batch: Batch) -> list[str]:
        return [name for name in batch.data if name in self.targets]

    def _names(self, to: str | Sequence[str] | None, what: str = "to") -> list[str]:
        if what != "to":
            return super()._names(to, what)
        names = self.targets if to is None else super()._names(to, what)
        for name in names:
            if name in self.condition:
                raise ValueError(f"to names the condition {name!r}, expected some of the targets {self.targets}")
        return names

    def _distributions(self, batch: Batch, experts: Experts) -> tuple[Posterior, Posterior, Tensor]:
        """q(z | x, c), p(z | c), and what the decoders see of c, [B, context_dim]."""
        pairs = zip(self.modalities, experts.mu, experts.logvar, strict=True)
        features = {name: torch.cat([mu, logvar], -1) for name, mu, logvar in pairs if name in batch.data}
        given = {name: x for name, x in features.items() if name in self.condition}
        context = self.context(given, batch)
        if self.conditional_prior is None:
            prior = Posterior(*context.new_zeros(2, batch.rows, self.latent_dim))
        else:
            prior = Posterior(*self.conditional_prior(given, batch).chunk(2, -1))
        targets = [batch.mask[:, i] for i, name in enumerate(batch.order) if name in self.targets]
        some = torch.stack(targets).any(0)[:, None]
        q = self.recognition(features, batch).chunk(2, -1)
        return Posterior(*(torch.where(some, a, b) for a, b in zip(q, prior, strict=True))), prior, context

    def objective(self, batch: Batch, experts: Experts, *, beta: float | Tensor, seed: int | Tensor | None) -> Output:
        q, prior, context = self._distributions(batch, experts)
        return self.elbo(batch, torch.cat([q.sample(seed=seed), context], -1), functional.gaussian_kl(*q, *prior), beta)

    def posterior(self, batch: Batch, experts: Experts) -> Posterior:
        return self._distributions(batch, experts)[0]

    def propose(self, batch: Batch, n_samples: int, seed: Tensor, chunk: int) -> tuple[Latents, Tensor]:
        q, prior, context = self._distributions(batch, self._experts(batch))
        z, log_q = draw(q, n_samples, seed)
        log_weights = log_density(prior, z) - log_q  # z is float32 where the prior is of a half type
        return torch.cat([z.to(self.dtype), context.to(self.dtype).expand(n_samples, -1, -1)], -1), log_weights

    @torch.no_grad()
    def reconstruct(
        self,
        batch: Mapping[str, Tensor],
        mask: Mask = None,
        to: str | Sequence[str] | None = None,
        *,
        seed: int | Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Decode q's mean, given the batch's own condition, into some targets (default: all, observed or not)."""
        checked = self._check(batch, mask)
        q, _, context = self._distributions(checked, self._experts(checked))
        z = torch.cat([q.mu, context], -1)
        return {name: self._predict(name, z) for name in self._names(to)}

    def decode(
        self,
        z: Tensor,
        to: str | Sequence[str] | None = None,
        *,
        params: bool = False,
        condition: Mapping[str, Tensor] | None = None,
        mask: Mask = None,
    ) -> dict[str, Tensor]:
        """Decode latents z [..., D] into some targets (default: all); see :meth:`MultimodalVAE.decode`.

        Args:
            condition: a batch of B rows whose condition it is, for z [..., B, D]; targets in it are ignored. None:
                nothing is given.
            mask: what of the condition is observed.
        """
        names = self._names(to)
        z = self._latent_for(names[0] if names else self.targets[0], z)
        context = z.new_zeros(self.context_dim)
        if condition is not None:
            _, context = self._prior(condition, mask)
            if z.dim() < 2 or z.shape[-2] != context.shape[0]:
                expected = f"[..., {context.shape[0]}, {self.latent_dim}]"
                raise ValueError(f"z has shape {list(z.shape)}, expected {expected} for this condition")
        z = torch.cat([z, context.to(z.dtype).expand(*z.shape[:-1], -1)], -1)
        decode = self._decode if params else self._predict
        return {name: decode(name, z) for name in names}

    @torch.no_grad()
    def sample(
        self,
        n: int | None = None,
        *,
        seed: int | Tensor | None = None,
        to: str | Sequence[str] | None = None,
        z: Tensor | None = None,
        prior: Any = None,
        condition: Mapping[str, Tensor] | None = None,
        mask: Mask = None,
    ) -> dict[str, Tensor]:
        """Generate ``n`` samples for every row of a condition, [n, B, *shape], z drawn from p(z | c); without one, as
        :meth:`MultimodalVAE.sample`, given nothing. ``z``: your own latents, decoded.
        """
        if condition is None or z is not None or type(n) is not int or n < 0:
            if z is not None and n is None:
                return self.decode(z, to, condition=condition, mask=mask)
            # says what is wrong, or samples without a condition
            return super().sample(n, seed=seed, to=to, z=z, prior=prior)
        if prior is not None:
            raise ValueError("sample: pass either a condition, which has its own prior p(z | c), or prior")
        own, _ = self._prior(condition, mask)
        z = own.sample(n, seed_tensor(seed, device=self.device)).to(self.dtype)
        return self.decode(z, to, condition=condition, mask=mask)

    def with_prior_private(self, name: str, z: Tensor, seed: Tensor) -> Tensor:
        return torch.cat([z, z.new_zeros(*z.shape[:-1], self.context_dim)], -1)

    def _prior(self, condition: Mapping[str, Tensor], mask: Mask) -> tuple[Posterior, Tensor]:
        """p(z | c) and the context of a batch's condition."""
        checked = self._check(condition, mask).only(self.condition)
        if not checked.data:
            raise ValueError(f"condition holds {list(condition)}, expected some of {self.condition}")
        _, prior, context = self._distributions(checked, self._experts(checked))
        return prior, context
