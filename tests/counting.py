"""Steps instead of seconds: how many lines of the library a call runs, on any machine."""

import sys
from collections.abc import Callable
from pathlib import Path

PACKAGE = str(Path(__file__).parent.parent / "jax_lrreg")


def lines_run(call: Callable[[], object]) -> int:
    """The number of lines of `jax_lrreg` that `call` runs; what it raises is its own affair."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except (ValueError, TypeError):
        pass
    finally:
        sys.settrace(before)
    return count
