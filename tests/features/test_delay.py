"""Streams of known delays and rates: found with noise, brought onto one clock; and a lag as a modality."""

import numpy as np
import pytest
import torch

from mmvae_fast.features import align, estimate_lag, resample
from mmvae_fast.modalities import Vector
from mmvae_fast.models import MVAE

pytest.importorskip("scipy", reason="needs the 'delay' extra")

_FREQUENCIES = np.random.default_rng(7).uniform(0.2, 6, 40)
_PHASES = np.random.default_rng(8).uniform(0, 2 * np.pi, 40)


def scene(t):
    """What happens: 40 waves of 0.2 to 6 Hz, so nothing repeats."""
    return np.sin(2 * np.pi * np.asarray(t)[..., None] * _FREQUENCIES + _PHASES).sum(-1)


def noise(n, seed):
    return np.random.default_rng(seed).normal(0, 2.0, n)  # the scene's own standard deviation is 4.5


@pytest.mark.parametrize("lag", [0.0, 0.1, -0.137, 0.7512, -1.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_lag_is_found_within_half_a_sample_in_noise(lag, seed):
    rate = 50.0
    t = np.arange(800) / rate
    heard = scene(t) + noise(800, seed)
    seen = 0.3 * (scene(t - lag) + noise(800, seed + 10)) - 7
    assert estimate_lag(heard, seen, rate) == pytest.approx(lag, abs=0.5 / rate)
    assert estimate_lag(seen, heard, rate) == pytest.approx(-lag, abs=0.5 / rate)


def test_a_lag_beyond_the_largest_is_no_lag():
    """The edge of what was looked at is not where the streams agree; one that lies on it is."""
    rate = 50.0
    t = np.arange(800) / rate
    for lag in (0.1, -0.137):
        with pytest.raises(ValueError, match=r"agree best at -?0\.04 s, and better yet beyond"):
            estimate_lag(scene(t), scene(t - lag), rate, max_lag=0.05)
        with pytest.raises(ValueError, match="expected a larger max_lag"):
            align({"a": scene(t), "b": scene(t - lag)}, rates={"a": rate, "b": rate}, max_lag=0.05)
    for lag in (0.1, -0.14):
        assert estimate_lag(scene(t), scene(t - lag), rate, max_lag=abs(lag)) == pytest.approx(lag, abs=0.002)
        assert abs(estimate_lag(scene(t), scene(t - lag), rate, max_lag=abs(lag))) <= abs(lag) + 1e-9


def test_series_that_drift():
    """Random walks and trends: products of whole streams are largest where both lie far from their means."""
    rng = np.random.default_rng(0)
    for lag in (0, 39, 77, -60, 150):
        walk = np.cumsum(rng.normal(size=700))
        camera, microphone = walk[200:500], walk[200 - lag : 500 - lag] + rng.normal(0, 0.3, 300)
        assert estimate_lag(camera, microphone, 100.0) == pytest.approx(lag / 100, abs=0.01)
        t = np.arange(300) / 100
        rising = [scene(s) + 20 * s for s in (t, t - lag / 100)]
        assert estimate_lag(*rising, 100.0) == pytest.approx(lag / 100, abs=0.005)
    rates = {"a": 100, "b": 100}
    found = align({"a": rising[0], "b": rising[1] + rng.normal(0, 1, 300)}, rates=rates)
    assert set(found.correlations) == {"b"} and found.correlations["b"] > 0.95
    found = align({"a": noise(300, 4), "b": noise(300, 5)}, rates=rates, max_lag=1.0)
    assert abs(found.correlations["b"]) < 0.4  # nothing in common
    # a silence has no correlation with anything, and periodic streams without noise have the least of their lags
    clap = np.zeros(400)
    clap[150:160] = rng.normal(size=10)
    assert estimate_lag(clap, np.roll(clap, 90), 1.0) == pytest.approx(90)
    wave = np.sin(2 * np.pi * np.arange(400) / 40)
    assert estimate_lag(wave, np.roll(wave, 7), 1.0) == pytest.approx(7, abs=0.05)


def test_without_noise_the_parabola_is_much_better_than_the_samples():
    t = np.arange(1000) / 50
    for lag in (0.004, 0.013, -0.1071):
        assert estimate_lag(scene(t), scene(t - lag), 50.0) == pytest.approx(lag, abs=0.05 / 50)


def test_streams_of_different_rates_lengths_and_starts():
    start, rates, lags = {"a": 0.0, "b": 0.35, "c": -1.0}, {"a": 100.0, "b": 37.0, "c": 64.0}, {"b": 0.42, "c": -0.2}
    times = {name: start[name] + np.arange(int(20 * rate)) / rate for name, rate in rates.items()}
    streams = {name: scene(t - lags.get(name, 0.0)) for name, t in times.items()}
    streams["c"] = np.stack([2 * streams["c"], 5 + streams["c"], np.full_like(streams["c"], 3)], 1)
    noisy = {name: s + 0.2 * noise(s.shape, i) if s.ndim == 1 else s for i, (name, s) in enumerate(streams.items())}
    result = align(noisy, times=times, max_lag=2.0)
    assert result.lags["a"] == 0
    for name, lag in lags.items():
        assert result.lags[name] == pytest.approx(lag, abs=0.5 / rates[name])
    np.testing.assert_allclose(np.diff(result.times), 1 / 37)
    assert result.streams["c"].shape == (len(result.times), 3)
    inner = slice(10, -10)  # the filter's ends
    for values, gain in ((result.streams["a"], 1), (result.streams["b"], 1), (result.streams["c"][:, 0], 2)):
        expected = gain * scene(result.times)
        assert np.corrcoef(values[inner], expected[inner])[0, 1] > 0.97
    # an offset in the clocks is a lag like any other
    moved = align(noisy, times={**times, "b": times["b"] + 1.0})
    assert moved.lags["b"] == pytest.approx(1.42, abs=0.5 / 37)


def test_irregular_times_and_lags_of_one_s_own():
    rng = np.random.default_rng(0)
    irregular = np.sort(rng.uniform(0, 20, 1500))
    regular = np.arange(1000) / 50
    result = align({"r": scene(regular), "i": scene(irregular - 0.3)}, times={"r": regular, "i": irregular}, rate=50.0)
    assert result.lags["i"] == pytest.approx(0.3, abs=0.01)
    np.testing.assert_allclose(np.diff(result.times), 0.02)
    given = align({"r": scene(regular), "i": np.ones(1500)}, times={"r": regular, "i": irregular}, lags={"i": 0.25})
    assert given.lags == {"r": 0.0, "i": 0.25}
    assert (given.streams["i"] == 1).all()
    by_rates = align({"x": scene(regular), "y": scene(regular - 0.1)}, rates={"x": 50.0, "y": 50}, reference="y")
    assert by_rates.lags["x"] == pytest.approx(-0.1, abs=0.01)


def test_what_is_too_fast_for_a_clock_does_not_alias():
    times, clock = np.arange(4000) / 400, np.arange(200) / 20
    mixed = np.sin(2 * np.pi * 2 * times) + np.sin(2 * np.pi * 21 * times)  # at 20 Hz, the second would look like 1 Hz
    slow = resample(mixed, times, clock)
    np.testing.assert_allclose(slow[20:-20], np.sin(2 * np.pi * 2 * clock)[20:-20], atol=0.05)
    assert resample(np.arange(4.0), np.arange(4.0), np.array([0.5, 2.25, 9.0])).tolist() == [0.5, 2.25, 3.0]


WAVE = scene(np.arange(100) / 10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: estimate_lag(WAVE, np.full(50, 3.3), 10.0), "estimate_lag: other is constant: it has no lag"),
        (lambda: estimate_lag(np.zeros(50), WAVE, 10.0), "estimate_lag: reference is constant"),
        (lambda: estimate_lag(WAVE, WAVE * np.nan, 10.0), "estimate_lag: other holds NaN"),
        (lambda: estimate_lag(WAVE, WAVE[:1], 10.0), "at least two samples"),
        (lambda: estimate_lag(WAVE, WAVE, 0.0), "rate is 0.0, expected a positive number"),
        (lambda: align({"a": WAVE, "b": np.ones((100, 2))}, rates={"a": 1, "b": 1}), "stream 'b' is constant"),
        (lambda: align({}, rates={}), "at least one stream"),
        (lambda: align({"a": WAVE}), "pass either rates, or the times"),
        (lambda: align({"a": WAVE}, rates={"b": 1}), r"rates names \['b'\], expected \['a'\]"),
        (lambda: align({"a": WAVE}, times={"a": np.zeros(100)}), "that rise from sample to sample"),
        (lambda: align({"a": WAVE}, times={"a": np.arange(9)}), "has 100 samples and 9 times"),
        (lambda: align({"a": WAVE}, rates={"a": 1}, reference="x"), "there is no stream 'x'"),
        (lambda: align({"a": WAVE, "b": WAVE}, rates={"a": 1, "b": 1}, lags={"b": 500}), "no moment in all streams"),
    ],
)
def test_what_has_no_lag_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_lag_is_a_modality():
    """Lightning and thunder: how much later the sound comes tells how far away it is, and a model learns to say so."""
    rng = np.random.default_rng(0)
    rate, distances = 40.0, rng.uniform(0, 340, 200)  # m
    lags = []
    for distance in distances:
        t, start = np.arange(200) / rate, rng.uniform(1, 2)
        flash, thunder = (np.exp(-3 * np.clip(t - s, 0, None)) * (t >= s) for s in (start, start + distance / 340))
        lags.append(estimate_lag(flash + rng.normal(0, 0.03, 200), thunder + rng.normal(0, 0.03, 200), rate, max_lag=2))
    lags = np.asarray(lags)
    assert np.abs(lags - distances / 340).max() < 1 / rate  # both sudden starts fall between samples
    batch = {
        "distance": torch.from_numpy(distances / 340).float()[:, None],
        "lag": torch.from_numpy(lags).float()[:, None],
    }
    torch.manual_seed(0)
    model = MVAE({name: Vector(1, scale=0.1, hidden=(32,)) for name in batch}, 1)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(200):
        optimiser.zero_grad()
        model(batch, seed=step).loss.backward()
        optimiser.step()
    told = model.eval().translate({"lag": batch["lag"]}, to="distance")
    assert (told - batch["distance"]).abs().mean() < 0.05  # 17 m; knowing nothing, 85
