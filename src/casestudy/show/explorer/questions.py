"""How is the model run for a request?

All calls of the model, as plain functions of the page's state: `app` calls them in the model's
thread. Costs: `panels` a forward pass of the prompts, `pattern` one of one prompt, `study_file` one
where the pair has to be chosen, `grid` a sweep, `part` the card of a part (see `part_cards`).
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from casestudy.errors import PromptError
from casestudy.results.components import read_component
from casestudy.show.explorer import panels as drawing
from casestudy.show.explorer.page_state import MOST_EDITED, PageState, Refusal
from casestudy.show.explorer.part_cards import PartCards, part_html, part_page
from casestudy.show.explorer.patches import Line, patch_grid
from casestudy.show.part_links import linked
from casestudy.show.text import visible

if TYPE_CHECKING:
    from casestudy.behaviour.prompts import Behaviour, Prompt
    from casestudy.model.model import Model
    from casestudy.show.explorer.worker import Pause

MOST_TOKENS = 1024
"""Tokens of a prompt, where the model could read more."""


@dataclass(frozen=True)
class Questions:
    """Answers the requests of a page.

    Attributes:
        model: the model.
        cards: the cards of its parts.
    """

    model: Model
    cards: PartCards = field(default_factory=PartCards)

    @property
    def most_tokens(self) -> int:
        """Tokens of the longest prompt allowed."""
        return min(self.model.config.n_ctx, MOST_TOKENS)

    def read(self, page_state: PageState) -> tuple[Model, Prompt]:
        """The model, reading special tokens' texts as the page asks, and the prompt that it reads,
        with its corrupted partner: the page's texts, or what the chat template writes of them.

        Raises: PromptError for messages that are not well formed, and as the template does.
        """
        from casestudy.behaviour.chat import written

        behaviour = written(self.model, self._behaviour(page_state))
        (prompt,) = behaviour.prompts
        if page_state.special and not page_state.chat:
            return self.model.with_special(), prompt
        return behaviour.read_by(self.model), prompt

    def _behaviour(self, page_state: PageState) -> Behaviour:
        """The page's prompt as a file holds it: a conversation before a template has written it."""
        from casestudy.behaviour.prompts import Behaviour, Prompt
        from casestudy.behaviour.readouts import readout_given
        from casestudy.model.chat import Chat

        prompt = Prompt(
            page_state.prompt,
            page_state.answer or None,
            page_state.counterpart or None,
            page_state.corrupted or None,
            readout=readout_given(page_state.readout),
        )
        chat = Chat(page_state.prefix) if page_state.chat else None
        return Behaviour("explored", prompts=(prompt,), chat=chat)

    def panels(self, page_state: PageState) -> tuple[dict[str, Markup], dict[str, Any]]:
        """All panels except patching, and the state that the page's script needs.

        Raises: CasestudyError for a prompt that cannot be run.
        """
        from casestudy.behaviour.readouts import first_readout, whole_row
        from casestudy.measure.quick_look import probe
        from casestudy.model.token import by_ids

        model, prompts = self.check(page_state)
        found = probe(model, prompts)
        weighed = found.problem is None
        state = {
            "answer": by_ids(found.answer) if weighed else None,
            "counterpart": by_ids(found.counterpart) if weighed else None,
            "weighed": weighed,
            "patch": weighed and bool(page_state.corrupted),
            "save": f"/study.toml?{page_state.query()}" if weighed else "",
        }
        first = first_readout(model.tokenizer, whole_row(model.tokenizer, prompts[0]))
        edits = self.edits(model, page_state, prompts[0])
        html = drawing.panels(found, page_state, edits, first)
        names = {name: _opening(html[name], page_state) for name in drawing.TITLES}
        return html | names, state

    def edits(self, model: Model, page_state: PageState, prompt: Prompt) -> list[tuple[str, str]]:
        """Minimal edits of the prompt up to where it is read, of the families that a study scores:
        name and text."""
        from casestudy.behaviour.counterfactual import FAMILIES
        from casestudy.behaviour.readouts import text_of

        listed = page_state.chat and page_state.prompt.lstrip().startswith("[")
        if len(page_state.prompt) > MOST_EDITED or listed:
            return []
        own = page_state.prompt if page_state.chat else text_of(model.tokenizer, prompt)
        behind = page_state.prompt[len(own) :]
        found = {family.edit(own): family.name for family in reversed(FAMILIES)}
        return [
            (name, text + behind)
            for text, name in reversed(found.items())
            if text is not None and text != own
        ]

    def check(self, page_state: PageState) -> tuple[Model, list[Prompt]]:
        """As `read`, with the corrupted prompt as a second one where there is one.

        Raises: PromptError for a prompt longer than is answered, naming both lengths.
        """
        from casestudy.behaviour.readouts import partner_of

        model, prompt = self.read(page_state)
        prompts = [prompt]
        if prompt.corrupted:
            prompts.append(partner_of(prompt, prompt.corrupted))
        tokenizer = model.tokenizer
        bos = tokenizer.prepend_bos
        for name, one in zip(("prompt", "corrupted prompt"), prompts, strict=False):
            if not one.text and not bos:
                raise PromptError(f"The {name} is empty", hint="Type something to continue")
            row = tokenizer.ids(one.text)
            if len(row) + bos > self.most_tokens:
                raise PromptError(
                    f"The {name} is {len(row) + bos:,} tokens long",
                    allowed=f"at most {self.most_tokens:,}, BOS included",
                )
        return model, prompts

    def pattern(self, page_state: PageState) -> dict[str, Any]:
        """One head's pattern in the prompt that is looked at."""
        from casestudy.measure.quick_look import head_pattern

        model, prompts = self.check(page_state)
        if not page_state.head:
            raise Refusal(400, "No head is named. Allowed: head=layer.head, as in 3.1.")
        layer, head = map(int, page_state.head.split("."))
        grid = head_pattern(model, prompts[page_state.row], layer, head)
        tokens = [visible(label.partition(":")[2]) for label in grid.axes[0].labels]
        return {
            "tokens": tokens,
            "bytes": base64.b64encode(drawing.pattern_bytes(grid)).decode("ascii"),
        }

    def study_file(self, page_state: PageState) -> str:
        """The state as a behaviour file; conversations stay messages."""
        from casestudy.behaviour.files_written import behaviour_toml
        from casestudy.behaviour.readouts import text_of
        from casestudy.measure.quick_look import weighed_sides

        model, (prompt, *_) = self.check(page_state)
        sides = weighed_sides(model, prompt)
        read = text_of(model.tokenizer, prompt)
        given = (prompt.answer, prompt.counterpart)
        # Several tokens were given as they are: no single id stands for them.
        answer, counterpart = (
            said if len(side) > 1 else model.tokenizer.written(side[0].id, after=read)
            for said, side in zip(given, sides, strict=True)
        )
        behaviour = self._behaviour(page_state)
        words = [visible("".join(token.label for token in side)) for side in sides]
        behaviour = replace(
            behaviour,
            prompts=(replace(behaviour.prompts[0], answer=answer, counterpart=counterpart),),
            question=f"Why does the model prefer “{words[0]}” to “{words[1]}”?",
            answers="given",
            about=f"Saved from casestudy's explorer, which ran it on {self.model.name}.",
            parse_special=not page_state.chat and model.tokenizer.parse_special,
        )
        return behaviour_toml(behaviour)

    def grid(self, page_state: PageState, pause: Pause, tell: Callable[[Line], None]) -> Line:
        """A patch grid; see `patch_grid`."""
        from casestudy.measure.quick_look import with_weighed

        model, (prompt, *_) = self.check(page_state)
        return patch_grid(model, with_weighed(model, prompt), page_state, pause, tell)

    def part(self, page_state: PageState, pause: Pause, tell: Callable[[Line], None]) -> Line:
        """The card of the page's part; the last line has it.

        Raises: Refusal where no part is named; SiteError for a part that the model lacks.
        """
        model, prompt = self._of_part(page_state)
        html = part_html(self.cards, model, prompt, page_state, pause, tell)
        return {"html": _opening(html, page_state), "part": page_state.part, "finished": True}

    def part_page(self, page_state: PageState, pause: Pause) -> str:
        """The same as a page of its own.

        Raises: as `part`; Refusal for a layer, which has no card.
        """
        model, prompt = self._of_part(page_state)
        if page_state.part.startswith("mlp"):
            raise Refusal(404, "A layer has no card. Allowed: a head or a neuron.")
        return part_page(self.cards, model, prompt, page_state, pause)

    def check_part(self, page_state: PageState) -> None:
        """Check that the page's part can be shown, before anything is computed.

        Raises: Refusal where no part is named; SiteError for a part that the model lacks.
        """
        from casestudy.measure.parts import read_part
        from casestudy.model.sites import check_layer

        part = read_component(page_state.part)
        if part is None:
            raise Refusal(400, "No part is named. Allowed: part=head 3.1, neuron 3.512 or mlp 3.")
        if part.kind != "mlp":
            read_part(self.model, part)
        elif part.layer is not None:
            check_layer(part.layer, self.model.config.n_layers)

    def _of_part(self, page_state: PageState) -> tuple[Model, Prompt]:
        self.check_part(page_state)
        model, (prompt, *_) = self.check(page_state)
        return model, prompt


def _opening(html: Markup, page_state: PageState) -> Markup:
    """HTML in which a part's name opens its card: without script as a page of its own."""

    def address(part: str) -> str:
        page = "/" if part.startswith("mlp") else "/card"
        return f"{page}?{page_state.query(part=part)}"

    return linked(html, address)
