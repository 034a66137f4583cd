"""Spaces in which samples are compared: what a classifier sees, principal components, or a network of your own."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmvae_fast._lazy import require
from mmvae_fast.evaluate.oracles import Oracle
from mmvae_fast.evaluate.rows import shuffled
from mmvae_fast.modalities import Modality
from mmvae_fast.training.seeding import derive

_COMPONENTS = 32
_FITTED = 2000  # samples of which the principal components are found, and that are held in memory at a time
INCEPTION_SIZES = (64, 192, 768, 2048)


@dataclass(frozen=True)
class Features:
    """A function of samples x [B, *shape] -> [B, F], with a name: a distance means nothing without its space."""

    name: str
    compute: Callable[[Tensor], np.ndarray]

    def __call__(self, x: Tensor) -> np.ndarray:
        found = np.asarray(self.compute(x), dtype=np.float64)
        if found.ndim != 2 or len(found) != len(x):
            raise ValueError(f"features {self.name!r}: gave shape {list(found.shape)}, expected [B, F], B = {len(x)}")
        if not np.isfinite(found).all():
            raise ValueError(f"features {self.name!r}: gave NaN or infinite values")
        return found


def oracle_features(oracle: Oracle) -> Features:
    """What a classifier of :func:`mmvae_fast.evaluate.fit_oracle` sees."""
    return Features(oracle.feature_space, oracle.features)


def pca_features(modality: Modality, real: Tensor, components: int = _COMPONENTS, *, seed: int = 0) -> Features:
    """The principal components of real samples [N, *shape], flattened (of token ids: which one stands where).

    They are found in at most 2000 of the samples, drawn by ``seed``.

    Source: Halko, Martinsson & Tropp, Finding Structure with Randomness, 2011 (the solver, for numbers).
    """
    if type(components) is not int or components < 1:
        raise ValueError(f"pca_features: components is {components!r}, expected 1 or more")
    if len(real) < 2:
        raise ValueError(f"pca_features: got {len(real)} samples, expected two or more")
    flat = _numbers(modality)
    if not modality.dtype.is_floating_point:
        flat = _token_places(int(getattr(modality, "vocabulary_size", real.max() + 1)))
    points = flat(real[shuffled(len(real), seed, "principal components")[:_FITTED].to(real.device)])
    count = min(components, points.shape[0] - 1, points.shape[1])  # so many can differ
    solver = "randomized"
    if not isinstance(points, np.ndarray):  # sparse: the solver there is for it needs fewer than all components
        least = min(points.shape)
        points, solver = (points, "arpack") if count < least else (points.toarray(), solver)
    pca = require("sklearn.decomposition", extra="evaluate").PCA(
        count, svd_solver=solver, random_state=derive(seed, "solver") % 2**32
    )
    pca.fit(points)

    def compute(x: Tensor) -> np.ndarray:
        return np.concatenate([pca.transform(flat(part)) for part in x.split(_FITTED)])

    return Features(f"{count} principal components", compute)


def _numbers(modality: Modality) -> Callable[[Tensor], Any]:
    def flat(x: Tensor) -> np.ndarray:
        return modality.comparable(x.float()).flatten(1).numpy(force=True)

    return flat


def _token_places(vocabulary: int) -> Callable[[Tensor], Any]:
    """Token ids [B, L] -> a sparse matrix [B, L V] of which one stands where."""
    csr = require("scipy.sparse", extra="evaluate").csr_array

    def flat(x: Tensor) -> Any:
        ids = x.flatten(1).clamp(0, vocabulary - 1).numpy(force=True)
        rows, places = ids.shape
        columns = (ids + vocabulary * np.arange(places)).ravel()
        ones = np.ones(columns.size, np.float32)
        return csr((ones, columns, np.arange(0, columns.size + 1, places)), shape=(rows, places * vocabulary))

    return flat


def module_features(module: nn.Module, name: str | None = None, *, batch_size: int = 256) -> Features:
    """A network of your own: x [B, *shape] -> [B, F]; it is put into ``eval()``."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"module_features: module is a {type(module).__name__}, expected an nn.Module")
    module.eval()
    of = next(module.parameters(), torch.zeros(()))

    @torch.no_grad()
    def compute(x: Tensor) -> np.ndarray:
        return torch.cat([module(part.to(of.device)).flatten(1) for part in x.split(batch_size)]).numpy(force=True)

    return Features(name or type(module).__name__, compute)


def inception_features(weights: str | os.PathLike, size: int = 2048, *, batch_size: int = 64) -> Features:
    """The Inception network of the usual FID, with weights that you have: nothing is downloaded.

    Args:
        weights: the file ``weights-inception-2015-12-05-6726825d.pth`` of torch-fidelity, which has to be installed; or
            a TorchScript file of the network itself (uint8 [B, 3, H, W] -> [B, F]) such as StyleGAN's
            ``inception-2015-12-05.pt``, which takes nothing else. A pickle that is more than tensors is refused.
        size: of torch-fidelity's features: 64, 192, 768 or 2048.

    Images [B, C, H, W] in [0, 1], of one channel or three, go in as torchmetrics' FrechetInceptionDistance takes them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is neither.
        ImportError: torchmetrics or torch-fidelity is missing.
    """
    if size not in INCEPTION_SIZES:
        raise ValueError(f"inception_features: size is {size!r}, expected one of {INCEPTION_SIZES}")
    path = Path(weights)
    if not path.is_file():
        raise FileNotFoundError(f"inception_features: {path} is no file, expected the weights of torch-fidelity")
    scripted = _is_torchscript(path)
    network = _scripted(path) if scripted else _torch_fidelity(path, size)

    @torch.no_grad()
    def compute(x: Tensor) -> np.ndarray:
        if x.dim() != 4 or x.shape[1] not in (1, 3):
            raise ValueError(f"inception_features: got shape {list(x.shape)}, expected [B, 1 or 3, H, W]")
        pictures = (x.clamp(0, 1) * 255).round().byte().expand(-1, 3, -1, -1).cpu()
        return torch.cat([network(part).flatten(1) for part in pictures.split(batch_size)]).numpy(force=True)

    return Features(path.name if scripted else f"Inception, {size}", compute)


def _is_torchscript(path: Path) -> bool:
    """Whether an archive holds code beside tensors, as ``torch.jit.save`` writes it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _scripted(path: Path) -> Callable[[Tensor], Tensor]:
    """StyleGAN's gives logits unless it is asked for the features."""
    try:
        network = torch.jit.load(str(path), map_location="cpu").eval()
    except RuntimeError as error:
        raise ValueError(f"inception_features: {path} cannot be read as TorchScript: {error}") from error
    asks = any(argument.name == "return_features" for argument in network.forward.schema.arguments)
    return lambda pictures: network(pictures, return_features=True) if asks else network(pictures)


def _torch_fidelity(path: Path, size: int) -> Callable[[Tensor], Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)  # torch-fidelity itself would run any pickle
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError):
        raise ValueError(
            f"inception_features: {path} is damaged or holds more than tensors, expected torch-fidelity's weights or a "
            "TorchScript file"
        ) from None
    if not isinstance(found, Mapping) or not all(isinstance(x, Tensor) for x in found.values()):
        raise ValueError(f"inception_features: {path} holds a {type(found).__name__}, expected tensors by name")
    del found
    fid = require("torchmetrics.image.fid", extra="evaluate")
    try:
        return fid.FrechetInceptionDistance(feature=size, feature_extractor_weights_path=str(path)).inception
    except ModuleNotFoundError as error:
        raise ImportError("inception_features needs torch-fidelity: pip install 'mmvae_fast[inception]'") from error
    except RuntimeError as error:  # of load_state_dict, in many lines
        raise ValueError(
            f"inception_features: {path} is not of the Inception network: {str(error).splitlines()[0]}"
        ) from None
