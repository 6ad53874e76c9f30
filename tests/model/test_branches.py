"""Two texts that begin alike, run in one row, are as if each were run alone."""

from __future__ import annotations

import pytest
import torch

from casestudy.engine.reading import branching, read_at
from casestudy.errors import MeasureError, PromptError
from casestudy.model.branches import Branches
from casestudy.model.decoder import run
from casestudy.model.sites import Site
from tests.measure.worlds import N_CTX, VARIANTS, decoder

FIRST = [[3, 1, 4, 1, 5, 9, 2], [2, 7, 1, 8], [6, 6, 6]]
SECOND = [[3, 1, 4, 1, 6, 2, 6, 5], [2, 7, 1, 3, 3], None]


def rows() -> list[list[int]]:
    return [row for pair in zip(FIRST, SECOND, strict=True) for row in pair if row is not None]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_place_is_that_of_a_text_run_alone(variant: str) -> None:
    model, texts = decoder(variant), rows()
    where = [(i, at) for i, row in enumerate(texts) for at in range(len(row))]
    keep = [site.at(last=True) for site in (Site.RESID_POST, Site.ATTN_OUT, Site.Z)]
    found = read_at(model, texts, where, keep)
    assert found.logits is not None
    for n, (i, at) in enumerate(where):
        alone = run(model, [texts[i][: at + 1]], keep=keep, logits="last")
        assert alone.logits is not None
        torch.testing.assert_close(found.logits[n], alone.logits[0])
        for layer in range(model.config.n_layers):
            for site in (Site.RESID_POST, Site.ATTN_OUT, Site.Z):
                ours, theirs = found.lasts[site, layer][n], alone.lasts[site, layer][0]
                torch.testing.assert_close(ours, theirs)


def test_the_common_beginning_is_computed_once() -> None:
    texts = rows()
    found, branches, places = branching(texts, [(1, 3), (1, 4), (4, 2)])
    assert [len(row) for row in found] == [7 + 4, 4 + 2, 3]
    assert branches == Branches((7, 4, 3), (4, 3, 3))
    assert places == [(0, 3), (0, 7), (2, 2)]
    apart = [[1, 2], [3, 4]]
    assert branching(apart, [(1, 1)]) == (apart, None, [(1, 1)])


def test_a_row_may_be_longer_than_the_context_and_a_text_not() -> None:
    model = decoder("gpt2")
    start = [i % 7 for i in range(N_CTX - 4)]
    long = [[*start, 1, 2, 3, 4], [*start, 2, 3, 4, 5]]
    where = [(0, N_CTX - 1), (1, N_CTX - 1)]
    found = read_at(model, long, where, [])
    alone = run(model, long, logits="last")
    torch.testing.assert_close(found.logits, alone.logits)
    with pytest.raises(PromptError, match=f"{N_CTX + 1} tokens"):
        read_at(model, [long[0], [*long[1], 6]], [(1, N_CTX)], [])


def test_patterns_of_the_last_token_alone_are_refused() -> None:
    branches = Branches((3,), (2,))
    keep = Site.PATTERN.at(last=True)
    with pytest.raises(MeasureError, match="rows with branches"):
        run(decoder("gpt2"), [[1, 2, 3, 4]], keep=keep, branches=branches)
