"""Study folders of small random numbers: enough for a report's laws, never results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from casestudy.results.result import Axis, Grid, Result, Table
from casestudy.results.stats import mean_over_prompts
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


def tables(texts: tuple[str, ...], *, top: int = 20, tokens: bool = True) -> list[Table]:
    """Prompts (with or without their tokens), predictions, answers and what was passed over."""
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
                "tokens": [["<|endoftext|>", *_words(t)] if tokens else None for t in texts],
                "token_ids": [[0, 1] if tokens else None for t in texts],
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
                "id": [566, 320, 862, 270] * n,  # the bundled tokenizer's
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


def by_group(grid: Grid, groups: list[list[str]]) -> Grid:
    """A (contrast, prompt) grid's means by group of prompts."""
    names = tuple(dict.fromkeys(name for found in groups for name in found))
    means = []
    for name in names:
        index = [i for i, found in enumerate(groups) if name in found]
        axes = (grid.axes[0], Axis("prompt", tuple(grid.axes[1].labels[i] for i in index)))
        means.append(mean_over_prompts(Grid(grid.name, grid.values[:, index], axes, grid.unit)))

    def stacked(part: str) -> Any:
        return np.stack([getattr(mean, part) for mean in means])

    return Grid(
        f"{grid.name}.by_group",
        stacked("values"),
        (Axis("group", names), grid.axes[0]),
        grid.unit,
        lower=stacked("lower"),
        upper=stacked("upper"),
        n=stacked("n"),
    )


def full(texts: tuple[str, ...] = TEXTS, *, layers: int = 3, heads: int = 4) -> list[Result]:
    """What a study holds once every measurement has run: names and axes as the rooms below give."""
    n = len(texts)
    rng = np.random.default_rng(1)
    contrast, prompt = Axis("contrast", CONTRASTS), Axis.count("prompt", n)
    layer, head = Axis.count("layer", layers), Axis.count("head", heads)
    with_bias = Axis("head", (*head.labels, "bias"))
    depths = tuple(f"{i}_{where}" for i in range(layers) for where in ("pre", "mid"))
    depth = Axis("depth", (*depths, "final_post"))
    role = Axis("role", ("BOS", "first word", "final full stop"))
    classes = Axis("class", ("space+Capital", "space+lower", "newline", "other"))

    def grid(name: str, unit: str, *axes: Axis, scale: float = 1.0, **more: Any) -> Grid:
        values = rng.normal(0.2, scale, tuple(len(axis) for axis in axes))
        return Grid(name, values, axes, unit, **more)

    def with_mean(*args: Any, **more: Any) -> list[Grid]:
        one = grid(*args, **more)
        return [one, mean_over_prompts(one)]

    logits = {"about": "A share of the logit difference."}
    check = {"error": {"gap": 3e-6, "bound": 1e-4}}
    lens = grid("lens", "logits", contrast, Axis("depth", (*depth.labels, "logits")), prompt)
    results: list[Result] = [
        *ledger(n, layers=layers),
        *tables(texts),
        lens,
        mean_over_prompts(lens),
        *with_mean("lens.own_norm", "logits", contrast, depth, prompt),
        *with_mean("attribution.head", "logits", contrast, layer, with_bias, prompt, **logits),
        *with_mean("attention.last", "share", layer, head, role, prompt),
        *with_mean("attention.entropy", "nats", layer, head, prompt),
        *with_mean("class_mass", "probability", classes, prompt, scale=0.05),
        *with_mean("case_by_space", "logits", Axis("effect", ("case", "space", "both")), prompt),
        grid("head_profile", "score", Axis("score", ("previous_token", "induction")), layer, head),
        grid("patching.resid_pre", "share", layer, role, **check),
        grid("patching.resid_pre.raw", "logits", layer, role),
        grid("patching.z", "share", layer, head, role),
        grid("patching.ablation.zero.effect", "logits", layer, head),
        grid("patching.z.effect", "logits", layer, head, role),
        by_group(ledger(n, layers=layers)[0], [[f"group {i % 5}"] for i in range(n)]),
        Table("attribution.head.ranking", _ranking(), "How often each is among the first 10."),
        Table("group_tests", _group_tests(), "Do two groups differ?"),
        grid("circuit.faithfulness", "share", Axis("method", _METHODS), _proportions()),
        grid("circuit.sizes", "edges", Axis("method", _METHODS), _proportions()),
        Table("circuit.summary", _summary(), "Figures."),
        Table("circuit.nodes", _circuit_nodes(), "Nodes."),
        Table("attribution.neuron", _neurons(rng), "The neurons with the largest mean share."),
        *with_mean(
            "controls.logits", "logits", contrast, Axis("control", ("difference", "b_U")), prompt
        ),
        Table("controls", {"prompt": list(range(n)), "copied": [i == 0 for i in range(n)]}),
        Table("counterfactuals", _counterfactuals(), "Edits."),
        Table(
            "circuit.edges",
            _edges(rng),
        ),
        Table("lens.top", _lens_top(texts, depth.labels)),
    ]
    for i, text in enumerate(texts[:2]):
        labels = tuple(f"{k}:{t}" for k, t in enumerate(["<|endoftext|>", *_words(text)]))
        query, key = Axis("query_pos", labels), Axis("key_pos", labels)
        pattern = grid(f"pattern.{i}", "share", layer, head, query, key)
        lower = np.tril(np.exp(pattern.values))
        pattern.values[:] = lower / lower.sum(-1, keepdims=True)
        results.append(pattern)
    return results


_METHODS = ("eap", "eap, zero ablation", "random circuits of the same size")


def _summary() -> dict[str, list[Any]]:
    return {
        "figure": ["edges", "nodes", "faithfulness on pairs held out", "minimality"],
        "value": [64.0, 14.0, 0.69, 0.03],
        "lower": [None, None, 0.47, None],
        "upper": [None, None, 0.9, None],
        "n": [7, 7, 6, 6],
        "about": ["1.8 % of all", "", "1 is the whole model", "a0.h1"],
    }


def _circuit_nodes() -> dict[str, list[Any]]:
    return {
        "node": ["a0.h1", "m1"],
        "score": [1.5, 0.5],
        "faithfulness_without": [0.1, 0.6],
        "minimality": [0.6, 0.1],
    }


def _proportions() -> Axis:
    return Axis("proportion", ("0.001", "0.01", "0.1", "1.0"))


def _neurons(rng: np.random.Generator) -> dict[str, list[Any]]:
    means = rng.normal(0, 0.1, 12)
    return {
        "contrast": ["lowercase"] * 12,
        "layer": [i % 3 for i in range(12)],
        "neuron": list(range(12)),
        "mean": means.tolist(),
        "lower": (means - 0.05).tolist(),
        "upper": (means + 0.05).tolist(),
        "n": [4] * 12,
    }


def _ranking() -> dict[str, list[Any]]:
    return {
        "layer": ["1", "0"],
        "head": ["0", "3"],
        "mean": [0.9, -0.6],
        "rank": [0, 1],
        "in_top_10": [1.0, 0.9],
        "rank_lower": [0, 1],
        "rank_upper": [2, 11],
        "n": [14, 14],
    }


def _group_tests() -> dict[str, list[Any]]:
    return {
        "contrast": ["lowercase", "lowercase"],
        "group": ["group 0", "group 1"],
        "other": ["group 1", "group 2"],
        "difference": [2.0, 0.1],
        "p": [0.001, 0.6],
        "p_holm": [0.002, 0.6],
        "units": [8, 8],
        "within_documents": [False, False],
    }


def _edges(rng: np.random.Generator) -> dict[str, list[Any]]:
    parts = ["embed", "a0.h1", "a0.h3", "m0", "a1.h0", "a1.h2", "m1", "a2.h1", "m2", "logits"]
    pairs = [(a, b) for i, a in enumerate(parts) for b in parts[i + 1 :]][::2]
    return {
        "source": [a for a, _ in pairs],
        "target": [f"{b}.q" if b.startswith("a") else b for _, b in pairs],
        "score": rng.normal(0, 1, len(pairs)).tolist(),
    }


def _counterfactuals() -> dict[str, list[Any]]:
    return {
        "family": ["final full stop to comma", "first letter lowered"],
        "n": [4, 3],
        "mean_clean": [3.1, 3.0],
        "mean_corrupted": [-0.5, 2.0],
        "mean_clean_lower": [2.0, None],
        "mean_clean_upper": [4.0, None],
        "flip_share": [0.75, 0.0],
        "half_share": [1.0, 1 / 3],
        "excluded": [0, 1],
        "why": ["", "tokens do not align"],
    }


def _lens_top(texts: tuple[str, ...], depths: tuple[str, ...]) -> dict[str, list[Any]]:
    rows = [
        (i, depth, pos, token)
        for i, text in enumerate(texts[:2])
        for depth in depths
        for pos, token in enumerate(["<|endoftext|>", *_words(text)])
    ]
    return {
        "prompt": [row[0] for row in rows],
        "depth": [row[1] for row in rows],
        "pos": [row[2] for row in rows],
        "read": [row[3] for row in rows],
        "rank": [0] * len(rows),
        "token": [" It"] * len(rows),
        "id": [5] * len(rows),
        "prob": [(i % 20 + 1) / 20 for i in range(len(rows))],
    }
