"""`casestudy parts`: the cards of a stored study's strongest parts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from casestudy.cli.options import (
    DeviceOption,
    JsonOption,
    MemoryOption,
    read_behaviour,
    read_budget,
    read_study_model,
)
from casestudy.cli.part import telling
from casestudy.cli.printing import print_json, print_table
from casestudy.cli.progress import ProgressBar
from casestudy.errors import StudyError

if TYPE_CHECKING:
    from casestudy.model.model import Model
    from casestudy.study.part_cards import TopPart
    from casestudy.study.study import Study


def parts(
    study: Annotated[Path, typer.Argument(metavar="DIR", help="A study's folder.")],
    corpus: Annotated[
        list[Path] | None,
        typer.Option(metavar="TEXT", help="Files or folders of text; repeatable."),
    ] = None,
    heads: Annotated[int, typer.Option(min=0, help="How many heads.")] = 3,
    neurons: Annotated[int, typer.Option(min=0, help="How many neurons.")] = 3,
    part: Annotated[
        list[str] | None,
        typer.Option(metavar="PART", help='These parts instead, such as "head 0.2"; repeatable.'),
    ] = None,
    behaviour: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The study's behaviour file, where it is no preset."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="As for `run`; the study's by default.")
    ] = None,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="How many strongest contexts.")] = 20,
    loss_windows: Annotated[
        int, typer.Option(min=1, help="Windows on which the next-token loss is measured.")
    ] = 32,
    memory: MemoryOption = "2GB",
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Make the cards of a study's strongest heads and neurons, beside its report, which links them.

    Those with the largest effects in its patch grids, or, where nothing was patched, those with
    the largest direct contributions.
    """
    from casestudy.measure.part_card import CardSettings
    from casestudy.results.part_card import PAGE
    from casestudy.show.part_card import write_part_card, write_study_cards
    from casestudy.show.report import write_report
    from casestudy.show.stored import StoredStudy
    from casestudy.study.part_cards import make_cards, top_parts
    from casestudy.study.study import open_study

    found = open_study(study)
    chosen = dict.fromkeys(part or ()) or {
        top.name: top for top in top_parts(found, heads=heads, neurons=neurons)
    }
    prompts = read_behaviour(behaviour or _preset_of(found))
    loaded = _model_of(found, model, device)
    rows: list[dict[str, Any]] = []
    with ProgressBar("cards") as bar:
        for card, folder in make_cards(
            found,
            loaded,
            prompts,
            list(chosen),
            corpus=[*corpus] if corpus else None,
            settings=CardSettings(k=k, loss_windows=loss_windows, budget=read_budget(memory)),
            progress=telling(bar),
        ):
            page = write_part_card(card, folder / PAGE)
            top = chosen.get(card.part)
            rows.append({"part": card.part, **_why(top), "card": str(folder), "page": str(page)})
    write_study_cards(found.store.folder)  # once all are there, each links the others
    report = write_report(found.store)
    if as_json:
        print_json("parts", {"folder": str(study), "cards": rows, "report": str(report)})
        return
    _print_cards(rows, StoredStudy.read(found.store).unit, found.store.folder)
    print(f"report: {report}")


def _preset_of(study: Study) -> str:
    """The preset whose prompts a study has.

    Raises: StudyError where its behaviour is no preset's.
    """
    from casestudy.behaviour.preset_names import PRESETS

    name = str(study.manifest["behaviour"]["name"])
    if name not in PRESETS:
        raise StudyError(
            f"{study.store.folder} is a study of {name!r}, which is no preset",
            hint="Give the file that it was run on with --behaviour FILE",
        )
    return name


def _model_of(study: Study, model: str | None, device: str) -> Model:
    """The study's model, read as the study read it."""
    about, settings = study.manifest["model"], study.manifest.get("settings", {})
    bos, special = settings.get("prepend_bos"), bool(settings.get("parse_special"))
    known, dtype = str(about["name"]), str(about["dtype"])
    loaded = read_study_model(model, known, device, dtype, bos, special)
    return loaded.with_strict_tokens(bool(settings.get("strict_tokens")))


def _print_cards(rows: list[dict[str, Any]], unit: str, study: Path) -> None:
    """The cards, with their pages in the study's folder: short enough for a narrow table."""
    print_table(
        "cards",
        ("part", "chosen by", unit, "page in the study’s folder"),
        [
            (
                row["part"],
                row["by"] or "named",
                "" if row["value"] is None else f"{row['value']:+.3f}",
                Path(row["page"]).relative_to(study).as_posix(),
            )
            for row in rows
        ],
    )


def _why(top: TopPart | None) -> dict[str, Any]:
    """What a part was chosen by, and its value there."""
    return {"by": None if top is None else top.by, "value": None if top is None else top.value}
