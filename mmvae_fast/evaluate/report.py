"""Everything at once: a model or a system judged on data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmvae_fast.evaluate.classifier_score import classifier_score
from mmvae_fast.evaluate.coherence import agreement, check_judges, cross_coherence, samples
from mmvae_fast.evaluate.frechet import frechet
from mmvae_fast.evaluate.judging import fit_on_others, judges_on_real, space, whole_rows
from mmvae_fast.evaluate.latent_figures import latent_figures
from mmvae_fast.evaluate.likelihood import joint, means, needed
from mmvae_fast.evaluate.of_classifier import classifier_figures
from mmvae_fast.evaluate.of_cyclegan import cyclegan_figures
from mmvae_fast.evaluate.of_gan import gan_figures
from mmvae_fast.evaluate.oracles import Judge, Oracle
from mmvae_fast.evaluate.precision_recall import precision_recall
from mmvae_fast.evaluate.quality import LEAST, NEIGHBOURS
from mmvae_fast.evaluate.reconstruction import reconstruction
from mmvae_fast.evaluate.rows import (
    Judged,
    Rows,
    choose_subsets,
    judged,
    shuffled,
    size_of_batch,
    targets,
)
from mmvae_fast.evaluate.steps import Progress, Steps
from mmvae_fast.evaluate.tables import Report
from mmvae_fast.models import MultimodalVAE
from mmvae_fast.systems import GAN, CycleGAN, FusionClassifier
from mmvae_fast.training.data import Data
from mmvae_fast.training.seeding import derive


def evaluate(
    model: Judged,
    data: Data | Rows,
    labels: Any = None,
    *,
    subsets: str | Sequence[Sequence[str]] = "all",
    n_samples: int = 100,
    generated: int = 1000,
    judges: Mapping[str, Judge] | None = None,
    train: tuple[Data | Rows, Any] | None = None,
    prior: Any = None,
    batch_size: int = 256,
    seed: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Judge a trained model of any class, or a system, on data it has not seen.

    Of a model, for every subset of the modalities: log-likelihoods, reconstruction errors, and how the samples of the
    prior compare with the data (in the space of their principal components). With labels also coherence, clustering and
    linear probes of the latents, and the comparison is in the space of the oracles.

    Of a :class:`~mmvae_fast.systems.FusionClassifier`: how well it tells the class from every subset of the modalities
    and with half of each row's hidden, what it takes for what, and clusters and probes of its latents. (What it
    generates: ``evaluate(classifier.model, ...)``.) Of a :class:`~mmvae_fast.systems.GAN`: how its samples compare with
    half of the real ones, as the other half does, and how many show the class they were asked for. Of a
    :class:`~mmvae_fast.systems.CycleGAN`: errors of the way there and back, how many translations show the class of
    their source, and how they compare with real samples.

    Rows that lack something count wherever they have what it takes. What the model or the data are not fit for (an
    autoencoder has no density, an oracle needs rows of two classes) is left out, and "skipped" of the figures says why.

    Args:
        data: as :func:`mmvae_fast.training.fit` takes it: a dict of tensors, perhaps with a "mask", or a Dataset; for a
            system as :func:`mmvae_fast.systems.fit` takes it, so perhaps with a "label" and a "condition".
        labels: int [N], -1 where unknown; None for the "label" of a system's data, if any.
        subsets: sources: "all", or a list of lists of names; of models and classifiers.
        n_samples: K of the importance-weighted log-likelihood; 0 leaves it out. Of models alone.
        generated: samples of the prior, or of the GAN; no more than half as many as there are real ones are compared.
        judges: by modality, x -> classes; see :func:`cross_coherence`. None trains oracles: on ``train``, or else on
            half of the labelled rows, so that coherence and samples are judged on the other half alone.
        train: (data, labels) for that, such as the model's training data.
        prior: of a model, to draw samples from instead of its own; see :meth:`MultimodalVAE.sample`.
        batch_size: rows that pass the networks at a time.
        seed: of all noise, halves and folds.
        progress: is told what is measured next, how many steps are done, and of how many.

    Raises:
        ValueError, TypeError: naming what came and what was expected.
        ImportError: without the ``evaluate`` extra.
    """
    if not isinstance(model, (MultimodalVAE, FusionClassifier, GAN, CycleGAN)):
        raise TypeError(
            f"model is a {type(model).__name__}, expected a MultimodalVAE, FusionClassifier, GAN or CycleGAN"
        )
    rows = Rows.of(model, data, labels)
    size_of_batch(batch_size)
    _check_count("n_samples", n_samples, 0)
    if rows.labels is None and (judges is not None or train is not None):
        raise ValueError("judges or train is given, but labels is None: expected the classes of the data as well")
    if judges is not None:
        check_judges(model, judges)
    figures: dict[str, Any] = {
        "model": type(model).__name__,
        "rows": len(rows),
        "observed": {name: int(rows.observed(name).sum()) for name in rows.names},
    }
    if isinstance(model, MultimodalVAE):
        figures["settings"] = {"n_samples": n_samples, "generated": generated, "seed": seed}
        figures |= model_figures(
            model, rows, subsets=subsets, n_samples=n_samples, generated=generated, judges=judges, train=train,
            prior=prior, batch_size=batch_size, seed=seed, progress=progress,
        )  # fmt: skip
        return Report(figures)
    if prior is not None:
        raise ValueError(f"prior is given, expected None: a {type(model).__name__} has no prior")
    if isinstance(model, FusionClassifier):
        if judges is not None or train is not None:
            raise ValueError(
                "judges or train is given, expected None: a FusionClassifier is judged by the labels alone"
            )
        figures["settings"] = {"seed": seed}
        return Report(figures | classifier_figures(model, rows, subsets, batch_size, seed, progress))
    figures["settings"] = {"generated": generated, "seed": seed}
    if isinstance(model, GAN):
        _check_count("generated", generated, 1)
        return Report(figures | gan_figures(model, rows, generated, judges, train, batch_size, seed, progress))
    return Report(figures | cyclegan_figures(model, rows, judges, train, batch_size, seed, progress))


def _check_count(what: str, value: Any, least: int) -> None:
    if type(value) is not int or value < least:
        raise ValueError(f"{what} is {value!r}, expected {least} or more")


def model_figures(
    model: MultimodalVAE,
    rows: Rows,
    *,
    subsets: str | Sequence[Sequence[str]],
    n_samples: int,
    generated: int,
    judges: Mapping[str, Judge] | None,
    train: tuple[Data | Rows, Any] | None,
    prior: Any,
    batch_size: int,
    seed: int,
    progress: Progress | None,
) -> dict[str, Any]:
    """Of a model; see :func:`evaluate`."""
    chosen = choose_subsets(model, subsets)
    wanted = needed(model, chosen)
    figures: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    density, labelled = n_samples and model.generative, rows.labels is not None
    steps = Steps(progress, {
        "log-likelihood": len(wanted) if density else 0,
        "reconstruction": len(chosen),
        "latents": len(chosen) if labelled else 0,
        "oracles": len(rows.names) if labelled and judges is None else 0,
        "coherence": len(chosen) if labelled else 0,
        "samples": len(targets(model)) + 1 if model.generative or prior is not None else 0,
    })  # fmt: skip
    if density:
        noise = derive(seed, "likelihood")
        each = {s: joint(model, rows, s, n_samples, batch_size, noise) for s in steps("log-likelihood", wanted)}
        figures["log_likelihood"] = {
            kind: {name: mean._asdict() for name, mean in of.items()} for kind, of in means(model, chosen, each).items()
        }
    elif n_samples:
        skipped["log_likelihood"] = f"{type(model).__name__} has no density log p(x)"
    figures["reconstruction"] = {}
    for subset in steps("reconstruction", chosen):
        figures["reconstruction"] |= reconstruction(model, rows, subsets=[subset], batch_size=batch_size)

    real = rows
    if rows.labels is None:
        skipped["coherence, oracles, latents"] = "labels is None: nobody said which class a row shows"
    else:
        known = rows.with_known_label()
        figures["labelled"] = len(known)
        figures["latents"] = latent_figures(model, known, chosen, batch_size, seed, steps, skipped)
        real = known
        if judges is None:
            judges, real = fit_on_others(model, known, train, seed, steps, skipped)
        figures["oracles"] = judges_on_real(real, judges)
        if any(name in judges for name in targets(model)):
            figures["coherence"] = {}
            for subset in steps("coherence", chosen):
                figures["coherence"] |= cross_coherence(
                    model, real, judges, subsets=[subset], batch_size=batch_size, seed=derive(seed, "coherence")
                )
        else:
            skipped["coherence"] = "nobody tells the classes: there is no oracle of any modality that is decoded"
    if model.generative or prior is not None:
        made: dict[str, Tensor] = {}
        compared: dict[str, dict[str, Any]] = {}
        for name in steps("samples", ["", *targets(model)]):
            if not name:
                with judged(model):
                    made = samples(model, generated, seed=derive(seed, "prior"), prior=prior, batch_size=batch_size)
                if judges is not None and "coherence" in figures and len(made) > 1:  # one alone agrees with itself
                    figures["joint_coherence"] = agreement(made, judges)
                continue
            compared[name] = _compare(model, real, name, made[name], None if judges is None else judges.get(name), seed)
            if not compared[name]:
                skipped[f"samples of {name}"] = f"fewer than {LEAST} of them, or {2 * LEAST} whole rows of data"
        figures["samples"] = {name: found for name, found in compared.items() if found}
    else:
        skipped["samples"] = f"{type(model).__name__} has no prior to sample, and prior is None"
    steps.end()
    return figures | ({"skipped": skipped} if skipped else {})


def _compare(
    model: MultimodalVAE, rows: Rows, name: str, made: Tensor, judge: Judge | None, seed: int
) -> dict[str, Any]:
    """Samples of a modality against as many real ones."""
    real = whole_rows(rows, name).data[name].cpu() if name in rows.data else torch.zeros(0)
    if min(len(real) // 2, len(made)) < LEAST:
        return {}
    features = space(model, name, real, judge, seed)
    found: dict[str, Any] = frechet(real, made, features, seed=derive(seed, "frechet"))._asdict()
    rows_each = min(len(real), len(made))
    real = real[shuffled(len(real), seed, "real rows")]
    shares = precision_recall(features(real[:rows_each]), features(made[:rows_each]), k=NEIGHBOURS)
    found |= {"precision": shares.precision, "recall": shares.recall}
    if isinstance(judge, Oracle):
        found["classifier_score"] = classifier_score(judge.probabilities(made[:rows_each]), splits=1).score
        found["classifier_score_of_real"] = classifier_score(judge.probabilities(real[:rows_each]), splits=1).score
    return found
