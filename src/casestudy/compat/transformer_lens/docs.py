"""What is each TransformerLens name called here? Prints docs/coming-from-transformerlens.md.

    python -m casestudy.compat.transformer_lens.docs > docs/coming-from-transformerlens.md

The page is made from the tables that the code itself uses, so that it says what the code does; a
test fails where the file is not what this prints.
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
        theirs: as a notebook writes it; the part before "(" is looked up in a test.
        native: the same in casestudy's words; empty where there is no need for it.
        note: where it differs.
    """

    theirs: str
    native: str
    note: str = ""


_MODEL = (
    Call(
        'HookedTransformer.from_pretrained("gpt2-small")',
        'cs.load("gpt2")',
        "also a directory, a hub id, or `tiny`, the bundled model; weights are rewritten as the "
        "arguments say, natively never",
    ),
    Call(
        "HookedTransformer.from_pretrained_no_processing(name)",
        "cs.load(name)",
    ),
    Call("HookedTransformer.of(model)", "", "a `Model` of casestudy's under these names"),
    Call("model.cfg.n_layers", "model.config.n_layers"),
    Call("model.to_tokens(prompts)", "model.tokenize(prompts)", "nothing is cut off unasked"),
    Call("model.to_str_tokens(text)", "model.tokenizer.strings(ids)"),
    Call("model.to_string(ids)", "model.tokenizer.backend.decode(ids)"),
    Call('model.to_single_token(" He")', 'model.tokenizer.single(" He")'),
    Call("model.to_single_str_token(id)", "model.tokenizer.string(id)"),
    Call("model.get_token_position(token, text)", "roles, such as `final full stop`"),
    Call(
        "model.tokens_to_residual_directions(tokens)",
        "Contrast.directions(model.weights)",
        "b_U is no part of it: the ledger has it as a row",
    ),
    Call("model.forward(tokens)", 'cs.run(model, prompts, logits="all")', "or `model(tokens)`"),
    Call("model.run_with_cache(tokens)", "cs.run(model, prompts, keep=[...])"),
    Call("model.run_with_hooks(tokens, fwd_hooks=[...])", "cs.run(model, prompts, edit=[...])"),
    Call("model.hooks(fwd_hooks=[...])", "cs.run(model, prompts, edit=[...])"),
    Call("model.add_hook(name, function)", "cs.Edit(site, layer, function)"),
    Call("model.add_perma_hook(name, function)", "cs.Edit(site, layer, function)"),
    Call("model.reset_hooks()", "", "nothing stays behind on a model natively"),
    Call(
        "model.generate(text)", "", "computed anew at every step; `use_past_kv_cache` is accepted"
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
        "and its three like: needed only for what is cached unasked; a name is always honoured",
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
        "the ledger's terms sum to the logit difference, b_U among them",
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
    Call("FactoredMatrix(A, B)", "", "`.svd() .eigenvalues .AB .norm()` and the rest"),
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
    Call("patching.get_act_patch_attn_head_pattern_dest_src_pos", "", "a full run per entry"),
    Call("patching.get_act_patch_block_every", "patch(...) for each site"),
    Call("patching.get_act_patch_attn_head_all_pos_every", "patch(...) for each site"),
    Call("patching.get_act_patch_attn_head_by_pos_every", "patch(...) for each site"),
    Call("patching.generic_activation_patch", "patch(...)", "with setters of your own too"),
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

TransformerLens 4.0 removed `HookedTransformer`; 3.9.0 is the last version that has it. A notebook
written for it runs here with its import lines changed and nothing else:

    from casestudy.compat.transformer_lens import ActivationCache, HookedTransformer
    from casestudy.compat.transformer_lens import patching, utils

`FactoredMatrix` and `HookPoint` are there too, and the modules `utils`, `patching` and
`hook_points` can be imported as such. circuitsvis, plotly, einops and fancy_einsum stay what they
are.

Values are 3.9.0's `HookedTransformer`'s: every hook of a random GPT-2 at full size agrees to 1e-4
(the largest gap was 2e-6), and so does 4.3's `TransformerBridge` in its compatibility mode.
Weights refactored by SVD have free signs; with `refactor_factored_attn_matrices=True` scores,
patterns, products and logits agree.

## What is different

- **A name that does not exist is an error**: a hook or a `names_filter` on it, an attribute, an
  argument. The message says what there is.
- **No mode has to be set.** `hook_result`, `hook_q_input` and its like, `hook_attn_in` and
  `hook_mlp_in` are computed wherever they are named. The `set_use_*` calls and `cfg.use_*` fields
  say whether a cache without a filter, or a filter that accepts other names too, has them.
- **Padding on the left** gives the shapes it always gave, the last column being each prompt's
  last token, and the values of each prompt run alone. What stands at a padded position is finite
  and means nothing; a padded query's row of a pattern is 0. A matrix of ids that `to_tokens` did
  not make is read as TransformerLens reads it: where padding and BOS are the same token, the last
  of them is BOS unless `prepend_bos=False` is said.
- **Nothing is cut off.** A prompt longer than `cfg.n_ctx` is an error; `to_tokens(truncate=True)`
  cuts.
- **Hooks may write into what they are given**, or return a replacement of the same shape. Each
  has a copy of its own.
- **Gradients** are on while a backward hook hangs on the model, whatever
  `torch.set_grad_enabled(False)` was said, and as they were when the last is taken off.
  Activations have gradients; weights have none. `run_with_hooks(bwd_hooks=...)` would take them
  off before a backward pass, and is refused unless `reset_hooks_end=False`.
- **The first norm of a layer is met once.** TransformerLens calls `ln1` for queries, keys and
  values, so that a gradient kept at `ln1.hook_scale` is that of the last; here it is the whole.
  Where hooks hang on both the split inputs and `ln1`, it is called three times here too, with an
  axis `head`.
- **`patching`** computes only what a patch changes, wherever the metric reads the last position
  alone. Where heads share keys and values, entries of `..._every` that are no head's are NaN, not
  0.
- `past_kv_cache` is refused; `generate` computes every step anew.
"""


def page() -> str:
    """The whole page, in Markdown."""
    return "\n".join([_TOP, _hooks(), _calls(), _refused()]).rstrip() + "\n"


def _hooks() -> str:
    lines = [
        "## Hook names",
        "",
        "Cached by the full name or by the short one; natively `trace = cs.run(model, prompts, "
        "keep=[site])`. The axes are the tensor's; `flag` is what TransformerLens wants set first.",
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
        "`hook_normalized` lies before a norm's weight and bias, casestudy's site after them; once "
        "`fold_ln` has folded them away the two are one. `hook_attn_in` is what queries, keys and "
        "values all read; natively it has no axis `head`.",
        "",
    ]
    return "\n".join(lines)


def _calls() -> str:
    lines = [
        "## Calls",
        "",
        "`import casestudy as cs`; `patch` is `casestudy.measure.patching.patch`.",
        "",
        "| TransformerLens, as it is here too | natively | |",
        "| --- | --- | --- |",
    ]
    for call in CALLS:
        native = f"`{call.native}`" if call.native and "`" not in call.native else call.native
        lines.append(f"| `{call.theirs}` | {native} | {call.note} |")
    return "\n".join([*lines, ""])


def _refused() -> str:
    lines = [
        "## Refused by name",
        "",
        "Each raises an error that names it and says what to do instead. `cfg` can be read, and "
        "only its requests set: "
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
