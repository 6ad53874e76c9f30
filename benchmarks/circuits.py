"""Circuits: casestudy against its own passes, hooked evaluations and TransformerLens 4.3.

    make bench-circuits

32 pairs x 15 tokens that differ from position 2 on, or in the last token only. The cases:

- `eap`, `eap-ig`: `attribute_edges` against nothing but the passes it cannot do without, by the
  same engine: the clean and the corrupted run and one backward pass; or both runs and, at each of
  5 steps, a run and a backward pass. The ratio is theirs / ours: 1 would be scores for nothing.
- `curve`: faithfulness at ten sizes, self-check included, against ten hooked evaluations: q, k and
  v inputs split, every head's result kept, the corrupted run's outputs cached once for all ten, and
  each receiver's input rebuilt by one product of a circuit's mask with all senders' differences,
  as is usual. Circuits are the first edges by EAP, the same for both sides. A turn of theirs is two
  of the ten, scaled, and other two the next time: five turns compare all ten.
- `exact`: `patch_edges` on 40 edges drawn at random, self-check included, against one hooked
  forward pass per edge; a turn of theirs is 8 of the edges, scaled.
- `eap-tool`: our EAP with the gradient at the corrupted run against TransformerLens's
  `attribution_patch` at edge granularity. Theirs takes pairs one by one and scores each position on
  its own; its sums over positions are our scores. A turn of theirs is 2 pairs, scaled.
- `faithfulness-tool`: one circuit (the first 90 % of the edges), evaluated on all pairs, against
  TransformerLens's `faithfulness`, whose own breakdown by class takes four more passes. Theirs
  is one pair, scaled.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from common import ROOT, Work, given, main

D_VOCAB, LAYERS, HEADS = 50257, 12, 12
PAIRS, LENGTH, STEPS = 32, 15, 5
EDGES, HOOKED, POINTS = 40, 8, 2
TOOL_PAIRS, TOOL_SHARE = 2, 0.9
FIRST = {"differ-from-2": 2, "differ-last": LENGTH - 1}
METHODS = {"eap": "eap", "eap-ig": "eap-ig-inputs"}
KINDS = ("eap", "eap-ig", "curve", "exact")
CASES = [f"{first}/{kind}" for first in FIRST for kind in KINDS]
CASES += ["differ-from-2/eap-tool", "differ-from-2/faithfulness-tool"]
OWN = [case for case in CASES if case.split("/")[1] in METHODS]


def inputs(case: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random clean and corrupted prompts that first differ where the case says, and answers."""
    rng = np.random.default_rng(0)
    clean = rng.integers(D_VOCAB, size=(PAIRS, LENGTH))
    corrupted = clean.copy()
    first = FIRST[case.split("/")[0]]
    step = 1 + rng.integers(D_VOCAB - 1, size=(PAIRS, LENGTH - first))
    corrupted[:, first:] = (clean[:, first:] + step) % D_VOCAB
    answers = np.stack([rng.choice(D_VOCAB, 2, replace=False) for _ in range(PAIRS)])
    return clean, corrupted, answers


class Ours:
    """The model and the pairs, as casestudy has them."""

    def __init__(self, folder: Path, case: str) -> None:
        import torch

        import casestudy as cs
        from casestudy.behaviour.contrast import Contrast
        from casestudy.measure.patching import Pairs
        from casestudy.model.tokens import Tokens

        self.model = cs.load(folder, device="cpu")
        clean, corrupted, answers = inputs(case)
        self.pairs = Pairs(Tokens.of(clean.tolist()), Tokens.of(corrupted.tolist()))
        signs = torch.tensor([1.0, -1.0], dtype=torch.float64).expand(PAIRS, 2)
        names = tuple(map(str, range(PAIRS)))
        zero = torch.zeros(PAIRS, dtype=torch.float64)
        self.contrast = Contrast("pairs", torch.tensor(answers), signs, zero, names, names)

    def eap(self, n: int = PAIRS, **how: Any) -> Any:
        """Scores of the first n pairs."""
        from casestudy.circuits.edge_scores import attribute_edges

        rows = list(range(n))
        return attribute_edges(self.model, self.pairs[rows], self.contrast[rows], **how)


def shared(folder: Path, case: str) -> dict[str, np.ndarray]:
    """The circuits both sides evaluate, or the edges both sides patch: (…, sender, receiver)."""
    from casestudy.circuits.curves import curve_circuits
    from casestudy.circuits.graph import Graph

    side = Ours(folder, case)
    graph = Graph(side.model.config)
    match case.split("/")[1]:
        case "curve":
            scores = side.eap(method="eap", direction="noising")
            circuits = curve_circuits(graph, scores.values)
            return {"scores": scores.values, "masks": np.stack([c.mask for c in circuits])}
        case "faithfulness-tool":
            scores = side.eap(method="eap", direction="noising")
            circuit = graph.top(scores.values, round(TOOL_SHARE * graph.n_edges)).pruned()
            return {"masks": circuit.mask[None]}
        case "exact":
            drawn = np.random.default_rng(0).choice(np.flatnonzero(graph.real), EDGES, False)
            return {"edges": np.stack(np.unravel_index(drawn, graph.real.shape), 1)}
    return {}


def ours(folder: Path, case: str) -> Work:
    """What a person would call."""
    from casestudy.circuits.agreement import EdgeScores
    from casestudy.circuits.curves import curve
    from casestudy.circuits.edge_patching import patch_edges
    from casestudy.circuits.evaluate import evaluate_circuit
    from casestudy.circuits.graph import Circuit, Graph

    side, shared = Ours(folder, case), given()
    graph, kind = Graph(side.model.config), case.split("/")[1]
    asked = (side.model, side.pairs, side.contrast)

    def attribution() -> dict[str, np.ndarray]:
        found = side.eap(method=METHODS[kind], direction="noising", steps=STEPS)
        return {"clean": found.clean, "corrupted": found.corrupted}

    def points() -> dict[str, np.ndarray]:
        none = np.zeros(0)
        scores = EdgeScores(graph, "eap", shared["scores"], PAIRS, none, none)
        return {"values": curve(*asked, scores).evaluation.values}

    def exact() -> dict[str, np.ndarray]:
        mask = np.zeros_like(graph.real)
        mask[tuple(shared["edges"].T)] = True
        found = patch_edges(*asked, mask, direction="noising")
        return {"values": found.values[tuple(shared["edges"][:HOOKED].T)]}

    def tool() -> dict[str, np.ndarray]:
        side.eap(method="eap", direction="denoising")
        return {"scores": compared}

    def one() -> dict[str, np.ndarray]:
        found = evaluate_circuit(*asked, [Circuit(graph, shared["masks"][0])])
        return {"values": found.values[0, :1]}

    if kind == "eap-tool":
        few = side.eap(TOOL_PAIRS, method="eap", direction="denoising")
        compared = few.values[graph.real]
    kinds: dict[str, Work] = {"curve": points, "exact": exact, "eap-tool": tool}
    return (kinds | {"faithfulness-tool": one}).get(kind, attribution)


def passes(folder: Path, case: str) -> Work:
    """The forward and backward passes that attribution cannot do without, and nothing else."""
    import torch

    import casestudy as cs
    from casestudy.engine.readout import Readout
    from casestudy.model.edits import Edit
    from casestudy.model.sites import Site

    side = Ours(folder, case)
    readout = Readout(side.model, side.contrast, PAIRS)
    rows = torch.arange(PAIRS)
    keep = [Site.RESID_PRE.at(0), Site.FINAL_RESID.at(last=True)]
    clean, corrupted = side.pairs.clean, side.pairs.corrupted

    def forward(tokens: Any, grad: bool, edit: tuple[Edit, ...] = ()) -> tuple[Any, Any]:
        trace = cs.run(side.model, tokens, keep=keep, edit=edit, grad=grad)
        with torch.set_grad_enabled(grad):
            value = readout(trace.last(Site.FINAL_RESID), rows)
        embeddings = trace[Site.RESID_PRE, 0]
        if grad:
            torch.autograd.grad(value, embeddings, torch.ones_like(value))
        return value.detach().numpy(), embeddings.detach()

    def work() -> dict[str, np.ndarray]:
        integrated = case.endswith("ig")
        (a, x), (b, y) = forward(clean, not integrated), forward(corrupted, False)
        for step in range(STEPS if integrated else 0):
            point = (step + 0.5) / STEPS
            forward(clean, True, (Edit.replace(Site.RESID_PRE, 0, y + point * (x - y)),))
        return {"clean": a, "corrupted": b}

    return work


def theirs(folder: Path, case: str) -> Work:
    """Hooks on TransformerLens, or its own tools."""
    if case in OWN:
        return passes(folder, case)
    import torch
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers(str(folder), device="cpu")
    model.enable_compatibility_mode(disable_warnings=True)
    clean, corrupted, answers = (torch.tensor(x) for x in inputs(case))
    kind = case.split("/")[1]
    if kind.endswith("tool"):
        return {"eap-tool": attribution_tool, "faithfulness-tool": faithfulness_tool}[kind](
            model, clean, corrupted, answers
        )
    model.set_use_split_qkv_input(True)
    model.set_use_attn_result(True)
    model.set_use_hook_mlp_in(True)
    hooked, shared = Hooked(model), given()

    def difference(logits: torch.Tensor) -> np.ndarray:
        found = logits[:, -1].gather(1, answers)
        return (found[:, 0] - found[:, 1]).numpy()

    def points() -> dict[str, np.ndarray]:
        for i in turns[:POINTS]:
            values[i] = difference(hooked.circuit(clean, ablated, masks[i]))
        turns[:] = turns[POINTS:] + turns[:POINTS]
        return {"values": values, "_work": np.array(POINTS / len(masks))}

    with torch.no_grad():  # cached beforehand, and not timed
        ablated = hooked.outputs(corrupted)
        if kind == "exact":
            change = ablated - hooked.outputs(clean)
            base = difference(model(clean)).mean()
            model.set_use_attn_result(False)  # only the cached runs need it
        else:
            masks = torch.tensor(shared["masks"], dtype=torch.float32)
            values = np.full((len(masks), PAIRS), np.nan)
            turns = list(range(len(masks)))

    def exact() -> dict[str, np.ndarray]:
        found = [
            base - difference(hooked.edge(clean, change[:, :, s], int(r))).mean()
            for s, r in shared["edges"][:HOOKED]
        ]
        return {"values": np.stack(found), "_work": np.array(HOOKED / EDGES)}

    return exact if kind == "exact" else points


class Hooked:
    """Edge ablation and edge patching by hooks; senders and receivers in casestudy's order."""

    def __init__(self, model: Any) -> None:
        self.model = model
        per_layer = 3 * HEADS + 1
        self.receivers: list[tuple[str, int, int, int]] = []  # hook, first, how many, senders read
        for layer in range(LAYERS):
            before = 1 + layer * (HEADS + 1)
            for i, letter in enumerate("qkv"):
                name = f"blocks.{layer}.attn.hook_{letter}_input"
                self.receivers.append((name, layer * per_layer + i * HEADS, HEADS, before))
            name = f"blocks.{layer}.hook_mlp_in"
            self.receivers.append((name, (layer + 1) * per_layer - 1, 1, before + HEADS))
        name = f"blocks.{LAYERS - 1}.hook_resid_post"
        self.receivers.append((name, LAYERS * per_layer, 1, 1 + LAYERS * (HEADS + 1)))

    def writers(self, tell: Callable[[slice, Any], None]) -> list[tuple[str, Any]]:
        """Hooks that tell what senders write, (batch, pos, sender, d_model)."""

        def at(place: slice, whole: bool) -> Any:
            def hook(x: Any, hook: Any) -> None:
                tell(place, x[:, :, None] if whole else x)

            return hook

        # the stream before the first block: token and position embeddings together
        found = [("blocks.0.hook_resid_pre", at(slice(0, 1), True))]
        for layer in range(LAYERS):
            first = 1 + layer * (HEADS + 1)
            found.append(
                (f"blocks.{layer}.attn.hook_result", at(slice(first, first + HEADS), False))
            )
            last = slice(first + HEADS, first + HEADS + 1)
            found.append((f"blocks.{layer}.hook_mlp_out", at(last, True)))
        return found

    def outputs(self, tokens: Any) -> Any:
        """What every sender writes in a run."""
        import torch

        d_model = self.model.cfg.d_model
        out = torch.empty(*tokens.shape, 1 + LAYERS * (HEADS + 1), d_model)

        def tell(place: slice, x: Any) -> None:
            out[:, :, place] = x

        self.model.run_with_hooks(tokens, fwd_hooks=self.writers(tell))
        return out

    def circuit(self, tokens: Any, ablated: Any, mask: Any) -> Any:
        """The logits with every edge outside the mask carrying what is ablated."""
        import torch

        difference = torch.empty_like(ablated)

        def tell(place: slice, x: Any) -> None:
            torch.sub(ablated[:, :, place], x, out=difference[:, :, place])

        def rebuild(first: int, n: int, read: int) -> Any:
            outside = 1 - mask[:read, first : first + n]

            def hook(x: Any, hook: Any) -> Any:
                change = torch.einsum("bpsd,sr->bprd", difference[:, :, :read], outside)
                return x + (change if x.ndim == 4 else change[:, :, 0])

            return hook

        hooks = self.writers(tell)
        hooks += [(name, rebuild(*place)) for name, *place in self.receivers]
        return self.model.run_with_hooks(tokens, fwd_hooks=hooks)

    def edge(self, tokens: Any, change: Any, receiver: int) -> Any:
        """The logits with one receiver reading a changed stream."""
        name, first, _, _ = next(r for r in self.receivers if r[1] <= receiver < r[1] + r[2])

        def hook(x: Any, hook: Any) -> Any:
            if x.ndim == 3:
                return x + change
            x = x.clone()
            x[:, :, receiver - first] += change
            return x

        self.model.set_use_split_qkv_input("_input" in name)  # the slower pass only where needed
        return self.model.run_with_hooks(tokens, fwd_hooks=[(name, hook)])


def place(node: Any, reads: bool) -> int:
    """Where casestudy's graph has one of TransformerLens's nodes."""
    if node.kind in ("embed", "logits"):
        return LAYERS * (3 * HEADS + 1) if reads else 0
    if not reads:
        return 1 + node.layer * (HEADS + 1) + (HEADS if node.head is None else node.head)
    kinds = ("q_input", "k_input", "v_input")
    within = 3 * HEADS if node.head is None else kinds.index(node.kind) * HEADS + node.head
    return node.layer * (3 * HEADS + 1) + within


def attribution_tool(model: Any, clean: Any, corrupted: Any, answers: Any) -> Work:
    """TransformerLens's own EAP, its positions summed."""
    import torch
    from transformer_lens.tools.analysis import attribution_patching as tools

    config = tools.EdgeAttributionConfig(granularity="edge")

    def work() -> dict[str, np.ndarray]:
        scores = np.full((1 + LAYERS * (HEADS + 1), LAYERS * (3 * HEADS + 1) + 1), np.nan)
        for i in range(TOOL_PAIRS):
            one = slice(i, i + 1)
            # its metric is told of no prompt
            with torch.enable_grad():
                found = tools.attribution_patch(
                    model, clean[one], corrupted[one], metric_of(answers[i]), config
                )
            for (writer, reader), score in found.edge_scores.items():
                at = place(writer, False), place(reader, True)
                scores[at] = np.nan_to_num(scores[at]) + score / TOOL_PAIRS
        return {"scores": scores[~np.isnan(scores)], "_work": np.array(TOOL_PAIRS / PAIRS)}

    return work


def metric_of(answers: Any) -> Callable[[Any], Any]:
    """One prompt's logit difference."""
    return lambda logits: logits[0, -1, answers[0]] - logits[0, -1, answers[1]]


def faithfulness_tool(model: Any, clean: Any, corrupted: Any, answers: Any) -> Work:
    """TransformerLens's own evaluation of a circuit, on one pair."""
    import torch
    from transformer_lens.tools.analysis import attribution_patching as tools

    metric, mask = metric_of(answers[0]), given()["masks"][0]
    config = tools.EdgeAttributionConfig(granularity="edge")
    with torch.enable_grad():  # once, for its list of edges
        every = tools.attribution_patch(model, clean[:1], corrupted[:1], metric, config).edge_scores
    circuit = [edge for edge in every if mask[place(edge[0], False), place(edge[1], True)]]

    def work() -> dict[str, np.ndarray]:
        found = tools.faithfulness(model, clean[:1], corrupted[:1], metric, circuit)
        span = found.full_metric - found.corrupt_metric
        value = found.corrupt_metric + found.recovered * span
        return {"values": np.array([value]), "_work": np.array(1 / PAIRS)}

    return work


if __name__ == "__main__":
    results = ROOT / "benchmarks" / "results" / "circuits.json"
    main(__file__, ours, theirs, CASES, results, OWN, shared)
