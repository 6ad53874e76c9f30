"""What does a request ask of the model?

Everything that runs it, as plain functions of the page's state: `app` calls them in the model's own
thread. Costs: `panels` a forward pass of the prompts, `pattern` one of one prompt, `study_file` one
where the pair has to be chosen, `grid` a sweep.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from casestudy.errors import PromptError
from casestudy.show.explorer import panels as drawing
from casestudy.show.explorer.page_state import MOST_EDITED, PageState, Refusal
from casestudy.show.explorer.patches import Line, patch_grid
from casestudy.show.text import visible

if TYPE_CHECKING:
    from casestudy.model.model import Model
    from casestudy.model.token import Token
    from casestudy.show.explorer.worker import Pause

MOST_TOKENS = 1024
"""Tokens of a prompt, where the model could read more."""


@dataclass(frozen=True)
class Questions:
    """What can be asked of one model.

    Attributes:
        model: which is asked.
    """

    model: Model

    @property
    def most_tokens(self) -> int:
        """The longest prompt that is answered."""
        return min(self.model.config.n_ctx, MOST_TOKENS)

    def reader(self, page_state: PageState) -> Model:
        """The model, reading special tokens' texts as the page asks."""
        return self.model.with_special() if page_state.special else self.model

    def panels(self, page_state: PageState) -> tuple[dict[str, Markup], dict[str, Any]]:
        """Every quick panel, and what the page's script has to know.

        Raises: CasestudyError for a prompt that cannot be run.
        """
        from casestudy.measure.quick_look import probe

        self.check(page_state)
        found = probe(
            self.reader(page_state),
            page_state.texts,
            answer=page_state.answer or None,
            counterpart=page_state.counterpart or None,
        )
        weighed = found.problem is None
        state = {
            "answer": found.answer and found.answer.by_id,
            "counterpart": found.counterpart and found.counterpart.by_id,
            "weighed": weighed,
            "patch": weighed and bool(page_state.corrupted),
            "save": f"/study.toml?{page_state.query()}" if weighed else "",
        }
        return drawing.panels(found, page_state, self.edits(page_state)), state

    def edits(self, page_state: PageState) -> list[tuple[str, str]]:
        """Minimal edits of the prompt, by the kinds that a study scores: name and text."""
        from casestudy.behaviour.counterfactual import FAMILIES

        if len(page_state.prompt) > MOST_EDITED:
            return []
        found = {family.edit(page_state.prompt): family.name for family in reversed(FAMILIES)}
        return [
            (name, text)
            for text, name in reversed(found.items())
            if text is not None and text != page_state.prompt
        ]

    def check(self, page_state: PageState) -> None:
        """Raises: PromptError for a prompt longer than is answered, naming both lengths."""
        tokenizer = self.reader(page_state).tokenizer
        bos = tokenizer.prepend_bos
        for name, text in zip(("prompt", "corrupted prompt"), page_state.texts, strict=False):
            if not text and not bos:
                raise PromptError(f"The {name} is empty", hint="Type something to continue")
            row = tokenizer.ids(text)
            if len(row) + bos > self.most_tokens:
                raise PromptError(
                    f"The {name} is {len(row) + bos:,} tokens long",
                    allowed=f"at most {self.most_tokens:,}, BOS included",
                )

    def pair(self, page_state: PageState) -> tuple[Token, Token]:
        """Answer and counterpart, chosen as the panels choose them.

        Raises: CasestudyError where they cannot be weighed.
        """
        from casestudy.measure.quick_look import weighed

        self.check(page_state)
        given = (page_state.answer or None, page_state.counterpart or None)
        return weighed(self.reader(page_state), page_state.prompt, *given)

    def pattern(self, page_state: PageState) -> dict[str, Any]:
        """One head's pattern in the prompt that is looked at."""
        from casestudy.measure.quick_look import head_pattern

        self.check(page_state)
        if not page_state.head:
            raise Refusal(400, "No head is named. Allowed: head=layer.head, as in 3.1.")
        layer, head = map(int, page_state.head.split("."))
        text = page_state.texts[page_state.row]
        grid = head_pattern(self.reader(page_state), text, layer, head)
        tokens = [visible(label.partition(":")[2]) for label in grid.axes[0].labels]
        return {
            "tokens": tokens,
            "bytes": base64.b64encode(drawing.pattern_bytes(grid)).decode("ascii"),
        }

    def study_file(self, page_state: PageState) -> str:
        """The state as a behaviour file."""
        from casestudy.behaviour.files_written import behaviour_toml
        from casestudy.behaviour.prompts import Behaviour, Prompt

        answer, counterpart = self.pair(page_state)
        prompt = Prompt(
            page_state.prompt,
            answer=self._written(answer, page_state),
            counterpart=self._written(counterpart, page_state),
            corrupted=page_state.corrupted or None,
        )
        behaviour = Behaviour(
            "explored",
            f"Why does the model prefer “{visible(answer)}” to “{visible(counterpart)}”?",
            (prompt,),
            answers="given",
            about=f"Saved from casestudy's explorer, which ran it on {self.model.name}.",
            parse_special=self.reader(page_state).tokenizer.parse_special,
        )
        return behaviour_toml(behaviour)

    def _written(self, token: Token, page_state: PageState) -> str:
        return self.reader(page_state).tokenizer.written(token.id, after=page_state.prompt)

    def grid(self, page_state: PageState, pause: Pause, tell: Callable[[Line], None]) -> Line:
        """A patch grid; see `patch_grid`."""
        return patch_grid(self.reader(page_state), page_state, self.pair(page_state), pause, tell)
