"""Several processes that make one run: what they agree on, and how one ends with another."""

import contextlib
import os
import sys
import threading
import zlib
from collections.abc import Iterator

import jax
import numpy as np

LOOK, WAIT = 1.0, 10.0  # seconds between two looks at the others, and for one's own error to come
_runs = 0  # begun so far: every process makes the same ones, so the number is the same on all


def agreed(*said: int) -> list[int]:
    """The largest of what the processes say, number by number; all of them have to ask.

    Each has a clock and signals of its own. What only one of them does, as to save, would leave the
    others waiting for ever.
    """
    if jax.process_count() == 1:
        return list(said)
    return _gathered(said).max(0).tolist()


def together(number: int) -> list[int]:
    """What each process says, once all have come here."""
    return [number] if jax.process_count() == 1 else _gathered((number,))[:, 0].tolist()


def differing(data: bytes) -> list[int]:
    """The processes that have other bytes than this one; all of them have to ask."""
    sums = together(zlib.crc32(data) & 0x7FFFFFFF)
    return [i for i, other in enumerate(sums) if other != sums[jax.process_index()]]


def _gathered(said: tuple[int, ...]) -> np.ndarray:
    from jax.experimental import multihost_utils  # for a run on one process it is not loaded

    return multihost_utils.process_allgather(np.array(said, np.int32))


@contextlib.contextmanager
def ending_together(owner: str, begins: bool = False) -> Iterator[None]:
    """Ends this process when what is in here ended by an error in another one, and says so.

    The devices would wait for the other one's part of a sum, which never comes, and Python with
    them: no exception could be raised. An error that all have leaves each one its own. What only
    `begins` a run tells of its errors there, as the others may be in the run already.
    """
    global _runs
    if jax.process_count() == 1 or not jax.distributed.is_initialized():
        yield
        return
    from orbax.checkpoint import multihost  # JAX's store of texts has no public name of its own

    client = multihost.get_jax_distributed_client()
    folder, over = f"jax_lrreg/{_runs}/", threading.Event()
    _runs += not begins
    own = f"process {jax.process_index()}"

    def watch() -> None:
        while not over.wait(LOOK):
            try:
                told = client.key_value_dir_get(folder)
            except Exception:  # the process with the store is gone: JAX ends the others itself
                return
            if told and not over.wait(WAIT):
                text = f"{told[0][1]}; {own} ends too, as it would wait for ever"
                print(f"{owner}: {text}", file=sys.stderr, flush=True)
                os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    except GeneratorExit:  # a loop that is left early
        raise
    except BaseException as error:
        _runs += begins  # where all have it and go on, the next run has a folder of its own
        with contextlib.suppress(Exception):  # the first error is the one to tell
            first = str(error).split("\n")[0][:300]
            text = f"{own} of {jax.process_count()} ended by {type(error).__name__}: {first}"
            client.key_value_set(folder + own, text)
        raise
    finally:
        over.set()
