"""Which activations carry a prompt's preference, against its own corrupted prompt?

Exact activation patching as in `patching`, from prompts instead of pairs and a contrast: for a
first look, from the command line, in the explorer, in Python. Answers may have several tokens. A
patch of a prompt then counts at every place at which its answers are read (see `behaviour/steps`):
the patched run reads the answer's tokens, and in a run of its own the counterpart's, and the values
of the places are added up by their weights. The answers are the same in both prompts of a pair.

Cost: a sweep (see `sweep`) over the prompts; for answers of several tokens, over each prompt with
its answer, and with its counterpart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from casestudy.behaviour.answers import choose_answers
from casestudy.behaviour.contrast import Contrast
from casestudy.behaviour.counterfactual import NO_ROLE, Excluded, propose
from casestudy.behaviour.prompts import AnswerRule, Prompt
from casestudy.behaviour.readouts import partner_of, row_of
from casestudy.behaviour.steps import Scoring, has_several
from casestudy.engine.packing import DEFAULT_BUDGET, Budget, Tell
from casestudy.engine.reading import Readings
from casestudy.engine.readout import Metric
from casestudy.errors import BehaviourError, MeasureError
from casestudy.measure.answer_texts import by_prompt, metric_of, places_of, texts_of, with_answers
from casestudy.measure.pairs import UNEQUAL, Direction, Pairs, pairs_of
from casestudy.measure.patched import Patched
from casestudy.measure.patching import Ablation, By, Watch, ablate, patch, patch_sites
from casestudy.model.decoder import run
from casestudy.model.model import Model
from casestudy.model.sites import Site
from casestudy.model.tokens import Tokens
from casestudy.results.result import Axis, Grid


def patch_prompts(
    model: Model,
    prompts: Sequence[Prompt],
    site: Site | str,
    *,
    by: By | None = None,
    direction: Direction = "denoising",
    readout: int | str | None = None,
    scoring: Scoring = "sum",
    layers: Sequence[int] | None = None,
    budget: Budget = DEFAULT_BUDGET,
    progress: Tell | None = None,
    watch: Watch | None = None,
) -> Patched:
    """Patch one site between prompts and their own corrupted prompts.

    Answers are the prompts' own or the model's, with their lower case as counterpart (see
    `choose_answers`). They are read where each prompt says (see `readouts`), or all at `readout`, a
    position or a role; a prompt's own may have several tokens: by="last" then patches the prompts'
    last token, with the answers behind it as they are. For a single pair of one length,
    positions are labelled with the clean prompt's tokens.

    Args:
        model: the decoder.
        prompts: each with a corrupted partner.
        site, by, direction, layers, budget, progress, watch: as in `patch`.
        readout: where the answers are read.
        scoring: how the tokens of an answer count, see `whole_answers`.

    Shape, error: as `patch`. Behind the prompt, a position is the same place of both answers.
    Unit:   logits; nats where an answer has several tokens.
    Raises: as `patch`; BehaviourError for a prompt without a partner, a pair whose tokens do not
        correspond, and a prompt without an answer.
    """
    asked = _asked(model, prompts, by, readout, scoring)
    found = patch(
        model,
        asked.pairs,
        asked.metric,
        site,
        by=by,
        direction=direction,
        layers=layers,
        budget=budget,
        progress=progress,
        watch=None if watch is None else lambda found: watch(asked.finished(found)),
    )
    found = asked.finished(found)
    return _with_tokens(found, asked.positions) if len(prompts) == 1 else found


def patch_prompts_sites(
    model: Model,
    prompts: Sequence[Prompt],
    sites: Sequence[Site | str],
    *,
    by: By,
    scoring: Scoring = "sum",
    budget: Budget = DEFAULT_BUDGET,
    progress: Tell | None = None,
) -> dict[str, Patched]:
    """Patch several sites between the same prompts in one sweep: by site, what `patch_prompts`
    gives up to rounding.

    Raises: as `patch_prompts`; MeasureError if the check of any site fails.
    """
    asked = _asked(model, prompts, by, None, scoring)
    on = model, asked.pairs, asked.metric, sites
    patches = {}
    for site, one in patch_sites(*on, by=by, budget=budget, progress=progress).items():
        if isinstance(one, MeasureError):
            raise one
        found = asked.finished(one)
        patches[site] = _with_tokens(found, asked.positions) if len(prompts) == 1 else found
    return patches


@dataclass(frozen=True)
class _Asked:
    """What a sweep is asked for prompts.

    Attributes:
        finished: turns the sweep's values into the prompts'.
        positions: the tokens of the first pair's clean prompt, and of its answers behind.
    """

    pairs: Pairs
    metric: Contrast | Metric
    finished: Callable[[Patched], Patched]
    positions: tuple[str, ...]


def _asked(
    model: Model,
    prompts: Sequence[Prompt],
    by: By | None,
    readout: int | str | None,
    scoring: Scoring,
) -> _Asked:
    """The pairs of prompts with the metric of their answers."""
    if readout is not None:
        prompts = [replace(prompt, readout=readout) for prompt in prompts]
    pairs = _paired(model, prompts, by)
    given = all(prompt.answer and prompt.counterpart for prompt in prompts)
    if given and any(has_several(model.tokenizer, prompt) for prompt in prompts):
        return _whole(Readings.of(model, tuple(prompts), scoring), pairs)
    return _single(model, prompts, pairs, "given" if given else "space-capital")


def _paired(model: Model, prompts: Sequence[Prompt], by: By | None) -> Pairs:
    """The prompts and their partners.

    Raises: BehaviourError for a prompt without one, or with one whose tokens do not correspond.
    """
    proposals = propose(model, prompts, (), aligned="last" if by == "last" else "role")
    if not proposals.pairs or proposals.excluded:
        raise _not_paired(model, prompts, proposals.excluded)
    return pairs_of(model, proposals.pairs)


def _single(model: Model, prompts: Sequence[Prompt], pairs: Pairs, rule: AnswerRule) -> _Asked:
    """Answers of one token, given or chosen."""
    logits = None if rule == "given" else run(model, pairs.clean, logits="last").logits
    answers = choose_answers(model, prompts, logits, rule=rule)
    if answers.errors:
        raise BehaviourError("; ".join(f"prompt {i}: {w}" for i, w in answers.errors.items()))
    form = "counterpart" if rule == "given" else "lowercase"
    weighed = tuple(((a.token,), (a.counterparts[form],)) for a in answers.chosen if a is not None)
    tokens = tuple(model.tokenizer.labels(pairs.clean.rows()[0]))
    return _Asked(
        pairs, answers.contrast(form), lambda found: replace(found, weighed=weighed), tokens
    )


def _whole(readings: Readings, pairs: Pairs) -> _Asked:
    """Answers of several tokens: a text for each side, read at several of its last positions."""
    both = with_answers(pairs, readings)
    positions = readings.model.tokenizer.labels(pairs.clean.rows()[0]) + _behind(readings)
    return _Asked(
        both, metric_of(readings), lambda found: by_prompt(readings, found), tuple(positions)
    )


def _behind(readings: Readings) -> list[str]:
    """The first prompt's answers, place by place: "South | North"."""
    first, label = readings.answers[0], readings.model.tokenizer.label
    places = zip_longest(first.answer, first.counterpart)
    both = [tuple(dict.fromkeys(id for id in place if id is not None)) for place in places]
    return [" | ".join(map(label, ids)) for ids in both]


def ablate_answers(
    readings: Readings,
    site: Site | str,
    *,
    kind: Ablation = "zero",
    budget: Budget = DEFAULT_BUDGET,
    progress: Tell | None = None,
) -> Patched:
    """Ablate one site at all positions, for answers of any length; otherwise as `ablate`.

    A mean or another's activation is taken from the prompts with their answers.
    """
    rows = [[*readings.answers[t.prompt].row, *t.before] for t in texts_of(readings)]
    found = ablate(
        readings.model,
        Tokens.of(rows),
        metric_of(readings),
        site,
        kind=kind,
        by="all",
        tails=places_of(readings).tails,
        budget=budget,
        progress=progress,
    )
    return by_prompt(readings, found)


def _not_paired(
    model: Model, prompts: Sequence[Prompt], excluded: Sequence[Excluded]
) -> BehaviourError:
    """The error for pairs that cannot be aligned, with both lengths if they differ."""
    lines = []
    for one in excluded:
        prompt, why = prompts[one.index], one.why
        if why == NO_ROLE and prompt.corrupted is not None:
            both = (prompt, partner_of(prompt, prompt.corrupted))
            clean, corrupted = (len(row_of(model.tokenizer, side)) for side in both)
            why = (
                f"the clean prompt has {clean} tokens and the corrupted one {corrupted}, and from "
                "the first token that differs they share no role to align them"
            )
        lines.append(f"prompt {one.index}: {why}")
    unequal = any(one.why == NO_ROLE for one in excluded)
    return BehaviourError(
        "; ".join(lines) or "no prompt",
        allowed=f"pairs of as many tokens; {UNEQUAL}" if unequal else _PARTNERS,
    )


_PARTNERS = "prompts with a corrupted partner"


def _with_tokens(found: Patched, tokens: Sequence[str]) -> Patched:
    """A grid's positions labelled "index:token"."""
    labels = [f"{i}:{token}" for i, token in enumerate(tokens)]

    def labelled(grid: Grid) -> Grid:
        axes = tuple(
            Axis("pos", tuple(labels[: len(axis)]))
            if axis.name == "pos" and len(axis) <= len(labels)
            else axis
            for axis in grid.axes
        )
        return replace(grid, axes=axes)

    return replace(found, raw=labelled(found.raw), known=labelled(found.known))
