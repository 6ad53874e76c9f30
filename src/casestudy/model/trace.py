"""Which activations does a run keep, and how are edits applied during it?

A `Trace` is what one run kept: activations by site and layer, with names and axes as in `sites`.
The forward pass in `decoder` calls a `Tap` with every activation; the tap applies the edits of that
site and keeps what was requested. Nothing stays registered on the model. Cost: kept activations
stay in memory; with `last=True`, one position per prompt.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from casestudy.drawing import draw
from casestudy.errors import EditError, SiteError, SiteNotKept
from casestudy.model.edits import Edit, apply_edits
from casestudy.model.sites import Keep, Site, address_name, check_layer
from casestudy.model.tokens import Tokens

Address = tuple[Site, int | None]


@dataclass(frozen=True)
class Trace:
    """What one run kept.

    Attributes:
        tokens: what was run, padded on the right.
        values: the kept activations by (site, layer), axes as `site.axes`.
        lasts: those kept at each prompt's last token only, without their pos axis.
        logits: None, (batch, d_vocab) at the last tokens, or (batch, pos, d_vocab).
    """

    tokens: Tokens
    values: dict[Address, Tensor]
    lasts: dict[Address, Tensor]
    logits: Float[Tensor, "batch d_vocab"] | Float[Tensor, "batch pos d_vocab"] | None
    n_layers: int

    def __getitem__(self, key: Site | str | tuple[Site | str, int]) -> Tensor:
        """`trace["z", 3]`, `trace[Site.EMBED]`.

        Raises: SiteNotKept, naming what to add to `keep`.
        """
        return self.values[self._address(key, self.values)]

    def __repr__(self) -> str:
        """What was kept, not its numbers."""
        kept = [address_name(*address) for address in self.values]
        kept += [f"{address_name(*address)} (last)" for address in self.lasts]
        logits = "no logits" if self.logits is None else f"logits {tuple(self.logits.shape)}"
        return f"Trace({len(self.tokens)} prompts, {logits}, kept: {'; '.join(kept) or 'nothing'})"

    def last(self, key: Site | str | tuple[Site | str, int]) -> Tensor:
        """The activation at each prompt's last token, without its pos axis."""
        address = self._address(key, ChainMap(self.values, self.lasts))
        if address in self.lasts:
            return self.lasts[address]
        return take_last(address[0], self.values[address], self.tokens.last)

    def of(self, key: Site | str | tuple[Site | str, int], prompt: int) -> Tensor:
        """One prompt's activation, without batch axis and without padding."""
        address = self._address(key, self.values)
        x, n = self.values[address][prompt], int(self.tokens.lengths[prompt])
        for dim, axis in enumerate(address[0].axes[1:]):
            if axis in ("pos", "query_pos", "key_pos"):
                x = x.narrow(dim, 0, n)
        return x

    def plot(
        self,
        key: Site | str | tuple[Site | str, int],
        *,
        prompt: int = 0,
        tokens: Sequence[str] | None = None,
        **where: Any,
    ) -> Any:
        """A plotly figure of one prompt's activation: `trace.plot(("pattern", 3), head="4")`.

        Args:
            key: as for `trace[key]`.
            prompt: which one.
            tokens: its tokens, to label positions with (`model.tokenizer.strings(ids)`).
            where: a label per axis to fix; axes beyond two are fixed at their first.
        """
        site, layer = self._address(key, self.values)
        values = self.of(key, prompt)
        name, axes = address_name(site, layer), site.axes[1:]
        return draw("trace.plot", values, name, axes, tokens, **where)

    def _repr_html_(self) -> str:
        kept = [(address_name(*address), x.shape) for address, x in self.values.items()]
        kept += [(f"{address_name(*address)}, last", x.shape) for address, x in self.lasts.items()]
        kept += [] if self.logits is None else [("logits", self.logits.shape)]
        return str(draw("trace.html", len(self.tokens), kept))

    def _address(
        self, key: Site | str | tuple[Site | str, int], known: Container[Address]
    ) -> Address:
        name, layer = key if isinstance(key, tuple) else (key, None)
        site = Site(name)
        if site.layered and layer is None:
            raise SiteNotKept(
                f"{site.value} exists in every layer", hint=f'Say trace["{site.value}", layer]'
            )
        if not site.layered and layer is not None:
            raise SiteNotKept(f"{site.value} exists once", hint=f'Say trace["{site.value}"]')
        address = (site, None if layer is None else check_layer(layer, self.n_layers))
        if address not in known:
            only_last = " at every position" if address in self.lasts else ""
            raise SiteNotKept(
                f"{address_name(site, layer)} was not kept{only_last}",
                hint=f'Add Site("{site.value}") to keep=',
            )
        return address


def take_last(site: Site, x: Tensor, last: Int[Tensor, " batch"]) -> Tensor:
    """Each prompt's last position along the site's pos (or query_pos) axis, which disappears."""
    dim = next(i for i, axis in enumerate(site.axes) if axis in ("pos", "query_pos"))
    index = last.view(-1, *[1] * (x.ndim - 1)).expand(
        *(1 if i == dim else n for i, n in enumerate(x.shape))
    )
    return x.gather(dim, index).squeeze(dim)


_UP_TO_PATTERN = frozenset(
    {
        *(Site.RESID_PRE, Site.ATTN_IN, Site.ATTN_SCALE, Site.ATTN_NORMED),
        *(Site.Q_IN, Site.K_IN, Site.V_IN, Site.Q, Site.K, Site.V, Site.ROT_Q, Site.ROT_K),
        *(Site.ATTN_SCORES, Site.PATTERN),
    }
)
_FINAL = frozenset({Site.FINAL_RESID, Site.FINAL_SCALE, Site.FINAL_NORMED})


class Tap:
    """Applies a site's edits during a run, then keeps the requested activations."""

    def __init__(
        self,
        n_layers: int = 0,
        keep: Iterable[Keep | Site | str] = (),
        edit: Iterable[Edit] = (),
        last: Int[Tensor, " batch"] | None = None,
    ) -> None:
        self.values: dict[Address, Tensor] = {}
        self.lasts: dict[Address, Tensor] = {}
        self._last = last
        self._keep: dict[Address, set[bool]] = {}
        for what in map(Keep.of, keep):
            for address in what.addresses(n_layers):
                self._keep.setdefault(address, set()).add(what.last)
        self._edits: dict[Address, list[Edit]] = {}
        for change in edit:
            if change.site.layered and change.layer is None:
                raise EditError(f"an edit at {change.site.value} names no layer")
            layers = None if change.layer is None else (change.layer,)
            (address,) = Keep(change.site, layers).addresses(n_layers)
            self._edits.setdefault(address, []).append(change)
        self._met: set[Address] = set()

    def wants(self, site: Site, layer: int | None) -> bool:
        """Whether a site is kept or edited."""
        return (site, layer) in self._keep or (site, layer) in self._edits

    def wants_all(self, site: Site, layer: int) -> bool:
        """Whether a site is wanted at more than the last positions."""
        address = (site, layer)
        return address in self._edits or False in self._keep.get(address, ())

    def edits(self, site: Site, layer: int | None) -> bool:
        """Whether a site is edited."""
        return (site, layer) in self._edits

    def asks_only_last_from_z(self, layer: int) -> bool:
        """Whether, in the last layer from z on, only the last positions are requested."""
        later = [
            (site, at)
            for site, at in self._keep.keys() | self._edits.keys()
            if (at == layer and site not in _UP_TO_PATTERN) or site in _FINAL
        ]
        return all(a not in self._edits and False not in self._keep[a] for a in later)

    @property
    def last(self) -> Int[Tensor, " batch"]:
        """Where each prompt's last token is along the pos axis, as it is now."""
        assert self._last is not None
        return self._last

    def narrow(self) -> None:
        """From here on, the pos axis holds the last positions only."""
        self._last = torch.zeros_like(self.last)

    def keep_last(self, site: Site, layer: int, x: Tensor) -> None:
        """Keep what was computed for the last positions only, if it was asked for."""
        if (site, layer) in self._keep:
            self._met.add((site, layer))
            self.lasts[site, layer] = x

    def __call__(self, site: Site, layer: int | None, x: Tensor) -> Tensor:
        """Pass an activation to the tap; the forward pass continues with the value returned."""
        address = (site, layer)
        if not self.wants(site, layer):
            return x
        self._met.add(address)
        # A node of its own: attn_in is resid_pre's value, but not the stream that goes on. Made
        # before the edits, so that one which only notes the activation has that node.
        kept = address in self._keep
        given = x.view_as(x) if kept and x.requires_grad else x
        x = apply_edits(self._edits.get(address, ()), given)
        if kept and x.requires_grad and x is not given:
            x = x.view_as(x)
        for last in self._keep.get(address, ()):
            if last:
                self.lasts[address] = take_last(site, x, self.last)
            else:
                self.values[address] = x
        return x

    def check_all_met(self) -> None:
        """Raise an error for an edit or a keep of a site that this model never computes."""
        hint = (
            "Sites of norms, gates and learned positions exist only where the architecture has "
            "them; a parallel block has no resid_mid"
        )
        for error, asked in ((EditError, self._edits), (SiteError, self._keep)):
            names = sorted({site.value for site, layer in asked if (site, layer) not in self._met})
            if names:
                raise error(f"this model never computes {', '.join(names)}", hint=hint)
