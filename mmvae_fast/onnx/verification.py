"""Does a bundle compute what the model computes? Every part and the whole Runtime, whatever is missing.

The cases to compare stand here; how two outputs are compared, and what is kept of it, in ``report.py``.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmvae_fast import _lazy, functional
from mmvae_fast.onnx import noise
from mmvae_fast.onnx import parts as taking
from mmvae_fast.onnx.errors import BundleError, ExportVerificationError, NonFinite
from mmvae_fast.onnx.manifest import (
    CLASSIFIER_SYSTEM,
    CYCLEGAN_SYSTEM,
    FUSION_PART,
    GAN_SYSTEM,
    ModalitySpec,
    TensorSpec,
    begin_part,
    step_part,
    translator_part,
)
from mmvae_fast.onnx.report import Record, Report
from mmvae_fast.onnx.runtime import Runtime
from mmvae_fast.onnx.single import MODEL_PART, SingleFile
from mmvae_fast.onnx.systems import take_any_apart
from mmvae_fast.onnx.text_checks import add_text, compare_texts
from mmvae_fast.onnx.tracing import full_precision

if TYPE_CHECKING:
    from mmvae_fast.models import MultimodalVAE

_BATCHES, _SAMPLES = (1, 2, 7), (1, 3)
_ROWS = max(_BATCHES)
_MANY_PATTERNS = 64  # beyond, patterns are rows of one batch rather than batches of their own
_MAX_ROWS = 2**14
_GAPS = 0.3  # of the entries of a modality that may have some
_SEEDS = (0, 0x9E3779B97F4A7C15)


def verify(
    folder: str | Path,
    model: MultimodalVAE,
    *,
    rtol: float = 1e-4,
    atol: float = 1e-5,
    preprocessing: Mapping[str, Mapping[str, Any]] | None = None,
) -> Report:
    """Compare a bundle with the model it was exported from.

    Runs encoders, decoders, fusion and the whole Runtime for batches of 1, 2 and 7 rows, 1 and 3 samples, every pattern
    of missing modalities (2^M, none included), rows with different ones missing, and NaN in everything that is missing.
    (With more than 6 modalities the patterns share batches; with more than 14, some patterns are drawn at random.)

    Args:
        rtol, atol: an element agrees when abs(onnx - torch) <= atol + rtol * abs(torch). Token ids agree when they are
            equal, or when torch's own logits of the two are that close; logits of a text's next token when they are
            that close relative to the RMS of all of them.
        preprocessing: what ``export_onnx`` was given, to be compared with what the bundle says of its pictures.

    Returns:
        Report, passed or not; its ``raise_if_failed`` raises.

    Raises:
        BundleError: the bundle is damaged, or of another model.
        ExportVerificationError: a file that ``onnx.checker`` refuses.
    """
    from mmvae_fast.onnx.export import cpu_copy, reading

    read = None if preprocessing is None else reading(model, preprocessing)
    return compare(folder, cpu_copy(model), rtol=rtol, atol=atol, reading=read)


@torch.no_grad()
@full_precision()
def compare(
    folder: str | Path,
    model: MultimodalVAE,
    *,
    rtol: float = 1e-4,
    atol: float = 1e-5,
    reading: Mapping[str, Mapping[str, Any]] | None = None,
) -> Report:
    """:func:`verify` for a model that is already on the CPU, in float32 and evaluation mode."""
    runtime = Runtime.load(folder)
    taken = take_any_apart(model)
    _check_same_model(runtime, model, taken, reading)
    _check_files(runtime)
    record = Record(rtol, atol)
    rng = np.random.default_rng(0)
    _compare_networks(runtime, taken, record, rng)
    if FUSION_PART in taken.parts:
        _compare_fusion(runtime, taken, record, rng)
    try:
        compare_texts(runtime, taken, getattr(model, "model", model), record, rng)
        compare_verbs(runtime, model, record, rng)
    except NonFinite as error:  # the Runtime's refusal to answer
        record.fail("Runtime", "answers", str(error))
    return Report(record.checks(), rtol, atol)


@torch.no_grad()
@full_precision()
def compare_single(
    file: Path, model: MultimodalVAE, sampling: str, *, rtol: float = 1e-4, atol: float = 1e-5
) -> Report:
    """A model in one file against the model's own methods: every pattern of what is missing, with NaN there."""
    checker = _lazy.require("onnx", extra="onnx").checker
    try:
        checker.check_model(str(file), full_check=True)
    except Exception as error:
        raise ExportVerificationError(f"{file}: refused by onnx.checker: {error}") from error
    taken, record, rng = take_any_apart(model), Record(rtol, atol), np.random.default_rng(0)
    served, specs = SingleFile(file, taken, sampling), {m.name: m for m in taken.interface.modalities}
    for case, mask in _masks(len(specs), rng):
        data = {name: _data(spec, len(mask), rng) for name, spec in specs.items()}
        for place, (name, spec) in enumerate(specs.items()):
            if spec.dtype == "float32":
                data[name][~mask[:, place]] = np.nan
        batch, observed = {name: torch.from_numpy(x) for name, x in data.items()}, torch.from_numpy(mask)
        q: Any = model.encode(batch, observed)
        exact = np.ones(len(mask), bool)
        if taken.notes:  # chains, which the file has not
            exact = (mask.sum(1) < 2) | mask.all(1)
        for samples, seed in zip(_SAMPLES, _SEEDS, strict=True):
            found = served.run(data, mask, samples, seed)
            if exact.any():
                drawn = q.sample(samples, seed=seed)[:, torch.from_numpy(exact)]
                record.add(MODEL_PART, "z", f"{case}, K={samples}", drawn, found["z"][:, exact])
        found = served.run(data, mask, 1, None)
        for output, e in (("joint_mu", q.mu), ("joint_logvar", q.logvar), ("point", q.point)):
            record.add(MODEL_PART, output, case, e, found[output])
        prefix = "prediction_"
        actual = {name.removeprefix(prefix): x for name, x in found.items() if name.startswith(prefix)}
        _compare_predictions(model, record, MODEL_PART, case, partial(model.reconstruct, batch, observed), actual)
    return Report(record.checks(), rtol, atol)


def _check_same_model(
    runtime: Runtime, model: Any, taken: taking.Taken, reading: Mapping[str, Mapping[str, Any]] | None
) -> None:
    """All that the Runtime reads of a manifest is what this model would be exported with."""
    made, interface = runtime.manifest, taken.interface
    pairs: dict[str, tuple[Any, Any]] = {
        "class": (made.model, type(model).__name__),
        "system": (made.system, interface.system),
        "latent_dim": (made.latent_dim, interface.latent_dim),
        "order of modalities": (made.names, [m.name for m in interface.modalities]),
        "posterior": (made.posterior, taken.posterior),
        "prior": (made.prior, interface.prior),
        "context_dim": (made.context_dim, interface.context_dim),
        "condition_dim": (made.condition_dim, interface.condition_dim),
        "classes": (made.classes or (), taken.classes),
        "notes": (made.notes, taken.notes),
        "noise": (made.noise, noise.SPEC),
    }
    for theirs, ours in zip(made.modalities, interface.modalities, strict=False):
        if theirs.name != ours.name:
            continue  # said by the order
        for field in (f.name for f in fields(ModalitySpec)):
            if field != "preprocessing":
                pairs[f"modality {ours.name!r}, {field}"] = (getattr(theirs, field), getattr(ours, field))
            elif reading is not None and theirs.preprocessing is not None:
                pairs[f"modality {ours.name!r}, {field}"] = (theirs.preprocessing, reading.get(ours.name))
    for name, part in taken.parts.items():
        if name in made.parts:
            pairs[f"noise of part {name!r}"] = (made.parts[name].noise, part.noise)
    differences = [
        f"{what}: bundle has {_short(theirs)}, model has {_short(ours)}"
        for what, (theirs, ours) in pairs.items()
        if _plain(theirs) != _plain(ours)
    ]
    if not differences:  # of the file, which only a bundle of the same modalities is sure to have
        for spec in made.modalities:
            if spec.tokens is not None and _tokenizer_differs(runtime, spec, model.modalities[spec.name]):
                differences.append(f"modality {spec.name!r}: {spec.tokens.file} is not the model's tokenizer")
    if differences:
        raise BundleError(f"{runtime.folder}: exported from another model ({'; '.join(differences)})")


def _plain(value: Any) -> Any:
    """As JSON has it: what was read from a file against what was not."""
    return json.loads(json.dumps(value, default=asdict))


def _short(value: Any, limit: int = 200) -> str:
    text = value if isinstance(value, str) else str(_plain(value))
    return text if len(text) <= limit else f"{text[:limit]}..."


def _tokenizer_differs(runtime: Runtime, spec: ModalitySpec, modality: Any) -> bool:
    return runtime._tokenizer(spec).to_str() != modality.tokenizer.to_str()


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
        ids = rng.integers(0, spec.vocabulary_size, shape)
        if spec.tokens is not None:  # tokens, an end, padding
            ids = rng.integers(spec.tokens.offset, spec.vocabulary_size, shape)
            ends = rng.integers(0, spec.shape[0], (rows, 1))
            place = np.arange(spec.shape[0])
            ids = np.where(place < ends, ids, np.where(place == ends, spec.tokens.end, spec.tokens.pad))
        return ids
    if spec.kind in ("counts", "bag_of_words"):
        return rng.poisson(3.0, shape).astype(np.float32)
    x = (rng.random(shape) if spec.likelihood == "bernoulli" else rng.standard_normal(shape)).astype(np.float32)
    if spec.gaps:
        x[rng.random(shape) < _GAPS] = np.nan
    return x


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def _patterns(count: int, rng: np.random.Generator) -> np.ndarray:
    """bool [P, M]: every pattern of observed modalities, or for very many modalities a sample with the extremes."""
    if 2**count <= _MAX_ROWS:
        return np.array(list(itertools.product([False, True], repeat=count)))
    extremes = _extremes(count)
    return np.concatenate([extremes, rng.random((_MAX_ROWS - len(extremes), count)) < 0.5])


def _few(patterns: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Those that get batches of their own: all, unless there are very many; then some, with the extremes."""
    if len(patterns) <= _MANY_PATTERNS:
        return patterns
    return np.concatenate([_extremes(patterns.shape[1]), rng.permutation(patterns)[: _MANY_PATTERNS // 4]])


def _extremes(count: int) -> np.ndarray:
    """Nothing, everything, each modality alone, and everything but it."""
    single = np.eye(count, dtype=bool)
    return np.concatenate([np.zeros((1, count), bool), np.ones((1, count), bool), single, ~single])


def _compare_networks(runtime: Runtime, taken: taking.Taken, record: Record, rng: np.random.Generator) -> None:
    """Every part but the fusion, on data of its modality."""
    by_part = {translator_part(a): runtime.modalities[b] for a, b in itertools.permutations(runtime.modalities, 2)}
    by_part |= {name: spec for spec in runtime.modalities.values() for name in _parts_of(spec, taken)}
    # what a step takes belongs together: text_checks.py
    stepped = {step_part(m.name) for m in runtime.modalities.values() if m.tokens is not None and m.decodable}
    for name, part in taken.parts.items():
        if name == FUSION_PART or name in stepped:
            continue
        labelled = any(t.name == "label" for t in part.io.inputs)
        for first, rows in _batches(len(taken.classes) if labelled else 0):
            given = [
                (first + np.arange(rows)) % len(taken.classes)
                if t.name == "label"
                else _given(t, by_part.get(name), rows, rng)
                for t in part.io.inputs
                if t.name not in _names(part)
            ]
            theirs, ours = _noise(runtime, part, {"batch": rows}, rng)
            expected = part.module(*map(torch.from_numpy, [*given, *theirs]))
            expected = expected if isinstance(expected, tuple) else (expected,)
            actual = runtime._run(name, *given, *ours)
            logits = expected[0] if name in by_part and by_part[name].dtype == "int64" else None
            for tensor, e, a in zip(part.io.outputs, expected, actual, strict=True):
                case = f"labels from {first}, B={rows}" if labelled else f"B={rows}"
                record.add(name, tensor.name, case, e, a, logits if tensor.name == "prediction" else None)


def _batches(classes: int) -> Iterator[tuple[int, int]]:
    """The first label and the number of rows of batches in which every class has a row."""
    yield from ((0, rows) for rows in _BATCHES)
    yield from ((first, _ROWS) for first in range(_ROWS, classes, _ROWS))


def _parts_of(spec: ModalitySpec, taken: taking.Taken) -> list[str]:
    names = [f"{kind}_{spec.name}" for kind in ("encoder", "features", "lift", "decoder")]
    return [n for n in (*names, begin_part(spec.name), step_part(spec.name)) if n in taken.parts]


def _given(tensor: TensorSpec, spec: ModalitySpec | None, rows: int, rng: np.random.Generator) -> np.ndarray:
    """An input of a part."""
    if tensor.name == "x" and spec is not None:
        return _data(spec, rows, rng)
    shape = [rows if isinstance(n, str) else n for n in tensor.shape]
    if tensor.dtype == "bool":
        return rng.random(shape) < 0.5
    return _normal(rng, *shape)


def _names(part: taking.Part) -> set[str]:
    return {n.name for n in part.noise}


def _noise(
    runtime: Runtime, part: taking.Part, sizes: dict[str, int], rng: np.random.Generator
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Of one seed: the noise a part takes in torch, and what the graph takes, which may be the seed."""
    seed = int(rng.integers(2**63))
    noisy = [t for t in part.io.inputs if t.name in _names(part)]
    shapes = {t.name: [sizes[n] if isinstance(n, str) else n for n in t.shape] for t in noisy}
    made = [noise.make(n.kind, noise.branch(seed, n.branch), shapes[n.name]) for n in part.noise]
    if not made or runtime.manifest.sampling == "eps":
        return made, made
    return made, noise.seeded(seed, sizes.get("samples", sizes["batch"]))


def _masks(count: int, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    """Batches of masks, bool [B, M]: each pattern in every row, then patterns mixed."""
    patterns = _patterns(count, rng)
    for pattern in _few(patterns, rng):
        for rows in _BATCHES:
            yield f"observed={pattern.astype(int).tolist()}, B={rows}", np.tile(pattern, (rows, 1))
    for rows in _BATCHES:
        yield f"mixed rows, B={rows}", rng.random((rows, count)) < 0.5
    yield f"{len(patterns)} patterns as rows", patterns


def _compare_fusion(runtime: Runtime, taken: taking.Taken, record: Record, rng: np.random.Generator) -> None:
    part, count = taken.parts[FUSION_PART], len(runtime.modalities)
    for case, mask in _masks(count, rng):
        rows = len(mask)
        for samples in _SAMPLES if rows <= _ROWS else (1,):
            sizes, given = {"batch": rows, "samples": samples}, []
            for tensor in part.io.inputs:
                if tensor.name in _names(part):
                    continue
                shape = [sizes[n] if isinstance(n, str) else n for n in tensor.shape]
                value = mask if tensor.dtype == "bool" else _normal(rng, *shape)
                if tensor.name in ("mu", "logvar"):
                    value[~mask] = np.nan
                elif tensor.name.startswith("features_"):
                    value[~mask.all(1)] = np.nan
                given.append(value)
            theirs, ours = _noise(runtime, part, sizes, rng)
            expected = part.module(*map(torch.from_numpy, [*given, *theirs]))
            actual = runtime._run(FUSION_PART, *given, *ours)
            for tensor, e, a in zip(part.io.outputs, expected, actual, strict=True):
                record.add(FUSION_PART, tensor.name, f"{case}, K={samples}", e, a)


def compare_verbs(runtime: Runtime, model: Any, record: Record, rng: np.random.Generator) -> None:
    """The Runtime's verbs against those of a model or system."""
    full = {name: _data(spec, _ROWS, rng) for name, spec in runtime.modalities.items()}
    if runtime.manifest.system == GAN_SYSTEM:
        dim, condition = runtime.manifest.condition_dim, None
        if dim:
            condition = _normal(rng, _ROWS, dim)
        for seed in _SEEDS:
            given = None if condition is None else torch.from_numpy(condition)
            expected = model.sample(_ROWS, given, seed=seed)
            actual = runtime.sample(_ROWS, seed=seed, condition=condition)[model.name]
            record.add("Runtime.sample", model.name, f"seed={seed}", expected, actual)
    elif runtime.manifest.system == CYCLEGAN_SYSTEM:
        for to in runtime.modalities:
            expected = model.translate({n: torch.from_numpy(x) for n, x in full.items()}, to)
            record.add("Runtime.cross_generate", to, f"B={_ROWS}", expected, runtime.cross_generate(full, to))
    else:
        _compare_runtime(runtime, getattr(model, "model", model), record, rng)
    if runtime.manifest.system == CLASSIFIER_SYSTEM:
        batch = {n: torch.from_numpy(x) for n, x in full.items()}
        for mask in _few(_patterns(len(full), rng), rng):
            rows = np.tile(mask, (_ROWS, 1))
            expected = model.predict_proba(batch, torch.from_numpy(rows))
            actual, case = runtime.predict_proba(full, rows), f"observed={mask.astype(int).tolist()}"
            record.add("Runtime.predict_proba", "probabilities", case, expected, actual)


def _compare_runtime(runtime: Runtime, model: MultimodalVAE, record: Record, rng: np.random.Generator) -> None:
    """The Runtime's verbs against the model's own."""
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
    for seed in _SEEDS if model.generative else ():
        own: dict[str, Any] = {"seed": seed}
        sample: Any = model.sample  # a CVAE's takes a condition
        record_of = (model, record, "Runtime.sample", f"seed={seed}")
        _compare_predictions(*record_of, partial(model.sample, _ROWS, **own), runtime.sample(_ROWS, **own))
        if runtime.manifest.context_dim:
            given = {n: x for n, x in full.items() if not runtime.modalities[n].decodable}
            theirs = {n: torch.from_numpy(x) for n, x in given.items()}
            predict = partial(sample, 2, **own, condition=theirs)
            _compare_predictions(*record_of, predict, runtime.sample(2, **own, condition=given))


def _compare_call(
    runtime: Runtime,
    model: MultimodalVAE,
    record: Record,
    case: str,
    inputs: dict[str, np.ndarray],
    mask: np.ndarray | None,
) -> None:
    batch = {name: torch.from_numpy(x) for name, x in inputs.items()}
    observed = None if mask is None else torch.from_numpy(mask)
    expected: Any = model.encode(batch, observed)
    actual = runtime.encode(inputs, mask)
    kl = functional.gaussian_kl(expected.mu.contiguous(), expected.logvar.contiguous())
    moments = {"mu": expected.mu, "logvar": expected.logvar, "kl": kl, "point": expected.point}
    for output, e in moments.items():
        record.add("Runtime.encode", output, case, e, getattr(actual, output))
    exact = _drawn_exactly(model, inputs, mask)
    for samples, of in zip(_SAMPLES, _SEEDS, strict=True):
        z = runtime.posterior_sample(inputs, samples, seed=of, mask=mask)
        if exact.any():
            drawn = expected.sample(samples, seed=of)[:, torch.from_numpy(exact)]
            record.add("Runtime.posterior_sample", "z", f"{case}, K={samples}", drawn, z[:, exact])
    for seed in (None, *_SEEDS[:1]) if any(model.private_dims.values()) else (None,):
        predict = partial(model.reconstruct, batch, observed, seed=seed)
        found = runtime.reconstruct(inputs, mask, seed=seed)
        named = case if seed is None else f"{case}, seed={seed}"
        _compare_predictions(model, record, "Runtime.reconstruct", named, predict, found)


def _drawn_exactly(model: MultimodalVAE, inputs: dict[str, np.ndarray], mask: np.ndarray | None) -> np.ndarray:
    """Rows in which a bundle draws z as the model does, bool [B]: all, but those with chains. The model says which, not
    the bundle: it is the bundle that is checked."""
    rows, count = len(next(iter(inputs.values()))), len(model.modalities)
    if not taking.notes(model):
        return np.ones(rows, bool)
    there = np.full(rows, len(inputs)) if mask is None else mask.sum(1)
    return (there < 2) | (there == count)


def _compare_predictions(
    model: MultimodalVAE,
    record: Record,
    part: str,
    case: str,
    predict: Callable[[], dict[str, Tensor]],
    actual: dict[str, np.ndarray],
) -> None:
    """What the model predicts, with the logits of what is an argmax."""
    params: dict[str, Tensor] = {}

    def recorded(name: str, z: Tensor) -> Tensor:
        if model.modalities[name].autoregressive:
            return z  # given what the bundle generated of it, the model's choice of every token is known
        params[name] = model._decode(name, z)
        return model.modalities[name].predict(params[name])

    with taking.replaced(model, "_predict", recorded):
        expected = predict()
    for name, prediction in expected.items():
        if model.modalities[name].autoregressive:
            add_text(record, (part, name, case), model, prediction, actual[name])
            continue
        ids = model.modalities[name].dtype == torch.int64
        record.add(part, name, case, prediction, actual[name], params[name] if ids else None)
