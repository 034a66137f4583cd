"""What fusion, noise, KL and likelihoods add to a training step: a MoPoE step over its encoders and decoders alone.

Five modalities, 64 rows. "tiny": 32 numbers each, networks with one layer of 64; "mlp": images 3x28x28, one layer of
512, 64 latent dimensions; "conv": the same images, small convolutional networks, 512 latent dimensions. Alone means the
same encoder and decoder calls with gradients handed to their outputs. Without an optimiser, which would flatter us.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.targets import EXPERTS, TRAINING_STEP
from benchmarks.timing import Call, interleaved
from mmvae_fast.modalities import Image, Modality, Vector
from mmvae_fast.models import MoPoE

ROWS = 64
IMAGE = (3, 28, 28)


class ConvEncoder(nn.Module):
    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 128, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(128 * 4 * 4, 2 * latent_dim),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = self.layers(x).chunk(2, -1)
        return mu, logvar


def conv_decoder(latent_dim: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(latent_dim, 128 * 4 * 4),
        nn.ReLU(),
        nn.Unflatten(-1, (128, 4, 4)),
        nn.ConvTranspose2d(128, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(64, 32, 3, stride=2, padding=1, output_padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 3, 3, stride=2, padding=1, output_padding=1),
    )


def _tiny(private_dim: int = 0) -> tuple[Modality, int]:
    return Vector(32, hidden=(64,)), 64


def _mlp(private_dim: int = 0) -> tuple[Modality, int]:
    return Image(IMAGE, likelihood="laplace", hidden=(512,)), 64


def _conv(private_dim: int = 0) -> tuple[Modality, int]:
    size = 512 + private_dim
    return Image(IMAGE, likelihood="laplace", encoder=ConvEncoder(size), decoder=conv_decoder(size)), 512


# a modality whose networks have room for so many private latents, and the size of the shared latent
NETWORKS: dict[str, Callable[..., tuple[Modality, int]]] = {"tiny": _tiny, "mlp": _mlp, "conv": _conv}


def steps(name: str) -> dict[str, Call]:
    """Forward and backward of the model, and of its networks alone."""
    torch.manual_seed(0)
    made = [NETWORKS[name]() for _ in range(EXPERTS)]
    model = MoPoE({f"m{i}": modality for i, (modality, _) in enumerate(made)}, made[0][1])
    batch = {name: torch.rand(ROWS, *modality.shape) for name, modality in model.modalities.items()}
    z = torch.randn(ROWS, model.latent_dim, requires_grad=True)

    def step() -> None:
        model.zero_grad()
        model(batch).loss.backward()

    def outputs() -> list[Tensor]:
        encoded = [t for name, x in batch.items() for t in model.encoders[name](x)]
        return encoded + [model.decoders[name](z) for name in batch]

    grads = [torch.randn_like(t) for t in outputs()]

    def alone() -> None:
        model.zero_grad()
        z.grad = None
        torch.autograd.backward(outputs(), grads)

    return {"step": step, "networks": alone}


def measure(seconds: float = 2.0, names: tuple[str, ...] = tuple(NETWORKS)) -> list[dict[str, object]]:
    results: list[dict[str, object]] = []
    for name in names:
        times = interleaved(steps(name), seconds=seconds, rounds=15)
        ratio = times["step"] / times["networks"]
        results.append(
            {
                "networks": name,
                "threads": torch.get_num_threads(),
                "milliseconds": {k: t * 1e3 for k, t in times.items()},
                "ratio": ratio,
                "verdict": TRAINING_STEP[name].verdict(ratio),
            }
        )
    return results
