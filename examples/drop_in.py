"""Plain PyTorch training code, and the same with our functions swapped in: same curves, less time.

A multimodal VAE (MVAE: Wu & Goodman 2018) of handwritten digits and their labels, some of either missing, written as
it is usually written. The three lines between encoders and decoders stand once as plain PyTorch, once as our three
functions, and once as the one function that does all of it. Everything else is shared.

    python examples/drop_in.py            # a minute on one core; --help lists what can be changed

Our functions draw other noise than torch does, so no curve can repeat the plain one exactly. The question is whether it
moves by more than it does when the seed changes; the last lines of the output answer it, for a seed that sets
everything (weights, order of the batches, noise) and for one that sets the noise alone. Data: scikit-learn's
``load_digits``.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from mmvae_fast.functional import gaussian_kl, poe_sample_kl, product_of_experts, reparameterize

# --- what is swapped: experts (lists of [B, D]) and which are observed (bool [B, M]) to z [B, D] and KL [B] -----------


def plain(mus: list[Tensor], logvars: list[Tensor], mask: Tensor) -> tuple[Tensor, Tensor]:
    # product of experts, with N(0, 1) as one more; a missing expert gets precision 0
    mu = torch.stack([torch.zeros_like(mus[0]), *mus])
    precision = torch.exp(-torch.stack([torch.zeros_like(logvars[0]), *logvars]))
    seen = torch.cat([torch.ones_like(mask[:, :1]), mask], 1).t().unsqueeze(-1)
    precision = precision * seen
    variance = 1 / precision.sum(0)
    mu, logvar = (mu * precision).sum(0) * variance, torch.log(variance)
    # a sample of it
    std = torch.exp(0.5 * logvar)
    z = mu + std * torch.randn_like(std)
    # and its KL to N(0, 1)
    kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp(), dim=1)
    return z, kl


def swapped(mus: list[Tensor], logvars: list[Tensor], mask: Tensor) -> tuple[Tensor, Tensor]:
    mu, logvar = product_of_experts(mus, logvars, mask)
    z = reparameterize(mu, logvar)
    kl = gaussian_kl(mu, logvar)
    return z, kl


def fused(mus: list[Tensor], logvars: list[Tensor], mask: Tensor) -> tuple[Tensor, Tensor]:
    q = poe_sample_kl(mus, logvars, mask)
    return q.z, q.kl


VARIANTS = {"plain": plain, "swapped": swapped, "fused": fused}


# --- the code around it, the same for all -----------------------------------------------------------------------------


class MVAE(nn.Module):
    def __init__(self, latent: int, hidden: int, fusion) -> None:
        super().__init__()
        self.fusion = fusion
        self.image_encoder = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent))
        self.image_decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, 64))
        self.label_encoder = nn.Embedding(10, 2 * latent)
        self.label_decoder = nn.Linear(latent, 10)

    def loss(self, image: Tensor, label: Tensor, observed: Tensor) -> Tensor:
        """Mean over rows of the negative ELBOs given both, the image alone and the label alone."""
        experts = [self.image_encoder(image).chunk(2, 1), self.label_encoder(label).chunk(2, 1)]
        mus, logvars = [mu for mu, _ in experts], [logvar for _, logvar in experts]
        total = torch.zeros(())
        for given in ((True, True), (True, False), (False, True)):
            mask = observed & torch.tensor(given)
            z, kl = self.fusion(mus, logvars, mask)
            image_loss = binary_cross_entropy_with_logits(self.image_decoder(z), image, reduction="none").sum(1)
            label_loss = cross_entropy(self.label_decoder(z), label, reduction="none")
            total = total + (image_loss * mask[:, 0] + label_loss * mask[:, 1] + kl).mean()
        return total


def load() -> tuple[Tensor, Tensor, Tensor]:
    """Images [B, 64] in [0, 1], labels [B], and which of the two each row has: one in five lacks either."""
    digits = load_digits()
    image = torch.tensor(digits.data / 16, dtype=torch.float32)
    g = torch.Generator().manual_seed(0)
    missing = torch.randint(10, (len(image), 1), generator=g)
    return image, torch.tensor(digits.target), missing != torch.arange(2)


def train(fusion, seed: int, options: argparse.Namespace, noise_seed: int = 0) -> tuple[list[float], float]:
    """Mean loss of every epoch, and the processor's seconds."""
    image, label, observed = load()
    torch.manual_seed(seed)
    model = MVAE(options.latent, options.hidden, fusion)
    torch.manual_seed(1000 * seed + noise_seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    order = torch.Generator().manual_seed(seed)  # its own generator: batches do not depend on who draws how much noise
    curve, start = [], time.process_time()
    for _ in range(options.epochs):
        losses = []
        for rows in torch.randperm(len(image), generator=order).split(options.batch):
            loss = model.loss(image[rows], label[rows], observed[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
        curve.append(torch.stack(losses).mean().item())
    return curve, time.process_time() - start


# --- the comparison ---------------------------------------------------------------------------------------------------


def distance(a: list[float], b: list[float]) -> float:
    """Mean over epochs of the gap between two curves, relative to the loss."""
    return statistics.mean(abs(x - y) / y for x, y in zip(a, b, strict=True))


def compare(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    curves: dict[str, list[list[float]]] = {name: [] for name in VARIANTS}
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    warm_up = argparse.Namespace(**{**vars(options), "epochs": 1})
    for fusion in VARIANTS.values():
        train(fusion, 0, warm_up)
    other_noise = []
    for seed in range(options.seeds):
        other_noise.append(train(plain, seed, options, noise_seed=1)[0])
        for name, fusion in VARIANTS.items():  # interleaved, so that a busy machine slows all of them
            curve, spent = train(fusion, seed, options)
            curves[name].append(curve)
            seconds[name].append(spent)

    print("loss by epoch, mean over seeds (standard deviation)")
    print("epoch  " + "".join(f"{name:>20}" for name in VARIANTS))
    shown = sorted({*range(0, options.epochs, max(1, options.epochs // 10)), options.epochs - 1})
    for epoch in shown:
        cells = []
        for name in VARIANTS:
            values = [curve[epoch] for curve in curves[name]]
            cells.append(f"{statistics.mean(values):10.3f} ({statistics.stdev(values):.3f})")
        print(f"{epoch + 1:5}  " + "".join(f"{cell:>20}" for cell in cells))

    def paired(others: list[list[float]]) -> float:
        return statistics.mean(distance(a, b) for a, b in zip(others, curves["plain"], strict=True))

    seed_change = statistics.mean(distance(a, b) for a, b in itertools.combinations(curves["plain"], 2))
    noise_change = paired(other_noise)
    results = {"seed": {"change": seed_change}, "noise": {"change": noise_change}}
    print(f"\nanother seed moves the plain curve by {seed_change:.3%}, other noise alone by {noise_change:.3%}")
    for name in ("swapped", "fused"):
        change = paired(curves[name])
        ratio = statistics.median(p / o for p, o in zip(seconds["plain"], seconds[name], strict=True))
        results[name] = {"change": change, "speedup": ratio}
        verdict = "no more than a seed" if change <= seed_change else "MORE than a seed"
        print(f"{name:>8} moves it by {change:.3%}: {verdict}; the training runs {ratio:.2f} times as fast")
    return results


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5, help="how many, at least 2")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--latent", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    return compare(options)


if __name__ == "__main__":
    main()
