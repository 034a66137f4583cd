"""Everything at once: a model judged on data, as tables for people and as JSON for machines."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmvae_fast._files import write_atomic
from mmvae_fast.evaluate.classifier_score import classifier_score
from mmvae_fast.evaluate.clustering import clustering
from mmvae_fast.evaluate.coherence import agreement, check_judges, cross_coherence, samples
from mmvae_fast.evaluate.features import Features, oracle_features, pca_features
from mmvae_fast.evaluate.frechet import frechet
from mmvae_fast.evaluate.likelihood import log_likelihoods
from mmvae_fast.evaluate.oracles import Judge, Oracle, TooFewRows, classes_of, fit_oracles, whole
from mmvae_fast.evaluate.precision_recall import precision_recall
from mmvae_fast.evaluate.probe import linear_probe
from mmvae_fast.evaluate.reconstruction import reconstruction
from mmvae_fast.evaluate.rows import (
    Rows,
    Subset,
    choose_subsets,
    judged,
    latents,
    name_of,
    shuffled,
    size_of_batch,
    targets,
)
from mmvae_fast.models import MultimodalVAE
from mmvae_fast.training.data import Data
from mmvae_fast.training.seeding import derive

FORMAT, SCHEMA_VERSION = "mmvae_fast.evaluation", 1
_NEIGHBOURS, _LEAST = 3, 8  # of precision and recall; rows below which sets of samples are not compared

Table = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Report:
    """What :func:`evaluate` found; see there for what the figures are."""

    figures: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """As JSON can hold it: what is not a number is None."""
        return _plain({"format": FORMAT, "schema_version": SCHEMA_VERSION, **self.figures})

    def tables(self) -> list[tuple[str, Table]]:
        """(title, rows of named cells) of everything that was measured."""
        return _tables(self.figures)

    def as_text(self) -> str:
        """Aligned tables for a terminal."""
        parts = [_heading(self.figures)]
        for title, table in self.tables():
            cells = _cells(table)
            widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
            lines = [
                "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
                for row in cells
            ]
            parts.append("\n".join([title, *(f"  {line}".rstrip() for line in lines)]))
        if skipped := _skipped(self.figures):
            parts.append("\n".join(["Left out", *(f"  {line}" for line in skipped)]))
        return "\n\n".join(parts) + "\n"

    def as_markdown(self) -> str:
        """The same for a page."""
        parts = ["# Evaluation", _heading(self.figures)]
        for title, table in self.tables():
            head, *rows = _cells(table)
            rule = ["---", *["---:"] * (len(head) - 1)]
            parts.append(f"## {title}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows]))
        if skipped := _skipped(self.figures):
            parts.append("## Left out\n\n" + "\n".join(f"- {line}" for line in skipped))
        return "\n\n".join(parts) + "\n"

    def save(self, path: str | os.PathLike) -> Path:
        """Write it to a ``.json``, ``.md`` or ``.txt`` file, wholly or not at all."""
        path = Path(path)
        if path.suffix not in (".json", ".md", ".txt"):
            raise ValueError(f"Report.save: {path} ends in {path.suffix!r}, expected .json, .md or .txt")
        if path.suffix == ".json":
            write_atomic(path, json.dumps(self.as_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        else:
            write_atomic(path, self.as_markdown() if path.suffix == ".md" else self.as_text())
        return path


def evaluate(
    model: MultimodalVAE,
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
) -> Report:
    """Judge a trained model of any class on data it has not seen, for every subset of the modalities.

    Without labels: log-likelihoods, reconstruction errors, and how the samples of the prior compare with the data (in
    the space of their principal components). With labels also coherence, clustering and linear probes of the latents,
    and the comparison is in the space of the oracles. Rows that lack something count wherever they have what it takes.
    What the model or the data are not fit for (an autoencoder has no density, an oracle needs rows of two classes) is
    left out, and "skipped" of the figures says why.

    Args:
        data: as :func:`mmvae_fast.training.fit` takes it: a dict of tensors, perhaps with a "mask", or a Dataset.
        labels: int [N], -1 where unknown.
        subsets: sources: "all", or a list of lists of names.
        n_samples: K of the importance-weighted log-likelihood; 0 leaves it out.
        generated: samples of the prior.
        judges: by modality, x -> classes; see :func:`cross_coherence`. None trains oracles: on ``train``, or else on
            half of the labelled rows, so that coherence and samples are judged on the other half alone.
        train: (data, labels) for that, such as the model's training data.
        prior: to draw samples from instead of the model's own; see :meth:`MultimodalVAE.sample`.
        batch_size: rows that pass the networks at a time.
        seed: of all noise, halves and folds.

    Raises:
        ValueError, TypeError: naming what came and what was expected.
        ImportError: without the ``evaluate`` extra.
    """
    rows = Rows.of(model, data, labels)
    size_of_batch(batch_size)
    chosen = choose_subsets(model, subsets)
    if type(n_samples) is not int or n_samples < 0:
        raise ValueError(f"n_samples is {n_samples!r}, expected 0 or more")
    if labels is None and (judges is not None or train is not None):
        raise ValueError("judges or train is given, but labels is None: expected the classes of the data as well")
    if judges is not None:
        check_judges(model, judges)
    figures: dict[str, Any] = {
        "model": type(model).__name__,
        "rows": len(rows),
        "observed": {name: int(rows.observed(name).sum()) for name in rows.names},
        "settings": {"n_samples": n_samples, "generated": generated, "seed": seed},
    }
    skipped: dict[str, str] = {}
    if n_samples and not model.generative:
        skipped["log_likelihood"] = f"{type(model).__name__} has no density log p(x)"
    elif n_samples:
        found = log_likelihoods(
            model, rows, subsets=chosen, n_samples=n_samples, batch_size=batch_size, seed=derive(seed, "likelihood")
        )
        figures["log_likelihood"] = {
            kind: {name: mean._asdict() for name, mean in of.items()} for kind, of in found.items()
        }
    figures["reconstruction"] = reconstruction(model, rows, subsets=chosen, batch_size=batch_size)

    real = rows
    if rows.labels is not None:
        known = rows.with_known_label()
        figures["labelled"] = len(known)
        figures["latents"] = _latents(model, known, chosen, batch_size, seed, skipped)
        real = known
        if judges is None:
            fit_on, real = (Rows.of(model, *train, what="train"), known) if train is not None else known.halves(seed)
            judges = _oracles(model, fit_on, derive(seed, "oracles"), skipped)
        figures["oracles"] = {name: told for name in judges if (told := _oracle(real, name, judges))}
        if any(name in judges for name in targets(model)):
            figures["coherence"] = cross_coherence(
                model, real, judges, subsets=chosen, batch_size=batch_size, seed=derive(seed, "coherence")
            )
        else:
            skipped["coherence"] = "nobody tells the classes: there is no oracle of any modality that is decoded"
    if model.generative or prior is not None:
        with judged(model):
            made = samples(model, generated, seed=derive(seed, "prior"), prior=prior, batch_size=batch_size)
        if judges is not None and "coherence" in figures:
            figures["joint_coherence"] = agreement(made, judges)
        compared = {
            name: _compare(model, real, name, made[name], None if judges is None else judges.get(name), seed)
            for name in targets(model)
        }
        figures["samples"] = {name: found for name, found in compared.items() if found}
        for name in targets(model):
            if not compared[name]:
                skipped[f"samples of {name}"] = f"fewer than {_LEAST} of them, or {2 * _LEAST} whole rows of data"
    else:
        skipped["samples"] = f"{type(model).__name__} has no prior to sample, and prior is None"
    if skipped:
        figures["skipped"] = skipped
    return Report(figures)


def _oracles(model: MultimodalVAE, rows: Rows, seed: int, skipped: dict[str, str]) -> dict[str, Judge]:
    """Those that the rows suffice for."""
    found: dict[str, Judge] = {}
    for name in rows.data:
        alone = Rows({name: rows.data[name]}, rows.mask, rows.names, rows.labels)
        try:
            found |= fit_oracles(model, alone, seed=seed)
        except TooFewRows as error:
            skipped[f"oracle of {name}"] = str(error).removeprefix("fit_oracle: ")
    return found


def _latents(
    model: MultimodalVAE, rows: Rows, subsets: Sequence[Subset], batch_size: int, seed: int, skipped: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """Clusters and probes of each subset's latents, where enough rows and classes have it."""
    found = {}
    for subset in subsets:
        shown = rows.take(rows.having(subset))
        classes, counts = shown.labels.unique(return_counts=True)  # type: ignore[union-attr]
        if len(classes) < 2 or int(counts.min()) < 2:
            rarest = f", {counts.min()} of the rarest" if len(counts) else ""
            skipped[f"latents of {name_of(subset)}"] = (
                f"{len(shown)} labelled rows of {len(classes)} classes have it{rarest}; expected two classes or more, "
                "each of two rows or more"
            )
            continue
        z = latents(model, shown, subset, batch_size)
        clusters = clustering(z, shown.labels, seed=derive(seed, "clusters"))
        probe = linear_probe(z, shown.labels, seed=derive(seed, "probe"))
        found[name_of(subset)] = {
            "rows": len(shown),
            "ari": clusters.ari,
            "nmi": clusters.nmi,
            "cluster_accuracy": clusters.accuracy,
            "probe_accuracy": probe.accuracy,
            "chance": probe.chance,
        }
    return found


def _oracle(rows: Rows, name: str, judges: Mapping[str, Judge]) -> dict[str, Any]:
    """How good a judge is on real rows; nothing if there are none."""
    if name not in rows.data:
        return {}
    there = rows.observed(name) & whole(rows.data[name])
    if not there.any():
        return {}
    truth = rows.labels[there.cpu()].numpy()  # type: ignore[index]
    judge = judges[name]
    return {
        "kind": judge.kind if isinstance(judge, Oracle) else "given",
        "accuracy": float((classes_of(judges, name, rows.data[name][there]) == truth).mean()),
        "rows": len(truth),
    }


def _compare(
    model: MultimodalVAE, rows: Rows, name: str, made: Tensor, judge: Judge | None, seed: int
) -> dict[str, Any]:
    """Samples of a modality against as many real ones."""
    real = rows.data[name][rows.observed(name)].cpu() if name in rows.data else torch.zeros(0)
    real = real[whole(real)] if len(real) else real
    if min(len(real) // 2, len(made)) < _LEAST:
        return {}
    oracle = judge if isinstance(judge, Oracle) else None
    if oracle is None:
        features: Features = pca_features(model.modalities[name], real, seed=derive(seed, "components"))
    else:
        features = oracle_features(oracle)
    found: dict[str, Any] = frechet(real, made, features, seed=derive(seed, "frechet"))._asdict()
    rows_each = min(len(real), len(made))
    real = real[shuffled(len(real), seed, "real rows")]
    shares = precision_recall(features(real[:rows_each]), features(made[:rows_each]), k=_NEIGHBOURS)
    found |= {"precision": shares.precision, "recall": shares.recall}
    if oracle is not None:
        found["classifier_score"] = classifier_score(oracle.probabilities(made[:rows_each]), splits=1).score
        found["classifier_score_of_real"] = classifier_score(oracle.probabilities(real[:rows_each]), splits=1).score
    return found


# --- tables -----------------------------------------------------------------------------------------------------------

_ARROW = " from "


def _heading(figures: Mapping[str, Any]) -> str:
    observed = ", ".join(f"{name} {count}" for name, count in figures["observed"].items())
    return f"{figures['model']} on {figures['rows']} rows ({observed})"


def _tables(figures: Mapping[str, Any]) -> list[tuple[str, Table]]:
    tables: list[tuple[str, Table]] = []

    def add(title: str, table: Table) -> None:
        if table:
            tables.append((title, table))

    likelihood = figures.get("log_likelihood", {})
    add("Log-likelihood of a subset, log p(x_S), nats", likelihood.get("joint", {}))
    add("Log-likelihood of the others given a subset, nats", likelihood.get("conditional", {}))
    add(
        "Reconstruction",
        {
            f"{target}{_ARROW}{source}": measures
            for source, of in figures["reconstruction"].items()
            for target, measures in of.items()
        },
    )
    coherence = figures.get("coherence", {})
    add("Coherence: share of rows whose decoded target shows the class of the source", coherence)
    if "joint_coherence" in figures:
        share = figures["joint_coherence"]
        add("Joint coherence: share of samples whose modalities agree", {"prior": {"share": share}})
    add("Judges: the share of rows whose class they tell", figures.get("oracles", {}))
    add("Samples of the prior against the data (Fréchet distance, and its floor between real halves)",
        figures.get("samples", {}))  # fmt: skip
    add("Latents by what they were inferred from", figures.get("latents", {}))
    return tables


def _skipped(figures: Mapping[str, Any]) -> list[str]:
    return [f"{what}: {why}" for what, why in figures.get("skipped", {}).items()]


def _cells(table: Table) -> list[list[str]]:
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    head = ["", *(column.replace("_", " ") for column in columns)]
    return [head, *([name, *(_format(row.get(column)) for column in columns)] for name, row in table.items())]


def _format(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) >= 1000 else f"{value:.2f}" if abs(value) >= 10 else f"{value:.4f}"
    return str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(of) for key, of in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(of) for of in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
