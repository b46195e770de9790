"""What options say: objects written as text, and names that must be there."""

import contextlib
import json
import math
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from jax_lrreg import penalties, schedules, text
from jax_lrreg._check import nearest

PROGRAM = "jax-lrreg"  # the owner of what is refused here
INHERITED = (
    *("data", "target", "ignore", "task"),
    *("penalty", "optimizer", "batch_size", "seed", "epochs"),
)
LISTED = 12  # names in a message; a table may have thousands
Found = Mapping[str, object]  # what a command found, by names for scripts
T = TypeVar("T", bound=schedules.Schedule | penalties.Penalty)


def parsed(option: str, value: str, kind: type[T]) -> T:
    """The schedule or penalty that an option describes; a plain number is a constant schedule."""
    try:
        number = _number(value) if kind is schedules.Schedule else None
        found = text.parse(value) if number is None else schedules.Constant(number)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{option}: {error}") from None
    if isinstance(found, kind):
        return found
    raise TypeError(f"{option} must be a {kind.__name__.lower()}, got {shown(value)}")


def inherited(run: str) -> dict[str, Any]:
    """What a run was made with, by the names of its options: a branch has what is not said anew."""
    try:
        config = json.loads((Path(run) / "config.json").read_text(encoding="utf-8"))
        found = {name: config[name] for name in INHERITED}
        return found | {"hidden": tuple(config["hidden"]), "lr": config["schedule"]}
    except (OSError, ValueError, KeyError, TypeError):
        message = f"--branch must be the folder of a run, with its config.json, got {shown(run)}"
        raise ValueError(message) from None


def _number(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def one_of(
    option: str, name: str | None, names: Collection[str], kind: str = "", where: str = ""
) -> str:
    """`name`, which must be one of `names`; else a ValueError with the nearest one that is."""
    if name is not None and name in names:
        return name
    # Cut twice, by count and by length: 5,000 columns made a message of 54,000 characters.
    known = ", ".join(shown(other)[1:-1] for other in list(names)[:LISTED])
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    got = "nothing" if name is None else f"{shown(name)}{hint(name, names)}"
    raise ValueError(f"{option} must be one of {kind}{known}{more}{where}, got {got}")


def hint(name: str, names: Iterable[str]) -> str:
    """The question whether the nearest of `names` was meant, or nothing where none is near."""
    near = nearest(name, names, count=1)
    return f"; did you mean {shown(near[0])}?" if near else ""


def shown(value: str) -> str:
    """A name or a cell in a message: quoted, and cut where it is long."""
    return repr(value if len(value) <= 60 else value[:57] + "...")


@contextlib.contextmanager
def needing(library: str, what: str) -> Iterator[None]:
    """Names what is to be installed where an import inside fails."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{what} needs {library}: pip install 'jax_lrreg[demo]'") from error


def json_text(found: Found) -> str:
    """What was found as JSON; NaN and infinities are null, since JSON has no word for them."""

    def plain(value: object) -> object:
        if isinstance(value, Mapping):
            return {str(key).replace(" ", "_"): plain(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [plain(inner) for inner in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(found), indent=2)


def train_command(options: Mapping[str, object]) -> str:
    """The command that trains with these options."""
    words = [f"{PROGRAM} train"]
    for name, value in options.items():
        for each in value if isinstance(value, list) else [value]:
            text = ",".join(map(str, each)) or "none" if isinstance(each, tuple) else str(each)
            words += [] if each is None else [f"--{name.replace('_', '-')} {_quoted(text)}"]
    return " ".join(words)


def _quoted(text: str) -> str:
    """A word of a shell; a pattern's own quotes stay readable in double ones."""
    plain = "'" in text and not set(text) & set('"$`\\!')
    return f'"{text}"' if plain else shlex.quote(text)
