"""Who judges an evaluation: oracles trained on rows that are not judged, or what the caller gave."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mmvae_fast.evaluate.features import Features, oracle_features, pca_features
from mmvae_fast.evaluate.oracles import Judge, Oracle, TooFewRows, classes_of, fit_oracle, whole
from mmvae_fast.evaluate.rows import Judged, Rows
from mmvae_fast.evaluate.steps import Steps
from mmvae_fast.training.data import Data
from mmvae_fast.training.seeding import derive

NO_LABELS = "no row has a label"


def fit_on_others(
    model: Judged, known: Rows, train: tuple[Data | Rows, Any] | None, seed: int, steps: Steps, skipped: dict[str, str]
) -> tuple[dict[str, Oracle], Rows]:
    """Oracles of what the rows suffice for, and the labelled rows that are left to judge on: all of them if the oracles
    are trained on ``train``, else half of them."""
    fit_on, left = (Rows.of(model, *train, what="train"), known) if train is not None else known.halves(seed)
    found: dict[str, Oracle] = {}
    seed = derive(seed, "oracles")
    fit_on = fit_on.with_known_label()
    for name in steps("oracles", fit_on.names):
        there = fit_on.observed(name)
        if name not in fit_on.data or not there.any():
            continue
        labels = fit_on.labels[there.cpu()]  # type: ignore[index]
        try:
            found[name] = fit_oracle(model.modalities[name], fit_on.data[name][there], labels, seed=derive(seed, name))
        except TooFewRows as error:
            skipped[f"oracle of {name}"] = str(error).removeprefix("fit_oracle: ")
    return found, left


def judges_on_real(rows: Rows, judges: Mapping[str, Judge]) -> dict[str, dict[str, Any]]:
    """How good the judges are on real rows, by modality; nothing of those that no row has."""
    found = {}
    for name, judge in judges.items():
        if name not in rows.data:
            continue
        there = rows.observed(name) & whole(rows.data[name])
        if there.any():
            truth = rows.labels[there.cpu()].numpy()  # type: ignore[index]
            found[name] = {
                "kind": judge.kind if isinstance(judge, Oracle) else "given",
                "accuracy": float((classes_of(judges, name, rows.data[name][there]) == truth).mean()),
                "rows": len(truth),
            }
    return found


def whole_rows(rows: Rows, name: str) -> Rows:
    """Those that have a modality without a gap; none if no row has it."""
    if name not in rows.data:
        return rows.take(torch.zeros(0, dtype=torch.int64))
    return rows.take((rows.observed(name) & whole(rows.data[name])).nonzero().squeeze(1))


def space(model: Judged, name: str, real: Tensor, judge: Judge | None, seed: int) -> Features:
    """Where samples of a modality are compared with real ones: in what an oracle sees, else in principal components."""
    if isinstance(judge, Oracle):
        return oracle_features(judge)
    return pca_features(model.modalities[name], real, seed=derive(seed, "components"))


def space_of_half(model: Judged, name: str, judge: Judge | None, seed: int) -> Callable[[Tensor], Features]:
    """:func:`space`, of the real samples that :func:`mmvae_fast.evaluate.sample_quality` compares with."""
    return lambda real: space(model, name, real, judge, seed)
