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
from casestudy.show.explorer.page_state import Asked, Refusal
from casestudy.show.explorer.patches import Line, patch_grid
from casestudy.show.text import visible

if TYPE_CHECKING:
    from casestudy.model.model import Model
    from casestudy.show.explorer.worker import Pause

MOST_TOKENS = 1024
"""Tokens of a prompt, where the model could read more."""
MOST_EDITED = 1000
"""Characters of a prompt that edits are offered for: each of them is a prompt again."""


@dataclass(frozen=True)
class Questions:
    """What can be asked of one model.

    Attributes:
        model: which is asked.
        bos: whether prompts start with BOS; the model's convention by default.
    """

    model: Model
    bos: bool | None = None

    @property
    def most_tokens(self) -> int:
        """The longest prompt that is answered."""
        return min(self.model.config.n_ctx, MOST_TOKENS)

    def panels(self, asked: Asked) -> tuple[dict[str, Markup], dict[str, Any]]:
        """Every quick panel, and what the page's script has to know.

        Raises: CasestudyError for a prompt that cannot be run.
        """
        from casestudy.measure.quick_look import probe

        self.check(asked)
        found = probe(
            self.model,
            asked.texts,
            answer=asked.answer or None,
            counterpart=asked.counterpart or None,
            prepend_bos=self.bos,
        )
        weighed = found.problem is None
        state = {
            "answer": found.answer,
            "counterpart": found.counterpart,
            "weighed": weighed,
            "patch": weighed and bool(asked.corrupted),
            "save": f"/study.toml?{asked.query()}" if weighed else "",
        }
        return drawing.panels(found, asked, self.edits(asked)), state

    def edits(self, asked: Asked) -> list[tuple[str, str]]:
        """Minimal edits of the prompt, by the kinds that a study scores: name and text."""
        from casestudy.behaviour.counterfactual import FAMILIES

        if len(asked.prompt) > MOST_EDITED:
            return []
        found = {family.edit(asked.prompt): family.name for family in reversed(FAMILIES)}
        return [
            (name, text)
            for text, name in reversed(found.items())
            if text is not None and text != asked.prompt
        ]

    def check(self, asked: Asked) -> None:
        """Raises: PromptError for a prompt longer than is answered, naming both lengths."""
        for name, text in zip(("prompt", "corrupted prompt"), asked.texts, strict=False):
            if not text:
                raise PromptError(f"The {name} is empty", hint="Type something to continue")
            row = self.model.tokenizer.ids(text)
            bos = self.model.tokenizer.prepend_bos if self.bos is None else self.bos
            if len(row) + bos > self.most_tokens:
                raise PromptError(
                    f"The {name} is {len(row) + bos:,} tokens long",
                    allowed=f"at most {self.most_tokens:,}, BOS included",
                )

    def pair(self, asked: Asked) -> tuple[str, str]:
        """Answer and counterpart, chosen as the panels choose them.

        Raises: CasestudyError where they cannot be weighed.
        """
        from casestudy.measure.quick_look import weighed

        self.check(asked)
        given = (asked.answer or None, asked.counterpart or None)
        return weighed(self.model, asked.prompt, *given, prepend_bos=self.bos)

    def pattern(self, asked: Asked) -> dict[str, Any]:
        """One head's pattern in the prompt that is looked at."""
        from casestudy.measure.quick_look import head_pattern

        self.check(asked)
        if not asked.head:
            raise Refusal(400, "No head is named. Allowed: head=layer.head, as in 3.1.")
        layer, head = map(int, asked.head.split("."))
        text = asked.texts[asked.row]
        grid = head_pattern(self.model, text, layer, head, prepend_bos=self.bos)
        tokens = [visible(label.partition(":")[2]) for label in grid.axes[0].labels]
        return {
            "tokens": tokens,
            "bytes": base64.b64encode(drawing.pattern_bytes(grid)).decode("ascii"),
        }

    def study_file(self, asked: Asked) -> str:
        """The state as a behaviour file."""
        from casestudy.behaviour.files import behaviour_toml
        from casestudy.behaviour.prompts import Behaviour, Prompt

        answer, counterpart = self.pair(asked)
        prompt = Prompt(
            asked.prompt,
            answer=answer,
            counterpart=counterpart,
            corrupted=asked.corrupted or None,
        )
        behaviour = Behaviour(
            "explored",
            f"Why does the model prefer “{visible(answer)}” to “{visible(counterpart)}”?",
            (prompt,),
            answers="given",
            about=f"Saved from casestudy's explorer, which ran it on {self.model.name}.",
        )
        return behaviour_toml(behaviour)

    def grid(self, asked: Asked, pause: Pause, tell: Callable[[Line], None]) -> Line:
        """A patch grid; see `patch_grid`."""
        return patch_grid(self.model, asked, self.pair(asked), self.bos, pause, tell)
