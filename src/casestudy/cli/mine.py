"""`casestudy mine`: prompts for a study, sampled from texts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from casestudy.cli.options import JsonOption, ModelOption, check_target
from casestudy.cli.printing import escape, print_json, print_table, say
from casestudy.cli.progress import ProgressBar
from casestudy.errors import CasestudyError

if TYPE_CHECKING:
    from casestudy.behaviour.mining import Mined


def mine(
    texts: Annotated[
        list[Path],
        typer.Argument(metavar="TEXT…", help="Files or folders: text, .jsonl or .parquet."),
    ],
    out: Annotated[Path, typer.Option(help="The behaviour file to write.")] = Path("prompts.jsonl"),
    preset: Annotated[
        str, typer.Option(help="full-stop-capitals, or decimal-point for those alone.")
    ] = "full-stop-capitals",
    n: Annotated[int, typer.Option("-n", "--n", min=1, help="How many contexts.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the sample.")] = 0,
    sampling: Annotated[
        str, typer.Option(help="balanced over the kinds of stop, or natural.")
    ] = "balanced",
    min_tokens: Annotated[int, typer.Option(help="Shortest context, BOS included.")] = 4,
    max_tokens: Annotated[int, typer.Option(help="Longest context, BOS included.")] = 128,
    shard: Annotated[str, typer.Option(metavar="I/K", help="Read the I-th of K parts.")] = "1/1",
    text_field: Annotated[
        str, typer.Option(help="Where .jsonl and .parquet rows keep their text.")
    ] = "text",
    model: ModelOption = "tiny",
    as_json: JsonOption = False,
) -> None:
    """Sample contexts that end in a full stop from texts, as a behaviour file for `run`."""
    from casestudy.behaviour.files_written import write_behaviour
    from casestudy.behaviour.mining import mine, read_sampling, read_shard
    from casestudy.model.loading import load_tokenizer

    if out.suffix != ".jsonl":
        raise CasestudyError(f"--out {out}", allowed="a name that ends in .jsonl")
    check_target("--out", out)
    tokenizer = load_tokenizer(model)
    with ProgressBar("reading") as progress:
        mined = mine(
            texts,
            tokenizer,
            preset=preset,
            n=n,
            seed=seed,
            sampling=read_sampling(sampling),
            min_tokens=min_tokens,
            max_tokens=max_tokens,
            shard=read_shard(shard),
            text_field=text_field,
            progress=progress.read,
        )
    write_behaviour(mined.behaviour, out)
    if as_json:
        counts = {"found": mined.found, "taken": mined.taken, "skipped": mined.skipped}
        print_json("mine", {"file": str(out), "documents": mined.documents, **counts})
    else:
        _print_mined(mined)
        print(out)


def _print_mined(mined: Mined) -> None:
    print_table(
        f"full stops in {mined.documents:,} texts",
        ("kind", "found", "taken"),
        [(kind, f"{n:,}", f"{mined.taken.get(kind, 0):,}") for kind, n in mined.found.items()],
    )
    for reason, count in mined.skipped.items():
        say(f"left out: {count:,} {escape(reason)}")
