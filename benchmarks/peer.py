"""Training steps of the models this package shares with `multivae`, on the same networks, data and optimiser.

    pip install --no-deps multivae pythae
    python -m benchmarks.peer

A ratio is its step / ours, medians of interleaved rounds of one run, one thread, subnormals flushed for both; then the
peak of memory allocated in a step, likewise. It is an optional peer of this benchmark alone: what it imports and does
not need here (torchvision, ...) is stood in for by empty names.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.abc
import importlib.machinery
import sys
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
from mmvae_fast.modalities import Image
from mmvae_fast.training.numerics import flushed_denormals

OWED = {"tiny": {}, "mlp": {"MoPoE": 2.8}, "conv": {"MoPoE": 1.5, "MMVAE": 1.5}}
SHARED: dict[str, tuple[Callable[[dict, int], models.MultimodalVAE], str, dict[str, Any]]] = {
    "MVAE": (models.MVAE, "MVAE", {"k": 0}),
    "MMVAE": (lambda m, d: models.MMVAE(m, d, n_samples=10), "MMVAE", {"K": 10}),
    "MoPoE": (models.MoPoE, "MoPoE", {}),
    "MVTCAE": (models.MVTCAE, "MVTCAE", {}),
    "JMVAE": (models.JMVAE, "JMVAE", {}),
    "CRMVAE": (models.CRMVAE, "CRMVAE", {}),
}


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


def _wrapped(kind: str) -> tuple[type, type]:
    base = importlib.import_module("pythae.models.nn.base_architectures")
    out = importlib.import_module("pythae.models.base.base_utils").ModelOutput

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


def steps(peer: Any, name: str, kind: str) -> dict[str, Call]:
    build, theirs, options = SHARED[name]
    torch.manual_seed(0)
    made = [NETWORKS[kind]() for _ in range(EXPERTS)]
    modalities, dim = {f"m{i}": modality for i, (modality, _) in enumerate(made)}, made[0][1]
    ours = build(modalities, dim)
    batch = {m: torch.rand(ROWS, *modality.shape) for m, modality in modalities.items()}

    again = {f"m{i}": modality for i, (modality, _) in enumerate(NETWORKS[kind]() for _ in range(EXPERTS))}
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

    def stepping(loss: Callable[[], torch.Tensor], parameters: Any) -> Call:
        optimizer = torch.optim.Adam(parameters, fused=True)

        def step() -> None:
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

        return step

    return {
        "ours": stepping(lambda: ours(batch).loss, ours.parameters()),
        "peer": stepping(lambda: model(dataset, epoch=100, batch_ratio=1.0).loss, model.parameters()),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peer", description=__doc__)
    parser.add_argument("--models", default=",".join(SHARED))
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args(arguments)
    try:
        peer = import_peer()
    except ImportError as error:
        raise SystemExit(f"skipped: {error}; pip install --no-deps multivae pythae") from error
    print("| model | networks | ours ms | time, peer / ours | peak memory, peer / ours |\n|---|---|--:|--:|--:|")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with flushed_denormals():
            for name in options.models.split(","):
                for kind in options.networks.split(","):
                    pair = steps(peer, name, kind)
                    times = interleaved(pair, seconds=options.seconds, rounds=7)
                    peaks = {who: memory.peak(call, "cpu")[0] for who, call in pair.items()}
                    ratios = times["peer"] / times["ours"], peaks["peer"] / max(peaks["ours"], 1)
                    print(
                        f"| {name} | {kind} | {times['ours'] * 1e3:.1f} | {ratios[0]:.2f} | {ratios[1]:.2f} |",
                        flush=True,
                    )
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    main()
