"""`casestudy generate`: have the model write, and explain each token that it wrote."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from casestudy.cli.options import (
    READING,
    JsonOption,
    ModelOption,
    Reading,
    say_notices,
)
from casestudy.cli.printing import gap, print_json, print_table, say
from casestudy.errors import CasestudyError
from casestudy.show.text import clean, visible

if TYPE_CHECKING:
    from casestudy.engine.generation import Generated
    from casestudy.model.model import Model
    from casestudy.results.result import Grid

STRONGEST = 3
"""Terms of each token's ledger that are printed."""
PAGE, BEHAVIOUR = "generated.html", "generated.toml"


def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to continue.")],
    model: ModelOption = "tiny",
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="At most so many tokens.")] = 20,
    temperature: Annotated[
        float,
        typer.Option(min=0, help="Divide logits by it and draw; 0 takes the likeliest token."),
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TOKEN", help="A token that ends the text too; repeatable."),
    ] = None,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Give each token's ledger against its runner-up."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A folder for a page with every token's account, and for the behaviour file that "
            "runs as a study; implies --explain."
        ),
    ] = None,
    reading: Reading = READING,
    as_json: JsonOption = False,
) -> None:
    """Have the model write after a prompt, and say how sure it was of each token, and why.

    Each token is weighed against its runner-up, the most probable other token.
    """
    from casestudy.behaviour.chat import written
    from casestudy.behaviour.prompts import Behaviour, Prompt
    from casestudy.engine.generation import generate as write
    from casestudy.measure.generated import ledger_of_steps

    loaded = reading.model(model)
    how = reading.conversations()
    subject = written(loaded, Behaviour("prompt", prompts=(Prompt(prompt),), chat=how))
    say_notices(loaded, subject)
    found = write(loaded, subject, n=n, temperature=temperature, seed=seed, stop=stop or ())
    accounts = ledger_of_steps(loaded, found) if explain or out else None
    files = _write(out, loaded, found, *accounts) if out and accounts else {}
    ledger = accounts[0] if accounts else None
    if as_json:
        about = {"model": found.model, "prompt": prompt, "text": found.prompt}
        print_json("generate", about | _as_dict(found, ledger) | files)
        return
    print(clean(found.text))
    print()
    _print_tokens(found, ledger)
    if found.stopped == "context":
        say("Stopped where the model's context is full.")
    for name, file in files.items():
        print(f"{name}: {file}")


def _as_dict(found: Generated, ledger: Grid | None) -> dict[str, Any]:
    tokens = [step.as_dict() for step in found.steps]
    checked: dict[str, Any] = {}
    if ledger is not None:
        for i, token in enumerate(tokens):
            rows = _terms(ledger, i)
            token["ledger"] = [{"term": name, "value": value} for name, value in rows]
        checked = {"largest_gap": ledger.error.get("gap"), "bound": ledger.error.get("bound")}
    settings = {"temperature": found.temperature, "seed": found.seed}
    return (
        {"generated": found.text, "tokens": tokens, "stopped": found.stopped} | settings | checked
    )


def _terms(ledger: Grid, step: int) -> list[tuple[str, float]]:
    """One token's ledger, in the model's order."""
    (contrast,) = ledger.axis("contrast").labels
    one = ledger.select(contrast=contrast, prompt=str(step))
    return list(zip(one.axis("term").labels, map(float, one.values), strict=True))


def _print_tokens(found: Generated, ledger: Grid | None) -> None:
    columns = ("token", "probability", "runner-up", "probability", "logits")
    rows = []
    for i, step in enumerate(found.steps):
        row = [visible(step.token), f"{step.prob:.2%}", visible(step.runner_up)]
        row += [f"{step.runner_up_prob:.2%}", f"{step.difference:+.3f}"]
        if ledger is not None:
            terms = sorted(_terms(ledger, i), key=lambda term: -abs(term[1]))[:STRONGEST]
            row.append(", ".join(f"{name} {value:+.2f}" for name, value in terms))
        rows.append(tuple(row))
    explained = () if ledger is None else ("strongest terms of the ledger, in logits",)
    print_table(f"{len(found)} tokens, each against its runner-up", columns + explained, rows)
    if ledger is not None:
        error = ledger.error
        say(f"largest gap of the ledgers: {gap(error.get('gap'), error.get('bound'))}")


def _write(
    folder: Path, model: Model, found: Generated, ledger: Grid, check: Grid
) -> dict[str, str]:
    """The page and the behaviour file, by name."""
    from casestudy.behaviour.files_written import write_behaviour
    from casestudy.show.generated import write_generated

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CasestudyError(
            f"--out {folder} cannot be made: {error.strerror}", hint="Give another folder"
        ) from error
    facts = [("Model", model.name), ("Read from", model.source), ("Weights", model.weight_hash)]
    page = write_generated(found, ledger, check, folder / PAGE, facts)
    write_behaviour(found.behaviour(), folder / BEHAVIOUR)
    return {"page": str(page), "behaviour": str(folder / BEHAVIOUR)}
