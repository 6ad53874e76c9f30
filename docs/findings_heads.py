"""Which known kinds of heads does a model use on the field's reference behaviours?

On `ioi` heads are sorted by the definitions of Wang et al. 2022 ("Interpretability in the Wild",
section 3), each by what it does on these prompts; the share of attention that counts as "attends"
is `ATTENDS`. On `ioi`, `greater-than` and `decimal-point` it is said how far the model shows the
behaviour at all. Words for more and less are made from the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from docs.findings_kept import mean
from docs.findings_kept import number as kept
from docs.findings_tables import NAMES, Found, between, table
from numpy.typing import NDArray

from casestudy.behaviour.counterfactual import propose
from casestudy.behaviour.presets import preset
from casestudy.behaviour.prompts import Role
from casestudy.circuits.graph import Receiver
from casestudy.circuits.paths import path_patch
from casestudy.engine.batch import Batch, Measurement, run_batch
from casestudy.measure.attention import attention_to_roles
from casestudy.measure.attribution import HEADS
from casestudy.measure.edit_scores import score
from casestudy.measure.ledger import LEDGER
from casestudy.measure.pairs import pairs_of
from casestudy.model.model import Model
from casestudy.model.sites import Site
from casestudy.results import names
from casestudy.results.components import head as head_name
from casestudy.results.components import read_component
from casestudy.results.result import Grid
from casestudy.show.text import listing, number, percent, signed

BEHAVIOURS = ("ioi", "greater-than", "decimal-point")
ATTENDS = 0.3
"""Share of a token's attention from which a head is said to attend to another token."""
DIRECT = 0.02
"""Share of the mean logit difference from which a head's own writing is called large."""
MOST = 5
"""Heads that are listed of a kind."""

IO, S1, S2, NEXT = "indirect object", "subject 1", "subject 2", "after subject 1"
_NEXT = Role(NEXT, r"\b(?P<name>\p{Lu}\p{L}+)\b (?P<role>\p{L}+)(?=.*\b(?P=name)\b)")

Heads = NDArray[np.float64]


def measure_heads(model: Model) -> Found:
    """How far each behaviour is there, and the kinds of heads on `ioi`."""
    shown = {name: shows(model, name) for name in BEHAVIOURS}
    kinds = kinds_of_heads(model) if shown["ioi"]["difference"]["low"] > 0 else None
    return {"weight_hash": model.weight_hash, "shows": shown, "ioi": kinds}


def shows(model: Model, name: str) -> Found:
    """How far the model shows a behaviour, on the prompts it is asked about."""
    behaviour = preset(name)
    batch = run_batch(model, behaviour, behaviour.main_prompts, [])
    values = np.array(batch.contrasts[0].value(batch.logits).tolist())
    known = values[np.isfinite(values)]
    return {"n": len(known), "preferred": kept(float((known > 0).mean())),
            "difference": mean(known)}  # fmt: skip


def kinds_of_heads(model: Model) -> Found:
    """Heads by what they attend to and what they write, on the prompts of `ioi`."""
    behaviour = preset("ioi")
    behaviour = replace(behaviour, roles=(*behaviour.roles, _NEXT))
    whole = Measurement("whole patterns", _whole, _nothing)
    batch = run_batch(model, behaviour, range(len(behaviour)), [LEDGER, HEADS, whole])
    end, second = attention_to_roles(batch), attention_to_roles(batch, S2)
    grid = next(g for g in HEADS.measure(batch) if g.name == names.HEAD_SHARES)
    assert isinstance(grid, Grid)
    direct = grid.values[0][:, : model.config.n_heads].mean(2)  # layer head
    total = float(batch.contrasts[0].value(batch.logits).mean())
    to_io, to_s2 = _mean(end, IO), _mean(end, S2)
    movers = (to_io >= ATTENDS) & (direct >= DIRECT * total)
    found = {
        "duplicate token": _listed(_mean(second, S1), _mean(second, S1) >= ATTENDS),
        "induction": _listed(_mean(second, NEXT), _mean(second, NEXT) >= ATTENDS),
        "name mover": _listed(direct, movers, to_io),
        "negative name mover": _listed(-direct, (to_io >= ATTENDS) & (direct <= -DIRECT * total),
                                       to_io),
    }  # fmt: skip
    if movers.any():
        top = np.unravel_index(int(np.where(movers, direct, -np.inf).argmax()), direct.shape)
        effects = _through_queries(model, batch, int(top[0]), int(top[1]))
        inhibits = (to_s2 >= ATTENDS) & (effects >= DIRECT)
        found["S-inhibition"] = _listed(effects, inhibits, to_s2)
        found["name mover read"] = head_name(int(top[0]), int(top[1]))
    return {"total": kept(total), "n": len(batch.index), **found}


def _nothing(batch: Batch) -> list[Any]:
    return []


def _whole(model: Model) -> Sequence[Any]:
    return [Site.PATTERN]


def _mean(grid: Grid, role: str) -> Heads:
    """(layer, head) mean attention to a role; 0 where no prompt has it."""
    values = grid.values[:, :, grid.axis("role").labels.index(role)]
    return np.nan_to_num(np.nanmean(values, axis=2))


def _listed(size: Heads, chosen: NDArray[np.bool_], attention: Heads | None = None) -> list[Found]:
    """The chosen heads, the largest first."""
    order = [i for i in np.argsort(-size, axis=None) if chosen.ravel()[i]]
    rows = []
    for i in order:
        layer, head = divmod(int(i), size.shape[1])
        row: Found = {"head": head_name(layer, head), "value": kept(float(size.ravel()[i]))}
        if attention is not None:
            row["attention"] = kept(float(attention.ravel()[i]))
        rows.append(row)
    return rows


def _through_queries(model: Model, batch: Batch, layer: int, head: int) -> Heads:
    """(layer, head) share of the difference that each head's output takes away through the query of
    one head: the clean run with that path from the corrupted run."""
    scored = score(model, propose(model, batch.prompts, ()), batch.contrasts[0])[0]
    aligned = scored.only(lambda pair: pair.aligned == "position")
    pairs = pairs_of(model, aligned.pairs)
    contrast = batch.contrasts[0][[pair.index for pair in aligned.pairs]]
    patched = path_patch(model, pairs, contrast, Receiver("q", layer, head), direction="noising")
    grid = patched.normalised
    values = np.zeros((model.config.n_layers, model.config.n_heads))
    for label, value in zip(grid.axes[0].labels, grid.values, strict=True):
        component = read_component(label)
        if component is not None and component.kind == "head":
            assert component.layer is not None
            assert component.index is not None
            values[component.layer, component.index] = value
    return values


# The words


def heads_page(found: Found) -> str:
    """How far each model shows each behaviour, and the kinds of heads on `ioi`."""
    rows = [
        [f"`{name}`", *(_shown(found[model]["heads"]["shows"][name]) for model in NAMES)]
        for name in BEHAVIOURS
    ]
    text = table(["behaviour", *NAMES.values()], rows)
    return text + "".join(
        "\n" + _kinds_text(name, found[model]["heads"]) for model, name in NAMES.items()
    )


def _shown(x: Found) -> str:
    told = f"{between(x['difference'])}, {percent(x['preferred'])} of {x['n']}"
    if x["difference"]["low"] > 0:
        return told
    return f"{told}: not shown" if x["difference"]["high"] < 0 else f"{told}: undecided"


_WHAT = {
    "duplicate token": "attend from the second subject to the first",
    "induction": "attend from the second subject to the token after the first",
    "S-inhibition": "attend from the last token to the second subject, and act on the query of {}",
    "name mover": "attend from the last token to the indirect object, and write for it",
    "negative name mover": "attend from the last token to the indirect object, and write against "
    "it",
}


def _kinds_text(name: str, found: Found) -> str:
    kinds = found["ioi"]
    if kinds is None:
        return (
            f"{name} does not name the indirect object on these prompts, so that its heads are not "
            f"sorted.\n"
        )
    lines = [
        f"Heads of {name} on `ioi` ({kinds['n']} prompts, mean logit difference "
        f"{signed(kinds['total'])}), by the definitions of Wang et al. 2022; “attends” is "
        f"{percent(ATTENDS)} of a token's attention or more:\n"
    ]
    for kind, what in _WHAT.items():
        heads = kinds.get(kind, [])
        words = what.format(kinds.get("name mover read", "a name mover"))
        if not heads:
            lines.append(f"- **{kind}** heads, which {words}: none.")
            continue
        listed = listing([_one(kind, row) for row in heads[:MOST]])
        more = f", and {len(heads) - MOST} more" if len(heads) > MOST else ""
        lines.append(f"- **{kind}** heads, which {words}: {listed}{more}.")
    return "\n".join(lines) + "\n"


def _one(kind: str, row: Found) -> str:
    writes: dict[str, Callable[[float], str]] = {
        "duplicate token": percent,
        "induction": percent,
        "S-inhibition": lambda x: f"{number(x)} of the difference",
        "name mover": lambda x: f"{signed(x)} logits",
        "negative name mover": lambda x: f"{signed(-x)} logits",
    }
    attention = f", attention {percent(row['attention'])}" if "attention" in row else ""
    return f"{row['head']} ({writes[kind](row['value'])}{attention})"
