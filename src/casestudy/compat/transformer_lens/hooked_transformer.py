"""How do notebooks written for TransformerLens 2 run again?

`HookedTransformer` is a face over a `Model` and the one forward pass, `run`: hooks become edits,
names become sites, and nothing of it is known to the engine. Values are those of TransformerLens
3.9.0, the last version with this class, to 1e-4 in float32.

Where it differs: a name that does not exist is an error, never a hook that does nothing; a prompt
that is too long is an error, not cut off; `hook_result`, the split inputs and `hook_mlp_in` need no
mode to be set; prompts padded on the left are computed as if each had been run alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from casestudy.compat.transformer_lens import parts
from casestudy.compat.transformer_lens.activation_cache import ActivationCache
from casestudy.compat.transformer_lens.config import HookedTransformerConfig
from casestudy.compat.transformer_lens.errors import refuse, refuse_name
from casestudy.compat.transformer_lens.factored_matrix import FactoredMatrix, composition_scores
from casestudy.compat.transformer_lens.hook_points import HookFunction, HookPoint
from casestudy.compat.transformer_lens.layout import Layout
from casestudy.compat.transformer_lens.loading import (
    check_arguments,
    load_by_name,
    rewritten,
    some_layers,
)
from casestudy.compat.transformer_lens.names import (
    DOCS,
    Name,
    NamesFilter,
    choose,
    look_up,
    names_of,
)
from casestudy.compat.transformer_lens.running import Pass
from casestudy.compat.transformer_lens.tokenizer import CompatTokenizer, check_side
from casestudy.compat.transformer_lens.utils import (
    Slice,
    SliceInput,
    lm_cross_entropy_loss,
    sample_logits,
)
from casestudy.errors import PromptError, SiteError, TokenError
from casestudy.model.model import Model
from casestudy.model.sites import Site

Hooks = Sequence[tuple[str | Callable[[str], bool], HookFunction]]
RETURN_TYPES = ("logits", "loss", "both", None)

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


class Output(NamedTuple):
    """What `return_type="both"` returns."""

    logits: Tensor
    loss: Tensor


class HookedTransformer:
    """A loaded decoder under TransformerLens's names.

    Attributes:
        cfg: its shape; see `HookedTransformerConfig`.
        tokenizer: see `CompatTokenizer`; `tokenizer.padding_side = "left"` is honoured.
        hook_dict: every hook point, by name.
        model: casestudy's own `Model`, for its measurements.
    """

    model: Model
    cfg: HookedTransformerConfig
    tokenizer: CompatTokenizer
    hook_dict: dict[str, HookPoint]
    _names: dict[str, Name]
    _parts: dict[str, Any]
    _level: int
    _padded: dict[tuple[int, ...], int]
    _grad_before: bool | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise refuse(
            "HookedTransformer(cfg)",
            "Use HookedTransformer.from_pretrained(name or folder); toy models are not built here",
        )

    @classmethod
    def of(cls, model: Model, *, default_prepend_bos: bool | None = None) -> HookedTransformer:
        """A `Model` of casestudy's under these names, its weights as they are."""
        self = object.__new__(cls)
        name = Path(model.name).name if "/" in model.name else model.name
        self.model = model
        self.tokenizer = CompatTokenizer(model.tokenizer, name)
        has_bos = self.tokenizer.bos_token_id is not None
        prepend_bos = has_bos if default_prepend_bos is None else default_prepend_bos
        self.cfg = HookedTransformerConfig._of(model, name, prepend_bos)
        absent = _absent(model)
        self._names = {
            text: found
            for text, found in names_of(model.config).items()
            if found.site not in absent
        }
        self.hook_dict = {
            text: HookPoint(name, self._follow_backward_hooks) for text, name in self._names.items()
        }
        self._parts = parts.build(model, self.hook_dict)
        self._level = 0
        self._padded = {}
        self._grad_before = None
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
        """Load a model and rewrite its weights as asked.

        Args:
            model_name: a TransformerLens name ("gpt2-small", "pythia-70m"), a hub id, a directory
                in Hugging Face layout, or "tiny", the bundled model.
            fold_ln, center_writing_weights, center_unembed, refactor_factored_attn_matrices,
                fold_value_biases: rewrites that leave the log-probabilities as they are; one that
                this architecture does not allow is left out, with a warning in the log.
            hf_model, tokenizer: a causal language model of transformers that is in memory, with its
                tokenizer; model_name is then only what it is called.
            device: cuda where there is one, by default, else the CPU.
            default_prepend_bos: whether texts start with BOS unless said otherwise; by default yes.
            default_padding_side: "right" or "left".
            dtype: float32, float64, bfloat16 or float16.
            first_n_layers: keep only so many layers.

        Raises: ModelError for a model there is not, with the nearest known names; NotSupported for
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
        """Load a model with its weights as the checkpoint has them."""
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

    # Text and tokens.

    def to_tokens(
        self,
        input: str | Sequence[str],
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
        move_to_device: bool = True,
        truncate: bool | None = None,
    ) -> Tensor:
        """Texts as a (batch, pos) tensor of ids, padded on `tokenizer.padding_side`.

        Args:
            input: a text or texts; "<|endoftext|>" in one is the special token.
            prepend_bos: start each with BOS; by default as `cfg.default_prepend_bos` says.
            padding_side: the side to pad on, for this call.
            move_to_device: put the ids where the model is.
            truncate: True cuts a text to `cfg.n_ctx` tokens, as TransformerLens does unasked.

        Raises: PromptError for a prompt that is too long, unless truncate=True.
        """
        texts = [input] if isinstance(input, str) else list(input)
        if not texts:
            raise PromptError("no texts", allowed="at least one")
        bos = self._prepends(prepend_bos)
        rows = [([self._bos()] if bos else []) + self.tokenizer.encode(text) for text in texts]
        if truncate:
            rows = [row[: self.model.config.n_ctx] for row in rows]
        for text, row in zip(texts, rows, strict=True):
            if not row:
                raise PromptError(f"{text!r} is no tokens", allowed="at least one per text")
            self.model.tokenizer.check_length(row, repr(text[:40]))
        width = max(map(len, rows))
        with self._padding(padding_side):
            padded = [
                self.tokenizer.padded(row, width, self.tokenizer.pad_token_id or 0) for row in rows
            ]
            if self.tokenizer.padding_side == "left":
                # remembered, since padding and BOS may look the same
                self._padded.update(
                    (tuple(p), len(row)) for p, row in zip(padded, rows, strict=True)
                )
        ids = torch.tensor(padded)
        return ids.to(self.model.device) if move_to_device else ids

    def to_string(self, tokens: Any) -> Any:
        """The text of ids: one text of an id or a row, a list of a batch."""
        ids = torch.as_tensor(np.asarray(tokens) if isinstance(tokens, list) else tokens)
        if ids.ndim == 2:
            return self.tokenizer.batch_decode(ids)
        if ids.ndim > 2:
            raise TokenError(f"ids of shape {tuple(ids.shape)}", allowed="one or two axes")
        return self.tokenizer.decode(ids)

    def to_str_tokens(
        self, input: Any, prepend_bos: bool | None = None, padding_side: str | None = None
    ) -> Any:
        """Each token's own text, of a text, a row of ids, or a list of either."""
        if isinstance(input, list):
            return [self.to_str_tokens(item, prepend_bos, padding_side) for item in input]
        if isinstance(input, str):
            input = self.to_tokens(input, prepend_bos, padding_side)[0]
        ids = torch.as_tensor(input).squeeze()
        if ids.ndim > 1:
            raise TokenError(f"ids of shape {tuple(ids.shape)}", allowed="one row of ids")
        return self.model.tokenizer.strings(ids.reshape(-1).tolist())

    def to_single_token(self, string: str) -> int:
        """The id of a text that is one token.

        Raises: TokenError saying which tokens it is otherwise.
        """
        return self.model.tokenizer.single(string)

    def to_single_str_token(self, int_token: int) -> str:
        """The text of one id."""
        return self.model.tokenizer.string(int(int_token))

    def get_token_position(
        self,
        single_token: str | int,
        input: Any,
        mode: str = "first",
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
    ) -> int:
        """Where a token stands in a text or a row of ids: the "first" or the "last" place."""
        if mode not in ("first", "last"):
            raise TokenError(f"mode {mode!r}", allowed="first, last")
        if isinstance(input, str):
            input = self.to_tokens(input, prepend_bos, padding_side)
        row = torch.as_tensor(input).squeeze(0)
        id = self.to_single_token(single_token) if isinstance(single_token, str) else single_token
        found = (row == int(id)).nonzero().flatten().tolist()
        if not found:
            raise TokenError(f"{single_token!r} does not stand in the prompt")
        return int(found[0 if mode == "first" else -1])

    def tokens_to_residual_directions(self, tokens: Any) -> Tensor:
        """Each token's column of W_U, along a new last axis."""
        if isinstance(tokens, str):
            tokens = self.to_single_token(tokens)
        ids = torch.as_tensor(tokens, device=self.model.device)
        if ids.numel() == 1:
            ids = ids.reshape(())
        return self.model.weights.W_U.T[ids]

    # Running.

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See `forward`."""
        return self.forward(*args, **kwargs)

    def forward(
        self,
        input: Any,
        return_type: str | None = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
        start_at_layer: int | None = None,
        tokens: Tensor | None = None,
        shortformer_pos_embed: Tensor | None = None,
        attention_mask: Tensor | None = None,
        stop_at_layer: int | None = None,
        past_kv_cache: object | None = None,
    ) -> Any:
        """Run the model, through whatever hooks hang on it.

        Args:
            input: a text, texts, ids (batch, pos), or with start_at_layer a residual stream.
            return_type: "logits" (batch, pos, d_vocab), "loss", "both", or None.
            loss_per_token: the loss at each token but the first, instead of its mean.
            prepend_bos: for texts; and whether the last of the padding before ids is BOS, where
                one token serves as both and `to_tokens` did not make them.
            padding_side: the side ids are padded on; by default `tokenizer.padding_side`.
            start_at_layer: run from this layer, on a given residual stream.
            tokens: with start_at_layer, the ids, for a loss or for left padding.
            attention_mask: ones at the prompts' own tokens, in place of looking for padding.
            stop_at_layer: run the layers before this one, and return the residual stream.

        Raises: NotSupported for past_kv_cache and shortformer_pos_embed.
        """
        out, _ = self._run(
            input,
            [],
            return_type=return_type,
            loss_per_token=loss_per_token,
            prepend_bos=prepend_bos,
            padding_side=padding_side,
            start_at_layer=start_at_layer,
            tokens=tokens,
            attention_mask=attention_mask,
            stop_at_layer=stop_at_layer,
            past_kv_cache=past_kv_cache,
            shortformer_pos_embed=shortformer_pos_embed,
        )
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
            names_filter: a name, names, or a function of a name; by default all that is computed
                unasked.
            device: where to put what is kept.
            incl_bwd: run backward from what the model returns (a loss), and keep gradients under
                "…_grad".
            reset_hooks_end, clear_contexts: as of `hooks`; nothing is hung on the model for this.
            pos_slice: at which positions to keep.

        Raises: SiteError for a name the model, or the part of it that is run, does not have.
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
            out, kept = self._run(input, wanted, *args, all_of_them=named, **kwargs)
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
        """Run the model with hooks that are taken off again.

        Raises: NotSupported for backward hooks that would be taken off before a backward pass can
            meet them; see `hooks`.
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
        """Continue texts or ids, token by token, through whatever hooks hang on the model.

        Args:
            input: a text, texts (padded on the left), or ids.
            max_new_tokens: at most so many.
            stop_at_eos: stop a row at EOS and fill it up with EOS.
            eos_token_id: another token, or tokens, to stop at.
            do_sample: draw, or take the likeliest; see `utils.sample_logits` for the rest.
            use_past_kv_cache: accepted; every step is computed anew, with the same result.
            return_type: "input" (as given), "str" or "tokens".
            verbose: accepted; no progress is shown.

        Cost:   a forward pass over the whole text per token.
        """
        if return_type not in ("input", "str", "tokens"):
            raise refuse(f"generate(return_type={return_type!r})", allowed="input, str, tokens")
        as_text = return_type == "str" or (return_type == "input" and not isinstance(input, Tensor))
        side = "left" if isinstance(input, list) else padding_side
        with self._padding(side):
            ids = input if isinstance(input, Tensor) else self.to_tokens(input, prepend_bos)
            layout = self._layout(torch.atleast_2d(ids), prepend_bos, None)
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
            layout = Layout(torch.cat([layout.ids, drawn[:, None]], 1), layout.shifts)
            if ends and bool(done.all()):
                break
        if not as_text:
            return layout.ids
        texts = self.tokenizer.batch_decode(layout.ids, skip_special_tokens=True)
        return texts[0] if len(texts) == 1 else texts

    # Hooks.

    def add_hook(
        self,
        name: str | Callable[[str], bool],
        hook: HookFunction,
        dir: str = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Hang a function on the activations a name, or a function of names, means.

        Forward it is called as `hook(activation, hook=point)` and may return a replacement, or
        write into what it is given; backward (`dir="bwd"`) with the gradient. A backward hook
        switches gradients on (torch.set_grad_enabled) until the last of them is taken off.

        Raises: SiteError where nothing in the model has such a name.
        """
        points = [self.hook_dict[found.text] for found in choose(name, self._names, self._unasked)]
        if not points:
            raise SiteError(
                f"the filter accepts none of the model's {len(self._names)} hook names",
                allowed=", ".join(dict.fromkeys(n.row.pattern for n in self._names.values())),
                hint=DOCS,
            )
        for point in points:
            point.add_hook(hook, dir, is_permanent, level, prepend)

    def add_perma_hook(
        self, name: str | Callable[[str], bool], hook: HookFunction, dir: str = "fwd"
    ) -> None:
        """Hang a function that `reset_hooks()` leaves alone."""
        self.add_hook(name, hook, dir, is_permanent=True)

    def reset_hooks(
        self,
        clear_contexts: bool = True,
        direction: str = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Take hooks off: all but the permanent ones, or those of one context level."""
        for point in self.hook_points():
            if clear_contexts:
                point.clear_context()
            point.remove_hooks(direction, including_permanent, level)

    def remove_all_hook_fns(
        self, direction: str = "both", including_permanent: bool = False, level: int | None = None
    ) -> None:
        """Take hooks off and leave contexts alone."""
        self.reset_hooks(False, direction, including_permanent, level)

    def hook_points(self) -> list[HookPoint]:
        """Every hook point, in the order the forward pass meets them."""
        return list(self.hook_dict.values())

    def look_up(self, name: str) -> HookPoint:
        """The hook point of a name.

        Raises: SiteError for a name the model does not have, with the nearest.
        """
        return self.hook_dict[look_up(name, self._names).text]

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator[HookedTransformer]:
        """Hooks for the length of a `with` block."""
        self._level += 1
        try:
            for direction, hooks in (("fwd", fwd_hooks), ("bwd", bwd_hooks)):
                for name, function in hooks:
                    self.add_hook(name, function, direction, level=self._level)
            yield self
        finally:
            if reset_hooks_end:
                self.reset_hooks(clear_contexts, level=self._level)
            self._level -= 1

    def set_use_attn_result(self, use_attn_result: bool) -> None:
        """Whether `hook_result` is among the activations computed unasked."""
        self.cfg.use_attn_result = use_attn_result

    def set_use_split_qkv_input(self, use_split_qkv_input: bool) -> None:
        """Whether `hook_q_input`, `hook_k_input` and `hook_v_input` are."""
        self.cfg.use_split_qkv_input = use_split_qkv_input

    def set_use_hook_mlp_in(self, use_hook_mlp_in: bool) -> None:
        """Whether `hook_mlp_in` is."""
        self.cfg.use_hook_mlp_in = use_hook_mlp_in

    def set_use_attn_in(self, use_attn_in: bool) -> None:
        """Whether `hook_attn_in` is."""
        self.cfg.use_attn_in = use_attn_in

    # Weights.

    @property
    def W_E(self) -> Tensor:
        """Embedding, (d_vocab, d_model)."""
        return self.model.weights.W_E

    @property
    def W_pos(self) -> Tensor:
        """Position embedding, (n_ctx, d_model)."""
        return self.pos_embed.W_pos  # type: ignore[no-any-return]

    @property
    def W_E_pos(self) -> Tensor:
        """Both, one above the other."""
        return torch.cat([self.W_E, self.W_pos])

    @property
    def W_U(self) -> Tensor:
        """Unembedding, (d_model, d_vocab)."""
        return self.model.weights.W_U

    @property
    def b_U(self) -> Tensor:
        """The unembedding's bias, (d_vocab,)."""
        return self.unembed.b_U  # type: ignore[no-any-return]

    W_Q = parts.stacked("attn", "W_Q")  # layer head d_model d_head
    W_K = parts.stacked("attn", "W_K")
    W_V = parts.stacked("attn", "W_V")
    W_O = parts.stacked("attn", "W_O")  # layer head d_head d_model
    b_Q = parts.stacked("attn", "b_Q")  # layer head d_head
    b_K = parts.stacked("attn", "b_K")
    b_V = parts.stacked("attn", "b_V")
    b_O = parts.stacked("attn", "b_O")  # layer d_model
    W_in = parts.stacked("mlp", "W_in")  # layer d_model d_mlp
    W_gate = parts.stacked("mlp", "W_gate")
    W_out = parts.stacked("mlp", "W_out")  # layer d_mlp d_model
    b_in = parts.stacked("mlp", "b_in")  # layer d_mlp
    b_out = parts.stacked("mlp", "b_out")  # layer d_model

    @property
    def QK(self) -> FactoredMatrix:
        """W_Q W_Kᵀ, (layer, head, d_model, d_model)."""
        return FactoredMatrix(self.W_Q, self.W_K.transpose(-2, -1))

    @property
    def OV(self) -> FactoredMatrix:
        """W_V W_O, (layer, head, d_model, d_model)."""
        return FactoredMatrix(self.W_V, self.W_O)

    def all_composition_scores(self, mode: str) -> Tensor:
        """How strongly each head's output enters each later head's Q, K or V.

        Shape:  (layer, head, layer, head); zero unless the second head is of a later layer.
        """
        sides = {"Q": self.QK, "K": self.QK.T, "V": self.OV}
        if mode not in sides:
            raise SiteError(f"mode {mode!r}", allowed="Q, K, V")
        scores = composition_scores(self.OV, sides[mode])
        layers = torch.arange(self.model.config.n_layers, device=scores.device)
        later = layers[:, None, None, None] < layers[:, None]
        return torch.where(later, scores, torch.zeros_like(scores))

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Tensor:
        """The sum of b_O and b_out over the layers before `layer`, (d_model,)."""
        bias: Tensor = self.b_O[: layer + mlp_input].sum(0)
        return bias + self.b_out[:layer].sum(0) if include_mlp_biases else bias

    def all_head_labels(self) -> list[str]:
        """ "L0H0", "L0H1", …"""
        c = self.model.config
        return [f"L{layer}H{head}" for layer in range(c.n_layers) for head in range(c.n_heads)]

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight with TransformerLens's dotted name."""
        for part in self._parts.values():
            for each in part if isinstance(part, list) else [part]:
                if isinstance(each, parts.Part):
                    yield from each.named()

    def parameters(self) -> Iterator[Tensor]:
        """Every weight."""
        return (tensor for _, tensor in self.named_parameters())

    def state_dict(self) -> dict[str, Tensor]:
        """Weights by name."""
        return dict(self.named_parameters())

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

    def _bos(self) -> int:
        id = self.tokenizer.bos_token_id
        if id is None:
            raise TokenError("this tokenizer defines no BOS token", allowed="prepend_bos=False")
        return id

    def _prepends(self, prepend_bos: bool | None) -> bool:
        return bool(self.cfg.default_prepend_bos if prepend_bos is None else prepend_bos)

    @contextmanager
    def _padding(self, side: str | None) -> Iterator[None]:
        before = self.tokenizer.padding_side
        self.tokenizer.padding_side = before if side is None else check_side(side)
        try:
            yield
        finally:
            self.tokenizer.padding_side = before

    def _unasked(self, name: Name) -> bool:
        """Whether an activation is computed where nobody named it."""
        return (
            name.row.flag is None
            or bool(getattr(self.cfg, name.row.flag))
            or self.hook_dict[name.text].has_hooks()
        )

    def _follow_backward_hooks(self) -> None:
        """Gradients are on while a backward hook hangs anywhere, and as they were afterwards."""
        any_hangs = any(point.bwd_hooks for point in self.hook_dict.values())
        if any_hangs and self._grad_before is None:
            self._grad_before = torch.is_grad_enabled()
            torch.set_grad_enabled(True)
        elif not any_hangs and self._grad_before is not None:
            torch.set_grad_enabled(self._grad_before)
            self._grad_before = None

    def _layout(
        self, ids: Tensor, prepend_bos: bool | None, attention_mask: Tensor | None
    ) -> Layout:
        """Where the padding of some ids is: from a mask, or as `to_tokens` put it, or by its look.

        Raises: PromptError for a mask with holes.
        """
        ids = ids.to(self.model.device).long()
        if attention_mask is not None:
            mask = attention_mask.to(ids.device).bool()
            if mask.shape != ids.shape or not bool((mask.int().diff(dim=1) >= 0).all()):
                raise PromptError(
                    f"an attention_mask of shape {tuple(mask.shape)} that is not padding before "
                    f"prompts of shape {tuple(ids.shape)}",
                    allowed="zeros, then ones, in each row",
                )
            shifts = (~mask).sum(1)
        elif self.tokenizer.padding_side == "right" and not self._padded:
            return Layout(ids, None)
        else:
            before = [self._padding_before(row, prepend_bos) for row in ids.tolist()]
            shifts = torch.tensor(before, device=ids.device)
        return Layout(ids, shifts if bool(shifts.any()) else None)

    def _padding_before(self, row: list[int], prepend_bos: bool | None) -> int:
        if tuple(row) in self._padded:
            return len(row) - self._padded[tuple(row)]
        if self.tokenizer.padding_side == "right":
            return 0
        pad = self.tokenizer.pad_token_id
        before = next((i for i, id in enumerate(row) if id != pad), len(row))
        if before and self._prepends(prepend_bos) and pad == self.tokenizer.bos_token_id:
            before -= 1  # the last of them is BOS
        return min(before, len(row) - 1)

    def _run(
        self,
        input: Any,
        wanted: Sequence[Name],
        return_type: str | None = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
        start_at_layer: int | None = None,
        tokens: Tensor | None = None,
        shortformer_pos_embed: Tensor | None = None,
        attention_mask: Tensor | None = None,
        stop_at_layer: int | None = None,
        past_kv_cache: object | None = None,
        *,
        all_of_them: bool = False,
    ) -> tuple[Any, dict[str, Tensor]]:
        """What `forward` returns, and the activations wanted of it.

        Args:
            all_of_them: whether each was named, so that one that is not run is an error.
        """
        if past_kv_cache is not None:
            raise refuse("past_kv_cache", "Run the whole prompt; generate() does so by itself")
        if shortformer_pos_embed is not None:
            raise refuse("shortformer_pos_embed", "No supported model uses it")
        if return_type not in RETURN_TYPES:
            raise refuse(f"return_type={return_type!r}", allowed="logits, loss, both, None")
        stream: Tensor | None = None
        with self._padding(padding_side):
            if start_at_layer is not None:
                stream = input
                if not isinstance(stream, Tensor) or stream.ndim != 3:
                    raise PromptError(
                        "start_at_layer without a residual stream", allowed="(batch, pos, d_model)"
                    )
                ids = torch.zeros(stream.shape[:2], dtype=torch.long) if tokens is None else tokens
                layout = (
                    Layout(ids.to(self.model.device).long(), None)
                    if tokens is None and attention_mask is None
                    else self._layout(ids, prepend_bos, attention_mask)
                )
            else:
                ids = input if isinstance(input, Tensor) else self.to_tokens(input, prepend_bos)
                layout = self._layout(torch.atleast_2d(ids), prepend_bos, attention_mask)
        stops = stop_at_layer is not None
        call = Pass(
            self.model,
            self._names,
            self.hook_dict,
            layout,
            stream=stream,
            start=start_at_layer,
            stop=stop_at_layer,
        )
        if all_of_them:
            call.check(wanted)
        out, kept = call.run(wanted, "none" if stops or return_type is None else "all")
        if out is None or stops or return_type == "logits":
            return out, kept
        if stream is not None and tokens is None:
            raise PromptError("a loss from a residual stream", allowed="tokens=, to compare with")
        mask = None if layout.shifts is None else layout.mask
        loss = lm_cross_entropy_loss(out, layout.ids, mask, loss_per_token)
        return (loss if return_type == "loss" else Output(out, loss)), kept


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
