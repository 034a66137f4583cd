"""Who tells which class a sample shows: classifiers of real data that no model under judgement has seen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmvae_fast._lazy import require
from mmvae_fast.evaluate import networks
from mmvae_fast.evaluate.rows import UNKNOWN, Rows
from mmvae_fast.modalities import Modality
from mmvae_fast.models import MultimodalVAE
from mmvae_fast.training.data import Data
from mmvae_fast.training.seeding import derive, preserved_random_state

Judge = Callable[[Tensor], np.ndarray]
"""One modality [B, *shape] -> classes [B], -1 where it shows none."""

KINDS = ("auto", "svc", "logistic", "network")
_SVC_ROWS, _SVC_NUMBERS, _SVC_FOLDS = 2000, 2_000_000, 3  # up to here a kernel machine is better, and quick
_STEPS, _BATCH = 1000, 128


class TooFewRows(ValueError):
    """No classifier can be trained on so few rows or classes."""


class Oracle(ABC):
    """A trained classifier of one modality; call it for classes [B]."""

    kind: str
    classes: np.ndarray
    """The labels it knows, sorted: [C]."""
    modality: Modality
    """Of data and predictions, which it sees by :meth:`Modality.comparable`."""

    @property
    def feature_space(self) -> str:
        """What :meth:`features` are, in words."""
        return f"{self.kind} oracle"

    def __call__(self, x: Tensor) -> np.ndarray:
        return self.classes[self.probabilities(x).argmax(1)]

    def accuracy(self, x: Tensor, labels: Any) -> float:
        """The share of x [B, *shape] whose class it tells."""
        return float(np.mean(self(x) == np.asarray(labels)))

    @abstractmethod
    def probabilities(self, x: Tensor) -> np.ndarray:
        """p(class | x), [B, C]."""

    @abstractmethod
    def features(self, x: Tensor) -> np.ndarray:
        """What it sees in x, [B, F]."""


class SklearnOracle(Oracle):
    """A support vector machine (with calibrated probabilities) or a logistic regression on flattened samples; of token
    ids, on how often each occurs. Its features are the decision values, one a class."""

    def __init__(
        self, kind: str, modality: Modality, x: Tensor, labels: np.ndarray, vocabulary: int | None, seed: int
    ) -> None:
        self.kind, self.modality, self.vocabulary = kind, modality, vocabulary
        pipeline = require("sklearn.pipeline", extra="evaluate").make_pipeline
        scaler = require("sklearn.preprocessing", extra="evaluate").StandardScaler(with_std=False)
        if kind == "logistic":
            linear = require("sklearn.linear_model", extra="evaluate").LogisticRegression(max_iter=1000, random_state=0)
            self._classifier = pipeline(scaler, linear).fit(self._flat(x), labels)
            self._decision = self._classifier
        else:
            machine = pipeline(scaler, require("sklearn.svm", extra="evaluate").SVC(C=10, random_state=0))
            calibrated = require("sklearn.calibration", extra="evaluate").CalibratedClassifierCV
            folds = require("sklearn.model_selection", extra="evaluate").StratifiedKFold(
                _SVC_FOLDS, shuffle=True, random_state=derive(seed, "folds") % 2**32
            )
            self._classifier = calibrated(machine, cv=folds, ensemble=False).fit(self._flat(x), labels)
            self._decision = self._classifier.calibrated_classifiers_[0].estimator
        self.classes = np.asarray(self._classifier.classes_)

    def _flat(self, x: Tensor) -> np.ndarray:
        if self.vocabulary is None:
            return self.modality.comparable(x.double()).flatten(1).numpy(force=True)
        counts = torch.zeros(len(x), self.vocabulary, dtype=torch.float64, device=x.device)
        ids = x.flatten(1)
        return counts.scatter_add_(1, ids, torch.ones_like(ids, dtype=torch.float64)).numpy(force=True)

    def __call__(self, x: Tensor) -> np.ndarray:
        return self._decision.predict(self._flat(x)) if len(x) else np.zeros(0, self.classes.dtype)

    def probabilities(self, x: Tensor) -> np.ndarray:
        return self._classifier.predict_proba(self._flat(x))

    def features(self, x: Tensor) -> np.ndarray:
        values = self._decision.decision_function(self._flat(x))
        return values.reshape(len(x), -1)


class NetworkOracle(Oracle):
    """A small network (see :mod:`mmvae_fast.evaluate.networks`); its features are the layer before the last."""

    kind = "network"

    def __init__(self, modality: Modality, network: networks.Classifier, classes: np.ndarray) -> None:
        self.modality, self.network, self.classes = modality, network.eval(), classes

    def probabilities(self, x: Tensor) -> np.ndarray:
        return self._run(self.network, x, len(self.classes), softmax=True)

    def features(self, x: Tensor) -> np.ndarray:
        return self._run(self.network.features, x, networks.FEATURES)

    @torch.no_grad()
    def _run(self, of: Callable[[Tensor], Tensor], x: Tensor, width: int, softmax: bool = False) -> np.ndarray:
        device = self.network.head.weight.device
        parts = [of(self.modality.comparable(_single(part.to(device)))) for part in x.split(1024)] if len(x) else []
        found = torch.cat(parts) if parts else torch.zeros(0, width)
        return (found.softmax(-1) if softmax else found).double().numpy(force=True)


def fit_oracle(modality: Modality, x: Tensor, labels: Any, *, kind: str = "auto", seed: int = 0) -> Oracle:
    """Train a classifier of one modality on real samples.

    Args:
        x: [N, *shape].
        labels: int [N]; rows with -1 are left out.
        kind: "svc" (support vector machine, at least 3 rows a class), "logistic", "network", or "auto": "svc" for
            little data, "network" for more.
        seed: of the training. Global random generators are left as they were.

    Raises:
        ValueError: fewer than two classes, too few rows of one, another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"fit_oracle: kind is {kind!r}, expected one of {KINDS}")
    modality.check("x", x, dtype=x.dtype if x.is_floating_point() else None)
    known = np.asarray(torch.as_tensor(labels).cpu())
    if known.shape != (len(x),):
        raise ValueError(f"fit_oracle: labels has shape {list(known.shape)}, expected [N] = [{len(x)}]")
    there = (known != UNKNOWN) & whole(x).numpy(force=True)
    x, known = x[torch.from_numpy(there).to(x.device)], known[there]
    classes, counts = np.unique(known, return_counts=True)
    if len(classes) < 2:
        raise TooFewRows(f"fit_oracle: labels holds the classes {classes.tolist()}, expected two or more")
    if kind == "auto":
        small = len(x) <= _SVC_ROWS and x[0].numel() * len(x) <= _SVC_NUMBERS and counts.min() >= _SVC_FOLDS
        kind = "svc" if small else "network"
    if kind == "svc" and counts.min() < _SVC_FOLDS:
        raise TooFewRows(
            f"fit_oracle: class {classes[counts.argmin()]} has {counts.min()} rows, expected {_SVC_FOLDS} or more for "
            "kind='svc'"
        )
    vocabulary = None if modality.dtype.is_floating_point else _vocabulary(modality, x)
    if kind != "network":
        return SklearnOracle(kind, modality, x, known, vocabulary, seed)
    return _train(x, classes.searchsorted(known), classes, modality, vocabulary, seed)


def fit_oracles(
    model: MultimodalVAE, data: Data | Rows, labels: Any = None, *, kind: str = "auto", seed: int = 0
) -> dict[str, Oracle]:
    """:func:`fit_oracle` for every modality of a model that the data has, each on the rows that have it."""
    rows = Rows.of(model, data, labels).with_known_label()
    oracles = {}
    for name, x in rows.data.items():
        there = rows.observed(name)
        if there.any():
            known = rows.labels[there.cpu()]  # type: ignore[index]
            oracles[name] = fit_oracle(model.modalities[name], x[there], known, kind=kind, seed=derive(seed, name))
    return oracles


def whole(x: Tensor) -> Tensor:
    """Which rows lack none of their numbers, bool [N]: a vector may lack some of its entries."""
    return x.flatten(1).isfinite().all(1)


def classes_of(judges: Mapping[str, Judge], name: str, x: Tensor) -> np.ndarray:
    """What a judge says, checked."""
    found = np.asarray(judges[name](x))
    if found.shape != (len(x),):
        raise ValueError(f"the judge of modality {name!r} gave shape {list(found.shape)}, expected [B] = [{len(x)}]")
    return found


def _vocabulary(modality: Modality, x: Tensor) -> int:
    size = getattr(modality, "vocabulary_size", None)
    return int(x.max()) + 1 if size is None else int(size)


def _single(x: Tensor) -> Tensor:
    return x.float() if x.is_floating_point() else x


def _train(
    x: Tensor, places: np.ndarray, classes: np.ndarray, modality: Modality, vocabulary: int | None, seed: int
) -> NetworkOracle:
    """Adam on the cross-entropy, the learning rate falling to 0 along a cosine."""
    x, y = modality.comparable(_single(x)), torch.from_numpy(places).to(x.device)
    with preserved_random_state():
        torch.manual_seed(derive(seed, "oracle") % 2**63)
        network = networks.make(x, modality.shape, vocabulary, len(classes)).to(x.device)
        size = min(_BATCH, len(x))
        epochs = max(5, min(100, round(_STEPS * size / len(x))))
        steps = epochs * (len(x) // size)  # what is left over of an epoch is in the next one's
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(epochs):
            order = torch.randperm(len(x), device=x.device)
            for some in order[: len(x) // size * size].split(size):
                optimizer.zero_grad()
                F.cross_entropy(network(x[some]), y[some]).backward()
                optimizer.step()
                schedule.step()
    return NetworkOracle(modality, network.requires_grad_(False), classes)
