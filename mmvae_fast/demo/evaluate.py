"""How good a multimodal model is: does what it decodes show the digit it was given, and do its modalities agree?

The judges are not the model: classifiers of real images and tones, trained on the training rows, and a strict reading
of captions. What is decoded is always the posterior mean, unless samples are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mmvae_fast._lazy import require
from mmvae_fast.demo.data import Split, modalities, read_caption

if TYPE_CHECKING:
    from torch import Tensor

    from mmvae_fast.models import MultimodalVAE

Judge = Callable[["Tensor"], np.ndarray]  # one modality [B, *shape] -> digits [B], -1 where it shows none

TARGETS = {
    "image_to_text": 0.93,
    "text_to_image": 0.97,
    "mean_from_one": 0.92,
    "mean_from_all_but_one": 0.96,
    "joint_gmm": 0.95,
}
_JOINT_SAMPLES = 2000
_GMM_COMPONENTS = 20


def fit_judges(train: Split) -> dict[str, Judge]:
    """For every modality, who tells which digit it shows."""
    svm = require("sklearn.svm", extra="demo")
    image = svm.SVC(C=10).fit(_flat(train.images), train.labels)
    tone = svm.SVC().fit(_flat(train.tones), train.labels)
    text = modalities()["text"]
    return {
        "image": lambda x: image.predict(_flat(x.numpy())),
        "text": lambda x: np.array([read_caption(s) for s in text.detokenize(x)]),  # type: ignore[attr-defined]
        "audio": lambda x: tone.predict(_flat(x.numpy())),
    }


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1)


def coherence(
    model: MultimodalVAE, batch: Mapping[str, Tensor], judges: Mapping[str, Judge], labels: np.ndarray
) -> dict[str, float]:
    """For every direction, e.g. "image->text" or "image+audio->text", the share of rows that show the right digit."""
    from mmvae_fast.evaluate import cross_coherence

    found = cross_coherence(model, batch, judges, labels)
    return {f"{source}->{target}": share for source, of in found.items() for target, share in of.items()}


def summarise(directions: Mapping[str, float]) -> dict[str, float]:
    """The headline figures of :func:`coherence`: means over the directions from one modality, and from all but one."""
    sources = {direction: direction.split("->")[0].count("+") + 1 for direction in directions}
    most = max(sources.values())
    return {
        "image_to_text": directions["image->text"],
        "text_to_image": directions["text->image"],
        "mean_from_one": float(np.mean([share for d, share in directions.items() if sources[d] == 1])),
        "mean_from_all_but_one": float(np.mean([share for d, share in directions.items() if sources[d] == most])),
    }


def fit_gmm(z: np.ndarray, seed: int) -> Any:
    """A 20-component Gaussian mixture of latents [N, D]: what the model's posteriors really look like together.

    One thread: the order of sums must not depend on the machine's load.
    """
    mixture = require("sklearn.mixture", extra="demo")
    threads = require("threadpoolctl", extra="demo")
    with threads.threadpool_limits(1):
        return mixture.GaussianMixture(_GMM_COMPONENTS, reg_covar=1e-3, random_state=seed).fit(z.astype(np.float64))


def evaluate(
    model: MultimodalVAE, train: Split, test: Split, *, seed: int = 0
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Judge a trained model on held-out rows.

    Returns:
        (figures, latents): figures as JSON, shares unless they say otherwise; latents are z [N, D] drawn from the
        Gaussian mixture that was fitted to the training posteriors, under "gmm".
    """
    import torch

    from mmvae_fast.evaluate import agreement

    judges = fit_judges(train)
    batch = test.batch(model.modalities)
    with torch.no_grad():
        directions = coherence(model, batch, judges, test.labels)
        gmm = fit_gmm(model.encode(train.batch(model.modalities)).mu.numpy(), seed)
        gmm_z = torch.from_numpy(gmm.sample(_JOINT_SAMPLES)[0].astype(np.float32))
        figures = {
            **summarise(directions),
            "joint_prior": agreement(model.sample(_JOINT_SAMPLES, seed=seed), judges),
            "joint_gmm": agreement(model.decode(gmm_z), judges),
        }
        metrics = {
            "figures": figures,
            "directions": directions,
            "judges": {name: float(np.mean(judge(batch[name]) == test.labels)) for name, judge in judges.items()},
            "likelihood": likelihood(model, batch, seed),
            "reconstruction": reconstruction(model, batch),
            "diversity": diversity(model, batch, test.labels, seed),
        }
    return metrics, {"gmm": gmm_z}


def likelihood(model: MultimodalVAE, batch: Mapping[str, Tensor], seed: int, repeats: int = 10) -> dict[str, Any]:
    """Means over rows in nats. ELBO, KL and the modalities' log-likelihoods average over ``repeats`` noises; log p(x)
    is importance-weighted with 500 samples."""
    from mmvae_fast.evaluate import log_likelihood

    outputs = [model(batch, seed=seed + i) for i in range(repeats)]

    def mean(values: Iterable[Tensor]) -> float:
        return float(np.mean([value.item() for value in values]))

    return {
        "elbo": mean(o.elbo for o in outputs),
        "kl": mean(o.kl for o in outputs),
        **{f"ll_{name}": mean(o.log_likelihood[name] for o in outputs) for name in model.modalities},
        "log_p_x": log_likelihood(model, batch, n_samples=500, seed=seed).mean().item(),
    }


def reconstruction(model: MultimodalVAE, batch: Mapping[str, Tensor]) -> dict[str, float]:
    """Everything from everything: root mean square error of pixels and mel bands (in [0, 1]), share of wrong words."""
    from mmvae_fast.evaluate import reconstruction as errors

    (found,) = errors(model, batch, subsets=[list(model.modalities)]).values()
    return {
        "image_rmse": found["image"]["mse"] ** 0.5,
        "text_wrong_words": 1 - found["text"]["accuracy"],
        "audio_rmse": found["audio"]["mse"] ** 0.5,
    }


def diversity(model: MultimodalVAE, batch: Mapping[str, Tensor], labels: np.ndarray, seed: int) -> dict[str, float]:
    """How much generated images (tones) of a digit differ, as a share of how much real ones do: mean standard deviation
    of a pixel within a digit. From samples of q(z | caption); the posterior mean would give one prototype a digit.
    """
    z = model.encode({"text": batch["text"]}).sample(seed=seed)
    generated = model.decode(z, ["image", "audio"])

    def spread(x: Tensor) -> float:
        return float(np.mean([x[labels == digit].std(0).mean().item() for digit in np.unique(labels)]))

    return {f"text_to_{name}": spread(x) / spread(batch[name]) for name, x in generated.items()}
