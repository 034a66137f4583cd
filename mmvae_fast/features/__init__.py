"""NumPy functions from raw signals to what models take, and back."""

from mmvae_fast.features.audio import fit_length, griffin_lim, load_audio, log_mel, mfcc, mfcc_to_log_mel, write_wav
from mmvae_fast.features.delay import Aligned, align, estimate_lag, resample
from mmvae_fast.features.patches import PatchDictionary, extract_patches, normalise, patch_grid, read_image

__all__ = [
    "Aligned",
    "PatchDictionary",
    "align",
    "estimate_lag",
    "extract_patches",
    "fit_length",
    "griffin_lim",
    "load_audio",
    "log_mel",
    "mfcc",
    "mfcc_to_log_mel",
    "normalise",
    "patch_grid",
    "read_image",
    "resample",
    "write_wav",
]
