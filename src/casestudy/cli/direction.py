"""`casestudy direction`: a behaviour as a direction of one site, with the evidence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from casestudy.cli.options import (
    READING,
    BehaviourArgument,
    FamilyOption,
    JsonOption,
    MemoryOption,
    ModelOption,
    Reading,
    check_folder,
    default_folder,
    read_behaviour,
    read_budget,
)
from casestudy.cli.printing import decimal, interval, print_json, print_table
from casestudy.cli.progress import ProgressBar

if TYPE_CHECKING:
    from casestudy.measure.directions import DirectionChoices

CARD_FILE = "direction.json"
FILES = {"difference of means": "means.safetensors", "trained": "trained.safetensors"}


LayerOption = Annotated[
    int | None, typer.Option(help="The layer, from 0; the middle one by default.")
]
SiteOption = Annotated[
    str, typer.Option(help="resid_pre, resid_mid, resid_post, attn_out or mlp_out.")
]
RoleOption = Annotated[
    str, typer.Option(help="A role of the prompts, last (the last token), or all positions.")
]
RandomOption = Annotated[
    int, typer.Option(help="How many random directions of each rank to compare with.")
]
CoefficientsOption = Annotated[
    str, typer.Option(help="Multiples of the mean difference to steer by.")
]
TextOption = Annotated[
    list[Path] | None,
    typer.Option(
        help="Other text (files or folders), to measure what steering costs there; may be repeated."
    ),
]
WindowsOption = Annotated[
    int, typer.Option(help="How many windows of 128 tokens of the other text.")
]


def direction(
    behaviour: BehaviourArgument = "full-stop-capitals",
    model: ModelOption = "tiny",
    layer: LayerOption = None,
    site: SiteOption = "resid_post",
    role: RoleOption = "last",
    rank: Annotated[int, typer.Option(help="Of the trained directions, 1 to 8.")] = 1,
    steps: Annotated[int, typer.Option(help="Of the training.")] = 100,
    random: RandomOption = 10,
    coefficients: CoefficientsOption = "-4,-2,-1,-0.5,0.5,1,2,4",
    text: TextOption = None,
    windows: WindowsOption = 32,
    out: Annotated[
        Path | None, typer.Option(help="A folder; studies/BEHAVIOUR-MODEL-direction by default.")
    ] = None,
    metric: Annotated[
        str, typer.Option(help="What the direction must carry: contrast, class or probability.")
    ] = "contrast",
    family: FamilyOption = None,
    seed: Annotated[
        int, typer.Option(help="Seed of the split, the training and the random directions.")
    ] = 0,
    memory: MemoryOption = "2GB",
    reading: Reading = READING,
    as_json: JsonOption = False,
) -> None:
    """Find the direction of one site that carries a behaviour, and steer by it."""
    from casestudy.measure.alignment_search import Training
    from casestudy.measure.directions import DirectionChoices
    from casestudy.measure.metrics import read_kind
    from casestudy.measure.subspaces import Spot
    from casestudy.study.searches import behaviour_direction

    kind = read_kind(metric)
    loaded = reading.model(model)
    subject = read_behaviour(behaviour, reading.conversations())
    middle = (loaded.config.n_layers - 1) // 2
    choices = DirectionChoices(
        Spot(site, middle if layer is None else layer, role),
        rank=rank,
        training=Training(steps=steps, seed=seed),
        random_sets=random,
        coefficients=_numbers(coefficients),
        windows=windows,
        seed=seed,
    )
    folder = out or default_folder(subject.name, model, "direction")
    check_folder("--out", folder, CARD_FILE)
    with ProgressBar("direction") as progress:
        card = behaviour_direction(
            loaded,
            subject,
            choices,
            metric=kind,
            family=family,
            other_text=None if text is None else _paragraphs(text),
            budget=read_budget(memory),
            progress=progress,
        )
    card.save(folder / CARD_FILE)
    for name, subspace in card.subspaces.items():
        subspace.save(folder / FILES[name])
    found = card.as_dict()
    directions = [str(folder / FILES[name]) for name in card.subspaces]
    if as_json:
        print_json(
            "direction", {**found, "card": str(folder / CARD_FILE), "directions": directions}
        )
        return
    _print(found, choices, f"{subject.name} on {loaded.name}: {choices.spot}")
    for file in (folder / CARD_FILE, *directions):
        print(file)


def _numbers(text: str) -> tuple[float, ...]:
    """Numbers between commas.

    Raises: MeasureError for what is no number.
    """
    from casestudy.errors import MeasureError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise MeasureError(
            f"--coefficients {text}", allowed="numbers between commas, such as -1,1,2"
        ) from None


def _paragraphs(paths: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """(document, text) of every paragraph."""
    from casestudy.behaviour.corpus import Reader, files_of

    reader = Reader(files_of(paths), "text", Counter(), None)
    return ((paragraph.document, paragraph.text) for paragraph in reader.paragraphs())


def _print(found: dict[str, Any], choices: DirectionChoices, title: str) -> None:
    print_table(
        f"{title}; found on {found['n_found_on']} pairs, shares on pairs held out",
        ("directions", "rank", "exchanged", "share", "interval", "pairs"),
        [
            (
                row["directions"],
                str(row["rank"] or ""),
                row["way"],
                decimal(row["value"]),
                interval([row["lower"], row["upper"]]),
                str(row["n"]),
            )
            for row in found["shares"]
            if row["pairs"] == "held out"
        ],
    )
    cells = {(row["method"], row["run"], row["coefficient"]): row for row in found["steering"]}
    cells |= {(row["method"], "text", row["coefficient"]): row for row in found.get("cost", [])}
    runs = ("clean", "corrupted", "text")
    rows = [
        (
            method,
            f"{coefficient:g}",
            *(_cell(cells.get((method, run, coefficient))) for run in runs),
        )
        for method in dict.fromkeys(row["method"] for row in found["steering"])
        for coefficient in choices.coefficients
    ]
    columns = ("method", "coefficient", "clean prompts", "corrupted prompts", "loss elsewhere")
    print_table(f"steered: {found['metric_name']} ({found['unit']})", columns, rows)


def _cell(row: dict[str, Any] | None) -> str:
    """A mean with its interval; nothing if it was not measured."""
    if row is None:
        return ""
    return f"{row['value']:+.3f} ({interval([row['lower'], row['upper']])})"
