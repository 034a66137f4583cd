"""What all multimodal VAEs share: encode every modality once, fuse, decode, and estimate likelihoods."""

from __future__ import annotations

import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mmvae_fast import functional
from mmvae_fast.modalities import Modality
from mmvae_fast.models import checkpoint
from mmvae_fast.models.batch import Batch, Mask, check_batch
from mmvae_fast.models.outputs import Output, Posterior

Experts = tuple[list[Tensor], list[Tensor], Tensor]
Self = TypeVar("Self", bound="MultimodalVAE")


class MultimodalVAE(nn.Module, ABC):
    """Base of the models: a fusion rule (:meth:`fuse`) and an objective (:meth:`objective`) over named modalities.

    A *batch* is a dict of tensors by modality; a missing key means missing in every row. A *mask* says what is
    observed where a row lacks something: None (everything in the batch), a dict of bool [B] by modality, or one bool
    [B, M] with columns in modality order. Missing data may hold anything, NaN included. A row with nothing observed is
    legal: its posterior is the prior.

    Args:
        modalities: by name; their order is that of the experts and of the columns of a mask.
        latent_dim: D.
        beta: weight of the KL divergence in the loss.
        likelihood_weights: weights of the modalities' log-likelihoods in the loss: "none" (all 1), "dimension" (size
            of the largest modality over its own, so that all weigh about the same), or numbers by modality.
    """

    _zero: Tensor

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        latent_dim: int,
        *,
        beta: float = 1.0,
        likelihood_weights: str | Mapping[str, float] = "none",
    ) -> None:
        super().__init__()
        _check_modalities(modalities)
        if type(latent_dim) is not int or latent_dim < 1:
            raise ValueError(f"latent_dim is {latent_dim!r}, expected a positive integer")
        self.modalities: dict[str, Modality] = dict(modalities)
        self.latent_dim = latent_dim
        self.beta = _number("beta", beta)
        self.likelihood_weights = _weights(likelihood_weights, self.modalities)
        self.encoders = nn.ModuleDict({name: m.make_encoder(latent_dim) for name, m in modalities.items()})
        self.decoders = nn.ModuleDict({name: m.make_decoder(latent_dim) for name, m in modalities.items()})
        # follows .to(): where and in which type the model computes, even if its networks have no parameters
        self.register_buffer("_zero", torch.zeros(()), persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        return self._zero.dtype

    @property
    def device(self) -> torch.device:
        return self._zero.device

    # --- the two things that make a model -----------------------------------------------------------------------------

    @abstractmethod
    def fuse(self, mus: Sequence[Tensor], logvars: Sequence[Tensor], mask: Tensor) -> Posterior:
        """The posterior of every row from M experts, each [B, D], and what is observed, bool [B, M]."""

    @abstractmethod
    def objective(
        self, batch: Batch, mus: list[Tensor], logvars: list[Tensor], *, beta: float | Tensor, seed: int | Tensor | None
    ) -> Output:
        """The training loss of a checked batch and its experts."""

    # --- training -----------------------------------------------------------------------------------------------------

    def forward(
        self,
        batch: Mapping[str, Tensor],
        mask: Mask = None,
        *,
        beta: float | Tensor | None = None,
        seed: int | Tensor | None = None,
    ) -> Output:
        """The objective on a batch.

        Args:
            batch, mask: see the class.
            beta: instead of the model's own, for warm-up.
            seed: of the noise; None draws one from torch's generator.

        Returns:
            Output(loss, elbo, kl, log_likelihood): means over rows, nats; 0 for an empty batch.

        Raises:
            ValueError, TypeError: naming the modality, what came and what was expected.
        """
        checked = self._check(batch, mask)
        mus, logvars = self._experts(checked)
        return self.objective(checked, mus, logvars, beta=self.beta if beta is None else beta, seed=seed)

    # --- inference ----------------------------------------------------------------------------------------------------

    def encode(self, batch: Mapping[str, Tensor], mask: Mask = None) -> Posterior:
        """q(z | what is observed): Posterior(mu, logvar), each [B, D]."""
        return self.fuse(*self.encode_experts(batch, mask))

    def encode_experts(self, batch: Mapping[str, Tensor], mask: Mask = None) -> Experts:
        """Every modality's own posterior, before fusion.

        Returns:
            (mus, logvars, mask): M tensors [B, D] each, and bool [B, M]. The encoder of a modality that is not in the
            batch does not run; its expert is zeros, masked out.
        """
        checked = self._check(batch, mask)
        return *self._experts(checked), checked.mask

    def decode(self, z: Tensor, to: str | Sequence[str] | None = None, *, params: bool = False) -> dict[str, Tensor]:
        """Decode latents z [..., D] into some modalities (default: all).

        Returns:
            by modality, predictions in data space [..., *shape], or with ``params`` the parameters of the likelihood
            [..., *param_shape].
        """
        if not isinstance(z, Tensor):
            raise TypeError(f"z is a {type(z).__name__}, expected a tensor [..., {self.latent_dim}]")
        if z.dim() < 1 or z.shape[-1] != self.latent_dim:
            raise ValueError(f"z has shape {list(z.shape)}, expected [..., {self.latent_dim}]")
        if z.dtype != self.dtype and not (z.is_floating_point() and torch.is_autocast_enabled(z.device.type)):
            raise TypeError(f"z is {z.dtype}, expected {self.dtype} like the model; convert it with z.to({self.dtype})")
        decoded = {name: self._decode(name, z) for name in self._names(to)}
        return decoded if params else {name: self.modalities[name].predict(p) for name, p in decoded.items()}

    @torch.no_grad()
    def reconstruct(
        self, batch: Mapping[str, Tensor], mask: Mask = None, to: str | Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Decode the posterior mean into some modalities (default: all, observed or not)."""
        return self.decode(self.encode(batch, mask).mu, to)

    @torch.no_grad()
    def translate(self, batch: Mapping[str, Tensor], to: str, mask: Mask = None) -> Tensor:
        """One modality from whatever is in the batch: the posterior mean decoded, [B, *shape]."""
        return self.reconstruct(batch, mask, to=[to])[to]

    @torch.no_grad()
    def sample(
        self,
        n: int | None = None,
        *,
        seed: int | Tensor | None = None,
        to: str | Sequence[str] | None = None,
        z: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Generate ``n`` samples of the prior, or from your own latents ``z`` [..., D], decoded."""
        if (n is None) == (z is None):
            raise ValueError("sample: pass either n, the number of prior samples, or z, latents to decode")
        if z is None:
            if type(n) is not int or n < 0:
                raise ValueError(f"sample: n is {n!r}, expected 0 or more")
            prior = self._zero.new_zeros(n, self.latent_dim)
            z = functional.reparameterize(prior, prior, seed=seed)
        return self.decode(z, to)

    @torch.no_grad()
    def log_likelihood(
        self,
        batch: Mapping[str, Tensor],
        mask: Mask = None,
        n_samples: int = 1000,
        seed: int | Tensor | None = None,
        chunk: int = 100,
    ) -> Tensor:
        """Importance-weighted estimate of the joint log p(x) of each row's observed modalities, in nats: [B].

        log (1/K) sum_k p(x | z_k) p(z_k) / q(z_k), z_k ~ q = the Gaussian of :meth:`encode`. A lower bound in
        expectation, tighter with every sample, and never below the ELBO of that posterior.

        Args:
            n_samples: K.
            chunk: how many samples to decode at a time; changes memory, not the result.

        Source: Burda, Grosse & Salakhutdinov, Importance Weighted Autoencoders, 2016, equation 8.
        """
        for what, value in (("n_samples", n_samples), ("chunk", chunk)):
            if type(value) is not int or value < 1:
                raise ValueError(f"log_likelihood: {what} is {value!r}, expected 1 or more")
        checked = self._check(batch, mask)
        q = self.fuse(*self._experts(checked), checked.mask)
        # The same z as q.sample, with its noise at hand: a peaked posterior's cannot be had back from z - mu
        standard = torch.zeros_like(q.mu, dtype=torch.promote_types(q.mu.dtype, torch.float32))
        eps = functional.reparameterize(standard, standard, n_samples, seed=seed)
        z = q.mu + torch.exp(0.5 * q.logvar) * eps
        # log p(z) - log q(z): the constants of the two normal densities cancel
        log_weights = 0.5 * (q.logvar + eps.square() - z.square()).sum(-1)
        z = z.to(q.mu.dtype)
        for name in checked.data:
            scores = [self._score(checked, name, part) for part in z.split(chunk)]
            log_weights = log_weights + torch.cat(scores)
        return log_weights.logsumexp(0) - math.log(n_samples)

    # --- building blocks for objectives -------------------------------------------------------------------------------

    def _check(self, batch: Mapping[str, Tensor], mask: Mask) -> Batch:
        return check_batch(self.modalities, batch, mask, dtype=self.dtype, device=self.device)

    def _experts(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """Run the encoder of every modality in the batch, once."""
        shape = (batch.rows, self.latent_dim)
        present = {name: _gaussian(name, self._encode(name, x), shape) for name, x in batch.data.items()}
        first, (like, _) = next(iter(present.items()))
        for name, expert in present.items():
            for what, value in zip(("mu", "logvar"), expert, strict=True):
                if value.dtype != like.dtype:
                    raise TypeError(
                        f"modality {name!r}: its encoder returned {what} in {value.dtype}, expected {like.dtype} as "
                        f"modality {first!r} has its mu"
                    )
        # not one tensor for all that is absent: torch.compile refuses functions that take the same one twice
        experts = [present.get(name) or (like.new_zeros(shape), like.new_zeros(shape)) for name in self.modalities]
        return [mu for mu, _ in experts], [logvar for _, logvar in experts]

    def _encode(self, name: str, x: Tensor) -> Any:
        try:
            return self.encoders[name](x)
        except IndexError:  # an embedding's way to refuse a token; what the values should be, the modality knows
            self.modalities[name].check_values(name, x)
            raise

    def _decode(self, name: str, z: Tensor) -> Tensor:
        """Likelihood parameters [..., *param_shape] of latents [..., D], whatever leads, in one call of the decoder."""
        flat = z if z.dim() == 2 else z.reshape(-1, self.latent_dim)
        params = self.decoders[name](flat)
        if not isinstance(params, Tensor):
            raise TypeError(
                f"modality {name!r}: its decoder returned a {type(params).__name__}, expected a tensor of parameters"
            )
        expected = (flat.shape[0], *self.modalities[name].param_shape)
        if tuple(params.shape) != expected:
            raise ValueError(
                f"modality {name!r}: its decoder returned shape {list(params.shape)}, expected {list(expected)}"
            )
        return params if z.dim() == 2 else params.reshape(*z.shape[:-1], *expected[1:])

    def _score(self, batch: Batch, name: str, z: Tensor) -> Tensor:
        """log p(x_m | z) of one modality: z [..., B, D] -> [..., B], 0 where the row lacks it."""
        params = self._decode(name, z)
        return self.modalities[name].log_likelihood(batch.data[name], params, batch.observed[name])

    def _weighted(self, log_likelihood: Mapping[str, Tensor]) -> Tensor:
        """The sum of the modalities' log-likelihoods with their weights in the loss."""
        return sum((self.likelihood_weights[name] * ll for name, ll in log_likelihood.items()), start=self._zero)

    def _names(self, to: str | Sequence[str] | None) -> list[str]:
        names = list(self.modalities) if to is None else [to] if isinstance(to, str) else list(to)
        for name in names:
            if name not in self.modalities:
                raise ValueError(f"to names the modality {name!r}, expected some of {list(self.modalities)}")
        return names

    # --- files --------------------------------------------------------------------------------------------------------

    def options(self) -> dict[str, Any]:
        """The keyword arguments of the constructor, as JSON; a model with more of them adds them here."""
        return {"beta": self.beta, "likelihood_weights": dict(self.likelihood_weights)}

    def config(self) -> dict[str, Any]:
        """Everything but the weights, as JSON; custom networks are noted, not described."""
        return {
            "format": checkpoint.FORMAT,
            "schema_version": checkpoint.SCHEMA_VERSION,
            "model": type(self).__name__,
            "latent_dim": self.latent_dim,
            "dtype": str(self.dtype).removeprefix("torch."),
            "modalities": {name: modality.config() for name, modality in self.modalities.items()},
            "options": self.options(),
        }

    def save(self, folder: str | os.PathLike) -> Path:
        """Write ``config.json`` and ``model.safetensors`` into a folder, each atomically. No pickled code."""
        return checkpoint.save(self, folder)

    @classmethod
    def load(
        cls: type[Self],
        folder: str | os.PathLike,
        encoders: Mapping[str, nn.Module] | None = None,
        decoders: Mapping[str, nn.Module] | None = None,
    ) -> Self:
        """A saved model. ``MultimodalVAE.load`` takes any model, ``MoPoE.load`` only a MoPoE.

        Args:
            encoders, decoders: for every modality saved with a custom network, a module of the same structure.

        Raises:
            ValueError: not a model folder, damaged, of another model, or custom networks missing.
        """
        return checkpoint.load(cls, folder, encoders or {}, decoders or {})


def mean(values: Tensor) -> Tensor:
    """Mean over rows; 0, not NaN, if there are none."""
    return values.sum() / max(values.shape[0], 1)


def _gaussian(name: str, output: Any, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    pair = isinstance(output, (tuple, list)) and len(output) == 2 and all(isinstance(t, Tensor) for t in output)
    if not pair:
        raise TypeError(f"modality {name!r}: its encoder returned {_describe(output)}, expected (mu, logvar)")
    for what, value in zip(("mu", "logvar"), output, strict=True):
        if tuple(value.shape) != shape:
            raise ValueError(
                f"modality {name!r}: its encoder returned {what} of shape {list(value.shape)}, expected "
                f"[B, latent_dim] = {list(shape)}"
            )
    return output[0], output[1]


def _describe(output: Any) -> str:
    if isinstance(output, (tuple, list)):
        return f"a {type(output).__name__} of {len(output)} ({', '.join(type(o).__name__ for o in output)})"
    return f"a {type(output).__name__}"


_RESERVED = {"mask"}  # training data carries its masks under this key


def _check_modalities(modalities: Any) -> None:
    if not isinstance(modalities, Mapping) or not modalities:
        raise ValueError(f"modalities is {modalities!r}, expected a dict of at least one Modality by name")
    taken = nn.ModuleDict()  # an instance: some of its attributes are not the class's
    for name, modality in modalities.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise ValueError(f"modality name {name!r}: expected letters, digits, '_' and '-' only")
        if name in _RESERVED or hasattr(taken, name):
            raise ValueError(f"modality name {name!r} is reserved, expected another one")
        if not isinstance(modality, Modality):
            raise TypeError(f"modality {name!r} is a {type(modality).__name__}, expected a Modality")


def _number(what: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{what} is a {type(value).__name__}, expected a number")
    if not 0 <= value < math.inf:
        raise ValueError(f"{what} is {value}, expected a finite number, 0 or more")
    return float(value)


def _weights(weights: Any, modalities: Mapping[str, Modality]) -> dict[str, float]:
    if weights == "none":
        return dict.fromkeys(modalities, 1.0)
    if weights == "dimension":
        largest = max(m.size for m in modalities.values())
        return {name: largest / m.size for name, m in modalities.items()}
    if not isinstance(weights, Mapping) or set(weights) != set(modalities):
        raise ValueError(
            f"likelihood_weights is {weights!r}, expected 'none', 'dimension' or a number by name of {list(modalities)}"
        )
    return {name: _number(f"likelihood weight of modality {name!r}", weights[name]) for name in modalities}
