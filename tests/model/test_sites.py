"""Is every named activation what its name says, and is an edit of it felt by the rest?

Laws: keeping changes nothing; an identity edit changes nothing; putting another run's value
everywhere gives that run from there on; nothing is left behind.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from casestudy.errors import EditError, PromptError, SiteError, SiteNotKept, TokenError
from casestudy.model.decoder import norm_scale, run
from casestudy.model.edits import Edit
from casestudy.model.model import Model
from casestudy.model.sites import Keep, Site
from casestudy.model.tokens import Tokens
from casestudy.model.trace import Trace, take_last

CLEAN = ["The door was open .", "He left .", "A"]
OTHER = ["The door was shut ,", "She left ,", "B"]

ABSENT = {  # what GPT-2's architecture does not have
    Site.MLP_GATE,
    Site.ATTN_POST_SCALE,
    Site.MLP_POST_SCALE,
}
PRESENT = [site for site in Site if site not in ABSENT]
# Float rounding of sums taken in another order: float32 resolves 6e-8, logits here are below 30.
ROUNDING = {"rtol": 1e-5, "atol": 2e-5}


def addresses(model: Model, site: Site) -> list[int | None]:
    return list(range(model.config.n_layers)) if site.layered else [None]


def key(site: Site, layer: int | None) -> Site | tuple[Site, int]:
    return site if layer is None else (site, layer)


@pytest.fixture(scope="module")
def tokens(toy_model: Model) -> Tokens:
    return toy_model.tokenize(CLEAN)


@pytest.fixture(scope="module")
def everything(toy_model: Model, tokens: Tokens) -> Trace:
    """All sites from one run."""
    return run(toy_model, tokens, keep=PRESENT, logits="all")


@pytest.fixture(scope="module")
def plain(toy_model: Model, tokens: Tokens) -> Trace:
    """The fused forward pass, nothing kept."""
    return run(toy_model, tokens, logits="all")


@pytest.fixture(scope="module")
def other(toy_model: Model) -> Trace:
    return run(toy_model, OTHER, keep=PRESENT, logits="all")


def on_prompts(trace: Trace) -> Tensor:
    assert trace.logits is not None
    return trace.logits[trace.tokens.mask]


def same(a: Trace, b: Trace) -> None:
    torch.testing.assert_close(on_prompts(a), on_prompts(b), **ROUNDING)


@pytest.mark.parametrize("site", PRESENT)
def test_shape_is_what_its_axes_say(everything: Trace, toy_model: Model, site: Site) -> None:
    config = toy_model.config
    pos = everything.tokens.ids.shape[1]
    sizes = {
        "batch": len(CLEAN),
        "pos": pos,
        "query_pos": pos,
        "key_pos": pos,
        "head": config.n_heads,
        "kv_head": config.n_kv_heads,
        "d_model": config.d_model,
        "d_head": config.d_head,
        "d_mlp": config.d_mlp,
        "one": 1,
    }
    for layer in addresses(toy_model, site):
        assert everything[key(site, layer)].shape == tuple(sizes[axis] for axis in site.axes)


def test_fused_equals_explicit(everything: Trace, plain: Trace) -> None:
    same(everything, plain)


@pytest.mark.parametrize("site", PRESENT)
def test_keeping_one_site_changes_nothing(
    toy_model: Model, tokens: Tokens, plain: Trace, everything: Trace, site: Site
) -> None:
    alone = run(toy_model, tokens, keep=[site], logits="all")
    same(alone, plain)
    for layer in addresses(toy_model, site):
        torch.testing.assert_close(
            alone[key(site, layer)], everything[key(site, layer)], **ROUNDING
        )


@pytest.mark.parametrize("site", PRESENT)
def test_identity_edit_changes_nothing(
    toy_model: Model, tokens: Tokens, plain: Trace, site: Site
) -> None:
    for layer in addresses(toy_model, site):
        same(run(toy_model, tokens, edit=[Edit(site, layer, lambda x: x)], logits="all"), plain)


def bend(x: Tensor) -> Tensor:
    """A change that no norm undoes; masked scores stay masked."""
    return torch.where(x.isfinite(), x + x.square(), x)


@pytest.mark.parametrize("site", PRESENT)
def test_an_edit_is_felt_and_kept_and_left_nowhere(
    toy_model: Model, tokens: Tokens, plain: Trace, site: Site
) -> None:
    for layer in addresses(toy_model, site):
        edited = run(toy_model, tokens, edit=[Edit(site, layer, bend)], keep=[site], logits="all")
        assert (on_prompts(edited) - on_prompts(plain)).abs().max() > 1e-3
        unedited = run(toy_model, tokens, keep=[site])[key(site, layer)]
        torch.testing.assert_close(edited[key(site, layer)], bend(unedited), **ROUNDING)
    again = run(toy_model, tokens, logits="all")
    assert torch.equal(on_prompts(again), on_prompts(plain))


# What carries everything that later layers read: one of these, or these together.
CUTS = [
    (Site.RESID_PRE,),
    (Site.RESID_MID,),
    (Site.RESID_POST,),
    (Site.EMBED, Site.POS_EMBED),
    (Site.FINAL_RESID,),
    (Site.FINAL_NORMED,),
    (Site.ATTN_OUT, Site.RESID_PRE),
    (Site.MLP_OUT, Site.RESID_MID),
]


@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: "+".join(site.value for site in cut))
def test_replacing_a_whole_cut_gives_the_other_run(
    toy_model: Model, tokens: Tokens, other: Trace, cut: tuple[Site, ...]
) -> None:
    assert torch.equal(tokens.lengths, other.tokens.lengths)
    for layer in addresses(toy_model, cut[0]):
        edits = [Edit.replace(site, layer, other[key(site, layer)]) for site in cut]
        same(run(toy_model, tokens, edit=edits, logits="all"), other)


# Sites inside one sublayer, with what they determine together.
DETERMINES = [
    ((Site.ATTN_IN,), Site.ATTN_OUT),
    ((Site.ATTN_NORMED,), Site.ATTN_OUT),
    ((Site.Q_IN, Site.K_IN, Site.V_IN), Site.ATTN_OUT),
    ((Site.Q, Site.K, Site.V), Site.ATTN_OUT),
    ((Site.ROT_Q, Site.ROT_K, Site.V), Site.ATTN_OUT),
    ((Site.ATTN_SCORES, Site.V), Site.ATTN_OUT),
    ((Site.PATTERN, Site.V), Site.ATTN_OUT),
    ((Site.Z,), Site.ATTN_OUT),
    ((Site.RESULT,), Site.ATTN_OUT),
    ((Site.Q, Site.K), Site.PATTERN),
    ((Site.Q_IN, Site.K_IN), Site.PATTERN),
    ((Site.V_IN,), Site.V),
    ((Site.MLP_IN,), Site.MLP_OUT),
    ((Site.MLP_NORMED,), Site.MLP_OUT),
    ((Site.MLP_PRE,), Site.MLP_OUT),
    ((Site.MLP_POST,), Site.MLP_OUT),
    ((Site.FINAL_RESID,), Site.FINAL_NORMED),
]


@pytest.mark.parametrize(
    ("causes", "effect"), DETERMINES, ids=lambda x: x.value if isinstance(x, Site) else None
)
def test_what_a_site_determines(
    toy_model: Model, tokens: Tokens, other: Trace, causes: tuple[Site, ...], effect: Site
) -> None:
    for layer in addresses(toy_model, effect):
        edits = [Edit.replace(site, layer, other[key(site, layer)]) for site in causes]
        trace = run(toy_model, tokens, edit=edits, keep=[effect])
        for prompt in range(len(CLEAN)):
            torch.testing.assert_close(
                trace.of(key(effect, layer), prompt),
                other.of(key(effect, layer), prompt),
                **ROUNDING,
            )


def test_sums_and_products_between_sites(everything: Trace, toy_model: Model) -> None:
    """The identities that the ledger and direct attribution stand on."""
    t = everything
    embedded = t["embed"] + t["pos_embed"]
    torch.testing.assert_close(t["resid_pre", 0], embedded, **ROUNDING)
    for layer, block in enumerate(toy_model.weights.blocks):
        written = t["result", layer].sum(2) + block.attn.b_O
        torch.testing.assert_close(t["attn_out", layer], written, **ROUNDING)
        mid = t["resid_pre", layer] + t["attn_out", layer]
        torch.testing.assert_close(t["resid_mid", layer], mid, **ROUNDING)
        post = t["resid_mid", layer] + t["mlp_out", layer]
        torch.testing.assert_close(t["resid_post", layer], post, **ROUNDING)
        pattern = t["pattern", layer]
        torch.testing.assert_close(pattern.sum(-1), torch.ones_like(pattern[..., 0]))
        assert (pattern.triu(1) == 0).all()
        x = t["mlp_in", layer]
        normed = (x - x.mean(-1, keepdim=True)) / t["mlp_scale", layer]
        normed = normed * block.mlp_norm.weight + block.mlp_norm.bias
        torch.testing.assert_close(t["mlp_normed", layer], normed, **ROUNDING)
    torch.testing.assert_close(t["final_resid"], t["resid_post", -1])
    torch.testing.assert_close(
        t["final_scale"], norm_scale(toy_model.config, t["final_resid"]), **ROUNDING
    )


def test_edits_of_one_site_apply_in_order(toy_model: Model, tokens: Tokens) -> None:
    edits = [Edit.zero("z", 0), Edit.add("z", 0, torch.tensor(3.0)), Edit("z", 0, lambda x: 2 * x)]
    trace = run(toy_model, tokens, edit=edits, keep=["z"])
    assert (trace["z", 0] == 6).all()


def test_replace_touches_the_chosen_part_alone(toy_model: Model, tokens: Tokens) -> None:
    before = run(toy_model, tokens, keep=["z"])["z", 0]
    edit = Edit.replace("z", 0, 7.0, batch=[0, 2], pos=slice(1, 3), head=torch.tensor([3]))
    after = run(toy_model, tokens, keep=["z"], edit=[edit])["z", 0]
    chosen = torch.zeros_like(before, dtype=torch.bool)
    for prompt in (0, 2):
        chosen[prompt, 1:3, 3] = True
    assert (after[chosen] == 7).all()
    assert torch.equal(after[~chosen], before[~chosen])
    grid = run(toy_model, tokens, keep=["pattern"], edit=[Edit.zero("pattern", 1, pos=1, head=0)])[
        "pattern", 1
    ]
    assert (grid[:, 0, 1] == 0).all()
    assert (grid[:, 0, 2].sum(-1) > 0.99).all()


def test_edits_do_not_reach_the_callers_tensors(toy_model: Model, tokens: Tokens) -> None:
    value = torch.ones(toy_model.config.d_model)
    kept = run(toy_model, tokens, keep=["resid_pre"])
    before = kept["resid_pre", 1].clone()
    run(toy_model, tokens, edit=[Edit.replace("resid_pre", 1, value)])
    run(toy_model, tokens, edit=[Edit.replace("resid_pre", 0, kept["resid_pre", 1])])
    assert torch.equal(value, torch.ones_like(value))
    assert torch.equal(kept["resid_pre", 1], before)


class TestLast:
    """What is kept at each prompt's last token only."""

    @pytest.mark.parametrize("site", PRESENT)
    def test_last_is_the_last_of_everything(
        self, toy_model: Model, tokens: Tokens, everything: Trace, site: Site
    ) -> None:
        trace = run(toy_model, tokens, keep=[site.at(last=True)])
        for layer in addresses(toy_model, site):
            expected = take_last(site, everything[key(site, layer)], tokens.last)
            torch.testing.assert_close(trace.last(key(site, layer)), expected, **ROUNDING)
            for prompt in range(len(CLEAN)):
                row = everything.of(key(site, layer), prompt)
                dim = 1 if "query_pos" in site.axes else 0
                own = row.select(dim, -1)
                kept = trace.last(key(site, layer))[prompt]
                if "key_pos" in site.axes:
                    kept = kept[:, : own.shape[-1]]
                torch.testing.assert_close(kept, own, **ROUNDING)

    def test_last_and_everywhere_at_once(self, toy_model: Model, tokens: Tokens) -> None:
        trace = run(toy_model, tokens, keep=["z", Site.Z.at(0, last=True)])
        assert torch.equal(
            trace.last(("z", 0)), take_last(Site.Z, trace["z", 0], trace.tokens.last)
        )

    def test_logits_last_are_the_last_of_all(self, toy_model: Model, plain: Trace) -> None:
        last = run(toy_model, CLEAN, logits="last").logits
        torch.testing.assert_close(
            last, take_last(Site.FINAL_NORMED, plain.logits, plain.tokens.last), **ROUNDING
        )
        assert run(toy_model, CLEAN).logits is None


class TestRefusals:
    """A typo, or an interception that would do nothing, never passes in silence."""

    def test_unknown_site(self, toy_model: Model, tokens: Tokens) -> None:
        with pytest.raises(SiteError, match=r"no site is called 'patern'.*Did you mean 'pattern'"):
            run(toy_model, tokens, keep=["patern"])

    @pytest.mark.parametrize("site", sorted(ABSENT, key=lambda site: site.value))
    def test_site_this_model_never_computes(
        self, toy_model: Model, tokens: Tokens, site: Site
    ) -> None:
        with pytest.raises(SiteError, match=f"never computes {site.value}"):
            run(toy_model, tokens, keep=[site])
        with pytest.raises(EditError, match=f"never computes {site.value}"):
            run(toy_model, tokens, edit=[Edit.zero(site, 0)])

    @pytest.mark.parametrize("layer", [2, -3])
    def test_layer_the_model_lacks(self, toy_model: Model, tokens: Tokens, layer: int) -> None:
        with pytest.raises(SiteError, match=rf"layer {layer}. Allowed: 0 to 1"):
            run(toy_model, tokens, keep=[Site.Z.at(layer)])
        with pytest.raises(SiteError, match=rf"layer {layer}"):
            run(toy_model, tokens, edit=[Edit.zero("z", layer)])

    def test_layer_of_a_site_without_layers(self, toy_model: Model, tokens: Tokens) -> None:
        with pytest.raises(SiteError, match="embed exists once"):
            run(toy_model, tokens, keep=[Site.EMBED.at(0)])
        with pytest.raises(SiteError, match="embed exists once"):
            run(toy_model, tokens, edit=[Edit.zero("embed", 0)])
        with pytest.raises(EditError, match="names no layer"):
            run(toy_model, tokens, edit=[Edit.zero("z", None)])

    @pytest.mark.parametrize(
        "bad",
        [lambda x: x[:, :-1], lambda x: x.double(), lambda x: None],
        ids=["shape", "format", "nothing"],
    )
    def test_edit_that_returns_something_else(
        self, toy_model: Model, tokens: Tokens, bad: Callable[[Tensor], Tensor]
    ) -> None:
        with pytest.raises(EditError, match=r"the edit at z, layer 1 returned .* Allowed: a float"):
            run(toy_model, tokens, edit=[Edit(Site.Z, 1, bad)])

    def test_value_or_index_that_does_not_fit(self, toy_model: Model, tokens: Tokens) -> None:
        with pytest.raises(EditError, match=r"a value of shape \(5,\) for z"):
            run(toy_model, tokens, edit=[Edit.replace("z", 0, torch.zeros(5))])
        with pytest.raises(EditError, match=r"index 9 along head of z. Allowed: 0 to 3"):
            run(toy_model, tokens, edit=[Edit.zero("z", 0, head=9)])
        with pytest.raises(EditError, match="resid_pre has no axis head"):
            Edit.zero("resid_pre", 0, head=1)
        for pos in (-1, slice(-2, None), [0, -1]):
            with pytest.raises(EditError, match="counts from the end"):
                Edit.zero("resid_pre", 0, pos=pos)

    def test_split_inputs_beside_an_edit_they_would_bypass(
        self, toy_model: Model, tokens: Tokens
    ) -> None:
        with pytest.raises(EditError, match="past the edit"):
            run(toy_model, tokens, keep=["q_in"], edit=[Edit.zero("attn_normed", 0)])

    def test_reading_what_was_not_kept(self, toy_model: Model, tokens: Tokens) -> None:
        trace = run(toy_model, tokens, keep=[Site.Z.at(0), Site.Q.at(0, last=True), "embed"])
        with pytest.raises(SiteNotKept, match=r'pattern, layer 0 was not kept. Add Site\("pattern'):
            trace["pattern", 0]
        with pytest.raises(SiteNotKept, match="z, layer 1 was not kept"):
            trace["z", 1]
        with pytest.raises(SiteNotKept, match="q, layer 0 was not kept at every position"):
            trace["q", 0]
        with pytest.raises(SiteNotKept, match='Say trace\\["z", layer\\]'):
            trace["z"]
        with pytest.raises(SiteNotKept, match='Say trace\\["embed"\\]'):
            trace["embed", 0]
        with pytest.raises(SiteError, match="layer 5"):
            trace["z", 5]

    def test_a_trace_shows_what_was_kept_not_its_numbers(
        self, toy_model: Model, tokens: Tokens
    ) -> None:
        trace = run(toy_model, tokens, keep=[Site.Z.at(0), "embed", Site.Q.at(1, last=True)])
        assert repr(trace) == (
            "Trace(3 prompts, no logits, kept: embed; z, layer 0; q, layer 1 (last))"
        )

    def test_logits_of_an_unknown_kind(self, toy_model: Model, tokens: Tokens) -> None:
        # past the annotation that the suite checks, as an unchecked caller would
        with pytest.raises(PromptError, match=r"logits='lst'. Allowed: none, last, all"):
            run.__wrapped__(toy_model, tokens, logits="lst")

    def test_tokens_the_model_cannot_read(self, toy_model: Model) -> None:
        with pytest.raises(TokenError, match=r"token id 8192. Allowed: 0 to 8191"):
            run(toy_model, Tokens.of([[0, 8192]]))
        with pytest.raises(TokenError, match="token id -1"):
            run(toy_model, Tokens.of([[0, -1]]))
        with pytest.raises(PromptError, match=r"65 tokens. Allowed: at most 64"):
            run(toy_model, Tokens.of([[0] * 65]))


def test_layers_may_be_counted_from_the_end(toy_model: Model, tokens: Tokens) -> None:
    trace = run(toy_model, tokens, keep=[Site.Z.at(-1)], edit=[Edit.zero("z", -1)])
    assert (trace["z", 1] == 0).all()
    assert torch.equal(trace["z", -1], trace["z", 1])


def test_keep_accepts_names_sites_and_keeps() -> None:
    assert Keep.of("z") == Keep.of(Site.Z) == Keep.of(Site.Z.at()) == Keep(Site.Z)
    assert Site.Z.at([0, 2]).addresses(3) == [(Site.Z, 0), (Site.Z, 2)]


class TestGradients:
    """grad=True builds a graph, whatever the caller's own setting."""

    def test_graph_is_built_under_no_grad_and_only_when_asked(self, toy_model: Model) -> None:
        with torch.no_grad():
            trace = run(toy_model, "Hello there", keep=["embed"], logits="last", grad=True)
            assert trace.logits is not None
            assert trace.logits.requires_grad
            assert not torch.is_grad_enabled()
        trace = run(toy_model, "Hello there", keep=["embed"], logits="last")
        assert trace.logits is not None
        assert not trace.logits.requires_grad
        assert not trace["embed"].requires_grad
        assert torch.is_grad_enabled()
        assert not any(tensor.requires_grad for _, tensor in toy_model.weights.named())

    @pytest.mark.parametrize("site", PRESENT)
    def test_gradient_is_the_slope(self, toy_model64: Model, site: Site) -> None:
        """Against a central difference along a random direction, in float64."""
        layer = 0 if site.layered else None
        tokens = toy_model64.tokenize(CLEAN)
        torch.set_grad_enabled(False)
        try:
            trace = run(toy_model64, tokens, keep=[site], logits="last", grad=True)
        finally:
            torch.set_grad_enabled(True)
        assert trace.logits is not None
        x = trace[key(site, layer)]
        (slope,) = torch.autograd.grad(trace.logits[:, 5].sum(), x)

        rng = torch.Generator().manual_seed(0)
        direction = torch.randn(x.shape, generator=rng, dtype=x.dtype)
        step = 1e-5

        def at(shift: float) -> float:
            edit = Edit.add(site, layer, shift * direction)
            logits = run(toy_model64, tokens, edit=[edit], logits="last").logits
            assert logits is not None
            return float(logits[:, 5].sum())

        difference = (at(step) - at(-step)) / (2 * step)
        expected = float((slope * direction).sum())
        # central differences err by step² times the third derivative, and rounding over step
        assert difference == pytest.approx(expected, rel=1e-6, abs=1e-8)
        assert abs(expected) > 1e-6
