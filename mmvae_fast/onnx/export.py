"""Writes a trained model as a bundle: ``encoder_<m>.onnx``, ``fusion.onnx``, ``decoder_<m>.onnx``, ``manifest.json``.

Separate files, because ONNX Runtime computes a whole graph whatever is asked of it: this way nobody pays for an absent
encoder or an unwanted decoder. No randomness inside: the noise is an input, made from a seed by ``noise.py``.
"""

from __future__ import annotations

import copy
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmvae_fast import __version__, _checks, _ext, _files, _lazy, reference
from mmvae_fast.onnx import manifest as manifests
from mmvae_fast.onnx import verification
from mmvae_fast.onnx.errors import ExportError
from mmvae_fast.onnx.manifest import (
    FUSION_PART,
    IO,
    Manifest,
    ModalitySpec,
    PartSpec,
    TensorSpec,
    decoder_part,
    encoder_part,
)
from mmvae_fast.onnx.report import Report

if TYPE_CHECKING:
    from mmvae_fast.models import MultimodalVAE

OPSETS = range(18, 24)  # below, Split breaks; above, no ONNX Runtime of the supported range runs them all
IR_VERSION = 10  # the newest one that ONNX Runtime 1.18 reads
MAX_INLINE_BYTES = int(1.8 * 2**30)  # a protobuf ends at 2 GiB; larger weights go to a file beside it
_RANDOM_OPS = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}


@dataclass(frozen=True)
class ExportResult:
    """What :func:`export_onnx` wrote, and how well it agrees with torch (``report`` is None with ``verify=False``)."""

    folder: Path
    manifest: Manifest
    report: Report | None
    seconds: float

    @property
    def files(self) -> list[Path]:
        return [self.folder / name for name in (*self.manifest.files, manifests.FILE_NAME)]

    def __str__(self) -> str:
        size = sum(f.stat().st_size for f in self.files) / 2**20
        text = f"{self.folder}: {len(self.files)} files, {size:.1f} MiB, written in {self.seconds:.1f} s"
        return text if self.report is None else f"{text}\n{self.report}"


def export_onnx(
    model: MultimodalVAE, folder: str | Path, *, opset: int = 20, overwrite: bool = False, verify: bool = True
) -> ExportResult:
    """Export a trained model for serving with :class:`~mmvae_fast.onnx.Runtime` or any ONNX runtime.

    Works on a float32 CPU copy in evaluation mode; the model itself is not touched. The bundle is built and verified in
    a temporary folder and put in place at the end: whatever goes wrong, or interrupts, leaves what was there before. An
    empty folder is filled, so it may be a mount point or where a process stands; an older bundle's is replaced.

    Args:
        model: of ``mmvae_fast.models``, with one shared latent, the prior N(0, I) and a Gaussian posterior fused of
            one expert a modality; others are refused.
        folder: where the bundle goes; new, empty, or with ``overwrite`` an older bundle.
        opset: ONNX operator set, 18 to 23.
        verify: compare with torch on every mask pattern before reporting success; see :func:`verify`.

    Raises:
        TypeError, ValueError: not a model, or an opset out of range.
        FileExistsError: ``folder`` exists and holds something, and ``overwrite`` is False, or it is not a bundle, or it
            is a mount point.
        ExportError: a model that a bundle has no place for, or a part that cannot be expressed in ONNX; names it.
        ExportVerificationError: the bundle does not compute what the model does.
        ImportError: onnx, onnxscript or onnxruntime is not installed.
    """
    began = time.perf_counter()
    for module, extra in (("onnx", "onnx"), ("onnxscript", "onnx"), ("onnxruntime", "runtime")):
        _lazy.require(module, extra=extra)
    if opset not in OPSETS:
        raise ValueError(f"opset is {opset!r}, expected {OPSETS.start} to {OPSETS.stop - 1}")
    _check_model(model)
    folder = Path(folder).resolve()  # through a link to a folder: the link stays, what it points to is replaced
    _files.recover_folder(folder)
    _check_target(folder, overwrite)
    twin = cpu_copy(model)
    fill = folder.is_dir() and not any(folder.iterdir())
    with _files.temporary_sibling(folder / "bundle" if fill else folder) as temp:
        manifest = _write_bundle(twin, temp, opset)
        report = None
        if verify:
            report = verification.compare(temp, twin)
            report.raise_if_failed()
        if fill:
            _files.fill_folder(temp, folder, last=manifests.FILE_NAME)
        else:
            _check_target(folder, overwrite)  # somebody may have put something there meanwhile
            _files.replace_folder(temp, folder)
    return ExportResult(folder, manifest, report, time.perf_counter() - began)


def _check_model(model: Any) -> None:
    from mmvae_fast.models import MultimodalVAE

    if not isinstance(model, MultimodalVAE):
        raise TypeError(f"model is a {type(model).__name__}, expected a model of mmvae_fast.models")
    for name, modality in model.modalities.items():
        if modality.autoregressive:
            raise ExportError(
                f"modality {name!r} is {type(modality).__name__}, whose decoder generates token by token; so far a "
                "bundle holds decoders that give all of a sample at once, such as that of Text"
            )
    if what := _beyond_a_bundle(model):
        raise ExportError(
            f"{type(model).__name__} {what}; so far a bundle holds models with one shared latent, the prior N(0, I) "
            "and a Gaussian posterior fused of one expert a modality"
        )


def _beyond_a_bundle(model: MultimodalVAE) -> str | None:
    """What a model has that the three graphs and their runtime have no place for; None if nothing."""
    from mmvae_fast.models import MixturePosterior, MultimodalVAE
    from mmvae_fast.models.priors import StandardNormal

    if type(model).posterior is not MultimodalVAE.posterior:
        return "needs more for its posterior than one expert a modality"
    if any(size != model.latent_dim for size in model.network_dims.values()):
        return "has latents of single modalities"
    if not isinstance(model.prior, StandardNormal):
        return f"has a {type(model.prior).__name__} prior"
    nothing = [torch.zeros(1, model.latent_dim, dtype=model.dtype, device=model.device) for _ in model.modalities]
    mask = torch.ones(1, len(nothing), dtype=torch.bool, device=model.device)
    with torch.no_grad():
        mixture = isinstance(model.fuse(nothing, [t.clone() for t in nothing], mask), MixturePosterior)
    return "has a mixture for a posterior" if mixture else None


def cpu_copy(model: MultimodalVAE) -> MultimodalVAE:
    """The model as it is exported: a copy on the CPU, in float32 and evaluation mode."""
    return copy.deepcopy(model).cpu().float().eval()


def decompositions() -> dict[Any, Callable]:
    """Native op -> its plain-PyTorch twin, to export your own modules that call ``mmvae_fast.functional``.

    ``torch.export.export(module, args).run_decompositions(decompositions())`` leaves standard operators only, which
    ``torch.onnx.export`` then takes. Empty when the package was built without kernels: there is nothing to replace.
    """
    if not _ext.LOADED:
        return {}
    ops = torch.ops.mmvae_fast

    def experts(tensors: Sequence[Tensor]) -> Sequence[Tensor] | Tensor:
        return tensors[0] if len(tensors) == 1 and tensors[0].dim() == 3 else list(tensors)

    families, places = _checks.LIKELIHOODS, reference.PRIOR_PLACES

    def reparameterize(mu, logvar, seed, n_samples, family):
        return reference.reparameterize(mu, logvar, n_samples, family=families[family], seed=seed)

    def product_of_experts(mu, logvar, mask, prior, weights):
        return reference.product_of_experts(experts(mu), experts(logvar), mask, prior=prior, weights=weights)

    def poe_sample_kl(mu, logvar, mask, prior, n_samples, seed, expert_kl):
        *sample, to_experts = reference.poe_sample_kl(
            experts(mu), experts(logvar), mask, prior=prior, n_samples=n_samples, seed=seed, expert_kl=expert_kl
        )
        kl = sample[-1]
        return *sample, kl.new_empty(0, kl.shape[0]) if to_experts is None else to_experts

    def subset_posteriors(mu, logvar, mask, subsets, prior):
        return tuple(
            reference.subset_posteriors(experts(mu), experts(logvar), mask, subsets=subsets, prior=places[prior])
        )

    def mopoe_sample_kl(mu, logvar, mask, subsets, prior, seed):
        return tuple(
            reference.mopoe_sample_kl(
                experts(mu), experts(logvar), mask, subsets=subsets, prior=places[prior], seed=seed
            )
        )

    # The second output of the next two is for their backward alone: it stays unused in an exported graph.

    def mixture_log_prob(z, mu, scale, mask, family):
        log_prob = reference.mixture_log_prob(z, experts(mu), experts(scale), mask, family=families[family])
        return log_prob, log_prob.new_empty(0)

    def log_likelihood(x, params, scale, scale_value, family, event_dims, mask):
        learned = scale_value if scale is None else scale
        out = reference.log_likelihood(
            x, params, family=families[family], scale=learned, event_dims=event_dims, mask=mask
        )
        return out, out.new_empty(0)

    return {
        ops.reparameterize.default: reparameterize,
        ops.gaussian_kl.default: reference.gaussian_kl,
        ops.laplace_kl.default: reference.laplace_kl,
        ops.product_of_experts.default: product_of_experts,
        ops.poe_sample_kl.default: poe_sample_kl,
        ops.subset_posteriors.default: subset_posteriors,
        ops.mopoe_sample_kl.default: mopoe_sample_kl,
        ops.mixture_log_prob.default: mixture_log_prob,
        ops.log_likelihood.default: log_likelihood,
    }


# --- the parts of a model ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """A module to export, and what it is to take and give."""

    module: nn.Module
    io: IO


class _Fusion(nn.Module):
    """mu, logvar [B, M, D], mask [B, M], eps [K, B, D] -> z [K, B, D], mu, logvar [B, D], kl [B]."""

    def __init__(self, model: MultimodalVAE):
        super().__init__()
        self.model = model

    def forward(self, mu: Tensor, logvar: Tensor, mask: Tensor, eps: Tensor) -> tuple[Tensor, ...]:
        q = self.model.fuse(list(mu.unbind(1)), list(logvar.unbind(1)), mask)
        z = q.mu + torch.exp(0.5 * q.logvar) * eps
        return z, q.mu, q.logvar, reference.gaussian_kl(q.mu, q.logvar)


class _Decoder(nn.Module):
    """z [N, D] -> the likelihood's parameters, and the prediction in data space."""

    def __init__(self, decoder: nn.Module, predict: Callable[[Tensor], Tensor]):
        super().__init__()
        self.decoder, self.predict = decoder, predict

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        params = self.decoder(z)
        return params, self.predict(params) + 0  # a node of its own, even where the prediction is the parameters


def _parts(model: MultimodalVAE, modalities: Sequence[ModalitySpec]) -> dict[str, _Part]:
    modules: dict[str, nn.Module] = {FUSION_PART: _Fusion(model)}
    for name, modality in model.modalities.items():
        modules[encoder_part(name)] = model.encoders[name]
        modules[decoder_part(name)] = _Decoder(model.decoders[name], modality.predict)
    io = manifests.expected_io(model.latent_dim, modalities)
    return {name: _Part(module, io[name]) for name, module in modules.items()}


# --- from a part to a file --------------------------------------------------------------------------------------------

_EXAMPLE_SIZES = {"batch": 3, "samples": 2}  # not 1: a traced size of 1 could be taken for a constant


def _program(name: str, part: _Part, opset: int) -> Any:
    """The part as an ``onnx_ir.Model``."""
    dims = {d: torch.export.Dim(d) for d in _EXAMPLE_SIZES}
    examples, dynamic = [], []
    for tensor in part.io.inputs:
        size = [_EXAMPLE_SIZES[n] if isinstance(n, str) else n for n in tensor.shape]
        examples.append(torch.zeros(size, dtype=getattr(torch, tensor.dtype)))
        dynamic.append({i: dims[n] for i, n in enumerate(tensor.shape) if isinstance(n, str)})
    try:
        with torch.no_grad(), _quiet():
            program = torch.export.export(part.module, tuple(examples), dynamic_shapes=tuple(dynamic))
            native = decompositions()
            if _calls(program, native):  # decomposing takes as long as tracing, and most parts need none
                program = program.run_decompositions(native)
            exported = torch.onnx.export(
                program,
                input_names=[tensor.name for tensor in part.io.inputs],
                output_names=[tensor.name for tensor in part.io.outputs],
                dynamic_shapes=tuple(dynamic),  # once more, or the names of the dimensions are lost
                opset_version=opset,
                verbose=False,
            )
    except Exception as error:  # dozens of private classes, with pages of advice on torch's own flags
        raise ExportError(f"{name}: cannot be exported to ONNX: {error}") from error
    assert exported is not None  # it is only when writing to a file
    return exported.model


def _calls(program: torch.export.ExportedProgram, targets: Mapping[Any, Any]) -> bool:
    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    return any(node.target in targets for graph in graphs for node in graph.nodes)


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporting talks about optional packages and deprecations inside torch; none of it is for the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _clean(name: str, program: Any) -> None:
    """Make a graph fit for shipping, in place."""
    program.ir_version = IR_VERSION
    program.producer_name, program.producer_version = "mmvae_fast", __version__
    program.doc_string = program.graph.doc_string = None
    program.metadata_props.clear()
    program.graph.metadata_props.clear()
    for node in program.graph.all_nodes():  # those in the bodies of If and Loop too
        node.metadata_props.clear()  # stack traces with absolute paths of the machine that exported
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
        if node.op_type in _RANDOM_OPS:
            raise ExportError(
                f"{name}: uses {node.op_type}, which ignores torch's seeds in ONNX; keep random numbers out of "
                "encoders and decoders (for Dropout, see that the module honours eval())"
            )
        if node.op_type.startswith("Reduce"):
            _positive_axes(node)
    for value in (*program.graph.inputs, *program.graph.initializers.values()):
        value.metadata_props.clear()


def _positive_axes(node: Any) -> None:
    """Negative axes of a reduction of an empty batch give ONNX Runtime a wrong shape (seen in 1.31)."""
    import onnx_ir as ir

    if len(node.inputs) < 2 or node.inputs[1] is None or node.inputs[0].shape is None:
        return
    axes = ir.convenience.get_const_tensor(node.inputs[1])
    if axes is None:
        return
    given, rank = axes.numpy().reshape(-1), len(node.inputs[0].shape)
    if (given >= 0).all():
        return
    positive = [int(a) % rank for a in given]
    value = ir.Value(name=f"{node.outputs[0].name}_axes", const_value=ir.tensor(positive, dtype=ir.DataType.INT64))
    value.shape, value.dtype = ir.Shape([len(positive)]), ir.DataType.INT64
    node.graph.register_initializer(value)
    node.replace_input_with(1, value)


def _file(part: str) -> str:
    return f"{part}.onnx"  # models allow letters, digits, "_" and "-" in the names of modalities


def _save(program: Any, folder: Path, part: str) -> str:
    """Write the file (and its weights beside it when they are huge), and return its name."""
    import onnx_ir as ir

    file = _file(part)
    weights = sum(v.const_value.nbytes for v in program.graph.initializers.values())
    if weights >= MAX_INLINE_BYTES:
        ir.save(program, folder / file, external_data=f"{file}.data")
        return file
    proto = ir.to_proto(program)
    # shapes of weights stand in the weights; repeated here they break onnxruntime's quantization
    keep = [v for v in proto.graph.value_info if v.name not in program.graph.initializers]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(keep)
    (folder / file).write_bytes(proto.SerializeToString())
    return file


def _write_bundle(model: MultimodalVAE, folder: Path, opset: int) -> Manifest:
    modalities = tuple(_modality_spec(name, m) for name, m in model.modalities.items())
    programs, parts = {}, {}
    for name, part in _parts(model, modalities).items():
        programs[name] = program = _program(name, part, opset)
        _clean(name, program)
        parts[name] = PartSpec(_file(name), _specs(program.graph.inputs), _specs(program.graph.outputs))
        if wrong := manifests.mismatch(parts[name].io, part.io):  # a custom network may return anything
            raise ExportError(f"{name}: {wrong}")
    manifest = Manifest(
        model=type(model).__name__,
        latent_dim=model.latent_dim,
        modalities=modalities,
        parts=parts,
        opset=opset,
        ir_version=IR_VERSION,
        versions=_versions(),
    )
    for name, program in programs.items():
        program.metadata_props[manifests.METADATA_KEY] = manifest.dumps(indent=None)
        _save(program, folder, name)
    manifest = manifests.with_hashes(manifest, folder, [f.name for f in folder.iterdir()])
    manifests.write(manifest, folder)
    return manifest


def _specs(values: Sequence[Any]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(v.name, str(v.dtype.numpy()), tuple(d if isinstance(d, int) else d.value for d in v.shape))
        for v in values
    )


def _modality_spec(name: str, modality: Any) -> ModalitySpec:
    return ModalitySpec(
        name=name,
        kind=modality.kind,
        shape=tuple(modality.shape),
        param_shape=tuple(modality.param_shape),
        dtype=str(modality.dtype).removeprefix("torch."),
        likelihood=modality.likelihood,
        scale=float(modality.scale),
        vocabulary_size=getattr(modality, "vocabulary_size", None),
        vocabulary=getattr(modality, "words", None),
        gaps=getattr(modality, "missing", False),
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
