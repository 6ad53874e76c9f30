"""A direction has a card like any part: exact splits, exact ablation, and refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from casestudy.behaviour.windows import Windows
from casestudy.engine.batch import Measurement, run_batch
from casestudy.errors import MeasureError, SiteError
from casestudy.measure.part_ablation import ablate_on_corpus, ablate_on_prompts
from casestudy.measure.part_card import part
from casestudy.measure.part_reads import InputPositions, coordinates
from casestudy.measure.part_writes import keep_for_share, ledger_share, promoted_tokens
from casestudy.measure.parts import DirectionPart, read_part
from casestudy.measure.subspaces import Spot, Subspace
from casestudy.model.decoder import run
from casestudy.model.edits import Edit
from casestudy.model.model import Model
from casestudy.model.sites import Site
from casestudy.model.tokens import Tokens
from casestudy.results import names
from casestudy.results.result import Grid
from casestudy.show.part_card import part_card_html
from tests.measure.batches import rows
from tests.measure.cards import behaviour, corpus, only_activity, speaking
from tests.measure.worlds import D_MODEL, VARIANTS, contrast, decoder

SITES = (Site.RESID_PRE, Site.RESID_MID, Site.RESID_POST, Site.ATTN_OUT, Site.MLP_OUT)


def directions(k: int, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(D_MODEL, k, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(drawn).Q


def of(site: Site, layer: int = 1, k: int = 1) -> DirectionPart:
    return DirectionPart(layer, site, directions(k), "random", "last")


def saved(model: Model, folder: Path, k: int = 1, site: Site = Site.RESID_POST) -> str:
    spot = Spot(site, 1, "last")
    path = folder / "d.safetensors"
    Subspace(directions(k), spot, "random", model.name, model.weight_hash).save(path)
    return str(path)


@pytest.mark.parametrize("variant", sorted(VARIANTS))
@pytest.mark.parametrize("site", SITES)
def test_its_coordinates_are_the_sum_of_what_wrote_the_site(variant: str, site: Site) -> None:
    model = decoder(variant)
    if site is Site.RESID_MID and model.config.parallel:
        return
    tokens, one = Tokens.of(rows([5, 3])), of(site, k=2)
    grid = coordinates(model, one, InputPositions(tokens, [4, 1], ("0", "1")))
    assert grid.error["gap"] <= grid.error["bound"] == 1e-9
    held = run(model, tokens, keep=[site.at(1)])[site, 1][[0, 1], [4, 1]]
    np.testing.assert_allclose(grid.values.sum(1), (held @ one.basis).T, atol=1e-9)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("site", [Site.RESID_POST, Site.ATTN_OUT])
def test_its_ablation_is_a_plain_forward_pass_without_the_component(site: Site, k: int) -> None:
    model, tokens, one = decoder("llama"), Tokens.of(rows([5, 3, 5])), of(site, k=k)
    weighed = contrast(3)
    grid = ablate_on_prompts(model, one, tokens, weighed, labels=tuple("abc"))
    u = one.basis
    held = run(model, tokens, keep=[site.at(1)], logits="last")
    mean = held[site, 1].clone()
    for p in range(5):
        there = [i for i, n in enumerate(tokens.lengths.tolist()) if p < n]
        mean[:, p] = held[site, 1][there, p].mean(0)
    assert held.logits is not None
    for kind, put in (("zero", torch.zeros_like(mean)), ("mean", mean)):
        edit = Edit(site, 1, lambda x, put=put: x + (put - x) @ u @ u.T)  # type: ignore[misc]
        logits = run(model, tokens, edit=edit, logits="last").logits
        assert logits is not None
        expected = (weighed.value(logits) - weighed.value(held.logits)).numpy()
        np.testing.assert_allclose(grid.select(kind=kind).values, expected, atol=1e-9)


def test_on_a_corpus_it_is_active_and_ablated_like_any_part() -> None:
    model, one = speaking("gpt2"), of(Site.RESID_POST)
    windows = list(Windows(corpus(), model.tokenizer, 9))
    found = only_activity(model, one, windows, k=3, most_windows=4)
    plain = torch.cat(
        [
            run(model, [list(w.ids)], keep=[Site.RESID_POST.at(1)])[Site.RESID_POST, 1][0, 1:]
            for w in windows
        ]
    )
    values = (plain @ one.basis)[:, 0]
    assert found.groups == ("coordinate > 0", "coordinate ≤ 0")
    assert np.stack(found.counts).sum(0).tolist() == [
        int((values > 0).sum()),
        int((values <= 0).sum()),
    ]
    best = [heap.contexts()[0].value for heap in found.strongest]
    assert best == pytest.approx([float(values.max()), float(values.min())])
    table = ablate_on_corpus(model, found)
    chosen = [window for _, _, window in sorted(found.chosen, key=lambda c: c[1])]
    u = one.basis
    changes = []
    for window in chosen:
        pair = []
        for edits in ([], [Edit(Site.RESID_POST, 1, lambda x: x - x @ u @ u.T)]):
            logits = run(model, [list(window.ids)], edit=edits, logits="all").logits
            assert logits is not None
            ids = torch.tensor(window.ids[1:])
            pair.append(-logits[0, :-1].log_softmax(-1)[range(len(ids)), ids])
        changes += (pair[1] - pair[0]).tolist()
    assert table.rows()[0]["difference"] == pytest.approx(float(np.mean(changes)), abs=1e-6)


def test_its_share_is_what_it_adds_at_a_held_scale() -> None:
    model, asked, one = speaking("gpt2"), behaviour(), of(Site.RESID_POST, layer=2, k=2)
    measured = Measurement("part", lambda model: keep_for_share(model, one), lambda _: [])
    batch = run_batch(model, asked, range(len(asked)), [measured])
    share = ledger_share(batch, one).values[0]
    # in the last layer the stream along it reaches the logits through the final norm alone
    kept = [Site.FINAL_SCALE]
    whole = run(model, batch.tokens, keep=kept, logits="last")
    edits = [
        Edit(Site.RESID_POST, 2, lambda x: x - x @ one.basis @ one.basis.T),
        Edit.replace(Site.FINAL_SCALE, None, whole[Site.FINAL_SCALE]),
    ]
    without = run(model, batch.tokens, edit=edits, logits="last").logits
    assert whole.logits is not None
    assert without is not None
    weighed = batch.contrasts[0]
    lost = weighed.value(whole.logits) - weighed.value(without)
    np.testing.assert_allclose(share, lost.numpy(), atol=1e-9)


def test_a_card_from_a_file(tmp_path: Path) -> None:
    model = speaking("gpt2")
    card = part(model, saved(model, tmp_path, 2), behaviour=behaviour(), corpus=corpus(), k=3,
                window=9, loss_windows=3)  # fmt: skip
    assert (card.kind, card.part) == ("direction", "direction of resid_post 1 (random)")
    assert card.absent == ()
    reads = card[names.PART_READS]
    assert isinstance(reads, Grid)
    assert reads.axis("direction").labels == ("1", "2")
    assert any("found at the last token" in note for note in card.notes)
    numbers = set(card[names.PART_TOKENS].columns["direction"])  # type: ignore[union-attr]
    assert numbers == {1, 2}
    page = part_card_html(card)
    assert "What wrote its coordinate, direction 1" in page
    one = read_part(model, saved(model, tmp_path))
    assert isinstance(one, DirectionPart)
    assert promoted_tokens(model, one).columns["direction"][0] == 1


def test_files_that_are_no_direction_of_this_model_are_refused(tmp_path: Path) -> None:
    model = speaking("gpt2")
    with pytest.raises(MeasureError, match="cannot be read"):
        read_part(model, str(tmp_path / "absent.safetensors"))
    with pytest.raises(MeasureError, match="is a direction of random-llama"):
        read_part(model, saved(speaking("llama"), tmp_path))
    spot = Spot(Site.RESID_POST, 1, "last")
    path = tmp_path / "bad.safetensors"
    for broken, said in (
        (directions(1) * float("nan"), "NaN"),
        (torch.eye(D_MODEL + 1, 1, dtype=torch.float64), f"shape \\({D_MODEL + 1}, 1\\)"),
    ):
        Subspace(broken, spot, "random", model.name, model.weight_hash).save(path)
        with pytest.raises(MeasureError, match=said):
            read_part(model, str(path))
    Subspace(directions(1), Spot(Site.RESID_POST, 9), "r", model.name, model.weight_hash).save(path)
    with pytest.raises(SiteError, match="layer 9"):
        read_part(model, str(path))
