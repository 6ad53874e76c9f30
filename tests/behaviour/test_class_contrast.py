"""A class contrast is log p(A) - log p(B), to the last digit, however it is computed."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from casestudy.behaviour.classes import CAPITAL_MASS, STANDARD, ClassContrast, TokenClass
from casestudy.behaviour.contrast import (
    CLASS_MASS,
    FEW,
    Contrast,
    check_classes,
    class_contrast,
)
from casestudy.behaviour.prompts import Behaviour, Prompt
from casestudy.engine.batch import run_batch
from casestudy.errors import BehaviourError
from casestudy.measure.ledger import LEDGER, keep_for_ledger, ledger, ledger_terms
from casestudy.model.decoder import run
from casestudy.model.model import Model
from casestudy.results.names import ENTROPY

PROMPTS = tuple(Prompt(t) for t in ("This is a sentence.", "Go.", "It was late. She went home."))
CAPITALS = Behaviour("capitals", "?", PROMPTS, class_contrast=CAPITAL_MASS)


def log_odds(logits: torch.Tensor, a: list[int], b: list[int]) -> torch.Tensor:
    log_p = logits.double().log_softmax(-1)
    return log_p[..., a].logsumexp(-1) - log_p[..., b].logsumexp(-1)


def of(logits: torch.Tensor, a: list[int], b: list[int]) -> Contrast:
    n = len(logits)
    names = [""] * n
    return Contrast.of_classes(
        logits, [a] * n, [b] * n, name="ab", answers=names, counterparts=names
    )


@given(
    st.integers(0, 10**6),
    st.sampled_from([0.1, 3.0, 40.0]),
    st.lists(st.integers(0, 299), min_size=2, max_size=250, unique=True),
    st.data(),
)
def test_it_is_the_log_odds_of_the_classes(
    seed: int, spread: float, tokens: list[int], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(1, len(tokens) - 1))
    a, b = tokens[:cut], tokens[cut:]
    logits = torch.randn(3, 300, generator=torch.Generator().manual_seed(seed)) * spread
    contrast = of(logits, a, b)
    torch.testing.assert_close(contrast.value(logits), log_odds(logits, a, b), rtol=0, atol=1e-10)


@given(st.integers(0, 10**6))
def test_at_freezes_it_anew(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    here, there = torch.randn(2, 300, generator=rng), 5 * torch.randn(2, 300, generator=rng)
    a, b = list(range(100)), list(range(150, 300))
    contrast = of(here, a, b).at(there)
    torch.testing.assert_close(contrast.value(there), log_odds(there, a, b), rtol=0, atol=1e-10)
    assert not contrast.linear


def test_a_pair_of_tokens_is_a_pair_of_classes_of_one(toy_model64: Model) -> None:
    logits = run(toy_model64, [p.text for p in PROMPTS], logits="last").logits
    assert logits is not None
    pair = Contrast.between(toy_model64, [" He"] * 3, [" he"] * 3)
    single = toy_model64.tokenizer.single
    classes = of(logits, [single(" He")], [single(" he")])
    torch.testing.assert_close(pair.value(logits), classes.value(logits))
    torch.testing.assert_close(
        pair.directions(toy_model64.weights), classes.directions(toy_model64.weights)
    )
    assert pair.linear
    assert pair.at(logits) is pair


@given(st.integers(0, 10**6), st.sampled_from([2, FEW, FEW + 1, 5000]))
def test_few_and_many_tokens_give_the_same_directions(toy_model: Model, seed: int, k: int) -> None:
    """Gathered columns and blocks of the whole unembedding are one sum."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(8192, generator=rng)[:k] for _ in range(2)])
    share = torch.randn(2, k, generator=rng, dtype=torch.float64)
    zero = torch.zeros(2, dtype=torch.float64)
    contrast = Contrast("random", ids, share, zero, ("", ""), ("", ""))
    W_U = toy_model.weights.W_U.double()
    plain = torch.stack([W_U[:, row] @ w for row, w in zip(ids, share, strict=True)])
    torch.testing.assert_close(contrast.directions(toy_model.weights), plain, rtol=0, atol=1e-10)
    stream = torch.randn(2, 32, generator=rng)
    logits = torch.stack([x @ W_U[:, row] for row, x in zip(ids, stream.double(), strict=True)])
    torch.testing.assert_close(
        contrast.project(stream, toy_model.weights), logits, rtol=0, atol=1e-10
    )


def test_another_unembedding_has_its_own_directions(toy_model64: Model) -> None:
    pair = Contrast.between(toy_model64, [" He"], [" he"])
    weights = toy_model64.weights
    once = pair.directions(weights)
    torch.testing.assert_close(pair.directions(replace(weights, W_U=2 * weights.W_U)), 2 * once)
    torch.testing.assert_close(pair.directions(weights), once)


def test_its_ledger_closes_on_the_direct_log_odds(toy: Callable[..., Model]) -> None:
    for dtype in ("float32", "float64"):
        model = toy(dtype=dtype)
        a, b = (list(STANDARD.ids(n, model.tokenizer)) for n in ("space+Capital", "space+lower"))
        grid = ledger(model, CAPITALS)
        account = grid.select(contrast="capital mass")
        logits = run(model, [p.text for p in PROMPTS], logits="last").logits
        assert logits is not None
        total = torch.from_numpy(account.values).sum(0)
        bound = grid.error["bound"]
        torch.testing.assert_close(total, log_odds(logits, a, b), rtol=0, atol=bound)
        assert grid.error["gap"] <= bound
        entropy = account.select(term=ENTROPY).values
        assert (abs(entropy) > 1e-3).all()


def test_a_term_of_one_contrast_is_absent_from_the_others(toy_model: Model) -> None:
    grid, check = LEDGER.measure(run_batch(toy_model, CAPITALS, range(3), [LEDGER]))
    measured = ~torch.from_numpy(check.select(quantity="gap").values).isnan()
    entropy = torch.from_numpy(grid.select(term=ENTROPY).values)
    assert grid.axis("contrast").labels[-1] == "capital mass"
    assert entropy[:-1].isnan().all()
    assert measured[-1].all()
    assert not entropy[-1].isnan().any()


def test_it_closes_under_a_soft_cap_and_an_unembedding_bias(toy_model64: Model) -> None:
    rng = torch.Generator().manual_seed(0)
    b_U = torch.randn(toy_model64.config.d_vocab, dtype=torch.float64, generator=rng)
    model = replace(
        toy_model64,
        weights=replace(toy_model64.weights, b_U=b_U),
        config=replace(toy_model64.config, final_softcap=3.0),
    )
    trace = run(model, [p.text for p in PROMPTS], keep=keep_for_ledger(model), logits="last")
    assert trace.logits is not None
    contrast = class_contrast(model, CAPITALS, PROMPTS, trace.logits)
    assert contrast is not None
    names, terms = ledger_terms(model, trace, contrast)
    torch.testing.assert_close(terms.sum(0), contrast.value(trace.logits), rtol=0, atol=1e-9)
    assert names[-2:] == ("soft cap", ENTROPY)


def test_a_prompt_can_bring_its_own_classes(toy_model64: Model) -> None:
    prompts = (
        Prompt("The year 17", answer_class=r"[4-9]\Z", counterpart_class=r"[0-2]\Z"),
        Prompt("Go."),
    )
    behaviour = Behaviour("years", "?", prompts)
    logits = run(toy_model64, [p.text for p in prompts], logits="last").logits
    assert logits is not None
    contrast = class_contrast(toy_model64, behaviour, prompts, logits)
    assert contrast is not None
    assert contrast.name == CLASS_MASS
    single = toy_model64.tokenizer.single
    a, b = [single(d) for d in "456789"], [single(d) for d in "012"]
    value = contrast.value(logits)
    torch.testing.assert_close(value[0], log_odds(logits[0], a, b))
    assert value[1].isnan()
    lone = class_contrast(toy_model64, behaviour, prompts[1:], logits[1:])
    assert lone is not None
    assert lone.value(logits[1:]).isnan().all()
    assert contrast.directions(toy_model64.weights)[1].isnan().all()
    both = class_contrast(
        toy_model64, replace(behaviour, class_contrast=CAPITAL_MASS), prompts, logits
    )
    assert both is not None
    assert not both.value(logits).isnan().any()
    assert both[[1]].counterparts == ("space+lower",)


def test_it_does_not_depend_on_the_neighbours(toy_model: Model) -> None:
    logits = run(toy_model, [p.text for p in PROMPTS], logits="last").logits
    assert logits is not None
    together = class_contrast(toy_model, CAPITALS, PROMPTS, logits)
    assert together is not None
    for i in range(3):
        alone = class_contrast(toy_model, CAPITALS, PROMPTS[i : i + 1], logits[i : i + 1])
        assert alone is not None
        torch.testing.assert_close(
            alone.directions(toy_model.weights), together[[i]].directions(toy_model.weights)
        )


def test_what_is_not_well_formed_is_refused(toy_model: Model) -> None:
    logits = torch.zeros(1, 10)
    with pytest.raises(BehaviourError, match="1 tokens are in both classes"):
        of(logits, [1, 2], [2, 3])
    with pytest.raises(BehaviourError, match="holds no token"):
        of(logits, [1, 2], [])
    with pytest.raises(BehaviourError, match="no class 'capital'"):
        replace(CAPITALS, class_contrast=ClassContrast("m", "capital", "lower"))
    with pytest.raises(BehaviourError, match="one class pattern"):
        Prompt("Go.", answer_class="a")
    with pytest.raises(BehaviourError, match="names none"):
        Behaviour("x", "?", (Prompt("Go."),), answers="classes")
    runes = STANDARD.extend(TokenClass("runes", r"\p{Runic}", required=False))
    absent = ClassContrast("m", "runes", "lower")
    full = torch.zeros(3, 8192)
    with pytest.raises(BehaviourError, match="no token of this vocabulary is of class 'runes'"):
        class_contrast(
            toy_model, replace(CAPITALS, classes=runes, class_contrast=absent), PROMPTS, full
        )
    with pytest.raises(BehaviourError, match="no token of this vocabulary is of class 'runes'"):
        check_classes(toy_model, replace(CAPITALS, classes=runes, class_contrast=absent))
    brought = Prompt("Go.", answer_class=r"\p{Runic}", counterpart_class="a")
    with pytest.raises(BehaviourError, match="matches no token of this vocabulary"):
        check_classes(toy_model, replace(CAPITALS, prompts=(brought,)))
    with pytest.raises(BehaviourError, match=r"of prompt 'Go\.' does not compile"):
        Prompt("Go.", answer_class="((", counterpart_class="a")
    check_classes(toy_model, CAPITALS)
