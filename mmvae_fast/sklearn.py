"""A multimodal VAE as a transformer of scikit-learn. Importing this file imports scikit-learn."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmvae_fast._lazy import require
from mmvae_fast.data.reader import Reader, is_missing, reader_class
from mmvae_fast.modalities import Modality, Vector
from mmvae_fast.models import MODELS
from mmvae_fast.models.batch import Mask
from mmvae_fast.training import fit

require("sklearn", extra="sklearn")
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin  # noqa: E402
from sklearn.utils import check_random_state  # noqa: E402
from sklearn.utils.validation import check_is_fitted, validate_data  # noqa: E402

_ONLY = "x"  # the one modality of a plain array


class MultimodalVAETransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Samples of several modalities, any of them missing -> the posterior means of a multimodal VAE, [N, latent_dim].

    X is a dict of arrays or lists by modality (N rows each), a DataFrame with a column a modality, or a list of dicts
    with a key a modality; the latter two can be indexed by row, as cross-validation does. A modality is missing where
    its cell is None, an empty string or NaN (of an array, all NaN), and wherever its key or column is. A plain array
    [N, F] is one modality, complete, of F numbers. Numbers are taken as they are: put a ``StandardScaler`` before it,
    or use a reader that scales.

    Args:
        modalities: by name, either a :class:`~mmvae_fast.modalities.Modality`, whose samples are arrays of its shape,
            or the options of a reader as in a YAML file, ``{"kind": "text", "length": 16}``, whose cells may be text,
            paths or columns of a DataFrame (``"columns": ["age", "weight"]``). None: every array [N, n] is a Vector.
        model: a name of ``mmvae_fast.models.MODELS``.
        latent_dim: columns of what :meth:`transform` gives.
        epochs, batch_size, lr, accelerator: see :func:`mmvae_fast.training.fit`.
        model_options: more arguments of the model.
        random_state: of weights, order and noise; an int makes the result repeatable.
        verbose: show the training.

    Attributes:
        model_: the trained model.
        readers_: those of the modalities that have one, fitted.
        history_: what ``fit`` returned.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality | Mapping[str, Any]] | None = None,
        model: str = "MoPoE",
        latent_dim: int = 16,
        *,
        epochs: int = 50,
        batch_size: int = 64,
        lr: float = 1e-3,
        model_options: Mapping[str, Any] | None = None,
        random_state: Any = 0,
        accelerator: str = "auto",
        verbose: bool = False,
    ) -> None:
        self.modalities = modalities
        self.model = model
        self.latent_dim = latent_dim
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.model_options = model_options
        self.random_state = random_state
        self.accelerator = accelerator
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> MultimodalVAETransformer:
        """Train a new model; ``y`` is not used.

        Raises:
            ValueError, TypeError: parameters or data that cannot be, naming modality and row.
        """
        if self.model not in MODELS:
            raise ValueError(f"model is {self.model!r}, expected one of {list(MODELS)}")
        self._trained = False
        seed = int(check_random_state(self.random_state).randint(2**31))
        X = self._checked(X, reset=True)
        cells = _by_modality(X, self._columns(X))
        self._fit_modalities(X, cells)
        batch, mask = self._batch(cells)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = MODELS[self.model](self._described, self.latent_dim, **(self.model_options or {}))
        self.history_ = fit(
            model,
            {**batch, "mask": mask},
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            seed=seed,
            progress=self.verbose,
            accelerator=self.accelerator,
        )
        self.model_, self._trained = model.eval(), True
        self._n_features_out = self.latent_dim
        return self

    def transform(self, X: Any) -> np.ndarray:
        """The posterior's mean given what each row has, float32 [N, latent_dim]."""
        check_is_fitted(self)
        with torch.no_grad():
            return self.model_.encode(*self._read(X)).mu.numpy(force=True)

    def inverse_transform(self, Z: Any) -> Any:
        """Latents [N, latent_dim] decoded: by modality an array [N, *shape], or of a reader a list of what it shows (a
        str, pixels, ...); of a model of a plain array, the array [N, F]."""
        check_is_fitted(self)
        with torch.no_grad():
            decoded = self.model_.decode(torch.as_tensor(np.asarray(Z), dtype=self.model_.dtype))
        shown = {
            name: [self.readers_[name].show(row) for row in x] if name in self.readers_ else x.numpy(force=True)
            for name, x in decoded.items()
        }
        return shown[_ONLY] if self._plain else shown

    def score(self, X: Any, y: Any = None) -> float:
        """The evidence lower bound, mean over rows, in nats; the noise is the same each time."""
        check_is_fitted(self)
        with torch.no_grad():
            return float(self.model_(*self._read(X), seed=0).elbo)

    def _read(self, X: Any) -> tuple[dict[str, Tensor], Mask]:
        X = self._checked(X, reset=False)
        return self._batch(_by_modality(X, self._columns(X)))

    def _checked(self, X: Any, *, reset: bool) -> Any:
        """A plain array as one modality; anything else as it is."""
        by_name = _is_dict(X) or _is_rows(X) or (_is_frame(X) and self.modalities is not None)
        if reset:
            self._plain = not by_name
        if by_name:
            if self._plain:
                raise ValueError("X is by modality, expected a plain array [N, F] as in fit")
            return X
        if self.modalities is not None or not self._plain:
            raise ValueError(f"X is a {type(X).__name__}, expected a dict, a list of dicts or a DataFrame by modality")
        return {_ONLY: validate_data(self, X, reset=reset, dtype=np.float32)}

    def _columns(self, X: Any) -> dict[str, str | list[str]]:
        """Where each modality is in X."""
        if self.modalities is not None:
            configs = {name: m if isinstance(m, Mapping) else {} for name, m in self.modalities.items()}
            return {name: c.get("columns") or c.get("column") or name for name, c in configs.items()}
        names = self._described if self._trained else X if isinstance(X, Mapping) else X[0]
        return {name: name for name in names}

    def _fit_modalities(self, X: Any, cells: Mapping[str, Any]) -> None:
        """What each modality is: ``readers_``, and ``_described`` for the model."""
        readers: dict[str, Reader] = {}
        described: dict[str, Modality] = {}
        for name, column in cells.items():
            given = None if self.modalities is None else self.modalities[name]
            if isinstance(given, Mapping):
                options = {key: value for key, value in given.items() if key not in ("kind", "column", "columns")}
                cls = reader_class(given.get("kind"))
                try:
                    readers[name] = cls(**options)
                except (TypeError, ValueError) as error:
                    raise ValueError(f"modality {name!r}: {error}") from error
                readers[name].fit([cell for cell in column if not _missing(cell)])
                described[name] = readers[name].modality()
            elif given is None:
                shape = np.shape(column)
                if len(shape) != 2 or not isinstance(column, np.ndarray) or column.dtype.kind not in "fiu":
                    raise ValueError(
                        f"modality {name!r}: not an array of numbers [N, n], so say what it is: modalities="
                        f"{{{name!r}: ...}}"
                    )
                described[name] = Vector(shape[1])
            else:
                described[name] = copy.deepcopy(given)  # networks of its own are trained: the caller's stay as they are
        self.readers_, self._described = readers, described

    def _batch(self, cells: Mapping[str, Any]) -> tuple[dict[str, Tensor], Tensor]:
        """Tensors by modality and what is observed, bool [N, M]."""
        rows = {name: len(column) for name, column in cells.items()}
        if len(set(rows.values())) != 1:
            raise ValueError(f"X has rows {rows}, expected as many of each modality")
        batch, mask = {}, torch.zeros(next(iter(rows.values())), len(cells), dtype=torch.bool)
        for m, (name, column) in enumerate(cells.items()):
            modality = self._described[name]
            x = torch.zeros(len(column), *modality.shape, dtype=modality.dtype)
            for row, cell in enumerate(column):
                if _missing(cell):
                    continue
                try:
                    sample = self.readers_[name].read(cell) if name in self.readers_ else _tensor(cell, modality)
                    if sample.shape != x.shape[1:]:
                        raise ValueError(f"has shape {list(sample.shape)}, expected {list(modality.shape)}")
                except (ValueError, TypeError, OSError) as error:
                    raise ValueError(f"modality {name!r}, row {row}: {error}") from error
                x[row], mask[row, m] = sample, True
            modality.check_values(name, x[mask[:, m]])
            batch[name] = x
        return batch, mask

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.dict = True
        tags.transformer_tags.preserves_dtype = []  # always float32
        return tags


def _by_modality(X: Any, columns: Mapping[str, str | Sequence[str]]) -> dict[str, Any]:
    """The cells of every modality, by row; None in all rows where X has nothing of it."""
    there = set(X) if isinstance(X, Mapping) else set(X.columns) if _is_frame(X) else set().union(*X)
    wanted = [[of] if isinstance(of, str) else list(of) for of in columns.values()]
    if not any(there.intersection(of) for of in wanted):
        raise ValueError(f"X has {sorted(map(str, there))}, expected some of {sorted(set().union(*wanted))}")
    rows = len(next(iter(X.values()))) if isinstance(X, Mapping) else len(X)

    def column(name: str) -> Any:
        if name not in there:
            return [None] * rows
        if isinstance(X, Mapping):
            value = X[name]
            return value.numpy(force=True) if isinstance(value, Tensor) else value
        return X[name].tolist() if _is_frame(X) else [row.get(name) for row in X]

    return {
        name: column(of) if isinstance(of, str) else [list(row) for row in zip(*map(column, of), strict=True)]
        for name, of in columns.items()
    }


def _is_dict(X: Any) -> bool:
    return isinstance(X, Mapping) and not hasattr(X, "tocsr")  # one kind of sparse matrix is a dict


def _is_frame(X: Any) -> bool:
    return hasattr(X, "columns") and hasattr(X, "iloc")


def _is_rows(X: Any) -> bool:
    return isinstance(X, (list, tuple)) and len(X) > 0 and all(isinstance(row, Mapping) for row in X)


def _missing(cell: Any) -> bool:
    if isinstance(cell, (np.ndarray, Tensor)) and np.asarray(cell).dtype.kind == "f":
        return bool(np.isnan(np.asarray(cell)).all())
    return is_missing(cell.item() if isinstance(cell, np.generic) else cell)


def _tensor(cell: Any, modality: Modality) -> Tensor:
    return torch.as_tensor(np.asarray(cell)).to(modality.dtype)
