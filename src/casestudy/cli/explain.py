"""`casestudy explain`: one prompt and two answers, everything quick about them in one object."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from casestudy.cli.options import (
    READING,
    JsonOption,
    MemoryOption,
    ModelOption,
    PromptArgument,
    Reading,
    ReadoutOption,
    ScoringOption,
    TopOption,
    check_target,
    read_budget,
    read_readout,
    read_scoring,
)
from casestudy.cli.printing import escape, gap, in_options, preference, print_json, print_table, say
from casestudy.cli.progress import ProgressBar
from casestudy.errors import CasestudyError
from casestudy.results.names import SIDES
from casestudy.show.text import clean, visible

if TYPE_CHECKING:
    from casestudy.measure.explanation import Explanation
    from casestudy.measure.whole_answers import WholeAnswers
    from casestudy.model.model import Model


def explain(
    prompt: PromptArgument,
    answer: Annotated[
        str | None,
        typer.Option(
            "--answer", "-a", help="The answer to explain; by default the likeliest token."
        ),
    ] = None,
    counterpart: Annotated[
        str | None,
        typer.Option(
            "--counterpart",
            "-c",
            help="The answer to compare it with; by default the next token. Both may have several "
            "tokens, if both are given.",
        ),
    ] = None,
    scoring: ScoringOption = "sum",
    corrupted: Annotated[
        str | None,
        typer.Option(help="A partner of as many tokens; by default the best that is found."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="For answers of several tokens: a page with every token's account."
        ),
    ] = None,
    readout: ReadoutOption = None,
    top: TopOption = 10,
    model: ModelOption = "tiny",
    memory: MemoryOption = "2GB",
    reading: Reading = READING,
    as_json: JsonOption = False,
) -> None:
    """Explain one preference: the contrast, its ledger, the strongest parts and the checks.

    For one prompt, in seconds. `run` asks the same of many prompts, with intervals.
    """
    from casestudy.behaviour.prompts import Prompt
    from casestudy.measure.explanation import explain

    check_target("--out", out)
    budget = read_budget(memory)
    asked = Prompt(prompt, answer, counterpart, corrupted, readout=read_readout(readout))
    loaded, read = reading.prompt(model, asked)
    with ProgressBar("cells") as progress:
        found = explain(
            loaded,
            read,
            scoring=read_scoring(scoring),
            budget=budget,
            progress=progress.cells,
        )
    warnings = [in_options(warning) for warning in found.warnings]
    more: dict[str, Any] = {"prompt": prompt, "text": read.text, "warnings": warnings}
    if out is not None:
        more["page"] = _write(found, loaded, out)
    if as_json:
        print_json("explain", found.as_dict(top) | more)
        return
    _print_explanation(found, top)
    for warning in warnings:
        say(escape(f"Note: {warning}"))
    if "page" in more:
        print(f"page: {more['page']}")


def _write(found: Explanation, model: Model, path: Path) -> str:
    """Write the page of answers of several tokens.

    Raises: CasestudyError for answers of one token.
    """
    from casestudy.show.whole_answers import write_whole_answers

    if found.whole is None:
        raise CasestudyError(
            "--out for answers of one token each",
            allowed="answers of several tokens",
            hint="`casestudy run` writes a report for any behaviour file (`casestudy new`)",
        )
    facts = [("Model", model.name), ("Read from", model.source), ("Weights", model.weight_hash)]
    return str(write_whole_answers(found, path, facts))


def _print_explanation(found: Explanation, top: int) -> None:
    sides = ["".join(t.label for t in side.tokens) for side in (found.answer, found.counterpart)]
    print(preference(found.model, sides, found.logit_difference, found.unit))
    print(f"after {' '.join(map(visible, found.tokens))}\n")
    if found.whole is not None:
        _print_steps(found, found.whole)
    against = " against ".join(map(visible, sides))
    terms = sorted(found.ledger, key=lambda term: -abs(term[1]))
    print_table(
        f"direct contributions to {against}, in {found.unit}",
        ("term", found.unit),
        [(name, f"{term:+.3f}") for name, term in terms[:top]]
        + ([("the others", f"{sum(term for _, term in terms[top:]):+.3f}")] if terms[top:] else [])
        + [("sum", f"{sum(term for _, term in terms):+.3f}")],
    )
    print()
    _print_parts(found, top)
    print()
    print_table(
        "checks",
        ("what", "largest gap"),
        [(check.what, gap(check.gap, check.bound)) for check in found.checks],
    )


HOW = {
    "sum": "sums over their tokens",
    "mean": "means over their tokens",
    "first": "the first token in which they differ, alone",
}
"""What of the answers is compared."""


def _print_steps(found: Explanation, whole: WholeAnswers) -> None:
    """Both answers, token by token."""
    rows = []
    for step in whole.steps.rows():
        row = [str(step["place"] + 1)]
        for side in SIDES:
            log_p = step[f"{side}_log_prob"]
            row += ["", ""] if log_p is None else [visible(step[side]), f"{log_p:.3f}"]
        rows.append((*row, f"{step['weight'] * step['value']:+.3f}"))
    total = f"{found.logit_difference:+.3f}"
    print_table(
        f"the answers compared by {HOW[whole.scoring]}; tokens that both share are not listed",
        ("token", "answer", "log p", "counterpart", "log p", found.unit),
        [*rows, ("", "", "", "", "", total)],
    )
    print()


def _print_parts(found: Explanation, top: int) -> None:
    if found.partner is not None:
        before, left = found.partner.clean, found.partner.corrupted
        print(f"corrupted prompt ({clean(found.partner.edit)}): {clean(found.partner.text)}")
        what = "logit difference" if found.whole is None else "difference"
        print(f"{what}: clean {before:+.2f}, corrupted {left:+.2f}\n")
    shares = any(part.share is not None for part in found.parts)
    print_table(
        "causal effects: " + found.method,
        ("part", *(["share"] if shares else []), found.unit),
        [
            (
                part.name,
                *([f"{part.share:+.3f}"] if part.share is not None else []),
                f"{part.effect:+.3f}",
            )
            for part in found.parts[:top]
        ],
    )
