"""Requests that wait at the same time are answered by one call of the Runtime.

There is no delay to fill a batch: whatever arrived while the last call ran goes into the next one, so a lone request
never waits and a crowd shares. A call that fails with several requests in it is repeated with each alone: what is wrong
with one is never another's error.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmvae_fast.serve.errors import Busy, TookTooLong
from mmvae_fast.serve.limits import Limits


@dataclass(frozen=True)
class Rows:
    """Inputs of the Runtime: name -> array [B, *shape], and which rows are observed, bool [B]; all of one B."""

    arrays: Mapping[str, np.ndarray]
    observed: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    @staticmethod
    def joined(several: Sequence[Rows]) -> Rows:
        """One after the other; what one of them lacks is missing in its rows."""
        arrays, observed = {}, {}
        for name in {name: None for rows in several for name in rows.arrays}:
            like = next(rows.arrays[name] for rows in several if name in rows.arrays)
            blank = {len(rows): np.zeros((len(rows), *like.shape[1:]), like.dtype) for rows in several}
            arrays[name] = np.concatenate([rows.arrays.get(name, blank[len(rows)]) for rows in several])
            observed[name] = np.concatenate([rows.observed.get(name, np.zeros(len(rows), bool)) for rows in several])
        return Rows(arrays, observed)


Call = Callable[[Rows], Any]
"""From rows to arrays whose first dimension is theirs: one, or a dict or NamedTuple of them."""


class Reader:
    """Runs what turns requests into arrays (pictures, large JSON) in threads of its own, ``at_once`` at a time, so that
    many large requests together take no more memory than a few. Use it from one event loop, as ``async with``."""

    def __init__(self, limits: Limits, at_once: int = 1):
        self.limits = limits
        self._at_once, self._unfinished = at_once, 0
        self._pool: ThreadPoolExecutor | None = None

    async def __aenter__(self) -> Reader:
        self._pool = ThreadPoolExecutor(self._at_once, thread_name_prefix="reader")
        return self

    async def __aexit__(self, *_: object) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    def __len__(self) -> int:
        """Requests that are read, or wait for it."""
        return self._unfinished

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function(*arguments)``.

        Raises:
            Busy: too many wait, or the server is not running.
            TookTooLong: beyond ``limits.seconds``.
            Exception: what the function raises.
        """
        if self._pool is None:
            raise Busy("the server is not running, or is shutting down")
        if self._unfinished >= self.limits.queue:
            raise Busy(f"{self._unfinished} requests wait already; try again later")
        self._unfinished += 1
        try:
            running = asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)
            return await asyncio.wait_for(running, self.limits.seconds)
        except asyncio.TimeoutError:
            raise TookTooLong(f"not read within {self.limits.seconds:g} s") from None
        finally:
            self._unfinished -= 1


@dataclass
class _Waiting:
    key: Hashable
    call: Call
    rows: Rows
    answer: asyncio.Future


class Batcher:
    """Runs calls in threads, those with equal keys together. Use it from one event loop, as ``async with``.

    Args:
        workers: calls that may run at the same time.
        on_batch: is told the requests and rows of every call.
    """

    def __init__(self, limits: Limits, workers: int = 1, on_batch: Callable[[int, int], None] = lambda n, rows: None):
        self.limits = limits
        self._on_batch = on_batch
        self._waiting: deque[_Waiting] = deque()
        self._workers = workers
        self._free = workers
        self._running: set[asyncio.Task] = set()
        self._pool: ThreadPoolExecutor | None = None

    async def __aenter__(self) -> Batcher:
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="runtime")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Refuse what still waits, finish what runs."""
        pool, self._pool = self._pool, None
        while self._waiting:
            _settle(self._waiting.popleft().answer, error=Busy("the server is shutting down"))
        if self._running:
            await asyncio.wait(self._running, timeout=self.limits.seconds)
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    async def submit(self, key: Hashable, call: Call, rows: Rows) -> Any:
        """What ``call`` gives for these rows.

        Args:
            key: calls of one key are interchangeable: any of them may answer for all.

        Raises:
            Busy: too many wait, or the server is shutting down.
            TookTooLong: beyond ``limits.seconds``.
            Exception: what the call raises for these rows alone.
        """
        if self._pool is None:
            raise Busy("the server is not running, or is shutting down")
        if len(self._waiting) >= self.limits.queue:
            raise Busy(f"{len(self._waiting)} requests wait already; try again later")
        item = _Waiting(key, call, rows, asyncio.get_running_loop().create_future())
        self._waiting.append(item)
        self._start()
        try:
            return await asyncio.wait_for(item.answer, self.limits.seconds)
        except asyncio.TimeoutError:
            raise TookTooLong(f"no answer within {self.limits.seconds:g} s") from None

    def _start(self) -> None:
        while self._free and self._waiting and self._pool is not None:
            batch = self._next()
            if batch:
                self._free -= 1
                task = asyncio.get_running_loop().create_task(self._answer(batch, self._pool))
                self._running.add(task)
                task.add_done_callback(self._running.discard)

    def _next(self) -> list[_Waiting]:
        """The oldest request, and with it those of its key that fit; without those that nobody waits for any more."""
        batch: list[_Waiting] = []
        rest: deque[_Waiting] = deque()
        total = 0
        for item in self._waiting:
            if item.answer.done():
                continue
            fits = not batch or (item.key == batch[0].key and total + len(item.rows) <= self.limits.batch_rows)
            if fits:
                batch.append(item)
                total += len(item.rows)
            else:
                rest.append(item)
        self._waiting = rest
        return batch

    async def _answer(self, batch: list[_Waiting], pool: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        try:
            if len(batch) > 1 and await loop.run_in_executor(pool, self._together, batch, loop):
                return
            for item in batch:
                if not item.answer.done():
                    await loop.run_in_executor(pool, self._alone, item, loop)
        except RuntimeError as error:  # the pool was shut down meanwhile
            for item in batch:
                _settle(item.answer, error=Busy(f"the server is shutting down ({error})"))
        finally:
            self._free += 1
            self._start()

    def _together(self, batch: list[_Waiting], loop: asyncio.AbstractEventLoop) -> bool:
        """In a thread: whether all of them are answered."""
        try:
            rows = Rows.joined([item.rows for item in batch])
            found = batch[0].call(rows)
            start, parts = 0, []
            for item in batch:
                parts.append(_rows_of(found, start, start + len(item.rows)))
                start += len(item.rows)
        except BaseException:  # also what a library written in Rust raises for a bug of its own
            return False
        self._on_batch(len(batch), len(rows))
        for item, part in zip(batch, parts, strict=True):
            loop.call_soon_threadsafe(_settle, item.answer, part)
        return True

    def _alone(self, item: _Waiting, loop: asyncio.AbstractEventLoop) -> None:
        try:
            found = item.call(item.rows)
        except BaseException as error:  # unanswered, the client would wait for its time to pass
            ours = error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")
            loop.call_soon_threadsafe(_settle, item.answer, None, ours)
        else:
            self._on_batch(1, len(item.rows))
            loop.call_soon_threadsafe(_settle, item.answer, found)


def _settle(answer: asyncio.Future, result: Any = None, error: Exception | None = None) -> None:
    if answer.done():  # nobody waits for it any more
        return
    if error is None:
        answer.set_result(result)
    else:
        answer.set_exception(error)


def _rows_of(found: Any, start: int, end: int) -> Any:
    if isinstance(found, Mapping):
        return {name: _rows_of(value, start, end) for name, value in found.items()}
    if isinstance(found, tuple) and hasattr(found, "_fields"):
        return type(found)(*(_rows_of(value, start, end) for value in found))
    return found[start:end]
