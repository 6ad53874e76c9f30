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
from casestudy.results.names import SIDES
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
# {tokens}
answer = {answer}
counterpart = {counterpart}
# The corrupted prompt: the same sentence, with as many tokens, in which the preference is gone.
# Patching and the circuit compare the two.
"""
_TOKENS = {
    "logits": "One token each, with the leading space if the word has one.",
    "nats": "Several tokens: all of them count, by the sum of their log-probabilities.",
}
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
        str,
        typer.Option("--answer", "-a", help="What to explain: ' were', or several tokens."),
    ],
    counterpart: Annotated[
        str, typer.Option("--counterpart", "-c", help="What to compare it with.")
    ],
    model: ModelOption = "tiny",
    out: Annotated[
        Path | None, typer.Option(help="The file to write; by default named after the prompt.")
    ] = None,
    reading: Reading = READING,
    as_json: JsonOption = False,
) -> None:
    """Start a study of your own: write a commented behaviour file for one prompt.

    It shows how probable the model finds the two answers, and offers corrupted prompts.
    """
    from casestudy.behaviour.prompts import Prompt
    from casestudy.measure.partners import partners
    from casestudy.measure.predictions import score_answer
    from casestudy.measure.quick_look import weighed_sides

    path = _free(out or Path(f"{_slug(prompt)}.toml"))
    loaded, read = reading.prompt(model, Prompt(prompt))
    say_notices(loaded, [read])
    sides = weighed_sides(loaded, read.text, answer, counterpart)
    scores = [
        score_answer(loaded, read.text, given if len(side) > 1 else side[0])
        for given, side in zip((answer, counterpart), sides, strict=True)
    ]
    offers = partners(loaded, read.text, *sides)
    chat = reading.conversations()
    if chat is not None:  # as the file has them: messages, not what the template makes of them
        offers = _as_messages(prompt, read.text, offers)
    difference, unit = _difference(scores)
    command = ["casestudy", "run", str(path), "--model", model]
    _write(path, _file(path.stem, prompt, (answer, counterpart), offers, command, unit, chat))
    if as_json:
        found: dict[str, Any] = {"file": str(path), "model": loaded.name}
        found |= {name: s.standing() for name, s in zip(SIDES, scores, strict=True)}
        found |= {"unit": unit, "logit_difference": difference}
        rest = {"partners": [offer.as_dict() for offer in offers], "command": command}
        print_json("new", {**found, **rest})
        return
    _print_standing(prompt, loaded.name, scores, difference, unit)
    _print_offers(offers, unit)
    print(f"\nwritten: {path}\nrun it:  {shlex.join(command)}")


def _difference(scores: list[AnswerScore]) -> tuple[float, str]:
    """The two answers' difference, and its unit: of tokens their logits', of longer answers that of
    their log-probabilities."""
    first, second = scores
    if first.logit is None or second.logit is None:
        return first.log_prob - second.log_prob, "nats"
    return first.logit - second.logit, "logits"


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
    unit: str,
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
        tokens=_TOKENS[unit],
        answer=answer,
        counterpart=counterpart,
    )
    lines = []
    for i, offer in enumerate(offers[:OFFERED]):
        used = "" if i == 0 and offer.undoes else "# "
        lines.append(f"{used}corrupted = {toml_value(offer.text)}  # {_left(offer, unit)}\n")
    if not offers:
        lines.append('# corrupted = "…"  # casestudy knows no edit of this prompt\n')
    return head + "".join(lines) + _TAIL.format(answer=answer, counterpart=counterpart)


def _as_messages(prompt: str, text: str, offers: tuple[Partner, ...]) -> tuple[Partner, ...]:
    """The offers that change the last user message alone, as that message."""
    from casestudy.behaviour.chat import edited_message

    found = ((offer, edited_message(prompt, text, offer.text)) for offer in offers)
    return tuple(replace(offer, text=said) for offer, said in found if said is not None)


def _left(offer: Partner, unit: str) -> str:
    where = "" if offer.before_last else ", in the last token alone"
    edit = " ".join(offer.edit.split())
    return f"{edit}: {offer.clean:+.2f} becomes {offer.corrupted:+.2f} {unit}{where}"


def _print_standing(
    prompt: str, model: str, scores: list[AnswerScore], difference: float, unit: str
) -> None:
    texts = ["".join(token.label for token in score.tokens) for score in scores]
    rows = [
        (side, visible(text), str(score.place or ""), percent(score.prob))
        for side, text, score in zip(SIDES, texts, scores, strict=True)
    ]
    what = "token" if unit == "logits" else "answer"
    print_table(
        f"{model} after “{prompt_excerpt(prompt, 200)}”", ("", what, "rank", "probability"), rows
    )
    print(f"{preference(model, texts, difference, unit)}\n")


def _print_offers(offers: tuple[Partner, ...], unit: str) -> None:
    if not offers:
        say("No corrupted prompt of as many tokens is known: write your own into the file.")
        return
    print_table(
        f"corrupted prompts: the {'logit ' if unit == 'logits' else ''}difference of the answers, "
        "and its share of the prompt's own",
        ("corrupted prompt", "edit", unit, "share"),
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
