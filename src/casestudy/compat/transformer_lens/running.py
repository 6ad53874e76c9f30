"""How does a call on a hooked model become one run of the engine?

A `Pass` is this call: the layers, the prompts or the residual stream, and the registered hooks.
Hooks become edits, names become sites, and the result has the notebook's layout. To run some of the
layers, a model of these layers is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from casestudy.compat.transformer_lens.errors import refuse
from casestudy.compat.transformer_lens.hook_points import HookPoint, run_backward, run_forward
from casestudy.compat.transformer_lens.layout import LeftPadded
from casestudy.compat.transformer_lens.loading import some_layers
from casestudy.compat.transformer_lens.names import Name
from casestudy.errors import SiteError
from casestudy.model.decoder import Logits, norm_scale, run
from casestudy.model.edits import Edit
from casestudy.model.linear import norm_at_scale
from casestudy.model.model import Model
from casestudy.model.sites import Keep, Site, check_layer
from casestudy.model.weights import Norm

_SPLIT = ("hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input")
_FIRST_NORM = ("ln1.hook_scale", "ln1.hook_normalized")


@dataclass(frozen=True, eq=False)
class Pass:
    """One call.

    Attributes:
        model: all of it.
        names, points: its hook names, and the hooks of each.
        layout: the prompts.
        stream: instead of the embeddings, a residual stream as the notebook has it.
        start, stop: the first layer, and the first that is not run; None for the whole rest.
    """

    model: Model
    names: dict[str, Name]
    points: dict[str, HookPoint]
    layout: LeftPadded
    stream: Tensor | None = None
    start: int | None = None
    stop: int | None = None

    @property
    def first(self) -> int:
        """The first layer."""
        return check_layer(self.start, self.model.config.n_layers) if self.start else 0

    @property
    def end(self) -> int:
        """The first layer that is not run."""
        n_layers = self.model.config.n_layers
        return n_layers if self.stop in (None, n_layers) else check_layer(self.stop or 0, n_layers)

    def runs(self, name: Name) -> bool:
        """Whether an activation is among those computed."""
        if name.layer is not None:
            return self.first <= name.layer < self.end
        return self.stop is None if name.text.startswith("ln_final") else self.stream is None

    def check(self, named: Sequence[Name]) -> None:
        """Raises: SiteError if an activation was named and is not computed."""
        missed = [name.text for name in named if not self.runs(name)]
        if missed:
            raise SiteError(
                f"{', '.join(missed)} is not run",
                allowed=f"activations of layers {self.first} to {self.end - 1}",
                hint="start_at_layer and stop_at_layer leave the others out",
            )

    def run(
        self, wanted: Sequence[Name], logits: Logits
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """The result of the run, and the wanted activations.

        The result is the logits, or the residual stream with `stop`, or nothing.
        """
        wanted = [name for name in wanted if self.runs(name)]
        addresses = dict.fromkeys((name.site, self.inner(name)) for name in wanted)
        keep = [Keep(site, None if layer is None else (layer,)) for site, layer in addresses]
        if self.stop is not None:
            keep.append(Keep(Site.FINAL_RESID))
        whole = (self.first, self.end) == (0, self.model.config.n_layers)
        trace = run(
            self.model if whole else some_layers(self.model, self.first, self.end),
            self.layout.tokens,
            keep=keep,
            edit=self.edits(),
            logits=logits,
            grad=torch.is_grad_enabled(),
        )
        kept = {}
        for name in wanted:
            x = trace.values[name.site, self.inner(name)]
            kept[name.text] = self.shown(name, self.layout.to_notebook(name.site, x))
        out = trace[Site.FINAL_RESID] if self.stop is not None else trace.logits
        if out is None or logits == "last":
            return out, kept
        return self.layout.to_notebook(Site.FINAL_RESID, out), kept

    def inner(self, name: Name) -> int | None:
        """The layer in the model that is run."""
        return None if name.layer is None else name.layer - self.first

    # The registered hooks, as edits.

    def edits(self) -> list[Edit]:
        """The given residual stream, then every hook, in the order of the forward pass."""
        edits = [] if self.stream is None else [self.begin_with(self.stream)]
        hung = [n for n in self.names.values() if self.points[n.text].has_hooks() and self.runs(n)]
        split = {n.layer for n in hung if n.text.endswith(_SPLIT)}
        split &= {n.layer for n in hung if n.text.endswith(_FIRST_NORM)}
        done: set[int | None] = set()
        for name in hung:
            if name.layer not in split or not name.text.endswith(_FIRST_NORM):
                edits += self.edit(name)
            elif name.layer not in done:
                done.add(name.layer)
                edits += self.norm_per_head(name)
        return edits

    def begin_with(self, stream: Tensor) -> Edit:
        """Let the first layer read the given residual stream."""
        given = stream.to(self.model.device)
        site, layer = (Site.RESID_PRE, 0) if self.end > self.first else (Site.FINAL_RESID, None)
        return Edit(site, layer, lambda x: self.layout.to_engine(site, given.to(x), x))

    def edit(self, name: Name) -> list[Edit]:
        """The hooks of one activation."""
        layer = self.inner(name)
        if not name.text.endswith("hook_attn_in"):
            return [Edit(name.site, layer, lambda x: self.through(name, name.site, x))]
        # One activation for queries, keys and values: computed for the first, taken by the others.
        shared: list[Tensor] = []

        def first(x: Tensor) -> Tensor:
            shared[:] = [self.through(name, Site.Q_IN, x)]
            return shared[0]

        return [
            Edit(Site.Q_IN, layer, first),
            Edit(Site.K_IN, layer, lambda x: shared[0]),
            Edit(Site.V_IN, layer, lambda x: shared[0]),
        ]

    def through(self, name: Name, site: Site, x: Tensor) -> Tensor:
        """An activation of the engine after its hooks, forward and backward."""
        point = self.points[name.text]
        new = run_forward(point, self.shown(name, self.layout.to_notebook(site, x)))
        if point.bwd_hooks and new.requires_grad:
            new = new.view_as(new)
            new.register_hook(lambda gradient: run_backward(point, gradient))
        return self.layout.to_engine(site, self.unshown(name, new), x)

    def norm_per_head(self, name: Name) -> list[Edit]:
        """Hooks on a norm whose heads read inputs of their own: (batch, pos, head, …), and called
        for queries, keys and values in turn.

        The engine has one norm for all heads, so that queries, keys and values are computed here
        from the split inputs, and put in the place of its own.
        """
        assert name.layer is not None
        config, block = self.model.config, self.model.weights.blocks[name.layer]
        scale_name, out_name = (self.names[f"blocks.{name.layer}.{word}"] for word in _FIRST_NORM)

        def normed(x: Tensor) -> Tensor:
            scale = self.through(scale_name, Site.Q_IN, norm_scale(config, x))
            centred = norm_at_scale(config, Norm(), x, scale)
            return self.through(out_name, Site.Q_IN, self.unshown(out_name, centred))

        attn, edits = block.attn, []
        for site, out, W, b in (
            (Site.Q_IN, Site.Q, attn.W_Q, attn.b_Q),
            (Site.K_IN, Site.K, attn.W_K, attn.b_K),
            (Site.V_IN, Site.V, attn.W_V, attn.b_V),
        ):
            held: list[Tensor] = []

            def take(x: Tensor, held: list[Tensor] = held) -> Tensor:
                held.append(x)
                return x

            def put(
                x: Tensor, held: list[Tensor] = held, W: Tensor = W, b: Tensor | None = b
            ) -> Tensor:
                projected = torch.einsum("bphd,hde->bphe", normed(held.pop()).to(x.dtype), W)
                return projected if b is None else projected + b

            layer = self.inner(name)
            edits += [Edit(site, layer, take), Edit(out, layer, put)]
        return edits

    # A norm's output: TransformerLens's hook lies before its weight and bias, our site after.

    def shown(self, name: Name, x: Tensor) -> Tensor:
        """An activation as TransformerLens has it."""
        affine = self.affine(name)
        return x if affine is None else (x - affine[1]) / affine[0]

    def unshown(self, name: Name, x: Tensor) -> Tensor:
        """The reverse of `shown`."""
        affine = self.affine(name)
        return x if affine is None else x * affine[0] + affine[1]

    def affine(self, name: Name) -> tuple[Tensor, Tensor | float] | None:
        """The weight and bias between the two; None if they are folded.

        Raises: NotSupported if the weight has zeros, so that it cannot be inverted.
        """
        norm = self.norm(name)
        if norm is None or norm.weight is None:
            return None
        weight = norm.weight + self.model.config.norm_weight_offset
        if bool((weight == 0).any()):
            raise refuse(f"{name.text} of a norm whose weight has zeros", "Load with fold_ln=True")
        return weight, 0.0 if norm.bias is None else norm.bias

    def norm(self, name: Name) -> Norm | None:
        """The norm whose output an activation is; None for the others."""
        weights = self.model.weights
        if name.site is Site.FINAL_NORMED:
            return weights.final_norm
        if name.layer is None or name.site not in (Site.ATTN_NORMED, Site.MLP_NORMED):
            return None
        block = weights.blocks[name.layer]
        return block.attn_norm if name.site is Site.ATTN_NORMED else block.mlp_norm
