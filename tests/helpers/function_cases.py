"""Every function behind one face: inputs in, the outputs that carry gradients out.

``make_inputs(name, M, B, D, ...)`` makes what ``FUNCTIONS[name](module, inputs)`` takes; for functions of one
distribution M is the number of samples. Tests of all functions run over FUNCTIONS, those of experts over EXPERTS, and
those that cost seconds (compilation) over ONE_OF_EACH, a form of every native op.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import torch
from distribution_cases import Arguments, make_arguments
from expert_cases import HALVES, TOLERANCE, Experts, make_experts
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

SEED = 0x1234_5678_9ABC_DEF0
SAMPLES = 3

Inputs = Experts | Arguments

# name -> f(module, inputs) -> differentiable outputs; module is functional or reference
FUNCTIONS: dict[str, Callable[[ModuleType, Any], tuple[Tensor, ...]]] = {
    "product_of_experts": lambda f, x: f.product_of_experts(x.mu, x.logvar, x.mask),
    "product_of_experts, no prior": lambda f, x: f.product_of_experts(x.mu, x.logvar, x.mask, prior=False),
    "product_of_experts, weights": lambda f, x: f.product_of_experts(x.mu, x.logvar, x.mask, weights=x.extra[0]),
    "product_of_experts, weights by dimension, no prior": lambda f, x: f.product_of_experts(
        x.mu, x.logvar, x.mask, weights=x.extra[0], prior=False
    ),
    "poe_sample_kl": lambda f, x: f.poe_sample_kl(x.mu, x.logvar, x.mask, seed=SEED)[:4],
    "poe_sample_kl, no prior": lambda f, x: f.poe_sample_kl(x.mu, x.logvar, x.mask, prior=False, seed=SEED)[:4],
    "poe_sample_kl, 3 samples": lambda f, x: f.poe_sample_kl(x.mu, x.logvar, x.mask, n_samples=SAMPLES, seed=SEED)[:4],
    "poe_sample_kl, expert_kl": lambda f, x: f.poe_sample_kl(x.mu, x.logvar, x.mask, expert_kl=True, seed=SEED),
    "mopoe_sample_kl": lambda f, x: f.mopoe_sample_kl(x.mu, x.logvar, x.mask, seed=SEED)[:2],
    "mopoe_sample_kl, prior in all": lambda f, x: f.mopoe_sample_kl(x.mu, x.logvar, x.mask, prior="all", seed=SEED)[:2],
    "mopoe_sample_kl, prior in none": lambda f, x: f.mopoe_sample_kl(x.mu, x.logvar, x.mask, prior="none", seed=SEED)[
        :2
    ],
    "subset_posteriors": lambda f, x: f.subset_posteriors(x.mu, x.logvar, x.mask)[:3],
    "subset_posteriors, prior in all": lambda f, x: f.subset_posteriors(x.mu, x.logvar, x.mask, prior="all")[:3],
    "subset_posteriors, prior in none": lambda f, x: f.subset_posteriors(x.mu, x.logvar, x.mask, prior="none")[:3],
    "subset_posteriors, chosen": lambda f, x: f.subset_posteriors(x.mu, x.logvar, x.mask, subsets=chosen(x))[:3],
    "mixture_log_prob, normal": lambda f, x: (f.mixture_log_prob(x.extra[0], x.mu, x.logvar, x.mask),),
    "mixture_log_prob, normal, 3 samples": lambda f, x: (f.mixture_log_prob(x.extra[0], x.mu, x.logvar, x.mask),),
    "mixture_log_prob, laplace": lambda f, x: (
        f.mixture_log_prob(x.extra[0], x.mu, x.logvar, x.mask, family="laplace"),
    ),
    "mixture_log_prob, laplace, 3 samples": lambda f, x: (
        f.mixture_log_prob(x.extra[0], x.mu, x.logvar, x.mask, family="laplace"),
    ),
}
EXPERTS = list(FUNCTIONS)


def chosen(x: Experts) -> list[int]:
    """Some subsets of the M experts, not in counting order, the last expert's alone among them."""
    count = len(x.mu)
    return list(dict.fromkeys([2 ** (count - 1), 2**count - 1, 1, max(1, 2**count - 2)]))


# name -> (differentiable arguments, fixed ones), as make_arguments reads them
_ARGUMENTS: dict[str, tuple[dict[str, str], dict[str, str]]] = {}

for _family in ("normal", "laplace"):
    for _k in (False, True):
        _name = f"reparameterize, {_family}" + (", 3 samples" if _k else "")
        _ARGUMENTS[_name] = ({"mu": "BD", "logvar": "BD"}, {})
        FUNCTIONS[_name] = lambda f, x, k=_k, family=_family: (
            f.reparameterize(x["mu"], x["logvar"], SAMPLES if k else None, family=family, seed=SEED),
        )
    for _name, _priors in {
        "": {},
        ", prior": {"prior_mu": "BD", "prior_logvar": "BD"},
        ", broadcast prior": {"prior_mu": "D", "prior_logvar": "B1"},
        ", prior of one number": {"prior_mu": "", "prior_logvar": "1"},
        ", prior_mu alone": {"prior_mu": "BD"},
        ", prior_logvar alone": {"prior_logvar": "D"},
    }.items():
        _fn = "gaussian_kl" if _family == "normal" else "laplace_kl"
        _ARGUMENTS[_fn + _name] = ({"mu": "BD", "logvar": "BD", **_priors}, {})
        FUNCTIONS[_fn + _name] = lambda f, x, fn=_fn: (
            getattr(f, fn)(x["mu"], x["logvar"], x["prior_mu"], x["prior_logvar"]),
        )
    for _name, _params, _scale in (
        ("", "BD", None),
        (", samples", "KBD", None),
        (", scale of one number", "KBD", ""),
        (", scale by dimension", "KBD", "D"),
        (", scale by row", "BD", "B1"),
        (", scale by element", "KBD", "BD"),
        (", scale by sample and element", "KBD", "KBD"),
        (", scale by sample", "KBD", "K11"),
    ):
        _name = f"log_likelihood, {_family}{_name}"
        _ARGUMENTS[_name] = (
            {"params": _params, **({} if _scale is None else {"scale": _scale})},
            {"x": "BD", "mask": "B"},
        )
        FUNCTIONS[_name] = lambda f, x, family=_family: (
            f.log_likelihood(
                x["x"], x["params"], family=family, scale=0.7 if x["scale"] is None else x["scale"], mask=x.mask
            ),
        )

for _name, _params in (("", "BD"), (", samples", "KBD")):
    _ARGUMENTS["log_likelihood, bernoulli" + _name] = ({"params": _params}, {"bits": "BD", "mask": "B"})
    FUNCTIONS["log_likelihood, bernoulli" + _name] = lambda f, x: (
        f.log_likelihood(x["bits"], x["params"], family="bernoulli", mask=x.mask),
    )
    _ARGUMENTS["log_likelihood, categorical" + _name] = ({"params": _params + "V"}, {"classes": "BD", "mask": "B"})
    FUNCTIONS["log_likelihood, categorical" + _name] = lambda f, x: (
        f.log_likelihood(x["classes"], x["params"], family="categorical", mask=x.mask),
    )
_ARGUMENTS["log_likelihood, laplace, one of two event dimensions"] = (
    {"params": "KBED", "scale": "E1"},
    {"x": "BED", "mask": "B"},
)
FUNCTIONS["log_likelihood, laplace, one of two event dimensions"] = lambda f, x: (
    f.log_likelihood(x["x"], x["params"], family="laplace", scale=x["scale"], event_dims=1, mask=x.mask),
)

ONE_OF_EACH = [
    "product_of_experts, weights by dimension, no prior",
    "poe_sample_kl, expert_kl",
    "mopoe_sample_kl",
    "subset_posteriors, chosen",
    "mixture_log_prob, laplace, 3 samples",
    "reparameterize, laplace, 3 samples",
    "gaussian_kl, broadcast prior",
    "laplace_kl, prior",
    "log_likelihood, normal, samples",
    "log_likelihood, laplace, scale by dimension",
    "log_likelihood, bernoulli, samples",
    "log_likelihood, categorical",
]


def make_inputs(fn: str, count: int, rows: int, dim: int, **options: Any) -> Any:
    """Inputs of the named function; options are those of make_experts."""
    if fn not in EXPERTS:
        return make_arguments(*_ARGUMENTS[fn], count, rows, dim, **options)
    experts = make_experts(count, rows, dim, scales=fn.startswith("mixture"), **options)
    dtype, device = options.get("dtype", torch.float32), options.get("device", "cpu")
    g = torch.Generator().manual_seed(options.get("seed", 0) + 1)

    def extra(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    if "weights by dimension" in fn:
        experts.extra = [extra(count, dim).exp()]
    elif "weights" in fn:
        experts.extra = [extra(count).exp()]
    elif fn.startswith("mixture"):
        experts.extra = [extra(SAMPLES, rows, dim) if "samples" in fn else extra(rows, dim)]
    experts.extra = [t.to(dtype).to(device).requires_grad_() for t in experts.extra]
    return experts


def rows_of(fn: str, inputs: Inputs, outputs: Iterable[Tensor]) -> tuple[list[int], list[int | None]]:
    """Which dimension counts the rows: of every output, of every input. None: shared by all rows."""
    moments = {"product": 2, "poe_sam": 3, "subset_": 2, "mopoe_s": 1, "reparam": 1}.get(fn[:7], 0)
    of_outputs = [-2 if i < moments or "event dim" in fn else -1 for i, _ in enumerate(outputs)]
    if isinstance(inputs, Experts):
        shared: list[int | None] = [None if "weights" in fn else -2] * len(inputs.extra)
        return of_outputs, [-2] * (len(inputs.tensors()) - len(inputs.extra)) + shared
    return of_outputs, [w.index("B") if "B" in w else None for w in inputs.words.values()]


def allowed(fn: str, dtype: torch.dtype, dim: int, tolerance: float = 0.0) -> float:
    """The relative error allowed: that of the type, or ``tolerance``, where the function itself is not worse.

    A mixture's responsibilities are differences of sums over the dimensions, which grow with them.
    """
    real = torch.float32 if dtype in HALVES else dtype
    return (tolerance or TOLERANCE[dtype]) + (4 * dim * torch.finfo(real).eps if fn.startswith("mixture") else 0)


def summed_tolerance(fn: str, dtype: torch.dtype) -> float:
    """What the gradient of a half prior that is broadcast may be off: torch adds up elements that are rounded."""
    broadcast = any(word in fn for word in ("broadcast prior", "of one number", "prior_logvar alone"))
    return 2 * torch.finfo(dtype).eps if "kl" in fn and broadcast and dtype in HALVES else 0.0


def gradients(outputs: Iterable[Tensor], inputs: list[Tensor], seed: int = 1) -> list[Tensor]:
    """Gradients of a random linear form of the outputs: every output's every element counts.

    Its factors are numbers every type can hold, so that what arrives at a half output is what arrives at its twin's.
    """
    g = torch.Generator().manual_seed(seed)
    total = torch.zeros((), dtype=torch.float64)
    for out in outputs:
        weight = torch.randn(out.shape, generator=g).bfloat16().double()
        total = total + (out.double() * weight.to(out.device)).sum()
    return list(torch.autograd.grad(total, inputs))


class OpCalls(TorchDispatchMode):
    """Collects the native calls made inside it."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.namespace == "mmvae_fast":
            self.calls.append((op, tree_map_only(torch.Tensor, lambda t: t.detach().clone(), args)))
        return op(*args, **(kwargs or {}))
