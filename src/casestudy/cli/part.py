"""`casestudy part`: the card of one head, neuron or direction."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from casestudy.cli.options import (
    BosOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    MemoryOption,
    read_behaviour,
    read_budget,
    read_model,
    say_notices,
)
from casestudy.cli.printing import decimal, escape, interval, print_json, print_table, say
from casestudy.cli.progress import ProgressBar
from casestudy.errors import CasestudyError
from casestudy.results import names
from casestudy.show.text import clean, shorten, visible

if TYPE_CHECKING:
    from casestudy.engine.packing import Tell
    from casestudy.results.part_card import PartCard

SHOWN = 5
"""Rows of each table that are printed."""
_READS = {"prompts": names.PART_READS, "contexts": names.PART_READS_CONTEXTS}


def part(
    model: Annotated[
        str,
        typer.Argument(help="A model: tiny, smollm2, a folder, a .gguf file, or a hub id."),
    ],
    part: Annotated[
        str, typer.Argument(help='"head 0.2", "mlp 4 neuron 312", or a direction\'s file.')
    ],
    corpus: Annotated[
        list[Path] | None,
        typer.Option(metavar="TEXT", help="Files or folders of text; repeatable."),
    ] = None,
    behaviour: Annotated[
        str | None,
        typer.Option(metavar="[PRESET|FILE]", help="Prompts with a contrast."),
    ] = None,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="How many strongest contexts.")] = 20,
    window: Annotated[
        int | None, typer.Option(min=2, help="Tokens of a window of the corpus; 128 by default.")
    ] = None,
    loss_windows: Annotated[
        int, typer.Option(min=1, help="Windows on which the next-token loss is measured.")
    ] = 32,
    out: Annotated[
        Path | None, typer.Option(help="A folder for the stored card and its page.")
    ] = None,
    memory: MemoryOption = "2GB",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    bos: BosOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the card of one part: where it is active, what it writes, reads and is needed for."""
    from casestudy.measure.part_card import part as make_card

    loaded = read_model(model, device, dtype, bos)
    prompts = None if behaviour is None else read_behaviour(behaviour)
    if prompts is not None:
        say_notices(loaded, prompts)
    with ProgressBar("card") as bar:
        card = make_card(
            loaded,
            part,
            behaviour=prompts,
            corpus=[*corpus] if corpus else None,
            k=k,
            window=window,
            loss_windows=loss_windows,
            budget=read_budget(memory),
            progress=telling(bar),
        )
    files = write_card(card, out) if out is not None else {}
    if as_json:
        print_json("part", card.as_dict() | files)
        return
    _print_card(card)
    for name, file in files.items():
        print(f"{name}: {file}")


def telling(bar: ProgressBar) -> Tell:
    """Shows the progress of a card: bytes of the corpus, then the steps after it."""
    from casestudy.engine.packing import Progress

    def tell(progress: Progress) -> None:
        if progress.stage == "corpus":
            bar.read(progress.done, progress.total)
        elif progress.total:
            bar.of(progress.stage, progress)

    return tell


def write_card(card: PartCard, folder: Path) -> dict[str, str]:
    """The stored card and its page, by name."""
    from casestudy.results.part_card import PAGE
    from casestudy.show.part_card import write_part_card

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CasestudyError(
            f"--out {folder} cannot be made: {error.strerror}", hint="Give another folder"
        ) from error
    stored = card.write(folder)
    return {"card": str(stored), "page": str(write_part_card(card, folder / PAGE))}


def _print_card(card: PartCard) -> None:
    """The main figures of a card."""
    print(f"{card.part} of {clean(card.about['model']['name'])}\n")
    found = card.as_dict()
    _print_active(card)
    tokens = card.rows(names.PART_TOKENS)
    for side in ("promoted", "demoted"):
        some = [visible(row["token"]) for row in tokens if row["side"] == side][: 2 * SHOWN]
        if some:
            print(f"{side}: {' '.join(some)}")
    if sources := card.rows(names.PART_SOURCES):
        print_table(
            "source tokens, by the attention they get, and what the head writes for each",
            ("source", "attention", "promotes"),
            [
                (
                    visible(row["source"]),
                    f"{row['attention']:.1%}",
                    " ".join(map(visible, row["promoted"])),
                )
                for row in sources[:SHOWN]
            ],
        )
    for title, rows in (
        ("direct contribution, in logits", found["writes"]["share"]),
        *(
            (f"what it reads, at {clean(card.about['reads_at'][name])}", _largest(found, key))
            for key, name in _READS.items()
            if key in found["reads"]
        ),
        ("replaced: change of the logit difference", found["needed"].get("behaviour", [])),
        ("replaced: change of the next-token loss, in nats", _losses(found)),
    ):
        if rows:
            print()
            print_table(title, ("", "mean", "95 % interval", "n"), [_cells(row) for row in rows])
    for what, why in card.absent:
        say(escape(f"{what}: not measured, {why}"))
    for note in card.notes:
        say(escape(f"Note: {note}"))


def _print_active(card: PartCard) -> None:
    strongest = [r for r in card.rows(names.PART_CONTEXTS) if r["shown"] == "strongest"]
    if strongest:
        strongest.sort(key=lambda row: -abs(row["value"]))
        print_table(
            "strongest contexts",
            ("value", "context", "where"),
            [
                (
                    f"{row['value']:+.2f}",
                    _marked(row),
                    f"{shorten(clean(row['document']), 24)}:{row['line']}",
                )
                for row in strongest[: 2 * SHOWN]
            ],
        )
        print()
    kinds = [r for r in card.rows(names.PART_SELECTIVITY) if r["lower"] is not None]
    kinds.sort(key=lambda row: -abs(row["auroc"] - 0.5))
    if kinds:
        print_table(
            "positions that its activity tells apart",
            ("positions", "against", "in", "AUROC", "95 % interval"),
            [
                (
                    *(clean(row["kind"]), clean(row["against"]), row["where"]),
                    *(decimal(row["auroc"]), interval((row["lower"], row["upper"]))),
                )
                for row in kinds[:SHOWN]
            ],
        )
        print()


def _marked(row: dict[str, Any]) -> str:
    """A context's last tokens up to its position, which is between brackets."""
    tokens = [clean(str(token)).replace("\n", "↵") for token in row["tokens"]]
    before, at = "".join(tokens[: row["at"]]), tokens[row["at"]]
    return f"{'…' if len(before) > 48 else ''}{before[-48:]}[{at}]"


def _largest(found: dict[str, Any], where: str) -> list[dict[str, Any]]:
    terms = sorted(found["reads"][where]["terms"], key=lambda row: -abs(row["mean"]))
    return terms[: 2 * SHOWN]


def _losses(found: dict[str, Any]) -> list[dict[str, Any]]:
    rows = found["needed"].get("corpus", [])
    return [
        {"kind": row["kind"], "mean": row["difference"]}
        | {name: row[name] for name in ("lower", "upper", "n")}
        for row in rows
    ]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    labels = [clean(v) for key, v in row.items() if key not in ("mean", "lower", "upper", "n")]
    ends = interval((row["lower"], row["upper"]))
    return (" ".join(labels), f"{row['mean']:+.3f}", ends, f"{row['n']:,}")
