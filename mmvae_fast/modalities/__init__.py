"""What one kind of data looks like, how it is encoded and decoded, and how it is scored."""

from mmvae_fast.modalities.audio import Audio, log_mel
from mmvae_fast.modalities.bag_of_words import BagOfWords
from mmvae_fast.modalities.base import MODALITIES, Modality
from mmvae_fast.modalities.counts import Counts
from mmvae_fast.modalities.image import Image
from mmvae_fast.modalities.language import Language
from mmvae_fast.modalities.sequence import Sequence
from mmvae_fast.modalities.text import Text
from mmvae_fast.modalities.vector import Vector

__all__ = [
    "MODALITIES",
    "Audio",
    "BagOfWords",
    "Counts",
    "Image",
    "Language",
    "Modality",
    "Sequence",
    "Text",
    "Vector",
    "log_mel",
]
