"""The public door: what is exported takes a model first, and a behaviour or texts alike."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

import casestudy as cs
from casestudy.errors import BehaviourError, PromptError, TokenError

TEXTS = ["It was late. She went home.", "He slept."]
OF_PROMPTS = (
    *("ledger", "lens", "lens_by_role", "head_attribution", "neuron_attribution", "top_neurons"),
    *("attention_by_role", "logit_difference", "class_mass", "controls", "case_by_space"),
    *("predictions", "logit_lens"),
)
OF_PAIRS = ("patch", "path_patch", "patch_edges", "attribute_edges", "evaluate_circuit")


def values(result: cs.Grid | cs.Table) -> list[object]:
    return list(result.to_polars().rows()) if isinstance(result, cs.Table) else [result.values]


@pytest.mark.parametrize("name", OF_PROMPTS)
def test_texts_and_a_behaviour_of_them_give_the_same(name: str, toy_model: cs.Model) -> None:
    measure = getattr(cs, name)
    behaviour = cs.Behaviour("mine", "What comes next?", tuple(map(cs.Prompt, TEXTS)))
    of_texts, of_behaviour = measure(toy_model, TEXTS), measure(toy_model, behaviour)
    for ours, theirs in zip(values(of_texts), values(of_behaviour), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert str(of_texts.about) == str(of_behaviour.about)


@pytest.mark.parametrize("name", [*OF_PROMPTS, *OF_PAIRS, "ablate", "circuit_card"])
def test_the_model_comes_first_and_one_thing_has_one_name(name: str) -> None:
    parameters = list(inspect.signature(getattr(cs, name)).parameters)
    assert parameters[0] == "model"
    assert "metric" not in parameters
    if name in OF_PAIRS:
        assert parameters[1:3] == ["pairs", "contrast"]


def test_a_direction_has_one_default() -> None:
    exported = {name: getattr(cs, name) for name in cs.__all__}
    defaults = {
        name: inspect.signature(call).parameters["direction"].default
        for name, call in exported.items()
        if inspect.isfunction(call) and "direction" in inspect.signature(call).parameters
    }
    assert set(defaults) == {"patch", "path_patch", "patch_edges", "attribute_edges"}
    assert set(defaults.values()) == {"denoising"}


def test_what_is_no_text_is_refused_by_number() -> None:
    # as users run it: the suite's type checker looks at one entry of a list, drawn at random
    unchecked = inspect.unwrap(cs.Behaviour.of.__func__)  # type: ignore[attr-defined]
    with pytest.raises(PromptError, match=r"prompt 1 is 3.*Allowed: texts"):
        unchecked(cs.Behaviour, ["Go.", 3])


def test_a_study_takes_its_two_subjects_in_either_order(toy_model: cs.Model) -> None:
    behaviour = cs.Behaviour("mine", "What comes next?", tuple(map(cs.Prompt, TEXTS)))
    studies = [
        cs.study(behaviour, toy_model, only=["predictions"]),
        cs.study(toy_model, behaviour, only=["predictions"]),
        cs.study(toy_model, TEXTS, only=["predictions"]),
    ]
    tables = [study["predictions"] for study in studies]
    for table in tables[1:]:
        assert isinstance(table, cs.Table)
        assert table.rows() == tables[0].rows()
    with pytest.raises(BehaviourError, match="two behaviours"):
        cs.study(behaviour, behaviour)


def test_ids_are_taken_in_every_form_or_refused_by_name(toy_model: cs.Model) -> None:
    tokens = toy_model.tokenize("It was late.")
    ids = tokens.rows()[0]
    expected = cs.run(toy_model, tokens, logits="last").logits
    assert expected is not None
    for given in (ids, tuple(ids), [ids], torch.tensor(ids), torch.tensor([ids]), np.array(ids)):
        found = cs.run(toy_model, given, logits="last").logits
        assert found is not None
        torch.testing.assert_close(found, expected)
    for bad, name in ((np.array([1.5]), "1.5"), (torch.zeros(1, 1, 1, dtype=torch.long), r"\[0\]")):
        with pytest.raises(TokenError, match=f"{name} among token ids"):
            cs.run(toy_model, bad)
    with pytest.raises(PromptError, match="no tokens"):
        cs.run(toy_model, np.array([], dtype=int))


@pytest.mark.parametrize("axis", ["batch", "pos", "head"])
def test_a_tuple_of_places_is_a_list_of_them(axis: str, toy_model: cs.Model) -> None:
    texts = ["It was late. She went home.", "He slept all day.", "It rained."]
    runs = [
        cs.run(toy_model, texts, edit=[cs.Edit.zero("z", 0, **{axis: places})], logits="last")
        for places in ((0, 1), [0, 1])
    ]
    assert runs[0].logits is not None
    torch.testing.assert_close(runs[0].logits, runs[1].logits, rtol=0, atol=0)
