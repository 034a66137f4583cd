"""Samples of a VAE and of a GAN beside real digits: MNIST, both trained for minutes, one table.

    python examples/sample_quality.py                       # five minutes on one core
    python examples/sample_quality.py --inception weights-inception-2015-12-05-6726825d.pth

Each set of samples, and half of the real test images, is compared with the other half of these, as many images in each,
in one feature space: what a classifier sees that was trained on the training images, or the Inception network of the
usual FID with weights of yours. "real half" is what perfect samples would have.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from _real_data import DATA, read_digits

from mmvae_fast.evaluate import (
    fit_oracle,
    inception_features,
    oracle_features,
    sample_quality,
    samples,
)
from mmvae_fast.modalities import Image
from mmvae_fast.models import MVAE
from mmvae_fast.systems import GAN
from mmvae_fast.systems import fit as fit_system
from mmvae_fast.training import fit

COLUMNS = {"distance": "Fréchet distance", "precision": "precision", "recall": "recall",
           "classifier_score": "classifier score"}  # fmt: skip


def main(arguments: list[str] | None = None) -> dict[str, dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--rows", type=int, default=20_000, help="training images")
    parser.add_argument("--epochs", type=int, default=15, help="of the VAE")
    parser.add_argument("--gan-epochs", type=int, default=16)
    parser.add_argument("--samples", type=int, default=2000, help="images in every set")
    parser.add_argument("--inception", type=Path, help="weights of torch-fidelity's Inception network")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if not (options.data / "mnist").is_dir():
        print(f"{options.data}: holds no mnist/, so there is nothing to compare; --data names another folder")
        return {}
    images, labels = (x[: options.rows] for x in read_digits(options.data, "train"))
    real, truth = (x[: 2 * options.samples] for x in read_digits(options.data, "test"))
    judge = fit_oracle(Image((1, 28, 28)), images, labels, kind="network", seed=options.seed)
    features = oracle_features(judge) if options.inception is None else inception_features(options.inception)

    torch.manual_seed(options.seed)
    vae = MVAE({"image": Image((1, 28, 28), hidden=(400,))}, latent_dim=16)
    began = time.perf_counter()
    fit(vae, {"image": images}, epochs=options.epochs, batch_size=128, seed=options.seed, progress=False)
    print(f"VAE: {options.epochs} epochs in {time.perf_counter() - began:.0f} s", flush=True)
    gan = GAN({"image": Image((1, 28, 28))}, latent_dim=64, classes=10, width=16)
    began = time.perf_counter()
    data = {"image": images, "label": labels}
    fit_system(gan, data, epochs=options.gan_epochs, batch_size=64, seed=options.seed, progress=False)
    print(f"GAN: {options.gan_epochs} epochs in {time.perf_counter() - began:.0f} s", flush=True)

    asked = truth[torch.randperm(len(truth), generator=torch.Generator().manual_seed(options.seed))][: options.samples]
    made = {
        "VAE": samples(vae.eval(), options.samples, seed=options.seed)["image"],
        "GAN": gan.eval().sample(condition=asked, seed=options.seed),
    }
    found = sample_quality(real, made, features, judge=judge, labels=truth, intended={"GAN": asked}, seed=options.seed)
    print(f"\n{options.samples} images in each set; space: {features.name}")
    print("".join([f"{'':10}", *(f"{name:>18}" for name in COLUMNS.values())]))
    for name, row in found.items():
        print("".join([f"{name:10}", *(f"{row[column]:18.3f}" for column in COLUMNS)]))
    print(f"the digit asked for: GAN {found['GAN']['intended']:.3f}, real half {found['real half']['intended']:.3f}")
    return found


if __name__ == "__main__":
    main()
