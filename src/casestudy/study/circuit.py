"""What is the circuit? How a study looks for one.

On pairs of the family of edits that undoes the behaviour most surely, aligned token by token, every
edge is scored, the smallest faithful circuit is taken, and the evidence for it is gathered (see
`circuits/evidence`). Pairs that differ before their last token are preferred: where only the last
token differs everything happens there by construction.

Assumes prompts with an answer. Cost: see `circuits/evidence`; at most `MOST_PAIRS` pairs. All of it
is written at the end; a continued study begins it anew.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from casestudy.behaviour.contrast import Contrast
from casestudy.behaviour.counterfactual import Score, propose, score, strongest
from casestudy.behaviour.prompts import Behaviour
from casestudy.circuits.card import Card, card
from casestudy.circuits.evidence import Choices, Tell
from casestudy.engine.batch import Batch, run_batch
from casestudy.errors import MeasureError, StudyError
from casestudy.measure.metrics import Kind, metric_of
from casestudy.measure.patching import Pairs
from casestudy.model.model import Model
from casestudy.results.stats import BOOTSTRAP_FROM
from casestudy.study.causal import chosen_prompts, scored_pairs
from casestudy.study.store import Store, differences, write_atomically

NAME = "circuit"
"""As in `casestudy run --only circuit`."""

CARD_FILE = "circuit.json"
IMPORTANCES_FILE = "importances.json"
MOST_PAIRS = 32
UNITS = {"contrast": "logits", "class": "nats", "probability": "probability", "kl": "nats"}


@dataclass(frozen=True)
class Search:
    """Which circuit is looked for, and how.

    Attributes:
        choices: method, rank, ablation and the rest.
        metric: what a circuit is to carry.
        family: of edits; the strongest by default.
    """

    choices: Choices = field(default_factory=Choices)
    metric: Kind = "contrast"
    family: str | None = None


def keep_circuit(
    store: Store,
    model: Model,
    behaviour: Behaviour,
    runnable: Sequence[int],
    *,
    prepend_bos: bool | None,
    top_k: int,
    memory: int,
    search: Search | None = None,
    progress: Tell | None = None,
) -> None:
    """Find and store the circuit, if it is not there yet.

    Where nobody asked for a particular one, that there is none is written down and no error.

    Args:
        store: the study's, with its prompts measured.
        model, behaviour: the study's.
        runnable: the prompts that could be run, by index.
        prepend_bos, top_k: the study's settings.
        memory: bytes to use, beyond the model itself.
        search: which, and how; the defaults where nobody asked.
        progress: told which step begins.

    Raises: StudyError where the study holds a circuit that was looked for in another way;
    MeasureError where a family asked for has no pairs, or no circuit is faithful enough.
    """
    own = search is None
    search = search or Search()
    asked = asdict(search)
    done = store.manifest.get("circuit")
    if done is not None:
        changed = [f"{what}: {ours!r}, now {now!r}" for what, ours, now in differences(done, asked)]
        if changed:
            raise StudyError(
                f"{store.folder} holds a circuit found in another way ({'; '.join(changed)})",
                hint="Give another --out",
            )
        return
    index = chosen_prompts(behaviour, runnable, MOST_PAIRS)
    batch = run_batch(model, behaviour, index, [], prepend_bos=prepend_bos, top_k=top_k)
    try:
        _find(store, batch, search, prepend_bos, memory, progress)
    except MeasureError as problem:
        if not own:
            raise
        store.say_not_measured("circuits", str(problem))
    store.manifest["circuit"] = asked
    store.save_manifest()


def _find(
    store: Store,
    batch: Batch,
    search: Search,
    prepend_bos: bool | None,
    memory: int,
    progress: Tell | None,
) -> None:
    best, pairs, contrast = circuit_pairs(batch, family=search.family, prepend_bos=prepend_bos)
    if search.metric == "class":
        contrast = batch.contrasts[-1][[pair.index for pair in best.pairs]]
    documents = [batch.prompts[pair.index].document for pair in best.pairs]
    made = card(
        batch.model,
        pairs,
        metric_of(batch.model, contrast, search.metric, pairs.clean),
        search.choices,
        documents=documents if any(documents) else None,
        unit=UNITS[search.metric],
        memory=memory,
        progress=progress,
    )
    _write(store, made, best)


def circuit_pairs(
    batch: Batch, *, family: str | None = None, prepend_bos: bool | None = None
) -> tuple[Score, Pairs, Contrast]:
    """The pairs a circuit is looked for on, with their family's score and their contrast.

    Args:
        batch: of a behaviour.
        family: which edits; by default those that undo the behaviour most surely, before the last
            token if there are any.
        prepend_bos: as the batch was made.

    Raises: MeasureError where the family, or every family, has fewer than two aligned pairs.
    """
    assert batch.behaviour is not None
    contrast, roles = batch.contrasts[0], batch.behaviour.roles
    proposals = propose(batch.model, batch.prompts, roles=roles, prepend_bos=prepend_bos)
    scores = [
        found.only(lambda pair: pair.aligned == "position")
        for found in score(batch.model, proposals, contrast, prepend_bos=prepend_bos)
    ]
    usable = [s for s in scores if s.n >= 2]
    if family is not None:
        usable = [s for s in usable if s.family == family]
        if not usable:
            raise MeasureError(
                f"the family {family!r} has no two pairs of equal length",
                allowed=", ".join(s.family for s in scores if s.n >= 2) or "no family here",
            )
    best = strongest(usable) or strongest(usable, before_last=False)
    if best is None or best.n < 2:
        raise MeasureError(
            "no minimal edit leaves two of these prompts their number of tokens",
            hint="Bring corrupted partners of as many tokens in the behaviour file",
        )
    pairs = scored_pairs(batch, best, prepend_bos)
    return best, pairs, contrast[[pair.index for pair in best.pairs]]


def _write(store: Store, made: Card, best: Score) -> None:
    """Tables and grids, then the card and MIB's importances as files of their own."""
    made.about.update(
        family=best.family,
        mean_clean=float(best.clean.mean()),
        mean_corrupted=float(best.corrupted.mean()),
    )
    store.write_final(made.results)
    made.save(store.folder / CARD_FILE)
    importances = made.circuit.importances(made.scores.values)
    write_atomically(store.folder / IMPORTANCES_FILE, json.dumps(importances).encode())
    store.manifest["circuit_about"] = made.about
    if made.scores.replicates is None:
        why = f"{made.scores.n} pairs were too few to resample: {BOOTSTRAP_FROM} are needed"
        store.say_not_measured("how much of the circuit stays under resampling", why)
