"""Around a call of torch's exporter: what it is not to say, and what it is not to fuse."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision() -> Iterator[None]:
    """Whatever the caller does under ``torch.autocast``: parts are traced, and compared, in float32."""
    with torch.autocast("cpu", enabled=False):  # made anew for each call, as one object holds one caller's state
        yield


@contextmanager
def plain_attention() -> Iterator[None]:
    """Transformers of torch's own are one fused operator in evaluation mode, which ONNX has not."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def quiet() -> Iterator[None]:
    """Exporting talks about optional packages and deprecations inside torch; none of it is for the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
