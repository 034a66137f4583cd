"""Streams that were sampled at different times and rates: how far one lags behind another, and all on one clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from mmvae_fast._lazy import require

_LEAST_OVERLAP = 1 / 3  # of the shorter stream: in less, drifting streams are alike by chance


@dataclass(frozen=True)
class Aligned:
    """What :func:`align` gives."""

    times: np.ndarray
    """float64 [T]: the common clock, seconds on the clock of the reference stream."""
    streams: dict[str, np.ndarray]
    """By name, float64 [T] or [T, channels]: what happened at those times."""
    lags: dict[str, float]
    """By name, how many seconds the stream comes later than the reference, whose own lag is 0."""
    correlations: dict[str, float]
    """By name, Pearson's correlation with the reference at that lag: near 1 the lag can be trusted, near 0 there is
    none. Of the streams whose lag was estimated."""


def estimate_lag(reference: np.ndarray, other: np.ndarray, rate: float, *, max_lag: float | None = None) -> float:
    """By how many seconds ``other`` comes later than ``reference``: where their correlation (Pearson's, of what
    overlaps) is largest, of the lags at which at least a third of the shorter stream does.

    Between samples, the maximum is that of the parabola through the largest value and its neighbours.

    Args:
        reference, other: [n] and [m], both sampled at ``rate`` and from the same instant on; the mean is taken off.
        rate: in Hz.
        max_lag: look no further than so many seconds, either way; None is as far as enough overlaps. Of periodic
            streams, at most half a period.

    Raises:
        ValueError: a stream that is constant has no lag; so have NaN, infinity or nothing, and streams that agree best
            beyond ``max_lag``.
        ImportError: without the ``delay`` extra.

    Source: Knapp & Carter, The generalized correlation method for estimation of time delay, 1976 (without a filter).
    """
    rate = _positive("estimate_lag: rate", rate)
    reach = np.inf if max_lag is None else _positive("estimate_lag: max_lag", max_lag)
    named = (("estimate_lag: reference", reference), ("estimate_lag: other", other))
    a, b = (_varying(what, _stream(what, x, np.arange(len(x)))[0]) for what, x in named)
    return _shift(a, b, rate, -reach, reach)[0]


def resample(values: np.ndarray, times: np.ndarray, clock: np.ndarray) -> np.ndarray:
    """A stream read at other times.

    A regular stream that is denser than a regular clock is first brought to the clock's rate by a polyphase filter, so
    that what is too fast for the clock does not show as something slower (aliasing); then linear between samples.

    Args:
        values: [n] or [n, channels].
        times: [n], rising, in seconds.
        clock: [T], rising; beyond the ends of ``times``, the first and the last value hold.

    Returns:
        float64 [T] or [T, channels].

    Raises:
        ValueError: shapes that do not fit, times that do not rise, or NaN or infinity.
        ImportError: without the ``delay`` extra, where a filter is needed.
    """
    values, times = _stream("resample", values, times)
    clock = _rising("resample: clock", clock)
    slow, fast = _step(clock), _step(times)
    if slow is not None and fast is not None and slow > fast * (1 + 1e-6):
        ratio = Fraction(fast / slow).limit_denominator(1000)
        if ratio.numerator:
            filtered = require("scipy.signal", extra="delay").resample_poly(
                values, ratio.numerator, ratio.denominator, axis=0, padtype="line"
            )
            times, values = times[0] + np.arange(len(filtered)) * fast / float(ratio), filtered
    columns = values.reshape(len(values), -1).T
    return np.stack([np.interp(clock, times, c) for c in columns], -1).reshape(len(clock), *values.shape[1:])


def align(
    streams: Mapping[str, np.ndarray],
    *,
    rates: Mapping[str, float] | None = None,
    times: Mapping[str, np.ndarray] | None = None,
    rate: float | None = None,
    reference: str | None = None,
    max_lag: float | None = None,
    lags: Mapping[str, float] | None = None,
) -> Aligned:
    """Streams on one clock, each shifted by its lag, over the span that all of them cover.

    The lag of a stream is that of its mean over channels, each of standard deviation 1, behind the reference's; pass
    your own ``lags`` where these means have nothing in common, from :func:`estimate_lag` on what has.

    Args:
        streams: by name, [n] or [n, channels]; n may differ.
        rates: in Hz by name, where all streams start together; or instead
        times: of the samples, [n] each in seconds, rising, not necessarily regular.
        rate: of the common clock; None is that of the slowest stream.
        reference: whose clock is kept; None is the first.
        max_lag: see :func:`estimate_lag`.
        lags: in seconds by name, instead of estimating them; what is not named is estimated.

    Raises:
        ValueError: streams that are constant, empty, hold NaN or do not overlap, or whose lag is beyond ``max_lag``.
        ImportError: without the ``delay`` extra.
    """
    if not isinstance(streams, Mapping) or not streams:
        raise ValueError("align: streams is empty or no dict, expected at least one stream by name")
    if (rates is None) == (times is None):
        raise ValueError("align: pass either rates, or the times of all samples")
    for what, given in (("rates", rates), ("times", times)):
        if given is not None and set(given) != set(streams):
            raise ValueError(f"align: {what} names {sorted(given)}, expected {sorted(streams)}")
    reference = next(iter(streams)) if reference is None else reference
    for name in [reference, *(lags or {})]:
        if name not in streams:
            raise ValueError(f"align: there is no stream {name!r}, expected one of {list(streams)}")
    when: dict[str, np.ndarray] = {}
    heard: dict[str, np.ndarray] = {}
    for name, values in streams.items():
        if times is not None:
            at = times[name]
        else:
            assert rates is not None
            at = np.arange(len(values)) / _positive(f"align: rate of stream {name!r}", rates[name])
        heard[name], when[name] = _stream(f"align: stream {name!r}", values, at)
    steps = {name: (t[-1] - t[0]) / (len(t) - 1) for name, t in when.items()}
    step = max(steps.values()) if rate is None else 1 / _positive("align: rate", rate)
    reach = np.inf if max_lag is None else _positive("align: max_lag", max_lag)

    found = {name: float(lag) for name, lag in (lags or {}).items()}
    correlations: dict[str, float] = {}
    found[reference] = 0.0
    for name in streams:
        if name not in found:
            fine = min(steps[reference], steps[name])
            a, b = (_summary(f"align: stream {n!r}", heard[n], when[n], fine) for n in (reference, name))
            offset = when[name][0] - when[reference][0]
            lag, correlations[name] = _shift(a, b, 1 / fine, -reach - offset, reach - offset)
            found[name] = float(offset + lag)

    shifted = {name: when[name] - found[name] for name in streams}
    first, last = max(t[0] for t in shifted.values()), min(t[-1] for t in shifted.values())
    if last < first:
        raise ValueError(f"align: with the lags {found}, there is no moment in all streams")
    clock = first + step * np.arange(int(np.floor((last - first) / step + 1e-6)) + 1)
    return Aligned(
        times=clock,
        streams={name: resample(heard[name], shifted[name], clock) for name in streams},
        lags={name: found[name] for name in streams},
        correlations=correlations,
    )


def _correlation(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pearson's correlation of a [n] with b [m], both of mean 0, at every lag; of the overlap alone, as the products of
    whole streams favour the lags at which drifting ones happen to lie far from their means.

    Returns:
        lags in samples, correlations (-1 where one does not vary), samples that overlap, [n + m - 1] each.
    """
    signal = require("scipy.signal", extra="delay")
    a, b = a / a.std(), b / b.std()
    lags = signal.correlation_lags(len(b), len(a), mode="full")
    first, last = np.maximum(0, -lags), np.minimum(len(a), len(b) - lags)  # of a, in the overlap
    overlap = last - first

    def sums(x: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        total = np.concatenate([[0.0], np.cumsum(x)])
        return total[last] - total[first]

    sum_a, sum_b = sums(a, first, last), sums(b, first + lags, last + lags)
    spread_a = sums(a * a, first, last) - sum_a**2 / overlap
    spread_b = sums(b * b, first + lags, last + lags) - sum_b**2 / overlap
    common = signal.correlate(b, a, mode="full", method="auto") - sum_a * sum_b / overlap
    varying = (spread_a > 1e-9 * len(a)) & (spread_b > 1e-9 * len(b))  # less is what rounding leaves
    products = np.sqrt(np.where(varying, spread_a * spread_b, 1.0))
    return lags, np.where(varying, common / products, -1.0).clip(-1, 1), overlap


def _shift(a: np.ndarray, b: np.ndarray, rate: float, low: float, high: float) -> tuple[float, float]:
    """By how many seconds, from ``low`` to ``high``, b [m] comes later than a [n], both of mean 0; and how far they are
    correlated then."""
    steps, correlation, overlap = _correlation(a, b)
    lags = steps / rate
    shorter = min(len(a), len(b))
    enough = overlap >= min(max(shorter * _LEAST_OVERLAP, 3), shorter)
    tried = np.flatnonzero((lags >= low - 1e-9) & (lags <= high + 1e-9) & enough)
    if not len(tried):
        raise ValueError(f"no lag from {low:g} to {high:g} s lets the streams overlap")
    # of periodic streams without noise several are largest: the one with the most overlap
    best = int(tried[np.lexsort((overlap[tried], correlation[tried].round(9)))[-1]])
    if not 0 < best < len(lags) - 1:
        return float(lags[best]), float(correlation[best])  # there is nothing beyond
    before, peak, after = correlation[best - 1 : best + 2]
    if max(before, after) > peak + 1e-9:
        raise ValueError(
            f"from {low:g} to {high:g} s, the streams agree best at {lags[best]:g} s, and better yet beyond: their lag "
            "is not among those; expected a larger max_lag, or streams that have more in common"
        )
    bend = before - 2 * peak + after
    lag = lags[best] + (0.5 * (before - after) / bend / rate if bend < 0 else 0.0)
    return float(min(max(lag, low), high)), float(peak)


def _summary(what: str, values: np.ndarray, times: np.ndarray, step: float) -> np.ndarray:
    """The mean over channels of a stream, each of mean 0 and standard deviation 1, every ``step`` seconds."""
    clock = times[0] + step * np.arange(int(np.floor((times[-1] - times[0]) / step + 1e-6)) + 1)
    channels = resample(values, times, clock).reshape(len(clock), -1)
    spread = channels.std(0)
    varying = spread > 1e-12 * np.abs(channels).max(0, initial=1.0)
    return _varying(what, ((channels - channels.mean(0))[:, varying] / spread[varying]).sum(-1))


def _varying(what: str, values: np.ndarray) -> np.ndarray:
    """A stream [n] without its mean; one that is nothing but its mean has no lag."""
    if values.ndim != 1:
        raise ValueError(f"{what} has shape {list(values.shape)}, expected [n]")
    centred = values - values.mean()
    if not np.abs(centred).max() > 1e-12 * max(1.0, float(np.abs(values).max())):
        raise ValueError(f"{what} is constant: it has no lag")
    return centred


def _stream(what: str, values: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Checked float64 [n] or [n, channels], and their times [n]."""
    values = np.asarray(values)
    if values.dtype.kind not in "fiub" or values.ndim not in (1, 2) or len(values) < 2 or not values.size:
        raise ValueError(
            f"{what} is {values.dtype} of shape {list(values.shape)}, expected at least two samples, [n] or [n, "
            "channels]"
        )
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{what} holds NaN or infinite values")
    times = _rising(f"{what}: times", times)
    if len(times) != len(values):
        raise ValueError(f"{what} has {len(values)} samples and {len(times)} times, expected as many")
    return values, times


def _rising(what: str, times: np.ndarray) -> np.ndarray:
    times = np.asarray(times, dtype=np.float64)
    if times.ndim != 1 or not len(times) or not np.isfinite(times).all() or not (np.diff(times) > 0).all():
        raise ValueError(f"{what} of shape {list(times.shape)}, expected seconds [n] that rise from sample to sample")
    return times


def _step(times: np.ndarray) -> float | None:
    """The distance of samples, if it is always the same."""
    steps = np.diff(times)
    if not len(steps):
        return None
    mean = float(steps.mean())
    return mean if np.abs(steps - mean).max() <= 1e-4 * mean else None


def _positive(what: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 < value < np.inf:
        raise ValueError(f"{what} is {value!r}, expected a positive number")
    return float(value)
