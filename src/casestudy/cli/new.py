"""`casestudy new` and `presets`: the first step towards a study of one's own."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from casestudy.cli.options import (
    READING,
    JsonOption,
    ModelOption,
    PromptArgument,
    Reading,
    say_notices,
)
from casestudy.cli.printing import escape, preference, print_json, print_table, say
from casestudy.errors import CasestudyError
from casestudy.show.text import clean, percent, prompt_excerpt, visible

if TYPE_CHECKING:
    from casestudy.measure.partners import Partner
    from casestudy.measure.predictions import AnswerScore
    from casestudy.model.chat import Chat

OFFERED = 8
"""How many partners are shown and written into the file."""

_HEAD = """\
# A behaviour file of casestudy: what to ask of a model, and after which prompts.
# Run it:  {command}
# Every key: docs/behaviour-files.md

name = {name}
# The report's title. Without it, the title says what was found.
# question = "Why does the model prefer this token to that one?"
answers = "given"  # every prompt brings its answer and its counterpart
{chat}
[[prompts]]
text = {text}
# One token each, with the leading space if the word has one.
answer = {answer}
counterpart = {counterpart}
# The corrupted prompt: the same sentence, with as many tokens, in which the preference is gone.
# Patching and the circuit compare the two.
"""
_CHAT = "# A text is what a user says, or messages as JSON; the chat template writes the rest.\n"
_TAIL = """
# One prompt gives no interval. Add nine or more of the same kind, each like this:
#
# [[prompts]]
# text = "…"
# answer = {answer}
# counterpart = {counterpart}
# corrupted = "…"
"""


def new(
    prompt: PromptArgument,
    answer: Annotated[
        str, typer.Option("--answer", "-a", help="The token to explain, such as ' were'.")
    ],
    counterpart: Annotated[
        str, typer.Option("--counterpart", "-c", help="The token to compare it with.")
    ],
    model: ModelOption = "tiny",
    out: Annotated[
        Path | None, typer.Option(help="The file to write; by default named after the prompt.")
    ] = None,
    reading: Reading = READING,
    as_json: JsonOption = False,
) -> None:
    """Start a study of your own: write a commented behaviour file for one prompt.

    It shows how the model ranks the two tokens, and offers corrupted prompts.
    """
    from casestudy.behaviour.prompts import Prompt
    from casestudy.measure.partners import partners
    from casestudy.measure.predictions import score_answer
    from casestudy.measure.quick_look import weighed

    path = _free(out or Path(f"{_slug(prompt)}.toml"))
    loaded, read = reading.prompt(model, Prompt(prompt))
    say_notices(loaded, [read])
    pair = weighed(loaded, read.text, answer, counterpart)
    scores = [score_answer(loaded, read.text, token) for token in pair]
    offers = partners(loaded, read.text, *pair)
    chat = reading.conversations()
    if chat is not None:  # as the file has them: messages, not what the template makes of them
        offers = _as_messages(prompt, read.text, offers)
    logits = [score.logit for score in scores if score.logit is not None]
    command = ["casestudy", "run", str(path), "--model", model]
    _write(path, _file(path.stem, prompt, (answer, counterpart), offers, command, chat))
    if as_json:
        found: dict[str, Any] = {"file": str(path), "model": loaded.name}
        found |= {name: s.standing() for name, s in zip(_SIDES, scores, strict=True)}
        rest = {"partners": [offer.as_dict() for offer in offers], "command": command}
        print_json("new", {**found, "logit_difference": logits[0] - logits[1], **rest})
        return
    _print_standing(prompt, loaded.name, scores, logits[0] - logits[1])
    _print_offers(offers)
    print(f"\nwritten: {path}\nrun it:  {shlex.join(command)}")


_SIDES = ("answer", "counterpart")


def presets(as_json: JsonOption = False) -> None:
    """List the behaviours that come with casestudy, with their questions."""
    from casestudy.behaviour.presets import preset, preset_names

    found = [preset(name) for name in preset_names()]
    if as_json:
        rows = [
            {"name": b.name, "question": b.question, "about": b.about, "prompts": len(b)}
            for b in found
        ]
        print_json("presets", {"presets": rows})
        return
    print_table(
        "", ("preset", "prompts", "question"), [(b.name, str(len(b)), b.question) for b in found]
    )
    say("To run one:                  casestudy run NAME")
    say("For a question of your own:  casestudy new --help")


def _slug(prompt: str) -> str:
    """A file's name from the prompt's first words."""
    words = re.findall(r"\w+", prompt.lower())[:6]
    return "-".join(words)[:60] or "behaviour"


def _free(path: Path) -> Path:
    """The path, where there is nothing yet and a TOML file may be.

    Raises: CasestudyError otherwise.
    """
    if path.suffix != ".toml":
        raise CasestudyError(f"--out {path}", allowed="a name that ends in .toml")
    if path.exists():
        raise CasestudyError(
            f"{path} exists already, and is not overwritten", hint="Give another --out"
        )
    return path


def _write(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8", newline="\n") as file:  # never over another file
            file.write(text)
    except OSError as error:
        raise CasestudyError(
            f"{path} cannot be written: {error.strerror}", hint="Give another --out"
        ) from error


def _file(
    name: str,
    prompt: str,
    pair: tuple[str, str],
    offers: tuple[Partner, ...],
    command: list[str],
    chat: Chat | None = None,
) -> str:
    """The behaviour file: the best partner is used, the others stand in comments."""
    from casestudy.behaviour.chat import chat_entry
    from casestudy.behaviour.files_written import toml_value

    answer, counterpart = map(toml_value, pair)
    head = _HEAD.format(
        command=" ".join(shlex.join(command).split()),
        name=toml_value(name),
        chat="" if chat is None else f"{_CHAT}chat = {toml_value(chat_entry(chat))}\n",
        text=toml_value(prompt),
        answer=answer,
        counterpart=counterpart,
    )
    lines = []
    for i, offer in enumerate(offers[:OFFERED]):
        used = "" if i == 0 and offer.undoes else "# "
        lines.append(f"{used}corrupted = {toml_value(offer.text)}  # {_left(offer)}\n")
    if not offers:
        lines.append('# corrupted = "…"  # casestudy knows no edit of this prompt\n')
    return head + "".join(lines) + _TAIL.format(answer=answer, counterpart=counterpart)


def _as_messages(prompt: str, text: str, offers: tuple[Partner, ...]) -> tuple[Partner, ...]:
    """The offers that change the last user message alone, as that message."""
    from casestudy.behaviour.chat import edited_message

    found = ((offer, edited_message(prompt, text, offer.text)) for offer in offers)
    return tuple(replace(offer, text=said) for offer, said in found if said is not None)


def _left(offer: Partner) -> str:
    where = "" if offer.before_last else ", in the last token alone"
    edit = " ".join(offer.edit.split())
    return f"{edit}: {offer.clean:+.2f} becomes {offer.corrupted:+.2f} logits{where}"


def _print_standing(prompt: str, model: str, scores: list[AnswerScore], difference: float) -> None:
    rows = []
    for side, score in zip(_SIDES, scores, strict=True):
        one = score.standing()
        rows.append((side, visible(one["token"]), str(one["rank"]), percent(one["prob"])))
    print_table(
        f"{model} after “{prompt_excerpt(prompt, 200)}”", ("", "token", "rank", "probability"), rows
    )
    sides = [score.tokens[0].label for score in scores]
    print(f"{preference(model, sides, difference)}\n")


def _print_offers(offers: tuple[Partner, ...]) -> None:
    if not offers:
        say("No corrupted prompt of as many tokens is known: write your own into the file.")
        return
    print_table(
        "corrupted prompts: their logit difference, and its share of the prompt's own",
        ("corrupted prompt", "edit", "logits", "share"),
        [
            (
                prompt_excerpt(offer.text, 200),
                clean(offer.edit),
                f"{offer.corrupted:+.2f}",
                f"{offer.left:.0%}",
            )
            for offer in offers[:OFFERED]
        ],
    )
    if not offers[0].undoes:
        say(escape("None takes half of the difference away: write your own into the file."))
