"""Layer and head attribution: casestudy against TransformerLens 4.3.

    make bench-attribution

Theirs is the standard recipe: run_with_cache, decompose_resid and stack_head_results at the last
position, apply_ln_to_stack, and a projection on the difference of the answers' directions. Ours is
what a study does: `ledger_terms` and `head_shares`. The 50,257 logits, which ours does not need and
theirs computes, are part of what is compared.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common import ROOT, Work, main

PROMPTS, LENGTH, D_VOCAB = 32, 32, 50257
CASE = f"layers and heads, {PROMPTS} prompts x {LENGTH} tokens"


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Random prompts, and for each an answer and its counterpart."""
    rng = np.random.default_rng(0)
    answers = [rng.choice(D_VOCAB, 2, replace=False) for _ in range(PROMPTS)]
    return rng.integers(D_VOCAB, size=(PROMPTS, LENGTH)), np.stack(answers)


def ours(folder: Path, case: str) -> Work:
    """Terms of the ledger and the heads' shares, at the last positions."""
    import torch

    import casestudy as cs
    from casestudy.measure.attribution import final_directions, head_shares, keep_for_heads
    from casestudy.measure.ledger import ledger_terms
    from casestudy.model.tokens import Tokens

    model = cs.load(folder, device="cpu")
    ids, answers = inputs()
    tokens = Tokens.of(ids.tolist())
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).expand(PROMPTS, 2)
    names = tuple(map(str, range(PROMPTS)))
    zero = torch.zeros(PROMPTS, dtype=torch.float64)

    def work() -> dict[str, np.ndarray]:
        contrast = cs.Contrast("pairs", torch.tensor(answers), signs, zero, names, names)
        trace = cs.run(model, tokens, keep=keep_for_heads(model))
        direction = contrast.directions(model.weights)
        terms, values = ledger_terms(model, trace, contrast, directions=direction)
        layers = values[[i for i, n in enumerate(terms) if n.split()[0] in PARTS]]
        u = final_directions(model, trace, [direction])
        heads = [head_shares(model, trace, i, u)[0, :-1] for i in range(model.config.n_layers)]
        return {"layers": layers.numpy(), "heads": torch.stack(heads).numpy()}

    return work


PARTS = ("embed", "pos_embed", "attn", "mlp")


def theirs(folder: Path, case: str) -> Work:
    """The recipe of TransformerLens's own demonstrations."""
    import torch
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers(str(folder), device="cpu")
    model.enable_compatibility_mode(disable_warnings=True)
    ids, answers = (torch.tensor(x) for x in inputs())

    def work() -> dict[str, np.ndarray]:
        _, cache = model.run_with_cache(ids)
        direction = model.W_U.T[answers[:, 0]] - model.W_U.T[answers[:, 1]]

        def project(stack: torch.Tensor) -> torch.Tensor:
            scaled = cache.apply_ln_to_stack(stack, layer=-1, pos_slice=-1)
            return torch.einsum("cbd,bd->cb", scaled, direction)

        layers = project(cache.decompose_resid(layer=-1, pos_slice=-1))
        heads = project(cache.stack_head_results(layer=-1, pos_slice=-1))
        heads = heads.view(model.cfg.n_layers, model.cfg.n_heads, PROMPTS)
        return {"layers": layers.numpy(), "heads": heads.numpy()}

    return work


if __name__ == "__main__":
    main(__file__, ours, theirs, [CASE], ROOT / "benchmarks" / "results" / "attribution.json")
