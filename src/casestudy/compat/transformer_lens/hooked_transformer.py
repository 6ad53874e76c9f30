"""`HookedTransformer`, for notebooks written for TransformerLens.

It wraps a `Model` and the one forward pass, `run`: hooks become edits, and names become sites.
Values are those of TransformerLens 3.9.0, the last version with this class, to 1e-4 in float32.

Differences: a name that does not exist is an error, never a hook that does nothing; a prompt that
is too long is an error and is not truncated; `hook_result`, the split inputs and `hook_mlp_in` need
no mode; prompts padded on the left have the values of each prompt run alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from casestudy.compat.transformer_lens import parts
from casestudy.compat.transformer_lens.activation_cache import ActivationCache
from casestudy.compat.transformer_lens.config import HookedTransformerConfig
from casestudy.compat.transformer_lens.errors import refuse, refuse_name
from casestudy.compat.transformer_lens.forward import Forward
from casestudy.compat.transformer_lens.hook_points import HookPoint
from casestudy.compat.transformer_lens.hooked import Hooked, Hooks
from casestudy.compat.transformer_lens.layout import LeftPadded
from casestudy.compat.transformer_lens.loading import (
    check_arguments,
    load_by_name,
    rewritten,
    some_layers,
)
from casestudy.compat.transformer_lens.names import (
    Name,
    NamesFilter,
    choose,
    names_of,
)
from casestudy.compat.transformer_lens.running import Pass
from casestudy.compat.transformer_lens.text import TextMethods
from casestudy.compat.transformer_lens.tokenizer import CompatTokenizer
from casestudy.compat.transformer_lens.utils import (
    Slice,
    SliceInput,
    sample_logits,
)
from casestudy.compat.transformer_lens.weights import NamedWeights
from casestudy.errors import SiteError
from casestudy.model.model import Model
from casestudy.model.sites import Site
from casestudy.model.tokens import id_rows

_REASONS = {
    "center_unembed": "Say so to from_pretrained(center_unembed=True)",
    "center_writing_weights": "Say so to from_pretrained(center_writing_weights=True)",
    "fold_layer_norm": "Say so to from_pretrained(fold_ln=True)",
    "fold_value_biases": "Say so to from_pretrained(fold_value_biases=True)",
    "process_weights_": "Say so to from_pretrained: fold_ln=, center_unembed= and so on",
    "refactor_factored_attn_matrices": "Say so to from_pretrained",
    "generate_stream": "Use generate",
    "init_weights": "Nothing is trained here",
    "load_and_process_state_dict": "Load the model from a folder in Hugging Face layout",
    "load_state_dict": "Load the model from a folder in Hugging Face layout",
    "load_sample_training_dataset": "Prompts of your own go to to_tokens",
    "sample_datapoint": "Prompts of your own go to to_tokens",
    "set_tokenizer": "The tokenizer is the model's own file, tokenizer.json",
    "set_ungroup_grouped_query_attention": "Keys and values keep their own heads",
    "mod_dict": "Use hook_dict",
    "move_model_modules_to_device": "Use to(device)",
    "cache_all": "Use run_with_cache",
    "cache_some": "Use run_with_cache(names_filter=...)",
    "register_forward_hook": "Use add_hook(name, function)",
    "register_full_backward_hook": 'Use add_hook(name, function, "bwd")',
    "zero_grad": "Weights have no gradients here; activations do, through backward hooks",
}


class HookedTransformer(TextMethods, Hooked, NamedWeights):
    """A loaded decoder under TransformerLens's names.

    Attributes:
        cfg: its shape; see `HookedTransformerConfig`.
        tokenizer: see `CompatTokenizer`; `tokenizer.padding_side = "left"` works.
        hook_dict: every hook point, by name.
        model: casestudy's own `Model`, for its measurements.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise refuse(
            "HookedTransformer(cfg)",
            "Use HookedTransformer.from_pretrained(name or folder); toy models are not built here",
        )

    @classmethod
    def of(cls, model: Model, *, default_prepend_bos: bool | None = None) -> HookedTransformer:
        """Wrap a casestudy `Model`, with its weights unchanged."""
        self = object.__new__(cls)
        name = Path(model.name).name if "/" in model.name else model.name
        self.model = model
        self.tokenizer = CompatTokenizer(model.tokenizer, name)
        has_bos = self.tokenizer.bos_token_id is not None
        prepend_bos = has_bos if default_prepend_bos is None else default_prepend_bos
        self.cfg = HookedTransformerConfig._of(model, name, prepend_bos)
        absent = _absent(model)
        names = names_of(model)
        self._hook_up({text: name for text, name in names.items() if name.site not in absent})
        self._parts = parts.build(model, self.hook_dict)
        return self

    @classmethod
    def from_pretrained(
        cls,
        model_name: str,
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        refactor_factored_attn_matrices: bool = False,
        checkpoint_index: int | None = None,
        checkpoint_value: int | None = None,
        hf_model: object | None = None,
        device: str | torch.device | None = None,
        n_devices: int = 1,
        tokenizer: object | None = None,
        move_to_device: bool = True,
        fold_value_biases: bool = True,
        default_prepend_bos: bool | None = None,
        default_padding_side: str | None = None,
        dtype: str | torch.dtype = "float32",
        first_n_layers: int | None = None,
        n_ctx: int | None = None,
        **from_pretrained_kwargs: Any,
    ) -> HookedTransformer:
        """Load a model and rewrite its weights by the arguments.

        Args:
            model_name: a TransformerLens name ("gpt2-small", "pythia-70m"), a hub id, a directory
                in Hugging Face layout, or "tiny", the bundled model.
            fold_ln, center_writing_weights, center_unembed, refactor_factored_attn_matrices,
                fold_value_biases: rewrites that do not change the log-probabilities; a rewrite
                that this architecture does not allow is skipped, with a warning in the log.
            hf_model, tokenizer: a causal language model of transformers that is in memory, with its
                tokenizer; model_name is then only its name.
            device: by default cuda if available, else the CPU.
            default_prepend_bos: whether texts start with BOS by default; yes if not given.
            default_padding_side: "right" or "left".
            dtype: float32, float64, bfloat16 or float16.
            first_n_layers: keep only this many layers.

        Raises: ModelError for an unknown model, with the most similar known names; NotSupported for
            the arguments that are refused: checkpoint_index, checkpoint_value, n_devices, n_ctx,
            move_to_device=False and whatever Hugging Face takes.
        """
        check_arguments(
            checkpoint_index=checkpoint_index,
            checkpoint_value=checkpoint_value,
            n_ctx=n_ctx,
            n_devices=None if n_devices == 1 else n_devices,
            move_to_device=None if move_to_device else False,
            **from_pretrained_kwargs,
        )
        model = load_by_name(model_name, device, dtype, hf_model, tokenizer)
        if first_n_layers is not None:
            model = some_layers(model, 0, first_n_layers)
        wanted = {
            "fold_ln": fold_ln,
            "center_writing_weights": center_writing_weights,
            "center_unembed": center_unembed,
            "fold_value_biases": fold_value_biases,
            "refactor_factored_attn_matrices": refactor_factored_attn_matrices,
        }
        model = rewritten(model, wanted)
        self = cls.of(model, default_prepend_bos=default_prepend_bos)
        if default_padding_side is not None:
            self.tokenizer.padding_side = default_padding_side
        return self

    @classmethod
    def from_pretrained_no_processing(cls, model_name: str, **kwargs: Any) -> HookedTransformer:
        """Load a model with the weights of the checkpoint, without rewrites."""
        nothing = dict.fromkeys(
            (
                "fold_ln",
                "center_writing_weights",
                "center_unembed",
                "refactor_factored_attn_matrices",
                "fold_value_biases",
            ),
            False,
        )
        return cls.from_pretrained(model_name, **{**nothing, **kwargs})

    def __getattr__(self, name: str) -> Any:
        own = object.__getattribute__(self, "__dict__")
        if name in own.get("_parts", {}):
            return own["_parts"][name]
        if name.startswith("__"):
            raise AttributeError(name)
        known = [*dir(type(self)), *own, *own.get("_parts", {})]
        raise refuse_name("HookedTransformer", name, known, _REASONS)

    def __repr__(self) -> str:
        c = self.model.config
        return f"HookedTransformer({self.model.name}: {c.n_layers} layers, {c.n_heads} heads)"

    # Running.

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See `forward`."""
        return self.forward(*args, **kwargs)

    def forward(self, input: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the model, through the hooks that are registered on it.

        Args:
            input, args, kwargs: see `Forward`: return_type, loss_per_token, prepend_bos,
                padding_side, start_at_layer, tokens, shortformer_pos_embed, attention_mask,
                stop_at_layer and past_kv_cache, in this order.

        Raises: NotSupported for past_kv_cache and shortformer_pos_embed.
        """
        out, _ = self._run(Forward(input, *args, **kwargs))
        return out

    def run_with_cache(
        self,
        input: Any,
        *args: Any,
        return_cache_object: bool = True,
        remove_batch_dim: bool = False,
        names_filter: NamesFilter = None,
        device: str | torch.device | None = None,
        incl_bwd: bool = False,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        pos_slice: SliceInput = None,
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        """Run the model and keep activations.

        Args:
            input, args, kwargs: as of `forward`.
            return_cache_object: an `ActivationCache`, or a plain dictionary.
            remove_batch_dim: drop the batch axis of a batch of one.
            names_filter: a name, names, or a function of a name; by default all that are
                computed by default.
            device: of the kept activations.
            incl_bwd: run backward from what the model returns (a loss), and keep gradients under
                "…_grad".
            reset_hooks_end, clear_contexts: as in `hooks`; caching itself registers no hook.
            pos_slice: the positions to keep.

        Raises: SiteError for a name that the model, or the part of it that is run, lacks.
        """
        wanted = choose(names_filter, self._names, self._unasked)
        named = isinstance(names_filter, str) or (
            names_filter is not None and not callable(names_filter)
        )
        gradients: dict[str, Tensor] = {}

        def save(gradient: Tensor, hook: HookPoint) -> None:
            gradients[f"{hook.name}_grad"] = gradient.detach()

        bwd = [(name.text, save) for name in wanted] if incl_bwd else []
        with self.hooks(bwd_hooks=bwd, clear_contexts=clear_contexts):
            out, kept = self._run(Forward(input, *args, **kwargs), wanted, named=named)
            if incl_bwd:
                out.backward()
        where = Slice([pos_slice]) if isinstance(pos_slice, int) else Slice.of(pos_slice)
        cache: dict[str, Tensor] = {}
        for name, x in {**kept, **gradients}.items():
            row = self._names[name.removesuffix("_grad")].row
            x = where.apply(x.detach(), _position_axis(row.axes))
            if remove_batch_dim:
                if x.shape[0] != 1:
                    raise SiteError(
                        f"remove_batch_dim of a batch of {x.shape[0]}", allowed="a batch of one"
                    )
                x = x[0]
            cache[name] = x if device is None else x.to(device)
        if not return_cache_object:
            return out, cache
        return out, ActivationCache(
            cache, self, has_batch_dim=not remove_batch_dim, derive=names_filter is None
        )

    def run_with_hooks(
        self,
        *args: Any,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Run the model with hooks, and remove them.

        Raises: NotSupported for backward hooks that would be removed before a backward pass can
            reach them; see `hooks`.
        """
        if bwd_hooks and reset_hooks_end:
            raise refuse(
                "run_with_hooks(bwd_hooks=...)",
                "They are taken off before a backward pass can meet them: use "
                "`with model.hooks(bwd_hooks=...)` around both, or reset_hooks_end=False",
            )
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
            return self.forward(*args, **kwargs)

    def generate(
        self,
        input: Any = "",
        max_new_tokens: int = 10,
        stop_at_eos: bool = True,
        eos_token_id: int | Sequence[int] | None = None,
        do_sample: bool = True,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float = 1.0,
        freq_penalty: float = 0.0,
        use_past_kv_cache: bool = True,
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
        return_type: str = "input",
        verbose: bool = True,
    ) -> Any:
        """Continue texts or ids, token by token, with the registered hooks.

        Args:
            input: a text, texts (padded on the left), or ids.
            max_new_tokens: the largest number of new tokens.
            stop_at_eos: stop a row at EOS and fill it with EOS.
            eos_token_id: another token, or tokens, to stop at.
            do_sample: sample, or take the most probable token; see `utils.sample_logits` for the
                rest.
            use_past_kv_cache: accepted; each step computes all positions, with the same result.
            return_type: "input" (as given), "str" or "tokens".
            verbose: accepted; no progress is shown.

        Cost:   a forward pass over the whole text per token.
        """
        if return_type not in ("input", "str", "tokens"):
            raise refuse(f"generate(return_type={return_type!r})", allowed="input, str, tokens")
        are_ids = id_rows(input) is not None
        as_text = return_type == "str" or (return_type == "input" and not are_ids)
        side = "left" if isinstance(input, list) and not are_ids else padding_side
        with self._padding(side):
            layout = self._layout(self._ids(input, prepend_bos), prepend_bos, None)
        eos = self.tokenizer.eos_token_id if eos_token_id is None else eos_token_id
        ends = (
            [] if not stop_at_eos or eos is None else [eos] if isinstance(eos, int) else list(eos)
        )
        done = torch.zeros(len(layout.ids), dtype=torch.bool, device=layout.ids.device)
        for _ in range(max_new_tokens):
            with torch.no_grad():
                logits, _ = Pass(self.model, self._names, self.hook_dict, layout).run([], "last")
            assert logits is not None
            drawn = (
                sample_logits(logits, top_k, top_p, temperature, freq_penalty, layout.ids)
                if do_sample
                else logits.argmax(-1)
            )
            if ends:
                drawn = drawn.masked_fill(done, ends[0])
                done |= torch.isin(drawn, torch.tensor(ends, device=drawn.device))
            layout = LeftPadded(torch.cat([layout.ids, drawn[:, None]], 1), layout.shifts)
            if ends and bool(done.all()):
                break
        if not as_text:
            return layout.ids
        texts = self.tokenizer.batch_decode(layout.ids, skip_special_tokens=True)
        return texts[0] if len(texts) == 1 else texts

    # What a torch module answers to.

    def to(self, device_or_dtype: Any, print_details: bool = True) -> HookedTransformer:
        """The same object, its weights elsewhere or in another number format; hooks stay."""
        if isinstance(device_or_dtype, torch.dtype):
            model = self.model.to(dtype=device_or_dtype)
        else:
            model = self.model.to(device=device_or_dtype)
        self.model = model
        requests = self.cfg.to_dict()
        self.cfg = HookedTransformerConfig._of(
            model, requests["model_name"], requests["default_prepend_bos"]
        )
        for flag in ("use_attn_result", "use_split_qkv_input", "use_hook_mlp_in", "use_attn_in"):
            setattr(self.cfg, flag, requests[flag])
        self._parts = parts.build(model, self.hook_dict)
        return self

    def cuda(self, device: int | None = None) -> HookedTransformer:
        """To a GPU."""
        return self.to("cuda" if device is None else f"cuda:{device}")

    def cpu(self) -> HookedTransformer:
        """To the CPU."""
        return self.to("cpu")

    def eval(self) -> HookedTransformer:
        """Itself: there is no dropout to switch off."""
        return self

    def train(self, mode: bool = True) -> HookedTransformer:
        """Itself, out of training mode.

        Raises: NotSupported for train(True).
        """
        if mode:
            raise refuse("train()", "Nothing is trained here")
        return self

    def requires_grad_(self, requires_grad: bool = True) -> HookedTransformer:
        """Itself, with weights that have no gradients.

        Raises: NotSupported for requires_grad_(True).
        """
        if requires_grad:
            raise refuse("requires_grad_(True)", _REASONS["zero_grad"])
        return self

    # How a call becomes a run.

    def _run(
        self, call: Forward, wanted: Sequence[Name] = (), *, named: bool = False
    ) -> tuple[Any, dict[str, Tensor]]:
        """What `forward` returns, and the activations that are wanted.

        Args:
            call: the arguments of `forward`.
            wanted: activations.
            named: whether each was asked for by name, so that one that is not run is an error.
        """
        layout = self._layout_of(call)
        one_pass = Pass(
            self.model,
            self._names,
            self.hook_dict,
            layout,
            stream=call.stream,
            start=call.start_at_layer,
            stop=call.stop_at_layer,
        )
        if named:
            one_pass.check(wanted)
        out, kept = one_pass.run(wanted, "all" if call.unembeds else "none")
        return call.result(out, layout), kept

    def _layout_of(self, call: Forward) -> LeftPadded:
        """Where a call's padding is; a residual stream without ids or a mask has none."""
        with self._padding(call.padding_side):
            if call.stream is None:
                given = self._ids(call.input, call.prepend_bos)
                return self._layout(given, call.prepend_bos, call.attention_mask)
            ids = call.tokens
            if ids is None:
                ids = torch.zeros(call.stream.shape[:2], dtype=torch.long)
                if call.attention_mask is None:
                    return LeftPadded(ids.to(self.model.device), None)
            return self._layout(ids, call.prepend_bos, call.attention_mask)


def _absent(model: Model) -> set[Site]:
    """Sites of norms that this model's layers do not have."""
    block, absent = model.weights.blocks[0], set()
    if block.attn_norm is None:
        absent |= {Site.ATTN_SCALE, Site.ATTN_NORMED}
    if block.mlp_norm is None:
        absent |= {Site.MLP_SCALE, Site.MLP_NORMED}
    return absent


def _position_axis(axes: str) -> int:
    """Where a `pos_slice` applies, counted from the end."""
    names = axes.split()
    return names.index("query_pos" if "query_pos" in names else "pos") - len(names)
