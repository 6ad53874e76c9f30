"""The command line: a module per group of commands; each parses, calls one function and prints.

Results go to stdout, talk and progress to stderr. Nothing heavy is imported before a command needs
it, so that `casestudy --help` answers at once.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable
from functools import wraps
from inspect import unwrap
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

import typer

from casestudy.cli import (
    circuit,
    compare,
    direction,
    explain,
    generate,
    look,
    mine,
    models,
    new,
    part,
    parts,
    run,
)
from casestudy.cli.groups import spread
from casestudy.cli.printing import escape, in_options, say
from casestudy.errors import CasestudyError

app = typer.Typer(
    name="casestudy",
    help="Why does a decoder language model prefer one next token over another?",
    epilog="Exit codes: 0 done; 1 a finding does not hold (check), or nothing could be measured "
    "(run); 2 an error, explained on stderr; 130 stopped by Ctrl-C.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

COMMANDS = (
    *(new.new, run.run, explain.explain, look.predict, generate.generate),
    *(look.patch, circuit.circuit, direction.direction, part.part, parts.parts),
    *(compare.compare, compare.check, look.serve, run.report),
    *(mine.mine, new.presets, models.models),
)
"""In the order in which `casestudy --help` lists them."""

KEEPING = ("run", "circuit", "compare")
"""Commands whose finished steps are kept when they are stopped."""


WATCHING = ("serve",)
"""Commands that store nothing, however they end."""


def stoppable(command: Callable[..., None]) -> Callable[..., None]:
    """The command; stopped by Ctrl-C, it says what is kept and what continues it (exit 130)."""

    @wraps(command)
    def run_command(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except KeyboardInterrupt:
            _stopped(command.__name__)

    return run_command


def _stopped(command: str) -> NoReturn:
    """Say once what is kept; a second Ctrl-C interrupts neither this nor the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    words = ["Stopped."]
    if command in KEEPING:
        again = shlex.join(["casestudy", *sys.argv[1:]])
        words.append(f"Every finished step is kept. To continue: {again}")
    elif command not in WATCHING:
        words.append("Nothing was stored.")
    say(escape(" ".join(words)))
    raise SystemExit(130) from None


_VALUES = {int: "N", float: "X", Path: "PATH", bool: ""}
"""How help names a value by its type; others are TEXT."""


def short_values(command: Callable[..., None]) -> Callable[..., None]:
    """The command; help names its options' values in a few letters.

    typer's own names (`<int range>`) leave the explanations 20 of 80 columns.
    """
    hints = get_type_hints(command, include_extras=True)
    for hint in hints.values():
        for info in getattr(hint, "__metadata__", ()):
            if isinstance(info, typer.models.OptionInfo) and info.metavar is None:
                kinds = [get_origin(kind) or kind for kind in _kinds(hint.__origin__)]
                info.metavar = next((_VALUES[kind] for kind in kinds if kind in _VALUES), "TEXT")
    unwrap(command).__annotations__ = command.__annotations__ = hints  # typer may read either
    return command


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The types of a value: those of a union, or the one."""
    return get_args(hint) if get_origin(hint) is not list and get_args(hint) else (hint,)


for command in COMMANDS:
    app.command()(stoppable(short_values(spread(command))))


def wait_asleep() -> None:
    """Have torch's threads sleep while they wait for each other; called before torch is loaded.

    By default they wait in a loop of some 20 ms, which is what a product costs where other
    processes hold a core. numpy's products, which are small here, are not split at all. What a
    user chose by the libraries' own variables is kept.
    """
    if not any(os.environ.get(name) for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")):
        os.environ["OMP_WAIT_POLICY"] = "passive"
    if not any(os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")):
        os.environ["OPENBLAS_NUM_THREADS"] = "1"


def main() -> None:
    """Run the command line; errors meant for the user are printed without a traceback."""
    wait_asleep()
    try:
        app()
    except CasestudyError as error:
        say(f"[bold red]{type(error).__name__}[/]: {escape(in_options(str(error)))}")
        raise SystemExit(2) from None
    except KeyboardInterrupt:  # before a command began
        _stopped("")
