"""Which options do several commands share, and what do their values mean?"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from casestudy.cli.printing import escape, say
from casestudy.errors import CasestudyError, StudyError, one_of
from casestudy.study.chosen import NAMES, choose

if TYPE_CHECKING:
    from casestudy.behaviour.prompts import Behaviour, Prompt
    from casestudy.behaviour.steps import Scoring
    from casestudy.engine.packing import Budget, Progress, Tell
    from casestudy.model.chat import Chat
    from casestudy.model.model import Model

BehaviourArgument = Annotated[
    str, typer.Argument(metavar="PRESET|FILE", help="A preset's name or a behaviour file.")
]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="A model: tiny (bundled), smollm2 (from a pip package), a folder, a .gguf file, or a "
        "hub id such as gpt2.",
    ),
]
DeviceOption = Annotated[
    str, typer.Option(help="Where to compute: auto, cpu, cuda or mps. auto never takes mps.")
]
DtypeOption = Annotated[
    str, typer.Option(help="Number format: float32, float64, bfloat16, float16 or auto.")
]
BosOption = Annotated[
    bool | None,
    typer.Option(
        "--bos/--no-bos",
        help="Start every prompt with BOS, or not; by default as the model was trained.",
    ),
]
ReadoutOption = Annotated[
    str | None,
    typer.Option(
        metavar="WHERE",
        help="Read the next token after this one, not the last: a position (0 is the first, BOS "
        "counted; -2 the last but one) or a role, as 'final full stop'.",
    ),
]
ScoringOption = Annotated[
    str,
    typer.Option(
        metavar="HOW",
        help="How the tokens of an answer of several count. sum: of their log-probabilities. "
        "mean: of the same. first: the first token in which the two answers differ, alone.",
    ),
]
SpecialOption = Annotated[
    bool,
    typer.Option(
        "--parse-special",
        help="Read the text of a special token, such as <|endoftext|>, as that token.",
    ),
]
StrictOption = Annotated[
    bool,
    typer.Option(
        "--strict-tokens",
        help="Refuse an answer that changes the prompt's own tokens when both are read as one "
        "text, instead of measuring it with a notice.",
    ),
]
ChatOption = Annotated[
    bool,
    typer.Option(
        "--chat",
        help="Read the prompt as a conversation, what a user says or messages in JSON, and have "
        "the model's own chat template write it, special tokens parsed.",
    ),
]
PrefixOption = Annotated[
    str,
    typer.Option(
        "--assistant-prefix",
        metavar="TEXT",
        help="The start of the assistant's turn, after which the model goes on; implies --chat.",
    ),
]
TemplateOption = Annotated[
    Path | None,
    typer.Option(
        "--chat-template",
        metavar="FILE|NAME",
        help="A Jinja template in place of the checkpoint's own, or the name of one of its own; "
        "implies --chat.",
    ),
]
TimeOption = Annotated[
    str | None,
    typer.Option(
        help="Time to spend, such as 90s, 2m or 1h: the first stage, then the patch grids and the "
        "steps of the circuit that fit, the most telling first. The same command continues."
    ),
]
MemoryOption = Annotated[
    str, typer.Option(help="Memory that patching may use, such as 500MB or 2GB.")
]
PromptArgument = Annotated[
    str, typer.Argument(metavar="PROMPT", help="The text after which the model chooses.")
]
TopOption = Annotated[
    int, typer.Option(min=1, help="How many rows to show, those with the largest values first.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object instead of tables.")
]

_NAMES = ", ".join(NAMES)
OnlyOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME…", help=f"Run only these measurements; repeatable, or with commas: {_NAMES}."
    ),
]
SkipOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME…", help="Run all measurements but these; the names are those of --only."
    ),
]

FamilyOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Patch and find the circuit on this kind of edit, as the report lists them: given "
        "(your corrupted prompts), all lowered, … By default your corrupted prompts, or else the "
        "kind that undoes the preference most surely.",
    ),
]


@dataclass(frozen=True)
class Conversations:
    """Whether prompts are conversations, and how they are written: a group of options."""

    chat: ChatOption = False
    prefix: PrefixOption = ""
    template: TemplateOption = None

    def conversations(self) -> Chat | None:
        """How --chat and its two options have conversations written; None without any of them."""
        from casestudy.model.chat import Chat
        from casestudy.model.chat_template import template_file

        if not (self.chat or self.prefix or self.template):
            return None
        given = self.template
        if given is None:
            return Chat(self.prefix)
        if str(given) == given.stem and not given.is_file():  # no suffix, no folder
            return Chat(self.prefix, template_name=given.stem)
        return Chat(self.prefix, template_file(given))


CONVERSATIONS = Conversations()
"""The options as they are where nothing is typed."""


@dataclass(frozen=True)
class Reading(Conversations):
    """How a model and its prompts are read: options that most commands share (see `spread`)."""

    device: DeviceOption = "auto"
    dtype: DtypeOption = "float32"
    bos: BosOption = None
    special: SpecialOption = False
    strict: StrictOption = False

    def model(self, name: str) -> Model:
        """The model that --model names, as `read_model` loads it."""
        loaded = read_model(name, self.device, self.dtype, self.bos, self.special)
        return loaded.with_strict_tokens(self.strict)

    def prompt(self, name: str, prompt: Prompt) -> tuple[Model, Prompt]:
        """The model that --model names, and a prompt as it reads it: with --chat, the template has
        written the prompt, and the model parses its special tokens."""
        from casestudy.behaviour.chat import written
        from casestudy.behaviour.prompts import Behaviour

        model, chat = self.model(name), self.conversations()
        if chat is None:
            return model, prompt
        behaviour = written(model, Behaviour("chat", prompts=(prompt,), chat=chat))
        return behaviour.read_by(model), behaviour.prompts[0]


READING = Reading()
"""The options as they are where nothing is typed."""

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "B": 1}
_TIMES = {"s": 1, "m": 60, "h": 3600}


def read_model(
    model: str, device: str, dtype: str, bos: bool | None = None, special: bool = False
) -> Model:
    """Loads the model that --model names; its texts start with BOS as --bos and --no-bos say, and
    hold special tokens as --parse-special says. The process takes as many threads as help it."""
    from casestudy.engine.threads import adapt
    from casestudy.model.loading import load

    loaded = load(model, device=device, dtype=dtype, prepend_bos=bos, parse_special=special)
    adapt(loaded)
    return loaded


def read_study_model(
    model: str | None,
    known: str,
    device: str,
    dtype: str,
    bos: bool | None = None,
    special: bool = False,
) -> Model:
    """Loads the model that --model names, else the one that a study knows by this name.

    Raises: ModelError where the study's name alone does not load it.
    """
    from casestudy.errors import ModelError

    try:
        return read_model(model or known or "tiny", device, dtype, bos, special)
    except ModelError as error:
        if model or not known:
            raise
        raise ModelError(
            f"the study's model {known!r} cannot be loaded by its name alone: {error.came}",
            hint="A study keeps no path of its model's folder or file: give it with --model PATH",
        ) from error


def read_behaviour(name: str, chat: Chat | None = None) -> Behaviour:
    """A preset, or a file's behaviour, with --chat as conversations; what the file's reader left
    out goes to stderr."""
    from casestudy.behaviour.files import find_behaviour

    behaviour = find_behaviour(name)
    for note in behaviour.notes:
        say(escape(f"{name}: {note}"))
    if chat is None:
        return behaviour
    return replace(behaviour, chat=chat)


def read_stages(only: list[str] | None, skip: list[str] | None) -> list[str]:
    """The measurements that --only and --skip leave; either may hold commas.

    Raises: StudyError for a name there is not, for an option that names nothing, and where nothing
        is left.
    """
    return choose(names_in("--only", only) if only else None, names_in("--skip", skip or ()))


def names_in(option: str, given: Sequence[str]) -> list[str]:
    """The measurements that an option names, each time with commas or without.

    Raises: StudyError where it is there and names nothing, as an empty variable of a script does.
    """
    found = [name.strip() for part in given for name in part.split(",") if name.strip()]
    if given and not found:
        raise StudyError(f"{option} names no measurement", allowed=", ".join(NAMES))
    return found


def read_scoring(text: str) -> Scoring:
    """How the tokens of an answer count.

    Raises: CasestudyError listing the ways.
    """
    from casestudy.behaviour.steps import Scoring

    return one_of("--scoring", text, get_args(Scoring), CasestudyError)


def read_readout(where: str | None) -> int | str | None:
    """The position or the role's name of --readout."""
    from casestudy.behaviour.readouts import readout_given

    return None if where is None else readout_given(where)


def say_notices(model: Model, prompts: Behaviour | Sequence[Prompt]) -> None:
    """What to know of how these prompts are read, a line for each kind, on stderr."""
    from casestudy.behaviour.chat import written
    from casestudy.behaviour.notices import prompt_notices
    from casestudy.behaviour.prompts import reader_of

    prompts = prompts if isinstance(prompts, Sequence) else written(model, prompts)
    asked = list(prompts) if isinstance(prompts, Sequence) else list(prompts.prompts)
    tokenizer = reader_of(model, prompts).tokenizer
    for notice in prompt_notices(tokenizer, asked):
        say(escape(notice))


def saying_notices(folder: Path, behaviour: Behaviour, tell: Tell) -> Tell:
    """Passes a study's progress on; before the first of it, what to know of how its prompts are
    read, as the study's manifest has it, goes to stderr."""
    from casestudy.study.store import Store

    waiting = True

    def told(progress: Progress) -> None:
        nonlocal waiting
        notes = Store.open(folder).manifest.get("notes", ()) if waiting else ()
        waiting = False
        for note in notes:
            if note not in behaviour.notes:  # those were said when the file was read
                say(escape(note))
        tell(progress)

    return told


def read_budget(memory: str, time: str | None = None) -> Budget:
    """The budget of --memory (2GB, 500MB or a plain number of bytes) and --budget (90s, 2m)."""
    from casestudy.engine.packing import Budget

    return Budget(memory=_bytes(memory), seconds=None if time is None else _seconds(time))


def _seconds(text: str) -> float:
    number = text.lower().strip()
    unit = number[-1:] if number[-1:] in _TIMES else ""
    try:
        seconds = float(number.removesuffix(unit)) * _TIMES.get(unit, 1)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise CasestudyError(f"--budget {text}", allowed="a time like 90s, 2m or 1h")
    return seconds


def _bytes(text: str) -> int:
    number = text.upper().strip()
    unit = next((unit for unit in _UNITS if number.endswith(unit)), "")
    try:
        size = int(float(number.removesuffix(unit)) * _UNITS.get(unit, 1))
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise CasestudyError(f"--memory {text}", allowed="a size like 500MB or 2GB")
    return size


def read_executor(name: str) -> Literal["local", "ray"]:
    """Where a study's chunks are measured."""
    choices: tuple[Literal["local", "ray"], ...] = ("local", "ray")
    return one_of("executor", name, choices, CasestudyError)


def page_name(out: Path | None) -> Path | None:
    """A page's file, which has to be called so, and where it can be written."""
    if out is not None and out.suffix != ".html":
        raise CasestudyError(f"--out {out}", allowed="a name that ends in .html")
    return check_target("--out", out)


def check_target(option: str, path: Path | None) -> Path | None:
    """The file that an option names, before the work whose result it is to hold.

    Raises: CasestudyError where no file can be written there.
    """
    if path is None:
        return None
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        part.touch()
        part.unlink()
    except OSError as error:
        raise CasestudyError(
            f"{path} cannot be written: {error.strerror}", hint=f"Choose another {option}"
        ) from error
    return path


def check_folder(option: str, folder: Path, file: str) -> None:
    """Make the folder that an option names, before the work whose result its file is to hold.

    Raises: CasestudyError as `check_target`.
    """
    with contextlib.suppress(OSError):  # said by the next line, with its reason
        folder.mkdir(parents=True, exist_ok=True)
    check_target(option, folder / file)


def default_folder(behaviour: str, model: str, *more: str) -> Path:
    """Where a study is kept for which --out names no folder."""
    return Path("studies") / "-".join((behaviour, Path(model).name.replace("@", "-"), *more))
