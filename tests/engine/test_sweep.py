"""The sweep equals full forward passes, cell by cell, whatever the model, plan and batch."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from casestudy.engine import sweep as engine
from casestudy.engine.cells import SITES, Cell, Place, Variant, first_differences
from casestudy.engine.entries import Runs
from casestudy.engine.packing import Budget, Progress
from casestudy.engine.sweep import sweep
from casestudy.errors import MeasureError, SiteError
from casestudy.model.decoder import run
from casestudy.model.edits import Edit
from casestudy.model.model import Model
from casestudy.model.sites import Site
from casestudy.model.tokens import Tokens
from casestudy.model.weights import map_tensors
from casestudy.results.stats import ratio_of_means
from tests.measure.worlds import (
    D_MLP,
    D_MODEL,
    D_VOCAB,
    N_HEADS,
    VARIANTS,
    contrast,
    decoder,
    pairs,
)

ALL = 10**6


def sites_of(model: Model) -> list[Site]:
    lacking = set()
    if model.config.parallel:
        lacking.add(Site.RESID_MID)
    if model.weights.W_pos is None:
        lacking.add(Site.POS_EMBED)
    return sorted(SITES - lacking, key=lambda site: site.value)


def every_cell(model: Model, base: Tokens) -> list[Cell]:
    """Every site and layer, at several places, for all heads and for single ones."""
    generator = torch.Generator().manual_seed(3)
    plane = torch.linalg.qr(torch.randn(D_MODEL, 2, generator=generator, dtype=torch.float64))[0]
    cells = []
    for site in sites_of(model):
        for layer in range(model.config.n_layers) if site.layered else [None]:
            for place in (Place.everywhere(base), Place.last(base), Place.at(2, base)):
                cells.append(Cell(site, layer, place))
                if "head" in site.axes:
                    cells.append(Cell(site, layer, place, head=N_HEADS - 1))
                if "kv_head" in site.axes:
                    cells.append(Cell(site, layer, place, head=0))
                if site is Site.MLP_POST:
                    cells.append(Cell(site, layer, place, neuron=4))
                if site in (Site.RESID_PRE, Site.ATTN_OUT):
                    cells.append(Cell(site, layer, place, subspace=plane))
    return cells


def by_hand(model: Model, base: Tokens, source: Tokens, cell: Cell, b: int) -> Tensor:
    """Last-position logits of one prompt alone with one edit, written without the engine."""
    theirs = run(model, source[[b]], keep=[cell.site]).values[cell.site, cell.layer]
    here, there = list(cell.place.base[b]), list(cell.place.source[b])

    def put(x: Tensor) -> Tensor:
        x = x.clone()
        if cell.site is Site.PATTERN:
            for head in range(N_HEADS) if cell.head is None else [cell.head]:
                x[0, head, here] = theirs[0, head, there]
        elif cell.head is not None:
            x[0, here, cell.head] = theirs[0, there, cell.head]
        elif cell.neuron is not None:
            x[0, here, cell.neuron] = theirs[0, there, cell.neuron]
        else:
            x[0, here] = theirs[0, there]
        return x

    trace = run(model, base[[b]], edit=[Edit(cell.site, cell.layer, put)], logits="last")
    assert trace.logits is not None
    return trace.logits


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_site_equals_the_plain_forward_in_every_architecture(variant: str) -> None:
    model = decoder(variant)
    clean, corrupted = pairs([5, 7, 3], seed=1, first=[2, 0, 1])
    found = sweep(
        model, corrupted, clean, every_cell(model, corrupted), contrast(3), budget=Budget(check=ALL)
    )
    assert found.error["gap"] <= found.error["bound"] == 1e-9
    assert found.error["checked"] == (~found.known & ~np.isnan(found.values)).sum() > 100


@settings(max_examples=60)
@given(data=st.data())
def test_any_cell_equals_a_run_of_its_prompt_alone(data: st.DataObject) -> None:
    model = decoder(data.draw(st.sampled_from(sorted(VARIANTS))), n_layers=2)
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    clean, corrupted = pairs(lengths, seed=data.draw(st.integers(0, 99)))
    site = data.draw(st.sampled_from(sites_of(model)))
    layer = data.draw(st.integers(0, 1)) if site.layered else None
    where = tuple(
        tuple(sorted(data.draw(st.sets(st.integers(0, n - 1), max_size=n)))) for n in lengths
    )
    head = neuron = None
    if "head" in site.axes:
        head = data.draw(st.sampled_from([None, *range(N_HEADS)]))
    elif "kv_head" in site.axes:
        head = data.draw(st.sampled_from([None, *range(model.config.n_kv_heads)]))
    elif site is Site.MLP_POST:
        neuron = data.draw(st.sampled_from([None, *range(D_MLP)]))
    cell = Cell(site, layer, Place("some", where, where), head, neuron)
    weighing = contrast(len(lengths))
    values = sweep(model, corrupted, clean, [cell], weighing, budget=Budget(check=0)).values[0]
    for b in range(len(lengths)):
        if not where[b]:
            assert np.isnan(values[b])
            continue
        alone = weighing[[b]].value(by_hand(model, corrupted, clean, cell, b))
        assert values[b] == pytest.approx(float(alone), abs=1e-9)


def test_roles_align_prompts_of_unequal_length() -> None:
    model = decoder("llama")
    clean, corrupted = pairs([6, 5], seed=2, first=[1, 1])
    longer = Tokens.of([[*clean.rows()[0], 3, 4], clean.rows()[1]])
    place = Place("subject", ((1, 3), (2,)), ((2, 6), (1,)))
    cells = [
        Cell(site, 1, place) for site in (Site.RESID_PRE, Site.K, Site.Q, Site.Z, Site.MLP_OUT)
    ]
    found = sweep(model, corrupted, longer, cells, contrast(2), budget=Budget(check=ALL))
    for c, cell in enumerate(cells):
        for b in range(2):
            alone = contrast(2)[[b]].value(by_hand(model, corrupted, longer, cell, b))
            assert found.values[c, b] == pytest.approx(float(alone), abs=1e-9)


def test_self_patching_changes_nothing() -> None:
    model = decoder()
    _, base = pairs([5, 7])
    own = run(model, base, keep=list(sites_of(model)))

    def itself(site: Site, layer: int | None, prompts: Tensor, positions: Tensor) -> Tensor:
        kept = own.values[site, layer]
        kept = kept.transpose(1, 2) if site is Site.PATTERN else kept
        return kept[prompts, positions]

    found = sweep(model, base, itself, every_cell(model, base), contrast(2), budget=Budget(check=0))
    there = ~np.isnan(found.values)
    np.testing.assert_allclose(
        found.values[there], np.broadcast_to(found.base, there.shape)[there], atol=1e-12
    )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("layer", range(3))
def test_the_whole_stream_of_a_layer_gives_the_other_run(variant: str, layer: int) -> None:
    model = decoder(variant)
    clean, corrupted = pairs([5, 7, 4])
    cell = Cell(Site.RESID_PRE, layer, Place.everywhere(corrupted))
    found = sweep(model, corrupted, clean, [cell], contrast(3))
    assert found.other is not None
    np.testing.assert_allclose(found.values[0], found.other, atol=1e-12)
    np.testing.assert_allclose(found.normalised(), [1.0], atol=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_heads_together_are_the_attention_output(variant: str) -> None:
    model = decoder(variant)
    clean, corrupted = pairs([5, 7])
    place = Place.everywhere(corrupted)
    cells = [Cell(site, layer, place) for site in (Site.Z, Site.ATTN_OUT) for layer in range(3)]
    values = sweep(model, corrupted, clean, cells, contrast(2)).values
    np.testing.assert_allclose(values[:3], values[3:], atol=1e-12)


def test_noising_and_denoising_agree_where_the_model_is_linear() -> None:
    model = decoder("linear")
    clean, corrupted = pairs([5, 7], first=[0, 3])
    # above the last attention everything is linear in this model
    cells = [
        Cell(site, 2, Place.last(clean)) for site in (Site.ATTN_OUT, Site.RESID_MID, Site.MLP_OUT)
    ]
    denoised = sweep(model, corrupted, clean, cells, contrast(2))
    noised = sweep(model, clean, corrupted, cells, contrast(2))
    gained, lost = denoised.values - denoised.base, noised.base - noised.values
    np.testing.assert_allclose(gained, lost, atol=1e-10)
    assert np.abs(gained).min() > 1e-3


def test_cells_before_the_first_difference_are_known_and_right() -> None:
    model = decoder()
    clean, corrupted = pairs([6, 6], first=[2, 5])
    assert first_differences(corrupted, clean) == [2, 5]
    cells = [Cell(Site.RESID_PRE, 1, Place.at(p, corrupted)) for p in range(6)]
    found = sweep(model, corrupted, clean, cells, contrast(2))
    assert found.known.tolist() == [[p < 2, p < 5] for p in range(6)]
    assert (found.values[found.known] == np.broadcast_to(found.base, (6, 2))[found.known]).all()
    for c, b in np.argwhere(found.known).tolist():
        alone = contrast(2)[[b]].value(by_hand(model, corrupted, clean, cells[c], b))
        assert found.values[c, b] == pytest.approx(float(alone), abs=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_other_run_may_be_climbed_from_a_shared_prefix(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = decoder(variant)
    clean, corrupted = pairs([5, 9, 7, 1], seed=6, first=[4, 5, 5, 0])
    cells = [
        cell
        for cell in every_cell(model, corrupted)
        if cell.site not in (Site.PATTERN, Site.MLP_POST)
    ]
    climbs: list[int] = []
    shared = engine._Sweeping.source_after_prefix
    monkeypatch.setattr(
        engine._Sweeping,
        "source_after_prefix",
        lambda self, *rest: (climbs.append(1), shared(self, *rest))[1],
    )
    found = sweep(model, corrupted, clean, cells, contrast(4), budget=Budget(check=0))
    # a pattern has to be run for plainly, and the other cells with it
    whole = Cell(Site.PATTERN, 0, Place.everywhere(corrupted))
    plain = sweep(model, corrupted, clean, [*cells, whole], contrast(4), budget=Budget(check=0))
    assert climbs == [1]
    np.testing.assert_allclose(found.values, plain.values[:-1], atol=1e-12)
    assert found.other is not None
    assert plain.other is not None
    np.testing.assert_allclose(found.other, plain.other, atol=1e-12)


def test_in_the_last_layer_only_the_last_position_reaches_the_logits() -> None:
    model = decoder()
    clean, corrupted = pairs([6], first=[0])
    cells = [Cell(Site.ATTN_OUT, -1, Place.at(p, corrupted)) for p in range(6)]
    assert sweep(model, corrupted, clean, cells, contrast(1)).known[:, 0].tolist() == [True] * 5 + [
        False
    ]


@pytest.mark.parametrize("variant", ["gpt2", "llama", "gemma2"])
def test_a_cell_does_not_depend_on_batch_plan_order_or_neighbours(variant: str) -> None:
    model = decoder(variant, dtype=torch.float32)
    clean, corrupted = pairs([5, 9, 3, 7], seed=4, first=[1, 0, 2, 3])
    weighing = contrast(4)
    cells = every_cell(model, corrupted)
    whole = sweep(model, corrupted, clean, cells, weighing).values
    scale = np.nanmax(np.abs(whole))

    def same(values: np.ndarray, expected: np.ndarray) -> None:
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-5 * scale)

    tight = sweep(model, corrupted, clean, cells, weighing, budget=Budget(memory=1_500_000))
    assert sum(len(climbs) for _, climbs in tight.plan.blocks) > 2
    same(tight.values, whole)

    order = [2, 0, 3, 1]
    moved = sweep(
        model, corrupted[order], clean[order], every_cell(model, corrupted[order]), weighing[order]
    )
    same(moved.values, whole[:, order])

    one = every_cell(model, corrupted[[3]])
    alone = sweep(model, corrupted[[3]], clean[[3]], one, weighing[[3]]).values
    same(alone, whole[:, [3]])

    shuffled = list(range(len(cells)))
    random.Random(0).shuffle(shuffled)
    shuffled = shuffled[: len(cells) // 3]
    fewer = sweep(model, corrupted, clean, [cells[i] for i in shuffled], weighing).values
    same(fewer, whole[shuffled])


def test_the_same_plan_gives_the_same_numbers() -> None:
    model = decoder(dtype=torch.float32)
    clean, corrupted = pairs([5, 9])
    cells = every_cell(model, corrupted)
    first = sweep(model, corrupted, clean, cells, contrast(2))
    again = sweep(model, corrupted, clean, cells, contrast(2))
    assert first.plan == again.plan
    np.testing.assert_array_equal(first.values, again.values)
    assert first.plan.as_dict()["threads"] == torch.get_num_threads()


def test_any_function_of_the_logits_can_be_the_metric() -> None:
    model = decoder()
    clean, corrupted = pairs([5, 7])
    target = run(model, clean, logits="last").logits
    assert target is not None

    def divergence(logits: Tensor, prompts: Tensor) -> Tensor:
        wanted = target[prompts].log_softmax(-1)
        return (wanted.exp() * (wanted - logits.log_softmax(-1))).sum(-1)

    cells = every_cell(model, corrupted)
    found = sweep(model, corrupted, clean, cells, divergence, budget=Budget(check=ALL))
    assert found.other is not None
    assert np.abs(found.other).max() < 1e-12 < found.base.min()
    assert found.error["gap"] < 1e-9


def test_a_cell_can_bring_its_own_values() -> None:
    model = decoder("llama")
    _, base = pairs([5, 7])
    generator = torch.Generator().manual_seed(0)
    place = Place.everywhere(base)

    def new(*shape: int) -> Tensor:
        return torch.randn(2, 7, *shape, generator=generator, dtype=torch.float64)

    cells = [
        Cell(Site.RESID_PRE, 1, place, values=new(D_MODEL)),
        Cell(Site.Q, 1, place, head=2, values=new(4)),
        Cell(Site.K, 0, place, head=1, values=new(4)),
        Cell(Site.V, 2, place, head=0, values=new(4)),
        Cell(Site.Z, 0, place, head=3, values=new(4)),
        Cell(Site.MLP_POST, 1, place, neuron=5, values=new()),
        Cell(Site.MLP_OUT, 2, place, values=new(D_MODEL)),
    ]
    found = sweep(model, base, None, cells, contrast(2), budget=Budget(check=ALL))
    assert found.error["gap"] < 1e-9
    assert found.other is None
    assert (np.abs(found.values - found.base) > 1e-6).all()
    with pytest.raises(MeasureError, match="no other run"):
        found.normalised()


def test_a_failed_check_is_loud(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder(dtype=torch.float32)
    clean, corrupted = pairs([5, 7], first=[0, 0])
    cells = [Cell(Site.RESID_PRE, 0, Place.everywhere(corrupted))]
    right = engine.Climb.climb
    monkeypatch.setattr(engine.Climb, "climb", lambda self: right(self) + 2e-4)
    with pytest.raises(MeasureError, match="differs from full forward passes"):
        sweep(model, corrupted, clean, cells, contrast(2))


@pytest.mark.parametrize("variant", ["gpt2", "llama"])
def test_cells_swept_in_parts_have_the_values_and_checks_of_each_part_alone(variant: str) -> None:
    model = decoder(variant)
    base, source = pairs([6, 4, 7], first=[1, 2, 0])
    answer = contrast(len(base))
    sites = (Site.RESID_PRE, Site.ATTN_OUT, Site.Z)
    places = [Place.at(p, base) for p in range(int(base.lengths.max()))]
    parts = [
        [Cell(site, layer, place) for layer in range(model.config.n_layers) for place in places]
        for site in sites
    ]
    told: list[Progress] = []
    found = engine.sweeps(
        model, base, source, parts, answer, budget=Budget(check=5), progress=told.append
    )
    for part, one in zip(parts, found, strict=True):
        alone = sweep(model, base, source, part, answer, budget=Budget(check=5))
        assert not isinstance(one, MeasureError)
        assert [cell.site for cell in one.cells] == [cell.site for cell in part]
        np.testing.assert_allclose(one.values, alone.values, atol=1e-9)
        np.testing.assert_array_equal(one.known, alone.known)
        assert one.error["checked"] == alone.error["checked"] == 5
    absent = sum(not here for part in parts for cell in part for here in cell.place.base)
    assert told[-1].done == told[-1].total == sum(map(len, parts)) * len(base) - absent


def test_a_failed_check_of_one_part_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder()
    base, source = pairs([6, 4, 7], first=[1, 2, 0])
    parts = [[Cell(site, 0, Place.everywhere(base))] for site in (Site.ATTN_OUT, Site.MLP_OUT)]
    plainly = engine._Sweeping.plainly

    def wrong(sweeping: engine._Sweeping, runs: Runs, sample: Sequence[Variant]) -> Any:
        off = [sweeping.task.cells[v.cell].site is Site.MLP_OUT for v in sample]
        return plainly(sweeping, runs, sample) + np.array(off)

    monkeypatch.setattr(engine._Sweeping, "plainly", wrong)
    good, bad = engine.sweeps(model, base, source, parts, contrast(len(base)))
    assert not isinstance(good, MeasureError)
    assert good.error["gap"] <= good.error["bound"]
    assert isinstance(bad, MeasureError)
    assert "differs from full forward passes" in str(bad)


def test_progress_counts_every_cell_of_every_prompt() -> None:
    model = decoder()
    clean, corrupted = pairs([5, 7], first=[1, 2])
    cells = [Cell(Site.RESID_PRE, 0, Place.at(p, corrupted)) for p in range(5)]
    seen: list[tuple[int, int]] = []

    def tell(progress: Progress) -> None:
        seen.append((progress.done, progress.total))

    sweep(model, corrupted, clean, cells, contrast(2), progress=tell)
    assert seen[0] == (3, 10)
    assert seen[-1] == (10, 10)


def test_a_watcher_sees_each_climb_and_may_end_the_sweep() -> None:
    model = decoder()
    clean, corrupted = pairs([5, 7], first=[1, 2])
    cells = [Cell(Site.RESID_PRE, 0, Place.at(p, corrupted)) for p in range(5)]
    seen: list[engine.Sweep] = []
    whole = sweep(
        model, corrupted, clean, cells, contrast(2), budget=Budget(rows=8), watch=seen.append
    )
    there = [~np.isnan(found.values) for found in seen]
    assert len(seen) > 2
    assert all(np.all(a <= b) for a, b in itertools.pairwise(there))
    assert not there[0].all()
    for found, known in zip(seen, there, strict=True):
        np.testing.assert_array_equal(found.values[known], whole.values[known])
    np.testing.assert_array_equal(seen[-1].values, whole.values)

    class Enough(Exception):
        pass

    def stop(found: engine.Sweep) -> None:
        raise Enough

    seen.clear()
    with pytest.raises(Enough):
        sweep(model, corrupted, clean, cells, contrast(2), budget=Budget(rows=8), watch=stop)


def test_undefined_where_the_two_runs_do_not_differ() -> None:
    values = np.array([[1.0, 2.0], [np.nan, np.nan]])
    base, other = np.array([1.0, 3.0]), np.array([3.0, 1.0])
    assert np.isnan(ratio_of_means(values, base, other)).all()
    np.testing.assert_allclose(ratio_of_means(values, base, other + 1), [-0.5, np.nan])


class TestBadInput:
    def test_identical_pairs(self) -> None:
        clean, _ = pairs([5, 7])
        cell = Cell(Site.RESID_PRE, 0, Place.everywhere(clean))
        with pytest.raises(MeasureError, match="identical in prompts 0, 1"):
            sweep(decoder(), clean, clean, [cell], contrast(2))

    def test_pairs_of_unequal_length(self) -> None:
        clean, corrupted = pairs([5, 7])
        shorter = Tokens.of([row[:4] for row in clean.rows()])
        cell = Cell(Site.RESID_PRE, 0, Place.everywhere(corrupted))
        with pytest.raises(SiteError, match="positions 0 to 3"):
            sweep(decoder(), corrupted, shorter, [cell], contrast(2))
        with pytest.raises(MeasureError, match="2 prompts and 1 partners"):
            sweep(decoder(), corrupted, clean[[0]], [], contrast(2))
        place = Place.last(corrupted, shorter)
        with pytest.raises(MeasureError, match="patterns of unequal lengths"):
            sweep(decoder(), corrupted, shorter, [Cell(Site.PATTERN, 0, place)], contrast(2))

    @pytest.mark.parametrize(
        ("cell", "message"),
        [
            ({"site": Site.ATTN_SCORES, "layer": 0}, "cannot replace attn_scores"),
            ({"site": Site.RESID_PRE, "layer": None}, "names no layer"),
            ({"site": Site.RESID_PRE, "layer": 3}, "layer 3"),
            ({"site": Site.Z, "layer": 0, "head": 4}, "head 4"),
            ({"site": Site.K, "layer": 0, "head": 2}, "head 2"),
            ({"site": Site.RESID_PRE, "layer": 0, "head": 0}, "no heads"),
            ({"site": Site.MLP_OUT, "layer": 0, "neuron": 0}, "no neurons"),
            ({"site": Site.MLP_POST, "layer": 0, "neuron": 12}, "neuron 12"),
            ({"site": Site.Z, "layer": 0, "subspace": torch.eye(8)[:, :1]}, "residual stream"),
        ],
    )
    def test_cells_the_model_does_not_have(self, cell: dict[str, object], message: str) -> None:
        clean, corrupted = pairs([5])
        made = Cell(place=Place.everywhere(corrupted), **cell)  # type: ignore[arg-type]
        with pytest.raises(SiteError, match=message):
            sweep(decoder("llama"), corrupted, clean, [made], contrast(1))

    def test_sites_an_architecture_lacks(self) -> None:
        clean, corrupted = pairs([5])
        place = Place.everywhere(corrupted)
        with pytest.raises(SiteError, match="no resid_mid"):
            sweep(decoder("neox"), corrupted, clean, [Cell(Site.RESID_MID, 0, place)], contrast(1))
        with pytest.raises(SiteError, match="no position embedding"):
            sweep(
                decoder("neox"), corrupted, clean, [Cell(Site.POS_EMBED, None, place)], contrast(1)
            )

    def test_positions_that_are_not_there(self) -> None:
        clean, corrupted = pairs([5])
        for where in ((5,), (-1,)):
            cell = Cell(Site.RESID_PRE, 0, Place("x", (where,), (where,)))
            with pytest.raises(SiteError, match="positions 0 to 4"):
                sweep(decoder(), corrupted, clean, [cell], contrast(1))
        cell = Cell(Site.RESID_PRE, 0, Place("x", ((2, 1),), ((2, 1),)))
        with pytest.raises(SiteError, match="ascending"):
            sweep(decoder(), corrupted, clean, [cell], contrast(1))
        cell = Cell(Site.RESID_PRE, 0, Place("x", ((1, 2),), ((1,),)))
        with pytest.raises(MeasureError, match="as many in both runs"):
            sweep(decoder(), corrupted, clean, [cell], contrast(1))

    def test_a_budget_too_small_for_one_cell(self) -> None:
        clean, corrupted = pairs([5])
        cell = Cell(Site.RESID_PRE, 0, Place.everywhere(corrupted))
        with pytest.raises(MeasureError, match=r"at least .* MB, for one cell"):
            sweep(decoder(), corrupted, clean, [cell], contrast(1), budget=Budget(memory=1000))

    def test_nan_in_a_run(self) -> None:
        clean, corrupted = pairs([5], first=[2])
        model = decoder()
        broken = map_tensors(model.weights, torch.clone)
        broken.W_E[int(clean.ids[0, 2])] = float("nan")
        broken.W_E[int(corrupted.ids[0, 2])] = 1.0
        model = Model(model.config, broken, model.tokenizer, name="broken")
        cell = Cell(Site.RESID_PRE, 0, Place.everywhere(corrupted))
        for base, source, name in (
            (corrupted, clean, "other"),
            (clean, corrupted, "unpatched"),
        ):
            with pytest.raises(MeasureError, match=f"the {name} run: prompt 0 gave NaN"):
                sweep(model, base, source, [cell], contrast(1))

    def test_a_contrast_for_other_prompts(self) -> None:
        clean, corrupted = pairs([5, 7])
        cell = Cell(Site.RESID_PRE, 0, Place.everywhere(corrupted))
        with pytest.raises(MeasureError, match="a contrast of 3 prompts for 2"):
            sweep(decoder(), corrupted, clean, [cell], contrast(3))

    def test_a_contrast_that_some_prompts_lack(self) -> None:
        clean, corrupted = pairs([5, 7])
        weighing = contrast(2)
        weighing.weights[1] = float("nan")
        cell = Cell(Site.RESID_PRE, 0, Place.everywhere(corrupted))
        with pytest.raises(MeasureError, match=r"not defined for prompts \[1\]"):
            sweep(decoder(), corrupted, clean, [cell], weighing)

    def test_nothing_to_put_in(self) -> None:
        _, corrupted = pairs([5])
        cell = Cell(Site.RESID_PRE, 0, Place.everywhere(corrupted))
        with pytest.raises(MeasureError, match="no values"):
            sweep(decoder(), corrupted, None, [cell], contrast(1))


def test_the_worlds_are_big_enough_to_be_wrong() -> None:
    """Every architecture's cells move the metric: an engine that returned the base would fail."""
    for variant in VARIANTS:
        model = decoder(variant)
        clean, corrupted = pairs([7], first=[0])
        cells = [Cell(site, 0, Place.everywhere(corrupted)) for site in (Site.K, Site.Q, Site.Z)]
        found = sweep(model, corrupted, clean, cells, contrast(1))
        assert (np.abs(found.values - found.base) > 1e-4).all()
        assert D_VOCAB > 3
