"""What one kind of data looks like, how it is encoded and decoded, and how it is scored."""

from mmvae_fast.modalities.audio import Audio, log_mel
from mmvae_fast.modalities.base import MODALITIES, Modality
from mmvae_fast.modalities.counts import Counts
from mmvae_fast.modalities.image import Image
from mmvae_fast.modalities.sequence import Sequence
from mmvae_fast.modalities.text import Text
from mmvae_fast.modalities.vector import Vector

__all__ = ["MODALITIES", "Audio", "Counts", "Image", "Modality", "Sequence", "Text", "Vector", "log_mel"]
