"""`list`: every name that a text may hold."""

import sys
import types
from collections.abc import Callable, Mapping

from rich.table import Table

from jax_lrreg import penalties, schedules
from jax_lrreg._struct import call_text
from jax_lrreg.cli.output import console
from jax_lrreg.text.vocabulary import methods, names


def run() -> int:
    """Prints a table on a terminal, and one name a line elsewhere, for `grep` and the like."""
    groups = _groups()
    if not sys.stdout.isatty():
        print("\n".join(sorted({name for group in groups.values() for name in group})))
        return 0
    table = Table("name", "what it is")
    for title, group in groups.items():
        table.add_section()
        table.add_row(title, "", style="bold")
        for name in sorted(group):
            table.add_row(name, (group[name].__doc__ or "").strip().split("\n")[0])
    console().print(table)
    return 0


def _groups() -> Mapping[str, Mapping[str, Callable]]:
    """The names by what they make, without those qualified by their namespace."""
    short = {name: thing for name, thing in names().items() if "." not in name}

    def made(base: type) -> dict[str, Callable]:
        # Objects that print otherwise than as a call are written by methods and operators.
        classes = {n: c for n, c in short.items() if isinstance(c, type) and issubclass(c, base)}
        return {name: cls for name, cls in classes.items() if cls.__repr__ is call_text}

    def methods_of(
        example: schedules.Schedule | penalties.Penalty, base: type
    ) -> dict[str, Callable]:
        return {f".{name}": getattr(base, name) for name in methods(example)}

    return {
        "Schedules": made(schedules.Schedule),
        "made of several": {n: f for n, f in short.items() if isinstance(f, types.FunctionType)},
        "Methods of a schedule": methods_of(schedules.Constant(0.0), schedules.Schedule),
        "Penalties": made(penalties.Penalty),
        "Methods of a penalty": methods_of(penalties.L1(0.0), penalties.Penalty),
    }
