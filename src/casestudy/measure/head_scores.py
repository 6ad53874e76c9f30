"""What kind of head is each, independent of the prompts?

These scores depend only on the model. Most are measured on its attention over random tokens, which
have no content but their repetition:

    text     = BOS r₁ … r_L r₁ … r_L,  r random, distinct, not special;  pattern[q, k]
    previous_token   mean of pattern[q, q - 1]           over queries past the first random token
    duplicate_token  mean of pattern[q, q - L]           over queries of the second half
    induction        mean of pattern[q, q - L + 1]       over queries of the second half
    entropy          mean of -Σ p ln p, in nats          over all queries but BOS
    bos              mean of pattern[q, 0]               over all queries but the first
    copying          Σ Re λ / Σ |λ|                      λ: eigenvalues of W_E W_V W_O W_U

A score is 1 for a head that does exactly this (entropy is 0 for a head that attends to one key).
The induction score measures only attention; the copying score measures whether the head also copies
the token it attends to. Without BOS the text is the random tokens alone, and `bos` is the attention
to the first of them, the attention sink of such a model.

Sources: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits" (copying, by the
eigenvalues of the full OV circuit; previous-token heads); Olsson et al. 2022, "In-context Learning
and Induction Heads" (prefix matching on repeated random tokens); Wang et al. 2023 (duplicate-token
heads). Where we differ: the models of Elhage et al. had no norms, so here the layer's and the final
norm's weights and mean subtraction are folded in, and their scales, which differ by position, are
left out. W_U is centred over the vocabulary, because a constant added to every logit changes
nothing.

Cost: a forward pass over a few hundred tokens, one product of W_U with W_E, and the eigenvalues of
d_head × d_head matrices: W_E W_V · W_O W_U has the same non-zero ones as W_O W_U · W_E W_V. Results
are cached by weight hash in this process and in the user's cache directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from casestudy.engine.batch import Batch, Measurement
from casestudy.errors import MeasureError
from casestudy.measure.attention import entropy
from casestudy.model.decoder import run
from casestudy.model.linear import fold_into
from casestudy.model.model import Model
from casestudy.model.sites import Site
from casestudy.model.tokens import Tokenizer, Tokens
from casestudy.results import names
from casestudy.results.result import Array, Axis, Grid, Result

SCORES = ("previous_token", "duplicate_token", "induction", "copying", "entropy", "bos")
HALF = 50
"""Random tokens in each half, if the vocabulary and the context are large enough."""
TEXTS = 4
_BLOCK = 1024
_VERSION = 2
"""Version of the definitions above: a change invalidates old caches."""

_known: dict[str, Array] = {}


def head_profile(model: Model, *, seed: int = 0) -> Grid:
    """What kind of head each is, by the scores this module defines.

    Args:
        model: any decoder.
        seed: of the random tokens.

    Shape:  (score, layer, head).
    Unit:   share of attention; copying from -1 to 1, entropy in nats.
    Raises: MeasureError if context or vocabulary are too small for repeated tokens.
    """
    bos = model.tokenizer.bos_id if model.tokenizer.prepend_bos else None
    settings = repr((_VERSION, model.config, bos, seed, HALF, TEXTS))
    key = f"{model.weight_hash}-{hashlib.sha256(settings.encode()).hexdigest()[:16]}"
    if key not in _known:
        path = _cache_folder() / f"{key}.json"
        shape = (len(SCORES), model.config.n_layers, model.config.n_heads)
        values = _read(path, shape)
        if values is None:
            values = _profile(model, seed)
            _write(path, values)
        _known[key] = values
    return Grid(
        names.HEAD_PROFILE,
        _known[key].copy(),
        (
            Axis("score", SCORES),
            Axis.count("layer", model.config.n_layers),
            Axis.count("head", model.config.n_heads),
        ),
        "score",
        about=f"Attention on random repeated tokens ({TEXTS} texts, seed {seed}) and the copying "
        "score of W_E W_V W_O W_U; 1 is a head that does exactly that. Entropy in nats.",
    )


def _profile(model: Model, seed: int) -> Array:
    scores = attention_scores(model, repeated_tokens(model, seed=seed))
    order = [copying(model) if name == "copying" else scores[name] for name in SCORES]
    return torch.stack(order).double().cpu().numpy()


def repeated_tokens(model: Model, *, seed: int = 0) -> Tokens:
    """Random distinct tokens, repeated once, after BOS if the model's texts start with it.

    Raises: MeasureError if context or vocabulary are too small for two of each.
    """
    usable, half = _room(model)
    if half < 2:
        raise MeasureError(
            f"{len(usable)} usable tokens in a context of {model.config.n_ctx}",
            allowed="room for two different tokens, twice, and BOS where it is prepended",
        )
    bos = model.tokenizer.bos_id if model.tokenizer.prepend_bos else None
    rng = np.random.default_rng(seed)
    halves = [rng.choice(usable, half, replace=False).tolist() for _ in range(TEXTS)]
    start = [] if bos is None else [bos]
    return Tokens.of([start + h + h for h in halves], bos=bos is not None).to(model.device)


def _room(model: Model) -> tuple[tuple[int, ...], int]:
    """The ordinary tokens, and how many of them fit twice into the context after BOS."""
    tokenizer, config = model.tokenizer, model.config
    usable = _ordinary(tokenizer, min(tokenizer.d_vocab, config.d_vocab))
    starts = tokenizer.prepend_bos and tokenizer.bos_id is not None
    return usable, min(HALF, (config.n_ctx - starts) // 2, len(usable))


@lru_cache(maxsize=8)  # every chunk of a study asks
def _ordinary(tokenizer: Tokenizer, d_vocab: int) -> tuple[int, ...]:
    control = tokenizer.is_special
    return tuple(id for id in range(d_vocab) if id != tokenizer.bos_id and not control(id))


def attention_scores(model: Model, tokens: Tokens) -> dict[str, Float[Tensor, "layer head"]]:
    """The scores from attention patterns, one text at a time."""
    texts = [_scores_of_text(model, tokens[[i]]) for i in range(len(tokens))]
    return {name: torch.stack([text[name] for text in texts]).mean(0) for name in texts[0]}


def _scores_of_text(model: Model, tokens: Tokens) -> dict[str, Float[Tensor, "layer head"]]:
    trace = run(model, tokens, keep=[Site.PATTERN], logits="last")  # names overflow
    layers = [trace[Site.PATTERN, i] for i in range(model.config.n_layers)]
    pattern = torch.cat(layers).double()  # layer head query_pos key_pos
    first, n = int(tokens.bos), tokens.ids.shape[1]  # where the random tokens begin and end
    half = (n - first) // 2

    def back(distance: int, start: int) -> Float[Tensor, "layer head"]:
        queries = torch.arange(start, n, device=pattern.device)
        return pattern[:, :, queries, queries - distance].mean(-1)

    return {
        "previous_token": back(1, first + 1),
        "duplicate_token": back(half, first + half),
        "induction": back(half - 1, first + half),
        "entropy": entropy(pattern[:, :, first:]).mean(-1),
        "bos": pattern[:, :, 1:, 0].mean(-1),
    }


def copying(model: Model) -> Float[Tensor, "layer head"]:
    """Σ Re λ / Σ |λ| over the eigenvalues of every head's W_E W_V W_O W_U, norms folded.

    1 if attention to any token raises that token's logit, -1 if it lowers it.
    """
    config, weights = model.config, model.weights
    core = fold_into(config, weights.final_norm, _unembedding_of_embedding(model))
    layers = []
    for block in weights.blocks:
        attn = block.attn
        seen = fold_into(config, block.attn_norm, attn.W_V.double())
        moved = fold_into(config, block.attn_post_norm, core @ seen)  # kv_head d_model d_head
        moved = moved.repeat_interleave(config.n_heads // config.n_kv_heads, 0)
        eigenvalues = torch.linalg.eigvals(attn.W_O.double() @ moved)  # head d_head
        layers.append(eigenvalues.real.sum(-1) / eigenvalues.abs().sum(-1))
    return torch.stack(layers)


def _unembedding_of_embedding(model: Model) -> Float[Tensor, "d_model d_model"]:
    """W_U W_E, every direction's logits centred, in float64, a block of tokens at a time.

    The products of a block are in the weights' own format, at least float32, and their sum over
    blocks in float64: the scores differ by 1e-7 from those in float64 alone.
    """
    W_U, W_E = model.weights.W_U, model.weights.W_E
    d_model, d_vocab = W_U.shape
    total = W_U.new_zeros(d_model, d_model, dtype=torch.float64)
    sum_U, sum_E = total[0].clone(), total[0].clone()
    for start in range(0, d_vocab, _BLOCK):
        u, e = W_U[:, start : start + _BLOCK], W_E[start : start + _BLOCK]
        if u.dtype != torch.float64:
            u, e = u.float(), e.float()
        total += u @ e
        sum_U += u.sum(1, dtype=torch.float64)
        sum_E += e.sum(0, dtype=torch.float64)
    return total - torch.outer(sum_U, sum_E) / d_vocab


def _cache_folder() -> Path:
    """CASESTUDY_CACHE, or the user's cache directory."""
    own = os.environ.get("CASESTUDY_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "casestudy"


def _read(path: Path, shape: tuple[int, ...]) -> Array | None:
    """A cached profile; None if there is none, or the file is not a profile."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        values = np.array(entries["scores"], dtype=np.float64)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return values if values.shape == shape else None


def _write(path: Path, values: Array) -> None:
    """Write a profile to the cache, completely or not at all; ignore a cache that is read-only."""
    part = ""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"scores": values.tolist()}, file)  # NaN as NaN, which json reads back
        os.replace(part, path)
        return
    if part:
        Path(part).unlink(missing_ok=True)


def measure_profile(batch: Batch) -> list[Result]:
    """The model's profile; empty for a model that is too small for it."""
    return [head_profile(batch.model)] if _room(batch.model)[1] >= 2 else []


PROFILE = Measurement("profile", lambda model: (), measure_profile)
