"""Forward pass and attribution in every family: casestudy against transformers' own forward.

    python benchmarks/families.py

One process, random weights of the same shape in both programs; ours are views of theirs. Three
sides take turns, so that a busy minute slows all: transformers' decoder without its unembedding,
ours without it, and ours with what a study's attribution does (`ledger_terms` and `head_shares` at
the last position). A side's time is its fastest turn in CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

import casestudy as cs
from casestudy.measure.attribution import final_directions, head_shares, keep_for_heads
from casestudy.measure.ledger import ledger_terms
from casestudy.model.loading import BUNDLED
from casestudy.model.tokens import Tokenizer, Tokens

ROOT = Path(__file__).resolve().parents[1]
D_VOCAB = 16_384
ROUNDS = 4
# (layers, d_model, heads, key/value heads, width of an MLP without gate and of one with)
SCALES = {
    "tiny": ((2, 64, 4, 2, 256, 172), 64, 8),
    "100M": ((12, 768, 12, 4, 3072, 2048), 512, 1),
}
WINDOW = 128

Shape = tuple[int, int, int, int, int, int]


def gpt(shape: Shape) -> dict[str, Any]:
    """The names GPT-2 and GPT-J use."""
    layers, d, heads, _, _, _ = shape
    return {"n_layer": layers, "n_embd": d, "n_head": heads, "n_positions": 1024}


def ungated(shape: Shape) -> dict[str, Any]:
    """The names of later configurations, with an MLP without a gate."""
    layers, d, heads, _, d_mlp, _ = shape
    return {
        "num_hidden_layers": layers,
        "hidden_size": d,
        "num_attention_heads": heads,
        "intermediate_size": d_mlp,
        "max_position_embeddings": 1024,
    }


def gated(shape: Shape) -> dict[str, Any]:
    """Grouped keys and values, and an MLP with a gate."""
    return ungated(shape) | {"num_key_value_heads": shape[3], "intermediate_size": shape[5]}


def neo(shape: Shape) -> dict[str, Any]:
    """GPT-Neo's own names; every other layer has a window."""
    layers, d, heads, _, _, _ = shape
    return {
        "num_layers": layers,
        "hidden_size": d,
        "num_heads": heads,
        "attention_types": [[["global", "local"], layers // 2]],
        "window_size": WINDOW,
        "max_position_embeddings": 1024,
    }


def opt(shape: Shape) -> dict[str, Any]:
    """OPT's own names."""
    own = {"ffn_dim": shape[4], "word_embed_proj_dim": shape[1]}
    return {k: v for k, v in ungated(shape).items() if k != "intermediate_size"} | own


def headed(shape: Shape) -> dict[str, Any]:
    """With the width of a head said, where the family's own is another."""
    return gated(shape) | {"head_dim": shape[1] // shape[2]}


def windowed(shape: Shape) -> dict[str, Any]:
    """With a window that prompts reach past."""
    return headed(shape) | {"sliding_window": WINDOW}


FAMILIES: dict[str, tuple[str, Callable[[Shape], dict[str, Any]]]] = {
    "GPT-2": ("GPT2Config", gpt),
    "GPT-Neo": ("GPTNeoConfig", neo),
    "GPT-J": ("GPTJConfig", lambda shape: gpt(shape) | {"rotary_dim": 16}),
    "GPT-NeoX": ("GPTNeoXConfig", ungated),
    "OPT": ("OPTConfig", opt),
    "Llama": ("LlamaConfig", gated),
    "Mistral": ("MistralConfig", windowed),
    "Qwen2": ("Qwen2Config", gated),
    "Qwen3": ("Qwen3Config", headed),
    "OLMo 2": ("Olmo2Config", gated),
    "Gemma 2": ("Gemma2Config", windowed),
    "Gemma 3": ("Gemma3TextConfig", windowed),
    "Phi-3": ("Phi3Config", gated),
    "SmolLM3": ("SmolLM3Config", gated),
    "StableLM": ("StableLmConfig", gated),
}


def race(family: str, scale: str, rounds: int) -> dict[str, Any]:
    """One family's times at one scale, and how far the two programs' final streams are apart."""
    shape, length, n_prompts = SCALES[scale]
    kind, options = FAMILIES[family]
    torch.manual_seed(0)
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = getattr(transformers, kind)(vocab_size=D_VOCAB, **ids, **options(shape))
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()  # type: ignore[no-untyped-call]
    tokenizer = Tokenizer.from_directory(BUNDLED / "tiny", prepend_bos=True, n_ctx=1024)
    model = cs.load(theirs, tokenizer)
    rows = torch.randint(1, D_VOCAB, (n_prompts, length))
    tokens = Tokens.of(rows.tolist())
    contrast = pairs(n_prompts)

    def plain() -> torch.Tensor:
        return cs.run(model, tokens, keep=["final_normed"])["final_normed"]

    def attribution() -> torch.Tensor:
        trace = cs.run(model, tokens, keep=keep_for_heads(model))
        direction = contrast.directions(model.weights)
        _, terms = ledger_terms(model, trace, contrast, directions=direction)
        u = final_directions(model, trace, [direction])
        heads = [head_shares(model, trace, layer, u) for layer in range(model.config.n_layers)]
        return torch.cat([terms.flatten(), *(h.flatten() for h in heads)])

    def reference() -> torch.Tensor:
        state: torch.Tensor = theirs.base_model(input_ids=rows, use_cache=False).last_hidden_state
        return state

    sides = {"transformers": reference, "plain": plain, "attribution": attribution}
    best = dict.fromkeys(sides, float("inf"))
    with torch.no_grad():
        gap = float((reference() - plain()).abs().max())
        attribution()
        for _ in range(rounds):
            for name, side in sides.items():
                start = time.process_time()
                side()
                best[name] = min(best[name], time.process_time() - start)
    return {
        "family": family,
        "scale": scale,
        "parameters": sum(p.numel() for p in theirs.parameters()),
        "prompts": n_prompts,
        "tokens": length,
        **{f"{name}_prompts_per_s": round(n_prompts / t, 3) for name, t in best.items()},
        "attribution_over_plain": round(best["attribution"] / best["plain"], 3),
        "transformers_over_plain": round(best["transformers"] / best["plain"], 3),
        "max_gap": gap,
        "threads": torch.get_num_threads(),
    }


def pairs(n: int) -> cs.Contrast:
    """One pair of tokens per prompt."""
    ids = torch.tensor([[5, 9]]).expand(n, 2)
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).expand(n, 2)
    names = tuple(map(str, range(n)))
    return cs.Contrast("pairs", ids, signs, torch.zeros(n, dtype=torch.float64), names, names)


def main() -> None:
    """Race in every family and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", choices=FAMILIES, action="append", help="only this one")
    parser.add_argument("--scale", choices=SCALES, action="append", help="only this one")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns per side")
    parser.add_argument("--threads", type=int, default=2, help="of the arithmetic")
    default = ROOT / "benchmarks" / "results" / "families.json"
    parser.add_argument("--out", type=Path, default=default, help="where results go, as JSON")
    arguments = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.set_num_threads(arguments.threads)
    rows = []
    for scale in arguments.scale or SCALES:
        for family in arguments.family or FAMILIES:
            rows.append(race(family, scale, arguments.rounds))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """The results as a table in Markdown."""
    head = ["family", "scale", "transformers", "forward", "attribution", "attribution / forward"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        speeds = [row[f"{s}_prompts_per_s"] for s in ("transformers", "plain", "attribution")]
        cells = [row["family"], row["scale"], *(f"{s:.3g}" for s in speeds)]
        lines.append("| " + " | ".join([*cells, f"{row['attribution_over_plain']:.2f}"]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
