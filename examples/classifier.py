"""Which digit is it? Handwriting (MNIST) and speech (FSDD) together, each alone, and half of everything missing.

    python examples/classifier.py                # minutes on one core
    python examples/classifier.py --unlabelled 0.9

Trains on 10,000 rows paired by label, of which ``--unlabelled`` have no label, and prints accuracies on 2,000 rows of
other images and recordings (of FSDD's official test split: 300 of them).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from _real_data import DATA, FRAMES, MELS, WORDS, Data, read, read_speech
from sklearn.metrics import adjusted_rand_score

from mmvae_fast.modalities import Audio, Image, Modality
from mmvae_fast.systems import FusionClassifier, fit

HIDDEN = (400,)


def modalities() -> dict[str, Modality]:
    return {
        "image": Image((1, 28, 28), hidden=HIDDEN),
        "speech": Audio((MELS, FRAMES), hidden=HIDDEN, scale=0.3),
    }


def train(names: list[str], data: Data, epochs: int, seed: int) -> FusionClassifier:
    torch.manual_seed(seed)
    branches = {name: m for name, m in modalities().items() if name in names}
    classifier = FusionClassifier(branches, WORDS, latent_dim=64)
    began = time.perf_counter()
    data = {name: x for name, x in data.items() if name in (*names, "label")}
    fit(classifier, data, epochs=epochs, batch_size=128, seed=seed, progress=False)
    print(f"{' + '.join(names)}: {epochs} epochs in {time.perf_counter() - began:.0f} s", flush=True)
    return classifier.eval()


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--unlabelled", type=float, default=0.0, help="share of the training rows without a label")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    speech = read_speech(options.data)
    data, labels, text = read(options.data, "train", options.rows, speech)
    test, test_labels, _ = read(options.data, "test", 2000, speech, text)
    generator = torch.Generator().manual_seed(options.seed)
    label = torch.from_numpy(labels)
    data["label"] = torch.where(torch.rand(len(label), generator=generator) < options.unlabelled, -1, label)
    truth = torch.from_numpy(test_labels)

    def accuracy(classifier: FusionClassifier, mask: torch.Tensor | None = None) -> float:
        inputs = {name: test[name] for name in classifier.modalities}
        return (classifier.predict(inputs, mask) == truth).float().mean().item()

    both = train(["image", "speech"], data, options.epochs, options.seed)
    keep_image = torch.rand(len(truth), generator=generator) < 0.5
    result = {
        "both branches": accuracy(both),
        "both, half missing": accuracy(both, torch.stack([keep_image, ~keep_image], 1)),
        "both, image only": accuracy(both, torch.tensor([True, False]).expand(len(truth), 2)),
        "both, speech only": accuracy(both, torch.tensor([False, True]).expand(len(truth), 2)),
        **{
            f"{name} branch alone": accuracy(train([name], data, options.epochs, options.seed)) for name in modalities()
        },
    }
    found = both.cluster({name: test[name] for name in both.modalities}, seed=options.seed)
    result["clusters of latents, adjusted Rand index"] = float(adjusted_rand_score(test_labels, found))
    print(f"{options.unlabelled:.0%} of the labels missing; every test row has one of its two modalities in line 2")
    for name, value in result.items():
        print(f"  {name:42} {value:.3f}")
    return result


if __name__ == "__main__":
    main()
