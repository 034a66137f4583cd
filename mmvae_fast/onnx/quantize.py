"""A bundle with 8-bit weights: smaller, mostly faster, and refused where it would answer differently.

What is quantised are the matrix products of encoders and decoders, per output channel, with activations scaled as they
come ("dynamic"). Convolutions stay (ONNX Runtime's 8-bit ones are slower), and so does the fusion, whose logarithms and
quotients of precisions lose everything in 8 bits. Needs onnx and onnxruntime, not torch.
"""

from __future__ import annotations

import logging
import os
import shutil
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mmvae_fast import _files, _lazy
from mmvae_fast.onnx import manifest as manifests
from mmvae_fast.onnx import values
from mmvae_fast.onnx.errors import BundleError, ExportError
from mmvae_fast.onnx.manifest import Manifest, PartSpec, encoder_part
from mmvae_fast.onnx.runtime import Runtime

PRESETS = {"int8": True, "int8-vnni": False}
"""Whether weights keep to 7 of the 8 bits. With 8, processors without VNNI instructions saturate in 16-bit sums and
answer wrongly without a word; so "int8" is right everywhere, and "int8-vnni" is for machines one knows."""

_ENCODER = "encoder_"
_NETWORKS = (_ENCODER, "decoder_")
_LEAST_LATENT = 0.1
"""Means and log-variances are measured on the prior's scale, 1: near 0, relative errors say nothing."""
_OPERATORS = ["MatMul", "Gemm"]
_TIMED_ROWS = (1, 32)
_ROWS = 64


class QuantizationError(ExportError):
    """A quantised bundle that answers too differently; names part, output, error and limit."""


@dataclass(frozen=True)
class Deviation:
    """One output of one part against the float bundle's: the relative RMS error, sqrt(mean (q - f)^2 / mean f^2) (of
    encoders' outputs, relative to 0.1 at least), or for token ids the share that differs."""

    part: str
    output: str
    error: float
    tokens: bool

    def __str__(self) -> str:
        what = "of the tokens differ" if self.tokens else "relative RMS error"
        return f"{self.part:<28} {self.output:<16} {100 * self.error:>8.3f} % {what}"


@dataclass(frozen=True)
class QuantizeResult:
    """What :func:`quantize_onnx` wrote; printable.

    ``seconds`` gives for every timed batch size the time of all quantised parts, (float, quantised), on one thread.
    """

    folder: Path
    manifest: Manifest
    quantized: tuple[str, ...]
    deviations: tuple[Deviation, ...]
    bytes: tuple[int, int]
    seconds: Mapping[int, tuple[float, float]]
    limit: float

    def __str__(self) -> str:
        before, after = (n / 2**20 for n in self.bytes)
        lines = [str(d) for d in self.deviations]
        lines.append(f"size {before:.2f} MiB -> {after:.2f} MiB ({after / before:.2f})")
        for rows, (plain, small) in self.seconds.items():
            lines.append(
                f"batch {rows:<3} {1e3 * plain:.3f} ms -> {1e3 * small:.3f} ms ({small / plain:.2f}), one thread"
            )
        lines.append(f"{self.folder}: {len(self.quantized)} parts of 8 bits, limit {100 * self.limit:g} %")
        return "\n".join(lines)


def quantize_onnx(
    bundle: str | Path,
    out: str | Path,
    *,
    preset: str = "int8",
    limit: float = 0.03,
    data: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    seed: int = 0,
) -> QuantizeResult:
    """Write a copy of a bundle whose encoders and decoders multiply in 8 bits.

    The copy is a bundle like any other: :meth:`Runtime.load` takes it. It is compared with the float one on ``data``
    and put in place only if every output agrees; whatever goes wrong leaves ``out`` as it was.

    Args:
        bundle: what ``export_onnx`` wrote.
        out: a folder that is new, empty, or with ``overwrite`` an older bundle; not ``bundle`` itself.
        preset: "int8" for any processor, "int8-vnni" for one with VNNI (twice the resolution); see :data:`PRESETS`.
        limit: largest relative RMS error of an output; token ids are reported, their logits count.
        data: name -> array [B, *shape], on which to compare encoders; by default what the bundle itself makes from
            samples of its prior. Real rows give the truer figure. Decoders are compared on samples of the prior.
        seed: of those samples.

    Raises:
        BundleError: the bundle is damaged, or has no matrix products to quantise.
        QuantizationError: an output differs by more than ``limit``.
        ValueError: an unknown preset, a limit that is no share, or ``out`` is ``bundle``.
        FileExistsError: ``out`` holds something else, or ``overwrite`` is False.
        ImportError: onnx or onnxruntime is not installed.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset is {preset!r}, expected one of {', '.join(map(repr, PRESETS))}")
    if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not 0 < limit <= 1:
        raise ValueError(f"limit is {limit!r}, expected a share above 0, at most 1")
    _lazy.require("onnx", extra="onnx")
    folder, target = Path(bundle), Path(os.path.realpath(out))
    runtime = Runtime.load(folder)
    if target == folder.resolve():
        raise ValueError(f"{out} is the bundle itself, expected another folder")
    _files.recover_folder(target)
    _check_target(target, overwrite)
    inputs = _encoder_inputs(runtime, data, seed)
    with _files.temporary_sibling(target) as temp:
        manifest, quantized = _write(runtime.manifest, folder, temp, preset)
        deviations, seconds = _compare(manifest, quantized, folder, temp, inputs, seed)
        _refuse(folder, deviations, float(limit))
        before, after = (sum((path / runtime.manifest.parts[p].file).stat().st_size for p in quantized)
                         for path in (folder, temp))  # fmt: skip
        Runtime.load(temp)  # it is what it claims to be
        _check_target(target, overwrite)  # somebody may have put something there meanwhile
        _files.replace_folder(temp, target)
    return QuantizeResult(target, manifest, quantized, deviations, (before, after), seconds, float(limit))


def _check_target(target: Path, overwrite: bool) -> None:
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise FileExistsError(
            f"{target} already exists; pass overwrite=True to replace the bundle in it, or choose another folder"
        )
    _files.check_replaceable(target, manifests.is_bundle, "a folder with nothing but a bundle of mmvae_fast")


# --- writing ----------------------------------------------------------------------------------------------------------


def _write(manifest: Manifest, folder: Path, temp: Path, preset: str) -> tuple[Manifest, tuple[str, ...]]:
    """The bundle's files in ``temp``, and which parts are smaller there."""
    marked = replace(manifest, versions={**manifest.versions, "quantization": preset})
    quantized = [name for name in manifest.parts if name.startswith(_NETWORKS)]
    quantized = [name for name in quantized if _quantize(manifest, name, folder, temp, marked, PRESETS[preset])]
    if not quantized:
        raise BundleError(f"{folder}: no encoder or decoder has a matrix product to quantise")
    written = {path.name for path in temp.iterdir()}
    sidecars = {f"{manifest.parts[name].file}.data" for name in quantized}  # replaced by a new one, or not needed now
    for name in manifest.files:
        if name not in written and name not in sidecars:
            shutil.copyfile(folder / name, temp / name)
    marked = manifests.with_hashes(marked, temp, [path.name for path in temp.iterdir()])
    manifests.write(marked, temp)
    return marked, tuple(quantized)


def _quantize(manifest: Manifest, name: str, folder: Path, temp: Path, marked: Manifest, reduce_range: bool) -> bool:
    """Write one part in 8 bits; False if there is nothing in it to quantise."""
    import onnx

    quantization = _lazy.require("onnxruntime.quantization", extra="runtime")
    file = manifest.parts[name].file
    huge = f"{file}.data" in manifest.files  # weights beside a graph, where a protobuf ends
    try:
        model = onnx.load(str(folder / file))
        weights = {tensor.name for tensor in model.graph.initializer}
        if not any(node.op_type in _OPERATORS and weights.intersection(node.input) for node in model.graph.node):
            return False
        shapes = [value for value in model.graph.value_info if value.name not in weights]  # would be taken for wrong
        del model.graph.value_info[:]
        model.graph.value_info.extend(shapes)
        _unshare(model)
        with _quiet():
            quantization.quantize_dynamic(
                model,
                temp / file,
                op_types_to_quantize=_OPERATORS,
                per_channel=True,
                reduce_range=reduce_range,
                weight_type=quantization.QuantType.QInt8,
                use_external_data_format=huge,
            )
        if not huge:
            model = onnx.load(str(temp / file))
            model.producer_name = manifests.METADATA_KEY
            onnx.helper.set_model_props(
                model,
                {p.key: p.value for p in model.metadata_props} | {manifests.METADATA_KEY: marked.dumps(indent=None)},
            )
            (temp / file).write_bytes(model.SerializeToString())
    except Exception as error:  # of onnx, protobuf and onnxruntime, from private modules
        raise BundleError(f"{folder / file}: cannot be quantised ({type(error).__name__}: {error})") from error
    return True


def _unshare(model: Any) -> None:
    """Give every Gemm a weight of its own, in place: onnxruntime's quantiser transposes a weight where it lies, so one
    that two of them share (a layer applied twice) would be turned twice, and a square one answer wrongly in silence."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    used: set[str] = set()
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name not in tensors:
                continue
            if name in used and node.op_type == "Gemm":
                copy = model.graph.initializer.add()
                copy.CopyFrom(tensors[name])
                copy.name = node.input[i] = f"{name}_of_{node.name or node.output[0]}"
            used.add(name)


@contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime's quantiser logs advice on the root logger, which is not for the user."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)


# --- comparing --------------------------------------------------------------------------------------------------------


def _encoder_inputs(runtime: Runtime, data: Mapping[str, Any] | None, seed: int) -> dict[str, np.ndarray]:
    """Part -> rows for it, for the encoders; checked as the Runtime checks what it is given."""
    rows: dict[str, Any] = dict(data) if data is not None else {}
    if rows:
        runtime.encode(rows)  # unknown names, shapes, dtypes
    missing = [name for name in runtime.modalities if name not in rows]
    if missing:
        made = values.example(runtime, _ROWS, seed)
        with suppress(ValueError):  # of models without a prior of their own, the meaningless ones do
            made |= runtime.sample(_ROWS, seed=seed)
        rows |= {name: made[name] for name in missing}
    dtypes = {name: np.dtype(spec.dtype) for name, spec in runtime.modalities.items()}
    return {encoder_part(name): np.asarray(rows[name]).astype(dtype) for name, dtype in dtypes.items()}


def _compare(
    manifest: Manifest,
    quantized: Sequence[str],
    folder: Path,
    temp: Path,
    inputs: Mapping[str, np.ndarray],
    seed: int,
) -> tuple[tuple[Deviation, ...], dict[int, tuple[float, float]]]:
    """How far the quantised parts are off, and how long both take."""
    rng = np.random.default_rng(seed)
    deviations: list[Deviation] = []
    calls: dict[int, tuple[list[Callable], list[Callable]]] = {rows: ([], []) for rows in _TIMED_ROWS}
    for name in quantized:
        part = manifest.parts[name]
        float_one, small_one = (_session(path / part.file) for path in (folder, temp))
        feed = _feed(part, manifest, rng, inputs.get(name))
        try:
            both = float_one.run(None, feed), small_one.run(None, feed)
        except Exception as error:  # onnxruntime's classes live in a private module
            raise BundleError(f"{folder / part.file}: cannot be run ({error})") from error
        for spec, f, q in zip(part.outputs, *both, strict=True):
            least = _LEAST_LATENT if name.startswith(_ENCODER) else 0.0
            deviations.append(Deviation(name, spec.name, _error(f, q, least), f.dtype.kind == "i"))
        for rows, (plain, small) in calls.items():
            timed = _feed(part, manifest, rng, None, rows)
            plain.append(lambda s=float_one, x=timed: s.run(None, x))
            small.append(lambda s=small_one, x=timed: s.run(None, x))
    return tuple(deviations), {rows: _seconds(*both) for rows, both in calls.items()}


def _feed(
    part: PartSpec, manifest: Manifest, rng: np.random.Generator, given: np.ndarray | None, rows: int = _ROWS
) -> dict[str, np.ndarray]:
    """Inputs of a part: ``given`` for its first if there is, else normals, and tokens that every vocabulary has."""
    tokens = min((m.vocabulary_size for m in manifest.modalities if m.vocabulary_size), default=2)
    feed: dict[str, np.ndarray] = {}
    for i, spec in enumerate(part.inputs):
        if i == 0 and given is not None:
            feed[spec.name], rows = given, len(given)
            continue
        sizes = {"batch": rows}
        shape = tuple(sizes.get(n, 1) if isinstance(n, str) else n for n in spec.shape)
        if spec.dtype == "int64":
            feed[spec.name] = rng.integers(0, tokens, shape) if shape else np.zeros((), np.int64)  # a step's number
        elif spec.dtype == "bool":
            feed[spec.name] = np.ones(shape, dtype=bool)
        else:
            feed[spec.name] = rng.standard_normal(shape, dtype=np.float32)
    return feed


def _error(plain: np.ndarray, small: np.ndarray, least: float) -> float:
    """Relative to the RMS of ``plain``, or to ``least`` where that is smaller."""
    if plain.dtype.kind == "i":
        return float(np.mean(plain != small)) if plain.size else 0.0
    with np.errstate(invalid="ignore"):
        distance = small.astype(np.float64) - plain
    distance[small == plain] = 0.0  # equal infinities too: logits of what is never said
    known = plain[np.isfinite(plain)].astype(np.float64)
    difference = np.sqrt(np.mean(np.square(distance))) if distance.size else 0.0
    size = max(np.sqrt(np.mean(np.square(known))), least) if known.size else least
    if difference == 0:
        return 0.0
    return float(difference / size) if size > 0 and np.isfinite(difference) else float("inf")


def _refuse(folder: Path, deviations: Sequence[Deviation], limit: float) -> None:
    worst = max((d for d in deviations if not d.tokens), key=lambda d: d.error, default=None)
    if worst is not None and not worst.error <= limit:
        raise QuantizationError(
            f"{folder}: output {worst.output!r} of {worst.part} differs by {100 * worst.error:.2f} % (relative RMS "
            f"error) in 8 bits, expected at most {100 * limit:g} %; give a higher limit, or serve the float bundle"
        )


def _session(path: Path) -> Any:
    ort = _lazy.require("onnxruntime", extra="runtime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BundleError(f"{path}: onnxruntime {ort.__version__} cannot load it ({error})") from error


def _seconds(plain: Sequence[Callable], small: Sequence[Callable], rounds: int = 15) -> tuple[float, float]:
    """Median seconds of both, taking turns, in CPU time of this thread: neighbours on the machine do not count."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for calls, into in zip((plain, small), times, strict=True):
            start = time.thread_time()
            for call in calls:
                call()
            into.append(time.thread_time() - start)
    return statistics.median(times[0][1:]), statistics.median(times[1][1:])
