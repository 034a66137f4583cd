"""Training: one function, :func:`fit`. Lightning is imported when it runs, not before."""

from mmvae_fast.training.fit import History, fit

__all__ = ["History", "fit"]
