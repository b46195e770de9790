"""`list`: every name that a text may hold."""

import sys
import types
from collections.abc import Callable, Mapping

from rich.table import Table

from jax_lrreg import penalties, schedules
from jax_lrreg._struct import call_text
from jax_lrreg.cli.options import Found
from jax_lrreg.cli.output import console
from jax_lrreg.text.vocabulary import methods, names


def run() -> tuple[int, Found]:
    """Prints a table on a terminal, and one name a line elsewhere, for `grep` and the like.

    Returns:
        The exit code, and what each name is, by groups.
    """
    groups = {title: _told(group) for title, group in _groups().items()}
    _print(groups)
    return 0, groups


def _told(group: Mapping[str, Callable]) -> dict[str, str]:
    """The first line of what each name says of itself."""
    return {n: (group[n].__doc__ or "").strip().split("\n")[0] for n in sorted(group)}


def _print(groups: Mapping[str, Mapping[str, str]]) -> None:
    if not sys.stdout.isatty():
        print("\n".join(sorted({name for group in groups.values() for name in group})))
        return
    table = Table("name", "what it is")
    for title, group in groups.items():
        table.add_section()
        table.add_row(title, "", style="bold")
        for name, told in group.items():
            table.add_row(name, told)
    console().print(table)


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
