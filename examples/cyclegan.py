"""Handwritten digits (MNIST) <-> spoken digits (FSDD, as log-mel pictures), by CycleGAN.

    python examples/cyclegan.py                  # minutes on one core
    python examples/cyclegan.py --paired 0       # nothing says which image belongs to which recording

Of the training rows, ``--paired`` have both an image and a recording of the same digit; of the rest, one half has only
the image and the other half only the recording. Prints the share of translations of held-out samples in which a judge,
fitted to real ones, finds the digit of the source. Without any pairs that share is chance: no image says which sound
is its own.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from _real_data import DATA, FRAMES, MELS, fit_judge, read, read_speech
from torch.utils.data import Dataset

from mmvae_fast.modalities import Audio, Image
from mmvae_fast.systems import CycleGAN, fit


class Rows(Dataset):
    """Rows of an image, a recording, or both; which recording of the digit an image comes with changes every epoch, or
    the networks would learn the pairs by heart. Where fewer than half of the rows have both, these come again,
    until half have: they alone say what belongs together."""

    def __init__(self, images: torch.Tensor, speech: torch.Tensor, labels: np.ndarray, mask: torch.Tensor) -> None:
        self.images, self.speech, self.labels, self.mask = images, speech, labels, mask
        spoken = mask[:, 1].numpy()
        both, alone = mask.all(1).nonzero()[:, 0], int((~mask.all(1)).sum())
        again = -(-max(0, 2 * alone - len(mask)) // max(1, len(both))) if len(both) else 0
        self.rows = torch.cat([torch.arange(len(mask)), both.repeat(again)])
        self.recordings = [np.flatnonzero((labels == digit) & spoken) for digit in range(10)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        i = int(self.rows[place])
        row, recording = {}, i
        if self.mask[i].all():
            known = self.recordings[self.labels[i]]
            recording = known[int(torch.randint(len(known), ()))]
        if self.mask[i, 0]:
            row["image"] = self.images[i]
        if self.mask[i, 1]:
            row["speech"] = self.speech[recording]
        return row


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--paired", type=float, default=0.8, help="share of the training rows that have both")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    speech = read_speech(options.data)
    train, labels, text = read(options.data, "train", options.rows, speech)
    test, test_labels, _ = read(options.data, "test", 2000, speech, text)
    names = ("image", "speech")
    judges = {name: fit_judge(train[name], labels) for name in names}

    u = torch.rand(len(labels), generator=torch.Generator().manual_seed(options.seed))
    rest = (1 - options.paired) / 2
    mask = torch.stack([u >= rest, u < 1 - rest], dim=1)  # only speech, both, only the image
    torch.manual_seed(options.seed)
    modalities = {"image": Image((1, 28, 28)), "speech": Audio((MELS, FRAMES), scale=0.2)}
    cycle = CycleGAN(
        modalities,
        network="mlp",
        width=32,
        cycle_weight=2.0,
        paired_weight=50.0,
        lr_generator=1e-3,
        lr_discriminator=1e-3,
        ema=0.998,
    )
    began = time.perf_counter()
    fit(
        cycle,
        Rows(train["image"], train["speech"], labels, mask),
        epochs=options.epochs,
        batch_size=64,
        out=options.out,
        seed=options.seed,
    )
    print(f"{options.epochs} epochs in {time.perf_counter() - began:.0f} s, {options.paired:.0%} of the rows paired")

    result = {f"judge of real {n} test rows": float(np.mean(judges[n](test[n]) == test_labels)) for n in names}
    for source, to in (names, names[::-1]):
        translated = cycle.eval().translate({source: test[source]}, to)
        result[f"{source}->{to}"] = float(np.mean(judges[to](translated) == test_labels))
    print(", ".join(f"{name} {value:.3f}" for name, value in result.items()))
    return result


if __name__ == "__main__":
    main()
