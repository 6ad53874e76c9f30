"""Do simpler explanations give the same logit difference?

Four controls, next to each prompt's own logit difference:

- **b_U**: the final norm's bias through the unembedding gives every token a constant. Its
  contribution depends on the prompt only through the choice of the answer.
- **unigram**: the model's logit difference of the two tokens after BOS alone, without a prompt. The
  token counts of the training text would be the proper unigram baseline, but a model does not come
  with them. Absent if prompts do not start with BOS.
- **copied**: whether the answer's word is already in the prompt, in any case (" Go" after "Go."),
  so that copying would be enough.
- **shuffled**: the same words in another order, with every stop, comma and space in place. A
  difference that remains does not need the sentence. The order depends on the prompt's text and a
  seed, not on the other prompts.

For a class contrast, the unigram and shuffled values are log p(A) - log p(B) there, with weights
frozen at these logits. Cost: one forward pass of the shuffled prompts, and one of BOS unless the
batch's run kept the final residual stream at it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import regex
import torch
from jaxtyping import Float
from torch import Tensor

from casestudy.behaviour.prompts import Behaviour, Prompts, takes_prompts
from casestudy.behaviour.readouts import text_of
from casestudy.engine.batch import Batch, Measurement, run_whole
from casestudy.errors import PromptError
from casestudy.model.decoder import apply_norm, run, unembed
from casestudy.model.model import Model
from casestudy.model.sites import Site
from casestudy.model.tokens import Tokens
from casestudy.results import names
from casestudy.results.result import Axis, Grid, Result, Table

SEED = 0
CONTROLS = ("difference", "b_U", "unigram", "shuffled")
_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+(?:['’.\-][\p{L}\p{M}\p{N}]+)*")


def shuffle_words(text: str, *, seed: int = SEED) -> str | None:
    """A prompt's words in another order, everything else in place; None if there is no other order.

    Args:
        text: its words are sequences of letters and digits, with characters that join them (don't,
            3.50).
        seed: of the order, together with the text itself.
    """
    words = _WORD.findall(text)
    if len(set(words)) < 2:
        return None
    digest = hashlib.sha256(f"{seed}\n{text}".encode()).digest()
    rng = random.Random(int.from_bytes(digest[:8], "big"))
    other = words
    while other == words:
        other = rng.sample(words, len(words))
    left = iter(other)
    return _WORD.sub(lambda _: next(left), text)


def is_copied(answer: str, prompt: str) -> bool:
    """Whether the answer's text, without its space and in any case, is a word of the prompt."""
    word = answer.strip().casefold()
    inside = rf"(?<![\p{{L}}\p{{N}}]){regex.escape(word)}(?![\p{{L}}\p{{N}}])"
    return bool(word) and regex.search(inside, prompt.casefold()) is not None


def measure_controls(batch: Batch) -> list[Result]:
    """Every contrast with its controls, and a table of them for the main contrast."""
    texts, shuffled = _after_shuffling(batch)
    alone = _after_bos(batch)
    norm = batch.model.weights.final_norm
    bias = None if norm is None else norm.bias
    per_contrast = []
    for contrast, u in zip(batch.contrasts, batch.directions, strict=True):
        values = contrast.value(batch.logits)
        constant = absent = torch.full_like(values, float("nan"))
        if bias is not None:
            constant = u @ bias.double()
        unigram = absent if alone is None else contrast.at(alone).value(alone)
        elsewhere = contrast.at(shuffled).value(shuffled)
        per_contrast.append(torch.stack([values, constant, unigram, elsewhere]))
    grid = Grid(
        names.CONTROL_LOGITS,
        torch.stack(per_contrast).cpu().numpy(),
        (batch.contrast_axis, Axis("control", CONTROLS), batch.prompt_axis),
        "logits",
        about=_about(bias is not None, alone is not None),
    )
    return [grid, _table(batch, grid.select(contrast=batch.contrasts[0].name), texts)]


def _about(b_U: bool, after_bos: bool) -> str:
    """A description of the controls that exist for this model."""
    parts = ["The difference"]
    if b_U:
        parts.append("its part due to b_U alone")
    if after_bos:
        parts.append("the same contrast after BOS alone (the model's own unigram baseline)")
    return "; ".join([*parts, "the same after the prompt's words in another order."])


def _table(batch: Batch, main: Grid, texts: Sequence[str | None]) -> Table:
    rows = dict(zip(CONTROLS, main.values.tolist(), strict=True))
    known = {
        name: [None if value != value else value for value in row] for name, row in rows.items()
    }
    share = [
        None if b is None or not d else b / d
        for b, d in zip(known["b_U"], known["difference"], strict=True)
    ]
    copied = [
        None if answer is None else is_copied(answer.text, text_of(batch.model.tokenizer, prompt))
        for answer, prompt in zip(batch.answers.chosen, batch.prompts, strict=True)
    ]
    return Table(
        names.CONTROLS,
        {
            "prompt": list(batch.index),
            "difference": known["difference"],
            "b_U": known["b_U"],
            "b_U_share": share,
            "unigram": known["unigram"],
            "copied": copied,
            "shuffled": known["shuffled"],
            "shuffled_text": list(texts),
        },
        f"What simpler explanations give of the difference ({batch.contrasts[0].name}), in logits: "
        "b_U alone, and its share; the model after BOS alone, for want of the training text's "
        "token counts; whether the answer's word is in the prompt; the words in another order.",
    )


def _after_bos(batch: Batch) -> Float[Tensor, "batch d_vocab"] | None:
    """The logits after BOS alone, for each prompt; None if no BOS is prepended."""
    model = batch.model
    if model.tokenizer.bos_id is None or not batch.tokens.bos:
        return None
    stream = batch.trace.values.get((Site.FINAL_RESID, None))
    if stream is not None:  # what a decoder computes at BOS does not depend on the text behind it
        normed = apply_norm(model.config, model.weights.final_norm, stream[:1, 0])
        logits = unembed(model.config, model.weights, normed)
    else:
        bos = Tokens.of([[model.tokenizer.bos_id]], bos=True).to(model.device)
        found = run(model, bos, logits="last").logits
        assert found is not None
        logits = found
    return logits.expand(len(batch.prompts), -1)


def _after_shuffling(batch: Batch) -> tuple[list[str | None], Float[Tensor, "batch d_vocab"]]:
    """Each prompt in another order, with its logits; NaN if there is none that can be run."""
    model = batch.model
    texts = [shuffle_words(text_of(model.tokenizer, prompt)) for prompt in batch.prompts]
    rows: dict[int, list[int]] = {}
    for i, text in enumerate(texts):
        if text is None:
            continue
        try:
            (rows[i],) = model.tokenize(text).rows()
        except PromptError:  # another order can have more tokens than the context
            texts[i] = None
    logits = torch.full_like(batch.logits, float("nan"))
    if rows:
        tokens = Tokens.of(list(rows.values()), bos=batch.tokens.bos).to(model.device)
        found = run(model, tokens, logits="last").logits
        assert found is not None
        logits[list(rows)] = found
    return texts, logits


CONTROL = Measurement("controls", lambda model: (), measure_controls)


@takes_prompts
def controls(
    model: Model,
    behaviour: Prompts,
) -> Table:
    """The main contrast of each prompt, and its controls.

    Args:
        model: which predicts.
        behaviour: a behaviour, a text or texts (see `Prompts`).

    Rows:   one per prompt: difference, b_U and its share, unigram, copied, shuffled; None if a
            control does not exist (see the module).
    Unit:   logits.
    """
    behaviour = Behaviour.of(behaviour)
    table = measure_controls(run_whole(model, behaviour, []))[1]
    assert isinstance(table, Table)
    return table
