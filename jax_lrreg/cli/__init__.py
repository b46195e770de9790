"""The command line: `python -m jax_lrreg train | find-lr | compare | plan | show | list`.

Each command is a file of this folder, loaded when it is called: `--help` and a mistyped option wait
for nothing.
"""

import argparse
import contextlib
import importlib
import io
import math
import os
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from jax_lrreg import __version__
from jax_lrreg.cli.options import hint, inherited, json_text, one_of

HELP_DATA = (
    "digits, diabetes or breast_cancer of scikit-learn, or a file: .npz with the arrays x and y, "
    "or text in columns with a header (.csv, .tsv, .txt); its numbers are standardised, and a "
    "fifth of the examples is for testing (default: digits)"
)
HELP_TRAIN = (
    "Train a small dense network on real data and write a run folder. The loss is cross-entropy in "
    "nats for classes, and for regression the mean squared error in units of the target's variance."
)
HELP_LR = (
    'a schedule, as in "Cosine(1e-3, steps=2000).warmup(100)", or a number for a constant rate '
    "(default: warmup and cosine over all steps; for diabetes a polynomial)"
)
HELP_EPOCHS = "passes over the training examples (default: 30; for diabetes 100)"
HELP_BRANCH = (
    "go on from this run, with another plan; what is not given is as it was there, the schedule too"
)
HELP_COMPARE = (
    "Train at every point of a grid, with several seeds each, as one program, and say which is "
    "best. A list of numbers in --lr or --penalty is an axis of the grid: --lr "
    '"Cosine([1e-3, 1e-2], steps=660)" --penalty "L2([0, 1e-4]).on(\'**/kernel\')" are four '
    "points; lists in one text change together."
)
HELP_PLAN = (
    "Foretell the best schedule of a long run from three short ones. They are run side by side, "
    "with several seeds each, and a law of the test loss is fitted to them; printed is the text of "
    "the schedule that it has as the best, with the loss that is expected of it."
)
FIRST = """\
start here:
  jax-lrreg train                    train on bundled data, in half a minute
  jax-lrreg train --help             each command's help ends in examples"""
EXIT_CODES = """\
exit codes:
  0    fine
  1    the result is no number, or there is none
  2    a wrong argument or file
  130  interrupted by Ctrl-C; the same `train` goes on
  143  ended by SIGTERM; the same `train` goes on"""
EXAMPLES = {
    "train": """\
  jax-lrreg train                                           digits, into run/
  jax-lrreg train --data houses.csv --target price --ignore id --out houses
  jax-lrreg train --lr "Cosine(3e-3, steps=30)" --units epochs --out cosine
  jax-lrreg train --penalty "L1(1e-4).on('**/kernel')" --out small
  jax-lrreg train --branch run --lr 1e-4 --epochs 40 --out cooled
  jax-lrreg train --quiet --json > result.json              for a script""",
    "find-lr": """\
  jax-lrreg find-lr
  jax-lrreg find-lr --data houses.csv --target price --optimizer momentum
  jax-lrreg find-lr --json                                  each rule's rate""",
    "compare": """\
  jax-lrreg compare --lr "[1e-3, 1e-2]" --seeds 5           two constant rates
  jax-lrreg compare --lr "[1e-3, 1e-2]" --penalty "L2([0, 1e-4])"
  jax-lrreg compare --lr "[1e-3, 1e-2]" --json              all points, and best""",
    "plan": """\
  jax-lrreg plan --steps 5000                               a run of 5000 steps
  jax-lrreg plan --data houses.csv --target price --steps 2000 --seeds 8""",
    "show": """\
  jax-lrreg show "Cosine(1e-3, steps=900).warmup(100)"
  jax-lrreg show "InverseSqrt(1e-3, timescale=100)" --log --out lr.svg
  jax-lrreg show 1e-3 --json                                values at nine steps""",
    "list": """\
  jax-lrreg list
  jax-lrreg list | grep -i cos                              a name a line
  jax-lrreg list --json                                     with what each is""",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        As `EXIT_CODES` has it.
    """
    _replace_letters()
    try:
        options = _parsed(_parser(), arguments)
        if options.get("branch") is not None:
            options = _branched(options, arguments)
        as_json, quiet = options.pop("json"), options.pop("quiet")
        command = importlib.import_module(f"jax_lrreg.cli.{options.pop('command')}")
        # Tables and progress are for people: a script gets one object, or nothing.
        silent = contextlib.redirect_stdout(io.StringIO())
        with silent if as_json or quiet else contextlib.nullcontext():
            code, found = command.run(**options)
        if as_json:
            print(json_text(found))
        return code
    except KeyboardInterrupt:  # 128 + SIGINT, as shells have it
        print("jax-lrreg: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # As of `list | head`. Python flushes once more when it ends, and would complain then: what
        # is left in the buffer goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, TypeError, OSError, ImportError, MemoryError, RuntimeError) as error:
        print(f"jax-lrreg: {_told(error)}", file=sys.stderr)
        return 2


def _told(error: Exception) -> str:
    """What is wrong, in one line."""
    message = " ".join(str(error).split()).removeprefix("jax-lrreg: ")
    # XLA has no MemoryError: a RuntimeError that says so is one; any other is a fault of ours.
    if isinstance(error, RuntimeError) and "Out of memory" not in message:
        raise error
    if isinstance(error, MemoryError | RuntimeError):
        return f"out of memory: try a smaller --hidden or --batch-size ({message})"
    return message


def _replace_letters() -> None:
    # cp1252 and ASCII terminals lack most letters: a "?" is better than a UnicodeEncodeError after
    # an hour of training. In tests and notebooks the stream is another object.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _branched(options: dict[str, Any], arguments: Sequence[str] | None) -> dict[str, Any]:
    """The options of a branch: what is not said is as it was in the run that it goes on from."""
    units = "steps" if options["lr"] is None else options["units"]  # of a text that is given
    found = inherited(options["branch"])
    return {**_parsed(_parser(found), arguments), "units": units}


def _parsed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> dict[str, Any]:
    """The options; a wrong one is refused with the nearest that its command has."""
    given = sys.argv[1:] if arguments is None else arguments
    if given and given[0] != "-h":  # argparse would not say which is near, or what is wrong at all
        one_of("the first argument", given[0], (*EXAMPLES, "--version", "--help"))
    found, wrong = parser.parse_known_args(given)
    options = vars(found)
    sub: argparse.ArgumentParser = options.pop("parser")
    if wrong:  # argparse would show the usage of the program, which has none of these options
        known = re.findall(r"--[\w-]+", sub.format_usage())
        sub.error(f"unrecognized arguments: {' '.join(wrong)}{hint(wrong[0], known)}")
    return options


def _parser(defaults: Mapping[str, object] | None = None) -> argparse.ArgumentParser:
    """The options; `defaults` are those of `train`."""
    parser = argparse.ArgumentParser(
        prog="jax-lrreg",
        description="Learning-rate schedules and regularization for JAX.",
        epilog=f"{FIRST}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # a script's `--ep` would fail with the next option in e
    )
    parser.add_argument("--version", action="version", version=f"jax_lrreg {__version__}")
    commands = parser.add_subparsers(
        title="commands", required=True, metavar="train | find-lr | compare | plan | show | list"
    )

    def command(name: str, description: str) -> argparse.ArgumentParser:
        brief = description.split(". ")[0].rstrip(".")
        sub = commands.add_parser(
            name,
            help=brief,
            description=textwrap.fill(description, 78),  # the formatter below takes it as it is
            epilog=f"examples:\n{EXAMPLES[name]}\n\n{EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        # What argparse takes for a number has no exponent: `--lr -1e-3` lacked its argument.
        sub._negative_number_matcher = re.compile(r"-(\d|\.\d|inf|nan)")
        sub.set_defaults(command=name.replace("-", "_"), parser=sub)
        sub.add_argument("--json", action="store_true", help="print the result as one JSON object")
        sub.add_argument("--quiet", action="store_true", help="print nothing but what is wrong")
        return sub

    train = command("train", HELP_TRAIN)
    find = command("find-lr", "Try rising learning rates on real data, and suggest one.")
    compare = command("compare", HELP_COMPARE)
    plan = command("plan", HELP_PLAN)
    for sub in (train, find, compare, plan):
        _add_problem(sub)
    for sub in (train, compare):
        sub.add_argument("--lr", metavar="TEXT", help=HELP_LR)
        sub.add_argument(
            "--units",
            choices=("steps", "epochs"),
            default="steps",
            help="what the lengths in --lr count (default: steps)",
        )
        sub.add_argument("--epochs", type=_whole, help=HELP_EPOCHS)
    compare.add_argument("--seeds", type=_whole, default=3, help="runs of each point (default: 3)")
    _add_picture(compare, "compare.png")
    plan.add_argument("--steps", type=_whole, help="of the long run (default: as train has)")
    plan.add_argument("--short", type=_whole, help="of the short ones (default: half as many)")
    plan.add_argument("--peak", type=_positive, help="highest rate (default: as train has)")
    plan.add_argument("--seeds", type=_whole, default=4, help="runs of each (default: 4)")
    _add_picture(plan, "plan.png")
    train.add_argument("--out", default="run", metavar="FOLDER", help="the run (default: run)")
    train.add_argument("--branch", metavar="RUN", help=HELP_BRANCH)
    train.add_argument("--at", type=_natural, metavar="STEP", help="from this step of it")
    train.set_defaults(**(defaults or {}))
    train.add_argument("--overwrite", action="store_true", help="replace the run in that folder")
    find.add_argument("--low", type=_positive, default=1e-6, help="first rate (default: 1e-6)")
    find.add_argument("--high", type=_positive, default=10.0, help="last rate (default: 10)")
    find.add_argument("--steps", type=_whole, default=100, help="how many (default: 100)")
    _add_picture(find, "find-lr.png")
    show = command("show", "Draw a schedule, and print a table and a sketch of it.")
    show.add_argument("schedule", metavar="TEXT", help='as "Cosine(1e-3, steps=900).warmup(100)"')
    show.add_argument("--steps", type=_whole, default=1000, help="how far (default: 1000)")
    show.add_argument("--log", action="store_true", help="values on a logarithmic axis")
    _add_picture(show, "schedule.png")
    command("list", "List the schedules and penalties that a text may name.")
    return parser


def _add_problem(sub: argparse.ArgumentParser) -> None:
    """The options that say what is trained."""
    sub.add_argument("--data", default="digits", metavar="NAME|FILE", help=HELP_DATA)
    sub.add_argument("--target", help="the column to predict, or the array of a .npz (default: y)")
    sub.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="COLUMN",
        help="a column that is no input; may be given several times",
    )
    sub.add_argument(
        "--task",
        choices=("regression", "classes"),
        help="what the target is (default: words and a few whole numbers are classes)",
    )
    sub.add_argument(
        "--hidden",
        type=_widths,
        metavar="WIDTHS",
        help="of the hidden layers, as in 64,32, or none (default: 128,128; for diabetes 10)",
    )
    sub.add_argument("--penalty", metavar="TEXT", help="as in \"L1(1e-4).on('**/kernel')\"")
    sub.add_argument(
        "--optimizer", help="sgd, momentum, adam, adamw, rmsprop or lion (default: adam)"
    )
    sub.add_argument("--batch-size", type=_whole, help="examples a step (default: 64, or fewer)")
    sub.add_argument(
        "--seed", type=_natural, default=0, help="of split, order and parameters (default: 0)"
    )


def _add_picture(sub: argparse.ArgumentParser, name: str) -> None:
    sub.add_argument(
        "--out",
        default=name,
        metavar="FILE",
        help=f"the picture; its ending tells the format (default: {name})",
    )


def _whole(value: str, least: int = 1) -> int:
    try:
        number = int(value)
    except ValueError:
        number = least - 1
    if not least <= number < 2**31:  # a step is an int32 on the device
        allowed = f"a whole number from {least} to 2147483647"
        raise argparse.ArgumentTypeError(f"must be {allowed}, got {value[:40]!r}")
    return number


def _natural(value: str) -> int:
    return _whole(value, 0)


def _widths(value: str) -> tuple[int, ...]:
    return () if value == "none" else tuple(map(_whole, value.split(",")))


def _positive(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {value[:40]!r}")
    return number
