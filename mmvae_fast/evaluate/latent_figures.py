"""Clusters and probes of latents, by what they were inferred from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmvae_fast.evaluate.clustering import clustering
from mmvae_fast.evaluate.probe import linear_probe
from mmvae_fast.evaluate.rows import Rows, Subset, latents, name_of
from mmvae_fast.evaluate.steps import Steps
from mmvae_fast.models import MultimodalVAE
from mmvae_fast.systems import FusionClassifier
from mmvae_fast.training.seeding import derive


def latent_figures(
    model: MultimodalVAE | FusionClassifier,
    rows: Rows,
    subsets: Sequence[Subset],
    batch_size: int,
    seed: int,
    steps: Steps,
    skipped: dict[str, str],
) -> dict[str, dict[str, Any]]:
    """Of each subset's latents, where enough rows and classes of these labelled rows have it."""
    found = {}
    for subset in steps("latents", subsets):
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
