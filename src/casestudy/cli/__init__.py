"""The command line: a module per group of commands; each parses, calls one function and prints.

Results go to stdout, talk and progress to stderr. Nothing heavy is imported before a command needs
it, so that `casestudy --help` answers at once.
"""

from __future__ import annotations

import typer

from casestudy.cli import circuit, compare, look, mine, models, run
from casestudy.cli.printing import escape, say
from casestudy.errors import CasestudyError

app = typer.Typer(
    name="casestudy",
    help="Why does a decoder language model prefer one next token over another?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

COMMANDS = (
    *(run.run, mine.mine, look.predict, circuit.circuit, look.patch, compare.compare),
    *(compare.check, models.models, run.report, look.serve),
)
"""In the order in which `casestudy --help` lists them."""

for command in COMMANDS:
    app.command()(command)


def main() -> None:
    """Run the command line; errors meant for the user are printed without a traceback."""
    try:
        app()
    except CasestudyError as error:
        say(f"[bold red]{type(error).__name__}[/]: {escape(str(error))}")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        say("Stopped. What was stored is kept; the same command continues.")
        raise SystemExit(130) from None
