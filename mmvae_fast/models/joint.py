"""Joint encoders q(z | x_1 .. x_M), and what the models that have one share.

What a paper's joint encoder does where a modality is missing is ours: it counts nothing (see :class:`Pool`).
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmvae_fast import functional
from mmvae_fast.modalities import Modality
from mmvae_fast.modalities.networks import mlp
from mmvae_fast.models import fusion
from mmvae_fast.models.base import MultimodalVAE, _gaussian, layer_sizes
from mmvae_fast.models.batch import Batch
from mmvae_fast.models.experts import Experts
from mmvae_fast.models.outputs import Output, Posterior


class Pool(nn.Module):
    """Features of modalities [B, F] -> [B, N]: a perceptron over those that a row has, zeros if it has none.

    The first layer is a sum of one linear layer a modality, over those observed: the layer of all features in a row,
    zeros where they are missing, and what is observed appended (its weights are the layers' biases). A modality that is
    absent gets no gradient, and their order does not matter.

    Args:
        names: the modalities.
        size_in: F.
        hidden: sizes of the hidden layers.
        size_out: N.
    """

    def __init__(self, names: Iterable[str], size_in: int, hidden: Sequence[int], size_out: int) -> None:
        super().__init__()
        self.size_out = size_out
        self.inputs = nn.ModuleDict({name: nn.Linear(size_in, hidden[0]) for name in names})
        self.layers = nn.Sequential(nn.ReLU(), mlp([*hidden, size_out]))

    def forward(self, features: Mapping[str, Tensor], batch: Batch) -> Tensor:
        total, some = None, batch.mask.new_zeros(batch.rows)
        for name, x in features.items():
            observed = batch.mask[:, batch.order.index(name)]
            part = torch.where(observed[:, None], self.inputs[name](x), 0.0)
            total, some = part if total is None else total + part, some | observed
        if total is None:
            return next(self.parameters()).new_zeros(batch.rows, self.size_out)
        return torch.where(some[:, None], self.layers(total), 0.0)


class JointEncoder(nn.Module):
    """q(z | x_1 .. x_M): a feature network for each modality, and a :class:`Pool` of the features.

    The feature networks are like the modalities' encoders, whose mu and logvar are the features: what
    ``Modality.encoder_for`` gives, copied, so that a custom encoder has a second set of weights here. ``own_features``
    False: there are none, and the features are the experts that the model's encoders give.
    """

    def __init__(
        self, modalities: Mapping[str, Modality], latent_dim: int, hidden: Sequence[int], own_features: bool = True
    ) -> None:
        super().__init__()
        # one copy of all: networks that are tied stay so
        networks = copy.deepcopy({n: m.encoder_for(latent_dim) for n, m in modalities.items()} if own_features else {})
        self.encoders = nn.ModuleDict(networks)
        self.pool = Pool(modalities, 2 * latent_dim, hidden, 2 * latent_dim)

    def forward(self, features: Mapping[str, tuple[Tensor, Tensor]], batch: Batch) -> Posterior:
        """From each modality's pair of features [B, D]; a row without any gets N(0, I)."""
        pooled = self.pool({name: torch.cat(pair, -1) for name, pair in features.items()}, batch)
        return Posterior(*pooled.chunk(2, -1))


class JointVAE(MultimodalVAE):
    """Base of the models with a joint encoder q_J, ``self.joint``, besides the unimodal ones.

    The posterior of a row is q_J where all modalities are observed, as in the papers; else the product of the experts
    that are, without a prior expert: one alone is itself.

    Args:
        joint_hidden: sizes of the hidden layers between the joint encoder's features and q_J.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        latent_dim: int,
        *,
        joint_hidden: Sequence[int] = (256, 256),
        _own_features: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(modalities, latent_dim, **options)
        self.joint_hidden = layer_sizes("joint_hidden", joint_hidden)
        self.joint = JointEncoder(self.modalities, latent_dim, self.joint_hidden, _own_features)

    def options(self) -> dict[str, Any]:
        return {**super().options(), "joint_hidden": self.joint_hidden}

    def make_fusion(self) -> nn.Module:
        return fusion.Product(prior=False)

    def joint_posterior(self, batch: Batch, experts: Experts) -> Posterior:
        """q_J(z | what is observed), from a run of the joint encoder's networks."""
        if self.joint.encoders:
            networks, shape = self.joint.encoders, (batch.rows, self.latent_dim)
            own = {name: _gaussian(name, self._encode(name, x, networks), shape) for name, x in batch.data.items()}
            return self.joint(own, batch)
        pairs = dict(zip(self.modalities, zip(experts.mu, experts.logvar, strict=True), strict=True))
        return self.joint({name: pairs[name] for name in batch.data}, batch)

    def posterior(self, batch: Batch, experts: Experts) -> Any:
        if len(batch.data) < len(self.modalities):  # no row is complete
            return self.fuse(experts.mu, experts.logvar, experts.mask)
        joint = self.joint_posterior(batch, experts)
        if all(observed is None for observed in batch.observed.values()):
            return joint
        product, complete = self.fuse(experts.mu, experts.logvar, experts.mask), batch.mask.all(1, keepdim=True)
        return Posterior(
            torch.where(complete, joint.mu, product.mu), torch.where(complete, joint.logvar, product.logvar)
        )


class TwoStageVAE(JointVAE):
    """Base of the models that train the joint encoder and the decoders first, and the unimodal encoders afterwards.

    In the first stage the loss is that of the joint ELBO, the mean over rows of
    -sum_m w_m log p(x_m | z) + beta KL(q_J || p), z ~ q_J, and the unimodal encoders do not run. In the second one all
    that was trained is frozen (and in eval mode), and :meth:`second_objective` trains the rest.
    ``mmvae_fast.training.fit`` does both; without it, call :meth:`start_stage`. A saved model is in the stage that it
    was in.
    """

    stages = 2

    def __init__(self, modalities: Mapping[str, Modality], latent_dim: int, **options: Any) -> None:
        super().__init__(modalities, latent_dim, **options)
        self.stage = 1
        self._frozen: list[str] = []

    def start_stage(self, stage: int) -> None:
        """Freeze what the stage does not train; thaw what an earlier call froze."""
        if stage not in (1, 2):
            raise ValueError(f"stage is {stage!r}, expected 1 or 2")
        own, before, self.stage = dict(self.named_parameters()), self.stage, stage
        for name in self._frozen:
            own[name].requires_grad_(True)
        first = {id(p) for module in self._first_trained() for p in module.parameters()} if stage == 2 else set()
        self._frozen = [name for name, p in own.items() if id(p) in first and p.requires_grad]
        for name in self._frozen:
            own[name].requires_grad_(False)
        if 2 in (before, stage):
            for module in self._first_trained():
                module.train(self.training and stage == 1)

    def _first_trained(self) -> list[nn.Module]:
        return [self.joint, self.decoders, self.likelihood_weights]

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        if getattr(self, "stage", 1) == 2:
            for module in self._first_trained():
                module.eval()
        return self

    # the stage goes where the weights go

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.stage)

    def set_extra_state(self, state: Tensor) -> None:
        self.start_stage(int(state))

    def _training_experts(self, batch: Batch) -> Experts:
        return Experts([], [], batch.mask) if self.stage == 1 else super()._training_experts(batch)

    def objective(self, batch: Batch, experts: Experts, *, beta: float | Tensor, seed: int | Tensor | None) -> Output:
        if self.stage == 2:
            return self.second_objective(batch, experts, beta=beta, seed=seed)
        q = self.joint_posterior(batch, experts)
        drawn = functional.poe_sample_kl([q.mu], [q.logvar], prior=False, seed=seed)
        return self.elbo(batch, drawn.z, drawn.kl, beta)

    @abstractmethod
    def second_objective(
        self, batch: Batch, experts: Experts, *, beta: float | Tensor, seed: int | Tensor | None
    ) -> Output:
        """The loss that trains the unimodal encoders."""
