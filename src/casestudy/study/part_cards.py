"""What do the strongest parts of a stored study do? Their cards, in the study's folder.

The heads and neurons with the largest exact effects are chosen from the stored patch grids, or,
where nothing was patched, those with the largest direct contributions. Their cards are made with
the study's own prompts and model, which are compared with what the manifest says, and stored in
`parts/`, a folder each, which the report then links. Cost: that of the cards; the corpus is read
once for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from casestudy.behaviour.chat import written
from casestudy.behaviour.prompts import Behaviour
from casestudy.behaviour.windows import Corpus
from casestudy.engine.packing import Tell
from casestudy.errors import StudyError
from casestudy.measure.part_card import CardSettings, part_cards
from casestudy.model.model import Model
from casestudy.model.sites import Site
from casestudy.results import components, names
from casestudy.results.part_card import PartCard, card_folder
from casestudy.study.manifest import prompts_hash
from casestudy.study.store import Store
from casestudy.study.study import Study

OF_A_KIND = 3
"""Heads, and neurons, by default."""


@dataclass(frozen=True)
class TopPart:
    """A part that a study's results single out.

    Attributes:
        name: "head 0.2", "neuron 4.312".
        value: the mean effect, or direct contribution: in logits, or in nats where whole answers
            are compared (neurons' contributions are of the first tokens).
        by: the stored result that it is of.
    """

    name: str
    value: float
    by: str


def top_parts(study: Study, *, heads: int = OF_A_KIND, neurons: int = OF_A_KIND) -> list[TopPart]:
    """The heads and the neurons with the largest means, of the main contrast.

    Raises: StudyError where the study has neither patched nor attributed them.
    """
    if min(heads, neurons) < 0 or not heads + neurons:
        raise StudyError(f"{heads} heads and {neurons} neurons", allowed="at least one part")
    found = [*_heads(study, heads), *_neurons(study, neurons)]
    if not found:
        raise StudyError(
            f"{study.store.folder} has no effects or contributions of heads and neurons",
            hint="Run it with the measurement attribution, or name parts with --part",
        )
    return found


def _heads(study: Study, most: int) -> list[TopPart]:
    name = names.effect(names.patching(Site.Z.value, "all"))
    grid = study.grids.get(name)
    if grid is None:
        name = names.mean(names.HEAD_SHARES)
        grid = study.grids.get(name)
        if grid is None:
            return []
        labels = grid.axis("contrast").labels
        grid = grid.select(contrast=names.main_contrast(labels))
    layers, labels = grid.axis("layer").labels, grid.axis("head").labels
    heads = [i for i, label in enumerate(labels) if label.isdigit()]
    values = np.moveaxis(grid.values, (grid.dim("layer"), grid.dim("head")), (0, 1))[:, heads]
    return [
        TopPart(components.head(layers[at // len(heads)], labels[heads[at % len(heads)]]), v, name)
        for at, v in _largest(values.ravel(), most)
    ]


def _neurons(study: Study, most: int) -> list[TopPart]:
    name = names.effect(names.patching("neurons", "all"))
    grid = study.grids.get(name)
    if grid is not None:
        labels = [tuple(label.split(".")) for label in grid.axis("neuron").labels]
        return [
            TopPart(components.neuron(*labels[i]), v, name) for i, v in _largest(grid.values, most)
        ]
    table = study.tables.get(names.NEURON_SHARES)
    if table is None or not table.rows():
        return []
    first = table.columns["contrast"][0]
    rows = [row for row in table.rows() if row["contrast"] == first]
    values = np.array([float(row["mean"]) for row in rows])
    return [
        TopPart(components.neuron(rows[i]["layer"], rows[i]["neuron"]), v, names.NEURON_SHARES)
        for i, v in _largest(values, most)
    ]


def _largest(values: Any, most: int) -> list[tuple[int, float]]:
    """Where the largest magnitudes are, and the values there; NaN was not measured."""
    order = np.argsort(-np.nan_to_num(np.abs(values)), kind="stable")[:most]
    return [(int(i), float(values[i])) for i in order if not np.isnan(values[i])]


def check_same(store: Store, model: Model, behaviour: Behaviour) -> None:
    """A study's cards are of its own model and prompts.

    Raises: StudyError naming what differs.
    """
    theirs = _entry(store.manifest, "model", "weight_hash")
    if theirs != model.weight_hash:
        name = _entry(store.manifest, "model", "name")
        raise StudyError(
            f"{store.folder} is a study of {name}, weights {str(theirs)[:12]}",
            allowed=f"{model.name} has weights {model.weight_hash[:12]}",
            hint="Give the study's model with model=",
        )
    if _entry(store.manifest, "behaviour", "hash") != prompts_hash(written(model, behaviour)):
        name = _entry(store.manifest, "behaviour", "name")
        raise StudyError(
            f"{behaviour.name} does not have the prompts of {store.folder}",
            allowed=f"the prompts of {name!r} as they were when the study was run",
            hint="Give the study's behaviour file with behaviour=",
        )


def _entry(manifest: Mapping[str, Any], *keys: str) -> Any:
    value: Any = manifest
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def make_cards(
    study: Study,
    model: Model,
    behaviour: Behaviour,
    parts: Sequence[str],
    *,
    corpus: Corpus | None = None,
    settings: CardSettings | None = None,
    progress: Tell | None = None,
) -> Iterator[tuple[PartCard, Path]]:
    """Make and store the cards of some parts of a study.

    Args:
        study: where they are stored.
        model, behaviour: the study's own.
        parts: spellings, such as those of `top_parts`.
        corpus, settings, progress: as `part_cards` takes them.

    Returns: each card and its folder, as soon as it is stored.
    Raises: StudyError for another model or behaviour, and when the folder cannot be written.
    """
    check_same(study.store, model, behaviour)
    for card in part_cards(
        model, parts, behaviour=behaviour, corpus=corpus, settings=settings, progress=progress
    ):
        folder = card_folder(study.store.folder, card.part)
        card.write(folder)
        yield card, folder
