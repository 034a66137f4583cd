"""Speech there and back: recordings to log-mel pictures, through a convolutional VAE, and to .wav files to listen to.

    python examples/spoken_digits.py FOLDER --out spoken       # about three minutes on one core

Trains on 1,500 recordings of the Free Spoken Digit Dataset and judges on 300 others: a support vector machine that only
saw real recordings says which digit it hears in each held-out recording, in its reconstruction's picture, and in the
.wav file that was written of it, read again like any recording. Prints the shares that are right.

FOLDER holds ``fsdd/fsdd_recordings.zip``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from sklearn.svm import SVC

from mmvae_fast.data.audio import AudioReader
from mmvae_fast.models import VAE
from mmvae_fast.training import fit


def recordings(folder: Path, to: Path) -> list[Path]:
    """The .wav files, the first word of whose names is the digit, in a random order that is always the same."""
    with zipfile.ZipFile(folder / "fsdd" / "fsdd_recordings.zip") as archive:
        archive.extractall(to)
    paths = sorted(to.rglob("*.wav"))
    return [paths[i] for i in np.random.default_rng(0).permutation(len(paths))]


def digits(paths: list[Path]) -> np.ndarray:
    return np.array([int(path.name.split("_")[0]) for path in paths])


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("spoken"), help="for the model and the .wav files")
    parser.add_argument("--network", choices=("mlp", "conv", "residual"), default="conv")
    parser.add_argument("--train", type=int, default=1500)
    parser.add_argument("--test", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=40)
    arguments = parser.parse_args(argv)
    reader = AudioReader(
        sample_rate=8000, seconds=0.75, n_mels=64, n_fft=512, hop_length=128, floor_db=-60.0, network=arguments.network,
        width=16, scale=0.1,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as temp:
        paths = recordings(arguments.folder, Path(temp))
        train, test = paths[: arguments.train], paths[arguments.train :][: arguments.test]
        x, held_out = (torch.stack([reader.read(path) for path in part]) for part in (train, test))

    torch.manual_seed(0)
    model = VAE({"speech": reader.modality()}, 32)
    start = time.perf_counter()
    fit(model, {"speech": x}, epochs=arguments.epochs, batch_size=64, lr=1e-3, seed=0, out=arguments.out / "run")
    print(f"{arguments.network}: {arguments.epochs} epochs in {time.perf_counter() - start:.0f} s")

    model.eval()
    back = model.reconstruct({"speech": held_out})["speech"]
    print(f"mean squared error, held-out pictures in [0, 1]: {(back - held_out).square().mean():.4f}")
    written = [
        reader.write(picture, arguments.out / "wav" / f"{path.stem}.wav")
        for path, picture in zip(test, back, strict=True)
    ]
    heard = torch.stack([reader.read(path) for path in written])
    judge = SVC(C=10.0).fit(x.flatten(1).numpy(), digits(train))
    shares = {}
    for what, pictures in (("real", held_out), ("reconstructed", back), ("written as .wav and read again", heard)):
        shares[what] = float((judge.predict(pictures.flatten(1).numpy()) == digits(test)).mean())
        print(f"digit heard right, {what}: {shares[what]:.3f}")
    return shares


if __name__ == "__main__":
    main()
