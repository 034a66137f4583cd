"""Writes a trained model as a bundle: ``encoder_<m>.onnx``, ``fusion.onnx``, ``decoder_<m>.onnx``, ``manifest.json``.

Separate files, because ONNX Runtime computes a whole graph whatever is asked of it: this way nobody pays for an absent
encoder or an unwanted decoder. No randomness inside: the noise is an input, made from a seed by ``noise.py``.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmvae_fast import __version__, _files, _lazy
from mmvae_fast.onnx import graphs, single, texts, verification
from mmvae_fast.onnx import manifest as manifests
from mmvae_fast.onnx.errors import BundleError, ExportError
from mmvae_fast.onnx.manifest import Manifest, PartSpec
from mmvae_fast.onnx.parts import Taken
from mmvae_fast.onnx.report import Report, check_tolerance
from mmvae_fast.onnx.seeded import seed_graph
from mmvae_fast.onnx.systems import EXPORTABLE, take_any_apart
from mmvae_fast.onnx.tracing import full_precision
from mmvae_fast.reading import recipes

if TYPE_CHECKING:
    from mmvae_fast.onnx.quantize import QuantizeResult

Exportable = Any  # one of EXPORTABLE: a model, or a system
LAYOUTS = ("bundle", "single")
OPSETS = range(18, 24)  # below, Split breaks; above, no ONNX Runtime of the supported range runs them all


@dataclass(frozen=True)
class ExportResult:
    """What :func:`export_onnx` wrote, and how well it agrees with torch (``report`` is None with ``verify=False``)."""

    folder: Path
    manifest: Manifest
    report: Report | None
    seconds: float
    quantization: QuantizeResult | None = None

    @property
    def files(self) -> list[Path]:
        if self.folder.suffix == ".onnx" and self.folder.is_file():  # layout "single"
            return [self.folder]
        return [self.folder / name for name in (*self.manifest.files, manifests.FILE_NAME)]

    def __str__(self) -> str:
        size = sum(f.stat().st_size for f in self.files) / 2**20
        text = f"{self.folder}: {len(self.files)} files, {size:.1f} MiB, written in {self.seconds:.1f} s"
        return "\n".join([text, *(str(found) for found in (self.report, self.quantization) if found is not None)])


@full_precision()
def export_onnx(
    model: Exportable,
    folder: str | Path,
    *,
    opset: int = 20,
    overwrite: bool = False,
    verify: bool = True,
    layout: str = "bundle",
    sampling: str = "eps",
    quantize: str | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-5,
    preprocessing: Mapping[str, Mapping[str, Any]] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> ExportResult:
    """Export a trained model for serving with :class:`~mmvae_fast.onnx.Runtime` or any ONNX runtime.

    Works on a float32 CPU copy in evaluation mode; the model itself is not touched. The bundle is built and verified in
    a temporary folder and put in place at the end: whatever goes wrong, or interrupts, leaves what was there before. An
    empty folder is filled, so it may be a mount point or where a process stands; an older bundle's is replaced.

    Args:
        model: of ``mmvae_fast.models``, or a FusionClassifier, GAN or CycleGAN of ``mmvae_fast.systems``; docs/onnx.md
            says what a bundle serves of each.
        folder: where the bundle goes; new, empty, or with ``overwrite`` an older bundle.
        opset: ONNX operator set, 18 to 23.
        verify: compare with torch on every mask pattern before reporting success; see :func:`verify`.
        layout: "bundle", or "single": everything in one file, ``folder`` being its path *.onnx, for runtimes that know
            nothing of bundles; see :mod:`mmvae_fast.onnx.single`. The Runtime serves bundles.
        sampling: "eps": noise is an input of the graphs, which the Runtime makes from a seed; "philox": a seed is, and
            the graphs make the same noise, for runtimes that cannot.
        quantize: None, or "int8" or "int8-vnni": once verified in 32 bits, the bundle is delivered with encoders and
            decoders of 8, unless that changes an output too much; :func:`quantize_onnx` has more options.
        rtol, atol: what the verification allows, abs(onnx - torch) <= atol + rtol * abs(torch).
        preprocessing: by name of a modality, how its values were read: its reader's ``config()``, of which the bundle
            keeps what :meth:`Runtime.read` and ``show`` need to take and give files, texts and numbers in their own
            units.
        metadata: whatever JSON can hold, kept in the manifest.

    Raises:
        TypeError, ValueError: not a model, or an opset or tolerance out of range.
        FileExistsError: ``folder`` exists and holds something, and ``overwrite`` is False, or it is not a bundle, or it
            is a mount point.
        ExportError: a model that a bundle has no place for, or a part that cannot be expressed in ONNX; names it.
        ExportVerificationError: the bundle does not compute what the model does.
        QuantizationError: with ``quantize``, an output that differs too much in 8 bits.
        ImportError: onnx, onnxscript or onnxruntime is not installed.
    """
    began = time.perf_counter()
    for module, extra in (("onnx", "onnx"), ("onnxscript", "onnx"), ("onnxruntime", "runtime")):
        _lazy.require(module, extra=extra)
    if opset not in OPSETS:
        raise ValueError(f"opset is {opset!r}, expected {OPSETS.start} to {OPSETS.stop - 1}")
    if sampling not in manifests.SAMPLINGS:
        raise ValueError(f"sampling is {sampling!r}, expected one of {manifests.SAMPLINGS}")
    _check_model(model)
    metadata, read = _plain(metadata), reading(model, preprocessing or {})
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}, expected one of {LAYOUTS}")
    check_tolerance("rtol", rtol)
    check_tolerance("atol", atol)
    _check_quantize(quantize, layout)
    _check_tokenizers(model)
    if layout == "single":
        options = (opset, sampling, read, metadata)
        return _export_single(cpu_copy(model), Path(folder), options, overwrite, verify, (rtol, atol), began)
    folder = Path(folder).resolve()  # through a link to a folder: the link stays, what it points to is replaced
    _files.recover_folder(folder)
    _check_target(folder, overwrite)
    twin = cpu_copy(model)
    fill = folder.is_dir() and not any(folder.iterdir())
    with _files.temporary_sibling(folder / "bundle" if fill else folder) as temp:
        manifest = _write_bundle(twin, temp, opset, sampling, read, metadata)
        report = small = None
        if verify:
            report = verification.compare(temp, twin, rtol=rtol, atol=atol, reading=read)
            report.raise_if_failed()
        if quantize is not None:
            small = _quantized(temp, folder, quantize)
            manifest = small.manifest
        if fill:
            _files.fill_folder(temp, folder, last=manifests.FILE_NAME)
        else:
            _check_target(folder, overwrite)  # somebody may have put something there meanwhile
            _files.replace_folder(temp, folder)
    return ExportResult(folder, manifest, report, time.perf_counter() - began, small)


def _check_quantize(preset: str | None, layout: str) -> None:
    from mmvae_fast.onnx.quantize import PRESETS

    if preset is not None and preset not in PRESETS:
        raise ValueError(f"quantize is {preset!r}, expected None or one of {', '.join(map(repr, PRESETS))}")
    if preset is not None and layout == "single":
        raise ValueError(f"quantize is {preset!r} with layout 'single', expected layout 'bundle'")


def _quantized(temp: Path, folder: Path, preset: str) -> QuantizeResult:
    """The bundle in ``temp``, on its way to ``folder``, in 8 bits."""
    from mmvae_fast.onnx.quantize import QuantizationError, quantize_onnx

    try:
        small = quantize_onnx(temp, temp / "quantized", preset=preset)
    except QuantizationError as error:
        raise QuantizationError(str(error).replace(str(temp), str(folder))) from None
    for path in temp.iterdir():
        if path != small.folder:
            path.unlink()
    for path in small.folder.iterdir():
        os.rename(path, temp / path.name)
    small.folder.rmdir()
    return replace(small, folder=folder)


def _check_model(model: Any) -> None:
    if not isinstance(model, EXPORTABLE):
        raise TypeError(
            f"model is a {type(model).__name__}, expected a model of mmvae_fast.models, or of mmvae_fast.systems a "
            "FusionClassifier, GAN or CycleGAN"
        )


def _check_tokenizers(model: Exportable) -> None:
    """Before anything is traced: a bundle's reader would refuse what a stranger's bundle may not hold."""
    for name, modality in model.modalities.items():
        described: Any = getattr(modality, "tokenizer", None)
        if described is None:
            continue
        try:
            texts.tokenizer(f"modality {name!r}", described.to_str())
        except BundleError as error:
            raise ExportError(f"{error}: bundles hold no others (docs/onnx.md); train with one of these") from error


def reading(model: Exportable, preprocessing: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of readers' descriptions, what concerns single samples."""
    reading = {}
    for name, config in preprocessing.items():
        if name not in model.modalities:
            raise ValueError(f"preprocessing names {name!r}, expected some of the modalities {list(model.modalities)}")
        modality = model.modalities[name]
        try:
            how = recipes.of_reader(config, modality.kind)
            words = getattr(modality, "words", None)
            reading[name] = recipes.make(modality.kind, how, tuple(modality.shape), words).config()
        except (ValueError, TypeError, OverflowError, AttributeError) as error:
            expected = f"what the config() of a reader of its kind, {modality.kind!r}, says"
            raise ValueError(f"preprocessing of {name!r}: {error}; expected {expected}") from error
    return reading


def _plain(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(dict(metadata or {}), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata is {metadata!r}, expected a dict that JSON can hold ({error})") from None


def cpu_copy(model: Exportable) -> Any:
    """The model as it is exported: a copy on the CPU, in float32 and evaluation mode."""
    try:
        return copy.deepcopy(model).cpu().float().eval()
    except RuntimeError as error:  # tensors that torch computes of others: torch.nn.utils.weight_norm, of old
        raise ExportError(
            f"the model cannot be copied ({error}); of torch.nn.utils.weight_norm and spectral_norm use those of "
            "torch.nn.utils.parametrizations, or remove them first"
        ) from error


def _write_bundle(
    model: Exportable,
    folder: Path,
    opset: int,
    sampling: str,
    reading: Mapping[str, Any],
    metadata: Mapping[str, Any],
) -> Manifest:
    taken = take_any_apart(model)
    expected = replace(taken.interface, sampling=sampling).io()
    programs, parts = {}, {}
    for name, part in taken.parts.items():
        programs[name] = program = graphs.program(name, part, opset)
        if part.noise and sampling == "philox":
            seed_graph(program, part.noise)
        graphs.clean(name, program)
        inputs, outputs = graphs.specs(program.graph.inputs), graphs.specs(program.graph.outputs)
        parts[name] = PartSpec(graphs.file_name(name), inputs, outputs, part.noise)
        if wrong := manifests.mismatch(parts[name].io, expected[name]):  # a custom network may return anything
            raise ExportError(f"{name}: {wrong}")
    manifest = _manifest(model, taken, parts, opset, metadata, sampling, reading)
    for name, program in programs.items():
        program.metadata_props[manifests.METADATA_KEY] = manifest.dumps(indent=None)
        graphs.save(program, folder, name)
    for spec in manifest.modalities:
        if spec.tokens is not None:
            text: Any = model.modalities[spec.name]
            (folder / spec.tokens.file).write_text(text.tokenizer.to_str(), encoding="utf-8")
    manifest = manifests.with_hashes(manifest, folder, [f.name for f in folder.iterdir()])
    manifests.write(manifest, folder)
    return manifest


def _export_single(
    model: Exportable,
    path: Path,
    options: tuple[Any, ...],
    overwrite: bool,
    verify: bool,
    tolerances: tuple[float, float],
    began: float,
) -> ExportResult:
    """One file, in place at the end or not at all."""
    opset, sampling, reading, metadata = options
    if path.suffix != ".onnx":
        raise ValueError(f"layout 'single': the path is {path}, expected a file *.onnx")
    if path.is_dir() or (path.exists() and not overwrite):
        raise FileExistsError(f"{path} already exists; pass overwrite=True to replace the file, or choose another path")
    taken = take_any_apart(model)
    part = single.whole(taken)
    program = graphs.program(single.MODEL_PART, part, opset)
    if sampling == "philox":
        seed_graph(program, part.noise)
    graphs.clean(single.MODEL_PART, program)
    found = PartSpec(path.name, graphs.specs(program.graph.inputs), graphs.specs(program.graph.outputs), part.noise)
    manifest = _manifest(model, taken, {single.MODEL_PART: found}, opset, metadata, sampling, reading)
    program.metadata_props[manifests.METADATA_KEY] = manifest.dumps(indent=None)
    report = None
    with _files.temporary_sibling(path) as temp:
        file = temp / graphs.save(program, temp, single.MODEL_PART)
        if len(list(temp.iterdir())) > 1:
            raise ExportError(f"{path}: more than {graphs.MAX_INLINE_BYTES} bytes do not fit one file; export a bundle")
        if verify:
            report = verification.compare_single(file, model, sampling, rtol=tolerances[0], atol=tolerances[1])
            report.raise_if_failed()
        os.replace(file, path)
    return ExportResult(path, manifest, report, time.perf_counter() - began)


def _manifest(
    model: Exportable,
    taken: Taken,
    parts: Mapping[str, PartSpec],
    opset: int,
    metadata: Mapping[str, Any],
    sampling: str,
    reading: Mapping[str, Any],
) -> Manifest:
    return Manifest(
        model=type(model).__name__,
        latent_dim=taken.interface.latent_dim,
        modalities=tuple(replace(m, preprocessing=reading.get(m.name)) for m in taken.interface.modalities),
        parts=parts,
        opset=opset,
        ir_version=graphs.IR_VERSION,
        versions=_versions(),
        posterior=taken.posterior,
        prior=taken.interface.prior,
        system=taken.interface.system,
        sampling=sampling,
        condition_dim=taken.interface.condition_dim,
        classes=taken.classes or None,
        context_dim=taken.interface.context_dim,
        notes=taken.notes,
        metadata=metadata,
    )


def _versions() -> Mapping[str, str]:
    modules = {name: _lazy.require(name, extra="onnx") for name in ("onnx", "onnxscript")}
    return {"mmvae_fast": __version__, "torch": str(torch.__version__)} | {n: m.__version__ for n, m in modules.items()}


# --- where it goes ----------------------------------------------------------------------------------------------------


def _check_target(folder: Path, overwrite: bool) -> None:
    """Refuse to replace anything but a bundle, and that only when told to."""
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise FileExistsError(
                f"{folder} already exists; pass overwrite=True to replace the bundle in it, or choose another folder"
            )
        if os.path.ismount(folder):
            raise FileExistsError(f"{folder} is a mount point, which cannot be replaced; choose a folder inside it")
    _files.check_replaceable(folder, manifests.is_bundle, "a folder with nothing but a bundle of mmvae_fast")
