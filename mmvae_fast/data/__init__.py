"""From files to batches: readers of one kind each, manifests, data sets and the configuration of a run."""

from mmvae_fast.data.reader import READERS, Reader

__all__ = ["READERS", "Reader"]
