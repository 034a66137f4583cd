"""From files to batches: readers of one kind each, manifests, data sets, and runs that a YAML file describes.

``mmvae_fast.data.config`` and ``mmvae_fast.data.run`` are what ``mmvae-fast train`` does; they need the ``data`` extra.
"""

from mmvae_fast.data.dataset import ManifestDataset, fit_readers
from mmvae_fast.data.errors import CellError, ConfigError, ManifestError
from mmvae_fast.data.manifest import Manifest
from mmvae_fast.data.reader import READERS, Reader, reader_class

__all__ = [
    "READERS", "CellError", "ConfigError", "Manifest", "ManifestDataset", "ManifestError", "Reader", "fit_readers",
    "reader_class",
]  # fmt: skip
