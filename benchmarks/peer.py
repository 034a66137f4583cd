"""Training steps of the models this package shares with `multivae`, on the same networks and data.

    make bench-peer, or: pip install --no-deps multivae pythae
    python -m benchmarks.peer                                        every shared model and kind of networks
    python -m benchmarks.peer --compile --models MoPoE --networks digits    with torch.compile of both (minutes)

Five modalities; "digits" are 784-400-64 perceptrons on 128 rows, for the others see training.py. A ratio is its step /
ours, medians of interleaved rounds of one run, one thread: "same" with our fused Adam and subnormals flushed for both,
"default" with what its trainer does unless told otherwise (plain Adam, subnormals as torch has them) against what our
``fit`` does; then the peak of memory allocated in a step. It is an optional peer of this benchmark alone: what it
imports and does not need here (torchvision, ...) is stood in for by empty names.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.abc
import importlib.machinery
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks import memory
from benchmarks.targets import EXPERTS
from benchmarks.timing import Call, interleaved
from benchmarks.training import NETWORKS, ROWS
from mmvae_fast import models
from mmvae_fast.modalities import Image, Modality
from mmvae_fast.training.numerics import flushed_denormals

SHARED: dict[str, tuple[Callable[[dict, int], models.MultimodalVAE], str, dict[str, Any]]] = {
    "MVAE": (models.MVAE, "MVAE", {"k": 0}),
    "MVAE, 3 random": (lambda m, d: models.MVAE(m, d, n_random_subsets=3), "MVAE", {"k": 3}),
    "MMVAE": (lambda m, d: models.MMVAE(m, d, n_samples=10), "MMVAE", {"K": 10}),
    "MoPoE": (models.MoPoE, "MoPoE", {}),
    "MVTCAE": (models.MVTCAE, "MVTCAE", {}),
    "JMVAE": (models.JMVAE, "JMVAE", {}),
    "CRMVAE": (models.CRMVAE, "CRMVAE", {}),
}


def _digits() -> tuple[Modality, int]:
    return Image((1, 28, 28), likelihood="laplace", hidden=(400,)), 64


KINDS: dict[str, Callable[..., tuple[Modality, int]]] = {**NETWORKS, "digits": _digits}


class _Empty(types.ModuleType):
    __path__: list[str] = []  # noqa: RUF012 (as Python's own)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """For what the peer imports and this benchmark never calls, where it is not installed."""

    names = ("torchvision", "nltk", "pandas", "cv2", "imageio")

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        known = fullname.split(".")[0] in self.names
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True) if known else None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def import_peer() -> Any:
    """Its ``models``.

    Raises:
        ImportError: not installed.
    """
    sys.meta_path.append(_StandIns())  # last: what is installed comes first
    return importlib.import_module("multivae.models")


class _Values:
    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    def __getitem__(self, name: str) -> Any:
        return self.__dict__[name]


def _wrapped(kind: str) -> tuple[type, type]:
    base = importlib.import_module("pythae.models.nn.base_architectures")
    out = _Values  # its own ModelOutput loses its attributes in torch.compile

    class Encoder(base.BaseEncoder):  # type: ignore[misc, name-defined]
        def __init__(self, network: nn.Module, latent_dim: int) -> None:
            super().__init__()
            self.network, self.latent_dim = network, latent_dim

        def forward(self, x):
            mu, logvar = self.network(x)
            return out(embedding=mu, log_covariance=logvar)

    class Decoder(base.BaseDecoder):  # type: ignore[misc, name-defined]
        def __init__(self, network: nn.Module, latent_dim: int) -> None:
            super().__init__()
            self.network, self.latent_dim = network, latent_dim

        def forward(self, z):
            flat = self.network(z.reshape(-1, z.shape[-1]))
            return out(reconstruction=flat.reshape(*z.shape[:-1], *flat.shape[1:]))

    return Encoder, Decoder


def steps(peer: Any, name: str, kind: str, compiled: bool = False) -> dict[str, Call]:
    """A step of ours, of the peer's with everything else the same, and of the peer's as its trainer has it."""
    build, theirs, options = SHARED[name]
    torch.manual_seed(0)
    made = [KINDS[kind]() for _ in range(EXPERTS)]
    modalities, dim = {f"m{i}": modality for i, (modality, _) in enumerate(made)}, made[0][1]
    ours = build(modalities, dim)
    rows = 128 if kind == "digits" else ROWS
    batch = {m: torch.rand(rows, *modality.shape) for m, modality in modalities.items()}

    again = {f"m{i}": modality for i, (modality, _) in enumerate(KINDS[kind]() for _ in range(EXPERTS))}
    encoder, decoder = _wrapped(kind)
    laplace = all(isinstance(m, Image) for m in modalities.values())
    config = getattr(peer, f"{theirs}Config")(
        n_modalities=EXPERTS,
        latent_dim=dim,
        input_dims={m: tuple(x.shape[1:]) for m, x in batch.items()},
        decoders_dist=dict.fromkeys(batch, "laplace" if laplace else "normal"),
        **options,
    )
    model = getattr(peer, theirs)(
        config,
        encoders={m: encoder(again[m].make_encoder(dim), dim) for m in batch},
        decoders={m: decoder(again[m].make_decoder(dim), dim) for m in batch},
    ).train()
    dataset = importlib.import_module("multivae.data.datasets.base").DatasetOutput(data=batch)

    def stepping(loss: Callable[[], torch.Tensor], parameters: Any, *, defaults: bool = False) -> Call:
        optimizer = torch.optim.Adam(parameters, fused=not defaults)

        def step() -> None:
            torch.set_flush_denormal(not defaults)
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

        step.forget = optimizer.zero_grad  # type: ignore[attr-defined]
        return step

    def their_loss() -> torch.Tensor:
        return model(dataset, epoch=100, batch_ratio=1.0)["loss"]

    contestants = {
        "ours": stepping(lambda: ours(batch).loss, ours.parameters()),
        "same": stepping(their_loss, model.parameters()),
        "default": stepping(their_loss, list(model.parameters()), defaults=True),
    }
    if compiled:
        contestants["theirs compiled"] = stepping(torch.compile(their_loss), model.parameters())
        contestants["ours compiled"] = stepping(torch.compile(lambda: ours(batch).loss), ours.parameters())
    return contestants


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peer", description=__doc__)
    parser.add_argument("--models", default=";".join(SHARED), help="names, with a semicolon between two")
    parser.add_argument("--networks", default=",".join(KINDS), help=f"some of {','.join(KINDS)}")
    parser.add_argument("--compile", action="store_true", help="torch.compile of both steps, too")
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args(arguments)
    try:
        peer = import_peer()
    except ImportError as error:
        raise SystemExit(f"skipped: {error}; pip install --no-deps multivae pythae") from error
    more = ["theirs compiled", "ours compiled"] if options.compile else []
    columns = ["model", "networks", "ours ms", "same", "default", *more, "memory"]
    print(f"| {' | '.join(columns)} |\n|---|---{'|--:' * (len(columns) - 2)}|")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with flushed_denormals():
            for name in options.models.split(";"):
                for kind in options.networks.split(","):
                    contestants = steps(peer, name, kind, options.compile)
                    waits = _compile(contestants, more)
                    times = interleaved(contestants, seconds=options.seconds, rounds=7)
                    peaks = {}
                    for who in ("ours", "same"):
                        contestants[who].forget()  # type: ignore[attr-defined]  # gradients count for both
                        peaks[who] = memory.peak(contestants[who], "cpu")[0]
                    cells = [name, kind, f"{times['ours'] * 1e3:.1f}"]
                    cells += [f"{times[who] / times['ours']:.2f}" for who in ("same", "default")]
                    cells += [f"{times[who] / times['ours']:.2f} ({waits[who]:.0f} s)" for who in more]
                    print(f"| {' | '.join(cells)} | {peaks['same'] / max(peaks['ours'], 1):.2f} |", flush=True)
    finally:
        torch.set_num_threads(threads)


def _compile(contestants: dict[str, Call], names: list[str]) -> dict[str, float]:
    """Seconds that the first call of each takes."""
    waits = {}
    for name in names:
        start = time.perf_counter()
        contestants[name]()
        waits[name] = time.perf_counter() - start
    return waits


if __name__ == "__main__":
    main()
