"""MHVAE: a hierarchy of latents, each level fused by a product of experts.

Dorent, Haouchine, Kogl et al., Unified Brain MR-Ultrasound Synthesis using Multi-Modal Hierarchical Representations,
MICCAI 2023 (https://arxiv.org/abs/2309.08747).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmvae_fast import functional
from mmvae_fast.modalities import Modality
from mmvae_fast.modalities.networks import mlp
from mmvae_fast.models import fusion
from mmvae_fast.models.base import Latents, MultimodalVAE, layer_sizes, over_sources, positive
from mmvae_fast.models.batch import Batch
from mmvae_fast.models.experts import Experts
from mmvae_fast.models.hierarchy import at, in_parts, log_density, log_density_at, noise
from mmvae_fast.models.outputs import Output, Posterior
from mmvae_fast.models.seeds import branch
from mmvae_fast.models.subsets import MOST, bitmasks
from mmvae_fast.reference import seed_tensor


class Level(NamedTuple):
    """One level below the top: the fused posterior, the prior given the level above, and the latent drawn."""

    q: Posterior
    p: Posterior
    z: Tensor


class HierarchicalPrior(nn.Module):
    """p(z_1) = integral of p(z_L) prod_l p(z_l | z_l+1), which can be sampled but has no density in closed form."""

    def __init__(self, dim: int, levels: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.dim = dim
        self.top_down = nn.ModuleList(mlp([dim, *hidden, 2 * dim]) for _ in range(levels - 1))
        self.given = nn.ModuleList(nn.Linear(2 * dim, 2 * dim) for _ in range(levels - 1))

    def step(self, level: int, above: Tensor) -> tuple[Tensor, Posterior]:
        """From z_l+1 [..., D]: features [..., 2 D], and p(z_l | z_l+1)."""
        features = self.top_down[level - 1](above)
        return features, _halves(self.given[level - 1](features))

    def sample(self, n: int, seed: Tensor) -> Tensor:
        """z_1 [n, D]; a row's draw depends on seed and row alone."""
        zero = torch.zeros(n, self.dim, device=seed.device)
        z, dtype = functional.reparameterize(zero, zero, seed=seed), next(self.parameters(), zero).dtype
        for level in range(len(self.given), 0, -1):
            _, p = self.step(level, z.to(dtype))
            z = functional.reparameterize(*p, seed=branch(seed, level))
        return z


class MHVAE(MultimodalVAE):
    """Latents z_L, ..., z_1, one above the other; z_1 is decoded. One ELBO for every subset of the modalities.

    p(z_L) = N(0, I), and every level is fused by a product of experts with its prior:
    q(z_L | x) = p(z_L) prod_m q(z_L | x_m) and q(z_l | x, z_l+1) = p(z_l | z_l+1) prod_m q(z_l | x_m, z_l+1).

    loss = mean over rows of the mean over subsets s of
           [ -sum_m w_m log p(x_m | z_1) + beta * sum_l KL(q_s(z_l | ...) || p(z_l | z_l+1)) ],    z_l ~ q_s,

    where a subset infers with its members and explains everything that the row has. Rule for missing data (ours): the
    subsets are those all of whose members the row has. The authors' adversarial loss, and their convolutions, are left
    out: what an encoder returns, mu and logvar together, are the features of level 1 (``encode_experts`` gives them);
    small networks make each next level's from those of the one below, up to q(z_L | x_m). All latents have
    ``latent_dim`` dimensions, and the posterior networks are shared by the modalities, as in the authors' code.

    ``encode`` gives q(z_1 | x) with the levels above at their means, and z_1 is what ``decode`` takes and ``sample``
    draws. ``kl`` and ``log_likelihood`` of the output are means over subsets, KLs below the top at sampled latents.

    Args:
        levels: L; with 1 the posterior is MVAE's, averaged over subsets.
        hidden: sizes of the hidden layers of the networks between levels.
        subsets: lists of modality names; None is all 2^M - 1 subsets.

    See :class:`MultimodalVAE` for the other arguments.
    """

    _members: Tensor

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        latent_dim: int,
        *,
        levels: int = 3,
        hidden: Sequence[int] = (256,),
        subsets: Iterable[Sequence[str]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(modalities, latent_dim, **options)
        positive("levels", levels)
        names, features = list(self.modalities), 2 * latent_dim
        if subsets is None and len(names) > MOST:
            raise ValueError(
                f"MHVAE: got {len(names)} modalities, expected at most {MOST}: it averages over all 2^M - 1 subsets of "
                "them; pass subsets="
            )
        self.levels, self.hidden = levels, layer_sizes("hidden", hidden, may_be_empty=True)
        self.subsets = None if subsets is None else [list(members) for members in subsets]
        every = range(1, 2 ** len(names))
        self._bitmasks = list(every) if self.subsets is None else bitmasks("MHVAE", self.subsets, names)
        members = [[bool(s >> m & 1) for m in range(len(names))] for s in self._bitmasks]
        self.register_buffer("_members", torch.tensor(members, dtype=torch.bool), persistent=False)  # [S, M]
        self.prior: HierarchicalPrior = HierarchicalPrior(latent_dim, levels, hidden)
        self.bottom_up = nn.ModuleDict({
            name: nn.ModuleList(mlp([features, *hidden, features]) for _ in range(levels - 1)) for name in names
        })  # fmt: skip
        self.posteriors = nn.ModuleList(mlp([2 * features, *hidden, features]) for _ in range(levels - 1))

    def options(self) -> dict[str, Any]:
        return {**super().options(), "levels": self.levels, "hidden": self.hidden, "subsets": self.subsets}

    def make_fusion(self) -> nn.Module:
        return fusion.Product()  # of the top level

    def objective(self, batch: Batch, experts: Experts, *, beta: float | Tensor, seed: int | Tensor | None) -> Output:
        seed = seed_tensor(seed, device=self.device)
        features, tops = self._features(batch, experts)
        there = sum(1 << m for m, name in enumerate(self.modalities) if name in batch.data)
        kept = [i for i, s in enumerate(self._bitmasks) if not s & ~there] or [0]  # the first is available nowhere
        top = functional.subset_posteriors(
            *tops, experts.mask, subsets=[self._bitmasks[i] for i in kept], prior="all"
        )  # [S, B, D]
        mask = _some(self._members, kept)[:, None] & top.available[..., None]  # [S, B, M]

        def draw(level: int, q: Posterior) -> Tensor:
            eps = noise(batch.rows, self.latent_dim, len(self._bitmasks), branch(seed, level), q.mu.dtype)
            return at(q, _some(eps, kept))

        z, kl = draw(self.levels, Posterior(top.mu, top.logvar)), top.kl
        for q, p, latent in self._descend(features, z, mask, draw):
            z, kl = latent, kl + functional.gaussian_kl(*q, *p)

        def average(values: Tensor) -> Tensor:  # over rows and their subsets
            return over_sources(values, top.available)

        ll, divergence = average(self.scores(batch, z)), average(kl)
        fit = self.weighted(batch, ll, lambda there: average(there[:, None].expand(-1, *top.available.shape)))
        return self.output(batch, beta * self.paid(divergence) - fit.sum(), divergence, ll)

    def _features(
        self, batch: Batch, experts: Experts
    ) -> tuple[dict[int, list[Tensor]], tuple[list[Tensor], list[Tensor]]]:
        """What x says on every level but the top: L - 1 tensors [B, 2 D] by place of the modality; and the experts of
        the top, of all modalities, whatever for those that are not in the batch."""
        features, mus, logvars = {}, list(experts.mu), list(experts.logvar)
        for m, name in enumerate(self.modalities):
            if name in batch.data:
                path = [torch.cat([mus[m], logvars[m]], -1)]
                for block in self.bottom_up[name].children():
                    path.append(block(path[-1]))
                mus[m], logvars[m] = _halves(path.pop())
                features[m] = path
        return features, (mus, logvars)

    def _descend(
        self,
        features: Mapping[int, list[Tensor]],
        z: Tensor,
        mask: Tensor,
        draw: Callable[[int, Posterior], Tensor],
    ) -> list[Level]:
        """The levels below the top, downwards, from z_L [..., B, D] and who takes part, bool [..., B, M]."""
        levels: list[Level] = []
        flat = torch.stack([mask[..., m] for m in features] + [torch.ones_like(mask[..., 0])], -1)
        for level in range(self.levels - 1, 0, -1):
            above, p = self.prior.step(level, z)
            experts = [
                _halves(self.posteriors[level - 1](torch.cat([above, f.expand(above.shape)], -1)))
                for f in (path[level - 1] for path in features.values())
            ]
            mus, logvars = ([t.reshape(-1, self.latent_dim) for t in of] for of in zip(*experts, p, strict=True))
            joint = functional.product_of_experts(mus, logvars, flat.reshape(-1, flat.shape[-1]), prior=False)
            q = Posterior(*(t.reshape(z.shape) for t in joint))
            z = draw(level, q)
            levels.append(Level(q, p, z))
        return levels

    def fuse(self, mus: Sequence[Tensor], logvars: Sequence[Tensor], mask: Tensor) -> Posterior:
        raise NotImplementedError(
            f"{type(self).__name__}: its latents form a hierarchy, with no fusion of experts alone; use encode"
        )

    # --- inference ----------------------------------------------------------------------------------------------------

    def posterior(self, batch: Batch, experts: Experts) -> Posterior:
        features, tops = self._features(batch, experts)
        top = Posterior(*functional.product_of_experts(*tops, experts.mask))
        below = self._descend(features, top.mu, experts.mask, lambda level, q: q.mu)
        return below[-1].q if below else top

    def propose(self, batch: Batch, n_samples: int, seed: Tensor, chunk: int) -> tuple[Latents, Tensor]:
        experts = self._experts(batch)
        features, tops = self._features(batch, experts)
        top = Posterior(*functional.product_of_experts(*tops, experts.mask))
        eps = {
            level: noise(batch.rows, self.latent_dim, n_samples, branch(seed, level), self.dtype)
            for level in range(1, self.levels + 1)
        }
        parts = [self._weigh(features, top, experts.mask, of) for of in in_parts(eps, chunk)]
        return torch.cat([z for z, _ in parts]), torch.cat([w for _, w in parts])

    def _weigh(
        self, features: Mapping[int, list[Tensor]], top: Posterior, mask: Tensor, eps: Mapping[int, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """z_1 [K, B, D] as noise by level makes it, and log p - log q of all levels, [K, B]."""
        z = at(top, eps[self.levels])
        log_weights = log_density(_standard(top), z) - log_density_at(top, eps[self.levels])
        mask = mask.expand(z.shape[0], -1, -1)
        below = self._descend(features, z, mask, lambda level, q: at(q, eps[level]))
        for level, (q, p, latent) in zip(range(self.levels - 1, 0, -1), below, strict=True):
            z, log_weights = latent, log_weights + log_density(p, latent) - log_density_at(q, eps[level])
        return z, log_weights


def _halves(t: Tensor) -> Posterior:
    mu, logvar = t.chunk(2, -1)
    return Posterior(mu, logvar)


def _standard(like: Posterior) -> Posterior:
    return Posterior(torch.zeros_like(like.mu), torch.zeros_like(like.mu))


def _some(t: Tensor, places: Sequence[int]) -> Tensor:
    """Chosen parts of a tensor; not by a list as an index, which would be a copy to the device."""
    return t if len(places) == len(t) else torch.stack([t[i] for i in places])
