"""What does adding a direction do to a behaviour, and what does it cost elsewhere?

Steering: coefficient times a vector is added to a site in one layer, at every position. The metric
of the behaviour's prompts is measured with each coefficient, and so is the next-token loss of other
text, which the vector should leave alone.

Cost: per vector and coefficient a forward pass of the prompts, and one of the text with all logits.
Source: Turner et al. 2023, arXiv 2308.10248, "Steering Language Models With Activation
Engineering".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from casestudy.behaviour.contrast import Contrast
from casestudy.behaviour.windows import Windows
from casestudy.engine.packing import DEFAULT_BUDGET, Budget, pack
from casestudy.engine.readout import Metric, Readout
from casestudy.errors import BehaviourError, MeasureError
from casestudy.measure.attribution_patching import read_last
from casestudy.measure.metrics import rows_of
from casestudy.model.decoder import run
from casestudy.model.edits import Edit
from casestudy.model.model import Model
from casestudy.model.sites import Site
from casestudy.model.tokens import Tokens
from casestudy.results.result import Array

WINDOW = 128
"""The most tokens of other text that are run together."""
_FEWEST = 8
"""Tokens: shorter windows are left out."""


def steered(
    model: Model,
    tokens: Tokens,
    contrast: Contrast | Metric,
    site: Site,
    layer: int,
    vectors: Sequence[Float[Tensor, " d_model"]],
    *,
    budget: Budget = DEFAULT_BUDGET,
) -> Array:
    """(vector, prompt) the metric of prompts with each vector added at every position.

    Raises: MeasureError for a result that is not finite.
    """
    config = model.config
    row = 4 * (config.d_model + config.d_mlp) * model.weights.W_E.element_size()
    found = np.full((len(vectors), len(tokens)), np.nan)
    for some in _batches(tokens, row, budget.memory):
        batch = tokens[some]
        readout = Readout(model, rows_of(contrast, some), len(some))
        for i, vector in enumerate(vectors):
            edit = Edit.add(site, layer, vector)
            trace = run(model, batch, keep=Site.FINAL_RESID.at(last=True), edit=edit)
            found[i, some] = read_last(readout, model, trace).double().cpu().numpy()
    if not np.isfinite(found).all():
        raise MeasureError("a steered run gave NaN or infinity", hint="Take smaller coefficients")
    return found


def steered_loss(
    model: Model,
    windows: Tokens,
    site: Site,
    layer: int,
    vectors: Sequence[Float[Tensor, " d_model"]],
    *,
    budget: Budget = DEFAULT_BUDGET,
) -> Array:
    """(vector, window) mean next-token loss in nats, with each vector added at every position."""
    size = model.config.d_vocab * 3 * 8  # logits, and their log softmax in float64
    found = np.full((len(vectors), len(windows)), np.nan)
    for some in _batches(windows, size, budget.memory):
        batch = windows[some].to(model.device)
        following = batch.ids[:, 1:, None]
        there = batch.mask[:, 1:]
        for i, vector in enumerate(vectors):
            logits = run(model, batch, edit=Edit.add(site, layer, vector), logits="all").logits
            assert logits is not None
            log_p = logits[:, :-1].double().log_softmax(-1).gather(-1, following)[..., 0]
            total = -log_p.masked_fill(~there, 0.0).sum(1) / there.sum(1)
            found[i, some] = total.cpu().numpy()
    if not np.isfinite(found).all():
        raise MeasureError("a steered run gave NaN or infinity", hint="Take smaller coefficients")
    return found


def _batches(tokens: Tokens, row: int, memory: int) -> list[list[int]]:
    """Prompts that fit into memory at so many bytes per token."""

    def fits(n: int, longest: int, _: int) -> bool:
        return n * longest * row <= memory

    return pack(tokens.lengths.tolist(), fits=fits)


def windows_of(
    model: Model, texts: Iterable[tuple[str, str]], most: int
) -> tuple[Tokens, tuple[str, ...]]:
    """Other text as windows of at most `WINDOW` tokens, none twice, and each one's document.

    Args:
        model: whose tokenizer and BOS rule apply.
        texts: (document, text), read only as far as needed.
        most: windows.

    Raises: MeasureError for text without a window of `_FEWEST` tokens.
    """
    tokenizer, length = model.tokenizer, min(WINDOW, model.config.n_ctx)
    found: dict[tuple[int, ...], str] = {}  # a window's tokens and its document
    for document, text in texts:
        with suppress(BehaviourError):  # a text without a window
            for window in Windows({document: text}, tokenizer, length):
                if len(window.ids) >= _FEWEST + tokenizer.prepend_bos:
                    found.setdefault(window.ids, window.document)
                if len(found) == most:
                    break
        if len(found) == most:
            break
    rows, documents = list(map(list, found)), tuple(found.values())
    if not rows:
        raise MeasureError(
            "no text to measure the cost of steering on",
            allowed=f"a text of {_FEWEST} tokens or more",
        )
    bos = tokenizer.prepend_bos and tokenizer.bos_id is not None
    return Tokens.of(rows, pad=tokenizer.eos_id or 0, bos=bos), documents


def at_coefficients(
    vectors: Sequence[Float[Tensor, " d_model"]], coefficients: Sequence[float]
) -> list[Float[Tensor, " d_model"]]:
    """Every vector times every coefficient, vector by vector.

    Raises: MeasureError for no coefficient, or one that is not finite.
    """
    if not coefficients or not np.isfinite(list(coefficients)).all():
        raise MeasureError(f"coefficients {list(coefficients)}", allowed="finite numbers")
    return [torch.as_tensor(c, dtype=v.dtype) * v for v in vectors for c in coefficients]
