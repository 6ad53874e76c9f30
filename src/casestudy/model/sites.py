"""Which activations have names, and what are their axes?

A `Site` is a named activation of a decoder, the same in every layer; a `Keep` says in which layers,
and whether at every position or only at each prompt's last. Names are the field's (Elhage et al.
2021; TransformerLens), with `batch pos` always first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from operator import index

from casestudy.errors import SiteError, unknown

_STREAM = ("batch", "pos", "d_model")
_HEAD_STREAM = ("batch", "pos", "head", "d_model")
_QUERY = ("batch", "pos", "head", "d_head")
_KEY = ("batch", "pos", "kv_head", "d_head")
_MLP = ("batch", "pos", "d_mlp")
_GRID = ("batch", "head", "query_pos", "key_pos")
_SCALE = ("batch", "pos", "one")


class Site(Enum):
    """A named activation. `Site("pattern")` is `Site.PATTERN`; a typo raises `SiteError`.

    Each has `axes` and `layered` (whether there is one per layer). An axis `kv_head` counts
    key/value heads, fewer than `head` under grouped queries. `q_in`, `k_in` and `v_in` split
    `attn_in` into what each head reads for its queries, keys and values; scales are what a norm
    divides by; `normed` is its output, weight and bias included.
    """

    EMBED = "embed"
    POS_EMBED = "pos_embed"
    RESID_PRE = "resid_pre"
    ATTN_IN = "attn_in"
    Q_IN = "q_in"
    K_IN = "k_in"
    V_IN = "v_in"
    ATTN_SCALE = "attn_scale"
    ATTN_NORMED = "attn_normed"
    Q = "q"
    K = "k"
    V = "v"
    ROT_Q = "rot_q"
    ROT_K = "rot_k"
    ATTN_SCORES = "attn_scores"
    PATTERN = "pattern"
    Z = "z"
    RESULT = "result"
    ATTN_POST_SCALE = "attn_post_scale"
    ATTN_OUT = "attn_out"
    RESID_MID = "resid_mid"
    MLP_IN = "mlp_in"
    MLP_SCALE = "mlp_scale"
    MLP_NORMED = "mlp_normed"
    MLP_PRE = "mlp_pre"
    MLP_GATE = "mlp_gate"
    MLP_POST = "mlp_post"
    MLP_POST_SCALE = "mlp_post_scale"
    MLP_OUT = "mlp_out"
    RESID_POST = "resid_post"
    FINAL_RESID = "final_resid"
    FINAL_SCALE = "final_scale"
    FINAL_NORMED = "final_normed"

    @classmethod
    def _missing_(cls, value: object) -> Site:
        names = [site.value for site in cls]
        raise unknown(SiteError, f"no site is called {value!r}", value, names)

    @property
    def axes(self) -> tuple[str, ...]:
        """The names of the axes of this site's tensor, in order."""
        return _AXES[self]

    @property
    def layered(self) -> bool:
        """Whether every layer has one (False for the embeddings and the final norm's sites)."""
        return self not in _GLOBAL

    def at(self, layers: int | Iterable[int] | None = None, *, last: bool = False) -> Keep:
        """This site in some layers (all by default), at every position or only the last."""
        if isinstance(layers, int):
            layers = (layers,)
        return Keep(self, None if layers is None else tuple(layers), last)


_AXES: dict[Site, tuple[str, ...]] = {
    Site.EMBED: _STREAM,
    Site.POS_EMBED: _STREAM,
    Site.RESID_PRE: _STREAM,
    Site.ATTN_IN: _STREAM,
    Site.Q_IN: _HEAD_STREAM,
    Site.K_IN: ("batch", "pos", "kv_head", "d_model"),
    Site.V_IN: ("batch", "pos", "kv_head", "d_model"),
    Site.ATTN_SCALE: _SCALE,
    Site.ATTN_NORMED: _STREAM,
    Site.Q: _QUERY,
    Site.K: _KEY,
    Site.V: _KEY,
    Site.ROT_Q: _QUERY,
    Site.ROT_K: _KEY,
    Site.ATTN_SCORES: _GRID,
    Site.PATTERN: _GRID,
    Site.Z: _QUERY,
    Site.RESULT: _HEAD_STREAM,
    Site.ATTN_POST_SCALE: _SCALE,
    Site.ATTN_OUT: _STREAM,
    Site.RESID_MID: _STREAM,
    Site.MLP_IN: _STREAM,
    Site.MLP_SCALE: _SCALE,
    Site.MLP_NORMED: _STREAM,
    Site.MLP_PRE: _MLP,
    Site.MLP_GATE: _MLP,
    Site.MLP_POST: _MLP,
    Site.MLP_POST_SCALE: _SCALE,
    Site.MLP_OUT: _STREAM,
    Site.RESID_POST: _STREAM,
    Site.FINAL_RESID: _STREAM,
    Site.FINAL_SCALE: _SCALE,
    Site.FINAL_NORMED: _STREAM,
}
_GLOBAL = frozenset(
    {Site.EMBED, Site.POS_EMBED, Site.FINAL_RESID, Site.FINAL_SCALE, Site.FINAL_NORMED}
)


@dataclass(frozen=True)
class Keep:
    """What a run is asked to keep of one site.

    Attributes:
        site: the activation.
        layers: in which layers; None means all of them.
        last: keep only each prompt's last token; the `pos` (or `query_pos`) axis is then gone.
    """

    site: Site
    layers: tuple[int, ...] | None = None
    last: bool = False

    @classmethod
    def of(cls, what: Keep | Site | str) -> Keep:
        """Accept a Keep, a Site or a site's name."""
        if isinstance(what, Keep):
            return what
        return cls(Site(what))

    def addresses(self, n_layers: int) -> list[tuple[Site, int | None]]:
        """The (site, layer) pairs this asks for; layers may be counted from the end.

        Raises: SiteError for a layer the model does not have, or of a site that has none.
        """
        if not self.site.layered:
            if self.layers is not None:
                raise SiteError(
                    f"{self.site.value} exists once, not in layer {self.layers}",
                    allowed="no layer",
                )
            return [(self.site, None)]
        return [(self.site, layer) for layer in check_layers(self.layers, n_layers)]


def check_layer(layer: int, n_layers: int) -> int:
    """The layer's index counted from the start; negative layers count from the end.

    Raises: SiteError when the model has no such layer, and for what is no whole number.
    """
    allowed = f"0 to {n_layers - 1} (or -1 for the last)"
    try:
        whole = index(layer)
    except TypeError as error:
        raise SiteError(f"layer {layer!r}", allowed=f"one layer, {allowed}") from error
    if not -n_layers <= whole < n_layers:
        raise SiteError(f"layer {whole}", allowed=allowed)
    return whole % n_layers


def check_layers(layers: Sequence[int] | None, n_layers: int) -> list[int]:
    """Several layers' indices counted from the start; all layers for None.

    Raises: SiteError as `check_layer`, and for a single layer.
    """
    if layers is None:
        return list(range(n_layers))
    try:
        several = list(layers)
    except TypeError as error:
        raise SiteError(
            f"layers {layers!r}", allowed="several, as in (0, 1)", hint="Say (0,) for one"
        ) from error
    return [check_layer(layer, n_layers) for layer in several]


def address_name(site: Site, layer: int | None) -> str:
    """The name of one site of one layer in messages."""
    return site.value if layer is None else f"{site.value}, layer {layer}"
