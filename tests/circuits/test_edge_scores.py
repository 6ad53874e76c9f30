"""Edge attribution patching: the formula, the integrals' sums, and where gradients are exact."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from casestudy.circuits.contributions import contribution_sites, contributions
from casestudy.circuits.edge_scores import METHODS, attribute_edges
from casestudy.circuits.graph import Graph
from casestudy.engine.packing import Budget
from casestudy.errors import MeasureError
from casestudy.measure.metrics import kl_divergence, metric_of
from casestudy.measure.patching import Pairs
from casestudy.model.decoder import apply_norm, run, unembed
from casestudy.model.model import Model
from casestudy.model.sites import Site
from tests.measure.worlds import contrast, decoder, pairs

FAMILIES = ("gpt2", "linear", "neox", "llama", "gemma2", "olmo2", "gemma3")
LENGTHS = [6, 4, 7]


def world(variant: str, *, seed: int = 0, **options: object) -> Model:
    """A random decoder without a bias that a norm after attention would scale."""
    model = decoder(variant, seed=seed, **options)  # type: ignore[arg-type]
    if all(block.attn_post_norm is None for block in model.weights.blocks):
        return model
    blocks = tuple(
        replace(block, attn=replace(block.attn, b_O=None)) for block in model.weights.blocks
    )
    return replace(model, weights=replace(model.weights, blocks=blocks))


def pair_of(lengths: list[int] = LENGTHS, **options: object) -> Pairs:
    return Pairs(*pairs(lengths, **options))  # type: ignore[arg-type]


def split_gradients(model: Model, graph: Graph, tokens: object, values: object) -> list[Tensor]:
    """(batch, pos, d_model) the gradient at each receiver's own split input, by autograd alone."""
    sites = [Site.Q_IN, Site.K_IN, Site.V_IN, Site.MLP_IN]
    trace = run(model, tokens, keep=[*sites, Site.FINAL_RESID], logits="last", grad=True)  # type: ignore[arg-type]
    wanted = {
        (site, layer): trace[site, layer]
        for layer in range(model.config.n_layers)
        for site in sites
    }
    inputs = [*wanted.values(), trace[Site.FINAL_RESID]]
    total = values.value(trace.logits).sum()  # type: ignore[attr-defined]
    found = dict(zip([*wanted, "logits"], torch.autograd.grad(total, inputs), strict=True))
    out = []
    for receiver in graph.receivers:
        if receiver.kind == "logits":
            out.append(found["logits"])
        elif receiver.kind == "mlp":
            out.append(found[Site.MLP_IN, receiver.layer])
        else:
            out.append(found[Site(f"{receiver.kind}_in"), receiver.layer][:, :, receiver.head])
    return out


@pytest.mark.parametrize("variant", FAMILIES)
def test_parts_and_constant_biases_add_up_to_the_stream(variant: str) -> None:
    model = world(variant)
    graph = Graph(model.config)
    clean, corrupted = pairs([5, 5])
    keep = [*contribution_sites(model, graph), Site.FINAL_RESID]
    left = []
    for tokens in (clean, corrupted):
        trace = run(model, tokens, keep=keep)
        left.append(trace[Site.FINAL_RESID] - contributions(model, graph, trace).sum(1))
    # what is left over is the attention biases: the same everywhere and in every run
    torch.testing.assert_close(left[0], left[1], atol=1e-10, rtol=0)
    torch.testing.assert_close(left[0], left[0][:1, :1].expand_as(left[0]), atol=1e-10, rtol=0)


@pytest.mark.parametrize("variant", FAMILIES)
def test_eap_is_the_difference_times_the_gradient_at_each_split_input(variant: str) -> None:
    model = world(variant)
    graph = Graph(model.config)
    both, values = pair_of(), contrast(len(LENGTHS))
    found = attribute_edges(model, both, values, "eap", direction="noising")
    gradients = split_gradients(model, graph, both.clean, values)
    written = [
        contributions(model, graph, run(model, side, keep=contribution_sites(model, graph)))
        for side in (both.clean, both.corrupted)
    ]
    delta = (written[0] - written[1]) * both.clean.mask[:, None, :, None]
    wanted = torch.stack([torch.einsum("bspd,bpd->s", delta, g) for g in gradients], 1) / 3
    expected = np.where(graph.real, wanted.numpy(), np.nan)
    # of many large terms that cancel, where there is no norm
    np.testing.assert_allclose(found.values, expected, atol=1e-9 * np.nanmax(np.abs(expected)))


@pytest.mark.parametrize("variant", ["gpt2", "neox", "llama"])
def test_neurons_share_what_their_mlp_has(variant: str) -> None:
    """Edges into and out of a split MLP sum to those of the whole one."""
    model = world(variant)
    whole = attribute_edges(model, pair_of(), contrast(3), "eap", direction="noising")
    graph = Graph(model.config, {1: (0, 5, 7)})
    split = attribute_edges(model, pair_of(), contrast(3), "eap", graph=graph, direction="noising")
    place = {str(sender): i for i, sender in enumerate(graph.senders)}
    mine = [i for name, i in place.items() if name.startswith(("mlp 1", "neuron 1."))]
    assert len(mine) == 4
    old = whole.graph.senders.index(graph.senders[place["mlp 1"]])
    columns = [graph.receivers.index(receiver) for receiver in whole.graph.receivers]
    np.testing.assert_allclose(
        np.nansum(split.values[mine][:, columns], 0), np.nan_to_num(whole.values[old]), atol=1e-9
    )
    parts = {str(graph.senders[i]) for i in mine}
    readers = [i for i, receiver in enumerate(graph.receivers) if receiver.node in parts]
    rows = [graph.senders.index(sender) for sender in whole.graph.senders]
    into = whole.graph.receivers.index(next(r for r in graph.receivers if r.node == "mlp 1"))
    np.testing.assert_allclose(
        np.nansum(split.values[rows][:, readers], 1),
        np.nan_to_num(whole.values[:, into]),
        atol=1e-9,
    )


@pytest.mark.parametrize("variant", ["gpt2", "llama", "olmo2"])
def test_ig_inputs_shares_the_whole_difference_among_the_edges_from_the_embeddings(
    variant: str,
) -> None:
    model = world(variant, n_layers=2)
    found = attribute_edges(model, pair_of(), contrast(3), "eap-ig-inputs", steps=40)
    whole = (found.clean - found.corrupted).mean()
    assert abs(whole) > 0.05
    assert abs(found.nodes[0] - whole) < 1e-3


def test_each_method_is_exact_where_the_model_is_linear() -> None:
    """With constant attention and no norm there is one gradient, and edges add up."""
    model = decoder("linear")
    flat = tuple(
        replace(b, attn=replace(b.attn, W_Q=b.attn.W_Q * 0, b_Q=None)) for b in model.weights.blocks
    )
    model = replace(model, weights=replace(model.weights, blocks=flat))
    both, values = pair_of(), contrast(3)
    tables = [
        attribute_edges(model, both, values, m, steps=1, direction="noising").values
        for m in METHODS
    ]
    back = attribute_edges(model, both, values, "eap", direction="denoising").values
    for table in (*tables[1:], back):
        np.testing.assert_allclose(table, tables[0], atol=1e-10)
    # an edge into the logits is worth what it writes there
    clean = attribute_edges(model, both, values, "eap", direction="noising")
    assert abs(np.nansum(clean.values[:, -1]) - (clean.clean - clean.corrupted).mean()) < 1e-10


def test_ig_activations_moves_one_output_at_a_time() -> None:
    """The scores of the last MLP's edge are its own integral: clean logits but for its output."""
    model = world("gpt2")
    both, values = pair_of(), contrast(3)
    steps = 4
    found = attribute_edges(model, both, values, "eap-ig-activations", steps=steps)
    last = model.config.n_layers - 1
    clean, corrupted = (
        run(model, side, keep=[Site.FINAL_RESID, Site.MLP_OUT.at(last)])
        for side in (both.clean, both.corrupted)
    )
    at = torch.arange(3), both.clean.last
    change = (clean[Site.MLP_OUT, last] - corrupted[Site.MLP_OUT, last])[at]
    total = 0.0
    for step in range(steps):
        x = clean[Site.FINAL_RESID][at] - (1 - (step + 0.5) / steps) * change
        x = x.detach().requires_grad_()
        normed = apply_norm(model.config, model.weights.final_norm, x)
        value = values.value(unembed(model.config, model.weights, normed)).sum()
        (gradient,) = torch.autograd.grad(value, x)
        total += float((gradient * change).sum()) / 3 / steps
    assert abs(found["mlp 2->logits"] - total) < 1e-9


def test_scores_do_not_depend_on_chunks_or_on_switched_off_gradients() -> None:
    model, both, values = world("gpt2"), pair_of([6, 4, 7, 5] * 3), contrast(12)
    whole = attribute_edges(model, both, values, "eap-ig-inputs", steps=2, replicates=20)
    torch.set_grad_enabled(False)
    small = attribute_edges(
        model, both, values, "eap-ig-inputs", steps=2, replicates=20, budget=Budget(memory=60_000)
    )
    np.testing.assert_allclose(small.values, whole.values, atol=1e-12)
    assert whole.replicates is not None
    assert small.replicates is not None
    np.testing.assert_allclose(small.replicates, whole.replicates, atol=1e-6)


def test_bootstrap_covers_and_flipped_signs_take_away() -> None:
    model, both, values = world("gpt2"), pair_of([5] * 16), contrast(16)
    found = attribute_edges(model, both, values, "eap", replicates=200, direction="noising")
    low, high = found.interval()
    inside = (low <= found.values) & (found.values <= high)
    assert inside[found.graph.real].mean() > 0.9
    mean, lower, upper = found.stability(10)
    assert 0 < lower <= mean <= upper <= 1
    # a sign per prompt counts its scores the other way round
    first = [1] + [-1] * 15
    flipped = attribute_edges(
        model, both, values, "eap", signs=[first, [1] * 16], direction="noising"
    )
    assert flipped.replicates is None
    assert flipped.flipped is not None
    alone = attribute_edges(model, both[[0]], values[[0]], "eap", direction="noising")
    real = found.graph.real
    np.testing.assert_allclose(flipped.flipped[1][real], found.values[real], atol=1e-5)
    np.testing.assert_allclose(
        flipped.flipped[0][real], (alone.values / 8 - found.values)[real], atol=1e-5
    )


@pytest.mark.slow
def test_any_metric_with_a_gradient_will_do() -> None:
    model, both, values = world("gpt2", n_layers=2), pair_of(), contrast(3)
    whole = attribute_edges(model, both, values, "eap-ig-inputs", steps=40)
    kl = metric_of(model, values, "kl", both.clean)
    assert not isinstance(kl, type(values))
    found = attribute_edges(model, both, kl, "eap-ig-inputs", steps=40)
    assert np.abs(found.clean).max() < 1e-12
    assert abs(found.nodes[0] - (found.clean - found.corrupted).mean()) < 1e-3
    share = attribute_edges(
        model, both, metric_of(model, values, "probability"), "eap-ig-inputs", steps=40
    )
    assert abs(share.nodes[0] - (share.clean - share.corrupted).mean()) < 1e-3
    assert np.nanmax(np.abs(whole.values - share.values)) > 1e-3


def test_a_table_names_the_first_edges() -> None:
    found = attribute_edges(world("gpt2"), pair_of(), contrast(3), "eap", direction="noising")
    rows = found.table(5).rows()
    assert len(rows) == 5
    sizes = [abs(row["score"]) for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    assert found[f"{rows[0]['source']}->{rows[0]['target']}"] == rows[0]["score"]


def test_bad_input_is_named() -> None:
    model, values = world("gpt2"), contrast(3)
    clean, _ = pairs(LENGTHS)
    with pytest.raises(MeasureError, match="identical in prompts 0, 1, 2"):
        attribute_edges(model, Pairs(clean, clean), values)
    with pytest.raises(MeasureError, match="no gradient"):
        attribute_edges(model, pair_of(), lambda logits, rows: logits.detach()[:, 0])
    for steps in (0, 10**6):
        with pytest.raises(MeasureError, match=r"steps\. Allowed: 1 to 1,000"):
            attribute_edges(model, pair_of(), values, steps=steps)
    with pytest.raises(MeasureError, match="3 prompts for a bootstrap"):
        attribute_edges(model, pair_of(), values, replicates=10)
    with pytest.raises(MeasureError, match="equal"):
        attribute_edges(model, Pairs(pairs([5])[0], pairs([6])[1]), contrast(1))
    with pytest.raises(MeasureError, match="b_O"):
        attribute_edges(decoder("olmo2"), pair_of(), values)
    olmo = world("olmo2")
    with pytest.raises(MeasureError, match="neurons as nodes"):
        attribute_edges(olmo, pair_of(), values, graph=Graph(olmo.config, {0: (1,)}))


def test_kl_of_a_run_with_itself_is_zero() -> None:
    logits = torch.randn(3, 11, generator=torch.Generator().manual_seed(0))
    assert kl_divergence(logits)(logits, torch.arange(3)).abs().max() < 1e-12
