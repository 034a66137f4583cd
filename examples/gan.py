"""Handwritten digits on demand: a conditional GAN on MNIST.

    python examples/gan.py                       # minutes on one core
    python examples/gan.py --out runs/gan        # looks at runs/gan/samples/ as it learns; call it again to resume

Prints the share of generated digits in which a classifier of real ones finds the digit that was asked for, and how much
the samples of a digit differ, as a share of how much real ones do.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from _real_data import DATA, fit_judge, read_digits

from mmvae_fast.modalities import Image
from mmvae_fast.systems import GAN, fit


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    images, labels = read_digits(options.data, "train")
    test, test_labels = read_digits(options.data, "test")
    judge = fit_judge(images[:10_000], labels[:10_000].numpy())

    torch.manual_seed(options.seed)
    gan = GAN({"image": Image((1, 28, 28))}, latent_dim=64, classes=10, width=16)
    data = {"image": images[: options.rows], "label": labels[: options.rows]}
    began = time.perf_counter()
    fit(gan, data, epochs=options.epochs, out=options.out, seed=options.seed)
    print(f"{options.epochs} epochs in {time.perf_counter() - began:.0f} s")

    asked = torch.arange(10).repeat_interleave(200)
    samples = gan.eval().sample(condition=asked, seed=1)
    found = judge(samples) == asked.numpy()
    result = {
        "judge on real test images": float(np.mean(judge(test) == test_labels.numpy())),
        "intended digit": float(found.mean()),
        "worst digit": float(found.reshape(10, -1).mean(1).min()),
        "diversity": spread(samples, asked) / spread(test, test_labels),
    }
    print(", ".join(f"{name} {value:.3f}" for name, value in result.items()))
    return result


def spread(images: torch.Tensor, labels: torch.Tensor) -> float:
    """How much the images of a digit differ: mean standard deviation of a pixel within a digit."""
    return float(np.mean([images[labels == digit].std(0).mean().item() for digit in range(10)]))


if __name__ == "__main__":
    main()
