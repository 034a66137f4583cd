"""Pictures of a trained model and its latents. Extra ``plots``.

Every function draws one matplotlib figure and returns it; nothing goes through pyplot, so there is no display to need
and no global state to close. :func:`save_figure` writes one to a file.
"""

from mmvae_fast.plots.confusion import confusion_matrix
from mmvae_fast.plots.curves import loss_curves, read_history, training_curves
from mmvae_fast.plots.grids import cross_modal_grid
from mmvae_fast.plots.heatmaps import heatmap
from mmvae_fast.plots.latents import latent_map, latent_traversal
from mmvae_fast.plots.samples import sample_rows
from mmvae_fast.plots.style import save_figure

__all__ = [
    "confusion_matrix", "cross_modal_grid", "heatmap", "latent_map", "latent_traversal", "loss_curves", "read_history",
    "sample_rows", "save_figure", "training_curves",
]  # fmt: skip
