"""`casestudy explain`: one prompt and two tokens, everything quick about them in one object."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from casestudy.cli.options import (
    BosOption,
    ChatOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    MemoryOption,
    ModelOption,
    PrefixOption,
    PromptArgument,
    SpecialOption,
    TemplateOption,
    TopOption,
    read_budget,
    read_chat,
    read_model,
    read_prompt,
)
from casestudy.cli.printing import escape, gap, in_options, preference, print_json, print_table, say
from casestudy.cli.progress import ProgressBar
from casestudy.show.text import clean, visible

if TYPE_CHECKING:
    from casestudy.measure.explanation import Explanation


def explain(
    prompt: PromptArgument,
    answer: Annotated[
        str | None,
        typer.Option("--answer", "-a", help="The token to explain; by default the likeliest."),
    ] = None,
    counterpart: Annotated[
        str | None,
        typer.Option(
            "--counterpart", "-c", help="The token to compare it with; by default the next."
        ),
    ] = None,
    corrupted: Annotated[
        str | None,
        typer.Option(help="A partner of as many tokens; by default the best that is found."),
    ] = None,
    top: TopOption = 10,
    model: ModelOption = "tiny",
    memory: MemoryOption = "2GB",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    bos: BosOption = None,
    special: SpecialOption = False,
    chat: ChatOption = False,
    prefix: PrefixOption = "",
    template: TemplateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Explain one preference: the contrast, its ledger, the strongest parts and the checks.

    For one prompt, in seconds. `run` asks the same of many prompts, with intervals.
    """
    from casestudy.behaviour.prompts import Prompt
    from casestudy.measure.explanation import explain

    loaded = read_model(model, device, dtype, bos, special)
    budget = read_budget(memory)
    given = Prompt(prompt, corrupted=corrupted)
    loaded, read = read_prompt(loaded, given, read_chat(chat, prefix, template))
    with ProgressBar("cells") as progress:
        found = explain(
            loaded,
            read.text,
            answer,
            counterpart,
            corrupted=read.corrupted,
            budget=budget,
            progress=progress.cells,
        )
    warnings = [in_options(warning) for warning in found.warnings]
    if as_json:
        more = {"prompt": prompt, "text": read.text, "warnings": warnings}
        print_json("explain", found.as_dict(top) | more)
        return
    _print_explanation(found, top)
    for warning in warnings:
        say(escape(f"Note: {warning}"))


def _print_explanation(found: Explanation, top: int) -> None:
    sides = [side.tokens[0].label for side in (found.answer, found.counterpart)]
    print(preference(found.model, sides, found.logit_difference))
    print(f"after {' '.join(map(visible, found.tokens))}\n")
    against = " against ".join(map(visible, sides))
    terms = sorted(found.ledger, key=lambda term: -abs(term[1]))
    print_table(
        f"direct contributions to {against}, in logits",
        ("term", "logits"),
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


def _print_parts(found: Explanation, top: int) -> None:
    if found.partner is not None:
        before, left = found.partner.clean, found.partner.corrupted
        print(f"corrupted prompt ({clean(found.partner.edit)}): {clean(found.partner.text)}")
        print(f"logit difference: clean {before:+.2f}, corrupted {left:+.2f}\n")
    shares = any(part.share is not None for part in found.parts)
    print_table(
        "causal effects: " + found.method,
        ("part", *(["share"] if shares else []), "logits"),
        [
            (
                part.name,
                *([f"{part.share:+.3f}"] if part.share is not None else []),
                f"{part.effect:+.3f}",
            )
            for part in found.parts[:top]
        ],
    )
