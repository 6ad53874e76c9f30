"""What does the explorer show of a part that was clicked on?

The card of a head or neuron: the study's stored one where the page was opened with a study that has
it, or one made for the page's prompt, over the corpus that the server was given. Of an MLP layer,
its neurons with the largest direct contributions, each of which has a card. Cost: without a corpus
a few forward passes; with one, reading it through the layers up to the part's (see
`measure/part_card`). A card stops at its next step when it is no longer wanted, and the last
`KEPT` cards are kept.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from casestudy.errors import CasestudyError
from casestudy.results import components
from casestudy.results.components import Component
from casestudy.results.part_card import PartCard
from casestudy.show.blocks import Listing
from casestudy.show.explorer.page_state import PageState
from casestudy.show.page import figure_html
from casestudy.show.part_card import part_card_html, part_panel
from casestudy.show.text import clean, prompt_excerpt, signed

if TYPE_CHECKING:
    from casestudy.behaviour.prompts import Behaviour, Prompt
    from casestudy.engine.packing import Progress
    from casestudy.model.model import Model
    from casestudy.show.explorer.patches import Line
    from casestudy.show.explorer.worker import Pause

KEPT = 16
"""Cards that are kept, the newest: opened again, a card is there at once."""
CONTEXTS, LOSS_WINDOWS = 12, 16
"""Of a card made here: fewer than `casestudy part` has by default, since somebody waits."""
NEURONS = 20
"""Neurons listed of an MLP layer."""
NO_CORPUS = "without text: start the explorer with --corpus TEXT for the contexts"


@dataclass
class PartCards:
    """The cards of one server.

    Attributes:
        corpus: files and folders of text.
        stored: a study's cards by part.
        study: the name of that study.
    """

    corpus: Sequence[Path] = ()
    stored: Mapping[str, PartCard] = field(default_factory=dict)
    study: str = ""
    _made: OrderedDict[tuple[str, str], PartCard] = field(default_factory=OrderedDict)

    def card(
        self,
        model: Model,
        prompt: Prompt,
        page_state: PageState,
        pause: Pause,
        tell: Callable[[Line], None],
    ) -> tuple[PartCard, str]:
        """A part's card, and what it is of in a sentence.

        Args:
            model: as it reads the page's prompt.
            prompt: the page's.
            page_state: the part.
            pause: called between steps; an exception that it raises ends the work.
            tell: called with lines on the progress.

        Raises: SiteError for a part that the model lacks; BehaviourError for a corpus without text.
        """
        known = self.stored.get(page_state.part)
        if known is not None and known.about["model"]["weight_hash"] == model.weight_hash:
            return known, f"Of the study {self.study}: its prompts, and the text its cards are of."
        key = (page_state.part, replace(page_state, view="clean", head="").query())
        if key not in self._made:
            self._made[key] = self._make(model, prompt, page_state.part, pause, tell)
            if len(self._made) > KEPT:
                self._made.popitem(last=False)
        self._made.move_to_end(key)
        over = f"and {self._words}" if self.corpus else NO_CORPUS
        return self._made[key], f"Of the prompt “{prompt_excerpt(prompt.text, 60)}” alone, {over}."

    @property
    def _words(self) -> str:
        """The corpus in words."""
        return "the text in " + ", ".join(clean(path.name) for path in self.corpus or ())

    def _make(
        self,
        model: Model,
        prompt: Prompt,
        part: str,
        pause: Pause,
        tell: Callable[[Line], None],
    ) -> PartCard:
        from casestudy.measure.part_card import part as make_card

        def progress(step: Progress) -> None:
            pause()
            tell({"note": step.note or step.stage, "done": step.done, "total": step.total})

        return make_card(
            model,
            part,
            behaviour=_behaviour(model, prompt),
            corpus=self.corpus or None,
            k=CONTEXTS,
            loss_windows=LOSS_WINDOWS,
            progress=progress,
        )


def _behaviour(model: Model, prompt: Prompt) -> Behaviour:
    """The page's prompt, with the answers that the page compares where it has two."""
    from casestudy.behaviour.prompts import Behaviour
    from casestudy.measure.quick_look import with_weighed

    with contextlib.suppress(CasestudyError):  # the panels say why; the card has no contrast then
        prompt = with_weighed(model, prompt)
    return Behaviour("this prompt", prompts=(replace(prompt, corrupted=None),), answers="given")


def part_html(
    cards: PartCards,
    model: Model,
    prompt: Prompt,
    page_state: PageState,
    pause: Pause,
    tell: Callable[[Line], None],
) -> Markup:
    """The panel of the part that the page names; see the module."""
    part = components.read_component(page_state.part)
    if part is not None and part.kind == "mlp":
        return figure_html(_neurons(model, prompt, part))
    card, basis = cards.card(model, prompt, page_state, pause, tell)
    return part_panel(card, basis, f"/card?{page_state.query()}")


def part_page(
    cards: PartCards, model: Model, prompt: Prompt, page_state: PageState, pause: Pause
) -> str:
    """The card as a page of its own."""
    card, _ = cards.card(model, prompt, page_state, pause, lambda line: None)
    return part_card_html(card)


def _neurons(model: Model, prompt: Prompt, part: Component) -> Listing:
    """The neurons of an MLP layer with the largest direct contributions to the prompt."""
    from casestudy.behaviour.steps import any_several
    from casestudy.measure.attribution import neuron_attribution

    assert part.layer is not None
    grid = neuron_attribution(model, _behaviour(model, prompt))
    shares = grid.select(
        contrast=grid.axis("contrast").labels[0], layer=str(part.layer), prompt="0"
    )
    values = shares.values[:-1]  # without the biases
    order = np.argsort(-np.abs(np.nan_to_num(values)), kind="stable")[:NEURONS].tolist()
    order = [i for i in order if np.isfinite(values[i])]
    several = any_several(model.tokenizer, [prompt])
    of = "the difference of the answers’ first tokens" if several else "this prompt’s difference"
    if order:
        whole = float(np.nansum(shares.values))
        said = f"{part} writes {signed(whole, 3)} {shares.unit} of it in sum."
    elif several:
        said = "Not measured: both answers begin with the same token."
    else:
        said = "Not measured: the prompt has no answer and counterpart."
    return Listing(
        f"The neurons of {part} that write most of {of}",
        ("neuron", "direct contribution#"),
        [(components.neuron(part.layer, i), signed(float(values[i]), 3)) for i in order],
        f"{said} A layer has no card; each of its neurons has one.",
    )
