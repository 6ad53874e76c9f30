"""What is each TransformerLens name in casestudy? Prints docs/coming-from-transformerlens.md.

    python -m casestudy.compat.transformer_lens.docs > docs/coming-from-transformerlens.md

The page is made from the tables that the code uses, so it describes what the code does. A test
fails if the file differs from this output.
"""

from __future__ import annotations

from dataclasses import dataclass

import casestudy.compat.transformer_lens as here
from casestudy.compat.transformer_lens import (
    activation_cache,
    config,
    hooked_transformer,
    loading,
    parts,
    tokenizer,
    utils,
)
from casestudy.compat.transformer_lens.names import REFUSED, TABLE


@dataclass(frozen=True)
class Call:
    """One name of the library.

    Attributes:
        theirs: as a notebook writes it; a test looks up the part before "(".
        native: the same with casestudy's own functions; empty where it is not needed.
        note: the differences.
    """

    theirs: str
    native: str
    note: str = ""


_MODEL = (
    Call(
        'HookedTransformer.from_pretrained("gpt2-small")',
        'cs.load("gpt2")',
        "also a directory, a hub id, or `tiny`, the bundled model; rewrites the weights as the "
        "arguments say; `cs.load` never does",
    ),
    Call(
        "HookedTransformer.from_pretrained_no_processing(name)",
        "cs.load(name)",
    ),
    Call("HookedTransformer.of(model)", "", "gives a casestudy `Model` these names"),
    Call("model.cfg.n_layers", "model.config.n_layers"),
    Call("model.to_tokens(prompts)", "model.tokenize(prompts)", "no truncation by default"),
    Call("model.to_str_tokens(text)", "model.tokenizer.strings(ids)"),
    Call("model.to_string(ids)", "model.tokenizer.backend.decode(ids)"),
    Call('model.to_single_token(" He")', 'model.tokenizer.single(" He")'),
    Call("model.to_single_str_token(id)", "model.tokenizer.string(id)"),
    Call("model.get_token_position(token, text)", "roles, such as `final full stop`"),
    Call(
        "model.tokens_to_residual_directions(tokens)",
        "Contrast.directions(model.weights)",
        "does not include b_U, which is a row of the ledger",
    ),
    Call("model.forward(tokens)", 'cs.run(model, prompts, logits="all")', "or `model(tokens)`"),
    Call("model.run_with_cache(tokens)", "cs.run(model, prompts, keep=[...])"),
    Call("model.run_with_hooks(tokens, fwd_hooks=[...])", "cs.run(model, prompts, edit=[...])"),
    Call("model.hooks(fwd_hooks=[...])", "cs.run(model, prompts, edit=[...])"),
    Call("model.add_hook(name, function)", "cs.Edit(site, layer, function)"),
    Call("model.add_perma_hook(name, function)", "cs.Edit(site, layer, function)"),
    Call("model.reset_hooks()", "", "not needed: `cs.run` leaves no hook on a model"),
    Call(
        "model.generate(text)",
        "",
        "computes all positions at each step; `use_past_kv_cache` is accepted",
    ),
    Call("model.W_U", "model.weights.W_U", "and `W_E W_pos b_U`"),
    Call("model.W_Q", "model.weights.blocks[l].attn.W_Q", "and `W_K W_V W_O b_Q b_K b_V b_O`"),
    Call("model.W_in", "model.weights.blocks[l].mlp.W_in", "and `W_gate W_out b_in b_out`"),
    Call("model.QK", "", "and `model.OV`: a `FactoredMatrix`"),
    Call("model.all_composition_scores(mode)", "cs.head_profile(model)"),
    Call("model.accumulated_bias(layer)", "model.weights.blocks[l].attn.b_O, .mlp.b_out"),
    Call(
        "model.set_use_attn_result(True)",
        "",
        "and the three similar calls: needed only for a cache without a filter; a named hook is "
        "always computed",
    ),
    Call("model.state_dict()", "model.weights.named()"),
    Call("model.to(device)", "model.to(device)"),
)

_CACHE = (
    Call("cache.accumulated_resid(incl_mid=True)", "cs.lens(model, behaviour)"),
    Call("cache.decompose_resid()", "cs.ledger(model, behaviour)"),
    Call("cache.stack_head_results()", "cs.head_attribution(model, behaviour)"),
    Call("cache.stack_neuron_results(layer)", "cs.neuron_attribution(model, behaviour)"),
    Call("cache.get_full_resid_decomposition()", "cs.ledger(model, behaviour)"),
    Call("cache.apply_ln_to_stack(stack)", "cs.ledger(model, behaviour)"),
    Call(
        "cache.logit_attrs(stack, tokens)",
        "cs.ledger(model, behaviour)",
        "the ledger's terms, which include b_U, sum to the logit difference",
    ),
    Call("cache.stack_activation(name)", "trace[site, l] of each layer"),
    Call("cache.compute_head_results()", 'keep=["result"]'),
    Call("cache.remove_batch_dim()", "trace.of((site, l), prompt)"),
    Call("cache.apply_slice_to_batch_dim(i)", "trace.of((site, l), prompt)"),
)

_UTILS = (
    Call('utils.get_act_name("z", 3)', 'cs.Site("z").at(3)'),
    Call("utils.test_prompt(prompt, answer, model)", "cs.score_answer(model, prompt, answer)"),
    Call("utils.get_device()", 'cs.load(name, device="auto")'),
    Call("utils.to_numpy(tensor)", ""),
    Call("utils.lm_cross_entropy_loss(logits, tokens)", ""),
    Call("utils.lm_accuracy(logits, tokens)", ""),
    Call("utils.sample_logits(logits)", ""),
    Call("utils.Slice(input)", ""),
    Call("FactoredMatrix(A, B)", "", "`.svd() .eigenvalues .AB .norm()` and the others"),
)

_PATCHING = (
    Call(
        "patching.get_act_patch_resid_pre",
        'patch(model, pairs, contrast, "resid_pre")',
        "and `resid_mid`, `attn_out`, `mlp_out`",
    ),
    Call(
        "patching.get_act_patch_attn_head_out_by_pos",
        'patch(model, pairs, contrast, "z", by="position")',
        "and `q`, `k`, `v`, `pattern`",
    ),
    Call(
        "patching.get_act_patch_attn_head_out_all_pos",
        'patch(model, pairs, contrast, "z")',
        "and `q`, `k`, `v`, `pattern`",
    ),
    Call("patching.get_act_patch_attn_head_pattern_dest_src_pos", "", "one full run per entry"),
    Call("patching.get_act_patch_block_every", "patch(...) for each site"),
    Call("patching.get_act_patch_attn_head_all_pos_every", "patch(...) for each site"),
    Call("patching.get_act_patch_attn_head_by_pos_every", "patch(...) for each site"),
    Call("patching.generic_activation_patch", "patch(...)", "also with your own setters"),
)

CALLS = (*_MODEL, *_CACHE, *_UTILS, *_PATCHING)

_REFUSED = {
    "import from transformer_lens": here._REASONS,
    "HookedTransformer.from_pretrained": loading._ARGUMENTS,
    "HookedTransformer": hooked_transformer._REASONS,
    "model.blocks[l] and its like": parts._REASONS,
    "model.tokenizer": tokenizer._REASONS,
    "ActivationCache": activation_cache._REASONS,
    "utils": utils._REASONS,
    "hook names": REFUSED,
}

_TOP = """\
<!-- Made by `python -m casestudy.compat.transformer_lens.docs`; a test fails when it is stale. -->
# Coming from TransformerLens

TransformerLens 4.0 removed `HookedTransformer`; 3.9.0 is the last version that has it. To run a
notebook written for it, change its import lines and nothing else:

    from casestudy.compat.transformer_lens import ActivationCache, HookedTransformer
    from casestudy.compat.transformer_lens import patching, utils

`FactoredMatrix` and `HookPoint` can be imported too, and so can the modules `utils`, `patching` and
`hook_points`. Keep the imports of circuitsvis, plotly, einops and fancy_einsum.

The values equal those of `HookedTransformer` in 3.9.0: for a GPT-2 of full size with random weights
every hook agrees to 1e-4 (the largest gap was 2e-6). They also agree with `TransformerBridge` of
4.3 in its compatibility mode. An SVD determines signs only up to a choice. So with
`refactor_factored_attn_matrices=True` scores, patterns, products and logits agree, and single
weights may differ in sign.

## What is different

- **A name that does not exist is an error**: a hook name, a `names_filter`, an attribute or an
  argument. The message lists the names that exist.
- **No mode has to be set.** `hook_result`, `hook_q_input`, `hook_k_input`, `hook_v_input`,
  `hook_attn_in` and `hook_mlp_in` are computed whenever you name them. The `set_use_*` calls and
  `cfg.use_*` fields only decide whether a cache contains them if it has no filter, or a filter that
  accepts other names too.
- **Padding on the left** gives the same shapes as TransformerLens: the last column is each prompt's
  last token. The values are those of each prompt run alone. Values at padded positions are finite
  and have no meaning; a pattern's row of a padded query is 0. A matrix of ids that does not come
  from `to_tokens` is read as in TransformerLens: if padding and BOS are the same token, the last of
  these tokens is BOS, unless you pass `prepend_bos=False`.
- **Prompts are not truncated.** A prompt longer than `cfg.n_ctx` is an error;
  `to_tokens(truncate=True)` truncates.
- **A hook may change its tensor in place**, or return a replacement of the same shape. Each hook
  gets a copy of its own.
- **Gradients** are enabled while a backward hook is on the model, even after
  `torch.set_grad_enabled(False)`. The earlier setting returns when the last backward hook is
  removed. Activations have gradients; weights have none. `run_with_hooks(bwd_hooks=...)` would
  remove its hooks before a backward pass, so it is refused unless `reset_hooks_end=False`.
- **The first norm of a layer is computed once.** TransformerLens calls `ln1` three times, for
  queries, keys and values, so a gradient cached at `ln1.hook_scale` is that of the last call; here
  it is the sum. If there are hooks on both the split inputs and `ln1`, `ln1` is called three times
  here too, with an axis `head`.
- **`patching`** computes only what a patch changes, if the metric reads only the last position. If
  heads share keys and values, entries of `..._every` that belong to no head are NaN, not 0.
- `past_kv_cache` is refused; `generate` computes all positions at every step.
"""


def page() -> str:
    """The whole page, in Markdown."""
    return "\n".join([_TOP, _hooks(), _calls(), _refused()]).rstrip() + "\n"


def _hooks() -> str:
    lines = [
        "## Hook names",
        "",
        "A cache accepts the full name and the short name. In casestudy's own interface: "
        "`trace = cs.run(model, prompts, keep=[site])`. `axes` are the axes of the tensor; `flag` "
        "is the setting that TransformerLens needs for this hook.",
        "",
        "| TransformerLens | from a cache | casestudy | axes | models | flag |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in TABLE:
        flag = f"`{row.flag}`" if row.flag else ""
        lines.append(
            f"| `{row.pattern}` | `{row.short}` | `{row.native}` | {row.axes} | "
            f"{row.models or 'all'} | {flag} |"
        )
    lines += [
        "",
        "`hook_normalized` is the value before a norm's weight and bias, and casestudy's site the "
        "value after them; with `fold_ln` they are equal. `hook_attn_in` is the input of queries, "
        'keys and values; `trace["attn_in", l]` has no axis `head`.',
        "",
    ]
    return "\n".join(lines)


def _calls() -> str:
    lines = [
        "## Calls",
        "",
        "`import casestudy as cs`; `patch` is `cs.patch`.",
        "",
        "| TransformerLens (works here too) | casestudy | note |",
        "| --- | --- | --- |",
    ]
    for call in CALLS:
        native = f"`{call.native}`" if call.native and "`" not in call.native else call.native
        lines.append(f"| `{call.theirs}` | {native} | {call.note} |")
    return "\n".join([*lines, ""])


def _refused() -> str:
    lines = [
        "## Names that are refused",
        "",
        "Each of these names raises an error that says what to use instead. All fields of `cfg` "
        "can be read; only these can be set: "
        f"{', '.join(f'`{name}`' for name in config._REQUESTS)}.",
        "",
        "| where | name | instead |",
        "| --- | --- | --- |",
    ]
    for where, reasons in _REFUSED.items():
        lines += [f"| {where} | `{name}` | {instead} |" for name, instead in reasons.items()]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    print(page(), end="")
