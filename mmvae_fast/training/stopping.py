"""How a run is stopped from outside: Ctrl-C and SIGTERM, both with a word on what is kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from mmvae_fast.training import checkpoints


class Terminated(SystemExit):
    """SIGTERM came."""


@contextmanager
def saying_what_is_kept(state: checkpoints.Progress, out: Path | None) -> Iterator[None]:
    """Ctrl-C (KeyboardInterrupt) and SIGTERM (SystemExit) get a message; the signals' handlers are put back.

    A handler of SIGTERM that somebody set before stays in charge.
    """
    main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if main else {}
    if handlers.get(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        message = f"training stopped in epoch {state.epoch + 1}: {checkpoints.kept(out)}"
        if is_termination(stop):
            raise type(stop)(message) from None
        # Lightning answers Ctrl-C with exit(1)
        if any(isinstance(error, KeyboardInterrupt) for error in (stop, stop.__context__)):
            raise KeyboardInterrupt(message) from None
        raise
    finally:
        for number, handler in handlers.items():  # Lightning disables that of Ctrl-C
            if handler is not None:  # one that was not set by Python cannot be put back by it
                signal.signal(number, handler)


def _terminate(*_: Any) -> NoReturn:
    raise Terminated


def is_termination(stop: BaseException) -> bool:
    """Whether SIGTERM came: ours, or the SIGTERMException of Lightning, which need not be there."""
    return isinstance(stop, Terminated) or type(stop).__name__ == "SIGTERMException"
