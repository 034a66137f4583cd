"""What is timed: each fused function and its contestants on the same inputs.

Contestants:
  ours      mmvae_fast.functional
  twin      mmvae_fast.reference, with the same exact noise (int64 arithmetic)
  eager     the best plain PyTorch (``plain.py``, torch's own noise)
  compile   torch.compile of the best plain PyTorch, its fastest form
  peer      as libraries write it today (``peers.py``)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks import peers, plain
from benchmarks.targets import EXPERTS, Work
from mmvae_fast import functional, reference

Function = Callable[..., object]
CONTESTANTS = ("twin", "eager", "compile", "peer")


@dataclass
class Case:
    """One function: the forms that compete, what they are given, and which outputs a loss uses."""

    name: str
    forms: dict[str, Function]  # ours, twin, eager, peer
    compile_forms: list[Function]  # the fastest competes, in each direction
    arguments: tuple
    inputs: list[Tensor]  # what gradients are wanted of
    used: tuple[int, ...] = (0,)  # the outputs that have gradients

    def outputs(self, form: Function) -> list[Tensor]:
        result = form(*self.arguments)
        return [result] if isinstance(result, Tensor) else [r for r in result if r is not None]  # type: ignore[attr-defined]

    def forward(self, form: Function) -> Callable[[], object]:
        arguments = self.arguments
        return lambda: form(*arguments)

    def forward_backward(self, form: Function) -> Callable[[], object]:
        """Gradients to all inputs from dense random gradients of the outputs a loss uses."""
        arguments, inputs, used = self.arguments, self.inputs, self.used
        grads = self.gradients(form)

        def call() -> object:
            result = form(*arguments)
            outputs = [result] if isinstance(result, Tensor) else [result[i] for i in used]  # type: ignore[index]
            return result, torch.autograd.grad(outputs, inputs, grads)

        return call

    def gradients(self, form: Function) -> list[Tensor]:
        outputs = self.outputs(form)
        return [torch.randn_like(outputs[i]) for i in self.used]


def compiled(form: Function, device: str = "cpu") -> Function:
    """torch.compile at its best: Inductor's own noise is 15 times slower than torch's on a CPU, but not on a GPU."""
    options = {} if device == "cuda" else {"fallback_random": True}
    return torch.compile(form, fullgraph=True, dynamic=False, options=options)


class Draw:
    """Random inputs: the same numbers on every device and in every type."""

    def __init__(self, work: Work, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
        self.work, self.device, self.dtype = work, device, dtype
        self.shape = (work.rows, work.dim)
        self.generator = torch.Generator().manual_seed(seed)

    def fixed(self, *shape: int) -> Tensor:
        return torch.randn(*(shape or self.shape), generator=self.generator).to(self.device, self.dtype)

    def leaf(self, *shape: int) -> Tensor:
        return self.fixed(*shape).requires_grad_()

    def positive(self, *shape: int) -> Tensor:
        return (0.5 * self.fixed(*shape)).exp().requires_grad_()

    def experts(self) -> tuple[list[Tensor], list[Tensor]]:
        return [self.leaf() for _ in range(EXPERTS)], [self.leaf() for _ in range(EXPERTS)]

    def mask(self) -> Tensor:
        """Four of five observed; nowhere nothing, for which peers have no answer."""
        mask = torch.rand(self.work.rows, EXPERTS, generator=self.generator) > 0.2
        mask[:, 0] |= ~mask.any(1)
        return mask.to(self.device)


def _gaussian(name: str, plain_form: Function, peer: Function, **options) -> Callable[[Draw], Case]:
    def build(draw: Draw) -> Case:
        inputs = [draw.leaf(), draw.leaf()]
        forms = {
            "ours": _with(getattr(functional, name), **options),
            "twin": _with(getattr(reference, name), **options),
            "eager": plain_form,
            "peer": peer,
        }
        return Case(name, forms, [plain_form], tuple(inputs), inputs)

    return build


def _with(function: Function, **options) -> Function:
    """A function with keywords filled in, without their cost where there are none."""
    return (lambda *arguments: function(*arguments, **options)) if options else function


def _sample_and_kl(draw: Draw) -> Case:
    """The two calls of ours that a VAE makes, against everything in one graph."""
    inputs = [draw.leaf(), draw.leaf()]

    def two_calls(module) -> Function:
        return lambda mu, logvar: (module.reparameterize(mu, logvar), module.gaussian_kl(mu, logvar))

    forms = {
        "ours": two_calls(functional),
        "twin": two_calls(reference),
        "eager": plain.sample_and_kl,
        "peer": peers.sample_and_kl,
    }
    return Case("reparameterize + kl", forms, [plain.sample_and_kl], tuple(inputs), inputs, used=(0, 1))


def _kl_between(name: str, plain_form: Function, family: str, *, row: bool = False) -> Callable[[Draw], Case]:
    """Against a second distribution: one a row, or (``row``) one that all rows share."""

    def build(draw: Draw) -> Case:
        second = (draw.work.dim,) if row else ()
        inputs = [draw.leaf(), draw.leaf(), draw.leaf(*second), draw.leaf(*second)]
        forms = {
            "ours": getattr(functional, name),
            "twin": getattr(reference, name),
            "eager": plain_form,
            "peer": lambda *arguments: peers.kl_between(*arguments, family=family),
        }
        return Case(name, forms, [plain_form], tuple(inputs), inputs)

    return build


def _experts(
    name: str,
    eager: Function,
    compile_forms: list[Function],
    peer: Function,
    used: tuple[int, ...],
    *,
    mask: bool,
    weights: bool = False,
    **options,
) -> Callable[[Draw], Case]:
    def build(draw: Draw) -> Case:
        mu, logvar = draw.experts()
        arguments: tuple = (mu, logvar, draw.mask() if mask else None)
        inputs = [*mu, *logvar]
        ours, twin = _with(getattr(functional, name), **options), _with(getattr(reference, name), **options)
        if weights:
            arguments = (*arguments, draw.positive(EXPERTS))
            inputs.append(arguments[-1])
            ours, twin = _weighted(functional), _weighted(reference)
        return Case(
            name, {"ours": ours, "twin": twin, "eager": eager, "peer": peer}, compile_forms, arguments, inputs, used
        )

    return build


def _weighted(module) -> Function:
    return lambda mu, logvar, mask, weights: module.product_of_experts(mu, logvar, mask, weights=weights)


def _mixture(family: str, eager: Function, compile_forms: list[Function]) -> Callable[[Draw], Case]:
    def build(draw: Draw) -> Case:
        mu = [draw.leaf() for _ in range(EXPERTS)]
        scale = [draw.positive() for _ in range(EXPERTS)]
        rest = (*draw.work.leading[1:], *draw.shape)
        with torch.no_grad():  # every expert's own samples: what far ones say of them underflows
            z = torch.stack([m + s * draw.fixed(*rest) for m, s in zip(mu, scale, strict=True)])
        z.requires_grad_()
        forms = {
            "ours": _with(functional.mixture_log_prob, family=family),
            "twin": _with(reference.mixture_log_prob, family=family),
            "eager": eager,
            "peer": lambda *arguments: peers.mixture_log_prob(*arguments, family=family),
        }
        return Case("mixture_log_prob", forms, compile_forms, (z, mu, scale), [z, *mu, *scale])

    return build


def _likelihood(
    family: str, eager: Function, compile_forms: list[Function], *, learned_scale: bool = False
) -> Callable[[Draw], Case]:
    def build(draw: Draw) -> Case:
        work = draw.work
        classes = (work.classes,) if work.classes else ()
        params = draw.leaf(*work.leading, *draw.shape, *classes)
        if family == "categorical":
            x = torch.randint(work.classes, draw.shape, generator=draw.generator).to(draw.device)
        else:
            x = torch.sigmoid(draw.fixed())
        scale = [torch.tensor(0.7, device=draw.device, dtype=draw.dtype, requires_grad=True)] if learned_scale else []

        def call(module) -> Function:
            if learned_scale:
                return lambda x, params, scale: module.log_likelihood(x, params, family=family, scale=scale)
            return lambda x, params: module.log_likelihood(x, params, family=family)

        forms = {
            "ours": call(functional),
            "twin": call(reference),
            "eager": eager,
            "peer": lambda x, params, *scale: peers.log_likelihood(x, params, family, *scale),
        }
        return Case("log_likelihood", forms, compile_forms, (x, params, *scale), [params, *scale])

    return build


def _poe(**options) -> Callable[[Draw], Case]:
    form = plain.poe_sample_kl
    return _experts("poe_sample_kl", form, [form], peers.poe_sample_kl, (0, 3), **options)


def _subsets(name: str, used: tuple[int, ...], *, mask: bool) -> Callable[[Draw], Case]:
    stacked, unrolled, peer = getattr(plain, f"{name}_stacked"), getattr(plain, name), getattr(peers, name)
    return _experts(name, stacked, [unrolled], peer, used, mask=mask)


def _laplace(form: Function) -> Function:
    return lambda mu, logvar: form(mu, logvar, family="laplace")


CATEGORICAL: list[Function] = [plain.categorical, plain.categorical_select]

CASES: dict[str, Callable[[Draw], Case]] = {
    "reparameterize + kl": _sample_and_kl,
    "reparameterize": _gaussian("reparameterize", plain.reparameterize, peers.reparameterize),
    "reparameterize, laplace": _gaussian(
        "reparameterize", plain.reparameterize_laplace, _laplace(peers.reparameterize), family="laplace"
    ),
    "gaussian_kl": _gaussian("gaussian_kl", plain.gaussian_kl, peers.kl),
    "gaussian_kl, second": _kl_between("gaussian_kl", plain.gaussian_kl_between, "normal"),
    "gaussian_kl, shared": _kl_between("gaussian_kl", plain.gaussian_kl_between, "normal", row=True),
    "laplace_kl": _gaussian("laplace_kl", plain.laplace_kl, _laplace(peers.kl)),
    "laplace_kl, second": _kl_between("laplace_kl", plain.laplace_kl_between, "laplace"),
    "product_of_experts, mask": _experts(
        "product_of_experts",
        plain.product_of_experts,
        [plain.product_of_experts],
        peers.product_of_experts,
        (0, 1),
        mask=True,
    ),
    "product_of_experts, weights": _experts(
        "product_of_experts",
        plain.product_of_experts_weights,
        [plain.product_of_experts_weights],
        peers.product_of_experts,
        (0, 1),
        mask=True,
        weights=True,
    ),
    "poe_sample_kl": _poe(mask=False),
    "poe_sample_kl, mask": _poe(mask=True),
    "poe_sample_kl, expert_kl": _experts(
        "poe_sample_kl",
        plain.poe_sample_kl_experts,
        [plain.poe_sample_kl_experts],
        peers.poe_sample_kl_experts,
        (0, 3, 4),
        mask=True,
        expert_kl=True,
    ),
    "mopoe_sample_kl": _subsets("mopoe_sample_kl", (0, 1), mask=False),
    "mopoe_sample_kl, mask": _subsets("mopoe_sample_kl", (0, 1), mask=True),
    "subset_posteriors": _subsets("subset_posteriors", (0, 1, 2), mask=False),
    "subset_posteriors, mask": _subsets("subset_posteriors", (0, 1, 2), mask=True),
    "mixture_log_prob, normal": _mixture("normal", plain.mixture_normal, [plain.mixture_normal]),
    "mixture_log_prob, laplace": _mixture("laplace", plain.mixture_laplace, [plain.mixture_laplace]),
    "log_likelihood, normal": _likelihood("normal", plain.normal, [plain.normal]),
    "log_likelihood, learned scale": _likelihood(
        "normal", plain.normal_scale, [plain.normal_scale], learned_scale=True
    ),
    "log_likelihood, laplace": _likelihood("laplace", plain.laplace, [plain.laplace]),
    "log_likelihood, bernoulli": _likelihood("bernoulli", plain.bernoulli, [plain.bernoulli]),
    "log_likelihood, categorical": _likelihood("categorical", plain.categorical_cross_entropy, CATEGORICAL),
}


def build(work: Work, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Case:
    """The case of a piece of work, with its inputs."""
    case = CASES[work.case](Draw(work, device, dtype))
    case.name = work.case
    return case
