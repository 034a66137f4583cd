"""Samplers fitted to a trained model's latents, to draw from instead of the prior: the latents decoders have seen.

    sampler = fit_sampler(model.encode(batch).sample(seed=0), "gmm")
    model.sample(16, seed=1, prior=sampler)

Ghosh et al., From Variational to Deterministic Autoencoders, 2020 (a Gaussian mixture fitted afterwards); Papamakarios,
Pavlakou & Murray, Masked Autoregressive Flow, 2017; Kingma et al., Inverse Autoregressive Flow, 2016.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmvae_fast._files import write_atomic
from mmvae_fast._lazy import require
from mmvae_fast.models import checkpoint
from mmvae_fast.models.flows import IAF, MAF
from mmvae_fast.reference import philox_normal, philox_uniform, seed_tensor

FORMAT, SCHEMA_VERSION = "mmvae_fast.sampler", 1
CONFIG, WEIGHTS = "sampler.json", "sampler.safetensors"


class GaussianMixtureSampler(nn.Module):
    """p(z) = sum_c w_c N(z; m_c, L_c L_c'), full covariances, as scikit-learn fits it."""

    weights: Tensor
    means: Tensor
    factors: Tensor

    def __init__(self, n_components: int, dim: int) -> None:
        super().__init__()
        self.n_components, self.dim = n_components, dim
        self.register_buffer("weights", torch.full((n_components,), 1 / n_components))
        self.register_buffer("means", torch.zeros(n_components, dim))
        self.register_buffer("factors", torch.eye(dim).repeat(n_components, 1, 1))  # lower triangles L_c

    def config(self) -> dict[str, Any]:
        return {"kind": "gmm", "n_components": self.n_components, "dim": self.dim}

    def fit(self, z: Tensor, *, seed: int = 0, regularization: float = 1e-3) -> GaussianMixtureSampler:
        """Expectation maximisation on latents [N, D]; ``regularization`` is added to variances."""
        mixture = require("sklearn.mixture", extra="demo").GaussianMixture(
            self.n_components, reg_covar=regularization, random_state=seed
        )
        mixture.fit(z.detach().double().cpu().numpy())
        self.weights.copy_(torch.from_numpy(mixture.weights_))
        self.means.copy_(torch.from_numpy(mixture.means_))
        self.factors.copy_(torch.linalg.cholesky(torch.from_numpy(mixture.covariances_)))
        return self

    def log_prob(self, z: Tensor) -> Tensor:
        """z [..., D] -> [...], nats."""
        _check_latents(z, self.means)
        difference = (z.unsqueeze(-2) - self.means).unsqueeze(-1)  # [..., C, D, 1]
        standard = torch.linalg.solve_triangular(self.factors, difference, upper=False).squeeze(-1)
        log_det = self.factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_normal = -0.5 * (standard.square().sum(-1) + self.dim * math.log(2 * math.pi)) - log_det
        return torch.logsumexp(self.weights.log() + log_normal, -1)

    def sample(self, n: int, seed: int | Tensor | None = None) -> Tensor:
        """[n, D]; a row's draw depends on seed and row alone."""
        seed = seed_tensor(seed, device=self.means.device)
        u = philox_uniform(seed, n, 1, stream=1, device=self.means.device)
        component = (u > self.weights.cumsum(0)).sum(-1).clamp(max=self.n_components - 1)
        eps = philox_normal(seed, n, self.dim, device=self.means.device).to(self.means.dtype)
        return self.means[component] + (self.factors[component] @ eps.unsqueeze(-1)).squeeze(-1)


class FlowSampler(nn.Module):
    """A MAF or an IAF over standardised latents, fitted by maximum likelihood."""

    shift: Tensor
    scale: Tensor

    def __init__(self, kind: str, dim: int, layers: int = 3, hidden: int = 128) -> None:
        super().__init__()
        self.kind, self.dim, self.n_layers, self.hidden = kind, dim, layers, hidden
        self.flow = {"maf": MAF, "iaf": IAF}[kind](dim, layers, (hidden, hidden))
        self.register_buffer("shift", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "dim": self.dim, "layers": self.n_layers, "hidden": self.hidden}

    def fit(
        self, z: Tensor, *, seed: int = 0, epochs: int = 50, batch_size: int = 256, lr: float = 1e-3
    ) -> FlowSampler:
        """Adam on latents [N, D]. An IAF's density takes D passes, so its fit is the slower one."""
        z = z.detach().to(self.shift)
        self.shift.copy_(z.mean(0))
        self.scale.copy_(z.std(0).clamp(min=1e-6))
        standard = (z - self.shift) / self.scale
        optimizer = torch.optim.Adam(self.flow.parameters(), lr=lr)
        order = torch.Generator().manual_seed(seed)
        for _ in range(epochs):
            for rows in torch.randperm(len(z), generator=order).to(z.device).split(batch_size):
                optimizer.zero_grad()
                loss = -self.flow.log_prob(standard[rows]).mean()
                loss.backward()
                nn.utils.clip_grad_norm_(self.flow.parameters(), 10.0)
                optimizer.step()
        return self

    def log_prob(self, z: Tensor) -> Tensor:
        """z [..., D] -> [...], nats."""
        _check_latents(z, self.shift)
        return self.flow.log_prob((z - self.shift) / self.scale) - self.scale.log().sum()

    @torch.no_grad()
    def sample(self, n: int, seed: int | Tensor | None = None) -> Tensor:
        """[n, D]; a row's draw depends on seed and row alone."""
        seed = seed_tensor(seed, device=self.shift.device)
        return self.flow.sample(n, seed) * self.scale + self.shift


def _check_latents(z: Tensor, like: Tensor) -> None:
    """z [..., D] in the type of the sampler's own tensors [..., D]."""
    if z.dim() < 1 or z.shape[-1] != like.shape[-1]:
        raise ValueError(
            f"log_prob: z has shape {list(z.shape)}, expected [..., {like.shape[-1]}] like the latents fitted"
        )
    if z.dtype != like.dtype:
        raise TypeError(f"log_prob: z is {z.dtype}, expected {like.dtype} like the sampler; convert it with z.to(...)")


Sampler = GaussianMixtureSampler | FlowSampler
KINDS = ("gmm", "maf", "iaf")


def fit_sampler(z: Tensor, kind: str = "gmm", *, seed: int = 0, n_components: int = 20, **options: Any) -> Sampler:
    """A sampler of one kind fitted to latents [N, D], for ``model.sample(n, prior=sampler)``.

    Args:
        z: draws of the posteriors of training data (``model.encode(batch).sample(seed=0)``), or their means. The
            sampler computes in their type, for half types in float32.
        kind: "gmm" (scikit-learn; extra ``demo``), "maf" or "iaf".
        seed: of the fit. Global random generators are left as they were.
        n_components: of the mixture.
        options: of the kind's ``fit``.

    Raises:
        ValueError, TypeError: not latents, or fewer than the mixture has components; an unknown kind.
    """
    if not isinstance(z, Tensor) or not z.is_floating_point():
        raise TypeError(f"fit_sampler: z is a {getattr(z, 'dtype', type(z).__name__)}, expected a float tensor [N, D]")
    if z.dim() != 2 or len(z) < 2 or not bool(z.isfinite().all()):
        raise ValueError(f"fit_sampler: z has shape {list(z.shape)}, expected finite latents [N, D], N at least 2")
    if kind not in KINDS:
        raise ValueError(f"fit_sampler: kind is {kind!r}, expected one of {KINDS}")
    dtype = torch.promote_types(z.dtype, torch.float32)
    if kind == "gmm":
        if len(z) < n_components:
            raise ValueError(f"fit_sampler: got {len(z)} latents, expected at least n_components = {n_components}")
        return GaussianMixtureSampler(n_components, z.shape[1]).to(z.device, dtype).fit(z, seed=seed, **options)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return FlowSampler(kind, z.shape[1]).to(z.device, dtype).fit(z, seed=seed, **options).eval()


def save_sampler(sampler: Sampler, folder: str | os.PathLike) -> Path:
    """Write ``sampler.json`` and ``sampler.safetensors`` into a folder, each atomically."""
    folder = Path(folder)
    write_atomic(folder / WEIGHTS, checkpoint.pack(sampler.state_dict()))
    config = {"format": FORMAT, "schema_version": SCHEMA_VERSION, **sampler.config()}
    write_atomic(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    return folder


def load_sampler(folder: str | os.PathLike) -> Sampler:
    """What :func:`save_sampler` wrote.

    Raises:
        ValueError: not a sampler's folder, or damaged.
    """
    folder = Path(folder)
    config = checkpoint.read_json(folder / CONFIG)
    if config.pop("format", None) != FORMAT or config.pop("schema_version", None) != SCHEMA_VERSION:
        raise ValueError(f"{folder / CONFIG}: expected the format {FORMAT!r}, version {SCHEMA_VERSION}")
    try:
        kind = config.pop("kind")
        sampler: Sampler = GaussianMixtureSampler(**config) if kind == "gmm" else FlowSampler(kind, **config)
        weights = checkpoint.unpack(folder / WEIGHTS)
        sampler.to(next(iter(weights.values())).dtype).load_state_dict(weights)
    except (KeyError, TypeError, RuntimeError, StopIteration) as error:
        raise ValueError(f"{folder}: does not hold a sampler: {error}") from error
    return sampler.eval()
