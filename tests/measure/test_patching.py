"""Named grids of patches: their axes, their laws, their ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from casestudy.behaviour.prompts import Prompt
from casestudy.engine.packing import Budget
from casestudy.errors import BehaviourError, MeasureError, SiteError
from casestudy.measure.patching import (
    By,
    Pairs,
    Patched,
    ablate,
    neurons,
    neurons_by_gradient,
    patch,
    subspace,
)
from casestudy.measure.patching_prompts import patch_prompts
from casestudy.model.decoder import run
from casestudy.model.edits import Edit
from casestudy.model.model import Model
from casestudy.model.sites import Site
from casestudy.model.tokens import Tokens
from tests.measure.worlds import D_MLP, D_MODEL, N_HEADS, VARIANTS, contrast, decoder, pairs

EVERY = Budget(check=10**6)


def some_pairs(lengths: list[int], first: list[int] | None = None) -> Pairs:
    clean, corrupted = pairs(lengths, seed=5, first=first)
    return Pairs(clean, corrupted)


@pytest.mark.parametrize(
    ("site", "by", "axes"),
    [
        ("resid_pre", None, ("layer", "pos")),
        ("mlp_out", "last", ("layer",)),
        ("z", None, ("layer", "head")),
        ("z", "position", ("layer", "head", "pos")),
        ("q", "last", ("layer", "head")),
        ("k", "all", ("layer", "kv_head")),
        ("v", "position", ("layer", "kv_head", "pos")),
        ("pattern", "all", ("layer", "head")),
    ],
)
def test_a_grid_has_the_axes_its_site_and_places_have(
    site: str, by: str | None, axes: tuple[str, ...]
) -> None:
    model = decoder("llama")
    found = patch(model, some_pairs([5, 7]), contrast(2), site, by=by, budget=EVERY)  # type: ignore[arg-type]
    sizes = {"layer": 3, "pos": 7, "head": N_HEADS, "kv_head": 2}
    assert tuple(axis.name for axis in found.raw.axes) == (*axes, "prompt")
    assert found.raw.values.shape == (*(sizes[name] for name in axes), 2)
    assert found.normalised.values.shape == found.raw.values.shape[:-1]
    assert found.raw.error["gap"] < 1e-9
    if "pos" in axes:
        assert np.isnan(found.raw.select(pos="6", prompt="0").values).all()
        assert not np.isnan(found.raw.select(pos="6", prompt="1").values).any()
        assert (found.normalised.select(pos="6").n == 1).all()


def test_normalised_values_are_ratios_of_means_with_n_and_an_interval() -> None:
    found = patch(decoder(), some_pairs([5, 5, 5, 5]), contrast(4), "attn_out")
    unpatched, other = found.baselines.values
    expected = (found.raw.values.mean(-1) - unpatched.mean()) / (other.mean() - unpatched.mean())
    grid = found.normalised
    np.testing.assert_allclose(grid.values, expected, atol=1e-12)
    assert (grid.n == 4).all()
    assert grid.lower is not None
    assert grid.upper is not None
    assert (grid.lower <= grid.values).all()
    assert (grid.values <= grid.upper).all()
    assert (grid.upper - grid.lower).max() > 1e-3
    assert grid.name == "patching.attn_out.position"
    np.testing.assert_allclose(
        found.effect.values, found.raw.values.mean(-1) - unpatched.mean(), atol=1e-12
    )
    assert {g.name for g in found.grids()} == {
        "patching.attn_out.position",
        "patching.attn_out.position.effect",
        "patching.attn_out.position.raw",
        "patching.attn_out.position.baselines.raw",
        "patching.attn_out.position.known.raw",
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_embeddings_all_heads_and_all_mlps_together_give_the_other_run(variant: str) -> None:
    model = decoder(variant)
    clean, corrupted = pairs([6, 6])
    sites = [Site.EMBED, Site.Z, Site.MLP_OUT]
    theirs = run(model, clean, keep=sites, logits="last")
    edits = [
        Edit.replace(site, layer, theirs.values[site, layer])
        for site in sites
        for layer in (range(3) if site.layered else [None])
    ]
    patched = run(model, corrupted, edit=edits, logits="last").logits
    torch.testing.assert_close(patched, theirs.logits)


def test_a_watched_grid_fills_up_and_is_the_same_in_the_end() -> None:
    shown: list[Patched] = []
    of = decoder(), some_pairs([6], first=[1]), contrast(1), "resid_pre"
    watched = patch(*of, budget=Budget(rows=12), watch=shown.append)
    plain = patch(*of)
    np.testing.assert_allclose(watched.raw.values, plain.raw.values, atol=1e-12)
    first = shown[0].normalised
    assert first.axes == plain.normalised.axes
    assert np.isnan(first.values).any()
    assert np.isfinite(first.values).any()
    np.testing.assert_array_equal(shown[-1].raw.values, watched.raw.values)


def test_noising_runs_the_clean_prompts() -> None:
    model, both = decoder(), some_pairs([5, 7])
    denoised = patch(model, both, contrast(2), "resid_pre")
    noised = patch(model, both, contrast(2), "resid_pre", direction="noising")
    np.testing.assert_allclose(noised.baselines.values, denoised.baselines.values[::-1])
    swapped = patch(model, Pairs(both.corrupted, both.clean), contrast(2), "resid_pre")
    np.testing.assert_allclose(noised.raw.values, swapped.raw.values)
    assert noised.raw.name == "patching.noising.resid_pre.position.raw"


def test_by_role_averages_prompts_of_any_length() -> None:
    model = decoder()
    clean, corrupted = pairs([4, 6], seed=2, first=[1, 1])
    longer = Tokens.of([[*row[:2], 7, *row[2:]] for row in corrupted.rows()])
    roles = [{"name": (1,), "end": (3,), "start": (0,)}, {"name": (1, 2), "end": (5,)}]
    theirs = [{"name": (1,), "end": (4,), "start": (0,)}, {"name": (1,), "end": (6,)}]
    both = Pairs(clean, longer, roles, theirs)
    found = patch(model, both, contrast(2), "resid_post", by="role", budget=EVERY)
    # in the order of the text, whichever prompt comes first
    assert found.raw.axis("role").labels == ("start", "name", "end")
    values = found.raw.select(layer="1").values
    # the second pair's name has another number of tokens on either side; it has no start
    np.testing.assert_array_equal(np.isnan(values), [[False, True], [False, True], [False, False]])
    np.testing.assert_array_equal(found.normalised.select(layer="1").n, [1, 1, 2])
    kept = run(model, clean[[1]], keep=["resid_post"])["resid_post", 1][0, 5]
    edit = Edit.replace("resid_post", 1, kept, pos=6)
    logits = run(model, longer[[1]], edit=[edit], logits="last").logits
    assert logits is not None
    assert values[2, 1] == pytest.approx(float(contrast(2)[[1]].value(logits)))
    with pytest.raises(MeasureError, match="unequal length"):
        patch(model, Pairs(clean, longer, roles), contrast(2), "resid_post", by="role")
    with pytest.raises(MeasureError, match="unequal length"):
        patch(model, both, contrast(2), "resid_post", by="position")
    with pytest.raises(MeasureError, match="no roles"):
        patch(model, Pairs(clean, longer), contrast(2), "resid_post", by="role")
    assert patch(model, both, contrast(2), "resid_post", by="last").raw.values.shape == (3, 2)


def test_choosing_neurons_needs_no_gradients_of_the_caller() -> None:
    model, both = decoder(), some_pairs([6], first=[5])
    chosen = neurons_by_gradient(model, both, contrast(1), 5)
    with torch.no_grad():
        assert neurons_by_gradient(model, both, contrast(1), 5) == chosen


def test_all_neurons_of_a_layer_are_its_mlp() -> None:
    model = decoder("linear")
    both = some_pairs([6], first=[5])
    # at the last position of the last layer the neurons' effects add up
    each = neurons(model, both, contrast(1), [(2, n) for n in range(D_MLP)], budget=EVERY)
    whole = patch(model, both, contrast(1), "mlp_out", by="last", layers=[2])
    assert each.effect.values.sum() == pytest.approx(float(whole.effect.values[0]))
    assert each.raw.axis("neuron").labels[3] == "2.3"
    by_position = neurons(model, both, contrast(1), [(1, 4)], by="position")
    assert [axis.name for axis in by_position.raw.axes] == ["neuron", "pos", "prompt"]


def test_top_neurons_rank_by_exact_effect_where_the_model_is_linear() -> None:
    model = decoder("linear", n_layers=1)
    both = some_pairs([6, 6], first=[5, 5])
    every = [(0, n) for n in range(D_MLP)]
    exact = np.abs(neurons(model, both, contrast(2), every).effect.values)
    best = neurons_by_gradient(model, both, contrast(2), 4)
    assert best == [(0, int(n)) for n in np.argsort(-exact)[:4]]
    assert len(neurons_by_gradient(model, both, contrast(2), 100)) == D_MLP
    with pytest.raises(MeasureError, match="top 0"):
        neurons_by_gradient(model, both, contrast(2), 0)


def test_a_whole_subspace_is_the_stream_and_two_halves_share_it() -> None:
    model, both = decoder("linear"), some_pairs([5], first=[0])
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(D_MODEL, D_MODEL, generator=generator, dtype=torch.float64)
    whole = subspace(model, both, contrast(1), basis, site="resid_mid", by="last", budget=EVERY)
    stream = patch(model, both, contrast(1), "resid_mid", by="last")
    np.testing.assert_allclose(whole.raw.values, stream.raw.values, atol=1e-9)
    q = torch.linalg.qr(basis)[0]
    halves = [
        subspace(model, both, contrast(1), part, site="resid_mid", by="last", layers=[2]).effect
        for part in (q[:, :3], q[:, 3:])
    ]
    assert sum(float(h.values[0]) for h in halves) == pytest.approx(
        float(stream.effect.select(layer="2").values)
    )
    with pytest.raises(MeasureError, match="dependent"):
        subspace(model, both, contrast(1), torch.ones(D_MODEL, 2))
    with pytest.raises(SiteError, match="residual stream"):
        subspace(model, both, contrast(1), basis, site="z")


def test_zero_ablation_of_everything_a_layer_adds() -> None:
    model = decoder()
    _, tokens = pairs([5, 7])
    found = ablate(model, tokens, contrast(2), "mlp_out", kind="zero", by="all", budget=EVERY)
    for layer in range(3):
        logits = run(model, tokens, edit=[Edit.zero("mlp_out", layer)], logits="last").logits
        assert logits is not None
        np.testing.assert_allclose(found.raw.values[layer], contrast(2).value(logits))
    assert found.baselines.axis("run").labels == ("unpatched",)
    with pytest.raises(MeasureError, match="no other run"):
        _ = found.normalised
    assert found.grids()[0].name == "ablation.zero.mlp_out.all.effect"


def test_mean_ablation_by_position_and_by_role() -> None:
    model = decoder("llama")
    _, tokens = pairs([5, 5, 5])
    kept = run(model, tokens, keep=["z"])["z", 1]
    found = ablate(model, tokens, contrast(3), "z", layers=[1], budget=EVERY)
    edit = Edit.replace("z", 1, kept.mean(0, keepdim=True), head=2)
    logits = run(model, tokens, edit=[edit], logits="last").logits
    assert logits is not None
    np.testing.assert_allclose(found.raw.values[0, 2], contrast(3).value(logits))

    _, ragged = pairs([4, 6])
    roles = [{"end": (3,)}, {"end": (5,)}]
    kept = run(model, ragged, keep=["z"])["z", 1]
    mean = (kept[0, 3] + kept[1, 5]) / 2
    found = ablate(model, ragged, contrast(2), "z", layers=[1], by="role", roles=roles)
    edit = Edit.replace("z", 1, mean, pos=5, head=0)
    logits = run(model, ragged[[1]], edit=[edit], logits="last").logits
    assert logits is not None
    assert found.raw.values[0, 0, 0, 1] == pytest.approx(float(contrast(2)[[1]].value(logits)))


def test_a_mean_is_taken_over_the_reference_prompts() -> None:
    model = decoder()
    reference, tokens = pairs([5] * 20, first=[0] * 20)
    tokens = tokens[[0, 1]]
    kept = run(model, reference, keep=["resid_pre"])["resid_pre", 1]
    found = ablate(
        model, tokens, contrast(2), "resid_pre", by="position", layers=[1], reference=reference
    )
    edit = Edit.replace("resid_pre", 1, kept[:, 3].mean(0), pos=3)
    logits = run(model, tokens, edit=[edit], logits="last").logits
    assert logits is not None
    np.testing.assert_allclose(found.raw.values[0, 3], contrast(2).value(logits))
    longer = Tokens.of([[1] * 6])
    with pytest.raises(MeasureError, match="position 5 occurs in no reference prompt"):
        ablate(model, longer, contrast(1), "resid_pre", by="position", reference=reference)
    with pytest.raises(MeasureError, match="end occurs in no reference prompt"):
        ablate(
            model,
            tokens,
            contrast(2),
            "resid_pre",
            by="role",
            roles=[{"end": (4,)}] * 2,
            reference=reference,
        )


def test_resampling_puts_in_a_partner() -> None:
    model = decoder()
    _, tokens = pairs([5, 5, 5])
    found = ablate(model, tokens, contrast(3), "attn_out", kind="resample", partners=[1, 2, 0])
    expected = patch(model, Pairs(tokens[[1, 2, 0]], tokens), contrast(3), "attn_out")
    np.testing.assert_allclose(found.raw.values, expected.raw.values)
    assert found.baselines.axis("run").labels == ("unpatched",)
    drawn = ablate(model, tokens, contrast(3), "attn_out", kind="resample")
    again = ablate(model, tokens, contrast(3), "attn_out", kind="resample")
    np.testing.assert_array_equal(drawn.raw.values, again.raw.values)
    with pytest.raises(MeasureError, match="one prompt"):
        ablate(model, tokens[[0]], contrast(1), "attn_out", kind="resample")


def test_a_metric_that_is_constant_has_no_shares_and_says_so() -> None:
    found = patch(
        decoder(), some_pairs([5, 7]), lambda logits, rows: torch.full((len(rows),), 2.5), "z"
    )
    assert not found.shares_mean_something
    assert np.isnan(found.normalised.values).all()
    assert "the same mean, 2.5, so there are no shares" in found.normalised.about
    assert (found.effect.values == 0).all()
    apart = patch(decoder(), some_pairs([5, 7]), contrast(2), "z")
    assert "no shares" not in apart.normalised.about


class TestBadInput:
    def test_pairs_of_unequal_length_without_roles(self) -> None:
        clean, corrupted = pairs([5, 7])
        shorter = Tokens.of([row[:4] for row in clean.rows()])
        for by in ("position", "all"):
            with pytest.raises(MeasureError, match=r"pairs \[0, 1\] are of unequal length"):
                patch(decoder(), Pairs(shorter, corrupted), contrast(2), "resid_pre", by=by)

    @pytest.mark.parametrize("by", [None, "role", "position", "all"])
    def test_pairs_of_unequal_length_say_what_would_do(
        self, toy_model: Model, by: By | None
    ) -> None:
        """Both lengths, what aligns such a pair, and the option, whether or not roles do."""
        with_roles = Prompt("It was late.", " He", " he", corrupted="It was very late.")
        without = Prompt("The dog", " He", " he", corrupted="The big dogs")
        lengths = r"clean.* 5 .*corrupted.* 6|6 corrupted and 5 clean"
        if by != "role":
            with pytest.raises(MeasureError, match=lengths) as told:
                patch_prompts(toy_model, [with_roles], "resid_pre", by=by)
            assert "by='role', which aligns them by roles" in str(told.value)
        with pytest.raises(BehaviourError, match="has 3 tokens and the corrupted one 4") as told:
            patch_prompts(toy_model, [without], "resid_pre", by=by)
        assert "they share no role to align them" in str(told.value)
        assert "by='last', the last token alone" in str(told.value)

    def test_the_last_tokens_need_nothing_to_align_them(self, toy_model: Model) -> None:
        pair = Prompt("The dog", " He", " he", corrupted="The big dogs")
        found = patch_prompts(toy_model, [pair], "resid_pre", by="last")
        assert np.isfinite(found.raw.values).all()

    def test_identical_prompts(self) -> None:
        clean, _ = pairs([5])
        with pytest.raises(MeasureError, match="identical"):
            patch(decoder(), Pairs(clean, clean), contrast(1), "resid_pre")

    def test_pairs_of_unequal_number(self) -> None:
        clean, corrupted = pairs([5, 7])
        with pytest.raises(MeasureError, match="2 clean prompts and 1 corrupted"):
            Pairs(clean, corrupted[[0]])

    def test_layers_out_of_range_and_sites_without_layers(self) -> None:
        both = some_pairs([5])
        with pytest.raises(SiteError, match="layer 3"):
            patch(decoder(), both, contrast(1), "resid_pre", layers=[3])
        with pytest.raises(SiteError, match="no layers"):
            patch(decoder(), both, contrast(1), "embed", layers=[0])
        assert patch(decoder(), both, contrast(1), "embed").raw.axes[0].name == "pos"

    def test_a_pattern_has_no_mean(self) -> None:
        _, tokens = pairs([5, 7])
        with pytest.raises(MeasureError, match="pattern"):
            ablate(decoder(), tokens, contrast(2), "pattern", kind="mean")
