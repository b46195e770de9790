"""A progress bar on a terminal, a line that changes in a notebook, plain lines elsewhere."""

import time
from collections import deque
from typing import Any

HIDDEN = ("data_loss", "grad_norm", "penalty")  # of the metrics: a line is short
REMEMBERED = 20  # entries that the rate is taken over


class Progress:
    """Shows how far a loop is, how fast, how long it will take, and its latest metrics. Nothing unless `show`."""

    def __init__(self, show: bool, start: int, end: int):
        self.show, self.start, self.end = show, start, end
        self.bar: Any = None
        self.line: Any = None
        self.metrics: dict[str, float] = {}
        self.times: deque[tuple[int, float]] = deque(maxlen=REMEMBERED)

    def __enter__(self) -> "Progress":
        if self.show:
            from rich.console import Console

            console = Console()
            if console.is_jupyter:
                from IPython.display import display

                self.line = display({"text/plain": "compiling"}, raw=True, display_id=True)
            elif console.is_terminal:
                from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
                from rich.progress import Progress as Bar
                from rich.table import Column

                rest = Column(
                    ratio=1, no_wrap=True
                )  # what is too long for the terminal is cut here
                text = TextColumn("{task.fields[text]}", markup=False, table_column=rest)
                self.bar = Bar(
                    BarColumn(20), MofNCompleteColumn(), text, console=console, expand=True
                )
                self.bar.start()
                self.task = self.bar.add_task(
                    "", total=self.end, completed=self.start, text="compiling"
                )
            self.began = time.perf_counter()
        return self

    def update(self, now: int, metrics: dict[str, float]) -> None:
        """Shows `metrics`, which belong to step `now`."""
        if not self.show:
            return
        self.metrics |= metrics
        self.times.append((now, time.perf_counter()))
        first, others = self._numbers()
        text = "  ".join([*first, *self._pace(now), *others])  # a narrow terminal cuts the others
        if self.bar is not None:
            self.bar.update(self.task, completed=now, text=text)
            return
        line = f"step {now}/{self.end}  {text}"
        if self.line is not None:
            self.line.update({"text/plain": line}, raw=True)
        else:
            print(line, flush=True)

    def _numbers(self) -> tuple[list[str], list[str]]:
        """Loss and rate, and all others that are worth a place."""
        numbers = {
            name: f"{name} {value:.4g}"
            for name, value in self.metrics.items()
            if name not in HIDDEN
        }
        if not self.metrics.get("skipped"):
            numbers.pop("skipped", None)
        first = [numbers.pop(name) for name in ("loss", "learning_rate") if name in numbers]
        return [text.replace("learning_rate", "lr") for text in first], list(numbers.values())

    def _pace(self, now: int) -> list[str]:
        """Steps per second and the time left, by the latest entries: the first has the compilation in it."""
        (first, before), (_, after) = self.times[0], self.times[-1]
        if first == now:
            first, before = self.start, self.began
        rate = (now - first) / max(after - before, 1e-9)
        seconds = (self.end - now) / rate
        pace = f"{rate:,.0f} steps/s" if rate >= 10 else f"{1 / rate:.3g} s/step"
        return [
            pace,
            f"{_clock(seconds)} left" if now < self.end else f"{_clock(after - self.began)} in all",
        ]

    def __exit__(self, *error: Any) -> None:
        if self.bar is not None:
            self.bar.stop()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
