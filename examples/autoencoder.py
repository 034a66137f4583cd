"""MNIST through a bottleneck: PCA, an autoencoder and a VAE of the same number of dimensions.

    python examples/autoencoder.py               # minutes on one core

Prints mean squared errors of test images' reconstructions; all three are fitted to the training images.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from _real_data import DATA, read_digits
from sklearn.decomposition import PCA

from mmvae_fast.modalities import Image
from mmvae_fast.models import VAE
from mmvae_fast.systems import Autoencoder
from mmvae_fast.training import fit


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--latent", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    images = read_digits(options.data, "train")[0][: options.rows]
    test = read_digits(options.data, "test")[0]

    pca = PCA(options.latent, random_state=options.seed).fit(images.flatten(1).numpy())
    projected = torch.from_numpy(pca.inverse_transform(pca.transform(test.flatten(1).numpy())))
    errors = {"PCA": (projected - test.flatten(1)).square().mean().item()}
    print(f"PCA: MSE {errors['PCA']:.4f}", flush=True)
    for cls in (Autoencoder, VAE):
        torch.manual_seed(options.seed)
        model = cls({"image": Image((1, 28, 28), hidden=(400,))}, options.latent)
        began = time.perf_counter()
        fit(model, {"image": images}, epochs=options.epochs, batch_size=128, seed=options.seed, progress=False)
        decoded = model.eval().reconstruct({"image": test})["image"]
        errors[cls.__name__] = (decoded - test).square().mean().item()
        seconds = time.perf_counter() - began
        print(f"{cls.__name__}: MSE {errors[cls.__name__]:.4f}, {options.epochs} epochs in {seconds:.0f} s", flush=True)
    return errors


if __name__ == "__main__":
    main()
