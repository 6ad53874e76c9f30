"""Each preset is what it says, and GPT-2's tokenizer and the bundled one can both read it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from casestudy.behaviour.classes import matching
from casestudy.behaviour.presets import lower_sentence_starts, preset, preset_names
from casestudy.behaviour.readouts import check_roles
from casestudy.behaviour.roles import roles_of
from casestudy.engine.batch import run_batch
from casestudy.errors import BehaviourError
from casestudy.model.model import Model
from casestudy.model.tokens import Tokenizer

DATA = Path(__file__).parents[1] / "golden" / "data"


@pytest.fixture(params=["bundled", "gpt2"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "gpt2":
        return request.getfixturevalue("gpt2_tokenizer")
    return request.getfixturevalue("toy")(n_positions=256).tokenizer


@pytest.mark.parametrize("name", preset_names())
def test_it_can_be_read_and_its_parts_are_found(tokenizer: Tokenizer, name: str) -> None:
    behaviour = preset(name)
    tokenizer.tokenize([p.text for p in behaviour.prompts], prepend_bos=True)
    check_roles(tokenizer, behaviour)
    for prompt in behaviour.prompts:
        for text in (prompt.answer, prompt.counterpart):
            assert text is None or tokenizer.single(text) >= 0
        if prompt.answer_class is not None and prompt.counterpart_class is not None:
            a, b = (
                set(matching(tokenizer, p, tokenizer.d_vocab))
                for p in (prompt.answer_class, prompt.counterpart_class)
            )
            assert not a & b
    if behaviour.class_contrast is not None:
        for side in (behaviour.class_contrast.answer, behaviour.class_contrast.counterpart):
            assert behaviour.classes.ids(side, tokenizer)


@pytest.mark.parametrize("name", ["decimal-point", "ioi", "greater-than", "agreement"])
def test_corrupted_partners_are_aligned(tokenizer: Tokenizer, name: str) -> None:
    for prompt in preset(name).prompts:
        if prompt.corrupted is not None:
            assert len(tokenizer.ids(prompt.text)) == len(tokenizer.ids(prompt.corrupted))
            assert prompt.text != prompt.corrupted


@pytest.mark.parametrize("name", preset_names())
def test_every_prompt_gets_an_answer_or_says_why_not(toy: Callable[..., Model], name: str) -> None:
    behaviour = preset(name)
    model = toy(n_positions=256)
    batch = run_batch(model, behaviour, range(len(behaviour)), [])
    answered = {i for i, a in enumerate(batch.answers.chosen) if a is not None}
    assert answered | set(batch.answers.errors) == set(range(len(behaviour)))
    if behaviour.answers != "space-capital":
        assert not batch.answers.errors
    if behaviour.has_classes:
        assert not batch.contrasts[-1].value(batch.logits).isnan().any()


@pytest.mark.parametrize("name", preset_names())
def test_there_are_prompts_enough_for_a_circuit_and_they_are_like_the_others(
    tokenizer: Tokenizer, name: str
) -> None:
    behaviour = preset(name)
    whole = behaviour.with_circuit_prompts
    texts = [prompt.text for prompt in whole.prompts]
    assert len(set(texts)) == len(texts)
    assert len(behaviour.main_prompts) + len(behaviour.circuit_prompts) >= 25
    check_roles(tokenizer, whole)
    for prompt in behaviour.circuit_prompts:
        assert 4 <= len(tokenizer.ids(prompt.text)) <= 20
        if prompt.corrupted is not None:
            assert len(tokenizer.ids(prompt.text)) == len(tokenizer.ids(prompt.corrupted))
        for text in (prompt.answer, prompt.counterpart):
            assert text is None or tokenizer.single(text) >= 0
    if name == "ioi":
        for prompt in behaviour.circuit_prompts:
            ids = tokenizer.ids(prompt.text)
            roles = roles_of(tokenizer, prompt, ids, behaviour.roles)
            at = [tokenizer.string(ids[i]) for i in roles["indirect object"]]
            assert at == [prompt.answer]


def test_the_flagship_has_every_prompt_that_was_recorded() -> None:
    figures = json.loads((DATA / "gpt2_small.json").read_text("utf-8"))
    masses = json.loads((DATA / "gpt2_class_masses.json").read_text("utf-8"))
    by_text = {p.text: p for p in preset("full-stop-capitals").prompts}
    batches = figures["batches"]
    eight = batches["eleven_token_batch_8"]
    sets = {
        "ragged five": batches["ragged_batch"]["prompts"],
        "eleven-token four": batches["eleven_token_batch_4"]["prompts"],
        "eleven-token eight": eight["prompts"],
    }
    for group, texts in sets.items():
        assert [t for t, p in by_text.items() if group in p.groups] == sorted(
            texts, key=list(by_text).index
        )
    recorded = {case["prompt"] for case in figures["predictions"]}
    recorded |= set(masses["percent"])
    assert recorded <= set(by_text)
    assert [by_text[t].corrupted for t in eight["prompts"]] == eight["corrupted_prompts"]


def test_the_flagship_has_all_of_them_in_lower_and_in_upper_case() -> None:
    behaviour = preset("full-stop-capitals")
    groups: dict[str, set[str]] = {}
    for prompt in behaviour.prompts:
        for group in prompt.groups:
            groups.setdefault(group, set()).add(prompt.text)
    ordinary = {p.text for p in behaviour.prompts if behaviour.is_main(p)}
    assert groups["all lower"] == {t.lower() for t in ordinary}
    assert groups["all upper"] == {t.upper() for t in ordinary if len(t) < 100}
    assert len({p.text for p in behaviour.prompts}) == len(behaviour)


def test_lowering_sentence_starts_leaves_names_alone() -> None:
    assert lower_sentence_starts("It is I. He is Ed.") == "it is I. he is Ed."


def test_ioi_names_are_where_the_paper_puts_them(tokenizer: Tokenizer) -> None:
    behaviour = preset("ioi")
    for prompt in behaviour.prompts:
        ids = tokenizer.ids(prompt.text)
        roles = roles_of(tokenizer, prompt, ids, behaviour.roles)
        text = {name: [tokenizer.string(ids[i]) for i in at] for name, at in roles.items()}
        assert text["indirect object"] == [prompt.answer]
        assert text["subject 1"] == text["subject 2"] == [prompt.counterpart]
        assert roles["subject 1"] < roles["subject 2"]


def test_agreement_partners_differ_in_the_subjects_number_alone(tokenizer: Tokenizer) -> None:
    behaviour = preset("agreement")
    texts = {prompt.text: prompt for prompt in behaviour.prompts}
    for prompt in behaviour.prompts:
        assert prompt.corrupted is not None
        ids, theirs = tokenizer.ids(prompt.text), tokenizer.ids(prompt.corrupted)
        apart = [i for i, (a, b) in enumerate(zip(ids, theirs, strict=True)) if a != b]
        roles = roles_of(tokenizer, prompt, ids, behaviour.roles)
        assert tuple(apart) == roles["subject"]
        assert apart[0] < len(ids) - 1
        other = texts[prompt.corrupted]  # the partner is a prompt of its own, with the same verbs
        assert (other.answer, other.counterpart) == (prompt.counterpart, prompt.answer)
        assert ("attractor" in roles) == (prompt.groups != ("no attractor",))
    singular = [prompt.answer in (" is", " was", " has") for prompt in behaviour.prompts]
    for group, n in (("no attractor", 16), ("attractor", 12), ("attractor of the same number", 12)):
        of_group = [
            s for s, p in zip(singular, behaviour.prompts, strict=True) if group in p.groups
        ]
        assert (len(of_group), sum(of_group)) == (n, n // 2)


def test_years_are_split_where_the_start_year_is(gpt2_tokenizer: Tokenizer) -> None:
    """On GPT-2 every two-digit token is on the side of its number."""
    for prompt in preset("greater-than").prompts:
        start = int(prompt.text.split(" to ")[0][-2:])
        sides = []
        for pattern in (prompt.answer_class, prompt.counterpart_class):
            assert pattern is not None
            ids: Sequence[int] = matching(gpt2_tokenizer, pattern, gpt2_tokenizer.d_vocab)
            texts = gpt2_tokenizer.strings(ids)
            sides.append({int(t) for t in texts if len(t) == 2})
            decided = {int(t) for t in texts if len(t) == 1}
            assert start // 10 not in decided
        assert sides == [set(range(start + 1, 100)), set(range(start + 1))]


def test_the_decimal_point_answer_is_a_digit(toy: Callable[..., Model]) -> None:
    behaviour = preset("decimal-point")
    batch = run_batch(toy(n_positions=256), behaviour, range(len(behaviour)), [])
    for row, answer in enumerate(batch.answers.chosen):
        assert answer is not None
        assert answer.text.isdigit()
        best = batch.logits[row][list(behaviour.classes.ids("digit", batch.model.tokenizer))].max()
        assert batch.logits[row, batch.model.tokenizer.single(answer.text)] == best
        assert answer.counterparts["counterpart"].label[1].isupper()
    pair = batch.contrasts[0]
    assert pair.name == "counterpart"
    assert (torch.sort(pair.weights, 1).values == torch.tensor([-1.0, 1.0])).all()


def test_a_preset_that_is_none_is_refused() -> None:
    with pytest.raises(BehaviourError, match=r"no preset is called 'ioy'.*Did you mean 'ioi'"):
        preset("ioy")
