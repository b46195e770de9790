"""What may stop a run, and when: signals such as Ctrl-C wait until no state is on its way."""

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

# Those that a program may handle; to look at all 64 would take a third of a millisecond.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGBREAK", "SIGALRM", "SIGUSR1", "SIGUSR2")
_SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]  # not all on Windows


def handled_signals() -> list[int]:
    """The signals that call a Python function in the main thread; Ctrl-C is one of them."""
    if threading.current_thread() is not threading.main_thread():
        return []
    return [number for number in _SIGNALS if callable(signal.getsignal(number))]


@contextlib.contextmanager
def held_back(signals: Sequence[int]) -> Iterator[None]:
    """Keeps what handles these signals from running in here, but at a second one of a kind.

    Each is put back by a frame of its own, since what was held back may raise as soon as it is let
    go.
    """
    if not signals:
        yield
        return
    number, handler, came = signals[0], signal.getsignal(signals[0]), []

    def wait(*call: Any) -> None:
        if came:  # whoever asks twice does not want to wait
            handler(*call)  # type: ignore[operator]
        came.append(call)

    signal.signal(number, wait)
    try:
        with held_back(signals[1:]):
            yield
    finally:
        signal.signal(number, handler)
        if came:
            handler(*came[0])  # type: ignore[operator]
