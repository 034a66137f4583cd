"""Our native ops in ONNX: each is its plain-PyTorch twin, of standard operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmvae_fast import _checks, _ext, _lazy, reference
from mmvae_fast.onnx.tracing import quiet


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


def translation_table() -> dict[Any, Callable]:
    """Native op -> what writes it in ONNX, for ``torch.onnx.export(module, args, custom_translation_table=...)``.

    Each entry traces the op's plain-PyTorch twin for the shapes it meets and repeats the operators it becomes, so a
    table says what :func:`decompositions` says, without an ``ExportedProgram`` of one's own. Numbers of samples must
    be constants. Empty when the package was built without kernels.
    """
    return {op: _translated(op, twin) for op, twin in decompositions().items()}


def _translated(op: Any, twin: Callable) -> Callable:
    defaults = [argument.default_value for argument in op._schema.arguments]

    def write(*args: Any, **options: Any) -> Any:
        given = [*args, *defaults[len(args) :]]
        for place, argument in enumerate(op._schema.arguments):
            given[place] = options.get(argument.name, given[place])
        return _repeat(twin, given)

    return write


class _Twin(torch.nn.Module):
    """A twin as a module of its tensors alone; what else it takes is fixed."""

    def __init__(self, twin: Callable, given: Sequence[Any], is_tensor: Callable[[Any], bool]) -> None:
        super().__init__()
        self.twin, self.given, self.is_tensor = twin, given, is_tensor

    def forward(self, *tensors: Tensor) -> Any:
        rest = list(tensors)

        def put(value: Any) -> Any:
            if isinstance(value, (list, tuple)) and any(map(self.is_tensor, value)):
                return [put(v) for v in value]
            return rest.pop(0) if self.is_tensor(value) else value

        found = self.twin(*map(put, self.given))
        return tuple(found) if isinstance(found, (list, tuple)) else found


def _repeat(twin: Callable, given: Sequence[Any]) -> Any:
    """Export the twin for the shapes of what is given, and write its operators where the caller's graph is written."""
    ir = _lazy.require("onnx_ir", extra="onnx")
    opset = _lazy.require("onnxscript", extra="onnx").opset20

    def is_tensor(value: Any) -> bool:
        return isinstance(value, ir.Value)

    flat = [v for value in given for v in (value if isinstance(value, (list, tuple)) else [value]) if is_tensor(v)]
    dims: dict[str, Any] = {}
    examples, shapes = [], []
    for value in flat:
        sizes, dynamic = [], {}
        for i, d in enumerate(value.shape):
            if isinstance(d, int):
                sizes.append(d)
            else:
                dynamic[i] = dims.setdefault(str(d), torch.export.Dim.AUTO)
                sizes.append(5 + list(dims).index(str(d)))
        kind = value.dtype.numpy()
        examples.append(torch.zeros(sizes, dtype=getattr(torch, str(kind))))
        shapes.append(dynamic)
    with torch.no_grad(), quiet():
        module = _Twin(twin, given, is_tensor)
        program = torch.export.export(module, tuple(examples), dynamic_shapes=(tuple(shapes),))
        exported = torch.onnx.export(program, opset_version=20, verbose=False)
    assert exported is not None
    graph = exported.model.graph
    values: dict[Any, Any] = dict(zip(graph.inputs, flat, strict=True))
    for initial in graph.initializers.values():
        values[initial] = opset.Constant(value=ir.to_proto(initial.const_value))
    for node in graph:
        attributes = {a.name: a.value for a in node.attributes.values()}
        attributes = {k: ir.to_proto(v) if isinstance(v, ir.TensorProtocol) else v for k, v in attributes.items()}
        attributes = {k: int(v) if isinstance(v, ir.DataType) else v for k, v in attributes.items()}
        made = getattr(opset, node.op_type)(*(None if v is None else values[v] for v in node.inputs), **attributes)
        for old, new in zip(node.outputs, made if isinstance(made, (list, tuple)) else [made], strict=True):
            values[old] = new
    outputs = tuple(values[v] for v in graph.outputs)
    return outputs[0] if len(outputs) == 1 else outputs
