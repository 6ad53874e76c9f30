"""Has a component one spelling, and are the older ones still read?"""

from __future__ import annotations

import pytest

from casestudy.results import components
from casestudy.results.components import Component, layer_kind, read_component, respelled

SPELLED = {
    "embed": ["input", "embeddings"],
    "pos_embed": [],
    "attn 3": ["attn_3", "attention 3"],
    "attn 3 bias": [],
    "mlp 3": ["MLP 3", "m3", "mlp_3"],
    "head 3.1": ["3.1", "a3.h1", "L3H1", "Head 3.1"],
    "head 3.1<q>": ["3.1.q", "a3.h1<q>"],
    "kv_head 3.1<v>": ["a3.kv1<v>"],
    "neuron 3.512": ["m3.n512", "mlp 3 neuron 512"],
    "logits": ["output"],
}
"""Today's spelling of a component, and older ones."""


@pytest.mark.parametrize("name", SPELLED)
def test_every_spelling_reads_as_one_component_which_is_written_one_way(name: str) -> None:
    for spelling in (name, *SPELLED[name]):
        part = read_component(spelling)
        assert part is not None, spelling
        assert str(part) == name
        assert read_component(part.mib) == part or part.kind == "attn bias"


def test_edges_are_respelled_end_by_end_and_other_names_are_left_alone() -> None:
    assert respelled("a0.h1->a3.h2<q>") == "head 0.1->head 3.2<q>"
    assert respelled("input->m0") == "embed->mlp 0"
    for other in ("final norm bias (b_U)", "unembedding bias", "12 other attn", "a9->nonsense", ""):
        assert respelled(other) == other
        assert read_component(other) is None


def test_the_writers_agree_with_the_reader() -> None:
    assert components.attn(3) == str(Component("attn", 3)) == "attn 3"
    assert components.mlp(3) == "mlp 3"
    assert components.head("3", "1") == components.head_of("head", "3", "1") == "head 3.1"
    assert components.head_of("kv_head", "3", "1") == "kv_head 3.1"
    assert components.head_of("head", "3", "bias") == components.attn_bias(3) == "attn 3 bias"
    assert components.neuron(3, 512) == "neuron 3.512"
    assert [layer_kind(t) for t in ("attn 3", "mlp 12", "attn 3 bias", "embed")] == [
        *("attn", "mlp"),
        *(None, None),
    ]
