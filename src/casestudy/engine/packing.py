"""How much is computed at once?

This planner turns lengths, first positions, costs and a limit into batches. `pack` makes batches of
prompts, which are padded to one length. `fill` makes batches of items without a length, such as
cells, circuits or messages, in their order.

A plan decides how much memory and time something takes. Results do not depend on it beyond float
rounding; the same plan and thread count give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

DEFAULT_MEMORY = 2 << 30
USEFUL = 0.75
"""The least share of a batch's computed positions that are not padding."""


@dataclass(frozen=True)
class Budget:
    """How something is computed. Numbers do not depend on it, beyond float rounding; `seconds`
    decides how many there are, and a result says what was left out.

    Attributes:
        memory: bytes, beyond the model's own parameters.
        check: how many of the results to compute again the plain way.
        seed: which those are, and of whatever else is drawn.
        rows: the most rows (variants times positions) computed at once; by default what keeps the
            device busy. Smaller ones let a watcher see more, sooner.
        seconds: the most computing time, for what can be made smaller: a circuit's evidence, a
            study. No limit by default.
    """

    memory: int = DEFAULT_MEMORY
    check: int = 8
    seed: int = 0
    rows: int | None = None
    seconds: float | None = None

    def checking(self, most: int) -> Budget:
        """The same, with at most so many results computed again."""
        return replace(self, check=min(self.check, most))


DEFAULT_BUDGET = Budget()


@dataclass(frozen=True)
class Progress:
    """How much of a computation is done.

    Attributes:
        stage: what is being computed: "sweep", "circuits", a stage of a study.
        done, total: how many of its parts.
        note: which part, where that says more than their number.
        within: how far that part is, where it has parts itself.
        left: seconds until everything is done, where that was estimated.
    """

    stage: str
    done: int
    total: int
    note: str = ""
    within: Progress | None = None
    left: float | None = None

    def tell_within(self, tell: Tell) -> Tell:
        """Tells this one, with what it is told of the part that the note names."""
        return lambda part: tell(replace(self, within=part))


@dataclass(frozen=True)
class Planned(Progress):
    """What a stage is about to cost, told before it begins.

    Attributes:
        words: a sentence for people.
    """

    words: str = ""


Tell = Callable[[Progress], None]
"""Called after each batch with the progress so far."""


def pack(
    ends: Sequence[int],
    starts: Sequence[int] | None = None,
    *,
    fits: Callable[[int, int, int], bool],
    useful: float = USEFUL,
    parts: int = 1,
    weights: Sequence[int] | None = None,
) -> list[list[int]]:
    """Prompts of like length and first position, batch by batch, so that little is padding.

    Args:
        ends: each prompt's length.
        starts: the first position that is computed of each; 0 by default.
        fits: whether so many prompts of this length, computed at so many positions each, can be
            taken at once; one prompt always is.
        useful: the least share of a batch's positions that are its prompts' own.
        parts: divide the work at least into so many parts of about equal weight, if there are as
            many prompts.
        weights: of each prompt's work; by default the number of its computed positions.

    Returns: indices of prompts, each batch ordered by length.
    """
    starts = [0] * len(ends) if starts is None else starts
    batches: list[list[int]] = []
    work = [end - start for end, start in zip(ends, starts, strict=True)]
    work = work if weights is None else list(weights)
    whole = sum(work) or 1
    own, first, before, opened = 0, 0, 0, 0
    for b in sorted(range(len(ends)), key=lambda b: (ends[b], starts[b])):
        # ordered by length: the newcomer is the longest, and all are padded to it
        n = len(batches[-1]) + 1 if batches else 1
        first, own = min(first, starts[b]), own + ends[b] - starts[b]
        width = ends[b] - first
        share = parts * (2 * before + work[b]) // (2 * whole)  # by its middle
        spare = own < useful * (n * width)
        if not batches or share > opened or spare or not fits(n, ends[b], width):
            batches.append([])
            own, first, opened = ends[b] - starts[b], starts[b], share
        batches[-1].append(b)
        before += work[b]
    return batches


def fill(costs: Sequence[int], limit: int, *, even: bool = False) -> list[list[int]]:
    """Items in order, in batches that cost no more than the limit; a batch has at least one.

    Args:
        even: make batches of about equal cost instead of full ones and a rest.
    """
    total = sum(costs)
    target = total / max(1, -(-total // limit)) if even else limit + 1
    batches: list[list[int]] = []
    held = 0
    for i, cost in enumerate(costs):
        if not batches or held + cost > limit or held >= target:
            batches.append([])
            held = 0
        batches[-1].append(i)
        held += cost
    return batches
