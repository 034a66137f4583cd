"""Real digits, 8x8, whole and as upper and lower halves: two modalities of one thing."""

from __future__ import annotations

import pytest
import torch

from mmvae_fast.modalities import Image


@pytest.fixture(scope="session")
def digits():
    """(images [1797, 1, 8, 8] in [0, 1], labels [1797])"""
    pixels, labels = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    return torch.tensor(pixels / 16.0, dtype=torch.float32).reshape(-1, 1, 8, 8), torch.tensor(labels)


@pytest.fixture(scope="session")
def halves(digits):
    images, labels = digits
    return {"top": images[:, :, :4].contiguous(), "bottom": images[:, :, 4:].contiguous()}, labels


@pytest.fixture
def half_modalities():
    return {name: Image((1, 4, 8), hidden=(64,)) for name in ("top", "bottom")}


@pytest.fixture(scope="session")
def judge(digits):
    """Which digits 8x8 images show, [B]."""
    images, labels = digits
    svm = pytest.importorskip("sklearn.svm").SVC(C=10).fit(images.flatten(1).numpy(), labels.numpy())
    return lambda x: torch.from_numpy(svm.predict(x.flatten(1).numpy()))
