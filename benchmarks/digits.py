"""Every model on the same embedded digits (image, caption, tone): coherence and likelihood, side by side.

    python -m benchmarks.digits                     all of them, one after the other
    python -m benchmarks.digits --models MoPoE,MMVAE --epochs 60

Same networks, latent size, data, epochs and seed for all; each model's own paper's weights. What is printed is of
held-out rows. Coherence: the share of decoded samples in which a judge that the model never saw (a classifier, or a
strict reading of the caption) finds the right digit.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.machine import environment
from mmvae_fast import models
from mmvae_fast.demo import data, evaluate
from mmvae_fast.training import fit

RESULTS = Path(__file__).parent / "results" / "models.md"
LATENT_DIM, PRIVATE_DIM = 16, 4

Build = Callable[[], models.MultimodalVAE]


def _build(cls: type, **options) -> Build:
    # by dimension, as the demo: 64 pixels, 6 words and 256 mel bands would else not be heard alike
    return lambda: cls(data.modalities(), LATENT_DIM, likelihood_weights="dimension", **options)


MODELS: dict[str, Build] = {
    "MVAE": _build(models.MVAE),
    "MVAE, 2 random subsets": _build(models.MVAE, n_random_subsets=2),
    "gPoE": _build(models.WeightedPoE),
    "Wasserstein barycentre": _build(models.FusedVAE, fusion="wasserstein"),
    "MMVAE, Laplace, DReG": _build(models.MMVAE),
    "MMVAE, normal, IWAE": _build(models.MMVAE, family="normal", estimator="iwae"),
    "MoPoE": _build(models.MoPoE),
    "mmJSD": _build(models.MMJSD),
    "MVTCAE": _build(models.MVTCAE),
    "mcVAE": _build(models.MCVAE),
    "CRMVAE": _build(models.CRMVAE),
    "JMVAE": _build(models.JMVAE),
    "TELBO": _build(models.TELBO),
    "JNF": _build(models.JNF),
    "MMVAE+": _build(models.MMVAEPlus, private_dim=PRIVATE_DIM),
    "CMVAE": _build(models.CMVAE, private_dim=PRIVATE_DIM, n_clusters=10),
    "DMVAE": _build(models.DMVAE, private_dim=PRIVATE_DIM),
    "Nexus": _build(models.Nexus),
    "MHVAE": _build(models.MHVAE),
}


def judge(build: Build, splits: data.DemoSet, judges: dict, epochs: int, seed: int) -> dict[str, float]:
    """Train one model and look at what it makes of the test rows."""
    torch.manual_seed(seed)
    model = build()
    began = time.process_time()
    fit(model, splits.train.batch(model.modalities), epochs=epochs, seed=seed, progress=False, accelerator="cpu")
    seconds = time.process_time() - began
    model.eval()
    batch, labels = splits.test.batch(model.modalities), splits.test.labels

    def decode(sources, targets):
        return model.reconstruct({name: batch[name] for name in sources}, to=list(targets))

    directions = evaluate.coherence(decode, judges, labels)
    summary = evaluate.summarise(directions)
    return {
        "from one": summary["mean_from_one"],
        "from two": summary["mean_from_all_but_one"],
        "image to text": summary["image_to_text"],
        "text to image": summary["text_to_image"],
        "prior": evaluate.agreement(model.sample(1000, seed=seed), judges),
        "log p(x)": model.log_likelihood(batch, n_samples=200, seed=seed).mean().item(),
        "CPU s an epoch": seconds / epochs,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.digits", description=__doc__)
    parser.add_argument("--models", help="comma separated names")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--markdown", type=Path, help=f"also write the table, e.g. to {RESULTS.name}")
    options = parser.parse_args(arguments)
    names = list(MODELS) if options.models is None else options.models.split(",")
    splits = data.build()
    judges = evaluate.fit_judges(splits.train)
    lines: list[str] = []
    for name in names:
        runs = [judge(MODELS[name], splits, judges, options.epochs, seed) for seed in range(options.seeds)]
        means = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
        if not lines:
            lines = [f"| model | {' | '.join(means)} |", "|---|" + "--:|" * len(means)]
            print("\n".join(lines), flush=True)
        lines.append(
            f"| {name} | " + " | ".join(f"{v:.2f}" if abs(v) < 10 else f"{v:.1f}" for v in means.values()) + " |"
        )
        print(lines[-1], flush=True)
        if options.markdown is not None:
            options.markdown.parent.mkdir(parents=True, exist_ok=True)
            options.markdown.write_text(_page(lines, options.epochs, options.seeds), encoding="utf-8")


PAGE = """# The models on the embedded digits

Written by `make bench-digits` ({epochs} epochs, {seeds} seed(s), {dim} latent dimensions): image, caption and tone of a
digit, the same small networks for all, likelihoods weighted by dimension, otherwise each class's own defaults.

Coherence on 360 held-out rows is the share of decoded posterior means that show the right digit: from one modality to
another (mean of six directions), from two to the third (three), and two directions by themselves; "prior" is the share
of prior samples in which all three agree. log p(x) is importance-weighted with 200 samples, in nats; where a model has
private latents or a hierarchy, over all of them.

{table}

{machine}
"""


def _page(lines: list[str], epochs: int, seeds: int) -> str:
    machine = ", ".join(f"{key} {value}" for key, value in environment("cpu").items())
    return PAGE.format(epochs=epochs, seeds=seeds, dim=LATENT_DIM, table="\n".join(lines), machine=machine)


if __name__ == "__main__":
    main()
