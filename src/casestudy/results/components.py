"""How is a component of the model spelled? One function writes it, one reads it; without torch.

    embed, pos_embed    the embeddings
    attn 3              the attention of layer 3, all heads and biases together
    attn 3 bias         the biases of layer 3's attention
    head 3.1            head 1 of layer 3; kv_head 3.1 if several heads share keys and values
    mlp 3               the MLP of layer 3
    neuron 3.512        neuron 512 of layer 3
    logits              the logits, as a receiver

An input of a head is `head 3.1<q>`, an edge `head 0.1->head 3.2<q>`. The
spellings of MIB (a3.h1, m3, m3.n512, input) are also read, because cards and tables of version
0.1.0 have them; so are the spellings 3.1, 3.1.q, L3H1 and MLP 3. Does not check whether a model has
the component.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "embed", "pos_embed", "attn", "attn bias", "head", "kv_head", "mlp", "neuron", "logits"
]


@dataclass(frozen=True)
class Component:
    """A component of the model; `str` gives its spelling.

    Attributes:
        kind: of component.
        layer: None for embeddings and logits.
        index: of a head or neuron, within its layer.
        side: "q", "k" or "v" for one input of a head.
    """

    kind: Kind
    layer: int | None = None
    index: int | None = None
    side: str = ""

    def __str__(self) -> str:
        if self.kind == "attn bias":
            return f"attn {self.layer} bias"
        place = ".".join(str(i) for i in (self.layer, self.index) if i is not None)
        side = f"<{self.side}>" if self.side else ""
        return f"{self.kind} {place}{side}" if place else self.kind

    @property
    def mib(self) -> str:
        """MIB's name, as in its files and in cards of version 0.1.0: "a3.h1<q>", "m3"."""
        side = f"<{self.side}>" if self.side else ""
        match self.kind:
            case "head" | "kv_head":
                letter = "h" if self.kind == "head" else "kv"
                return f"a{self.layer}.{letter}{self.index}{side}"
            case "mlp":
                return f"m{self.layer}"
            case "neuron":
                return f"m{self.layer}.n{self.index}"
            case "embed":
                return "input"
            case _:
                return str(self)


def attn(layer: int) -> str:
    """ "attn 3"."""
    return str(Component("attn", layer))


def attn_bias(layer: int) -> str:
    """ "attn 3 bias"."""
    return str(Component("attn bias", layer))


def mlp(layer: int) -> str:
    """ "mlp 3"."""
    return str(Component("mlp", layer))


def head(layer: int | str, index: int | str) -> str:
    """ "head 3.1"; labels of axes are accepted as numbers."""
    return str(Component("head", int(layer), int(index)))


def head_of(axis: str, layer: str, label: str) -> str:
    """The component of a label of a head axis and its layer: "head 3.1", or "attn 3 bias".

    Args:
        axis: "head", or "kv_head" if several heads share keys and values.
        layer: the label of the layer.
        label: a number, or "bias" for the layer's biases.
    """
    if not label.isdigit():
        return attn_bias(int(layer))
    return str(Component("kv_head" if axis == "kv_head" else "head", int(layer), int(label)))


def neuron(layer: int | str, index: int | str) -> str:
    """ "neuron 3.512"."""
    return str(Component("neuron", int(layer), int(index)))


_PLACE, _SIDE = r"(?P<layer>\d+)\.(?P<index>\d+)", r"(?:<(?P<side>[qkv])>|\.(?P<dot>[qkv]))?"
_FORMS: tuple[tuple[Kind, str], ...] = (
    ("embed", "embed|embeddings?|input"),
    ("pos_embed", "pos_embed"),
    ("logits", "logits|output"),
    ("attn bias", r"attn (?P<layer>\d+) bias"),
    ("kv_head", "kv_head " + _PLACE + _SIDE),
    ("kv_head", r"a(?P<layer>\d+)\.kv(?P<index>\d+)" + _SIDE),
    ("head", "(?:head |attn )?" + _PLACE + _SIDE),
    ("head", r"[al](?P<layer>\d+)\.?h(?P<index>\d+)" + _SIDE),
    ("neuron", "neuron " + _PLACE),
    ("neuron", r"(?:mlp |m)(?P<layer>\d+)(?:\.n| neuron )(?P<index>\d+)"),
    ("attn", r"(?:attn|attention)[ ._]?(?P<layer>\d+)"),
    ("mlp", r"(?:mlp[ ._]?|m)(?P<layer>\d+)"),
)
"""The accepted spellings; the first one that matches the whole text is used."""


def read_component(text: str) -> Component | None:
    """The component of a spelling, current or older; None if it is not a component."""
    for kind, form in _FORMS:
        if found := re.fullmatch(form, text.strip().lower()):
            parts = found.groupdict()
            layer, index = parts.get("layer"), parts.get("index")
            return Component(
                kind,
                None if layer is None else int(layer),
                None if index is None else int(index),
                parts.get("side") or parts.get("dot") or "",
            )
    return None


def respelled(name: str) -> str:
    """A component's or an edge's name in the current spelling; other names unchanged."""
    ends = name.split("->")
    return "->".join(str(read_component(end) or end) for end in ends)


def layer_kind(name: str) -> Literal["attn", "mlp"] | None:
    """The kind of layer of a ledger's term; None for the other terms."""
    part = read_component(name)
    return part.kind if part is not None and part.kind in ("attn", "mlp") else None
