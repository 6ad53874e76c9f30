"""`casestudy circuit`: the circuit that carries a behaviour, with its evidence."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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
    ScoringOption,
    default_folder,
    read_behaviour,
    read_budget,
    read_scoring,
    saying_notices,
)
from casestudy.cli.printing import decimal, interval, print_json, print_table, print_words
from casestudy.cli.progress import ProgressBar
from casestudy.results import names

if TYPE_CHECKING:
    from casestudy.behaviour.prompts import Behaviour
    from casestudy.behaviour.steps import Scoring
    from casestudy.circuits.evidence import Choices
    from casestudy.engine.packing import Budget
    from casestudy.measure.metrics import Kind
    from casestudy.model.model import Model
    from casestudy.study.study import Study


GrainOption = Annotated[
    str,
    typer.Option(
        help="What the circuit is made of: edge (between heads and MLPs), or neuron (heads and "
        "single neurons, everything else ablated)."
    ),
]
MethodOption = Annotated[
    str | None,
    typer.Option(
        help="How edges are scored: eap, eap-ig-inputs (by default), eap-ig-activations, relp or "
        "relp-ah. Of neurons: relp (by default), relp-ah, atp, ig-inputs or ig-activations."
    ),
]
HeadsOption = Annotated[
    str,
    typer.Option(
        help="With --grain neuron: ranked (heads are chosen with the neurons), or all (every head "
        "is kept, only neurons are chosen)."
    ),
]
TopOption = Annotated[
    int | None,
    typer.Option(help="With --grain neuron: keep so many nodes instead of searching."),
]
ThresholdOption = Annotated[
    float | None,
    typer.Option(
        help="With --grain neuron: keep the nodes whose score is at least this share of the "
        "difference between the runs, instead of searching."
    ),
]
StepsOption = Annotated[
    int, typer.Option(min=1, help="Integration steps of the eap-ig methods, at most 1,000.")
]
MetricOption = Annotated[
    str,
    typer.Option(
        help="What the circuit must carry. contrast: the logit difference of answer and "
        "counterpart, or for answers of several tokens the difference of their "
        "log-probabilities (--scoring). class: log p(A) - log p(B) of the behaviour's "
        "two token classes. probability: p(answer) - p(counterpart). kl: how far the output is "
        "from the clean run's, KL(clean || run), over the whole vocabulary."
    ),
]


def circuit(
    behaviour: BehaviourArgument = "full-stop-capitals",
    model: ModelOption = "tiny",
    out: Annotated[
        Path | None, typer.Option(help="A folder; studies/BEHAVIOUR-MODEL-circuit by default.")
    ] = None,
    grain: GrainOption = "edge",
    method: MethodOption = None,
    steps: StepsOption = 5,
    rank: Annotated[
        str, typer.Option(help="Choose edges by their absolute or by their signed score.")
    ] = "absolute",
    metric: MetricOption = "contrast",
    ablation: Annotated[
        str, typer.Option(help="What the edges outside the circuit carry: corrupted, mean or zero.")
    ] = "corrupted",
    faithful: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Faithfulness that the smallest circuit must reach, from 0 to 1."
        ),
    ] = 0.85,
    heads: HeadsOption = "ranked",
    top_k: TopOption = None,
    threshold: ThresholdOption = None,
    family: FamilyOption = None,
    scoring: ScoringOption = "sum",
    exact: Annotated[
        int,
        typer.Option(
            min=0, help="With --grain edge: how many edges to patch exactly, drawn at random."
        ),
    ] = 200,
    seed: Annotated[
        int, typer.Option(help="Seed of the held-out split, the controls and the bootstrap.")
    ] = 0,
    memory: MemoryOption = "2GB",
    reading: Reading = READING,
    as_json: JsonOption = False,
) -> None:
    """Find the circuit that carries a behaviour, with the evidence for and against it."""
    from casestudy.measure.metrics import read_kind

    kind = read_kind(metric)
    typed: dict[str, Any] = {"steps": steps, "rank": rank, "ablation": ablation}
    typed |= {"faithful": faithful, "seed": seed}
    typed_scoring = read_scoring(scoring)
    find: Callable[..., None]
    given = {"--top-k": top_k, "--threshold": threshold}
    if _of_neurons(grain, given | {"--heads": None if heads == "ranked" else heads}):
        from casestudy.circuits.neuron_circuit import neuron_choices
        from casestudy.cli.neurons import find_neurons

        find, typed = find_neurons, typed | {"heads": heads, "top": top_k, "threshold": threshold}
        choices: Any = neuron_choices(method=method or "relp", **typed)
    else:
        from casestudy.circuits.evidence import choices_of

        find = partial(_find_edges, scoring=typed_scoring)
        choices = choices_of(method=method or "eap-ig-inputs", exact_edges=exact, **typed)
    loaded = reading.model(model)
    subject = read_behaviour(behaviour, reading.conversations())
    find(
        loaded,
        subject,
        choices,
        metric=kind,
        family=family,
        out=out or default_folder(subject.name, model, "circuit"),
        budget=read_budget(memory),
        as_json=as_json,
    )


def _of_neurons(grain: str, given: dict[str, object]) -> bool:
    """Whether the circuit is of neurons.

    Raises: MeasureError for another grain, and for options that edges do not have.
    """
    from casestudy.errors import MeasureError, one_of

    if one_of("grain", grain, ("edge", "neuron"), MeasureError) == "neuron":
        return True
    for option, value in given.items():
        if value is not None:
            raise MeasureError(f"{option} with --grain edge", hint="Give --grain neuron too")
    return False


def _find_edges(
    model: Model,
    behaviour: Behaviour,
    choices: Choices,
    *,
    metric: Kind,
    family: str | None,
    out: Path,
    budget: Budget,
    as_json: bool,
    scoring: Scoring,
) -> None:
    """Find the circuit of edges as a stage of a study, and print it."""
    from casestudy.study.circuit import CARD_FILE, IMPORTANCES_FILE, NAME
    from casestudy.study.settings import Execution, Search, Settings
    from casestudy.study.study import study

    with ProgressBar("circuit") as progress:
        finished = study(
            model,
            behaviour,
            out=out,
            only=["predictions", "ledger", NAME],
            settings=Settings(search=Search(choices, metric, family), scoring=scoring),
            execution=Execution(budget=budget),
            progress=saying_notices(out, behaviour, progress),
        )
    files = {"card": out / CARD_FILE, "importances": out / IMPORTANCES_FILE}
    files["report"] = finished.report()
    if as_json:
        paths = {name: str(file) for name, file in files.items()}
        print_json("circuit", _judged_by(finished) | _tables(finished) | paths)
        return
    print_words(_sentence(finished))
    print()
    _print_circuit(f"{behaviour.name} on {model.name}: the circuit’s evidence", **_tables(finished))
    for name, file in files.items():
        print(f"{name}: {file}")


def _tables(study: Study) -> dict[str, list[dict[str, Any]]]:
    return {
        "figures": study.tables[names.CIRCUIT_SUMMARY].rows(),
        "edges": study.tables[names.CIRCUIT_EDGES].rows(),
    }


def _judged_by(study: Study) -> dict[str, Any]:
    """The metric, its unit and its means in the two runs, as the circuit's card has them."""
    about = study.manifest["circuit_about"]
    keys = ("metric_name", "unit", "mean_clean", "mean_corrupted")
    return {key: about[key] for key in keys if key in about}


def _sentence(study: Study) -> str:
    """The report's paragraph on the circuit."""
    from casestudy.show.sections.circuit import sentence
    from casestudy.show.sections.summary import plain
    from casestudy.show.stored import StoredStudy

    return plain(sentence(StoredStudy.read(study.store)))


def _print_circuit(title: str, figures: list[dict[str, Any]], edges: list[dict[str, Any]]) -> None:
    print_table(
        title, ("figure", "value", "95 % interval", "pairs"), [_figure_row(row) for row in figures]
    )
    areas = {row["figure"].partition(" ")[0]: row["about"] for row in figures}
    for area in ("CPR", "CMD"):
        if area in areas:
            print_words(f"{area} is the {areas[area]}.")
    print()
    print_table(
        "its strongest edges, with their scores by attribution and by exact patching",
        ("edge", "score", "exact"),
        [
            (
                f"{row['source']}->{row['target']}",
                f"{row['score']:+.3f}",
                "" if row.get("exact") is None else f"{row['exact']:+.3f}",
            )
            for row in edges[:10]
        ],
    )


def _figure_row(row: dict[str, Any]) -> tuple[str, ...]:
    from casestudy.show.wording import figure_name

    count = row["figure"] in ("edges", "nodes")
    value = f"{row['value']:,.0f}" if count else decimal(row["value"])
    ends = interval([row["lower"], row["upper"]])
    if not ends and row["figure"].startswith("faithfulness"):
        ends = f"none, n = {row['n']}"
    return figure_name(row["figure"]), value, ends, str(row["n"])
