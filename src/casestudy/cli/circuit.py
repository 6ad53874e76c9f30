"""`casestudy circuit`: the circuit that carries a behaviour, with its evidence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from casestudy.cli.options import (
    BehaviourArgument,
    BosOption,
    ChatOption,
    DeviceOption,
    DtypeOption,
    FamilyOption,
    JsonOption,
    MemoryOption,
    ModelOption,
    PrefixOption,
    SpecialOption,
    TemplateOption,
    default_folder,
    read_behaviour,
    read_budget,
    read_chat,
    read_model,
    saying_notices,
)
from casestudy.cli.printing import decimal, interval, print_json, print_table
from casestudy.cli.progress import ProgressBar
from casestudy.results import names

if TYPE_CHECKING:
    from casestudy.study.study import Study


MethodOption = Annotated[
    str,
    typer.Option(
        help="How edges are scored: eap, eap-ig-inputs, eap-ig-activations, relp or relp-ah."
    ),
]
StepsOption = Annotated[
    int, typer.Option(min=1, help="Integration steps of the eap-ig methods, at most 1,000.")
]
MetricOption = Annotated[
    str,
    typer.Option(
        help="What the circuit must carry, read at the last token. contrast: the logit "
        "difference of answer and counterpart. class: log p(A) - log p(B) of the behaviour's "
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
    method: MethodOption = "eap-ig-inputs",
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
    family: FamilyOption = None,
    exact: Annotated[
        int, typer.Option(min=0, help="How many edges to patch exactly, drawn at random.")
    ] = 200,
    seed: Annotated[
        int, typer.Option(help="Seed of the held-out split, the controls and the bootstrap.")
    ] = 0,
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
    """Find the circuit that carries a behaviour, with the evidence for and against it."""
    from casestudy.circuits.evidence import choices_of
    from casestudy.measure.metrics import read_kind
    from casestudy.study.circuit import CARD_FILE, IMPORTANCES_FILE, NAME
    from casestudy.study.settings import Execution, Search, Settings
    from casestudy.study.study import study

    choices = choices_of(
        method=method,
        steps=steps,
        rank=rank,
        ablation=ablation,
        faithful=faithful,
        exact_edges=exact,
        seed=seed,
    )
    kind = read_kind(metric)
    loaded = read_model(model, device, dtype, bos, special)
    subject = read_behaviour(behaviour, read_chat(chat, prefix, template))
    folder = out or default_folder(subject.name, model, "circuit")
    with ProgressBar("circuit") as progress:
        finished = study(
            loaded,
            subject,
            out=folder,
            only=["predictions", "ledger", NAME],
            settings=Settings(search=Search(choices, kind, family)),
            execution=Execution(budget=read_budget(memory)),
            progress=saying_notices(folder, subject, progress),
        )
    files = {"card": folder / CARD_FILE, "importances": folder / IMPORTANCES_FILE}
    files["report"] = finished.report()
    if as_json:
        paths = {name: str(file) for name, file in files.items()}
        print_json("circuit", _judged_by(finished) | _tables(finished) | paths)
        return
    title = f"{subject.name} on {loaded.name}: the circuit, judged by {_spoken(finished)}"
    _print_circuit(title, **_tables(finished))
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


def _spoken(study: Study) -> str:
    about = _judged_by(study)
    if "metric_name" not in about:  # of a study that was stored before cards named it
        return str(about.get("unit", "its metric"))
    return (
        f"{about['metric_name']} ({about['unit']}): {about['mean_clean']:.3f} in the clean runs, "
        f"{about['mean_corrupted']:.3f} in the corrupted ones"
    )


def _print_circuit(title: str, figures: list[dict[str, Any]], edges: list[dict[str, Any]]) -> None:
    print_table(
        title, ("figure", "value", "95 % interval", "pairs"), [_figure_row(row) for row in figures]
    )
    print_table(
        "its strongest edges",
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
    count = row["figure"] in ("edges", "nodes")
    value = f"{row['value']:,.0f}" if count else decimal(row["value"])
    ends = interval([row["lower"], row["upper"]])
    if not ends and row["figure"].startswith("faithfulness"):
        ends = f"none, n = {row['n']}"
    return row["figure"], value, ends, str(row["n"])
