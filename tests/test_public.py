"""The public door: what is exported takes a model first, and a behaviour or texts alike."""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest
import torch

import casestudy as cs
from casestudy.behaviour.prompts import QUESTION, prompts_given
from casestudy.errors import BehaviourError, EditError, PromptError, SiteError, TokenError
from casestudy.model.sites import check_layer, check_layers
from casestudy.study.study import study

TEXTS = ["It was late. She went home.", "He slept."]
OF_PROMPTS = (
    *("ledger", "lens", "lens_by_role", "head_attribution", "neuron_attribution", "top_neurons"),
    *("attention_by_role", "logit_difference", "class_mass", "controls", "case_by_space"),
    *("predictions", "logit_lens"),
)
RENAMED = ("predictions", "logit_lens", "class_mass", "controls", "case_by_space")
"""They called their behaviour `prompts` in 0.1.0."""


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


SUBJECTS = (
    *((), ("behaviour",), ("prompt",), ("prompts",), ("tokens",)),
    *(("pairs", "contrast"), ("tokens", "contrast")),
)
"""What may follow the model: `prompts` are `Prompt`s alone, `prompt` is one text."""
OWN = {
    **{"patch": "site", "ablate": "site", "path_patch": "receiver", "patch_edges": "edges"},
    **{"attribute_edges": "method", "attribute_nodes": "site"},
    **{"evaluate_nodes": "sets", "neuron_circuit": "choices", "find_direction": "choices"},
    **{"evaluate_circuit": "circuits", "circuit_card": "choices"},
    **{
        "patch_prompts": "site",
        "class_mass": "classes",
        "score_answer": "answer",
        "choose_answers": "logits",
    },
    "part": "part",
}
"""The one thing beside its subject that a call may name by position."""
OTHERWISE = {
    **{"load": ("name", "tokenizer"), "preset": ("name",), "load_behaviour": ("path",)},
    **{"write_behaviour": ("behaviour", "path"), "open_study": ("folder",)},
    "load_direction": ("model", "path"),
    **{"compare": ("a", "b"), "to_numpy": ("trace", "model")},
    **{
        "roles_of": ("tokenizer", "prompt", "tokens", "roles"),
        "by_role": ("grid", "roles", "names"),
    },
    # findings name a model of their own; checkpoints are many models
    **{"check": ("findings", "model"), "emergence": ("models", "behaviour")},
    # one preference is two tokens
    "explain": ("model", "prompt", "answer", "counterpart"),
    # the address of one score, as 0.1.0 took it
    "explain_attention_score": ("model", "prompt", "layer", "head", "query_pos", "key_pos"),
}
"""What takes no model first, or more by position than most, and why where that is not plain."""
OTHER_NAMES = ("metric", "text", "texts", "rng", "callback", "memory", "ablations", "device_map")
"""Of what is called contrast, prompt, behaviour, seed, progress, budget, ablation, device."""


def signatures() -> dict[str, inspect.Signature]:
    exported = {name: getattr(cs, name) for name in cs.__all__}
    functions = {name: call for name, call in exported.items() if inspect.isfunction(call)}
    functions["study"] = study  # `cs.study` is its room too, which can be called
    return {name: inspect.signature(call) for name, call in functions.items()}


@pytest.mark.parametrize("name", signatures())
def test_the_model_comes_first_then_its_subject_and_the_rest_by_keyword(name: str) -> None:
    parameters = signatures()[name].parameters.values()
    positional = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
    if name in OTHERWISE:
        assert positional == OTHERWISE[name]
    else:
        first, *subject = positional[: -1 if name in OWN else None]
        assert first == "model"
        assert tuple(subject) in SUBJECTS
        assert positional[len(subject) + 1 :] == ((OWN[name],) if name in OWN else ())
    assert all(p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in parameters)
    assert not {p.name for p in parameters} & set(OTHER_NAMES)


def test_one_thing_has_one_name_and_one_default() -> None:
    defaults: dict[str, dict[str, object]] = {}
    for name, signature in signatures().items():
        for parameter in signature.parameters.values():
            defaults.setdefault(parameter.name, {})[name] = parameter.default
    required = inspect.Parameter.empty
    for name, default in {
        **{"pairs": required, "contrast": required, "tokens": required, "prompt": required},
        **{"direction": "denoising", "seed": 0, "progress": None, "watch": None, "graph": None},
        **{"by": None, "layers": None, "documents": None, "skip": (), "device": "auto"},
    }.items():
        found = {key: value for key, value in defaults[name].items() if key not in OTHERWISE}
        assert [key for key, value in found.items() if value != default] == [], name
    directed = {
        "patch",
        "patch_prompts",
        "path_patch",
        "patch_edges",
        "attribute_edges",
        "attribute_nodes",
    }
    assert set(defaults["direction"]) == directed


@pytest.mark.parametrize("name", [name for name in OF_PROMPTS if name in RENAMED])
def test_the_older_name_of_a_behaviour_is_still_read(name: str, toy_model: cs.Model) -> None:
    call = getattr(cs, name)
    for ours, theirs in zip(
        values(call(toy_model, TEXTS)), values(call(toy_model, prompts=TEXTS)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_an_ablation_takes_texts(toy_model: cs.Model) -> None:
    contrast = cs.Contrast.between(toy_model, [" He"] * 2, [" he"] * 2)
    of_texts = cs.ablate(toy_model, TEXTS, contrast, "attn_out", by="last")
    of_tokens = cs.ablate(toy_model, toy_model.tokenize(TEXTS), contrast, "attn_out", by="last")
    np.testing.assert_array_equal(of_texts.raw.values, of_tokens.raw.values)


def test_a_direction_has_one_default() -> None:
    exported = {name: getattr(cs, name) for name in cs.__all__}
    defaults = {
        name: inspect.signature(call).parameters["direction"].default
        for name, call in exported.items()
        if inspect.isfunction(call) and "direction" in inspect.signature(call).parameters
    }
    assert set(defaults) == {
        "patch",
        "patch_prompts",
        "path_patch",
        "patch_edges",
        "attribute_edges",
        "attribute_nodes",
    }
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


def test_a_behaviour_needs_no_name_and_no_question() -> None:
    made = cs.Behaviour(prompts=(cs.Prompt("It was late."),))
    assert (made.name, made.question) == ("prompts", QUESTION)
    for given in ("It was late.", ["It was late."], made.prompts[0], made.prompts):
        assert prompts_given(given) == made.prompts
    with pytest.raises(BehaviourError, match="'mine' has no prompts"):
        cs.Behaviour("mine")


@pytest.mark.parametrize("layer", [(0, 1), [0], "0", 1.0])
def test_a_layer_that_is_no_whole_number_is_refused(layer: object) -> None:
    with pytest.raises(SiteError, match=re.escape(f"layer {layer!r}. Allowed: one layer, 0 to 3")):
        inspect.unwrap(check_layer)(layer, 4)


@pytest.mark.parametrize("layers", [1, 1.5])
def test_one_layer_where_several_are_meant_is_refused(layers: object) -> None:
    with pytest.raises(SiteError, match=r"Allowed: several, as in \(0, 1\). Say \(0,\) for one"):
        inspect.unwrap(check_layers)(layers, 4)


@pytest.mark.parametrize("axis", ["batch", "pos", "head"])
@pytest.mark.parametrize("index", ["0", 1.5, None, (0, "a"), ((0, 1), (1, 2)), (0.5,)])
def test_what_is_no_index_is_refused(axis: str, index: object) -> None:
    unchecked = inspect.unwrap(cs.Edit.replace.__func__)  # type: ignore[attr-defined]
    with pytest.raises(EditError, match=rf"{axis} .* Allowed: a whole number, several"):
        unchecked(cs.Edit, "z", 0, 0.0, **{axis: index})
    with pytest.raises(EditError, match=r"a str as the value of z\. Allowed: a number"):
        unchecked(cs.Edit, "z", 0, "a")


def test_one_edit_and_one_site_need_no_list(toy_model: cs.Model) -> None:
    edit = cs.Edit.zero("z", 0)
    one = cs.run(toy_model, "It was late.", keep="pattern", edit=edit, logits="last")
    several = cs.run(toy_model, "It was late.", keep=["pattern"], edit=[edit], logits="last")
    assert one.logits is not None
    assert several.logits is not None
    torch.testing.assert_close(one.logits, several.logits, rtol=0, atol=0)
    torch.testing.assert_close(one["pattern", 1], several["pattern", 1], rtol=0, atol=0)


def test_an_empty_text_is_bos_alone(toy_model: cs.Model) -> None:
    bos = toy_model.tokenizer.bos_id
    assert bos is not None
    runs = [cs.run(toy_model, given, logits="last") for given in ([""], "", [bos], [[bos]])]
    assert [trace.tokens.rows() for trace in runs] == [[[bos]]] * 4
    for trace in runs:
        assert trace.logits is not None
        assert runs[0].logits is not None
        torch.testing.assert_close(trace.logits, runs[0].logits, rtol=0, atol=0)


@pytest.mark.parametrize("axis", ["batch", "pos", "head"])
def test_a_tuple_of_places_is_a_list_of_them(axis: str, toy_model: cs.Model) -> None:
    texts = ["It was late. She went home.", "He slept all day.", "It rained."]
    runs = [
        cs.run(toy_model, texts, edit=[cs.Edit.zero("z", 0, **{axis: places})], logits="last")
        for places in ((0, 1), [0, 1])
    ]
    assert runs[0].logits is not None
    torch.testing.assert_close(runs[0].logits, runs[1].logits, rtol=0, atol=0)
