"""What exploratory notebooks call, written once for two libraries.

Each function takes TransformerLens's names as a module has them (`tl.HookedTransformer`,
`tl.ActivationCache`, `tl.patching`, …) and a loader of one small model, and returns named tensors.
benchmarks/record_transformerlens.py runs them in TransformerLens 3.9.0 and stores what comes out;
the tests run them here and compare. Only torch is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

Found = dict[str, Tensor]

# Of equal length and BOS in front, clean and corrupted by turns, as the demos have them.
CLEAN = ["The old man saw the house. He went", "The old man saw the house, he went"]
RAGGED = ["He said so. He", "The old man saw the house. She", "No"]
FULL_SIZE_PROMPT = "When Mary and John went to the shops, John gave a drink to"
SHAPE = {"n_layer": 2, "n_head": 4, "n_embd": 16, "n_positions": 32}


def thin(logits: Tensor) -> Tensor:
    """Every 64th logit: enough to tell two models apart, small enough to store."""
    return logits[..., ::64].clone()


def logit_diff(logits: Tensor) -> Tensor:
    """The demos' metric, over two arbitrary tokens."""
    last = logits[:, -1]
    return (last[:, 640] - last[:, 1280]).mean()


def cached(cache: Any, names: list[str] | None = None) -> Found:
    """Activations, without the unembedding's two hooks, which are the logits again."""
    found = {k: v for k, v in cache.items() if not k.startswith("unembed.")}
    return {k: v.detach().clone() for k, v in found.items() if names is None or k in names}


def processed(tl: Any, load: Callable[..., Any]) -> Found:
    """Everything a default run caches, and weights after the default rewrites."""
    model = load()
    tokens = model.to_tokens(CLEAN, prepend_bos=True)
    logits, cache = model.run_with_cache(tokens)
    found = cached(cache)
    found["tokens"] = tokens
    found["logits"] = thin(logits)
    for name in ("W_pos", "W_Q", "W_K", "W_V", "W_O", "W_in", "W_out"):
        found[name] = getattr(model, name)[..., :4].clone()
    for name in ("b_Q", "b_K", "b_V", "b_O", "b_in", "b_out"):
        found[name] = getattr(model, name).clone()
    found["W_U"], found["b_U"], found["W_E"] = model.W_U[:, ::64], model.b_U[::64], model.W_E[::64]
    found["loss"] = model(tokens, return_type="loss")
    found["loss per token"] = model(tokens, return_type="loss", loss_per_token=True)
    found["both"] = model(tokens, return_type="both").loss
    return found


def unprocessed(tl: Any, load: Callable[..., Any]) -> Found:
    """The same without any rewrite: `hook_normalized` then stands before the norm's weight."""
    model = load(
        fold_ln=False, center_unembed=False, center_writing_weights=False, fold_value_biases=False
    )
    tokens = model.to_tokens(CLEAN, prepend_bos=False)
    logits, cache = model.run_with_cache(tokens)
    return {
        **cached(cache),
        "tokens": tokens,
        "logits": thin(logits),
        "ln": model.blocks[1].ln1(cache["resid_pre", 1]),
        "stack": cache.apply_ln_to_stack(cache.decompose_resid(), layer=-1),
        "lens": cache.accumulated_resid(apply_ln=True),
    }


def on_request(tl: Any, load: Callable[..., Any]) -> Found:
    """The activations that have to be asked for."""
    model = load()
    model.set_use_attn_result(True)
    model.set_use_split_qkv_input(True)
    model.set_use_hook_mlp_in(True)
    tokens = model.to_tokens(CLEAN[0])
    words = ("hook_result", "hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_in")
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith(words))
    found = cached(cache)
    model.set_use_split_qkv_input(False)
    model.cfg.use_attn_in = True
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: "attn_in" in name)
    return {**found, **cached(cache)}


def left_padded(tl: Any, load: Callable[..., Any]) -> Found:
    """Unequal prompts, padded on the left: the last column is each prompt's last token."""
    model = load()
    model.tokenizer.padding_side = "left"
    tokens = model.to_tokens(RAGGED)
    logits, cache = model.run_with_cache(tokens)
    found = {"tokens": tokens, "logits": thin(logits[:, -1])}
    for name in ("resid_post", "attn_out", "mlp_out"):
        found[name] = torch.stack([cache[name, layer][:, -1] for layer in range(2)])
    found["z"], found["q"] = cache["z", 1][:, -1], cache["q", 1][:, -1]
    found["pattern"] = cache["pattern", 1][:, :, -1]
    found["resid"] = cache["resid_post", -1][1]
    found["loss"] = model(tokens, return_type="loss")
    final = cache["resid_post", -1][:, -1, :]
    found["ln"] = cache.apply_ln_to_stack(final, layer=-1, pos_slice=-1)
    return found


def decompositions(tl: Any, load: Callable[..., Any]) -> Found:
    """What a cache is asked to take apart."""
    model = load()
    tokens = model.to_tokens(CLEAN)
    _, cache = model.run_with_cache(tokens)
    found: Found = {}
    ask = {"pos_slice": -1, "return_labels": True}
    accumulated, _ = cache.accumulated_resid(layer=-1, incl_mid=True, **ask)
    found["accumulated"] = accumulated
    found["accumulated 1"] = cache.accumulated_resid(1, mlp_input=True, apply_ln=True)
    found["lens"] = cache.accumulated_resid(-1, apply_ln=True, pos_slice=-1)
    found["decomposed"], _ = cache.decompose_resid(layer=-1, **ask)
    found["decomposed mlp"] = cache.decompose_resid(1, mlp_input=True, apply_ln=True)
    heads, _ = cache.stack_head_results(layer=-1, **ask)
    found["heads"] = heads
    found["heads ln"] = cache.stack_head_results(
        layer=1, incl_remainder=True, apply_ln=True, pos_slice=(2, 4)
    )
    found["neurons"], _ = cache.stack_neuron_results(
        layer=-1, pos_slice=-1, neuron_slice=(0, 5), apply_ln=True, return_labels=True
    )
    found["full"] = cache.get_full_resid_decomposition(apply_ln=True, pos_slice=-1).sum(0)
    found["full heads"] = cache.get_full_resid_decomposition(expand_neurons=False, pos_slice=-1)
    right, wrong = torch.tensor([640, 64]), torch.tensor([1280, 128])
    found["attrs"] = cache.logit_attrs(heads, right, wrong, pos_slice=-1)
    found["attrs one"] = cache.logit_attrs(accumulated, 640, pos_slice=-1, batch_slice=0)
    found["stacked z"] = cache.stack_activation("z")
    found["directions"] = model.tokens_to_residual_directions(torch.stack([right, wrong], 1))
    found["bias"] = model.accumulated_bias(2)
    found["sliced"] = cache.apply_slice_to_batch_dim(1)["resid_post", -1]
    _, last = model.run_with_cache(tokens, pos_slice=-1)
    found["only last"], found["only last z"] = last["resid_post", 0], last["z", 0]
    _, alone = model.run_with_cache(tokens[:1], remove_batch_dim=True)
    found["alone"] = alone["pattern", 0, "attn"]
    _, below = model.run_with_cache(tokens, stop_at_layer=1)
    found["below"] = below["resid_post", 0]
    found["stopped"] = model(tokens, stop_at_layer=1)
    found["restarted"] = thin(model(found["stopped"], start_at_layer=1)[:, -1])
    return found


def labels(tl: Any, load: Callable[..., Any]) -> dict[str, list[str]]:
    """The names of the parts."""
    model = load()
    _, cache = model.run_with_cache(model.to_tokens(CLEAN))
    return {
        "accumulated": cache.accumulated_resid(incl_mid=True, return_labels=True)[1],
        "decomposed": cache.decompose_resid(return_labels=True)[1],
        "heads": cache.stack_head_results(return_labels=True)[1],
        "full": cache.get_full_resid_decomposition(expand_neurons=False, return_labels=True)[1],
        "tokens": model.to_str_tokens(CLEAN[0]),
        "head labels": model.all_head_labels(),
    }


def interventions(tl: Any, load: Callable[..., Any]) -> Found:
    """Hooks in each of the ways notebooks hang them."""
    model = load()
    model.set_use_split_qkv_input(True)
    tokens = model.to_tokens(CLEAN)
    found: Found = {}

    def ablate(value: Tensor, hook: Any, head: int) -> Tensor:
        value[:, :, head] = 0.0
        return value

    def scale(value: Tensor, hook: Any) -> Tensor:
        return value * (1.0 + hook.layer())

    def write_only(value: Tensor, hook: Any) -> None:
        value[:, 2, ...] = 0.5

    def run(*hooks: tuple[Any, Any]) -> Tensor:
        return thin(
            model.run_with_hooks(tokens, fwd_hooks=list(hooks), return_type="logits")[:, -1]
        )

    found["z"] = run((tl.utils.get_act_name("z", 1), partial(ablate, head=2)))
    found["filter"] = run((lambda name: name.endswith("mlp_out"), scale))
    found["in place"] = run(("blocks.0.hook_resid_pre", write_only))
    found["pattern"] = run(("blocks.1.attn.hook_pattern", lambda p, hook: p * 0.5))
    found["scores"] = run(("blocks.1.attn.hook_attn_scores", lambda s, hook: s * 2.0))
    found["scale"] = run(("blocks.1.ln2.hook_scale", lambda s, hook: s * 2.0))
    found["final scale"] = run(("ln_final.hook_scale", lambda s, hook: s + 1.0))
    found["normalized"] = run(("blocks.0.ln2.hook_normalized", lambda x, hook: x + 0.1))
    found["embed"] = run(("hook_embed", write_only), ("hook_pos_embed", lambda x, hook: -x))
    found["q_input"] = run(("blocks.1.hook_q_input", partial(ablate, head=1)))
    found["k_input"] = run(("blocks.1.hook_k_input", partial(ablate, head=0)))
    model.set_use_split_qkv_input(False)
    model.set_use_attn_result(True)
    found["result"] = run(("blocks.0.attn.hook_result", partial(ablate, head=3)))
    model.blocks[0].attn.hook_z.add_hook(partial(ablate, head=1))
    found["added"] = thin(model(tokens)[:, -1])
    _, cache = model.run_with_cache(tokens)
    found["added, cached"] = cache["z", 0]
    model.reset_hooks()
    with model.hooks(fwd_hooks=[("blocks.1.hook_attn_out", scale)]):
        found["context"] = thin(model(tokens)[:, -1])
    found["afterwards"] = thin(model(tokens)[:, -1])
    return found


def gradients(tl: Any, load: Callable[..., Any]) -> Found:
    """The attribution patching demo's two caches."""
    model = load()
    model.set_use_attn_result(True)
    model.set_use_attn_in(True)
    model.set_use_hook_mlp_in(True)
    tokens = model.to_tokens(CLEAN)
    model.reset_hooks()
    cache: dict[str, Tensor] = {}
    grad_cache: dict[str, Tensor] = {}

    def forward_cache_hook(act: Tensor, hook: Any) -> None:
        cache[hook.name] = act.detach()

    def backward_cache_hook(act: Tensor, hook: Any) -> None:
        grad_cache[hook.name] = act.detach()

    model.add_hook(lambda name: "_input" not in name, forward_cache_hook, "fwd")
    model.add_hook(lambda name: "_input" not in name, backward_cache_hook, "bwd")
    value = logit_diff(model(tokens))
    value.backward()
    model.reset_hooks()
    # ln1 is called three times where its input is split by heads, and keeps the last gradient
    found = {f"{name} grad": x for name, x in cached(grad_cache).items() if "ln1" not in name}
    found["ln1 scale"] = cache["blocks.1.ln1.hook_scale"]
    clean, grads = tl.ActivationCache(cache, model), tl.ActivationCache(grad_cache, model)
    found["value"] = value.detach()
    found["heads"] = grads.stack_head_results(-1) * clean.stack_head_results(-1)
    found["resid"] = grads.accumulated_resid(-1, incl_mid=True)
    found["pattern"] = clean["pattern", 1] * grads["pattern", 1]
    return found


def gradients_of_loss(tl: Any, load: Callable[..., Any]) -> Found:
    """`incl_bwd`, from a loss."""
    model = load()
    _, cache = model.run_with_cache(
        model.to_tokens(CLEAN[0]),
        return_type="loss",
        incl_bwd=True,
        names_filter=lambda name: name.endswith(("resid_post", "hook_z", "ln2.hook_scale")),
    )
    return cached(cache)


def patches(tl: Any, load: Callable[..., Any]) -> Found:
    """Every get_act_patch_*, clean into corrupted."""
    model = load()
    tokens = model.to_tokens(["He saw it. He", "He saw it, he"])
    corrupted = tokens.flip(0)
    _, cache = model.run_with_cache(tokens)
    found: Found = {}

    def metric(logits: Tensor) -> Tensor:
        # the two rows weigh differently, so that a value of the wrong row shows
        diff = logits[:, -1, 640] - logits[:, -1, 1280]
        return diff[0] + 3.0 * diff[1] + 0.1 * diff[0] * diff[1]

    for name in sorted(vars(tl.patching)):
        if name.startswith("get_act_patch_") and "dest_src" not in name:
            found[name] = getattr(tl.patching, name)(model, corrupted, cache, metric)
    # a forward pass for each entry of each pattern: the shortest prompts there are
    short = model.to_tokens(["Go.", "Go,"])
    found["dest src"] = tl.patching.get_act_patch_attn_head_pattern_dest_src_pos(
        model, short.flip(0), model.run_with_cache(short)[1], metric
    )
    found["whole loss"] = tl.patching.get_act_patch_mlp_out(
        model, corrupted, cache, lambda logits: logits.log_softmax(-1)[:, :, 640].mean()
    )
    return found


def matrices(tl: Any, load: Callable[..., Any]) -> Found:
    """Factored matrices."""
    model = load()
    OV, QK = model.OV, model.QK
    full = model.embed.W_E[::256] @ OV @ model.unembed.W_U[:, ::256]
    return {
        "OV": OV.AB,
        "QK one": QK[1, 2].AB,
        "OV svd": OV.svd()[1],
        "QK norm": QK.norm(),
        "OV eigenvalues": OV.eigenvalues.abs().sort(-1).values,
        "full": full.AB,
        "full eigenvalues": full.eigenvalues.abs().sort(-1).values,
        "row": QK[0, 1, 3].AB,
        "entry": QK[0, 1, 3, 5].AB,
        "vector": OV[1, 1] @ torch.arange(16.0),
        "from the left": torch.arange(16.0) @ OV[1, 1],
        "product": (OV[0, 1] @ QK[1, 1]).AB,
        "even": OV[1, 0].make_even().AB,
        "transposed": QK[1, 0].T.AB,
        "twice": (OV[1, 0] * 2.0).AB,
        "composition": model.all_composition_scores("K"),
        "composition V": model.all_composition_scores("V"),
    }


def refactored(tl: Any, load: Callable[..., Any]) -> Found:
    """With factored attention matrices: what does not depend on the signs of an SVD."""
    model = load(refactor_factored_attn_matrices=True)
    tokens = model.to_tokens(CLEAN)
    logits, cache = model.run_with_cache(tokens)
    return {
        "logits": thin(logits),
        "scores": torch.stack([cache["attn_scores", layer] for layer in range(2)]),
        "pattern": torch.stack([cache["pattern", layer] for layer in range(2)]),
        "attn_out": torch.stack([cache["attn_out", layer] for layer in range(2)]),
        "OV": model.OV.AB,
        "QK": model.QK.AB,
        "heads": cache.stack_head_results(-1),
    }


def generated(tl: Any, load: Callable[..., Any]) -> Found:
    """Greedy continuations."""
    model = load()
    tokens = model.to_tokens(CLEAN)
    options = {"max_new_tokens": 4, "do_sample": False, "verbose": False, "stop_at_eos": False}
    return {"tokens": model.generate(tokens, **options)}


SCENARIOS = (
    processed,
    unprocessed,
    on_request,
    left_padded,
    decompositions,
    interventions,
    gradients,
    gradients_of_loss,
    patches,
    matrices,
    refactored,
    generated,
)
