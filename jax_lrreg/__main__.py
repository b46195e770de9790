"""`python -m jax_lrreg`: the command line."""

import os
import sys

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def run() -> int:
    """The exit code of the command line, also where Ctrl-C comes while it is being loaded."""
    try:
        from jax_lrreg.cli import main

        return main()
    except KeyboardInterrupt:
        print("jax-lrreg: interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    code = run()
    if code == INTERRUPTED:
        # Python remembers an interrupt that came within `exec`, as in the making of a dataclass,
        # and would end by the signal itself, handled or not.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
