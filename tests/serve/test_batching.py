"""Requests that share a call: each gets its own rows, and nobody else's errors."""

from __future__ import annotations

import asyncio
import threading
from typing import NamedTuple

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="needs the 'runtime' extra")

from mmvae_fast.serve.batching import Batcher, Rows
from mmvae_fast.serve.errors import Busy, TookTooLong
from mmvae_fast.serve.limits import Limits


def rows(*numbers: float, name: str = "x") -> Rows:
    return Rows({name: np.array(numbers, np.float32)[:, None]}, {name: np.ones(len(numbers), bool)})


class Pair(NamedTuple):
    twice: np.ndarray
    rows: dict


class Calls:
    """A model that can be held up, and remembers what it was called with."""

    def __init__(self, held: bool = False):
        self.sizes: list[int] = []
        self.free = threading.Event()
        if not held:
            self.free.set()

    def __call__(self, rows: Rows) -> Pair:
        self.free.wait(10)
        x = rows.arrays["x"]
        self.sizes.append(len(x))
        if (x < 0).any():
            raise ValueError("negative")
        return Pair(2 * x[:, 0], {"x": x[:, 0]})


async def together(batcher: Batcher, calls: Calls, several: list[Rows]) -> list:
    """The first occupies the worker, the rest wait; then all go."""
    tasks = [asyncio.create_task(batcher.submit("k", calls, some)) for some in several]
    await asyncio.sleep(0.05)
    calls.free.set()
    return await asyncio.gather(*tasks, return_exceptions=True)


def test_waiting_requests_share_a_call():
    calls, told = Calls(held=True), []

    async def main():
        async with Batcher(Limits(), on_batch=lambda n, rows: told.append((n, rows))) as batcher:
            return await together(batcher, calls, [rows(1), rows(2, 3), rows(4), rows(5, 6, 7)])

    found = asyncio.run(main())
    assert [pair.twice.tolist() for pair in found] == [[2], [4, 6], [8], [10, 12, 14]]
    assert [pair.rows["x"].tolist() for pair in found] == [[1], [2, 3], [4], [5, 6, 7]]
    assert calls.sizes == [1, 6]
    assert told == [(1, 1), (3, 6)]


def test_a_bad_request_fails_alone():
    calls = Calls(held=True)

    async def main():
        async with Batcher(Limits()) as batcher:
            return await together(batcher, calls, [rows(1), rows(2), rows(-3), rows(4)])

    first, second, bad, last = asyncio.run(main())
    assert isinstance(bad, ValueError)
    assert [first.twice[0], second.twice[0], last.twice[0]] == [2, 4, 8]


def test_batches_stay_within_the_limit_and_keys_apart():
    calls, others = Calls(held=True), Calls()

    async def main():
        async with Batcher(Limits(batch_rows=4)) as batcher:
            first = asyncio.create_task(together(batcher, calls, [rows(n, n) for n in (1, 2, 3, 4)]))
            await asyncio.sleep(0)  # the first of these runs
            other = [
                asyncio.create_task(batcher.submit("other", others, rows(*several))) for several in ([8], range(9))
            ]
            return await first, await asyncio.gather(*other)

    found, other = asyncio.run(main())
    assert calls.sizes == [2, 4, 2]
    assert others.sizes == [1, 9]  # no request is ever split
    assert [pair.twice.tolist() for pair in found] == [[2, 2], [4, 4], [6, 6], [8, 8]]
    assert [len(pair.twice) for pair in other] == [1, 9]


def test_what_one_lacks_is_missing_in_its_rows_only():
    joined = Rows.joined([rows(1, 2), rows(3, name="y"), rows(4)])
    np.testing.assert_array_equal(joined.arrays["x"][:, 0], [1, 2, 0, 4])
    np.testing.assert_array_equal(joined.observed["x"], [True, True, False, True])
    np.testing.assert_array_equal(joined.arrays["y"][:, 0], [0, 0, 3, 0])
    np.testing.assert_array_equal(joined.observed["y"], [False, False, True, False])


def test_too_many_waiting_are_refused_and_the_others_answered():
    calls = Calls(held=True)

    async def main():
        async with Batcher(Limits(queue=2)) as batcher:
            return await together(batcher, calls, [rows(n) for n in range(5)])

    found = asyncio.run(main())
    assert [type(f) for f in found] == [Pair, Pair, Pair, Busy, Busy]


def test_a_late_answer_is_refused_and_the_next_is_not():
    calls = Calls(held=True)

    async def main():
        async with Batcher(Limits(seconds=0.1)) as batcher:
            late = await asyncio.gather(*(batcher.submit("k", calls, rows(n)) for n in (1, 2)), return_exceptions=True)
            calls.free.set()
            await asyncio.sleep(0.05)
            return late, await batcher.submit("k", calls, rows(3))

    late, found = asyncio.run(main())
    assert [type(error) for error in late] == [TookTooLong, TookTooLong]
    assert found.twice.tolist() == [6]
    assert calls.sizes == [1, 1]  # nobody computed for the one that had given up while waiting


def test_two_workers_run_two_keys_at_once():
    calls, others = Calls(held=True), Calls()

    async def main():
        async with Batcher(Limits(seconds=5), workers=2) as batcher:
            slow = asyncio.create_task(batcher.submit("slow", calls, rows(1)))
            await asyncio.sleep(0)
            quick = await batcher.submit("quick", others, rows(2))
            calls.free.set()
            return (await slow).twice[0], quick.twice[0]

    assert asyncio.run(main()) == (2, 4)


def test_shutting_down_refuses_what_waits_and_finishes_what_runs():
    calls = Calls(held=True)

    async def main():
        batcher = Batcher(Limits())
        async with batcher:
            running = asyncio.create_task(batcher.submit("k", calls, rows(1)))
            await asyncio.sleep(0.05)
            waiting = asyncio.create_task(batcher.submit("k", calls, rows(2)))
            await asyncio.sleep(0.05)
            threading.Timer(0.1, calls.free.set).start()
        with pytest.raises(Busy):
            await batcher.submit("k", calls, rows(3))
        return await asyncio.gather(running, waiting, return_exceptions=True)

    ran, waited = asyncio.run(main())
    assert ran.twice.tolist() == [2]
    assert isinstance(waited, Busy) and "shutting down" in str(waited)


@pytest.mark.parametrize(
    "wrong", [{"rows": 0}, {"seconds": -1}, {"queue": 1.5}, {"body_bytes": True}, {"seconds": "1"}]
)
def test_limits_are_numbers_above_0(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"Limits: {name} is .*expected a number above 0"):
        Limits(**wrong)


def test_what_is_no_exception_is_answered_too():
    """As pyo3's PanicException."""

    class Panic(BaseException):
        pass

    def call(rows):
        raise Panic("a bug of Rust")

    async def check():
        async with Batcher(Limits(seconds=5)) as batcher:
            answers = [asyncio.create_task(batcher.submit("k", call, rows(i))) for i in range(2)]
            found = await asyncio.gather(*answers, return_exceptions=True)
        assert [type(e) for e in found] == [RuntimeError] * 2 and "a bug of Rust" in str(found[0])

    asyncio.run(check())
