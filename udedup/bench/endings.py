"""How the bench ends when asked to: Ctrl-C, SIGTERM and SIGHUP come out as exceptions, but never while a cell
is being cleaned up.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ended(BaseException):
    """SIGTERM or SIGHUP asked the bench to end."""


@contextmanager
def raised() -> Iterator[None]:
    """SIGTERM and SIGHUP raise Ended inside; SIGINT raises KeyboardInterrupt as ever."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise Ended(signal.Signals(number).name)

    old = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextmanager
def postponed() -> Iterator[None]:
    """What asks the bench to end inside is heard at the end: an impatient second Ctrl-C must leave nothing
    behind either. Outside the main thread, where no signal is handled, it does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[int] = []
    old = {number: signal.signal(number, lambda number, _: heard.append(number)) for number in ASKING}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        if heard:
            signal.raise_signal(heard[0])
