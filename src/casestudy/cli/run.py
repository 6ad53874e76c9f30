"""`casestudy run` and `report`: a whole study, kept in a folder, and its page."""

from __future__ import annotations

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
    OnlyOption,
    Reading,
    ScoringOption,
    SkipOption,
    TimeOption,
    default_folder,
    read_behaviour,
    read_budget,
    read_executor,
    read_scoring,
    read_stages,
    saying_notices,
)
from casestudy.cli.printing import (
    decimal,
    escape,
    finite,
    gap,
    interval,
    print_json,
    print_table,
    print_words,
    say,
)
from casestudy.cli.progress import ProgressBar
from casestudy.results import names
from casestudy.results.names import B_U

if TYPE_CHECKING:
    from casestudy.engine.packing import Progress, Tell
    from casestudy.study.study import Study


def run(
    behaviour: BehaviourArgument = "full-stop-capitals",
    model: ModelOption = "tiny",
    out: Annotated[
        Path | None, typer.Option(help="The study's folder; studies/BEHAVIOUR-MODEL by default.")
    ] = None,
    reading: Reading = READING,
    only: OnlyOption = None,
    skip: SkipOption = None,
    family: FamilyOption = None,
    scoring: ScoringOption = "sum",
    neurons: Annotated[
        bool,
        typer.Option(
            "--neurons",
            help="Look for the heads and single neurons that carry the behaviour too; a finished "
            "study is continued with it.",
        ),
    ] = False,
    memory: MemoryOption = "2GB",
    budget: TimeOption = None,
    executor: Annotated[str, typer.Option(help="local, or ray for several machines.")] = "local",
    workers: Annotated[int, typer.Option(min=1, help="How many Ray workers.")] = 2,
    address: Annotated[
        str | None,
        typer.Option(help="Address of a running Ray cluster; by default one is started."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a study and write its report. The same command continues a study that was killed."""
    from casestudy.study.settings import Execution, NeuronSearch, Settings
    from casestudy.study.study import study

    chosen = read_stages(only, skip)
    loaded = reading.model(model)
    subject = read_behaviour(behaviour, reading.conversations())
    folder = out or default_folder(subject.name, model)
    with ProgressBar("prompts") as progress:
        finished = study(
            loaded,
            subject,
            out=folder,
            only=chosen,
            settings=Settings(
                family=family,
                scoring=read_scoring(scoring),
                neurons=NeuronSearch() if neurons else None,
            ),
            execution=Execution(
                executor=read_executor(executor),
                workers=workers,
                address=address,
                budget=read_budget(memory, budget),
            ),
            progress=saying_notices(folder, subject, _renewing(folder, progress)),
        )
    path = finished.report()
    _say_left_out(finished)
    summary, figures = _summary(finished), headline(finished)
    if as_json:
        found = figures | {"summary": summary} | _grounds(finished)
        print_json("run", found | {"folder": str(folder), "report": str(path)})
    else:
        _print_summary(summary)
        _print_headline(figures)
        print(f"report: {path}")
    if figures.get("n") == 0:
        say("No prompt has an answer that could be measured; the reasons are above.")
        raise typer.Exit(1)


def _say_left_out(study: Study) -> None:
    """How many prompts entered no contrast and why, on stderr: a line for each kind of reason."""
    from casestudy.show.sections.grounds import kinds_of

    rows = study.tables[names.PROMPTS].rows() if names.PROMPTS in study.tables else []
    reasons = [str(row["error"]) for row in rows if row.get("error")]
    for first, count in kinds_of(reasons):
        said = first if count == 1 else f"{first} (the first of {count:,})"
        say(escape(f"{count:,} of {len(rows):,} prompts left out: {said}"))


def _renewing(folder: Path, show: Tell) -> Tell:
    """Shows progress, and writes the report anew after each stage but the last, which ends the
    study."""
    from casestudy.show.report import write_report
    from casestudy.study.store import Store
    from casestudy.study.study import STUDY

    def tell(progress: Progress) -> None:
        show(progress)
        if progress.stage == STUDY and progress.done < progress.total:
            write_report(Store.open(folder))

    return tell


def _summary(study: Study) -> list[str]:
    """The report's first paragraphs."""
    from casestudy.show.sections.summary import plain, sentences
    from casestudy.show.stored import StoredStudy

    return [plain(one) for one in sentences(StoredStudy.read(study.store))]


def _print_summary(summary: list[str]) -> None:
    for sentence in summary:
        print_words(sentence)
        print()


def _grounds(study: Study) -> dict[str, Any]:
    """What the answer stands on: prompts left out, corrupted prompts, and what is absent."""
    rows = study.tables[names.PROMPTS].rows() if names.PROMPTS in study.tables else []
    excluded = [{"prompt": r["prompt"], "why": r["error"]} for r in rows if r.get("error")]
    return {
        "excluded": excluded,
        "families": study.manifest.get("family_choice", {}),
        "not_measured": study.manifest.get("not_measured", []),
    }


def report(
    folder: Annotated[Path, typer.Argument(help="A study's folder.")],
    as_json: JsonOption = False,
) -> None:
    """Make report.html of a stored study again; no model is needed."""
    from casestudy.show.report import write_report
    from casestudy.study.store import Store

    path = write_report(Store.open(folder))
    if as_json:
        print_json("report", {"report": str(path)})
    else:
        print(path)


def headline(study: Study) -> dict[str, Any]:
    """The figures a reader wants first; those that were not measured are absent."""
    named = {
        "model": study.manifest["model"]["name"],
        "behaviour": study.manifest["behaviour"]["name"],
    }
    return named | (_difference(study) if names.mean(names.LOGIT_DIFFERENCE) in study.grids else {})


def _difference(study: Study) -> dict[str, Any]:
    """The mean logit difference of the main contrast, and how its ledger closes."""
    mean = study.grids[names.mean(names.LOGIT_DIFFERENCE)]
    assert mean.n is not None
    labels = mean.axes[0].labels
    main = names.main_contrast(labels)
    at = labels.index(main)
    value = float(mean.values[at])
    figures = {
        "contrast": main,
        "unit": "nats" if main in (names.WHOLES["sum"], names.WHOLES["mean"]) else "logits",
        "n": int(mean.n[at]),
        "logit_difference": finite(value),
        "interval": [finite(end[at]) for end in (mean.lower, mean.upper) if end is not None],
        "groups": _by_group(study, main),
    }
    if names.mean(names.LEDGER) not in study.grids or not figures["n"]:
        return figures
    account = study.grids[names.mean(names.LEDGER)]
    terms = dict(
        zip(account.axis("term").labels, account.select(contrast=main).values, strict=True)
    )
    if B_U in terms:  # only a norm with a bias has such a term
        figures["without_b_U"] = finite(value - terms[B_U])
    return figures | {
        "largest_gap": account.error.get("gap"),
        "bound": account.error.get("bound"),
    }


def _by_group(study: Study, contrast: str) -> list[dict[str, Any]]:
    """Each group's mean logit difference."""
    if names.by_group(names.LOGIT_DIFFERENCE) not in study.grids:
        return []
    grid = study.grids[names.by_group(names.LOGIT_DIFFERENCE)].select(contrast=contrast)
    assert grid.n is not None
    assert grid.lower is not None
    assert grid.upper is not None
    return [
        {
            "group": name,
            "n": int(grid.n[i]),
            "logit_difference": finite(grid.values[i]),
            "interval": [finite(grid.lower[i]), finite(grid.upper[i])],
        }
        for i, name in enumerate(grid.axis("group").labels)
    ]


def _print_headline(h: dict[str, Any]) -> None:
    if "logit_difference" not in h:
        return
    rows = [
        ("prompts with an answer", str(h["n"])),
        (f"mean {_quantity(h)}", decimal(h["logit_difference"])),
        ("95 % interval", interval(h["interval"])),
    ]
    if "without_b_U" in h:
        rows.append(("the same without b_U", decimal(h["without_b_U"])))
    if "largest_gap" in h:
        rows.append(("largest gap of the ledger", gap(h["largest_gap"], h["bound"])))
    print_table(f"{h['behaviour']} on {h['model']}", ("figure", "value"), rows)
    if h["groups"]:
        print_table(
            f"mean {_quantity(h)}, by group",
            ("group", "prompts", "mean", "95 % interval"),
            [_group_row(group) for group in h["groups"]],
        )


def _quantity(h: dict[str, Any]) -> str:
    """What the main contrast is, in words."""
    if h["contrast"] in names.WHOLES.values():
        return f"difference of the answers ({h['contrast']}), {h['unit']}"
    return f"logit difference, answer − {h['contrast']}"


def _group_row(group: dict[str, Any]) -> tuple[str, ...]:
    mean, ends = decimal(group["logit_difference"]), interval(group["interval"])
    return group["group"], str(group["n"]), mean, ends
