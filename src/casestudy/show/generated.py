"""The HTML page of a text that a model wrote.

One HTML file in the report's style: the text as a strip of its tokens, shaded by how sure the model
was of each, and for each token the ledger against its runner-up, which opens where the token is
chosen (without script, too). Made from a `Generated` and its ledger; it needs no model.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from casestudy.results.files import write_atomically
from casestudy.results.result import Grid
from casestudy.show.blocks import Absent, Section
from casestudy.show.page import environment, figure_html
from casestudy.show.report import frame
from casestudy.show.sections.ledger_figure import ledger_figure
from casestudy.show.text import (
    chip,
    clean,
    number,
    percent,
    prompt_excerpt,
    shorten,
    signed,
    visible,
)

if TYPE_CHECKING:
    from casestudy.engine.generation import Generated, GeneratedToken

MOST_PROMPT = 400
"""Columns of the prompt that stand before the strip."""
STOPPED = {
    "length": "as many tokens as were asked for",
    "end of text": "a token that ends the text",
    "context": "the context was full",
}
_ABSENT = (
    Absent(
        "Causal effects",
        "The ledger has direct contributions: what each part wrote, not what is necessary. The "
        "behaviour file beside this page runs as a study, with patching.",
    ),
    Absent("Intervals", "One text says nothing about others."),
)


def write_generated(
    generated: Generated,
    ledger: Grid,
    check: Grid,
    path: str | os.PathLike[str],
    facts: Sequence[tuple[str, str]] = (),
) -> Path:
    """Write the page, completely or not at all, and return its path.

    Args:
        generated: the text.
        ledger, check: of its tokens, as `measure.generated.ledger_of_steps` returns them.
        path: the file.
        facts: lines of provenance beside the page's own.

    Raises: StudyError if the file cannot be written.
    """
    path = Path(path)
    write_atomically(path, generated_html(generated, ledger, check, facts).encode("utf-8"))
    return path


def generated_html(
    generated: Generated, ledger: Grid, check: Grid, facts: Sequence[tuple[str, str]] = ()
) -> str:
    """The whole page."""
    macros: Any = environment().get_template("strip.html").module
    tokens = [
        _token(generated, i, ledger.select(prompt=str(i)), check.select(prompt=str(i)))
        for i in range(len(generated))
    ]
    strip = macros.strip(tokens, prompt_excerpt(generated.prompt, MOST_PROMPT))
    title = f"Why {clean(generated.model)} wrote “{shorten(clean(generated.text.strip()), 60)}”"
    answer = _answer(generated)
    return (
        environment()
        .get_template("generated.html")
        .render(
            title=title,
            model=clean(generated.model),
            description=shorten(answer.striptags(), 300),
            answer=[answer],
            sections=[
                Section("text", "How sure was it?", [strip]),
                Section("accounts", "Why this token?", [macros.accounts(tokens)]),
            ],
            absent=_ABSENT,
            facts=[*facts, *_facts(generated, ledger)],
            shared={"prompts": {}, "patterns": {}},
            **frame(),
        )
    )


def _token(generated: Generated, i: int, ledger: Grid, check: Grid) -> dict[str, Any]:
    """What the page shows of one token."""
    step = generated.steps[i]
    (contrast,) = ledger.axis("contrast").labels
    figure = ledger_figure(
        ledger.select(contrast=contrast),
        check.select(contrast=contrast),
        "Direct contributions of the model’s parts to the logit difference",
        of="the token’s",
        contrast=f"{visible(step.token)} against {visible(step.runner_up)}",
    )
    return {
        "text": visible(step.token),
        "share": round(step.prob, 4),
        "breaks": "\n" in step.token.label,
        "title": f"{percent(step.prob)}; runner-up {visible(step.runner_up)}, "
        f"{percent(step.runner_up_prob)}",
        "href": f"#token-{i}",
        "words": _words(step),
        "figure": figure_html(figure),
    }


def _words(step: GeneratedToken) -> Markup:
    template = "{} ({}) {} against {} ({}): {} logits"
    drawn = "" if step.rank == 0 else f"drawn from rank {step.rank + 1}"
    return Markup(template).format(
        chip(step.token),
        percent(step.prob),
        drawn,
        chip(step.runner_up),
        percent(step.runner_up_prob),
        signed(step.difference),
    )


def _answer(generated: Generated) -> Markup:
    """What it wrote, and where it was most and least sure."""
    steps = generated.steps
    most, least = (choose(steps, key=lambda step: step.prob) for choose in (max, min))
    text = Markup("{} wrote {} token{}: “{}”. ").format(
        clean(generated.model),
        len(steps),
        "" if len(steps) == 1 else "s",
        shorten(clean(generated.text), 600),
    )
    sure = Markup(
        "It was surest of {} ({}) and least sure of {} ({}; the runner-up was {}, {})."
    ).format(
        chip(most.token),
        percent(most.prob),
        chip(least.token),
        percent(least.prob),
        chip(least.runner_up),
        percent(least.runner_up_prob),
    )
    return text + sure


def _facts(generated: Generated, ledger: Grid) -> list[tuple[str, str]]:
    how = "the most probable token each time"
    if generated.temperature > 0:
        how = f"drawn at temperature {generated.temperature:g} with the seed {generated.seed}"
    gap, bound = ledger.error.get("gap"), ledger.error.get("bound")
    allowed = "no bound is guaranteed" if bound is None else f"bound {number(bound)}"
    return [
        ("Prompt", f"{len(generated.ids):,} tokens"),
        ("Tokens chosen", how),
        ("Stopped", STOPPED[generated.stopped]),
        ("Largest gap of the ledgers", f"{number(gap)} logits, {allowed}"),
    ]
