"""A progress bar on a terminal and in a notebook, at most 20 plain lines elsewhere."""

import importlib.util
from typing import Any

import jax

HIDDEN = ("data_loss", "grad_norm", "penalty")  # of the metrics: a line is short
LINES = 20  # of a run whose output goes to a file


class Progress:
    """Shows how far a loop is, how fast, how long yet, and metrics; nothing unless `show`."""

    def __init__(self, show: bool, start: int, end: int, unit: str = "step"):
        # Of several processes the first one shows it: the others would write the same lines.
        show = show and jax.process_index() == 0
        self.show, self.start, self.end, self.unit = show, start, end, unit
        self.metrics: dict[str, float] = {}
        self.printed = 0  # of the lines

    def __enter__(self) -> "Progress":
        if self.show:
            from rich.console import Console

            console = Console()
            terminal = console.is_terminal and not console.is_dumb_terminal
            # In a notebook Rich draws through widgets, and where those are not installed not at
            # all.
            notebook = console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None
            self.draws = terminal or notebook
            self.bar = _bar(console, disable=not self.draws)
            self.bar.start()
            # Rich measures the pace from the first update on: what comes before it is the
            # compilation.
            self.bar.add_task("", total=self.end, completed=self.start, text="compiling")
        return self

    def update(self, now: int, metrics: dict[str, float]) -> None:
        """Shows `metrics`, which belong to step `now`."""
        if not self.show or not metrics:
            return
        self.metrics |= metrics
        task = self.bar.tasks[0]
        self.bar.update(task.id, completed=now)
        first, others = self._numbers()
        text = "  ".join([*first, *self._pace(now, task), *others])  # a narrow terminal cuts others
        self.bar.update(task.id, text=text, refresh=now == self.end)
        due = (now - self.start) * LINES // (self.end - self.start)
        if not self.draws and due > self.printed:
            self.printed = due
            print(f"{self.unit} {now}/{self.end}  {text}", flush=True)

    def stopped(self, now: int, why: str) -> None:
        """Says why the run ended before its time."""
        if self.show:
            task = self.bar.tasks[0]
            self.bar.update(task.id, completed=now, text=f"ended {why}", refresh=True)
            if not self.draws:
                print(f"ended {why}", flush=True)

    def _numbers(self) -> tuple[list[str], list[str]]:
        """Loss and rate, and all others that are worth a place."""
        shown = {name: value for name, value in self.metrics.items() if name not in HIDDEN}
        if not shown.get("skipped"):
            shown.pop("skipped", None)
        texts = {name: f"{name} {value:.4g}" for name, value in shown.items()}
        first = [texts.pop(name) for name in ("loss", "learning_rate") if name in texts]
        return [text.replace("learning_rate", "lr") for text in first], list(texts.values())

    def _pace(self, now: int, task: Any) -> list[str]:
        """Steps per second, and the time left or taken."""
        rate = task.speed or (now - self.start) / max(task.elapsed, 1e-9)
        pace = f"{rate:,.0f} {self.unit}s/s" if rate >= 10 else f"{1 / rate:.3g} s/{self.unit}"
        left = self.end - now
        return [pace, f"{_clock(left / rate)} left" if left else f"{_clock(task.elapsed)} in all"]

    def __exit__(self, *error: object) -> None:
        if self.show and self.draws:
            self.bar.stop()


def _bar(console: Any, disable: bool) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.table import Column

    rest = Column(ratio=1, no_wrap=True)  # what is too long for the terminal is cut here
    columns = (
        BarColumn(20 if console.width > 90 else 10),  # of 80 columns the time left was cut
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}", markup=False, table_column=rest),
    )
    # The pace is that of the last minute; a compilation in the middle is forgotten after it.
    options = {"expand": True, "speed_estimate_period": 60.0, "disable": disable}
    return Progress(*columns, console=console, **options)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
