"""What all multimodal VAEs share: encode every modality once, fuse, decode, and estimate likelihoods."""

from __future__ import annotations

import math
import os
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mmvae_fast import functional
from mmvae_fast._english import with_article
from mmvae_fast.modalities import Modality
from mmvae_fast.models import checkpoint, likelihood
from mmvae_fast.models.batch import Batch, Mask, blank_missing, check_batch, hide
from mmvae_fast.models.experts import Experts
from mmvae_fast.models.hierarchy import log_density_at, noise
from mmvae_fast.models.outputs import MixturePosterior, Output, Posterior
from mmvae_fast.models.priors import StandardNormal
from mmvae_fast.models.seeds import branch
from mmvae_fast.models.trainable import Trainable
from mmvae_fast.models.weights import LikelihoodWeights
from mmvae_fast.reference import philox_uniform, seed_tensor

Latents = Tensor | Mapping[str, Tensor]
Self = TypeVar("Self", bound="MultimodalVAE")


class MultimodalVAE(Trainable):
    """Base of the models: a fusion rule (``fusion``) and an objective (:meth:`objective`) over named modalities.

    A *batch* is a dict of tensors by modality; a missing key means missing in every row. A *mask* says what is
    observed where a row lacks something: None (everything in the batch), a dict of bool [B] by modality, or one bool
    [B, M] with columns in modality order. Missing data may hold anything, NaN included. A row with nothing observed is
    legal: its posterior is the prior.

    Args:
        modalities: by name; their order is that of the experts and of the columns of a mask.
        latent_dim: D.
        beta: weight of the KL divergence in the loss.
        likelihood_weights: weights of the modalities' log-likelihoods in the loss: "none" (all 1), "dimension" (size
            of the largest modality over its own, so that all weigh about the same), "learned", or numbers by modality.
            See :class:`mmvae_fast.models.weights.LikelihoodWeights`.
        free_bits: so many nats of a KL divergence (the mean over rows) cost nothing: max(KL, free_bits) instead of KL
            in the loss (Kingma et al. 2016, with the latent as one group). Importance-weighted bounds (IWAE, MMVAE,
            MMVAE+, CMVAE) have no such term and refuse it.
        modality_dropout: in training, each observed modality of a row is taken for missing with this probability, but
            never all that a row has (Neverova et al. 2016); also from the likelihoods of the loss.
    """

    stages = 1
    """How many the training has; see :class:`mmvae_fast.models.joint.TwoStageVAE`."""
    stage = 1

    def start_stage(self, stage: int) -> None:
        """Go on to a stage of the training, counted from 1."""
        if stage != 1:
            raise ValueError(f"stage is {stage!r}, but {with_article(type(self).__name__)} has only one")

    # what a model with private latents has: encoders give, and decoders take, so many dimensions more
    private_dims: dict[str, int]
    # modalities that every likelihood is conditional on
    always_given: Sequence[str] = ()
    # whether there is a prior to sample, and a density log p(x)
    generative: bool = True
    # of what encoders give and decoders take, private latents included
    network_dims: dict[str, int]
    prior: Any  # one of mmvae_fast.models.priors, and by modality of the private latents
    private_priors: Any

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        latent_dim: int,
        *,
        beta: float = 1.0,
        likelihood_weights: str | Mapping[str, float] = "none",
        free_bits: float = 0.0,
        modality_dropout: float = 0.0,
        _private_dim: int | Mapping[str, int] = 0,
        _modality_dim: int | Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(modalities)
        if type(latent_dim) is not int or latent_dim < 1:
            raise ValueError(f"latent_dim is {latent_dim!r}, expected a positive integer")
        self.latent_dim = latent_dim
        self.private_dims = _private_dims(_private_dim, self.modalities)
        self.beta = number("beta", beta)
        self.free_bits = number("free_bits", free_bits)
        self.modality_dropout = below_one("modality_dropout", modality_dropout)
        self.likelihood_weights = LikelihoodWeights(likelihood_weights, self.modalities)
        sizes = {name: latent_dim + self.private_dims[name] for name in modalities}
        if _modality_dim is not None:  # latents of their own below the shared one
            sizes = _private_dims(_modality_dim, self.modalities, "modality_dim", least=1)
        self.network_dims = sizes
        self.encoders = nn.ModuleDict({name: m.encoder_for(sizes[name]) for name, m in modalities.items()})
        self.decoders = nn.ModuleDict({name: m.decoder_for(sizes[name]) for name, m in modalities.items()})
        self.prior = StandardNormal(latent_dim)
        self.private_priors = nn.ModuleDict({name: StandardNormal(p) for name, p in self.private_dims.items() if p})
        self.fusion = self.make_fusion()

    # --- the two things that make a model -----------------------------------------------------------------------------

    @abstractmethod
    def make_fusion(self) -> nn.Module:
        """One of :mod:`mmvae_fast.models.fusion`; called once, when the model is made."""

    @abstractmethod
    def objective(self, batch: Batch, experts: Experts, *, beta: float | Tensor, seed: int | Tensor | None) -> Output:
        """The training loss of a checked batch and its experts."""

    def fuse(self, mus: Sequence[Tensor], logvars: Sequence[Tensor], mask: Tensor) -> Posterior | MixturePosterior:
        """The posterior of every row from M experts, each [B, D], and what is observed, bool [B, M]."""
        return self.fusion(mus, logvars, mask)

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
            seed: of the noise; None draws one from torch's generator. With
                :func:`mmvae_fast.functional.row_seed` a part of some rows gets the noise it has among all of them, here
                and wherever a model takes a seed.

        Returns:
            Output(loss, elbo, kl, log_likelihood): means over rows, nats; 0 for an empty batch.

        Raises:
            ValueError, TypeError: naming the modality, what came and what was expected.
        """
        checked = self._check(batch, mask)
        if self.training and self.modality_dropout > 0:
            seed = seed_tensor(seed, device=self.device)
            checked = self._dropped(checked, branch(seed, -2))
        experts = self._training_experts(checked)
        return self.objective(checked, experts, beta=self.beta if beta is None else beta, seed=seed)

    # --- inference ----------------------------------------------------------------------------------------------------

    def encode(self, batch: Mapping[str, Tensor], mask: Mask = None) -> Posterior | MixturePosterior:
        """q(z | what is observed): Posterior(mu, logvar), each [B, D]; of the mixtures, a MixturePosterior."""
        checked = self._check(batch, mask)
        return self.posterior(checked, self._experts(checked))

    def encode_experts(
        self, batch: Mapping[str, Tensor], mask: Mask = None
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Every modality's own posterior, before fusion.

        Returns:
            (mus, logvars, mask): M tensors [B, D] each, and bool [B, M]. The encoder of a modality that is not in the
            batch does not run; its expert is zeros, masked out.
        """
        experts = self._experts(self._check(batch, mask))
        return experts.mu, experts.logvar, experts.mask

    def encode_private(self, batch: Mapping[str, Tensor], mask: Mask = None) -> dict[str, Posterior | MixturePosterior]:
        """q(w_m | x_m) of every modality with a private latent, by name: [B, P] each, as :meth:`encode` gives that of
        the shared one. Where a row lacks the modality it is the prior; without private latents the dict is empty."""
        names = [name for name, p in self.private_dims.items() if p]
        checked = self._check(batch, mask)
        experts = self._experts(checked) if names else None
        return {} if experts is None else {name: self._private_posterior(name, experts) for name in names}

    def decode(self, z: Tensor, to: str | Sequence[str] | None = None, *, params: bool = False) -> dict[str, Tensor]:
        """Decode latents z [..., D] into some modalities (default: all).

        A modality with a private latent of P dimensions also takes z [..., D + P]; without it, its prior's mean.

        Returns:
            by modality, predictions in data space [..., *shape], or with ``params`` the parameters of the likelihood
            [..., *param_shape].
        """
        decode = self._decode if params else self._predict
        return {name: decode(name, self._latent_for(name, z)) for name in self._names(to)}

    @torch.no_grad()
    def reconstruct(
        self,
        batch: Mapping[str, Tensor],
        mask: Mask = None,
        to: str | Sequence[str] | None = None,
        *,
        seed: int | Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Decode the posterior's mean (of a mixture, its :attr:`~MixturePosterior.point`) into some modalities
        (default: all, observed or not).

        Private latents are their posterior's mean too; of a modality that a row lacks, their prior's mean, or with a
        ``seed`` a draw of their prior.
        """
        checked = self._check(batch, mask)
        experts = self._experts(checked)
        z = self.posterior(checked, experts).point
        if seed is not None:
            seed = seed_tensor(seed, device=self.device)
        observed = checked.observed
        latents = {name: self.with_private(name, z, experts, observed.get(name), seed) for name in self._names(to)}
        return {name: self._predict(name, of) for name, of in latents.items()}

    @torch.no_grad()
    def translate(
        self, batch: Mapping[str, Tensor], to: str, mask: Mask = None, *, seed: int | Tensor | None = None
    ) -> Tensor:
        """One modality from whatever is in the batch: the posterior mean decoded, [B, *shape]; see
        :meth:`reconstruct`."""
        return self.reconstruct(batch, mask, to=[to], seed=seed)[to]

    @torch.no_grad()
    def sample(
        self,
        n: int | None = None,
        *,
        seed: int | Tensor | None = None,
        to: str | Sequence[str] | None = None,
        z: Tensor | None = None,
        prior: Any = None,
    ) -> dict[str, Tensor]:
        """Generate ``n`` samples of the prior, or from your own latents ``z`` [..., D], decoded.

        The samples are the rows of the noise: ``seed=row_seed(s, 16)`` goes on after the first 16 of ``seed=s``.
        ``prior``: draw from it instead of the model's own: anything with ``sample(n, seed)`` -> [n, D], such as
        :func:`mmvae_fast.models.samplers.fit_sampler` makes.
        """
        if (n is None) == (z is None):
            raise ValueError("sample: pass either n, the number of prior samples, or z, latents to decode")
        names = self._names(to)
        if z is not None:
            return self.decode(z, to)
        if type(n) is not int or n < 0:
            raise ValueError(f"sample: n is {n!r}, expected 0 or more")
        seed = seed_tensor(seed, device=self.device)
        z = (self.prior if prior is None else prior).sample(n, seed).to(self.dtype)
        if tuple(z.shape) != (n, self.latent_dim):
            raise ValueError(
                f"sample: prior drew latents [n, D] = {list(z.shape)}, expected {[n, self.latent_dim]} like the model's"
            )
        latents = {name: self.with_prior_private(name, z, seed) for name in names}
        return {name: self._predict(name, of) for name, of in latents.items()}

    @torch.no_grad()
    def log_likelihood(
        self,
        batch: Mapping[str, Tensor],
        mask: Mask = None,
        n_samples: int = 1000,
        seed: int | Tensor | None = None,
        chunk: int = 100,
        *,
        given: str | Sequence[str] | None = None,
    ) -> Tensor:
        """Importance-weighted estimate of the joint log p(x) of each row's observed modalities, in nats: [B].

        log (1/K) sum_k p(x | z_k) p(z_k) / q(z_k), z_k ~ q = the posterior of :meth:`encode`. A lower bound in
        expectation, tighter with every sample.

        Args:
            n_samples: K.
            chunk: how many samples pass the decoders, and the networks between latents, at a time; changes memory, not
                the result.
            seed: see :meth:`forward`.
            given: modalities to condition on: log p(x) - log p(x_given), the log-likelihood of the others given these,
                from two estimates, each with its own posterior. No bound, but right in the limit.

        Source: Burda, Grosse & Salakhutdinov, Importance Weighted Autoencoders, 2016, equation 8.
        """
        if isinstance(mask, int):
            raise TypeError(
                f"log_likelihood: mask, the second argument, is {mask!r}, expected a bool tensor [B, M]; pass the "
                f"number of samples by its name: n_samples={mask!r}"
            )
        positive("log_likelihood: n_samples", n_samples)
        positive("log_likelihood: chunk", chunk)
        checked = self._check(batch, mask)
        seed = seed_tensor(seed, device=self.device)
        joint = likelihood.log_marginal(self, checked, n_samples, seed, chunk)
        if given is None:
            return joint
        condition = checked.only([*self._names(given, "given"), *self.always_given])
        if not condition.data:
            return joint
        return joint - likelihood.log_marginal(self, condition, n_samples, branch(seed, -3), chunk)

    # --- building blocks for objectives -------------------------------------------------------------------------------

    def _check(self, batch: Mapping[str, Tensor], mask: Mask) -> Batch:
        return check_batch(self.modalities, batch, mask, dtype=self.dtype, device=self.device)

    def posterior(self, batch: Batch, experts: Experts) -> Posterior | MixturePosterior:
        """q(z | x) of the shared latent; models whose posterior needs more than the experts have their own."""
        return self.fuse(experts.mu, experts.logvar, experts.mask)

    def _dropped(self, batch: Batch, seed: Tensor) -> Batch:
        """Modality dropout: [B, M] uniforms decide; a row that would lose all that it has keeps it."""
        u = philox_uniform(seed, batch.rows, len(self.modalities), device=self.device)
        kept = batch.mask & (u >= self.modality_dropout)
        return hide(batch, torch.where(kept.any(1, keepdim=True), kept, batch.mask))

    def _experts(self, batch: Batch) -> Experts:
        """Run the encoder of every modality in the batch, once."""
        present = {
            name: _gaussian(name, self._encode(name, x), (batch.rows, self.network_dims[name]))
            for name, x in batch.data.items()
        }
        first, (like, _) = next(iter(present.items()))
        for name, expert in present.items():
            for what, value in zip(("mu", "logvar"), expert, strict=True):
                if value.dtype != like.dtype:
                    raise TypeError(
                        f"modality {name!r}: its encoder returned {what} in {value.dtype}, expected {like.dtype} as "
                        f"modality {first!r} has its mu"
                    )
        mus, logvars, private = [], [], {}
        for name, size in self.network_dims.items():
            shared = size - self.private_dims[name]
            if name not in present:
                # not one tensor for all that is absent: torch.compile refuses functions that take the same one twice
                mu, logvar = (like.new_zeros(batch.rows, shared) for _ in range(2))
            else:
                mu, logvar = (blank_missing(t, batch.observed[name]) for t in present[name])
                if shared < size:
                    private[name] = Posterior(mu[:, shared:], logvar[:, shared:])
                    mu, logvar = mu[:, :shared], logvar[:, :shared]
            mus.append(mu)
            logvars.append(logvar)
        return Experts(mus, logvars, batch.mask, private)

    def _training_experts(self, batch: Batch) -> Experts:
        """What :meth:`objective` gets; a model that has no use for them there runs no encoder."""
        return self._experts(batch)

    def _encode(self, name: str, x: Tensor, networks: nn.ModuleDict | None = None) -> Any:
        try:
            return (self.encoders if networks is None else networks)[name](x)
        except IndexError:  # an embedding's way to refuse a token; what the values should be, the modality knows
            self.modalities[name].check_values(name, x)
            raise

    def _predict(self, name: str, z: Tensor) -> Tensor:
        """Predictions in data space [..., *shape] of latents [..., D + P], whatever leads."""
        modality = self.modalities[name]
        if not modality.autoregressive:
            return modality.predict(self._decode(name, z))
        x = modality.generate(self.decoders[name], z.reshape(-1, z.shape[-1]), **modality.sampling)
        return x.reshape(*z.shape[:-1], *modality.shape)

    def _decode(self, name: str, z: Tensor, x: Tensor | None = None) -> Tensor:
        """Likelihood parameters [..., *param_shape] of latents [..., D + P], whatever leads.

        An autoregressive decoder sees x [B, *shape], too, whose parameters they are; z is then [..., B, D + P].

        In one decoder call, but for many samples of a convolutional decoder on a CPU: the activations of all of them
        would be memory that the system hands out page by page, which took as long as the convolutions. They go in
        parts, whole batches at a time; unless the decoder normalises over all the rows it is given.
        """
        flat = z if z.dim() == 2 else z.reshape(-1, z.shape[-1])
        rows = z.shape[-2] if z.dim() > 2 else 0
        many = 0 < rows < _MANY_ROWS < flat.shape[0] and x is None
        if many and z.device.type == "cpu" and _may_split(self.decoders[name]):
            parts = [self._decode(name, part) for part in flat.split(_MANY_ROWS // rows * rows)]
            return torch.cat(parts).reshape(*z.shape[:-1], *self.modalities[name].param_shape)
        inputs = [flat]
        if self.modalities[name].autoregressive:
            if x is None:
                raise ValueError(
                    f"modality {name!r}: the parameters of an autoregressive likelihood are those of an x, not of z "
                    "alone; decode without params generates one"
                )
            inputs.append(x.expand(*z.shape[:-1], *x.shape[1:]).reshape(-1, *x.shape[1:]))
        params = self.decoders[name](*inputs)
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

    def score(self, batch: Batch, name: str, z: Tensor) -> Tensor:
        """log p(x_m | z) of one modality: z [..., B, D + P] -> [..., B], 0 where the row lacks it."""
        modality, x = self.modalities[name], batch.data[name]
        at_once = max(1, _MANY_ROWS // max(1, math.prod(z.shape[1:-1])))
        if modality.autoregressive and z.dim() > 2 and z.shape[0] > at_once and not torch.is_grad_enabled():
            # [..., B, length, vocabulary] of all samples at once would be gigabytes
            return torch.cat([self.score(batch, name, part) for part in z.split(at_once)])
        params = self._decode(name, z, x if modality.autoregressive else None)
        return modality.log_likelihood(x, params, batch.observed[name])

    def scored(self, batch: Batch) -> list[str]:
        """The modalities of a batch whose likelihoods count: all, unless the model takes some as given."""
        return list(batch.data)

    # With small networks the time of a step is the number of its operations: what every modality has goes through them
    # in one tensor, whose first dimension is the modalities that `scored` names.

    def scores(self, batch: Batch, z: Latents) -> Tensor:
        """:meth:`score` of every modality that is scored, [scored, ..., B]: z [..., B, D], or by modality
        [..., B, D + P]."""
        names = self.scored(batch)
        if not names:
            return self._zero.new_zeros(0, batch.rows)
        return torch.stack([self.score(batch, name, z if isinstance(z, Tensor) else z[name]) for name in names])

    def weighted(
        self,
        batch: Batch,
        log_likelihood: Tensor,
        average: Callable[[Tensor], Tensor] | None = None,
        weights: LikelihoodWeights | None = None,
    ) -> Tensor:
        """Log-likelihoods [scored, ..., B] as they enter the loss: each with its modality's weight, and what that costs
        if it is learned.

        Args:
            average: if they are no longer values by row, what made them of such, [scored, B] -> [scored, ...].
            weights: instead of the model's.
        """
        names, dims = self.scored(batch), log_likelihood.dim()

        def counted() -> Tensor:
            there = torch.stack([batch.mask[:, batch.order.index(name)] for name in names]).to(log_likelihood.dtype)
            if average is None:
                return there.reshape(len(names), *[1] * (dims - 2), batch.rows)
            there = average(there)
            return there.reshape(*there.shape, *[1] * (dims - there.dim()))

        return (weights or self.likelihood_weights)(names, log_likelihood, counted)

    def paid(self, kl: Tensor) -> Tensor:
        """A KL divergence (mean over rows) as it enters the loss, before beta: at least ``free_bits``."""
        return kl.clamp(min=self.free_bits) if self.free_bits > 0 else kl

    def elbo(self, batch: Batch, z: Latents, kl: Tensor, beta: float | Tensor) -> Output:
        """The negative ELBO of latents z [B, D] (or by modality) whose KL divergences are kl [B]."""
        ll, divergence = mean(self.scores(batch, z)), mean(kl)
        loss = beta * self.paid(divergence) - self.weighted(batch, ll, mean).sum()
        return self.output(batch, loss, divergence, ll)

    def output(self, batch: Batch, loss: Tensor, kl: Tensor, log_likelihood: Tensor) -> Output:
        """What a model returns, of log-likelihoods [scored]: the loss as it is, the rest for the record."""
        kl, ll = kl.detach(), log_likelihood.detach()
        return Output(loss, ll.sum() - kl, kl, dict(zip(self.scored(batch), ll.unbind(), strict=True)))

    def propose(self, batch: Batch, n_samples: int, seed: Tensor, chunk: int) -> tuple[Latents, Tensor]:
        """Latents to estimate log p(x) with: z [K, B, D] (or by modality [K, B, D + P]) from the posterior, and
        log p(z) - log q(z), [K, B]. A model with networks between its latents runs them on ``chunk`` samples at a
        time; the result does not depend on it."""
        experts = self._experts(batch)
        z, log_q = draw(self.proposal(batch, experts), n_samples, seed)
        log_weights = self.prior.log_prob(z) - log_q
        z = z.to(self.dtype)
        if not experts.private:
            return z, log_weights
        latents = {}
        for name in batch.data:
            latents[name] = z
            if name in experts.private:
                q_private, private_seed = experts.private[name], self._private_seed(seed, name)
                w, log_ratio = self._propose_private(q_private, name, n_samples, private_seed)
                observed = batch.observed[name]
                log_weights = log_weights + (log_ratio if observed is None else torch.where(observed, log_ratio, 0.0))
                latents[name] = torch.cat([z, w.to(z.dtype)], -1)
        return latents, log_weights

    def proposal(self, batch: Batch, experts: Experts) -> Posterior | MixturePosterior:
        """What :meth:`propose` draws from: the posterior, unless that has no density to divide by."""
        return self.posterior(batch, experts)

    def _propose_private(self, q: Posterior, name: str, n_samples: int, seed: Tensor) -> tuple[Tensor, Tensor]:
        """w [K, B, P] from a private posterior, and log p(w) - log q(w), [K, B]."""
        w, log_q = draw(q, n_samples, seed)
        return w, self.private_priors[name].log_prob(w) - log_q

    # --- private latents: none, unless a model has them -----------------------------------------------------------

    def sample_private(
        self, name: str, experts: Experts, seed: Tensor, n_samples: int | None = None
    ) -> functional.PoESample:
        """A draw of a modality's Gaussian private posterior and its KL divergence to N(0, I): z [B, P] or
        [n_samples, B, P], kl [B]; of its prior, with kl 0, where the modality is not observed."""
        q, m = experts.private[name], list(self.modalities).index(name)
        return functional.poe_sample_kl(
            [q.mu],
            [q.logvar],
            experts.mask[:, m : m + 1],
            prior=False,
            n_samples=n_samples,
            seed=self._private_seed(seed, name),
        )

    def _private_posterior(self, name: str, experts: Experts) -> Posterior | MixturePosterior:
        """A modality's private posterior, [B, P]; its prior where the modality is not observed."""
        mu, logvar, observed = self._private_expert(name, experts)
        return Posterior(torch.where(observed, mu, 0.0), torch.where(observed, logvar, 0.0))

    def _private_expert(self, name: str, experts: Experts) -> tuple[Tensor, Tensor, Tensor]:
        """(mu, logvar, observed): [B, P] each, whatever where not observed, and bool [B, 1]."""
        place = list(self.modalities).index(name)
        zero = experts.mu[place].new_zeros(experts.mask.shape[0], self.private_dims[name])
        mu, logvar = experts.private.get(name) or (zero, zero)
        return mu, logvar, experts.mask[:, place : place + 1]

    def with_private(
        self, name: str, z: Tensor, experts: Experts, observed: Tensor | None, seed: Tensor | None = None
    ) -> Tensor:
        """z [B, D] and the modality's private posterior mean, [B, D + P]; where it is not observed, its prior's mean,
        or with a seed a draw of its prior."""
        if not self.private_dims[name]:
            return z
        if seed is None:
            private = z.new_zeros(z.shape[0], self.private_dims[name])
        else:
            private = self.prior_private(name, z.shape[0], seed).to(z.dtype)
        if name in experts.private:
            mu = experts.private[name].mu
            private = mu if observed is None else torch.where(observed[:, None], mu, private)
        return torch.cat([z, private], -1)

    def with_prior_private(self, name: str, z: Tensor, seed: Tensor) -> Tensor:
        """z [N, D] and draws of the modality's private prior, [N, D + P]."""
        if not self.private_dims[name]:
            return z
        return torch.cat([z, self.prior_private(name, z.shape[0], seed).to(z.dtype)], -1)

    def prior_private(self, name: str, n: int, seed: Tensor) -> Tensor:
        """Draws of the modality's private prior, [n, P]."""
        return self.private_priors[name].sample(n, self._private_seed(seed, name))

    def _private_seed(self, seed: Tensor, name: str) -> Tensor:
        return branch(seed, 100_000 + list(self.modalities).index(name))

    def private_option(self) -> int | dict[str, int]:
        """``private_dim`` as an option: one number if it is the same for all."""
        sizes = set(self.private_dims.values())
        return sizes.pop() if len(sizes) == 1 else dict(self.private_dims)

    def _latent_for(self, name: str, z: Any) -> Tensor:
        """What the decoder of a modality takes, from what a caller gave."""
        d, p = self.latent_dim, self.private_dims[name]
        expected = f"[..., {d}]" + (f" or [..., {d + p}] with its private latent" if p else "")
        if not isinstance(z, Tensor):
            raise TypeError(f"z is a {type(z).__name__}, expected a tensor {expected}")
        if z.dim() < 1 or z.shape[-1] not in (d, d + p):
            raise ValueError(f"z has shape {list(z.shape)}, expected {expected}")
        if z.dtype != self.dtype and not (z.is_floating_point() and torch.is_autocast_enabled(z.device.type)):
            raise TypeError(f"z is {z.dtype}, expected {self.dtype} like the model; convert it with z.to({self.dtype})")
        return z if z.shape[-1] == d + p else torch.cat([z, z.new_zeros(*z.shape[:-1], p)], -1)

    def _names(self, to: str | Sequence[str] | None, what: str = "to") -> list[str]:
        names = list(self.modalities) if to is None else [to] if isinstance(to, str) else list(to)
        for name in names:
            if name not in self.modalities:
                raise ValueError(f"{what} names the modality {name!r}, expected some of {list(self.modalities)}")
        return names

    # --- files --------------------------------------------------------------------------------------------------------

    def options(self) -> dict[str, Any]:
        """The keyword arguments of the constructor, as JSON; a model with more of them adds them here."""
        return {
            "beta": self.beta,
            "likelihood_weights": self.likelihood_weights.option(),
            "free_bits": self.free_bits,
            "modality_dropout": self.modality_dropout,
        }

    def config(self) -> dict[str, Any]:
        """Everything but the weights, as JSON; custom networks are noted, or described by their import paths."""
        return {
            "format": checkpoint.FORMAT,
            "schema_version": checkpoint.SCHEMA_VERSION,
            "model": type(self).__name__,
            "latent_dim": self.latent_dim,
            "dtype": str(self.dtype).removeprefix("torch."),
            "modalities": {name: modality.config() for name, modality in self.modalities.items()},
            "options": self.options(),
        }

    @classmethod
    def load(
        cls: type[Self],
        folder: str | os.PathLike,
        encoders: Mapping[str, nn.Module] | None = None,
        decoders: Mapping[str, nn.Module] | None = None,
        *,
        allow_import: bool | str | Sequence[str] = False,
    ) -> Self:
        """A saved model, in training mode as every new one, whatever mode it was saved in: call ``eval()`` to serve it.

        ``MultimodalVAE.load`` takes any model, ``MoPoE.load`` only a MoPoE.

        Args:
            encoders, decoders: for every modality saved with a custom network, a module of the same structure.
            allow_import: import custom networks that were given by their import path: True, or only those in these
                packages (with all that is in them). Importing runs their code: allow what you trust.

        Raises:
            ValueError: not a model folder, damaged, of another model, custom networks missing, or their import not
                allowed or impossible.
        """
        return checkpoint.load(cls, folder, encoders or {}, decoders or {}, allow_import)


def draw(q: Posterior | MixturePosterior, n_samples: int, seed: Tensor) -> tuple[Tensor, Tensor]:
    """z ~ q, [K, B, D], and log q(z), [K, B]."""
    if not isinstance(q, Posterior):
        z = q.sample(n_samples, seed)
        return z, q.log_prob(z)
    # the same z as q.sample, with its noise at hand: a peaked posterior's cannot be had back from z - mu
    eps = noise(q.mu.shape[0], q.mu.shape[1], n_samples, seed, q.mu.dtype)
    return q.mu + torch.exp(0.5 * q.logvar) * eps, log_density_at(q, eps)


def mean(values: Tensor) -> Tensor:
    """Mean over rows, the last dimension: [..., B] -> [...]; 0, not NaN, if there are none."""
    return values.mean(-1) if values.shape[-1] else values.sum(-1)


_MANY_ROWS = 512


def _may_split(network: nn.Module) -> bool:
    """Whether a network has convolutions, and gives each row the same result whatever the other rows are."""
    parts = list(network.modules())
    if any(isinstance(p, nn.modules.batchnorm._BatchNorm) and (p.training or p.running_mean is None) for p in parts):
        return False
    return any(isinstance(part, nn.modules.conv._ConvNd) for part in parts)


def over_sources(values: Tensor, observed: Tensor) -> Tensor:
    """Mean over rows of the mean over their observed sources, [..., sources, B] and [sources, B]; a row without any
    counts 0."""
    return mean(torch.where(observed, values, 0.0).sum(-2) / observed.sum(0).clamp(min=1))


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


def positive(what: str, value: Any) -> int:
    """A whole number of 1 or more, checked."""
    if type(value) is not int or value < 1:
        raise ValueError(f"{what} is {value!r}, expected 1 or more")
    return value


def layer_sizes(what: str, sizes: Any, *, may_be_empty: bool = False) -> list[int]:
    """Positive integers, checked; at least one, unless it ``may_be_empty``."""
    valid = isinstance(sizes, Sequence) and all(type(n) is int and n > 0 for n in sizes)
    if not valid or not (sizes or may_be_empty):
        raise ValueError(f"{what} is {sizes!r}, expected {'' if may_be_empty else 'at least one '}positive integer")
    return list(sizes)


def number(what: str, value: Any) -> float:
    """A finite number of 0 or more, checked."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{what} is a {type(value).__name__}, expected a number")
    if not 0 <= value < math.inf:
        raise ValueError(f"{what} is {value}, expected a finite number, 0 or more")
    return float(value)


def below_one(what: str, value: Any) -> float:
    """A number from 0 to below 1, checked."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{what} is a {type(value).__name__}, expected a number")
    if not 0 <= value < 1:
        raise ValueError(f"{what} is {value}, expected 0 to below 1")
    return float(value)


def no_free_bits(model: MultimodalVAE) -> None:
    """What models whose bound weighs samples by log p - log q ask of their options."""
    if model.free_bits > 0:
        raise ValueError(
            f"free_bits is {model.free_bits}, expected 0: the importance-weighted bound of {type(model).__name__} has "
            "no KL divergence to hold; beta and its warm-up weigh the latents' cost"
        )


def _private_dims(
    dims: int | Mapping[str, int], modalities: Mapping[str, Modality], what: str = "private_dim", least: int = 0
) -> dict[str, int]:
    if not isinstance(dims, Mapping):
        dims = dict.fromkeys(modalities, dims)
    if set(dims) != set(modalities):
        raise ValueError(f"{what} names {sorted(dims)}, expected a number for each of {list(modalities)}")
    for name, value in dims.items():
        if type(value) is not int or value < least:
            raise ValueError(f"{what} of modality {name!r} is {value!r}, expected an integer, {least} or more")
    return {name: dims[name] for name in modalities}
