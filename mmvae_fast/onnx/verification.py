"""Does a bundle compute what the model computes? Every part and the whole Runtime, whatever is missing.

The cases to compare stand here; how two outputs are compared, and what is kept of it, in ``report.py``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmvae_fast import _lazy, functional
from mmvae_fast.onnx.errors import BundleError, ExportVerificationError
from mmvae_fast.onnx.manifest import FUSION_PART, ModalitySpec, decoder_part, encoder_part
from mmvae_fast.onnx.report import Record, Report
from mmvae_fast.onnx.runtime import Runtime

if TYPE_CHECKING:
    from mmvae_fast.models import MultimodalVAE

_BATCHES, _SAMPLES = (1, 2, 7), (1, 3)
_ROWS = max(_BATCHES)
_MANY_PATTERNS = 64  # beyond, patterns are rows of one batch rather than batches of their own
_MAX_ROWS = 2**14
_SEEDS = (0, 0x9E3779B97F4A7C15)


def verify(folder: str | Path, model: MultimodalVAE, *, rtol: float = 1e-4, atol: float = 1e-5) -> Report:
    """Compare a bundle with the model it was exported from.

    Runs encoders, decoders, fusion and the whole Runtime for batches of 1, 2 and 7 rows, 1 and 3 samples, every pattern
    of missing modalities (2^M, none included), rows with different ones missing, and NaN in everything that is missing.
    (With more than 6 modalities the patterns share batches; with more than 14, some patterns are drawn at random.)

    Args:
        rtol, atol: an element agrees when abs(onnx - torch) <= atol + rtol * abs(torch). Token ids agree when they are
            equal, or when torch's own logits of the two are that close.

    Returns:
        Report, passed or not; its ``raise_if_failed`` raises.

    Raises:
        BundleError: the bundle is damaged, or of another model.
        ExportVerificationError: a file that ``onnx.checker`` refuses.
    """
    from mmvae_fast.onnx.export import cpu_copy

    return compare(folder, cpu_copy(model), rtol=rtol, atol=atol)


@torch.no_grad()
def compare(folder: str | Path, model: MultimodalVAE, *, rtol: float = 1e-4, atol: float = 1e-5) -> Report:
    """:func:`verify` for a model that is already on the CPU, in float32 and evaluation mode."""
    runtime = Runtime.load(folder)
    _check_same_model(runtime, model)
    _check_files(runtime)
    record = Record(rtol, atol)
    rng = np.random.default_rng(0)
    _compare_networks(runtime, model, record, rng)
    _compare_fusion(runtime, model, record, rng)
    _compare_runtime(runtime, model, record, rng)
    return Report(record.checks(), rtol, atol)


def _check_same_model(runtime: Runtime, model: MultimodalVAE) -> None:
    def describe(name, latent_dim, modalities):
        return {"class": name, "latent_dim": latent_dim, "modalities": modalities}

    ours = describe(
        type(model).__name__,
        model.latent_dim,
        {n: (m.kind, tuple(m.shape), tuple(m.param_shape)) for n, m in model.modalities.items()},
    )
    theirs = describe(
        runtime.manifest.model,
        runtime.latent_dim,
        {n: (m.kind, m.shape, m.param_shape) for n, m in runtime.modalities.items()},
    )
    differences = [f"{k}: bundle has {theirs[k]}, model has {ours[k]}" for k in ours if ours[k] != theirs[k]]
    if not differences and list(ours["modalities"]) != list(theirs["modalities"]):
        bundle, ours_in_order = list(theirs["modalities"]), list(ours["modalities"])
        differences = [f"order of modalities: bundle has {bundle}, model has {ours_in_order}"]
    if differences:
        raise BundleError(f"{runtime.folder}: exported from another model ({'; '.join(differences)})")


def _check_files(runtime: Runtime) -> None:
    checker = _lazy.require("onnx", extra="onnx").checker
    for part in runtime.manifest.parts.values():
        path = runtime.folder / part.file
        try:
            checker.check_model(str(path), full_check=True)
        except Exception as error:  # ValidationError, InferenceError, protobuf's own
            raise ExportVerificationError(f"{path}: refused by onnx.checker: {error}") from error


def _data(spec: ModalitySpec, rows: int, rng: np.random.Generator) -> np.ndarray:
    shape = (rows, *spec.shape)
    if spec.dtype == "int64":
        return rng.integers(0, spec.vocabulary_size, shape)
    if spec.kind == "counts":
        return rng.poisson(3.0, shape).astype(np.float32)
    return (rng.random(shape) if spec.likelihood == "bernoulli" else rng.standard_normal(shape)).astype(np.float32)


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def _patterns(count: int, rng: np.random.Generator) -> np.ndarray:
    """bool [P, M]: every pattern of observed modalities, or for very many modalities a sample with the extremes."""
    if 2**count <= _MAX_ROWS:
        return np.array(list(itertools.product([False, True], repeat=count)))
    single = np.eye(count, dtype=bool)
    extremes = np.concatenate([single, ~single, np.zeros((1, count), bool), np.ones((1, count), bool)])
    return np.concatenate([extremes, rng.random((_MAX_ROWS - len(extremes), count)) < 0.5])


def _few(patterns: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Those that get batches of their own: all, unless there are very many."""
    return patterns if len(patterns) <= _MANY_PATTERNS else rng.permutation(patterns)[: _MANY_PATTERNS // 4]


def _compare_networks(runtime: Runtime, model: MultimodalVAE, record: Record, rng: np.random.Generator) -> None:
    for name, spec in runtime.modalities.items():
        for rows in _BATCHES:
            case, x, z = f"B={rows}", _data(spec, rows, rng), _normal(rng, rows, model.latent_dim)
            part = encoder_part(name)
            expected, actual = model.encoders[name](torch.from_numpy(x)), runtime._run(part, x)
            for output, e, a in zip(("mu", "logvar"), expected, actual, strict=True):
                record.add(part, output, case, e, a)
            part = decoder_part(name)
            params, (raw, prediction) = model.decoders[name](torch.from_numpy(z)), runtime._run(part, z)
            record.add(part, "params", case, params, raw)
            expected = model.modalities[name].predict(params)
            record.add(part, "prediction", case, expected, prediction, _logits(spec, params))


def _logits(spec: ModalitySpec, params: Tensor) -> Tensor | None:
    return params if spec.dtype == "int64" else None


def _masks(count: int, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    """Batches of masks, bool [B, M]: each pattern in every row, then patterns mixed."""
    patterns = _patterns(count, rng)
    for pattern in _few(patterns, rng):
        for rows in _BATCHES:
            yield f"observed={pattern.astype(int).tolist()}, B={rows}", np.tile(pattern, (rows, 1))
    for rows in _BATCHES:
        yield f"mixed rows, B={rows}", rng.random((rows, count)) < 0.5
    yield f"{len(patterns)} patterns as rows", patterns


def _compare_fusion(runtime: Runtime, model: MultimodalVAE, record: Record, rng: np.random.Generator) -> None:
    count, dim = len(runtime.modalities), model.latent_dim
    for case, mask in _masks(count, rng):
        rows = len(mask)
        mu, logvar = _normal(rng, rows, count, dim), _normal(rng, rows, count, dim)
        mu[~mask] = logvar[~mask] = np.nan
        mus, logvars = (list(torch.from_numpy(t).unbind(1)) for t in (mu, logvar))
        fused = model.fuse(mus, logvars, torch.from_numpy(mask))
        expected_mu, expected_logvar = fused.mu, fused.logvar
        expected_kl = functional.gaussian_kl(expected_mu, expected_logvar)
        for samples in _SAMPLES if rows <= _ROWS else (1,):
            eps = _normal(rng, samples, rows, dim)
            expected_z = expected_mu + torch.exp(0.5 * expected_logvar) * torch.from_numpy(eps)
            expected = (expected_z, expected_mu, expected_logvar, expected_kl)
            names = (t.name for t in runtime.manifest.parts[FUSION_PART].outputs)
            for name, e, a in zip(names, expected, runtime._run(FUSION_PART, mu, logvar, mask, eps), strict=True):
                record.add(FUSION_PART, name, f"{case}, K={samples}", e, a)


def _compare_runtime(runtime: Runtime, model: MultimodalVAE, record: Record, rng: np.random.Generator) -> None:
    names = list(runtime.modalities)
    full = {name: _data(spec, _ROWS, rng) for name, spec in runtime.modalities.items()}
    for pattern in _few(_patterns(len(names), rng), rng):
        case = f"observed={pattern.astype(int).tolist()}"
        present = {n: full[n] for n, there in zip(names, pattern, strict=True) if there}
        if present:
            _compare_call(runtime, model, record, case, present, None)
        else:
            _compare_call(runtime, model, record, case, full, np.zeros((_ROWS, len(names)), bool))
    mask = rng.random((_ROWS, len(names))) < 0.5
    mask[0], mask[1] = False, True
    holes = {name: x.copy() for name, x in full.items()}
    for m, (name, spec) in enumerate(runtime.modalities.items()):
        if spec.dtype == "float32":
            holes[name][~mask[:, m]] = np.nan
    _compare_call(runtime, model, record, "mixed rows, NaN where missing", holes, mask)
    for seed in _SEEDS:
        case, expected = f"seed={seed}", model.sample(_ROWS, seed=seed)
        standard = torch.zeros(_ROWS, model.latent_dim)
        z = functional.reparameterize(standard, standard, seed=seed)
        _compare_predictions(model, record, "Runtime.sample", case, expected, runtime.sample(_ROWS, seed=seed), z)


def _compare_call(runtime, model, record: Record, case: str, inputs: dict[str, np.ndarray], mask: np.ndarray | None):
    batch = {name: torch.from_numpy(x) for name, x in inputs.items()}
    observed = None if mask is None else torch.from_numpy(mask)
    expected, actual = model.encode(batch, observed), runtime.encode(inputs, mask)
    kl = functional.gaussian_kl(expected.mu, expected.logvar)
    for output, e in (("mu", expected.mu), ("logvar", expected.logvar), ("kl", kl)):
        record.add("Runtime.encode", output, case, e, getattr(actual, output))
    for samples, seed in zip(_SAMPLES, _SEEDS, strict=True):
        z = runtime.posterior_sample(inputs, samples, seed=seed, mask=mask)
        record.add("Runtime.posterior_sample", "z", f"{case}, K={samples}", expected.sample(samples, seed=seed), z)
    reconstructions = model.reconstruct(batch, observed), runtime.reconstruct(inputs, mask)
    _compare_predictions(model, record, "Runtime.reconstruct", case, *reconstructions, expected.mu)


def _compare_predictions(model, record: Record, part: str, case: str, expected, actual, z: Tensor) -> None:
    for name, prediction in expected.items():
        ids = model.modalities[name].dtype == torch.int64
        logits = model.decode(z, [name], params=True)[name] if ids else None
        record.add(part, name, case, prediction, actual[name], logits)
