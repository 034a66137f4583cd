"""What is timed: each fused function and its contestants on the same inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks import plain
from mmvae_fast import functional, reference

EXPERTS = 5
Function = Callable[..., object]


@dataclass
class Case:
    """One function: the forms that compete, the differentiable inputs, and how each is called."""

    name: str
    forms: dict[str, Function]  # ours, twin, plain: eager; compile: to be compiled
    inputs: list[Tensor]
    arguments: tuple
    bytes_forward: int  # what has to be read and written, ideally
    bytes_backward: int

    def forward(self, form: Function) -> Callable[[], object]:
        return lambda: form(*self.arguments)

    def forward_backward(self, form: Function) -> Callable[[], object]:
        """Gradients to all inputs from dense random gradients of every differentiable output but the joint moments."""
        outputs = _outputs(form(*self.arguments), self.name)
        grads = [torch.randn_like(o) for o in outputs]
        return lambda: torch.autograd.grad(_outputs(form(*self.arguments), self.name), self.inputs, grads)


def _outputs(result: object, name: str) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    outputs = list(result)  # type: ignore[call-overload]
    if name == "poe_sample_kl":  # z and kl: what a loss uses
        return [outputs[0], outputs[3]]
    return outputs[:2]


def compiled(form: Function) -> Function:
    """torch.compile at its best here: Inductor's own CPU noise is about 15 times slower than torch's."""
    return torch.compile(form, fullgraph=True, dynamic=False, options={"fallback_random": True})


def cases(rows: int, dim: int, seed: int = 0) -> list[Case]:
    g = torch.Generator().manual_seed(seed)

    def leaf() -> Tensor:
        return torch.randn(rows, dim, generator=g).requires_grad_()

    mu, logvar = [leaf() for _ in range(EXPERTS)], [leaf() for _ in range(EXPERTS)]
    mask = torch.rand(rows, EXPERTS, generator=g) > 0.2
    one, many = (mu[0], logvar[0]), (mu, logvar, mask)
    unit = 4 * rows * dim
    m = EXPERTS

    def case(name, plain_form, compile_form, arguments, forward, backward) -> Case:
        inputs = list(one) if arguments is one else [*mu, *logvar]
        forms = {
            "ours": getattr(functional, name),
            "twin": getattr(reference, name),
            "plain": plain_form,
            "compile twin": compiled(getattr(reference, name)),
            "compile": compiled(compile_form),
        }
        return Case(name, forms, inputs, arguments, forward * unit, backward * unit)

    return [
        case("reparameterize", plain.reparameterize, plain.reparameterize, one, 3, 5),
        case("gaussian_kl", plain.gaussian_kl, plain.gaussian_kl, one, 2, 4),
        case("product_of_experts", plain.product_of_experts, plain.product_of_experts, many, 2 * m + 2, 4 * m + 4),
        case("poe_sample_kl", plain.poe_sample_kl, plain.poe_sample_kl, many, 2 * m + 3, 4 * m + 4),
        case(
            "mopoe_sample_kl", plain.mopoe_sample_kl_stacked, plain.mopoe_sample_kl_unrolled, many, 2 * m + 1, 4 * m + 2
        ),
    ]
