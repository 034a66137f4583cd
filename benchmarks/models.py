"""What every model's own work adds to a training step: its time over its networks and optimiser alone.

    python -m benchmarks.models                          all models, tiny, mlp and conv networks (see training.py)
    python -m benchmarks.models --models "MVAE;MoPoE" --networks tiny

Five modalities (VAE and IWAE: one), 64 rows, fused Adam in both. "Alone" replays exactly the calls of networks that the
step made, on the same inputs, with gradients handed to their outputs: encoders, decoders, and what else a model has
(joint encoders, messages, flows).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from benchmarks.targets import EXPERTS, TRAINING_STEP
from benchmarks.timing import Call, interleaved
from benchmarks.training import NETWORKS, ROWS
from mmvae_fast import models
from mmvae_fast.training.numerics import flushed_denormals

Build = Callable[[dict, int], models.MultimodalVAE]
PRIVATE_DIM = 32


def _one(build: Build) -> Build:
    return lambda modalities, dim: build({"m0": modalities["m0"]}, dim)


def _second_stage(modalities: dict, dim: int) -> models.MultimodalVAE:
    model = models.JNF(modalities, dim)
    model.start_stage(2)
    return model


MODELS: dict[str, Build] = {
    "VAE": _one(models.VAE),
    "IWAE, K=10": _one(lambda m, d: models.IWAE(m, d, n_samples=10)),
    "CVAE": lambda m, d: models.CVAE(m, d, condition=["m0"]),
    "MVAE": models.MVAE,
    "WeightedPoE": models.WeightedPoE,
    "MMVAE, K=10": models.MMVAE,
    "MoPoE": models.MoPoE,
    "MMJSD": models.MMJSD,
    "MVTCAE": models.MVTCAE,
    "MCVAE": models.MCVAE,
    "CRMVAE": models.CRMVAE,
    "JMVAE": models.JMVAE,
    "TELBO": models.TELBO,
    "JNF": models.JNF,
    "JNF, second stage": _second_stage,
    "Nexus": models.Nexus,
    "MHVAE": models.MHVAE,
}
WITH_PRIVATE: dict[str, Build] = {
    "MMVAEPlus, K=1": lambda m, d: models.MMVAEPlus(m, d, n_samples=1, private_dim=PRIVATE_DIM),
    "CMVAE, K=1": lambda m, d: models.CMVAE(m, d, n_samples=1, private_dim=PRIVATE_DIM),
    "DMVAE": lambda m, d: models.DMVAE(m, d, private_dim=PRIVATE_DIM),
}
_OWN = {"fusion", "prior", "private_priors", "likelihood_weights"}  # the model's own work, not networks


def networks(model: nn.Module) -> Iterator[nn.Module]:
    """What the model is built around: encoders, decoders, and any other networks it has."""
    for name, child in model.named_children():
        if name in _OWN:
            continue
        group = isinstance(child, (nn.ModuleDict, nn.ModuleList))
        if group or type(child).__module__.startswith("mmvae_fast.models"):  # what holds networks, not one itself
            yield from networks(child)
        else:
            yield child


def _leaf(x: Any) -> Any:
    return x.detach().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x


def steps(name: str, kind: str) -> dict[str, Call]:
    """A step of the model, and of its networks alone."""
    torch.manual_seed(0)
    private_dim = PRIVATE_DIM if name in WITH_PRIVATE else 0
    made = [NETWORKS[kind](private_dim) for _ in range(EXPERTS)]
    model = {**MODELS, **WITH_PRIVATE}[name]({f"m{i}": modality for i, (modality, _) in enumerate(made)}, made[0][1])
    batch = {name: torch.rand(ROWS, *modality.shape) for name, modality in model.modalities.items()}
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    calls: list[tuple[nn.Module, tuple, dict, list[Tensor]]] = []

    def record(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        grads = [torch.randn_like(t) for t in tree_leaves(output) if isinstance(t, Tensor) and t.requires_grad]
        calls.append((module, tree_map(_leaf, args), tree_map(_leaf, kwargs), grads))

    hooks = [network.register_forward_hook(record, with_kwargs=True) for network in networks(model)]
    model(batch)
    for hook in hooks:
        hook.remove()

    def step() -> None:
        optimizer.zero_grad()
        model(batch).loss.backward()
        optimizer.step()

    def alone() -> None:
        optimizer.zero_grad()
        outputs, grads = [], []
        for module, args, kwargs, of_outputs in calls:
            result = tree_leaves(module(*args, **kwargs))
            outputs += [t for t in result if isinstance(t, Tensor) and t.requires_grad]
            grads += of_outputs
        torch.autograd.backward(outputs, grads)
        optimizer.step()

    return {"step": step, "networks": alone}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models", description=__doc__)
    parser.add_argument("--models", default=";".join([*MODELS, *WITH_PRIVATE]), help="names, with a semicolon between")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="some of tiny,mlp,conv")
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args(arguments)
    kinds = options.networks.split(",")
    limits = [f"{kind} <= {TRAINING_STEP[kind].must}" for kind in kinds]
    print(f"A step over its networks and optimiser alone, 1 thread; must: {', '.join(limits)}")
    print(f"| model | {' | '.join(kinds)} |\n|---|{'--:|' * len(kinds)}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with flushed_denormals():
            for name in options.models.split(";"):
                ratios = []
                for kind in kinds:
                    if name == "CVAE" and kind == "conv":  # its decoders also take the context: not these networks
                        ratios.append("")
                        continue
                    times = interleaved(steps(name, kind), seconds=options.seconds, rounds=9)
                    ratios.append(f"{times['step'] / times['networks']:.2f}")
                print(f"| {name} | {' | '.join(ratios)} |", flush=True)
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    main()
