"""NumPy functions from raw signals to what models take, and back."""

from mmvae_fast.features.audio import fit_length, griffin_lim, load_audio, log_mel, mfcc, mfcc_to_log_mel, write_wav

__all__ = ["fit_length", "griffin_lim", "load_audio", "log_mel", "mfcc", "mfcc_to_log_mel", "write_wav"]
