"""The noise: published words, one stream for every backend, and the distribution it claims."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from expert_cases import DEVICES

from mmvae_fast import functional, reference

native = pytest.importorskip("mmvae_fast._native", reason="built without kernels")

KNOWN_ANSWERS = [  # Salmon et al. 2011 (Random123): counter, key, Philox4x32-10
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize("counter, key, words", KNOWN_ANSWERS)
def test_known_answers(counter, key, words):
    assert [int(w) for w in reference.philox_words(counter, key)] == list(words)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n_samples", [None, 3])
def test_every_device_draws_the_same_noise(n_samples, device):
    zero = torch.zeros(6, 50, device=device)
    z = functional.reparameterize(zero, zero, n_samples, seed=99).cpu().numpy()
    assert np.abs(z - native.philox_normal(99, 6, 50, n_samples)).max() <= 4e-6


def words_from_normals(normals: np.ndarray) -> np.ndarray:
    """Invert Box-Muller: the upper 23 bits of each word behind float64 normals [..., 4]."""
    pairs = normals.reshape(*normals.shape[:-1], 2, 2)
    u0 = np.exp(-0.5 * (pairs**2).sum(-1))
    u1 = np.arctan2(pairs[..., 1], pairs[..., 0]) / (2 * np.pi) % 1.0
    return np.rint(np.stack([u0, u1], -1).reshape(normals.shape) * 2**23 - 0.5).astype(np.int64)


@pytest.mark.parametrize("seed", [0, 1, 2**63 + 5, -7, 0xA4093822_299F31D0])
def test_native_words_are_the_reference_words(seed):
    """Every word of the native generator, recovered from its normals, is Philox's."""
    normals = native.philox_normal(seed, 5, 12, 3, 2, dtype="float64").reshape(3, 5, 3, 4)
    sample, row, block = np.meshgrid(range(3), range(5), range(3), indexing="ij")
    key = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)
    words = reference.philox_words((torch.tensor(block), torch.tensor(row), torch.tensor(sample), 2), key)
    expected = torch.stack(words, -1).numpy() >> 9
    assert np.array_equal(words_from_normals(normals), expected)


@pytest.mark.parametrize("dim", [1, 2, 4, 5, 16, 63, 64, 65, 100, 2048, 2049, 5000])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_native_equals_reference(dim, dtype):
    mine = native.philox_normal(42, 7, dim, 2, dtype=dtype)
    twin = reference.philox_normal(42, 7, dim, 2, dtype=getattr(torch, dtype)).numpy()
    assert mine.dtype == twin.dtype and mine.shape == twin.shape
    assert np.abs(mine - twin).max() <= (2e-6 if dtype == "float32" else 2e-14)


def test_ops_draw_the_same_noise():
    zero = torch.zeros(6, 50)
    native_noise = native.philox_normal(99, 6, 50)
    assert np.array_equal(functional.reparameterize(zero, zero, seed=99).numpy(), native_noise)
    many = native.philox_normal(99, 6, 50, 4)
    assert np.array_equal(functional.reparameterize(zero, zero, 4, seed=99).numpy(), many)
    assert np.array_equal(native_noise, many[0])  # n_samples=None is sample 0
    nothing = torch.zeros(6, 2, dtype=torch.bool)
    assert np.array_equal(functional.poe_sample_kl([zero] * 2, [zero] * 2, nothing, seed=99).z.numpy(), native_noise)
    assert np.array_equal(functional.mopoe_sample_kl([zero] * 2, [zero] * 2, nothing, seed=99).z.numpy(), native_noise)


@pytest.mark.parametrize("dim", [1, 4, 5, 64, 100, 2049])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_laplace_noise_is_the_reference_noise(dim, dtype):
    zero = torch.zeros(7, dim, dtype=dtype)
    mine = functional.reparameterize(zero, zero, 2, family="laplace", seed=42)
    twin = reference.philox_laplace(42, 7, dim, 2, dtype=dtype)
    assert (mine - twin).abs().max() <= (2e-6 if dtype == torch.float32 else 2e-14)


def test_a_row_does_not_depend_on_the_batch():
    mu = torch.randn(100, 24)
    laplace = functional.reparameterize(mu, mu, family="laplace", seed=5)
    assert torch.equal(functional.reparameterize(mu[:13], mu[:13], family="laplace", seed=5), laplace[:13])
    whole = functional.reparameterize(mu, mu, seed=5)
    assert torch.equal(functional.reparameterize(mu[:13], mu[:13], seed=5), whole[:13])
    assert torch.equal(functional.reparameterize(mu.view(4, 25, 24), mu.view(4, 25, 24), seed=5).view(100, 24), whole)
    assert torch.equal(functional.reparameterize(mu[:, :7], mu[:, :7], seed=5), whole[:, :7])
    logvar = torch.randn(100, 24)
    whole = functional.mopoe_sample_kl([mu, mu], [logvar, mu], seed=5)
    part = functional.mopoe_sample_kl([mu[:31], mu[:31]], [logvar[:31], mu[:31]], seed=5)
    assert all(torch.equal(p, w[:31]) for p, w in zip(part, whole, strict=True))


def test_choice_of_component_never_leaves_the_range():
    for n in (1, 2, 3, 7, 31, 2**20):
        k = reference.choose_component(3, torch.full((4096,), n))
        assert k.min() >= 0 and k.max() < n
    assert (reference.choose_component(3, torch.zeros(8, dtype=torch.int64)) == 0).all()
    # the largest 23-bit uniform: floor(u * n) = n - 1, where rounding u * n to float32 could reach n
    assert (2 * (2**23 - 1) + 1) * 31 >> 24 == 30


def test_seeds():
    mu = torch.zeros(3, 8)
    torch.manual_seed(1)
    first = functional.reparameterize(mu, mu)
    second = functional.reparameterize(mu, mu)
    torch.manual_seed(1)
    assert torch.equal(functional.reparameterize(mu, mu), first)
    assert not torch.equal(first, second)
    g = torch.Generator().manual_seed(8)
    a = functional.reparameterize(mu, mu, generator=g)
    assert torch.equal(a, functional.reparameterize(mu, mu, generator=torch.Generator().manual_seed(8)))
    assert torch.equal(
        functional.reparameterize(mu, mu, seed=2**64 - 1), functional.reparameterize(mu, mu, seed=torch.tensor([-1]))
    )
    assert torch.equal(functional.reparameterize(mu, mu, seed=np.int64(7)), functional.reparameterize(mu, mu, seed=7))
    with pytest.raises(ValueError, match="64 bits"):
        functional.reparameterize(mu, mu, seed=2**64)
    with pytest.raises(TypeError, match="float"):
        functional.reparameterize(mu, mu, seed=1.5)
    for wrong in (torch.zeros(3), torch.zeros(0), torch.zeros(1, 2), torch.zeros(2, 1)):
        with pytest.raises(ValueError, match="int64 tensor of one element, or"):
            functional.reparameterize(mu, mu, seed=wrong.long())
    with pytest.raises(ValueError, match="torch.float32"):
        functional.reparameterize(mu, mu, seed=torch.zeros(1))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"n_samples": 2.0}, "n_samples is 2.0, expected an int"),
        ({"rows": -1}, "rows is -1, expected 0 to 4294967295"),
        ({"stream": 2**32}, "stream is 4294967296, expected 0 to"),
        ({"seed": 2**64}, "seed is 18446744073709551616, expected 64 bits"),
        ({"seed": 1.5}, "seed is not an int"),
        ({"dtype": "float16"}, "dtype is 'float16', expected 'float32' or 'float64'"),
    ],
)
def test_native_bad_input(arguments, error):
    with pytest.raises((ValueError, TypeError), match=error):
        native.philox_normal(**{"seed": 1, "rows": 2, "dim": 3, **arguments})
    assert native.philox_normal(np.int64(1), np.int32(2), 3).shape == (2, 3)


N = 2**20
SEED = 20240229
# distribution; standard errors of its first four moments, times sqrt(N); the largest number 24-bit uniforms give
FAMILIES = {
    "normal": (scipy.stats.norm, [1, 2**0.5, 15**0.5, 96**0.5], 5.78),  # sqrt(-2 ln 2^-24)
    "laplace": (scipy.stats.laplace, [2**0.5, 20**0.5, 720**0.5, 39744**0.5], 15.95),  # -ln 2^-23
}


def draw(family, seed=SEED, n_samples=None):
    zero = torch.zeros(N // 64, 64)
    return functional.reparameterize(zero, zero, n_samples, family=family, seed=seed).double().numpy()


@pytest.fixture(scope="module", params=FAMILIES)
def noise(request):
    """The family's name, its properties, and a million numbers of it."""
    return request.param, *FAMILIES[request.param], draw(request.param)


def test_moments(noise):
    _, distribution, errors, _, x = noise
    for k, error in zip((1, 2, 3, 4), errors, strict=True):
        assert abs((x**k).mean() - distribution.moment(k)) < 5 * error / math.sqrt(N)


def test_distribution(noise):
    _, distribution, _, largest, x = noise
    x = x.ravel()
    assert scipy.stats.kstest(x, distribution.cdf).pvalue > 1e-3
    assert scipy.stats.kstest(x[::7], distribution.cdf).pvalue > 1e-3  # overlapping counters would show here
    counts, _ = np.histogram(distribution.cdf(x), bins=256, range=(0, 1))
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    assert np.abs(x).max() < largest


@pytest.mark.parametrize("lanes", [(0, 1), (2, 3), (0, 2), (1, 2), (0, 3)], ids=str)
def test_the_lanes_of_a_counter_are_independent(noise, lanes):
    """Above all the two halves of Box-Muller."""
    _, distribution, _, _, x = noise
    a, b = (distribution.cdf(x.ravel()[k::4]) for k in lanes)
    counts, _, _ = np.histogram2d(a, b, bins=16, range=[[0, 1], [0, 1]])
    assert scipy.stats.chisquare(counts.ravel()).pvalue > 1e-3


def test_no_correlation(noise):
    """Between dimensions, rows, samples, streams and neighbouring seeds: neither of the numbers nor of their sizes."""
    family, distribution, _, _, x = noise
    seeds = {SEED: [SEED + 1, SEED - 1], 0: [1, -1], 2**63 - 1: [-(2**63), 2**63 - 2], -5: [-6, 5]}
    pairs = [(x.ravel()[:-lag], x.ravel()[lag:]) for lag in [*range(1, 9), 64, 128]]
    pairs += [(x, draw(family, n_samples=2)[1])]
    pairs += [(draw(family, seed), draw(family, other)) for seed, others in seeds.items() for other in others]
    if family == "normal":
        pairs += [(x, native.philox_normal(SEED, N // 64, 64, None, 1))]
    for a, b in pairs:
        for f in (lambda t: t, lambda t: np.abs(t) - np.abs(x).mean()):
            assert abs((f(a) * f(b)).mean()) < 5 * distribution.var() / math.sqrt(a.size)
