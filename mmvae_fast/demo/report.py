"""What ``report.html`` says, from the figures of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmvae_fast.demo import data
from mmvae_fast.demo.evaluate import TARGETS
from mmvae_fast.demo.page import Cell, Code, Picture, Table, Tones, page

FIGURES = {
    "image_to_text": "image → caption",
    "text_to_image": "caption → image",
    "mean_from_one": "mean, from one modality",
    "mean_from_all_but_one": "mean, from all but one",
    "joint_gmm": "joint samples agree (mixture prior)",
    "joint_prior": "joint samples agree (N(0, I) prior)",
}

USE = """\
# in the folder of this report: the trained model, in PyTorch
from mmvae_fast.models import MultimodalVAE

model = MultimodalVAE.load("checkpoint/best")
caption = model.modalities["text"].tokenize(["a photo of the digit three"])
image = model.translate({"text": caption}, to="image")                 # [1, 1, 8, 8]

# the same without torch: pip install 'mmvae_fast[runtime]'
from mmvae_fast.onnx import Runtime

runtime = Runtime.load("onnx")
image = runtime.cross_generate({"text": runtime.tokenize(["a photo of the digit three"])}, to="image")
"""


def write(
    metrics: Mapping[str, Any], timings: Mapping[str, Any], pictures: Mapping[str, bytes], test: data.Split
) -> str:
    """``report.html``: self-contained."""
    settings, likelihood = metrics["settings"], metrics["likelihood"]
    judges, diversity, served = metrics["judges"], metrics["diversity"], timings["without_torch"]
    rng = np.random.default_rng(settings["seed"])
    waves = {f"key {digit}": data.tone(digit, rng) for digit in range(10)}
    figures = Table(
        "Figures",
        ("", "reached", "target"),
        [
            [label, Cell(f"{(value := metrics['figures'][name]):.3f}", verdict(name, value)), target(name)]
            for name, label in FIGURES.items()
        ],
        f"Share of {len(test)} held-out images (or of 2000 joint samples) that show the right digit, decoding the "
        "posterior mean. Images and tones are judged by support vector machines trained on the training rows (on real "
        f"held-out rows they score {judges['image']:.3f} and {judges['audio']:.3f}); a caption must be right word for "
        "word. One standard error is about a point. The mixture prior is a 20-component Gaussian mixture of the "
        "training posteriors.",
    )
    directions = Table(
        "Every direction",
        ("", "right digit"),
        [[_arrow(direction), f"{share:.3f}"] for direction, share in metrics["directions"].items()],
    )
    held_out = Table(
        "Held-out rows",
        ("", "value"),
        [
            ["ELBO, nats", f"{likelihood['elbo']:.2f}"],
            ["KL divergence, nats", f"{likelihood['kl']:.2f}"],
            *[
                [f"log-likelihood of the {shown}, nats", f"{likelihood[f'll_{name}']:.2f}"]
                for name, shown in data.SHOWN_AS.items()
            ],
            ["log p(x), importance-weighted, nats", f"{likelihood['log_p_x']:.2f}"],
            ["root mean square error of a pixel", f"{metrics['reconstruction']['image_rmse']:.3f}"],
            ["root mean square error of a mel band", f"{metrics['reconstruction']['audio_rmse']:.3f}"],
            ["wrong words, of all", f"{metrics['reconstruction']['text_wrong_words']:.4f}"],
            ["spread of images sampled from a caption, of real", f"{diversity['text_to_image']:.2f}"],
            ["spread of tones sampled from a caption, of real", f"{diversity['text_to_audio']:.2f}"],
        ],
        "Means over rows. The posterior mean of a caption gives one prototype a digit; the spread says how much "
        "samples of its posterior vary, compared with real images and tones of that digit.",
    )
    onnx = Table(
        "ONNX bundle",
        ("", ""),
        [
            ["worst absolute difference from torch, whatever is missing", f"{metrics['onnx']['worst']:.1e}"],
            ["the same, held-out rows in a process without torch", f"{metrics['onnx']['without_torch_worst']:.1e}"],
            ["ready after", f"{served['ready_s']:.2f} s"],
            ["one row, encoded and decoded", f"{served['one_row_ms']:.2f} ms"],
            [f"{served['rows']} rows", f"{served['all_rows_ms']:.1f} ms"],
        ],
    )
    about = Table(
        "This run",
        ("", ""),
        [
            *[[name.replace("_", " "), str(value)] for name, value in settings.items()],
            *[[f"{step}, seconds", f"{seconds:.1f}"] for step, seconds in timings["seconds"].items()],
            *[[name, value] for name, value in timings["environment"].items()],
        ],
    )
    return page(
        "mmvae_fast demo",
        "One model of three views of a digit: a real 8x8 image, a caption, and the keypad tone of a telephone. The "
        "tones are synthetic: waveforms of the two DTMF frequencies, with random timing, loudness, phase and noise, "
        "turned into log-mel pictures as a recording would be.",
        [
            figures,
            Picture(
                "From one to the other",
                "Held-out examples. Whatever is decoded is the posterior mean. A caption of another digit is red.",
                pictures["grid"],
            ),
            Picture(
                "Joint samples",
                "Drawn from the mixture prior, decoded to all three. Nothing was given.",
                pictures["samples"],
            ),
            Picture(
                "Latent space",
                "Posterior means of the held-out rows, inferred from all three or from one. All panels show the two "
                "principal axes of the captions' means, ten points: a caption tells the digit and nothing else.",
                pictures["latent"],
            ),
            Picture(
                "Training",
                "Means over rows. The KL divergence counts more and more during warm-up.",
                pictures["training"],
            ),
            directions,
            held_out,
            onnx,
            Tones("Listen", "Synthetic tones, made as the training tones are.", waves, data.SAMPLE_RATE),
            Code("Use it", USE),
            about,
        ],
    )


def verdict(name: str, value: float) -> bool | None:
    """Whether a figure reached its target; None if it has none."""
    return value >= TARGETS[name] if name in TARGETS else None


def target(name: str) -> str:
    return f"{TARGETS[name]:.2f}" if name in TARGETS else ""


def _arrow(direction: str) -> str:
    sources, to = direction.split("->")
    return f"{' + '.join(data.SHOWN_AS[name] for name in sources.split('+'))} → {data.SHOWN_AS[to]}"
