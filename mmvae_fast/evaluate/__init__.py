"""Measures of a trained model or system on data: :func:`evaluate` takes all of them, and each stands in a file of its
own; :func:`score` is what one pass over batches tells.

Extra ``evaluate``. A *source* is the subset of the modalities that the model is shown, a *target* what it decodes from
it; tables are by source and target. *Judges* tell which class a sample shows; oracles are judges that were trained here
on real samples.
"""

from mmvae_fast.evaluate.classifier_score import ClassifierScore, classifier_score
from mmvae_fast.evaluate.clustering import Clustering, clustering, matched_accuracy
from mmvae_fast.evaluate.coherence import agreement, cross_coherence, joint_coherence, samples
from mmvae_fast.evaluate.features import (
    Features,
    inception_features,
    module_features,
    oracle_features,
    pca_features,
)
from mmvae_fast.evaluate.folder import write_report
from mmvae_fast.evaluate.frechet import Frechet, frechet, frechet_distance
from mmvae_fast.evaluate.likelihood import Mean, log_likelihood, log_likelihoods
from mmvae_fast.evaluate.of_classifier import classification, confusion, hide_half, probabilities
from mmvae_fast.evaluate.of_cyclegan import cycle_errors
from mmvae_fast.evaluate.oracles import Judge, Oracle, fit_oracle, fit_oracles
from mmvae_fast.evaluate.precision_recall import PrecisionRecall, precision_recall
from mmvae_fast.evaluate.probe import Probe, linear_probe
from mmvae_fast.evaluate.quality import sample_quality
from mmvae_fast.evaluate.reconstruction import reconstruction
from mmvae_fast.evaluate.report import evaluate
from mmvae_fast.evaluate.rows import Rows, choose_subsets, generate, latents
from mmvae_fast.evaluate.score import score
from mmvae_fast.evaluate.tables import Report

__all__ = [
    "evaluate", "Report", "write_report", "score",
    "log_likelihood", "log_likelihoods", "Mean", "reconstruction",
    "cross_coherence", "joint_coherence", "agreement", "fit_oracle", "fit_oracles", "Oracle", "Judge",
    "frechet", "frechet_distance", "Frechet", "precision_recall", "PrecisionRecall",
    "classifier_score", "ClassifierScore", "sample_quality",
    "classification", "confusion", "hide_half", "probabilities", "cycle_errors",
    "Features", "oracle_features", "pca_features", "module_features", "inception_features",
    "clustering", "matched_accuracy", "Clustering", "linear_probe", "Probe",
    "latents", "generate", "samples", "choose_subsets", "Rows",
]  # fmt: skip
