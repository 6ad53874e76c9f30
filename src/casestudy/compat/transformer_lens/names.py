"""Which site is each TransformerLens hook name?

`TABLE` maps hook names to sites: a row per hook name, with its `Site`, the axes that a notebook
sees and the models that have it. The rest of this room uses it, and
docs/coming-from-transformerlens.md is made from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from casestudy.errors import SiteError, did_you_mean
from casestudy.model.config import mlp_after_attention
from casestudy.model.model import Model
from casestudy.model.sites import Site

DOCS = "See docs/coming-from-transformerlens.md"
NamesFilter = Callable[[str], bool] | Iterable[str] | str | None

_STREAM = "batch pos d_model"
_PER_HEAD = "batch pos head d_model"
_QUERY = "batch pos head d_head"
_KEY = "batch pos kv_head d_head"
_MLP = "batch pos d_mlp"
_GRID = "batch head query_pos key_pos"
_SCALE = "batch pos 1"


def _always(model: Model) -> bool:
    return True


def _rotary(model: Model) -> bool:
    return any(rotary is not None for rotary in model.config.rotary)


def _positions(model: Model) -> bool:
    return model.weights.W_pos is not None


def _ungrouped(model: Model) -> bool:
    return model.config.n_kv_heads == model.config.n_heads


def _sequential(model: Model) -> bool:
    return mlp_after_attention(model.config)


def _gated(model: Model) -> bool:
    return model.weights.gated


def _not_gated(model: Model) -> bool:
    return not model.weights.gated


def _normed(model: Model) -> bool:
    return model.weights.final_norm is not None


@dataclass(frozen=True)
class Row:
    """One hook name of TransformerLens.

    Attributes:
        pattern: the name; `{l}` is the layer.
        site: in casestudy.
        axes: of the tensor that a notebook sees; only those of `hook_attn_in` differ from the
            site's.
        exists: whether a model of this shape has it.
        models: the same in words, for the docs page; empty if every model has it.
        flag: the `cfg.use_*` that TransformerLens needs to compute this one.
    """

    pattern: str
    site: Site
    axes: str
    exists: Callable[[Model], bool] = _always
    models: str = ""
    flag: str | None = None

    @property
    def layered(self) -> bool:
        """Whether every layer has one."""
        return "{l}" in self.pattern

    @property
    def short(self) -> str:
        """The short form for a cache: `cache["z", 3]`, `cache["scale", 3, "ln1"]`."""
        path = self.pattern.split(".")
        name = path[-1].removeprefix("hook_")
        kind = f', "{path[-2]}"' if path[-2:-1] and path[-2].startswith("ln") else ""
        if self.layered:
            return f'cache["{name}", l{kind}]'
        return f'cache["{self.pattern}"]' if "." in self.pattern else f'cache["{name}"]'

    @property
    def native(self) -> str:
        """The same in casestudy's own interface."""
        # what all heads read is one activation there, and is edited as the first of three here
        site = "attn_in" if self.pattern.endswith("hook_attn_in") else self.site.value
        return f'trace["{site}", l]' if self.layered else f'trace["{site}"]'


_NORMS = "with norms"
_ROTARY = "rotary"

# In the order the forward pass meets them.
TABLE: tuple[Row, ...] = (
    Row("hook_embed", Site.EMBED, _STREAM),
    Row("hook_pos_embed", Site.POS_EMBED, _STREAM, _positions, "learned positions"),
    Row("blocks.{l}.hook_resid_pre", Site.RESID_PRE, _STREAM),
    Row(
        "blocks.{l}.hook_attn_in",
        Site.Q_IN,
        _PER_HEAD,
        _ungrouped,
        "a key head per query head",
        flag="use_attn_in",
    ),
    Row("blocks.{l}.hook_q_input", Site.Q_IN, _PER_HEAD, flag="use_split_qkv_input"),
    Row(
        "blocks.{l}.hook_k_input",
        Site.K_IN,
        "batch pos kv_head d_model",
        flag="use_split_qkv_input",
    ),
    Row(
        "blocks.{l}.hook_v_input",
        Site.V_IN,
        "batch pos kv_head d_model",
        flag="use_split_qkv_input",
    ),
    Row("blocks.{l}.ln1.hook_scale", Site.ATTN_SCALE, _SCALE, _normed, _NORMS),
    Row("blocks.{l}.ln1.hook_normalized", Site.ATTN_NORMED, _STREAM, _normed, _NORMS),
    Row("blocks.{l}.attn.hook_q", Site.Q, _QUERY),
    Row("blocks.{l}.attn.hook_k", Site.K, _KEY),
    Row("blocks.{l}.attn.hook_v", Site.V, _KEY),
    Row("blocks.{l}.attn.hook_rot_q", Site.ROT_Q, _QUERY, _rotary, _ROTARY),
    Row("blocks.{l}.attn.hook_rot_k", Site.ROT_K, _KEY, _rotary, _ROTARY),
    Row("blocks.{l}.attn.hook_attn_scores", Site.ATTN_SCORES, _GRID),
    Row("blocks.{l}.attn.hook_pattern", Site.PATTERN, _GRID),
    Row("blocks.{l}.attn.hook_z", Site.Z, _QUERY),
    Row("blocks.{l}.attn.hook_result", Site.RESULT, _PER_HEAD, flag="use_attn_result"),
    Row("blocks.{l}.hook_attn_out", Site.ATTN_OUT, _STREAM),
    Row("blocks.{l}.hook_resid_mid", Site.RESID_MID, _STREAM, _sequential, "not parallel"),
    Row("blocks.{l}.hook_mlp_in", Site.MLP_IN, _STREAM, flag="use_hook_mlp_in"),
    Row("blocks.{l}.ln2.hook_scale", Site.MLP_SCALE, _SCALE, _normed, _NORMS),
    Row("blocks.{l}.ln2.hook_normalized", Site.MLP_NORMED, _STREAM, _normed, _NORMS),
    Row("blocks.{l}.mlp.hook_pre", Site.MLP_PRE, _MLP, _not_gated, "not gated"),
    Row("blocks.{l}.mlp.hook_pre", Site.MLP_GATE, _MLP, _gated, "gated"),
    Row("blocks.{l}.mlp.hook_pre_linear", Site.MLP_PRE, _MLP, _gated, "gated"),
    Row("blocks.{l}.mlp.hook_post", Site.MLP_POST, _MLP),
    Row("blocks.{l}.hook_mlp_out", Site.MLP_OUT, _STREAM),
    Row("blocks.{l}.hook_resid_post", Site.RESID_POST, _STREAM),
    Row("ln_final.hook_scale", Site.FINAL_SCALE, _SCALE, _normed, _NORMS),
    Row("ln_final.hook_normalized", Site.FINAL_NORMED, _STREAM, _normed, _NORMS),
)

REFUSED: dict[str, str] = {
    "hook_tokens": "Change the tokens themselves, before the model is run",
    "embed.hook_in": "Use hook_embed",
    "embed.hook_out": "Use hook_embed",
    "unembed.hook_in": "Use ln_final.hook_normalized",
    "unembed.hook_out": "The logits are what the model returns",
    "blocks.{l}.ln1_post.hook_normalized": "Use blocks.{l}.hook_attn_out",
    "blocks.{l}.ln2_post.hook_normalized": "Use blocks.{l}.hook_mlp_out",
    "blocks.{l}.ln1_post.hook_scale": "Run the model natively: keep=Site('attn_post_scale')",
    "blocks.{l}.ln2_post.hook_scale": "Run the model natively: keep=Site('mlp_post_scale')",
}
"""Hook names of TransformerLens 2 and 3 that are refused, with what to do instead."""


@dataclass(frozen=True)
class Name:
    """A hook name of one model.

    Attributes:
        text: as a notebook writes it.
        layer: None where it exists once.
    """

    text: str
    row: Row
    layer: int | None

    @property
    def site(self) -> Site:
        """What it is called here."""
        return self.row.site


def names_of(model: Model) -> dict[str, Name]:
    """Every hook name of a model, in the order its forward pass meets them."""
    found: list[Name] = []
    before = [row for row in TABLE if not row.layered and not row.pattern.startswith("ln_final")]
    after = [row for row in TABLE if not row.layered and row.pattern.startswith("ln_final")]
    found += [Name(row.pattern, row, None) for row in before if row.exists(model)]
    for layer in range(model.config.n_layers):
        found += [
            Name(row.pattern.format(l=layer), row, layer)
            for row in TABLE
            if row.layered and row.exists(model)
        ]
    found += [Name(row.pattern, row, None) for row in after if row.exists(model)]
    return {name.text: name for name in found}


def look_up(text: str, names: dict[str, Name]) -> Name:
    """The name itself.

    Raises: SiteError for a name that this model lacks, with the most similar names.
    """
    if text in names:
        return names[text]
    hint = next((f"{why}. " for name, why in REFUSED.items() if _is(text, name)), "")
    if not hint and (nearest := did_you_mean(text, names)):
        hint = f"{nearest} "
    patterns = dict.fromkeys(name.row.pattern for name in names.values())
    layers = {name.layer for name in names.values() if name.layer is not None}
    where = f", {{l}} from 0 to {max(layers)}" if layers else ""
    raise SiteError(
        f"no hook is called {text!r} in this model",
        allowed=", ".join(patterns) + where,
        hint=hint + DOCS,
    )


def _is(text: str, pattern: str) -> bool:
    """Whether a name is this pattern's in some layer."""
    before, _, after = pattern.partition("{l}")
    if not after:
        return text == pattern
    return text.startswith(before) and text.endswith(after)


def choose(
    names_filter: NamesFilter, names: dict[str, Name], switched_on: Callable[[Name], bool]
) -> list[Name]:
    """The names that a filter selects.

    A name, or a list of names, selects these. None selects every activation that TransformerLens
    computes by default. A function selects among the same; if it accepts only others
    (`hook_result`, `hook_q_input` and so on), it selects them, without a mode.

    Args:
        names_filter: a name, several, a function of a name, or None.
        names: the model's.
        switched_on: whether a name with a flag is computed by default.

    Raises: SiteError for a name that the model does not have.
    """
    if isinstance(names_filter, str):
        return [look_up(names_filter, names)]
    if names_filter is None:
        return [name for name in names.values() if switched_on(name)]
    if not callable(names_filter):
        wanted = {look_up(text, names).text for text in names_filter}
        return [name for name in names.values() if name.text in wanted]
    accepted = [name for name in names.values() if names_filter(name.text)]
    unasked = [name for name in accepted if switched_on(name)]
    return unasked or accepted


# Short words for activations, and what they stand for.
_WORDS = {
    "attn": "pattern",
    "attn_logits": "attn_scores",
    "key": "k",
    "query": "q",
    "value": "v",
    "mlp_pre": "pre",
    "mlp_post": "post",
}
_PARTS = {"a": "attn", "attention": "attn", "m": "mlp", "b": "", "block": "", "blocks": ""}
_IN_ATTN = {"k", "v", "q", "z", "rot_k", "rot_q", "result", "pattern", "attn_scores"}
_IN_MLP = {"pre", "post", "pre_linear"}


def get_act_name(name: str, layer: int | str | None = None, layer_type: str | None = None) -> str:
    """The full hook name of a short one: ("k", 6), "k6" and ("key", 6, "attn") are
    "blocks.6.attn.hook_k"; ("scale", 4, "ln1") is "blocks.4.ln1.hook_scale".
    """
    if layer is None and layer_type is None and ("." in name or name.startswith("hook_")):
        return name
    word = name
    if split := re.fullmatch(r"([a-z_]+)(\d+)(.*)", name):
        word, layer, layer_type = split[1], split[2], split[3] or layer_type
    word = _WORDS.get(word, word)
    if word in _IN_ATTN:
        part = "attn"
    elif word in _IN_MLP:
        part = "mlp"
    else:
        part = _PARTS.get(layer_type or "", layer_type or "")
    if layer is None and word in ("scale", "normalized"):
        part = "ln_final"
    prefix = "" if layer is None else f"blocks.{layer}."
    return f"{prefix}{part}.hook_{word}" if part else f"{prefix}hook_{word}"
