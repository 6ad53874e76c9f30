"""How is the model run for a request?

All calls of the model, as plain functions of the page's state: `app` calls them in the model's
thread. Costs: `panels` a forward pass of the prompts, `pattern` one of one prompt, `study_file` one
where the pair has to be chosen, `grid` a sweep.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from casestudy.errors import PromptError
from casestudy.show.explorer import panels as drawing
from casestudy.show.explorer.page_state import MOST_EDITED, PageState, Refusal
from casestudy.show.explorer.patches import Line, patch_grid
from casestudy.show.text import visible

if TYPE_CHECKING:
    from casestudy.behaviour.prompts import Behaviour
    from casestudy.model.model import Model
    from casestudy.model.token import Token
    from casestudy.show.explorer.worker import Pause

MOST_TOKENS = 1024
"""Tokens of a prompt, where the model could read more."""


@dataclass(frozen=True)
class Questions:
    """Answers the requests of a page.

    Attributes:
        model: the model.
    """

    model: Model

    @property
    def most_tokens(self) -> int:
        """Tokens of the longest prompt allowed."""
        return min(self.model.config.n_ctx, MOST_TOKENS)

    def read(self, page_state: PageState) -> tuple[Model, PageState]:
        """The model, reading special tokens' texts as the page asks, and the texts that it reads:
        the page's own, or what the chat template writes of them.

        Raises: PromptError for messages that are not well formed, and as the template does.
        """
        if not page_state.chat:
            return self.model.with_special() if page_state.special else self.model, page_state
        from casestudy.behaviour.chat import written

        behaviour = written(self.model, self._behaviour(page_state))
        (prompt,) = behaviour.prompts
        texts = {"prompt": prompt.text, "corrupted": prompt.corrupted or ""}
        return behaviour.read_by(self.model), replace(page_state, **texts)

    def _behaviour(
        self, page_state: PageState, answer: str | None = None, counterpart: str | None = None
    ) -> Behaviour:
        """The page's prompt as a file holds it: a conversation before a template has written it."""
        from casestudy.behaviour.prompts import Behaviour, Prompt
        from casestudy.model.chat import Chat

        prompt = Prompt(page_state.prompt, answer, counterpart, page_state.corrupted or None)
        chat = Chat(page_state.prefix) if page_state.chat else None
        return Behaviour("explored", prompts=(prompt,), chat=chat)

    def panels(self, page_state: PageState) -> tuple[dict[str, Markup], dict[str, Any]]:
        """All panels except patching, and the state that the page's script needs.

        Raises: CasestudyError for a prompt that cannot be run.
        """
        from casestudy.measure.quick_look import probe

        model, read = self.check(page_state)
        found = probe(
            model,
            read.texts,
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
        """Minimal edits of the prompt, of the families that a study scores: name and text."""
        from casestudy.behaviour.counterfactual import FAMILIES

        listed = page_state.chat and page_state.prompt.lstrip().startswith("[")
        if len(page_state.prompt) > MOST_EDITED or listed:
            return []
        found = {family.edit(page_state.prompt): family.name for family in reversed(FAMILIES)}
        return [
            (name, text)
            for text, name in reversed(found.items())
            if text is not None and text != page_state.prompt
        ]

    def check(self, page_state: PageState) -> tuple[Model, PageState]:
        """As `read`; raises PromptError for a prompt longer than is answered, naming both
        lengths."""
        model, read = self.read(page_state)
        tokenizer = model.tokenizer
        bos = tokenizer.prepend_bos
        for name, text in zip(("prompt", "corrupted prompt"), read.texts, strict=False):
            if not text and not bos:
                raise PromptError(f"The {name} is empty", hint="Type something to continue")
            row = tokenizer.ids(text)
            if len(row) + bos > self.most_tokens:
                raise PromptError(
                    f"The {name} is {len(row) + bos:,} tokens long",
                    allowed=f"at most {self.most_tokens:,}, BOS included",
                )
        return model, read

    def pair(self, page_state: PageState) -> tuple[Token, Token]:
        """Answer and counterpart, chosen as in the panels.

        Raises: CasestudyError where they cannot be weighed.
        """
        from casestudy.measure.quick_look import weighed

        model, read = self.check(page_state)
        given = (page_state.answer or None, page_state.counterpart or None)
        return weighed(model, read.prompt, *given)

    def pattern(self, page_state: PageState) -> dict[str, Any]:
        """One head's pattern in the prompt that is looked at."""
        from casestudy.measure.quick_look import head_pattern

        model, read = self.check(page_state)
        if not page_state.head:
            raise Refusal(400, "No head is named. Allowed: head=layer.head, as in 3.1.")
        layer, head = map(int, page_state.head.split("."))
        grid = head_pattern(model, read.texts[read.row], layer, head)
        tokens = [visible(label.partition(":")[2]) for label in grid.axes[0].labels]
        return {
            "tokens": tokens,
            "bytes": base64.b64encode(drawing.pattern_bytes(grid)).decode("ascii"),
        }

    def study_file(self, page_state: PageState) -> str:
        """The state as a behaviour file; conversations stay messages."""
        from casestudy.behaviour.files_written import behaviour_toml

        answer, counterpart = self.pair(page_state)
        model, read = self.read(page_state)
        pair = [model.tokenizer.written(t.id, after=read.prompt) for t in (answer, counterpart)]
        behaviour = replace(
            self._behaviour(page_state, *pair),
            question=f"Why does the model prefer “{visible(answer)}” to “{visible(counterpart)}”?",
            answers="given",
            about=f"Saved from casestudy's explorer, which ran it on {self.model.name}.",
            parse_special=not page_state.chat and model.tokenizer.parse_special,
        )
        return behaviour_toml(behaviour)

    def grid(self, page_state: PageState, pause: Pause, tell: Callable[[Line], None]) -> Line:
        """A patch grid; see `patch_grid`."""
        model, read = self.read(page_state)
        return patch_grid(model, read, self.pair(page_state), pause, tell)
