"""`casestudy compare` and `check`: two studies, several checkpoints, or a file of findings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from casestudy.cli.options import (
    CONVERSATIONS,
    BosOption,
    Conversations,
    DeviceOption,
    DtypeOption,
    JsonOption,
    MemoryOption,
    TopOption,
    check_target,
    names_in,
    page_name,
    read_behaviour,
    read_budget,
    read_model,
    say_notices,
)
from casestudy.cli.printing import (
    bar,
    decimal,
    escape,
    finite,
    interval,
    print_json,
    print_table,
    print_words,
    say,
    write_figure,
)
from casestudy.cli.progress import ProgressBar
from casestudy.errors import CasestudyError
from casestudy.show.text import count, how_they_differ

if TYPE_CHECKING:
    from casestudy.claims.check import Checked, Outcome
    from casestudy.claims.compare import Comparison
    from casestudy.claims.emergence import Emergence
    from casestudy.model.chat import Chat


FigureOption = Annotated[
    Path | None, typer.Option(help="With --model: write the curves as a page of its own.")
]


def compare(
    studies: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="A B | BEHAVIOUR",
            help="Two studies' folders; or, with --model, a preset or a behaviour file.",
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="A model, or a folder of checkpoints; repeatable."),
    ] = None,
    revisions: Annotated[
        str | None, typer.Option(metavar="R1,R2,…", help="Revisions of the one model, in order.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the page FILE.html; with --model, the folder for the studies."),
    ] = None,
    answers: Annotated[
        str,
        typer.Option(help="With --model: answers of the last checkpoint (last) or of each (own)."),
    ] = "last",
    only: Annotated[
        str | None, typer.Option(help="With --model: measurements, comma-separated, or all.")
    ] = None,
    two_samples: Annotated[
        bool, typer.Option("--two-samples", help="Do not pair the prompts that both studies have.")
    ] = False,
    top: TopOption = 20,
    figure: FigureOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    bos: BosOption = None,
    conversations: Conversations = CONVERSATIONS,
    as_json: JsonOption = False,
) -> None:
    """Compare two studies, or one behaviour on several checkpoints of a model."""
    given = studies or []
    check_target("--figure", figure)
    chat = conversations.conversations()
    if not model:
        _check_two(given, chat)
        _compare_two(given[0], given[1], two_samples, page_name(out), top, as_json)
        return
    if len(given) > 1:
        raise CasestudyError(f"{' '.join(given)} with --model", allowed="one behaviour")
    from casestudy.claims.emergence import checkpoints, emergence, read_answers

    measured = _names_only(only)
    named = checkpoints(model, revisions.split(",") if revisions else ())
    behaviour = read_behaviour(given[0] if given else "full-stop-capitals", chat)
    folder = out or Path("studies") / f"{behaviour.name}-{Path(model[0]).name}-checkpoints"
    with ProgressBar("prompts") as progress:
        emerged = emergence(
            named,
            behaviour,
            out=folder,
            answers=read_answers(answers),
            only=measured,
            device=device,
            dtype=dtype,
            prepend_bos=bos,
            progress=progress.of,
        )
    notes = (note for study in emerged.studies for note in study.manifest["notes"])
    for note in dict.fromkeys(notes):
        if note not in behaviour.notes:  # those are said when the file is read
            say(escape(note))
    for same in emerged.same_weights:
        say(escape(same))
    if as_json:
        print_json("compare", emerged.as_dict() | {"folder": str(folder)})
    else:
        _print_emergence(emerged)
        say(f"studies: {escape(str(folder))}")
    write_figure(emerged.contrasts, figure)


def _check_two(given: Sequence[str], chat: Chat | None) -> None:
    """Raise CasestudyError unless two stored studies are asked for, and nothing of checkpoints."""
    if chat is not None:
        raise CasestudyError(
            "--chat for two studies",
            allowed="--chat with --model",
            hint="Stored studies are compared as they were read",
        )
    if len(given) != 2:
        raise CasestudyError(
            f"{count(len(given), 'study', 'studies')} and no --model",
            allowed="two studies' folders, or a behaviour with --model given twice or more",
        )


def _names_only(only: str | None) -> Sequence[str] | None:
    """The measurements of --only; None for all."""
    from casestudy.claims.emergence import ONLY

    if only is None:
        return ONLY
    return None if only == "all" else names_in("--only", [only])


def check(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A TOML file of findings; docs/checking-explanations.md has the format.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Measure on this model instead of the file's."),
    ] = None,
    behaviour: Annotated[
        str | None, typer.Option(help="Instead of the file's: a preset or a behaviour file.")
    ] = None,
    memory: MemoryOption = "2GB",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    conversations: Conversations = CONVERSATIONS,
    as_json: JsonOption = False,
) -> None:
    """Measure every finding of a file on a model; the exit code is 1 unless all of them hold."""
    from casestudy.behaviour.steps import any_several
    from casestudy.claims.check import check, read_findings

    findings = read_findings(file)
    name = model or findings.model
    loaded = None if name is None else read_model(name, device, dtype)
    budget = read_budget(memory)
    subject = read_behaviour(behaviour or findings.behaviour, conversations.conversations())
    if loaded is not None:
        bos = findings.prepend_bos
        say_notices(loaded if bos is None else loaded.with_bos(bos), subject)
        if any_several(loaded.tokenizer, subject.prompts):
            say(
                "some answers have several tokens: findings are measured on the first tokens of "
                "answer and counterpart"
            )
    checked = check(findings, loaded, behaviour=subject, budget=budget)
    if as_json:
        print_json("check", checked.as_dict())
    else:
        _print_checked(checked)
    if not checked.holds:
        raise typer.Exit(1)


def _compare_two(
    a: str, b: str, two_samples: bool, out: Path | None, top: int, as_json: bool
) -> None:
    from casestudy.claims.compare import compare

    comparison = compare(a, b, paired=False if two_samples else None)
    if out is not None:
        from casestudy.show.compared import write_comparison

        say(f"page: {escape(str(write_comparison(comparison, out)))}")
    if as_json:
        print_json("compare", comparison.as_dict())
    else:
        _print_comparison(comparison, top)


def _print_comparison(comparison: Comparison, top: int) -> None:
    for side, folder, study in zip("AB", comparison.names, comparison.about, strict=True):
        print(f"{side}: {study}, {folder}")
    for note in comparison.notes:
        say(escape(note))
    differing = comparison.differs.rows()
    print_table(
        "" if differing else "The two manifests name the same model, behaviour and settings.",
        ("what differs", "A", "B") if differing else (),
        [(row["what"], *how_they_differ(row["a"], row["b"], 24)) for row in differing],
    )
    n = comparison.prompts
    how = "each compared with itself" if comparison.paired else "compared as two samples"
    print_words(f"{n['both']} prompts in both, {n['a']} in A alone, {n['b']} in B alone: {how}")
    print()
    _print_differences(comparison.rows.rows(), top)
    _say_what_is_absent(comparison)


def _print_differences(rows: list[dict[str, Any]], top: int) -> None:
    headline = [row for row in rows if row["measurement"] == "logit_difference"]
    others = [row for row in rows if row["measurement"] != "logit_difference"]
    differ = [row for row in others if not _equal(row)]
    for title, chosen in (
        ("mean logit difference by contrast", headline),
        (
            f"what else differs most, for its measurement (of {len(differ):,} cells that differ)",
            differ[:top],
        ),
    ):
        if chosen:
            columns = ("cell", "A", "B", "B − A", "95 % interval", "n")
            print_table(title, columns, [_difference_row(row) for row in chosen])
            print()
    if len(differ) < len(others):
        same = "All" if not differ else f"{len(others) - len(differ):,} of the"
        print_words(f"{same} {len(others):,} other cells are equal in A and B up to rounding.")
    clear = sum(row["clear"] for row in rows)
    known = sum(row["lower"] is not None for row in rows)
    print_words(
        f"{clear:,} of {known:,} intervals leave out zero; where nothing differs, about "
        f"{known / 20:,.0f} would."
    )
    if known < len(rows):
        print_words(
            f"{len(rows) - known:,} differences have no interval: too few prompts (a share needs "
            "3, another mean 2), or a figure of all prompts together."
        )


ROUNDING = 1e-5
"""Of the larger value: differences within it are of rounding."""


def _equal(row: dict[str, Any]) -> bool:
    a, b = row["a"], row["b"]
    return bool(a == b or abs(a - b) <= ROUNDING * max(abs(a), abs(b)))


def _difference_row(row: dict[str, Any]) -> tuple[str, ...]:
    name = " ".join(filter(None, (row["measurement"], row["contrast"])))
    cell = f"{name}: {row['cell']}" if row["cell"] else name
    n = row["a_n"] if row["a_n"] == row["b_n"] else f"{row['a_n']}, {row['b_n']}"
    return (
        cell,
        decimal(row["a"]),
        decimal(row["b"]),
        f"{row['difference']:+.3f}",
        interval([row["lower"], row["upper"]]),
        "" if n is None else str(n),
    )


def _say_what_is_absent(comparison: Comparison) -> None:
    by_reason: dict[str, list[str]] = {}
    for row in comparison.absent.rows():
        reason = {"a": "only in A", "b": "only in B", None: row["why"]}[row["only_in"]]
        by_reason.setdefault(reason, []).append(row["what"])
    for reason, what in by_reason.items():
        say(escape(f"not compared, {reason}: {', '.join(what)}"))


def _print_emergence(emerged: Emergence) -> None:
    for name in emerged.contrasts.axes[0].labels:
        _print_curve(emerged, name)
        since = emerged.since[name]
        print(
            "at the last checkpoint the interval holds zero\n"
            if since is None
            else f"from {since} on every interval is clear of zero\n"
        )
    _print_answers(emerged)


def _print_curve(emerged: Emergence, name: str) -> None:
    contrast = emerged.contrasts.select(contrast=name)
    assert contrast.lower is not None
    assert contrast.upper is not None
    assert contrast.n is not None
    largest = max(0.0, *(abs(v) for v in contrast.values if v == v))
    print_table(
        f"mean logit difference, {name}",
        ("checkpoint", "mean", "95 % interval", "n", ""),
        [
            (
                checkpoint.label,
                decimal(finite(contrast.values[i])),
                interval([finite(contrast.lower[i]), finite(contrast.upper[i])]),
                str(int(contrast.n[i])),
                bar(float(contrast.values[i]), largest),
            )
            for i, checkpoint in enumerate(emerged.checkpoints)
        ],
    )


def _print_answers(emerged: Emergence) -> None:
    rank, first, mass = emerged.answers["rank"], emerged.answers["top-1"], emerged.class_mass
    masses = {} if mass is None else dict(zip(mass.axes[0].labels, mass.values, strict=True))
    largest_last = sorted(masses, key=lambda name: -masses[name][-1])[:3]
    print_table(
        "means over prompts: the answer's rank (1 is the first), how often it is the first, and "
        "the mass of the largest classes",
        ("checkpoint", "rank", "first", *largest_last),
        [
            (
                checkpoint.label,
                f"{rank.values[i]:.1f}",
                f"{first.values[i]:.0%}",
                *(f"{masses[name][i]:.1%}" for name in largest_last),
            )
            for i, checkpoint in enumerate(emerged.checkpoints)
        ],
    )


def _print_checked(checked: Checked) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False)
    console.print(Text(f"{checked.behaviour} on {checked.model}", style="italic"))
    for outcome in checked.outcomes:
        style = {"holds": "green", "fails": "bold red"}.get(outcome.verdict, "yellow")
        console.print(Text(outcome.verdict, style=style) + Text(f": {outcome.claim}", style=""))
        console.print(Padding(Text(_measured(outcome)), (0, 0, 0, 4)))
    held = sum(outcome.verdict == "holds" for outcome in checked.outcomes)
    print(f"{held} of {len(checked.outcomes)} hold")


def _measured(outcome: Outcome) -> str:
    """What was measured of a finding, and what was claimed."""
    parts = []
    if outcome.value is not None:
        ends = interval([outcome.lower, outcome.upper])
        spread = f" ({ends})" if ends else ""
        parts.append(f"{outcome.value:.3f}{spread} {outcome.unit}, n = {outcome.n}")
    if outcome.place is not None:
        place = outcome.place
        ends = f" ({place[1]} to {place[2]})" if len(place) == 3 else ""
        parts.append(f"place {place[0]}{ends} by size")
    parts.append(f"claimed: {outcome.must}")
    return "; ".join([*parts, *([outcome.why] if outcome.why else [])])
