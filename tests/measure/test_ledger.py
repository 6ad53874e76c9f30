"""Law 1: the ledger closes; and each of its terms is what the part really does."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from casestudy.behaviour.contrast import Contrast
from casestudy.behaviour.presets import preset
from casestudy.errors import BehaviourError
from casestudy.measure.ledger import gap_bound, keep_for_ledger, ledger, ledger_terms
from casestudy.model.decoder import run
from casestudy.model.edits import Edit
from casestudy.model.model import Model
from casestudy.model.sites import Site
from casestudy.model.weights import Norm
from casestudy.results.names import B_U, ENTROPY

PROMPTS = ["This is a sentence.", "Go.", "It was late. She did not know what he was doing."]


def pair(model: Model, *ids: tuple[int, int]) -> Contrast:
    rows = torch.tensor(ids)
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).expand(len(rows), 2)
    zero = torch.zeros(len(rows), dtype=torch.float64)
    names = tuple(str(i) for i, _ in ids)
    return Contrast("pair", rows, signs, zero, names, names)


def account(model: Model, contrast: Contrast) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    trace = run(model, PROMPTS, keep=keep_for_ledger(model), logits="last")
    names, terms = ledger_terms(model, trace, contrast)
    assert trace.logits is not None
    gap = (terms.sum(0) - contrast.value(trace.logits)).abs()
    assert (gap <= gap_bound(model.dtype, terms)).all(), gap
    return dict(zip(names, terms, strict=True)), gap


@given(st.lists(st.tuples(st.integers(0, 8000), st.integers(0, 8000)), min_size=3, max_size=3))
def test_it_closes_for_any_pair_of_tokens(
    toy: Callable[..., Model], ids: list[tuple[int, int]]
) -> None:
    for dtype in ("float32", "float64"):
        model = toy(dtype=dtype)
        account(model, pair(model, *ids))


def test_it_closes_for_every_prompt_of_the_flagship(toy: Callable[..., Model]) -> None:
    grid = ledger(toy(n_positions=256), preset("full-stop-capitals"))
    assert grid.error["gap"] <= grid.error["bound"]
    terms = grid.axis("term").labels
    assert terms[:4] == ("embed", "pos_embed", "attn 0", "mlp 0")
    assert terms[-2:] == (B_U, ENTROPY)


def test_b_U_is_the_norms_bias_through_the_unembedding(toy_model64: Model) -> None:
    norm = toy_model64.weights.final_norm
    assert norm is not None
    assert norm.bias is not None
    b_U = norm.bias @ toy_model64.weights.W_U
    terms, _ = account(toy_model64, pair(toy_model64, (5, 9), (7, 8), (1, 2)))
    torch.testing.assert_close(terms[B_U], b_U[[5, 7, 1]] - b_U[[9, 8, 2]])


def test_a_term_is_what_is_lost_without_that_part(toy_model64: Model) -> None:
    """With the final scale frozen, subtracting an MLP's output costs exactly its term."""
    model, contrast = toy_model64, pair(toy_model64, (5, 9), (7, 8), (1, 2))
    terms, _ = account(model, contrast)
    keep = [Site.MLP_OUT, Site.FINAL_SCALE]
    clean = run(model, PROMPTS, keep=keep, logits="last")
    for layer in range(model.config.n_layers):
        written = clean[Site.MLP_OUT, layer]
        without = run(
            model,
            PROMPTS,
            edit=[
                Edit.add(Site.FINAL_RESID, None, -written),
                Edit.replace(Site.FINAL_SCALE, None, clean[Site.FINAL_SCALE]),
            ],
            logits="last",
        )
        assert clean.logits is not None
        assert without.logits is not None
        lost = contrast.value(clean.logits) - contrast.value(without.logits)
        torch.testing.assert_close(terms[f"mlp {layer}"], lost)


def test_terms_that_do_not_exist_are_absent(toy_model64: Model) -> None:
    weights = replace(toy_model64.weights, final_norm=Norm(None, None))
    model = replace(toy_model64, weights=weights)
    terms, _ = account(model, pair(model, (5, 9), (7, 8), (1, 2)))
    assert B_U not in terms
    assert "soft cap" not in terms
    assert "entropy term" not in terms


def test_an_unembedding_bias_and_a_soft_cap_are_rows_of_their_own(toy_model64: Model) -> None:
    b_U = torch.randn(
        toy_model64.config.d_vocab, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    model = replace(
        toy_model64,
        weights=replace(toy_model64.weights, b_U=b_U),
        config=replace(toy_model64.config, final_softcap=3.0),
    )
    terms, _ = account(model, pair(model, (5, 9), (7, 8), (1, 2)))
    torch.testing.assert_close(terms["unembedding bias"], b_U[[5, 7, 1]] - b_U[[9, 8, 2]])
    assert (terms["soft cap"].abs() > 1e-3).any()


def test_a_prompt_without_an_answer_has_no_terms_rather_than_zeros(toy_model: Model) -> None:
    contrast = pair(toy_model, (5, 9), (7, 8), (1, 2))
    weights = contrast.weights.clone()
    weights[1] = float("nan")
    trace = run(toy_model, PROMPTS, keep=keep_for_ledger(toy_model))
    _, terms = ledger_terms(toy_model, trace, replace(contrast, weights=weights))
    assert terms[:, 1].isnan().all()
    assert not terms[:, [0, 2]].isnan().any()


def test_contrasts_of_a_token_with_itself_are_refused(toy_model: Model) -> None:
    with pytest.raises(BehaviourError, match="both ' He'"):
        Contrast.between(toy_model, [" He"], [" He"])
    with pytest.raises(BehaviourError, match="1 answers and 2 counterparts"):
        Contrast.between(toy_model, [" He"], [" he", " she"])
