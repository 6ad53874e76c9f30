"""Study folders of small random numbers: enough for a report's laws, never results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from casestudy.measure.result import Axis, Grid, Result, Table
from casestudy.measure.stats import mean_over_prompts
from casestudy.study.store import FORMAT, Store

TEXTS = (
    "This is a sentence.",
    "Hello. Hello. Hello.",
    "Koalas are cute, but grumpy.",
    "Filling up to eleven tokens.\nGo.",
)
CONTRASTS = ("lowercase", "no_space", "lowercase_no_space")
B_U = "final norm bias (b_U)"


def manifest(n: int, **changes: Any) -> dict[str, Any]:
    """What a study's manifest.json holds."""
    found: dict[str, Any] = {
        "format": FORMAT,
        "versions": {"casestudy": "0.1.0", "python": "3.11", "torch": "2.13.0"},
        "model": {
            "name": "toy",
            "source": "made for a test",
            "weight_hash": "sha256:0123",
            "dtype": "float32",
            "device": "cpu",
            "family": "gpt2",
            "n_layers": 3,
            "n_heads": 4,
            "d_model": 32,
            "d_vocab": 100,
            "n_ctx": 64,
            "prepend_bos": True,
            "rewrites": [],
        },
        "behaviour": {
            "name": "full-stop-capitals",
            "question": "How does the model come to write a capital letter after a full stop?",
            "about": "Sentences that end in a full stop.",
            "n_prompts": n,
            "hash": "abc",
        },
        "settings": {"prepend_bos": True, "top_k": 100},
        "plan": {"chunks": [list(range(n))], "threads": 1},
        "measurements": ["predictions", "ledger"],
        "not_measured": [{"what": "causal effects", "why": "no activation was patched"}],
        "created": "2026-11-20T08:00:00Z",
        "finished": "2026-11-20T08:00:09Z",
        "state": "complete",
        "seconds": 8.5,
    }
    return found | changes


def ledger(n: int, *, layers: int = 3, seed: int = 0, centre: float = 0.3) -> list[Grid]:
    """Terms that sum to a logit difference, its check and the means."""
    rng = np.random.default_rng(seed)
    names = ["embed", "pos_embed"]
    names += [f"{part} {layer}" for layer in range(layers) for part in ("attn", "mlp")]
    names += [B_U]
    terms = rng.normal(centre, 0.5, (len(CONTRASTS), len(names), n))
    total = terms.sum(1)
    gap = np.full_like(total, 2e-6)
    contrast, prompt = Axis("contrast", CONTRASTS), Axis.count("prompt", n)
    quantities = ("logit difference", "sum of terms", "gap", "bound", "without b_U")
    check = np.stack([total, total + gap, gap, gap * 0 + 1e-4, total - terms[:, -1]], 1)
    grids = [
        Grid("logit_difference", total, (contrast, prompt), "logits"),
        Grid(
            "ledger",
            terms,
            (contrast, Axis("term", tuple(names)), prompt),
            "logits",
            error={"gap": 2e-6, "bound": 1e-4},
        ),
    ]
    means = [mean_over_prompts(grid) for grid in grids]
    check_axes = (contrast, Axis("quantity", quantities), prompt)
    return [*grids, *means, Grid("ledger.check", check, check_axes, "logits")]


def tables(texts: tuple[str, ...], *, top: int = 20) -> list[Table]:
    """Prompts, predictions, answers and what was passed over."""
    n = len(texts)
    rows = [(i, rank) for i in range(n) for rank in range(top)]
    forms = {"answer": " It", "lowercase": " it", "no_space": "It", "lowercase_no_space": "it"}
    return [
        Table(
            "prompts",
            {
                "prompt": list(range(n)),
                "text": list(texts),
                "groups": [[f"group {i % 5}"] for i in range(n)],
                "n_tokens": [len(t.split()) + 1 for t in texts],
                "tokens": [["<|endoftext|>", *_words(t)] for t in texts],
                "token_ids": [[0, *range(1, len(_words(t)) + 1)] for t in texts],
                "error": [None] * n,
            },
        ),
        Table(
            "predictions",
            {
                "prompt": [i for i, _ in rows],
                "rank": [rank for _, rank in rows],
                "token": [[" It", "\n", " The", " This"][rank % 4] for _, rank in rows],
                "id": [rank for _, rank in rows],
                "logit": [15.0 - rank for _, rank in rows],
                "prob": [0.5 * 0.6**rank for _, rank in rows],
            },
        ),
        Table(
            "answers",
            {
                "prompt": [i for i in range(n) for _ in forms],
                "form": list(forms) * n,
                "token": list(forms.values()) * n,
                "id": list(range(len(forms))) * n,
                "rank": [0, 40, 900, 1200] * n,
                "logit": [15.0, 9.0, 6.0, 5.0] * n,
                "prob": [0.5, 0.001, 1e-5, 3e-6] * n,
            },
        ),
        Table(
            "passed_over",
            {
                "prompt": [0],
                "candidate": [" Über"],
                "rank": [0],
                "why": ["its lower-case form is not one token"],
            },
        ),
    ]


def _words(text: str) -> list[str]:
    words = text.split(" ")
    return words[:1] + [f" {word}" for word in words[1:]]


def write(
    folder: Path,
    results: list[Result] | None = None,
    *,
    texts: tuple[str, ...] = TEXTS,
    **changes: Any,
) -> Store:
    """A study's folder; by default with everything a study of the thin path has."""
    store = Store.create_or_resume(folder, manifest(len(texts), **changes), ("behaviour",))
    store.write_final(results if results is not None else [*ledger(len(texts)), *tables(texts)])
    return store
