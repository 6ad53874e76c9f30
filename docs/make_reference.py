"""Write the reference pages that follow from the code.

    python docs/make_reference.py

`reference/cli.md` from the command line's own help, `reference/json.md` from `cli/schema`,
`reference/python.md` from the package's public names. `make docs-reference` runs it; a test fails
while a page is stale.
"""

from __future__ import annotations

import ast
import inspect
import re
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

import casestudy
from casestudy import cli
from casestudy.cli import schema

PAGES = Path(__file__).parent
SOURCE = Path(casestudy.__file__).parents[1]
NOTE = "<!-- Made by `make docs-reference`; a test fails when it is stale. -->\n"


def pages() -> dict[Path, str]:
    """Every generated page, by where it is kept."""
    return {
        PAGES / "reference" / "cli.md": NOTE + command_line(),
        PAGES / "reference" / "python.md": NOTE + python(),
        PAGES / "reference" / "json.md": NOTE + json_output(),
    }


def command_line() -> str:
    """What `--help` says of each command, as tables, read from the commands' signatures."""
    commands = {c.name or c.callback.__name__: c.callback for c in _commands()}
    lines = ["# Command line", "", str(cli.app.info.help), ""]
    lines += ["| command | what it does |", "| --- | --- |"]
    for name, function in commands.items():
        lines.append(f"| [`casestudy {name}`](#casestudy-{name}) | {_first(function)} |")
    lines += [
        "",
        "Results go to stdout, messages and progress to stderr. What `--json` prints is in "
        "[JSON output](json.md).",
        "",
        *_exit_codes(),
    ]
    for name, function in commands.items():
        lines += [*_command(name, function), ""]
    return "\n".join(lines)


def _exit_codes() -> Iterator[str]:
    yield from ("| exit code | meaning |", "| --- | --- |")
    yield from (f"| {code} | {meaning} |" for code, meaning in schema.EXIT_CODES.items())
    yield ""


def json_output() -> str:
    """What each command prints with `--json`, as tables."""
    lines = [
        "# JSON output",
        "",
        "With `--json` every command prints one object to stdout, and nothing else. Its first "
        f'keys are `schema`, such as `"casestudy.explain"`, and `version`, now {schema.VERSION}. '
        "Within a version, keys are only added. If a key is renamed, removed or changes its "
        "meaning, the version increases. Read the keys you know, and ignore others.",
        "",
        "Ranks start at 1. Logits use the natural logarithm: a logit difference of 1 is a ratio "
        "of probabilities of e. A value that was not measured is absent or null, never 0. "
        "[For programs](../for-programs.md) shows how to use the output.",
        "",
        *_exit_codes(),
    ]
    for command, keys in schema.KEYS.items():
        lines += [f"## casestudy {command} --json", "", "| key | what it is |", "| --- | --- |"]
        lines += [f"| `{key}` | {meaning} |" for key, meaning in keys.items()]
        lines.append("")
    return "\n".join(lines)


def _commands() -> list[Any]:
    return [c for c in cli.app.registered_commands if c.callback is not None and not c.hidden]


def _command(name: str, function: Callable[..., object]) -> Iterator[str]:
    parameters = [Parameter.of(p, hint) for p, hint in _signature(function)]
    arguments = [p for p in parameters if not p.option]
    words = ["casestudy", name, "[OPTIONS]"]
    words += [p.name if p.required or p.name[0] == "[" else f"[{p.name}]" for p in arguments]
    yield from (f"## casestudy {name}", "", _prose(inspect.getdoc(function) or ""), "")
    yield from ("```text", " ".join(words), "```", "")
    yield from ("| argument or option | what it is | default |", "| --- | --- | --- |")
    for p in parameters:
        names = f"`{p.name}`".replace(", ", "`, `")
        yield f"| {names} | {p.help} | {'required' if p.required else p.default} |"


def _signature(function: Callable[..., object]) -> Iterator[tuple[inspect.Parameter, Any]]:
    hints = typing.get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        yield parameter, hints[name]


@dataclass(frozen=True)
class Parameter:
    """One argument or option, as people type it."""

    name: str
    help: str
    default: str
    required: bool
    option: bool

    @classmethod
    def of(cls, parameter: inspect.Parameter, hint: Any) -> Parameter:
        """From a function's parameter and its annotation."""
        (info,) = hint.__metadata__
        kinds = set(typing.get_args(hint.__origin__) or (hint.__origin__,))
        option = isinstance(info, typer.models.OptionInfo)
        decls = tuple(info.param_decls or ())
        if isinstance(info.default, str) and info.default.startswith("-"):
            decls = (info.default, *decls)  # where typer keeps the first name in Annotated
        if not any(d.startswith("--") for d in decls):
            decls = ("--" + parameter.name.replace("_", "-"), *decls)
        if not option:
            name = info.metavar or parameter.name.upper()
        elif bool in kinds:
            name = ", ".join(decls)
        else:
            name = ", ".join(f"{d} {info.metavar}" for d in decls)
        default = parameter.default
        required = default is inspect.Parameter.empty
        shown = "" if required or default is None or default is False else f"`{default}`"
        return cls(name, _prose(info.help or ""), shown, required, option)


def _first(function: Callable[..., object]) -> str:
    return _prose((inspect.getdoc(function) or "").split(". ")[0].rstrip("."))


def _prose(text: str) -> str:
    """Help as Markdown: on one line, and nothing in it is a column or a tag."""
    return re.sub(r"\s+", " ", text).strip().replace("|", "\\|").replace("<", "&lt;")


def python() -> str:
    """The public names by their rooms, for mkdocstrings to fill in."""
    lines = [
        "# Python",
        "",
        "`import casestudy as cs` has every name on this page except the modules at its end. "
        "Importing casestudy loads no torch; each name is imported when it is first used.",
        "",
    ]
    places = {name: room for room, names in casestudy._ROOMS.items() for name in names}
    for title, prefixes in ROOMS.items():
        found = [n for n in places if places[n].startswith(prefixes)]
        found = [n for n in found if not _path(f"{places[n]}.{n}").is_file()]  # a module itself
        lines += [f"## {title}", ""]
        for name in found:
            lines += [f"::: {places[name]}.{name}", ""]
    lines += [
        "## Modules",
        "",
        "Import less common names from their modules. The docstring of `casestudy.engine` is the "
        "glossary of the engine's terms.",
        "",
    ]
    for module in MODULES:
        lines += [f"::: {module}", ""]
    lines += ["## Every module, and the question it answers", ""]
    lines += ["| module | question |", "| --- | --- |"]
    for path in sorted(SOURCE.rglob("*.py")):
        module = _module(path)
        if module.startswith(tuple(f"casestudy.{room}." for room in DESCRIBED)):
            lines.append(f"| `{module}` | {_question(path)} |")
    return "\n".join([*lines, ""])


MODULES = (
    "casestudy.show.plotly_figures",
    "casestudy.show.notebook",
    "casestudy.measure.patching",
    "casestudy.circuits.paths",
    "casestudy.behaviour.counterfactual",
    "casestudy.measure.edit_scores",
    "casestudy.behaviour.mining",
    "casestudy.engine",
)
"""Documented as a whole: notebooks import from them, and `engine` is the glossary."""

DESCRIBED = ("model", "behaviour", "measure", "study")
"""Rooms whose modules a user may want to build on."""

ROOMS = {
    "Models": ("casestudy.model.",),
    "Behaviours": ("casestudy.behaviour.",),
    "Generated text": ("casestudy.engine.",),
    "Measurements": ("casestudy.measure.",),
    "Studies": ("casestudy.study.",),
    "Other": ("casestudy.compat.", "casestudy.show."),
}


def _path(module: str) -> Path:
    return SOURCE.joinpath(*module.split(".")).with_suffix(".py")


def _module(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def _question(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return _prose(text.split("\n\n")[0])


if __name__ == "__main__":
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path)
