"""Stopping on request: SIGTERM and SIGINT end a run where its work is kept.

Training saves first and then leaves (:func:`deferred`, :func:`asked`); everywhere else what is done is on disk already,
and the request ends the run at once. A second request never waits.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_deferring = False
_asked = False


class Stopped(KeyboardInterrupt):
    """Somebody asked the run to stop."""


@contextmanager
def listening() -> Iterator[None]:
    """Turn the signals into :class:`Stopped` inside the block; only the main thread can."""
    global _asked
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _asked = False
    before = {number: signal.signal(number, _on_signal) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def deferred() -> Iterator[None]:
    """Inside the block a first request only sets :func:`asked`; whoever is in it has to look."""
    global _deferring
    _deferring = True
    try:
        yield
    finally:
        _deferring = False
    if _asked:
        raise Stopped


def asked() -> bool:
    """Whether a stop has been asked for."""
    return _asked


def _on_signal(number: int, frame: Any) -> None:
    global _asked
    again, _asked = _asked, True
    if again or not _deferring:
        raise Stopped
