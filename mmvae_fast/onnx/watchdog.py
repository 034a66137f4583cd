"""Stops calls that take too long: one thread for the whole process, which sleeps until the earliest time is up.

A thread for each call would cost more than most calls take.
"""

from __future__ import annotations

import math
import os
import threading
import time
from typing import Any


class Limit:
    """A call that is to end in time; its ``RunOptions`` are told to terminate if it does not."""

    __slots__ = ("deadline", "options", "passed")

    def __init__(self, deadline: float, options: Any) -> None:
        self.deadline, self.options, self.passed = deadline, options, False


class _Watchdog:
    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._limits: set[Limit] = set()
        self._wakes = math.inf  # when the thread wakes by itself
        self._thread: threading.Thread | None = None

    def watch(self, options: Any, seconds: float) -> Limit:
        limit = Limit(time.monotonic() + seconds, options)
        with self._condition:
            self._limits.add(limit)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="mmvae_fast timeouts", daemon=True)
                self._thread.start()
            elif limit.deadline < self._wakes:  # seldom: it then sleeps until this one, whichever calls end before
                self._condition.notify()
        return limit

    def release(self, limit: Limit) -> None:
        with self._condition:
            self._limits.discard(limit)

    def _run(self) -> None:
        with self._condition:
            while True:
                now = time.monotonic()
                for limit in [one for one in self._limits if one.deadline <= now]:
                    self._limits.discard(limit)
                    limit.passed = True
                    limit.options.terminate = True
                self._wakes = min((limit.deadline for limit in self._limits), default=math.inf)
                self._condition.wait(None if self._wakes == math.inf else max(0.0, self._wakes - time.monotonic()))


_watchdog = _Watchdog()


def _after_fork() -> None:
    """Threads do not live on in a child; nor do the calls that they watched."""
    global _watchdog
    _watchdog = _Watchdog()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def watch(options: Any, seconds: float) -> Limit:
    """Terminate the call with these ``RunOptions`` in so many seconds, unless :func:`release` comes before."""
    return _watchdog.watch(options, seconds)


def release(limit: Limit) -> None:
    """The call has ended."""
    _watchdog.release(limit)
