"""From a part of a model to a file: traced by torch, made fit for shipping, written."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mmvae_fast import __version__
from mmvae_fast.onnx.errors import ExportError
from mmvae_fast.onnx.manifest import TensorSpec
from mmvae_fast.onnx.parts import Part
from mmvae_fast.onnx.tracing import full_precision, plain_attention, quiet
from mmvae_fast.onnx.translation import decompositions

IR_VERSION = 10  # the newest one that ONNX Runtime 1.18 reads
MAX_INLINE_BYTES = int(1.8 * 2**30)  # a protobuf ends at 2 GiB; larger weights go to a file beside it
_RANDOM_OPS = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}

_one_at_a_time = threading.RLock()  # torch's exporter, and what is switched off around it, are the process's own
_EXAMPLE_SIZES = {"batch": 3, "samples": 2, "past": 4}  # not 1: a traced size of 1 could be taken for a constant


def program(name: str, part: Part, opset: int) -> Any:
    """The part as an ``onnx_ir.Model``."""
    dims = {d: torch.export.Dim(d) for d in _EXAMPLE_SIZES}
    examples, dynamic = [], []
    for tensor in part.io.inputs:
        size = [_EXAMPLE_SIZES[n] if isinstance(n, str) else n for n in tensor.shape]
        examples.append(torch.zeros(size, dtype=getattr(torch, tensor.dtype)))
        dynamic.append({i: dims[n] for i, n in enumerate(tensor.shape) if isinstance(n, str)})
    shapes = _as_arguments(part.module, dynamic)
    try:
        with _one_at_a_time, torch.no_grad(), full_precision(), quiet(), plain_attention():
            program = torch.export.export(part.module, tuple(examples), dynamic_shapes=shapes)
            native = decompositions()
            if _calls(program, native):  # decomposing takes as long as tracing, and most parts need none
                program = program.run_decompositions(native)
            exported = torch.onnx.export(
                program,
                input_names=[tensor.name for tensor in part.io.inputs],
                output_names=[tensor.name for tensor in part.io.outputs],
                dynamic_shapes=shapes,  # once more, or the names of the dimensions are lost
                opset_version=opset,
                verbose=False,
            )
    except Exception as error:  # dozens of private classes, with pages of advice on torch's own flags
        raise ExportError(f"{name}: cannot be exported to ONNX: {error}") from error
    assert exported is not None  # it is only when writing to a file
    for value, tensor in zip(exported.model.graph.outputs, part.io.outputs, strict=False):
        _name_sizes(value, tensor)
    _rename_inside(exported.model)
    return exported.model


def _rename_inside(program: Any) -> None:
    """Values of the exporter's own naming ("t", of a transposed weight) give way to those that we and users name."""
    graph = program.graph
    outside = {id(value): value.name for value in (*graph.inputs, *graph.outputs)}
    taken = set(outside.values())
    for node in graph.all_nodes():
        for value in node.outputs:
            if id(value) not in outside and value.name in taken:
                value.name = f"{value.name}_inside"


def _name_sizes(value: Any, tensor: TensorSpec) -> None:
    """Sizes that follow from others have formulas for names ("past + 1")."""
    if value.shape is None or len(value.shape) != len(tensor.shape):
        return
    for i, (found, wanted) in enumerate(zip(value.shape, tensor.shape, strict=True)):
        if not isinstance(found, int) and isinstance(wanted, str):
            value.shape[i] = wanted


def _as_arguments(module: torch.nn.Module, shapes: Sequence[Any]) -> tuple[Any, ...]:
    """Of every argument of ``forward``, in which ``*rest`` is one."""
    kinds = [p.kind for p in inspect.signature(module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return tuple(shapes)
    fixed = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*shapes[:fixed], tuple(shapes[fixed:]))


def specs(values: Sequence[Any]) -> tuple[TensorSpec, ...]:
    """What a graph takes or gives."""
    return tuple(
        TensorSpec(v.name, str(v.dtype.numpy()), tuple(d if isinstance(d, int) else d.value for d in v.shape))
        for v in values
    )


def _calls(program: torch.export.ExportedProgram, targets: Mapping[Any, Any]) -> bool:
    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    return any(node.target in targets for graph in graphs for node in graph.nodes)


def clean(name: str, program: Any) -> None:
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


def file_name(part: str) -> str:
    return f"{part}.onnx"  # models allow letters, digits, "_" and "-" in the names of modalities


def save(program: Any, folder: Path, part: str) -> str:
    """Write the file (and its weights beside it when they are huge), and return its name."""
    import onnx_ir as ir

    file = file_name(part)
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
