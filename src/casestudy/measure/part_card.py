"""What does one part of a model do? Its card.

    where it is active     over a corpus (`part_activity`, `part_selectivity`)
    what it writes         tokens, and its share of a behaviour's logit difference (`part_writes`)
    what it reads          earlier parts that make its input or its attention (`part_reads`)
    what it is needed for  exact ablation on the behaviour, and on other text (`part_ablation`)

Each needs what it is about: without a corpus or a behaviour the rest is absent, with the reason.
The card says what was measured; it gives the part no label. Cost: the modules' own; most of it is
the corpus, at the layers up to the part's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from casestudy.behaviour.chat import written
from casestudy.behaviour.contrast import Contrast
from casestudy.behaviour.prompts import Behaviour, Prompts
from casestudy.behaviour.steps import any_several
from casestudy.behaviour.windows import Corpus, Windows
from casestudy.engine.batch import Batch, Measurement, run_batch
from casestudy.engine.packing import DEFAULT_BUDGET, Budget, Progress, Tell
from casestudy.errors import MeasureError
from casestudy.measure.attention import role_axis, roles_seen
from casestudy.measure.part_ablation import ablate_on_corpus, ablate_on_prompts
from casestudy.measure.part_activity import Activity, activities_in
from casestudy.measure.part_reads import Choice, InputPositions, ReadAt, of_contexts, split_input
from casestudy.measure.part_selectivity import selectivity
from casestudy.measure.part_tables import contexts_table, signs_table, values_table
from casestudy.measure.part_writes import (
    keep_for_share,
    ledger_share,
    promoted_tokens,
    source_tokens,
)
from casestudy.measure.parts import CardPart, DirectionPart, HeadPart, NeuronPart, read_part
from casestudy.measure.subspaces import ALL, LAST
from casestudy.model.decoder import run
from casestudy.model.model import Model
from casestudy.model.sites import Keep
from casestudy.model.tokens import Tokens
from casestudy.model.trace import Trace
from casestudy.results import names
from casestudy.results.part_card import PartCard
from casestudy.results.result import Axis, Grid, Result
from casestudy.results.stats import mean_over_prompts

WINDOW = 128
"""Tokens of a window, by default."""
LOSS_WINDOWS = 32
"""Windows on which the next-token loss is measured, by default."""


@dataclass(frozen=True)
class CardSettings:
    """How a card is made.

    Attributes:
        k: how many of the strongest contexts.
        window: tokens of a window of the corpus, BOS included; None as `part` has it.
        loss_windows: how many windows the next-token loss is measured on.
        budget: memory, checks, seed.
    """

    k: int = 20
    window: int | None = None
    loss_windows: int = LOSS_WINDOWS
    budget: Budget = DEFAULT_BUDGET


def part(
    model: Model,
    part: str,
    *,
    behaviour: Prompts | None = None,
    corpus: Corpus | None = None,
    k: int = 20,
    window: int | None = None,
    loss_windows: int = LOSS_WINDOWS,
    budget: Budget = DEFAULT_BUDGET,
    progress: Tell | None = None,
) -> PartCard:
    """The card of a part: where it is active, what it writes, reads and is needed for.

    Args:
        model: the decoder.
        part: "head 0.2", "mlp 4 neuron 312", "neuron 4.312", or the path of a direction's file
            (.safetensors, as `casestudy direction` writes it).
        behaviour: prompts with a contrast.
        corpus: files or folders of text (.txt, .jsonl, .parquet), or texts by document.
        k: how many of the strongest contexts.
        window: tokens of a window of the corpus, BOS included; by default 128, or as many as the
            model reads.
        loss_windows: how many windows the next-token loss is measured on.
        budget: memory and checks of the ablation, seed of everything drawn.
        progress: called with the bytes of the corpus that were read, and with the steps after it.

    Raises: SiteError for a part the model lacks; MeasureError for a file that is no direction of
            this model; BehaviourError for a corpus without text;
            MeasureError for a corpus of fewer than k positions, for a k below 1, and for values
            that are not finite.
    """
    settings = CardSettings(k, window, loss_windows, budget)
    (card,) = part_cards(
        model, [part], behaviour=behaviour, corpus=corpus, settings=settings, progress=progress
    )
    return card


def part_cards(
    model: Model,
    parts: Sequence[str],
    *,
    behaviour: Prompts | None = None,
    corpus: Corpus | None = None,
    settings: CardSettings | None = None,
    progress: Tell | None = None,
) -> Iterator[PartCard]:
    """The cards of several parts, for which the corpus is read once; see `part`.

    The parts and the settings are checked, and the corpus is read, when the first card is asked
    for.
    """
    settings = settings or CardSettings()
    for name, value in (("k", settings.k), ("loss_windows", settings.loss_windows)):
        if value < 1:
            raise MeasureError(f"{name} is {value}", allowed="at least 1")
    subjects = [read_part(model, part) for part in parts]
    found: Sequence[Activity | None] = [None] * len(subjects)
    about: dict[str, Any] = {}
    if corpus is not None and subjects:
        found, about = _read_corpus(model, subjects, corpus, settings, progress)
    prompts = None if behaviour is None else _Prompts.of(model, behaviour, subjects)
    for subject, activity in zip(subjects, found, strict=True):
        making = _Making(model, subject, settings, progress)
        if activity is not None:
            making.take_corpus(activity, about)
        if prompts is not None:
            making.take_prompts(prompts)
        yield making.card()


def _read_corpus(
    model: Model,
    parts: Sequence[CardPart],
    corpus: Corpus,
    settings: CardSettings,
    progress: Tell | None,
) -> tuple[list[Activity], dict[str, Any]]:
    """Where each part is active in a corpus, and what the corpus is."""

    def tell(done: int, total: int) -> None:
        if progress is not None:
            progress(Progress("corpus", done, total))

    length = settings.window
    length = min(WINDOW, model.config.n_ctx) if length is None else length
    windows = Windows(corpus, model.tokenizer, length, tell)
    k, most = settings.k, settings.loss_windows
    every = activities_in(model, parts, windows, k=k, most_windows=most, seed=settings.budget.seed)
    return every, {
        "documents": windows.documents,
        "bytes": windows.bytes,
        "windows": len(every[0].documents),
        "window": length,
        "positions": every[0].n,
        "resampled": every[0].units()[1],
        "skipped": dict(windows.skipped),
        "k": k,
    }


class _Making:
    """A card while it is made."""

    def __init__(
        self, model: Model, part: CardPart, settings: CardSettings, progress: Tell | None
    ) -> None:
        self.model, self.part, self.settings, self.progress = model, part, settings, progress
        self.results: list[Result] = []
        self.absent: list[tuple[str, str]] = []
        self.notes: list[str] = _approximations(model, part)
        self.about: dict[str, Any] = {
            "model": {
                "name": model.name,
                "source": model.source,
                "weight_hash": model.weight_hash,
                "dtype": str(model.dtype).removeprefix("torch."),
                "rewrites": list(model.rewrites),
            },
            "seed": settings.budget.seed,
        }
        self.activity: Activity | None = None
        self.prompts: _Prompts | None = None

    # The corpus

    def take_corpus(self, found: Activity, about: Mapping[str, Any]) -> None:
        """Where the part is active in a corpus."""
        self.activity = found
        self.about["corpus"] = dict(about)
        self.results += [contexts_table(self.model, found), values_table(found)]
        if len(found.groups) > 1:
            self.results.append(signs_table(found))

    # The behaviour

    def take_prompts(self, found: _Prompts) -> None:
        """A behaviour's prompts."""
        self.prompts = found
        behaviour, batch = found.batch.behaviour, found.batch
        assert behaviour is not None
        self.about["behaviour"] = {
            "name": behaviour.name,
            "question": behaviour.question,
            "contrast": batch.contrasts[0].name,
            "prompts": len(batch.index),
            "with_contrast": len(found.usable),
        }
        if any_several(batch.model.tokenizer, batch.prompts):
            self.notes.append(
                "Some answers have several tokens: the figures on the behaviour compare the first "
                "tokens of answer and counterpart."
            )
        if len(found.usable) == 1:
            self.notes.append(
                "There is one prompt: its mean over the prompts is its own output, so that "
                "replacing the part by it changes nothing."
            )
        left = len(batch.index) - len(found.usable)
        if left:
            self.notes.append(
                f"{left} of {len(batch.index)} prompts have no answer with a counterpart; they are "
                "left out of the contrast's figures."
            )

    # The card

    def card(self) -> PartCard:
        """Everything that can be measured."""
        with torch.no_grad():
            self._active()
            self._writes()
            self._reads()
            self._needed()
        return PartCard(
            self.part.name,
            self.part.kind,
            self.about,
            tuple(self.results),
            tuple(self.absent),
            tuple(self.notes),
        )

    def _tell(self, note: str) -> None:
        if self.progress is not None:
            self.progress(Progress("card", 0, 0, note))

    def _add(self, grid: Grid) -> None:
        """A grid over prompts, with its means."""
        documents = None
        if self.prompts is not None and grid.name != names.PART_READS_CONTEXTS:
            documents = self.prompts.documents(grid.axis("prompt").labels)
        mean = mean_over_prompts(grid, documents=documents, seed=self.settings.budget.seed)
        self.results += [grid, mean]

    def _active(self) -> None:
        if self.activity is None:
            self.absent.append(("Where it is active", "no corpus was given"))
        trace = self.prompts.whole(self.part) if self.prompts is not None else None
        if self.activity is None and trace is None:
            return
        roles = [] if self.prompts is None else self.prompts.roles
        lengths = [] if self.prompts is None else self.prompts.batch.tokens.lengths.tolist()
        activity = None if trace is None else self.part.activity(self.model, trace)
        self.results.append(selectivity(self.activity, activity, roles, lengths))
        if isinstance(self.part, HeadPart) and trace is not None and self.prompts is not None:
            self._add(_attention(self.model, self.part, trace, self.prompts))

    def _writes(self) -> None:
        self._tell("what it writes")
        if isinstance(self.part, NeuronPart | DirectionPart):
            self.results.append(promoted_tokens(self.model, self.part))
        elif isinstance(self.part, HeadPart) and self.activity is not None:
            assert self.activity.sources is not None
            self.results.append(source_tokens(self.model, self.part, self.activity.sources))
        else:
            self.absent.append(("What it writes", "no corpus was given, which has source tokens"))
        if self.prompts is None:
            why = "no behaviour was given"
            self.absent += [("Its share of a logit difference", why)]
        elif self.prompts.usable:
            self._add(ledger_share(self.prompts.batch, self.part))
        else:
            why = "no prompt has an answer with a counterpart"
            self.absent.append(("Its share of a logit difference", why))

    def _reads(self) -> None:
        self._tell("what it reads")
        found = {}
        if self.prompts is not None:
            found[names.PART_READS] = self._of_prompts(self.prompts)
        if self.activity is not None:
            found[names.PART_READS_CONTEXTS] = of_contexts(self.model, self.part, self.activity)
        at: dict[str, str] = {}
        for name, one in found.items():
            if one is None:
                what = "prompt" if name == names.PART_READS else "context"
                self.absent.append(("What it reads", f"no {what} has keys to compare"))
                continue
            reading, choices, at[name] = one
            grid = split_input(self.model, self.part, reading, choices)
            self._add(replace(grid, name=name))
        if not found:
            self.absent.append(("What it reads", "neither a corpus nor a behaviour was given"))
        self.about["reads_at"] = at

    def _of_prompts(self, prompts: _Prompts) -> ReadAt | None:
        """The prompts' last tokens, for a head with the keys to compare."""
        if isinstance(self.part, HeadPart):
            return prompts.choices(self.results)
        return prompts.reading(), [], "the last token of each prompt"

    def _needed(self) -> None:
        self._tell("what it is needed for")
        seed = self.settings.budget.seed
        if self.prompts is None:
            self.absent.append(("Ablation on a behaviour", "no behaviour was given"))
        elif self.prompts.usable:
            found = self.prompts
            self._add(
                ablate_on_prompts(
                    found.batch.model,
                    self.part,
                    found.tokens,
                    found.contrast,
                    roles=[found.roles[i] for i in found.usable],
                    labels=[str(found.batch.index[i]) for i in found.usable],
                    found=self.activity,
                    budget=self.settings.budget,
                )
            )
        if self.activity is None:
            self.absent.append(("Ablation on other text", "no corpus was given"))
        else:
            self.results.append(
                ablate_on_corpus(self.model, self.activity, seed=seed, progress=self.progress)
            )


def _approximations(model: Model, part: CardPart) -> list[str]:
    """What of a part's card is not exact in this model."""
    block = model.weights.blocks[part.layer]
    if isinstance(part, DirectionPart):
        if part.role == ALL:
            return []
        return [
            f"The directions were found at {_where(part.role)}; this card measures and ablates "
            "them at every position."
        ]
    notes = []
    after = block.attn_post_norm if isinstance(part, HeadPart) else block.mlp_post_norm
    if after is not None:
        where = "attention" if isinstance(part, HeadPart) else "MLP"
        notes.append(
            f"This model has a norm after its {where}: what the part writes is taken at that "
            "norm's scale as it was in the run, though the part is one of those that set the "
            "scale. Token effects leave the scale out. Ablations recompute it and are exact."
        )
    return notes


def _where(role: str) -> str:
    return "the last token" if role == LAST else f"the role “{role}”"


# Prompts


@dataclass(frozen=True)
class _Prompts:
    """A behaviour's main prompts.

    Attributes:
        batch: their run.
        usable: those with a contrast, as rows of the batch.
        roles: each one's positions by role.
    """

    batch: Batch
    usable: list[int]
    roles: list[dict[str, tuple[int, ...]]]

    @classmethod
    def of(cls, model: Model, prompts: Prompts, parts: Sequence[CardPart]) -> _Prompts:
        """Run the main prompts once, for several parts."""
        behaviour = written(model, Behaviour.of(prompts))
        model = behaviour.read_by(model)

        def keep(model: Model) -> list[Keep]:
            return [one for part in parts for one in keep_for_share(model, part)]

        measurement = Measurement("part", keep, lambda _: [])
        batch = run_batch(model, behaviour, behaviour.main_prompts, [measurement])
        weights = batch.contrasts[0].weights
        usable = (~weights.isnan().any(1)).nonzero()[:, 0].tolist()
        return cls(batch, usable, [dict(row) for row in roles_seen(batch)])

    @property
    def tokens(self) -> Tokens:
        """Of those with a contrast."""
        return self.batch.tokens[self.usable]

    @property
    def contrast(self) -> Contrast:
        """Of those with one."""
        return self.batch.contrasts[0][self.usable]

    def documents(self, labels: tuple[str, ...]) -> list[str]:
        """Each prompt's document, by its label."""
        known = dict(zip(map(str, self.batch.index), self.batch.prompts, strict=True))
        return [known[label].document for label in labels]

    def whole(self, part: CardPart) -> Trace:
        """What the part does at every position."""
        return run(self.batch.model, self.batch.tokens, keep=part.keep(self.batch.model))

    def reading(self) -> InputPositions:
        """Each prompt at its last token."""
        positions = self.batch.tokens.last.tolist()
        return InputPositions(self.batch.tokens, positions, self.batch.prompt_axis.labels)

    def choices(self, results: list[Result]) -> ReadAt | None:
        """The role that gets most of the head's attention, against the prompts' other keys."""
        name = names.mean(names.PART_ATTENTION)
        mean = next(r for r in results if isinstance(r, Grid) and r.name == name)
        order = np.argsort(-np.nan_to_num(mean.values), kind="stable")
        for role in (mean.axis("role").labels[i] for i in order):
            rows, found = [], []
            for i, (row, n) in enumerate(
                zip(self.roles, self.batch.tokens.lengths.tolist(), strict=True)
            ):
                chosen = tuple(row.get(role, ()))
                others = tuple(p for p in range(n) if p not in chosen)
                if chosen and others:
                    rows.append(i)
                    found.append(Choice(chosen, others))
            if rows:
                labels = tuple(self.batch.prompt_axis.labels[i] for i in rows)
                tokens = self.batch.tokens[rows]
                words = f"the last token, keys of the role “{role}” against the other keys"
                return InputPositions(tokens, tokens.last.tolist(), labels), found, words
        return None


def _attention(model: Model, part: HeadPart, trace: Trace, prompts: _Prompts) -> Grid:
    """The head's attention from each prompt's last token to the tokens of each role."""
    pattern = part.pattern(model, trace)
    every = torch.arange(len(prompts.roles), device=pattern.device)
    last = pattern[every, trace.tokens.last].double().cpu()
    seen = role_axis(prompts.batch)
    values = np.full((len(seen), len(prompts.roles)), np.nan)
    for i, row in enumerate(prompts.roles):
        for j, role in enumerate(seen):
            if role in row:
                values[j, i] = float(last[i, list(row[role])].sum())
    return Grid(
        names.PART_ATTENTION,
        values,
        (Axis("role", seen), prompts.batch.prompt_axis),
        "share",
        about=f"Attention of {part.name} from the last token of the prompt, summed over the "
        "positions of each role. Roles may overlap.",
    )
