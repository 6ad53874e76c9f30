"""Which activations did a run keep, and what did each part of the model write?

A dictionary of activations by TransformerLens's names, with its decompositions: the residual stream
accumulated over layers, or split into layers, heads or neurons, each part scaled by the final
norm's cached scale. `Keep`, `Trace` and the ledger are casestudy's own interface to the same.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from casestudy.compat.transformer_lens.errors import refuse, refuse_name
from casestudy.compat.transformer_lens.names import DOCS, get_act_name
from casestudy.compat.transformer_lens.utils import Slice, SliceInput
from casestudy.errors import SiteError, SiteNotKept
from casestudy.model.linear import norm_at_scale
from casestudy.model.weights import Norm

_REASONS = {
    "compute_ssm_effective_attention": "No supported model has state-space layers",
    "ssm_layers": "No supported model has state-space layers",
}


class ActivationCache:
    """Activations by name.

    `cache["blocks.3.attn.hook_z"]`, `cache["z", 3]`, `cache["resid_post", -1]` and
    `cache["scale", 3, "ln1"]` all work. A cache from `run_with_cache` also has activations that
    follow from the kept ones: `result` from `z`, the split inputs from the residual stream.

    Args:
        cache_dict: the activations; kept as given.
        model: a `HookedTransformer`, for its shape and its weights.
        has_batch_dim: whether they still have their batch axis.
        derive: whether `result` and similar activations may be computed when they are missing (not
            for gradients).
    """

    def __init__(
        self,
        cache_dict: dict[str, Tensor],
        model: Any,
        has_batch_dim: bool = True,
        *,
        derive: bool = False,
    ) -> None:
        self.cache_dict = cache_dict
        self.model = model
        self.has_batch_dim = has_batch_dim
        self._derive = derive

    # A dictionary.

    def __getitem__(self, key: str | tuple[Any, ...]) -> Tensor:
        name = self._full_name(key)
        if name in self.cache_dict:
            return self.cache_dict[name]
        if self._derive and (found := self._derived(name)) is not None:
            return found
        if name not in self.model.hook_dict and name.removesuffix("_grad") not in self.cache_dict:
            self.model.look_up(name)
        raise SiteNotKept(
            f"{name} is not in this cache of {len(self)} activations",
            hint=f'Run with names_filter="{name}", or without a names_filter. {DOCS}',
        )

    def __contains__(self, key: object) -> bool:
        if isinstance(key, str) and key in self.cache_dict:
            return True
        return isinstance(key, (str, tuple)) and self._full_name(key) in self.cache_dict

    def __iter__(self) -> Iterator[str]:
        return iter(self.cache_dict)

    def __len__(self) -> int:
        return len(self.cache_dict)

    def __repr__(self) -> str:
        return f"ActivationCache with keys {list(self.cache_dict)}"

    def keys(self) -> KeysView[str]:
        """The full hook names."""
        return self.cache_dict.keys()

    def values(self) -> ValuesView[Tensor]:
        """The activations."""
        return self.cache_dict.values()

    def items(self) -> ItemsView[str, Tensor]:
        """Names and activations."""
        return self.cache_dict.items()

    def to(self, device: torch.device | str) -> ActivationCache:
        """The same cache, moved."""
        self.cache_dict = {name: x.to(device) for name, x in self.items()}
        return self

    def remove_batch_dim(self) -> ActivationCache:
        """The same cache without its batch axis, which must be of length one."""
        if self.has_batch_dim:
            sizes = {x.shape[0] for x in self.values()}
            if sizes - {1}:
                raise SiteError(
                    f"a batch of {max(sizes)} has no axis to remove", allowed="a batch of one"
                )
            self.cache_dict = {name: x[0] for name, x in self.items()}
            self.has_batch_dim = False
        return self

    def apply_slice_to_batch_dim(self, batch_slice: SliceInput) -> ActivationCache:
        """A cache of some of the prompts; an index removes the batch axis."""
        chosen = Slice.of(batch_slice)
        if not self.has_batch_dim and chosen.mode != "identity":
            raise SiteError("this cache has no batch axis", allowed="no slice")
        sliced = {name: chosen.apply(x, 0) for name, x in self.items()}
        still = self.has_batch_dim and chosen.mode != "int"
        return ActivationCache(sliced, self.model, still, derive=self._derive)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise refuse_name("ActivationCache", name, dir(type(self)), _REASONS)

    # The residual stream, accumulated and split.

    def accumulated_resid(
        self,
        layer: int | None = None,
        incl_mid: bool = False,
        apply_ln: bool = False,
        pos_slice: SliceInput = None,
        mlp_input: bool = False,
        return_labels: bool = False,
    ) -> Any:
        """The residual stream before each layer up to `layer` (all by default, then the last).

        Shape:  (component, batch, pos, d_model); labels "0_pre", "0_mid", …, "final_post".
        """
        top, n_layers = self._layer(layer), self.model.cfg.n_layers
        names: list[tuple[str, int]] = []
        for at in range(top + 1):
            names.append(("resid_post", at - 1) if at == n_layers else ("resid_pre", at))
            if (incl_mid and at < top) or (mlp_input and at == top):
                names.append(("resid_mid", at))
        labels = [
            "final_post" if name == "resid_post" else f"{at}_{name.removeprefix('resid_')}"
            for name, at in names
        ]
        where = Slice.of(pos_slice)
        stack = torch.stack([where.apply(self[name], -2) for name in names])
        if apply_ln:
            # a stream of its own: the logit lens norms each by its own scale at the very end
            stack = self.apply_ln_to_stack(
                stack,
                top,
                mlp_input,
                where,
                has_batch_dim=self.has_batch_dim,
                recompute_ln=top == n_layers,
            )
        return (stack, labels) if return_labels else stack

    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: str = "all",
        apply_ln: bool = False,
        pos_slice: SliceInput = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Any:
        """The terms of the residual stream before `layer`: embeddings and layers' outputs.

        Args:
            layer: all layers by default.
            mlp_input: up to the MLP of `layer`: its attention's output too.
            mode: "all", or only "attn" or "mlp".
            apply_ln: divide each by the cached scale of the norm that reads there.
            pos_slice: at which positions.
            incl_embeds: whether to include the embeddings.
            return_labels: return the parts' names too.

        Shape:  (component, batch, pos, d_model).
        """
        if mode not in ("all", "attn", "mlp"):
            raise SiteError(f"mode {mode!r}", allowed="all, attn, mlp")
        top, where = self._layer(layer), Slice.of(pos_slice)
        parts: list[tuple[str, Tensor]] = []
        if incl_embeds:
            parts += [(name, self[name]) for name in ("embed", "pos_embed") if name in self]
        for at in range(top):
            for kind in ("attn", "mlp"):
                if mode in ("all", kind):
                    parts.append((f"{at}_{kind}_out", self[f"{kind}_out", at]))
        if mlp_input and mode != "mlp":
            parts.append((f"{top}_attn_out", self["attn_out", top]))
        if not parts:
            raise SiteError("no part of the stream was asked for", allowed="a layer above 0")
        stack = torch.stack([where.apply(x, -2) for _, x in parts])
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, top, mlp_input, where, **self._batched)
        return (stack, [label for label, _ in parts]) if return_labels else stack

    def compute_head_results(self) -> None:
        """Store each head's output, z W_O, in the cache as `hook_result`."""
        for layer in range(self.model.cfg.n_layers):
            name = get_act_name("result", layer)
            if name not in self.cache_dict:
                self.cache_dict[name] = self._result(layer)

    def stack_head_results(
        self,
        layer: int = -1,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: SliceInput = None,
        apply_ln: bool = False,
    ) -> Any:
        """Each head's output to the residual stream before `layer`, without b_O.

        Shape:  (component, batch, pos, d_model); labels "L0H0", "L0H1", …
        """
        top, where = self._layer(layer), Slice.of(pos_slice)
        found: list[Tensor] = []
        for at in range(top):
            # slice first: the whole results of all heads are the largest tensors
            name = get_act_name("result", at)
            if name in self.cache_dict:
                found += where.apply(self.cache_dict[name], -3).unbind(-2)
            else:
                found += self._result(at, where).unbind(-2)
        labels = [f"L{at}H{h}" for at in range(top) for h in range(self.model.cfg.n_heads)]
        stack = torch.stack(found) if found else self._nothing(where)
        if incl_remainder:
            stack, labels = self._with_remainder(stack, labels, top, where)
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, top, pos_slice=where, **self._batched)
        return (stack, labels) if return_labels else stack

    def stack_activation(
        self, activation_name: str, layer: int = -1, sublayer_type: str | None = None
    ) -> Tensor:
        """One activation of every layer before `layer`, along a new first axis."""
        layers = range(self._layer(layer))
        return torch.stack([self[activation_name, at, sublayer_type] for at in layers])

    def get_neuron_results(
        self, layer: int, neuron_slice: SliceInput = None, pos_slice: SliceInput = None
    ) -> Float[Tensor, "*rows neuron d_model"]:
        """Each neuron's output in a layer: its activation times its row of W_out."""
        acts = Slice.of(pos_slice).apply(self["post", layer], -2)
        chosen = Slice.of(neuron_slice)
        if chosen.mode == "int":
            chosen = Slice([chosen.slice])
        W_out = self.model.blocks[layer].mlp.W_out
        return chosen.apply(acts, -1)[..., None] * chosen.apply(W_out, 0)

    def stack_neuron_results(
        self,
        layer: int | None,
        pos_slice: SliceInput = None,
        neuron_slice: SliceInput = None,
        return_labels: bool = False,
        incl_remainder: bool = False,
        apply_ln: bool = False,
    ) -> Any:
        """Each neuron's output to the residual stream before `layer`, without b_out.

        Shape:  (component, batch, pos, d_model); labels "L0N0", "L0N1", …
        """
        top, where = self._layer(layer), Slice.of(pos_slice)
        neurons = Slice.of(neuron_slice).indices(self.model.cfg.d_mlp).tolist()
        found = [self.get_neuron_results(at, neurons, where) for at in range(top)]
        labels = [f"L{at}N{n}" for at in range(top) for n in neurons]
        stack = torch.cat(found, -2).movedim(-2, 0) if found else self._nothing(where)
        if incl_remainder:
            stack, labels = self._with_remainder(stack, labels, top, where)
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, top, pos_slice=where, **self._batched)
        return (stack, labels) if return_labels else stack

    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        expand_neurons: bool = True,
        apply_ln: bool = False,
        pos_slice: SliceInput = None,
        return_labels: bool = False,
    ) -> Any:
        """All outputs before `layer`: heads, neurons (or MLPs), embeddings, one bias.

        The parts sum to the residual stream there.

        Shape:  (component, batch, pos, d_model).
        """
        top, where = self._layer(layer), Slice.of(pos_slice)
        stack, labels = self.stack_head_results(
            top + mlp_input, return_labels=True, pos_slice=where
        )
        stacks, labels = [stack], list(labels)
        if top > 0:
            of_mlps = (
                self.stack_neuron_results(top, pos_slice=where, return_labels=True)
                if expand_neurons
                else self.decompose_resid(
                    top, mode="mlp", pos_slice=where, incl_embeds=False, return_labels=True
                )
            )
            stacks.append(of_mlps[0])
            labels += of_mlps[1]
        for name in ("embed", "pos_embed"):
            if name in self:
                stacks.append(where.apply(self[name], -2)[None])
                labels.append(name)
        bias = self.model.accumulated_bias(top, mlp_input, include_mlp_biases=expand_neurons)
        stacks.append(bias.expand(1, *stack.shape[1:]))
        whole = torch.cat(stacks)
        if apply_ln:
            whole = self.apply_ln_to_stack(whole, top, mlp_input, where, **self._batched)
        return (whole, [*labels, "bias"]) if return_labels else whole

    def apply_ln_to_stack(
        self,
        residual_stack: Float[Tensor, "component *rows d_model"],
        layer: int | None = None,
        mlp_input: bool = False,
        pos_slice: SliceInput = None,
        batch_slice: SliceInput = None,
        has_batch_dim: bool = True,
        recompute_ln: bool = False,
    ) -> Float[Tensor, "component *rows_out d_model"]:
        """Divide parts of the stream by the scale that a norm had in the run, after centring them.

        This is linear, so the parts' sum is the norm's output (before its weight and bias, which
        are folded unless `fold_ln=False`).

        Args:
            residual_stack: the parts.
            layer: whose norm; the final one by default.
            mlp_input: the norm before that layer's MLP instead of its attention.
            pos_slice: the positions of the parts, for the scales.
            batch_slice: of which prompts; applied to parts and scales.
            has_batch_dim: whether the parts have a batch axis.
            recompute_ln: at the end: norm each part by its own scale (the logit lens).
        """
        if self.model.cfg.normalization_type is None:
            return residual_stack
        top, where, rows = self._layer(layer), Slice.of(pos_slice), Slice.of(batch_slice)
        if has_batch_dim:
            residual_stack = rows.apply(residual_stack, 1)
        if recompute_ln and top == self.model.cfg.n_layers:
            return self.model.ln_final(residual_stack)  # type: ignore[no-any-return]
        if top == self.model.cfg.n_layers:
            scale = self["ln_final.hook_scale"]
        else:
            scale = self["scale", top, "ln2" if mlp_input else "ln1"]
        scale = where.apply(scale, -2)
        if self.has_batch_dim:
            scale = rows.apply(scale, 0)
        return norm_at_scale(self.model.model.config, Norm(), residual_stack, scale)

    def logit_attrs(
        self,
        residual_stack: Float[Tensor, "component *rows d_model"],
        tokens: str | int | Tensor,
        incorrect_tokens: str | int | Tensor | None = None,
        pos_slice: SliceInput = None,
        batch_slice: SliceInput = None,
        has_batch_dim: bool = True,
    ) -> Float[Tensor, component * rows_out]:
        """Each part's direct effect on the tokens' logits, or on a difference of logits.

        The unembedding's bias b_U is not part of the residual stream and is left out; casestudy's
        ledger has it as a row.

        Shape:  the stack's without d_model.
        """
        directions = self.model.tokens_to_residual_directions(tokens)
        if incorrect_tokens is not None:
            away = self.model.tokens_to_residual_directions(incorrect_tokens)
            if away.shape != directions.shape:
                raise SiteError(
                    f"incorrect_tokens of shape {tuple(away.shape[:-1])}",
                    allowed=f"as tokens: {tuple(directions.shape[:-1])}",
                )
            directions = directions - away
        scaled = self.apply_ln_to_stack(
            residual_stack, -1, False, pos_slice, batch_slice, has_batch_dim
        )
        found: Tensor = (scaled * directions).sum(-1)
        return found

    def toggle_autodiff(self, mode: bool = False) -> None:
        """Refused: it would change a global setting."""
        raise refuse("toggle_autodiff", "Call torch.set_grad_enabled")

    # What they are made of.

    @property
    def _batched(self) -> dict[str, bool]:
        return {"has_batch_dim": self.has_batch_dim}

    def _full_name(self, key: str | tuple[Any, ...]) -> str:
        if isinstance(key, str):
            return key if key in self.cache_dict else get_act_name(key)
        layer = key[1] if len(key) > 1 else None
        if isinstance(layer, int) and layer < 0:
            key = (key[0], layer + self.model.cfg.n_layers, *key[2:])
        return get_act_name(*key)

    def _layer(self, layer: int | None) -> int:
        n_layers: int = self.model.cfg.n_layers
        if layer is None or layer == -1:
            return n_layers
        if not 0 <= layer <= n_layers:
            raise SiteError(f"layer {layer}", allowed=f"0 to {n_layers}, or -1 for the end")
        return layer

    def _result(
        self, layer: int, where: Slice | None = None
    ) -> Float[Tensor, "*rows head d_model"]:
        z = self["z", layer]
        z = z if where is None else where.apply(z, -3)
        return torch.einsum("...he,hed->...hd", z, self.model.blocks[layer].attn.W_O)

    def _derived(self, name: str) -> Tensor | None:
        """An activation that follows from others in the cache, else None."""
        found = self.model.hook_dict.get(name)
        if found is None:
            return None
        row, layer = found.row, found.row.layered and found.layer()
        sources = {
            "hook_result": "z",
            "hook_mlp_in": "resid_pre" if self.model.cfg.parallel_attn_mlp else "resid_mid",
            **dict.fromkeys(
                ("hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input"), "resid_pre"
            ),
        }
        word = name.rpartition(".")[2]
        if word not in sources or get_act_name(sources[word], layer) not in self.cache_dict:
            return None
        if word == "hook_result":
            return self._result(layer)
        x = self[sources[word], layer]
        if word == "hook_mlp_in":
            return x
        heads = self.model.cfg.n_heads
        if "kv_head" in row.axes:
            heads = self.model.cfg.n_key_value_heads or heads
        return x[..., None, :].expand(*x.shape[:-1], heads, x.shape[-1])

    def _nothing(self, where: Slice) -> Tensor:
        """A stack of no parts."""
        x = where.apply(self["embed"], -2)
        return x.new_zeros(0, *x.shape)

    def _with_remainder(
        self, stack: Tensor, labels: list[str], top: int, where: Slice
    ) -> tuple[Tensor, list[str]]:
        stream = where.apply(self["resid_post", top - 1], -2)
        return torch.cat([stack, (stream - stack.sum(0))[None]]), [*labels, "remainder"]
