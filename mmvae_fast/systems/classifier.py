"""The fusion classifier: a branch for each modality, one softmax over all of them, and a multimodal VAE beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmvae_fast._lazy import require
from mmvae_fast.modalities import Modality
from mmvae_fast.models import MODELS, MultimodalVAE
from mmvae_fast.models.base import below_one, layer_sizes, number
from mmvae_fast.models.batch import Batch, Mask
from mmvae_fast.models.experts import Experts
from mmvae_fast.models.seeds import branch
from mmvae_fast.reference import philox_uniform, seed_tensor
from mmvae_fast.systems.autoencoder import Autoencoder
from mmvae_fast.systems.base import Sums, System, above_zero, adam
from mmvae_fast.systems.gan import check_labels, one_of
from mmvae_fast.training.data import split_mask

MISSING = -1  # a label nobody gave


class FusionClassifier(System):
    """p(class | whatever of the modalities a row has), learned from labelled and unlabelled rows.

    loss = mean over labelled rows of -log p(label | x) + generative_weight / size * loss of the VAE on all rows
    + consistency_weight * mean over unlabelled rows of -1[p(c | x) >= confidence] log p(c | part of x), where size is
    the number of numbers in a full row, so that a nat of cross-entropy weighs as much as a nat per number, c is the
    likeliest class given all that the row has, and the last mean is over the rows whose part is not all of it.

    Each encoder's mean goes into the softmax head side by side with the others', a learned embedding in the place of
    what a row lacks. (A product of experts would weigh the branches by what they know of the *data*; here the head
    learns what each tells of the class.) In training the head answers twice, with all that a row has and without
    modalities left out at random, and the cross-entropy is the mean of both; the encoders run once, and the VAE sees
    everything (with a modality dropout of its own, neither).

    In a row without a label the first answer, where it is sure, is the label of the second: as FixMatch has it (Sohn et
    al., NeurIPS 2020, equation 4, https://arxiv.org/abs/2001.07685), with a modality left out in place of the strong
    augmentation. So what all modalities together know of unlabelled rows reaches each of them alone.

    Args:
        modalities: one or more by name.
        classes: their names, or how many (then named "0", "1", ...).
        latent_dim: of every branch and of the VAE.
        model: the multimodal VAE, by its name in :data:`mmvae_fast.models.MODELS` or "Autoencoder"; one that trains in
            one stage. ``model_options`` go to it; a "modality_dropout" among them hides modalities from the VAE, too.
        generative_weight: 0 trains the branches and the head alone.
        hidden: sizes of the head's hidden layers.
        modality_dropout: probability with which a modality is left out of the head's second answer, but never all
            that a row has; 0 for one answer only.
        consistency_weight: of the last term; 0 leaves it out.
        confidence: how probable a class has to be to count as the label.
        lr: of Adam.
        gradient_clip: largest norm of the gradient, or None.

    The training data holds the modalities, a mask if need be, and "label": int64 [N], -1 where there is none.
    :func:`mmvae_fast.systems.fit` reports "loss" (of the means of its parts over the epoch), "cross_entropy" and
    "accuracy" (of labelled rows), "generative" (the VAE's loss in nats), and of unlabelled rows that lost a modality
    "consistency" and "confident" (the share of sure answers).
    """

    validated = True

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        classes: int | Sequence[str],
        latent_dim: int = 64,
        *,
        model: str = "MoPoE",
        model_options: Mapping[str, Any] | None = None,
        generative_weight: float = 1.0,
        hidden: Sequence[int] = (128,),
        modality_dropout: float = 0.5,
        consistency_weight: float = 1.0,
        confidence: float = 0.95,
        lr: float = 1e-3,
        gradient_clip: float | None = None,
    ) -> None:
        super().__init__(modalities)
        self.classes = _class_names(classes)
        known: dict[str, type[MultimodalVAE]] = {**MODELS, "Autoencoder": Autoencoder}
        cls = known[one_of("model", model, list(known))]
        self.model_options = dict(model_options or {})
        self.model = cls(modalities, latent_dim, **self.model_options)
        if self.model.stages > 1:
            raise ValueError(f"model is {model!r}, which trains in {self.model.stages} stages; expected one with one")
        self.latent_dim = latent_dim
        self.generative_weight = number("generative_weight", generative_weight)
        self.modality_dropout = below_one("modality_dropout", modality_dropout)
        self.consistency_weight = number("consistency_weight", consistency_weight)
        self.confidence = number("confidence", confidence)
        if self.confidence > 1:
            raise ValueError(f"confidence is {confidence}, expected a probability, 0 to 1")
        self.hidden = layer_sizes("hidden", hidden, may_be_empty=True)
        self.lr = above_zero("lr", lr)
        self.gradient_clip = None if gradient_clip is None else above_zero("gradient_clip", gradient_clip)
        widths = [dim - self.model.private_dims[n] for n, dim in self.model.network_dims.items()]
        self.missing = nn.ParameterList(nn.Parameter(torch.zeros(width)) for width in widths)
        sizes = [sum(widths), *self.hidden, len(self.classes)]
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(sizes):
            layers += [nn.Linear(n_in, n_out), nn.ReLU()]
        self.head = nn.Sequential(*layers[:-1])
        self._size = sum(m.size for m in self.modalities.values())

    @property
    def extras(self) -> tuple[str, ...]:
        return ("label",)

    def options(self) -> dict[str, Any]:
        return {
            "classes": list(self.classes),
            "latent_dim": self.latent_dim,
            "model": type(self.model).__name__,
            "model_options": self.model_options,
            "generative_weight": self.generative_weight,
            "hidden": self.hidden,
            "modality_dropout": self.modality_dropout,
            "consistency_weight": self.consistency_weight,
            "confidence": self.confidence,
            "lr": self.lr,
            "gradient_clip": self.gradient_clip,
        }

    # --- training -----------------------------------------------------------------------------------------------------

    def optimizer(self) -> torch.optim.Optimizer:
        return adam([{"params": list(self.parameters()), "lr": self.lr}])

    def step(self, batch: Mapping[str, Any], optimizer: torch.optim.Optimizer, seed: int) -> Sums:
        loss, sums = self._losses(batch, seed)
        optimizer.zero_grad(set_to_none=True)
        if loss.requires_grad:
            loss.backward()
        if self.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.parameters(), self.gradient_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return sums

    def evaluate(self, batch: Mapping[str, Any], seed: int) -> Sums:
        return self._losses(batch, seed)[1]

    def _losses(self, batch: Mapping[str, Any], seed: int) -> tuple[Tensor, Sums]:
        inputs, mask = split_mask({key: value for key, value in batch.items() if key != "label"})
        base = seed_tensor(seed, device=self.device)
        checked = self.model._check(inputs, mask)
        experts = self.model._experts(checked)  # once, for the head and the VAE
        label = batch.get("label")
        label = torch.full((checked.rows,), MISSING, device=self.device) if label is None else label
        known = label != MISSING
        labelled = int(known.sum())
        logits = self._head(experts, checked.mask)
        entropy = F.cross_entropy(logits[known], label[known], reduction="sum")
        taught: Sums = {}
        if self.training and self.modality_dropout > 0:
            kept = self._dropout(checked.mask, branch(base, 1))
            fewer = self._head(experts, kept)
            entropy = (entropy + F.cross_entropy(fewer[known], label[known], reduction="sum")) / 2
            if self.consistency_weight:
                some = ~known & (kept != checked.mask).any(1)
                taught = self._consistency(logits[some].detach(), fewer[some])
        loss = entropy / max(labelled, 1)
        sums: Sums = {"cross_entropy": (entropy, labelled)}
        sums["accuracy"] = ((logits.argmax(-1) == label)[known].sum(), labelled)
        if taught:
            sums |= taught
            unsaid, rows = taught["consistency"]
            loss = loss + self.consistency_weight / max(rows, 1) * unsaid
        if self.generative_weight:
            generative = self._generative(inputs, mask, checked, experts, base)
            loss = loss + self.generative_weight / self._size * generative
            sums["generative"] = (generative * checked.rows, checked.rows)
        return loss, sums

    def figures(self, means: Mapping[str, float]) -> dict[str, float]:
        """With "loss", of the means of its parts: labelled rows fall unevenly into batches, and a mean of batches'
        losses would weigh each by how."""
        weights = {
            "cross_entropy": 1.0,
            "generative": self.generative_weight / self._size,
            "consistency": self.consistency_weight,
        }
        return {"loss": sum(weight * means[part] for part, weight in weights.items() if part in means), **means}

    def _consistency(self, teacher: Tensor, student: Tensor) -> Sums:
        """Logits [N, C] of rows given everything, and given less: the cross-entropy of the second with the first's
        likeliest classes, where those are probable enough."""
        probability, found = teacher.softmax(-1).max(-1)
        sure = probability >= self.confidence
        entropy = F.cross_entropy(student[sure], found[sure], reduction="sum")
        return {"consistency": (entropy, len(teacher)), "confident": (sure.sum(), len(teacher))}

    def _generative(
        self, inputs: Mapping[str, Tensor], mask: Mask, checked: Batch, experts: Experts, seed: Tensor
    ) -> Tensor:
        """The VAE's loss; with the head's experts, unless it hides modalities or encodes them in a way of its own."""
        model = self.model
        if model.training and model.modality_dropout > 0:
            return model(inputs, mask, seed=seed).loss
        own = type(model)._training_experts is MultimodalVAE._training_experts
        given = experts if own else model._training_experts(checked)
        return model.objective(checked, given, beta=model.beta, seed=seed).loss

    def _dropout(self, mask: Tensor, seed: Tensor) -> Tensor:
        """What of the mask is left; of a row that would lose all, the one whose number drawn is the largest."""
        u = torch.where(mask, philox_uniform(seed, *mask.shape, device=mask.device), -1.0)
        return mask & (u >= u.amax(1, keepdim=True).clamp(max=self.modality_dropout))

    def _features(self, experts: Experts, observed: Tensor) -> Tensor:
        """The branches side by side, [B, sum of their sizes]."""
        branches = zip(experts.mu, self.missing, observed.unbind(1), strict=True)
        return torch.cat([torch.where(there[:, None], mu, blank) for mu, blank, there in branches], -1)

    def _head(self, experts: Experts, observed: Tensor) -> Tensor:
        return self.head(self._features(experts, observed))

    def check_extra(self, what: str, key: str, value: Any, rows: int) -> None:
        if value is not None:
            check_labels(what, value, rows, len(self.classes), least=MISSING)

    # --- answers ------------------------------------------------------------------------------------------------------

    def forward(self, batch: Mapping[str, Tensor], mask: Mask = None) -> Tensor:
        """Logits [B, C] given what each row has; see :class:`mmvae_fast.models.MultimodalVAE` for batch and mask."""
        checked: Batch = self.model._check(batch, mask)
        return self._head(self.model._experts(checked), checked.mask)

    @torch.no_grad()
    def predict_proba(self, batch: Mapping[str, Tensor], mask: Mask = None) -> Tensor:
        """Probabilities [B, C]; a row with nothing observed gets what the head makes of that, about the classes'
        shares in training."""
        return self(batch, mask).softmax(-1)

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Tensor], mask: Mask = None) -> Tensor:
        """The likeliest class of each row, int64 [B]."""
        return self(batch, mask).argmax(-1)

    def classify(self, batch: Mapping[str, Tensor], mask: Mask = None) -> list[str]:
        """The likeliest class of each row, by name."""
        return [self.classes[i] for i in self.predict(batch, mask).tolist()]

    @torch.no_grad()
    def encode(self, batch: Mapping[str, Tensor], mask: Mask = None) -> Tensor:
        """A latent for each row: the VAE's posterior :attr:`point`, [B, latent_dim]; with ``generative_weight`` 0 the
        branches side by side, as the head sees them."""
        checked = self.model._check(batch, mask)
        experts = self.model._experts(checked)
        if not self.generative_weight:
            return self._features(experts, checked.mask)
        return self.model.posterior(checked, experts).point

    def cluster(
        self,
        batch: Mapping[str, Tensor],
        mask: Mask = None,
        *,
        n_clusters: int | None = None,
        method: str = "kmeans",
        seed: int = 0,
    ) -> np.ndarray:
        """Group rows by their latents, without labels: a cluster's number for each row, int64 [B].

        Args:
            n_clusters: None is as many as there are classes.
            method: "kmeans", or "gmm" (Gaussian mixture with full covariances).
            seed: 0 to 2^32 - 1.

        Raises:
            ImportError: without the ``systems`` extra.
        """
        one_of("method", method, ("kmeans", "gmm"))
        z = self.encode(batch, mask).double().cpu().numpy()
        count = len(self.classes) if n_clusters is None else n_clusters
        if type(count) is not int or not 1 <= count <= len(z):
            raise ValueError(f"cluster: n_clusters is {count!r}, expected 1 to {len(z)}, the number of rows")
        if type(seed) is not int or not 0 <= seed < 2**32:
            raise ValueError(f"cluster: seed is {seed!r}, expected an integer from 0 to 2^32 - 1")
        if method == "kmeans":
            found = require("sklearn.cluster", extra="systems").KMeans(count, n_init=10, random_state=seed)
        else:
            mixture = require("sklearn.mixture", extra="systems").GaussianMixture
            found = mixture(count, reg_covar=1e-3, random_state=seed)
        return found.fit_predict(z).astype(np.int64)


def _class_names(classes: Any) -> tuple[str, ...]:
    if type(classes) is int and classes >= 2:
        return tuple(str(i) for i in range(classes))
    names = list(classes) if isinstance(classes, Sequence) and not isinstance(classes, str) else []
    if len(names) < 2 or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ValueError(f"classes is {classes!r}, expected 2 or more, or their names, each once")
    return tuple(names)
