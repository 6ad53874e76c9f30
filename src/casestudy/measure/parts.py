"""What does one part of a model compute, read and write at each position?

A part is a head, a neuron, or some directions U of a site. Each has an activity (one number a
position), an output that an ablation replaces, and directions that it writes to the stream:

    neuron     activity = its activation, the factor of its row of W_out
    head       activity = the norm of (z - v0) W_O, where v0 is the constant part of its values,
               which it writes wherever it attends (see `attribution`)
    direction  activity = the coordinate h · u; of several directions, the norm of h U

A norm after the attention or the MLP is held at its traced scale. Everything else is exact.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from casestudy.engine.cells import Cell, Place
from casestudy.errors import SiteError, did_you_mean
from casestudy.measure.attribution import value_bias
from casestudy.measure.subspaces import load_direction
from casestudy.model.config import ModelConfig
from casestudy.model.decoder import attention_scores, softmax, visible_keys
from casestudy.model.linear import norm_at_scale
from casestudy.model.model import Model
from casestudy.model.sites import Keep, Site
from casestudy.model.trace import Trace
from casestudy.results import components
from casestudy.results.components import Component, read_component

FORMS = (
    'a head ("head 0.2"), a neuron ("mlp 4 neuron 312", "neuron 4.312") or the file of a direction '
    '("trained.safetensors")'
)
FILE = ".safetensors"
"""How the name of a direction's file ends."""


@dataclass(frozen=True)
class CardPart(ABC):
    """One part of a model.

    Attributes:
        layer: where it is.
    """

    layer: int

    @property
    @abstractmethod
    def kind(self) -> str:
        """ "head", "neuron" or "direction"."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Its spelling, as in `results.components`."""

    @property
    @abstractmethod
    def site(self) -> Site:
        """The activation that holds its output, which an ablation replaces."""

    @property
    @abstractmethod
    def unit(self) -> str:
        """Of its activity."""

    @abstractmethod
    def keep(self, model: Model) -> Sequence[Keep]:
        """The sites that `activity` and `groups` read."""

    @abstractmethod
    def activity(self, model: Model, trace: Trace) -> Float[Tensor, "batch pos"]:
        """How active it is, position by position."""

    @abstractmethod
    def groups(self, model: Model) -> tuple[str, ...]:
        """The kinds of position by the signs of its inputs; one, "", where there are none."""

    @abstractmethod
    def group(self, model: Model, trace: Trace) -> Float[Tensor, "batch pos"]:
        """Each position's group, as an index."""

    @abstractmethod
    def taken(self, x: Tensor) -> Tensor:
        """The part's output, of its site's activation."""

    @abstractmethod
    def put(self, x: Tensor, output: Tensor) -> Tensor:
        """The activation with the part's output replaced."""

    @abstractmethod
    def cell(self, place: Place, output: Float[Tensor, "prompt pos ..."]) -> Cell:
        """The cell of a sweep that replaces the part's output."""

    def output(self, trace: Trace) -> Tensor:
        """(batch, pos, …) what an ablation replaces."""
        return self.taken(trace[self.site, self.layer])


@dataclass(frozen=True)
class NeuronPart(CardPart):
    """One neuron of an MLP.

    Attributes:
        index: within its layer.
    """

    index: int

    @property
    def kind(self) -> str:
        """ "neuron"."""
        return "neuron"

    def taken(self, x: Tensor) -> Tensor:
        """Its activation."""
        return x[..., self.index]

    def put(self, x: Tensor, output: Tensor) -> Tensor:
        """With another activation."""
        x = x.clone()
        x[..., self.index] = output
        return x

    def cell(self, place: Place, output: Float[Tensor, "prompt pos ..."]) -> Cell:
        """One neuron's."""
        return Cell(self.site, self.layer, place, neuron=self.index, values=output)

    @property
    def name(self) -> str:
        """ "neuron 4.312"."""
        return components.neuron(self.layer, self.index)

    @property
    def site(self) -> Site:
        """Its activation."""
        return Site.MLP_POST

    @property
    def unit(self) -> str:
        """Of its activity."""
        return "activation"

    def keep(self, model: Model) -> Sequence[Keep]:
        """Its layer's activations and their inputs."""
        sites = [Site.MLP_POST, Site.MLP_PRE]
        sites += [Site.MLP_GATE] if self.gated(model) else []
        return [site.at(self.layer) for site in sites]

    def gated(self, model: Model) -> bool:
        """Whether its activation is act(gate) times input."""
        return model.weights.blocks[self.layer].mlp.W_gate is not None

    def activity(self, model: Model, trace: Trace) -> Float[Tensor, "batch pos"]:
        """Its activation."""
        return self.output(trace)

    def groups(self, model: Model) -> tuple[str, ...]:
        """By the signs of its input, and of its gate where it has one."""
        inputs = ("input > 0", "input ≤ 0")
        if not self.gated(model):
            return inputs
        return tuple(f"{gate}, {one}" for gate in ("gate > 0", "gate ≤ 0") for one in inputs)

    def group(self, model: Model, trace: Trace) -> Float[Tensor, "batch pos"]:
        """Of each position."""
        found = (trace[Site.MLP_PRE, self.layer][..., self.index] <= 0).float()
        if self.gated(model):
            found = found + 2 * (trace[Site.MLP_GATE, self.layer][..., self.index] <= 0)
        return found

    def written(self, model: Model) -> Float[Tensor, "direction d_model"]:
        """What one unit of activation adds to the residual stream, in float64; with a norm after
        the MLP, times that norm's scale."""
        block = model.weights.blocks[self.layer]
        row = block.mlp.W_out[self.index, None].double()
        return norm_at_scale(model.config, block.mlp_post_norm, row, None)


@dataclass(frozen=True)
class HeadPart(CardPart):
    """One attention head.

    Attributes:
        index: within its layer.
    """

    index: int

    @property
    def kind(self) -> str:
        """ "head"."""
        return "head"

    def taken(self, x: Tensor) -> Tensor:
        """Its z."""
        return x[..., self.index, :]

    def put(self, x: Tensor, output: Tensor) -> Tensor:
        """With another z."""
        x = x.clone()
        x[..., self.index, :] = output
        return x

    def cell(self, place: Place, output: Float[Tensor, "prompt pos ..."]) -> Cell:
        """One head's."""
        return Cell(self.site, self.layer, place, head=self.index, values=output)

    @property
    def name(self) -> str:
        """ "head 0.2"."""
        return components.head(self.layer, self.index)

    @property
    def site(self) -> Site:
        """Its z."""
        return Site.Z

    @property
    def unit(self) -> str:
        """Of its activity."""
        return "norm of its output"

    def kv_head(self, config: ModelConfig) -> int:
        """The key/value head that it reads."""
        return self.index // (config.n_heads // config.n_kv_heads)

    def keep(self, model: Model) -> Sequence[Keep]:
        """Its layer's z, queries, keys and values."""
        sites = [Site.Z, Site.ROT_Q, Site.ROT_K, Site.V]
        if model.weights.blocks[self.layer].attn_post_norm is not None:
            sites.append(Site.ATTN_POST_SCALE)
        return [site.at(self.layer) for site in sites]

    def W_O(self, model: Model) -> Float[Tensor, "d_head d_model"]:
        """From z to the residual stream, in float64; with a norm after the attention, times that
        norm's scale."""
        block = model.weights.blocks[self.layer]
        W = block.attn.W_O[self.index].double()
        return norm_at_scale(model.config, block.attn_post_norm, W, None)

    def constant(self, model: Model) -> Float[Tensor, " d_head"]:
        """The constant part of its values, in float64."""
        return value_bias(model.config, model.weights.blocks[self.layer])[self.index]

    def activity(self, model: Model, trace: Trace) -> Float[Tensor, "batch pos"]:
        """The norm of what it writes, without the constant part."""
        W = self.W_O(model)
        z = self.output(trace).double() - self.constant(model)
        found: Tensor = ((z @ (W @ W.T)) * z).sum(-1).clamp(min=0).sqrt()
        if (Site.ATTN_POST_SCALE, self.layer) in trace.values:
            found = found / trace[Site.ATTN_POST_SCALE, self.layer][..., 0]
        return found.to(trace[Site.Z, self.layer].dtype)

    def groups(self, model: Model) -> tuple[str, ...]:
        """One."""
        return ("",)

    def group(self, model: Model, trace: Trace) -> Float[Tensor, "batch pos"]:
        """The same at each position."""
        return torch.zeros(trace[Site.Z, self.layer].shape[:2], device=model.device)

    def pattern(self, model: Model, trace: Trace) -> Float[Tensor, "batch query_pos key_pos"]:
        """Its attention pattern, of a trace with `keep`."""
        config, kv = model.config, self.kv_head(model.config)
        q = trace[Site.ROT_Q, self.layer][:, :, self.index, None]
        k = trace[Site.ROT_K, self.layer][:, :, kv, None]
        at = torch.arange(q.shape[1], device=q.device)
        visible = visible_keys(config, self.layer, at, at)
        return softmax(attention_scores(config, self.layer, q, k, visible))[:, 0]

    def values(self, model: Model, trace: Trace) -> Float[Tensor, "batch pos d_head"]:
        """What it takes from each key, without the constant part, in float64."""
        v = trace[Site.V, self.layer][:, :, self.kv_head(model.config)]
        return v.double() - self.constant(model)


@dataclass(frozen=True, eq=False)
class DirectionPart(CardPart):
    """Directions of a site, from a file.

    Attributes:
        place: the site.
        basis: orthonormal columns, in float64.
        method: how they were found.
        role: the tokens that they were found at.
    """

    place: Site
    basis: Float[Tensor, "d_model k"]
    method: str
    role: str

    @property
    def kind(self) -> str:
        """ "direction"."""
        return "direction"

    @property
    def rank(self) -> int:
        """How many directions."""
        return self.basis.shape[1]

    @property
    def name(self) -> str:
        """ "direction of resid_post 3 (trained)"."""
        return f"direction of {self.place.value} {self.layer} ({self.method})"

    @property
    def site(self) -> Site:
        """Where they are."""
        return self.place

    @property
    def unit(self) -> str:
        """Of its activity."""
        return "coordinate" if self.rank == 1 else "norm of the coordinates"

    def keep(self, model: Model) -> Sequence[Keep]:
        """Its site."""
        return [self.place.at(self.layer)]

    def taken(self, x: Tensor) -> Tensor:
        """The coordinates."""
        return x @ self.basis.to(x)

    def put(self, x: Tensor, output: Tensor) -> Tensor:
        """With other coordinates."""
        return x + (output.to(x) - self.taken(x)) @ self.basis.to(x).T

    def cell(self, place: Place, output: Float[Tensor, "prompt pos ..."]) -> Cell:
        """The component in the directions' span."""
        basis = self.basis.to(output)
        return Cell(self.place, self.layer, place, subspace=basis, values=output @ basis.T)

    def activity(self, model: Model, trace: Trace) -> Float[Tensor, "batch pos"]:
        """The coordinate, or the norm of several."""
        found = self.output(trace)
        return found[..., 0] if self.rank == 1 else found.norm(dim=-1)

    def groups(self, model: Model) -> tuple[str, ...]:
        """By the sign of a single coordinate."""
        return ("coordinate > 0", "coordinate ≤ 0") if self.rank == 1 else ("",)

    def group(self, model: Model, trace: Trace) -> Float[Tensor, "batch pos"]:
        """Of each position."""
        found = self.activity(model, trace)
        return (found <= 0).float() if self.rank == 1 else torch.zeros_like(found)

    def written(self, model: Model) -> Float[Tensor, "direction d_model"]:
        """The directions."""
        return self.basis.T.to(model.device)


def read_part(model: Model, text: str | Component) -> CardPart:
    """The head or neuron of this spelling, or the directions of this file.

    Raises: SiteError for a spelling that is no part, and for one the model lacks; MeasureError for
        a file that is no direction of this model (see `load_direction`).
    """
    if isinstance(text, str) and text.endswith(FILE):
        found = load_direction(model, text)
        spot = found.spot
        return DirectionPart(spot.layer, spot.site, found.directions, found.method, spot.role)
    return _component(model, text)


def _component(model: Model, text: str | Component) -> HeadPart | NeuronPart:
    """A head or a neuron."""
    config = model.config
    found = text if isinstance(text, Component) else read_component(text)
    if found is None:
        examples = ["head 0.0", "neuron 0.0", "mlp 0 neuron 0"]
        hint = did_you_mean(str(text), examples)
        raise SiteError(f"{str(text)!r} is no part of a model", allowed=FORMS, hint=hint)
    if found.side or found.kind not in ("head", "neuron"):
        hint = None
        if found.layer is not None and found.kind in ("attn", "mlp", "kv_head"):
            spell = components.neuron if found.kind == "mlp" else components.head
            hint = f"Did you mean {spell(found.layer, found.index or 0)!r}?"
        raise SiteError(f"no card is made of {str(found)!r}", allowed=FORMS, hint=hint)
    assert found.layer is not None
    assert found.index is not None
    count = config.n_heads if found.kind == "head" else config.d_mlp
    if found.layer >= config.n_layers or found.index >= count:
        layer, index = min(found.layer, config.n_layers - 1), min(found.index, count - 1)
        raise SiteError(
            f"{model.name} has no {found}",
            allowed=f"layers 0 to {config.n_layers - 1}, {found.kind}s 0 to {count - 1}",
            hint=f"Did you mean {str(Component(found.kind, layer, index))!r}?",
        )
    if found.kind == "head":
        return HeadPart(found.layer, found.index)
    return NeuronPart(found.layer, found.index)
