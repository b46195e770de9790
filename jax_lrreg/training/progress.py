"""A progress bar on a terminal or in a notebook, plain lines elsewhere."""

import time
from typing import Any


class Progress:
    """Shows how far a loop is, how fast, and its latest metrics. Does nothing unless `show`."""

    def __init__(self, show: bool, start: int, end: int):
        self.show, self.start, self.end = show, start, end
        self.bar: Any = None
        self.metrics: dict[str, float] = {}

    def __enter__(self) -> "Progress":
        if self.show:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self.console = Console()
            self.began = time.perf_counter()
            if self.console.is_terminal or self.console.is_jupyter:
                columns = ("train", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), "{task.fields[text]}")
                self.bar = Bar(
                    *(TextColumn(column) if isinstance(column, str) else column for column in columns),
                    console=self.console,
                )
                self.bar.start()
                self.task = self.bar.add_task("", total=self.end - self.start, text="compiling")
        return self

    def update(self, now: int, metrics: dict[str, float]) -> None:
        """Shows `metrics`, which belong to step `now`."""
        if not self.show:
            return
        self.metrics |= metrics
        rate = (now - self.start) / max(time.perf_counter() - self.began, 1e-9)
        text = "  ".join(f"{_short(name)} {value:.4g}" for name, value in self.metrics.items() if _shown(name, value))
        if self.bar is None:
            print(f"step {now}/{self.end}  {text}  {rate:.0f} steps/s", flush=True)
        else:
            self.bar.update(self.task, completed=now - self.start, text=f"{text}  {rate:.0f} steps/s")

    def __exit__(self, *error: Any) -> None:
        if self.bar is not None:
            self.bar.stop()


def _short(name: str) -> str:
    return {"learning_rate": "lr"}.get(name, name)


def _shown(name: str, value: float) -> bool:
    return name not in ("data_loss", "grad_norm", "penalty") and (name != "skipped" or value > 0)
