"""The NumPy noise: published known answers, the torch twin, and the properties DESIGN promises."""

from __future__ import annotations

import numpy as np
import pytest

from mmvae_fast import reference
from mmvae_fast.onnx import BadDtype, BadValue, philox_normal
from mmvae_fast.onnx.noise import philox_words

ONES = 0xFFFFFFFF
SEEDS = (0, 1, -1, 2**64 - 1, 2**63, -(2**63), 0x0123456789ABCDEF)


# Random123's kat_vectors, philox4x32 with 10 rounds
@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((ONES,) * 4, (ONES,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_words_are_the_published_known_answers(counter, key, words):
    assert " ".join(f"{int(w[0]):08x}" for w in philox_words(counter, key)) == words


def test_normals_are_box_muller_of_the_words():
    """One element from the specification, in double precision."""
    seed, row, d, sample = 0x0123456789ABCDEF, 3, 6, 2
    words = philox_words((d // 4, row, sample, 0), (seed & ONES, seed >> 32))
    u = [((int(w[0]) >> 9) + 0.5) * 2.0**-23 for w in words]
    expected = np.sqrt(-2 * np.log(u[2])) * np.cos(2 * np.pi * u[3])  # lane 2
    assert philox_normal(seed, 5, 8, 3)[sample, row, d] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("n_samples", [None, 0, 1, 3])
def test_equals_the_torch_twin(seed, n_samples):
    for rows, dim, stream in ((5, 7, 0), (1, 4, 2), (0, 3, 0), (2, 0, 0)):
        ours = philox_normal(seed, rows, dim, n_samples, stream)
        twin = reference.philox_normal(seed, rows, dim, n_samples, stream).numpy()
        assert ours.dtype == np.float32
        assert ours.shape == twin.shape
        np.testing.assert_allclose(ours, twin, rtol=0, atol=1e-6)


def test_a_row_does_not_depend_on_the_others():
    full = philox_normal(7, 64, 10, 4)
    np.testing.assert_array_equal(full[:2, :9, :6], philox_normal(7, 9, 6, 2))
    np.testing.assert_array_equal(full[0], philox_normal(7, 64, 10))


def test_seeds_streams_and_samples_differ_and_look_normal():
    a = philox_normal(1, 2000, 50)
    for other in (philox_normal(2, 2000, 50), philox_normal(1, 2000, 50, stream=2), philox_normal(1, 2000, 50, 2)[1]):
        assert abs(np.corrcoef(a.ravel(), other.ravel())[0, 1]) < 0.02
    assert abs(a.mean()) < 0.02
    assert abs(a.std() - 1) < 0.02
    assert np.abs(a).max() < 5.78  # sqrt(-2 ln 2**-24)


@pytest.mark.parametrize("seed", [1.5, True, "1", 2**64, -(2**63) - 1])
def test_bad_seed(seed):
    with pytest.raises(BadValue if type(seed) is int else BadDtype, match=r"^seed is .*expected"):
        philox_normal(seed, 1, 1)


def test_bad_size():
    with pytest.raises(ValueError, match="rows is -1"):
        philox_normal(0, -1, 1)
