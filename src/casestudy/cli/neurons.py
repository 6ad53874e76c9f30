"""`casestudy circuit --grain neuron`: the heads and neurons that carry a behaviour."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from casestudy.cli.options import check_folder
from casestudy.cli.printing import decimal, interval, print_json, print_table
from casestudy.cli.progress import ProgressBar

if TYPE_CHECKING:
    from casestudy.behaviour.prompts import Behaviour
    from casestudy.circuits.neuron_card import NeuronCard
    from casestudy.circuits.neuron_circuit import NeuronChoices
    from casestudy.engine.packing import Budget
    from casestudy.measure.metrics import Kind
    from casestudy.model.model import Model

CARD_FILE = "neuron_circuit.json"
_COUNTS = ("neurons", "heads")
_TOLD = (
    *("metric_name", "unit", "mean_clean", "mean_corrupted"),
    *("figures", "circuit", "curve", "nodes", "layers", "edges"),
)


def find_neurons(
    model: Model,
    behaviour: Behaviour,
    choices: NeuronChoices,
    *,
    metric: Kind,
    family: str | None,
    out: Path,
    budget: Budget,
    as_json: bool,
) -> None:
    """Find the circuit, write its card and print it."""
    from casestudy.study.searches import behaviour_neurons

    check_folder("--out", out, CARD_FILE)
    with ProgressBar("circuit") as progress:
        card = behaviour_neurons(
            model,
            behaviour,
            choices,
            metric=metric,
            family=family,
            budget=budget,
            progress=progress,
        )
    card.save(out / CARD_FILE)
    if as_json:
        told = {key: value for key, value in card.as_dict().items() if key in _TOLD}
        print_json("circuit", {**told, "card": str(out / CARD_FILE)})
        return
    _print(card, f"{behaviour.name} on {model.name}: heads and neurons")
    print(f"card: {out / CARD_FILE}")


def _print(card: NeuronCard, title: str) -> None:
    data = card.as_dict()
    rows = []
    for row in data["figures"]:
        count = row["figure"] in _COUNTS
        value = f"{row['value']:,.0f} {row['about']}" if count else decimal(row["value"])
        about = "" if count else row["about"]
        rows.append(
            (row["figure"], value, interval([row["lower"], row["upper"]]), str(row["n"]), about)
        )
    print_table(title, ("figure", "value", "95 % interval", "pairs", "about"), rows)
    print_table(
        "its first nodes",
        ("node", "score", "exact", "faithfulness lost without it"),
        [
            (
                row["node"],
                f"{row['score']:+.3f}",
                f"{row['exact']:+.3f} {interval([row['exact_lower'], row['exact_upper']])}",
                decimal(row["faithfulness_lost"]),
            )
            for row in data["nodes"]
            if row["faithfulness_lost"] is not None
        ][:12],
    )
