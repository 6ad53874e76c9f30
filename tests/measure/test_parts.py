"""What a card's parts are, and where in a corpus they are active."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from casestudy.behaviour.windows import Window, Windows
from casestudy.errors import MeasureError, SiteError
from casestudy.measure.part_activity import SAME, Activity, Context, Strongest
from casestudy.measure.parts import HeadPart, NeuronPart, read_part
from casestudy.model.decoder import run
from casestudy.model.edits import Edit
from casestudy.model.model import Model
from casestudy.model.sites import Site
from casestudy.model.tokens import Tokens
from tests.measure.batches import rows
from tests.measure.cards import corpus, only_activity, speaking
from tests.measure.worlds import D_MLP, N_HEADS, N_LAYERS, VARIANTS, decoder

PARTS = ("head 1.2", "neuron 1.5")


@pytest.mark.parametrize("text", ["mlp 2 neuron 7", "neuron 2.7", "m2.n7"])
def test_a_neuron_has_several_spellings(text: str) -> None:
    assert read_part(decoder(), text) == NeuronPart(2, 7)
    assert read_part(decoder(), text).name == "neuron 2.7"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("haed 0.2", "'haed 0.2' is no part of a model.*Did you mean 'head 0.0'"),
        ("head 9.1", f"no head 9.1.*layers 0 to {N_LAYERS - 1}.*Did you mean 'head 2.1'"),
        ("head 0.4", f"heads 0 to {N_HEADS - 1}.*Did you mean 'head 0.3'"),
        ("neuron 1.99", f"neurons 0 to {D_MLP - 1}"),
        ("mlp 1", "no card is made of 'mlp 1'.*Did you mean 'neuron 1.0'"),
        ("attn 1", "Did you mean 'head 1.0'"),
        ("head 1.0<q>", "no card is made of"),
        ("embed", "no card is made of 'embed'"),
    ],
)
def test_what_a_model_lacks_is_refused_with_what_it_has(text: str, said: str) -> None:
    with pytest.raises(SiteError, match=said):
        read_part(decoder(), text)


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_a_heads_activity_is_the_norm_of_what_it_writes(variant: str) -> None:
    """What attn_out loses where the head writes its constant alone, a later norm's scale held."""
    model, part = decoder(variant), HeadPart(1, 2)
    tokens = Tokens.of(rows([6, 4]))
    post = model.weights.blocks[1].attn_post_norm is not None
    held = [Site.ATTN_POST_SCALE] if post else []
    kept = [Site.ATTN_OUT, Site.Z, *held]
    whole = run(model, tokens, keep=[site.at(1) for site in kept] + list(part.keep(model)))
    found = part.activity(model, whole)

    def constant(z: torch.Tensor) -> torch.Tensor:
        z = z.clone()
        z[:, :, 2] = part.constant(model)
        return z

    edits = [Edit(Site.Z, 1, constant)]
    edits += [Edit.replace(site, 1, whole[site, 1]) for site in held]
    left = run(model, tokens, keep=[Site.ATTN_OUT.at(1)], edit=edits)
    lost = (whole[Site.ATTN_OUT, 1] - left[Site.ATTN_OUT, 1]).norm(dim=-1)
    torch.testing.assert_close(found[tokens.mask], lost[tokens.mask])


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_a_heads_pattern_and_values_make_its_z(variant: str) -> None:
    model, part = decoder(variant), HeadPart(2, 3)
    tokens = Tokens.of(rows([6, 4]))
    trace = run(model, tokens, keep=[*part.keep(model), Site.PATTERN.at(2)])
    pattern = part.pattern(model, trace)
    torch.testing.assert_close(pattern[tokens.mask], trace[Site.PATTERN, 2][:, 3][tokens.mask])
    mixed = pattern @ part.values(model, trace) + part.constant(model)
    torch.testing.assert_close(mixed[tokens.mask], trace[Site.Z, 2][:, :, 3][tokens.mask])


def gathered(model: Model, part: str, windows: list[Window], k: int = 5) -> Activity:
    return only_activity(model, read_part(model, part), windows, k=k, most_windows=4)


def every_position(
    model: Model, part: str, windows: list[Window]
) -> list[tuple[float, int, int, tuple[int, ...]]]:
    """(value, window, position, last tokens), one run for each window."""
    subject = read_part(model, part)
    found = []
    for i, window in enumerate(windows):
        trace = run(model, [list(window.ids)], keep=subject.keep(model))
        for p, value in enumerate(subject.activity(model, trace)[0].tolist()):
            if p > 0:
                found.append((value, i, p, window.ids[max(0, p + 1 - SAME) : p + 1]))
    return found


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("variant", ["gpt2", "gemma2"])
def test_the_strongest_contexts_are_those_of_one_run_a_window(variant: str, part: str) -> None:
    model = speaking(variant)
    texts = dict(corpus(words=20))
    texts["again"] = texts["doc 3"]  # every context of it stands twice
    windows = list(Windows(texts, model.tokenizer, 9))
    found = gathered(model, part, windows)
    plain = every_position(model, part, windows)
    assert found.n == len(plain)
    assert found.total == pytest.approx(sum(value for value, *_ in plain))
    groups = part_groups(model, part, windows)
    for g, heap in enumerate(found.strongest):
        best: dict[tuple[int, ...], float] = {}
        for (value, *_, last), of in zip(plain, groups, strict=True):
            if of == g:
                best[last] = max(best.get(last, 0.0), abs(value))
        expected = sorted(best.values(), reverse=True)[:5]
        assert [abs(c.value) for c in heap.contexts()] == pytest.approx(expected)
        for context in heap.contexts():
            assert context.document != "again"


def part_groups(model: Model, part: str, windows: list[Window]) -> list[int]:
    subject = read_part(model, part)
    found: list[int] = []
    for window in windows:
        trace = run(model, [list(window.ids)], keep=subject.keep(model))
        found += subject.group(model, trace)[0, 1:].int().tolist()
    return found


def test_the_signs_are_those_of_gate_and_input() -> None:
    model = speaking("llama")
    windows = list(Windows(corpus(), model.tokenizer, 9))
    found = gathered(model, "neuron 1.5", windows)
    assert found.groups == (
        *("gate > 0, input > 0", "gate > 0, input ≤ 0"),
        *("gate ≤ 0, input > 0", "gate ≤ 0, input ≤ 0"),
    )
    counts = np.zeros(4, dtype=int)
    for window in windows:
        trace = run(model, [list(window.ids)], keep=[Site.MLP_PRE.at(1), Site.MLP_GATE.at(1)])
        pre, gate = (trace[site, 1][0, 1:, 5] for site in (Site.MLP_PRE, Site.MLP_GATE))
        for a, b in zip(gate.tolist(), pre.tolist(), strict=True):
            counts[2 * (a <= 0) + (b <= 0)] += 1
    assert np.stack(found.counts).sum(0).tolist() == counts.tolist()
    assert all(counts > 0)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), max_size=40), st.integers(1, 6))
def test_the_heap_keeps_the_largest_of_each_key(entries: list[tuple[int, int]], k: int) -> None:
    heap, best = Strongest(k), dict[int, float]()
    for value, key in entries:
        window = Window((0, 1), (0, 0), "d", (1, 1))
        heap.offer(float(value), (key,), _context(float(value), window))
        best[key] = max(best.get(key, -1.0), float(value))
    expected = sorted(best.values(), reverse=True)[:k]
    assert [c.value for c in heap.contexts()] == expected


def _context(value: float, window: Window) -> Context:
    return Context(value, window.ids, 1, window.document, 1)


def test_a_corpus_does_not_depend_on_what_is_run_together(monkeypatch: pytest.MonkeyPatch) -> None:
    model = speaking("gpt2")
    windows = list(Windows(corpus(), model.tokenizer, 9))
    together = gathered(model, "head 1.2", windows)
    monkeypatch.setattr("casestudy.measure.part_activity.AT_ONCE", 9)
    alone = gathered(model, "head 1.2", windows)
    for ours, theirs in zip(together.strongest, alone.strongest, strict=True):
        assert [(c.document, c.line, c.at) for c in ours.contexts()] == [
            (c.document, c.line, c.at) for c in theirs.contexts()
        ]
    assert [n for _, n, _ in sorted(together.chosen, key=lambda c: c[1])] == [
        n for _, n, _ in sorted(alone.chosen, key=lambda c: c[1])
    ]
    for ours, theirs in zip(together.everywhere.columns(), alone.everywhere.columns(), strict=True):
        np.testing.assert_allclose(ours, theirs)


def test_a_sample_is_bounded_and_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("casestudy.measure.part_activity.OF_A_KIND", 50)
    monkeypatch.setattr("casestudy.measure.part_activity.SAMPLED", 40)
    model = speaking("gpt2")
    windows = list(Windows(corpus(40), model.tokenizer, 9))
    found = gathered(model, "head 1.2", windows)
    values, window, _ = found.everywhere.columns()
    assert len(found.sampled) == 40
    assert len(values) <= 20_000
    assert found.everywhere.seen == found.n
    assert len(np.unique(window)) > 20
    (draw,) = found.kinds.values()
    assert len(draw.columns()[0]) == 50
    assert draw.seen == found.n


def test_a_corpus_smaller_than_k_and_values_that_overflow_are_refused() -> None:
    model = speaking("gpt2")
    windows = list(Windows({"a": "w1 w2 w3"}, model.tokenizer, 9))
    with pytest.raises(MeasureError, match=r"the corpus has 2 positions.*k up to 2"):
        gathered(model, "head 1.2", windows, k=3)
    blocks = list(model.weights.blocks)
    blocks[1] = replace(
        blocks[1], mlp=replace(blocks[1].mlp, W_in=blocks[1].mlp.W_in * float("inf"))
    )
    broken = replace(model, weights=replace(model.weights, blocks=tuple(blocks)))
    with pytest.raises(MeasureError, match=r"neuron 1\.5 is not finite in a, line 1"):
        gathered(broken, "neuron 1.5", windows, k=2)
