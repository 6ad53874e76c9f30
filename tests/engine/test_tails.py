"""Is a prompt that is read at several positions what the texts cut there are together?"""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor

from casestudy.engine.cells import Cell, Place, Task
from casestudy.engine.packing import Budget
from casestudy.engine.readout import Metric, Tails
from casestudy.engine.sweep import Sweep, sweep
from casestudy.errors import MeasureError
from casestudy.model.model import Model
from casestudy.model.sites import Site
from casestudy.model.tokens import Tokens
from tests.measure.worlds import D_VOCAB, N_HEADS, N_LAYERS, VARIANTS, contrast, decoder, pairs

LENGTHS = [7, 9, 7, 8]
TAILS = Tails((3, 1, 2, 4), (1.0, -0.5, 2.0, 1.0, 0.3, -1.0, 0.7, 1.0, 1.5, -2.0))
SITES = (Site.RESID_PRE, Site.ATTN_OUT, Site.MLP_OUT, Site.Z, Site.V, Site.PATTERN, Site.RESID_POST)


def log_probs(n: int, seed: int = 0) -> Metric:
    """log p of a token of each reading's own."""
    rng = random.Random(seed)
    ids = torch.tensor([[rng.randrange(D_VOCAB)] for _ in range(n)])

    def metric(logits: Tensor, readings: Tensor) -> Tensor:
        return logits.log_softmax(1).gather(1, ids[readings])[:, 0]

    return metric


def cells(model: Model, base: Tokens, site: Site) -> list[Cell]:
    heads: list[int | None] = [None]
    if "head" in site.axes:
        heads = [0, N_HEADS - 1]
    places = [Place.at(p, base) for p in (0, 3, 5, 6, 7)] + [Place.everywhere(base)]
    layers = (0, N_LAYERS - 1)
    return [Cell(site, i, place, head=h) for i in layers for h in heads for place in places]


def cut(base: Tokens, source: Tokens, reading: int) -> tuple[list[int], list[int]]:
    """The two texts of a reading's prompt, up to where it is read."""
    b = TAILS.prompts[reading]
    behind = TAILS.starts[b] + TAILS.counts[b] - 1 - reading
    rows = base.rows()[b], source.rows()[b]
    return tuple(row[: len(row) - behind] for row in rows)  # type: ignore[return-value]


def added_up(model: Model, base: Tokens, source: Tokens, site: Site, metric: Metric) -> Sweep:
    """Each reading by a sweep of its own, read at the last token."""
    n = len(TAILS.weights)
    texts = [cut(base, source, reading) for reading in range(n)]
    here, there = Tokens.of([a for a, _ in texts]), Tokens.of([b for _, b in texts])
    found = sweep(model, here, there, cells(model, here, site), metric, budget=Budget(check=0))
    assert found.other is not None
    values = np.where(np.isnan(found.values), found.base[None], found.values)
    weighed = values * np.array(TAILS.weights)
    each = [TAILS.of([b]) for b in range(len(base))]
    total = np.stack([weighed[:, of].sum(1) for of in each], 1)
    runs = [
        np.array([(run * TAILS.weights)[of].sum() for of in each])
        for run in (found.base, found.other)
    ]
    return Sweep(found.cells, total, runs[0], runs[1], found.known, {}, found.plan)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("site", SITES)
def test_the_readings_add_up(variant: str, site: Site) -> None:
    model = decoder(variant)
    # the first two pairs share most of their tokens, so that the source starts at the difference
    base, source = pairs(LENGTHS, seed=3, first=[4, 5, 1, 3])
    metric = log_probs(len(TAILS.weights))
    asked = cells(model, base, site)
    found = sweep(model, base, source, asked, metric, tails=TAILS, budget=Budget(check=99))
    alone = added_up(model, base, source, site, metric)
    there = ~np.isnan(found.values)
    np.testing.assert_allclose(found.values[there], alone.values[there], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.base, alone.base, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.other, alone.other, rtol=1e-9, atol=1e-9)  # type: ignore[arg-type]
    assert found.error["gap"] <= found.error["bound"]
    assert found.error["checked"] > 10


@pytest.mark.parametrize("first", [[4, 6, 4, 4], [1, 1, 1, 1]])
def test_a_source_that_shares_a_prefix_gives_the_same(first: list[int]) -> None:
    model = decoder("llama")
    base, source = pairs(LENGTHS, seed=4, first=first)
    metric, asked = log_probs(len(TAILS.weights)), cells(model, base, Site.RESID_PRE)
    task = Task.checked(model, base, source, asked, TAILS)
    assert task.shares_prefix == (first[0] == 4)
    found = sweep(model, base, source, asked, metric, tails=TAILS)
    alone = added_up(model, base, source, Site.RESID_PRE, metric)
    there = ~np.isnan(found.values)
    np.testing.assert_allclose(found.values[there], alone.values[there], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.other, alone.other, rtol=1e-9, atol=1e-9)  # type: ignore[arg-type]


def test_blocks_and_climbs_change_nothing() -> None:
    model = decoder("gemma2")
    base, source = pairs(LENGTHS, seed=5)
    metric, asked = log_probs(len(TAILS.weights)), cells(model, base, Site.Z)
    whole = sweep(model, base, source, asked, metric, tails=TAILS)
    small = Budget(memory=60_000, rows=12)
    parts = sweep(model, base, source, asked, metric, tails=TAILS, budget=small)
    assert len(parts.plan.blocks) > 1
    np.testing.assert_allclose(whole.values, parts.values, atol=1e-9)


def test_one_reading_each_is_the_sweep_as_ever() -> None:
    model = decoder(dtype=torch.float32)
    base, source = pairs(LENGTHS, seed=6)
    asked, of = cells(model, base, Site.MLP_OUT), contrast(len(LENGTHS))
    plain = sweep(model, base, source, asked, of)
    same = sweep(model, base, source, asked, of, tails=Tails.ends(len(LENGTHS)))
    assert np.array_equal(plain.values, same.values, equal_nan=True)


@pytest.mark.parametrize("counts", [(1, 1, 1), (8, 1, 1, 1), (0, 1, 1, 1)])
def test_readings_that_prompts_do_not_have(counts: tuple[int, ...]) -> None:
    model = decoder()
    base, source = pairs(LENGTHS)
    asked = cells(model, base, Site.RESID_PRE)
    metric = log_probs(sum(counts))

    def read() -> Sweep:
        tails = Tails(counts, (1.0,) * sum(counts))
        return sweep(model, base, source, asked, metric, tails=tails)

    with pytest.raises(MeasureError, match="readings"):
        read()
