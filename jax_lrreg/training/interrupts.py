"""Signals: a run ends cleanly at the first, and no signal loses a state that is given away."""

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
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


class Interrupts:
    """Ends a run cleanly where SIGINT (Ctrl-C) or SIGTERM (a preemption) comes, once.

    The first one is noted, and the run looks at it after each call of the device. A second one does
    what it did before. A handler of the user's own is called in any case. In threads, and where a
    signal is ignored, as in what `nohup` starts, nothing is changed.

    Attributes:
        noted: the first signal in this process, or 0.
        number: the one that ends the run, where the processes have agreed on it, or 0. It is apart
            from `noted`, since a signal may come while they agree: that one counts at the next.
        noticed: the signals that are noted and not raised: nothing has to hold them back.
    """

    def __init__(self):
        self.noted, self.number, self.noticed, self._before = 0, 0, [], {}

    @property
    def came(self) -> str:
        """The name of the signal that ends the run, or ""."""
        return signal.Signals(self.number).name if self.number else ""

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                before = signal.getsignal(number)
                if before not in (None, signal.SIG_IGN):
                    self._before[number] = before
                    signal.signal(number, self._note)
        plain = (signal.SIG_DFL, signal.default_int_handler)
        self.noticed = [number for number, before in self._before.items() if before in plain]
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        before, first = self._before[number], not self.noted
        self.noted = self.noted or number
        if callable(before) and (before is not signal.default_int_handler or not first):
            before(number, frame)
        elif not first:  # what the system does, which Python cannot call
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def __exit__(self, *error: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
