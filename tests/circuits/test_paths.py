"""Every path equals the runs it stands for, made by hand with edits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from casestudy.circuits.graph import LOGITS, Receiver, Sender, senders_before
from casestudy.circuits.paths import path_patch
from casestudy.engine.packing import Budget
from casestudy.errors import MeasureError, SiteError
from casestudy.measure.patching import Pairs
from casestudy.model.decoder import apply_norm, norm_scale, run
from casestudy.model.edits import Edit
from casestudy.model.model import Model
from casestudy.model.sites import Site
from casestudy.model.tokens import Tokens
from casestudy.model.trace import Trace
from tests.measure.worlds import N_HEADS, contrast, decoder, pairs

EVERY = Budget(check=10**6)


def receivers(model: Model) -> list[Receiver]:
    kv = model.config.n_kv_heads - 1
    return [
        Receiver("q", 2, 1),
        Receiver("k", 1, kv),
        Receiver("v", 2, kv),
        Receiver("mlp", 1),
        Receiver("mlp", 2),
        LOGITS,
    ]


def kept(model: Model, tokens: Tokens) -> Trace:
    return run(
        model,
        tokens,
        keep=[Site.RESID_PRE, Site.ATTN_OUT, Site.Z, Site.MLP_OUT, Site.FINAL_RESID],
    )


def said(model: Model, base: Tokens, sender: Sender, ours: Trace, theirs: Trace) -> Edit:
    """The sender's output replaced, as an edit of one place in the stream's sums."""
    if sender.kind == "embed":
        return Edit.replace(Site.RESID_PRE, 0, theirs[Site.RESID_PRE, 0])
    layer = sender.layer
    assert layer is not None
    if sender.kind == "mlp":
        return Edit.replace(Site.MLP_OUT, layer, theirs[Site.MLP_OUT, layer])
    z = theirs[Site.Z, layer][:, :, sender.head : sender.head + 1]  # type: ignore[operator]
    patched = run(
        model,
        base,
        keep=[Site.ATTN_OUT],
        edit=[Edit.replace(Site.Z, layer, z, head=[sender.head])],  # type: ignore[list-item]
    )
    return Edit.replace(Site.ATTN_OUT, layer, patched[Site.ATTN_OUT, layer])


def read_site(model: Model, receiver: Receiver) -> tuple[Site, int | None]:
    if receiver.kind == "logits":
        return Site.FINAL_RESID, None
    if receiver.kind == "mlp":
        return Site.MLP_IN, receiver.layer
    return Site.ATTN_IN, receiver.layer


def by_hand(
    model: Model, base: Tokens, source: Tokens, sender: Sender, receiver: Receiver, mode: str
) -> Tensor:
    """Last-position logits after two plain runs: one to the receiver, one from it."""
    ours, theirs = kept(model, base), kept(model, source)
    site, layer = read_site(model, receiver)
    # an edit of the sender in a run with every other attention output, or every output, frozen
    frozen = [
        Edit.replace(frozen_site, at, ours[frozen_site, at])
        for frozen_site in ([Site.ATTN_OUT] + ([Site.MLP_OUT] if mode == "direct" else []))
        for at in range(model.config.n_layers)
    ]
    carried = run(
        model, base, keep=[site], edit=[*frozen, said(model, base, sender, ours, theirs)]
    ).values[site, layer]
    if receiver.kind == "logits":
        edit = Edit.replace(site, None, carried)
    elif receiver.kind == "mlp":
        edit = Edit.replace(site, layer, carried)
    else:
        split = {"q": Site.Q_IN, "k": Site.K_IN, "v": Site.V_IN}[receiver.kind]
        assert receiver.head is not None
        edit = Edit.replace(split, layer, carried[:, :, None], head=[receiver.head])
    logits = run(model, base, edit=[edit], logits="last").logits
    assert logits is not None
    return logits


@pytest.mark.parametrize("mode", ["through_mlps", "direct"])
@pytest.mark.parametrize("variant", ["gpt2", "neox", "gemma2", "olmo2"])
def test_every_path_equals_two_plain_runs(variant: str, mode: str) -> None:
    model = decoder(variant)
    clean, corrupted = pairs([5, 7], seed=3, first=[1, 3])
    for receiver in receivers(model):
        senders = senders_before(model.config, receiver)
        # the first, the last and one between: all would take minutes
        senders = (senders[0], senders[len(senders) // 2], senders[-1])
        found = path_patch(
            model,
            Pairs(clean, corrupted),
            contrast(2),
            receiver,
            senders=senders,
            mode=mode,  # type: ignore[arg-type]
            budget=EVERY,
        )
        assert found.raw.axis("sender").labels == tuple(map(str, senders))
        assert found.raw.error.get("gap", 0.0) < 1e-9
        for i, sender in enumerate(senders):
            logits = by_hand(model, corrupted, clean, sender, receiver, mode)
            np.testing.assert_allclose(
                found.raw.values[i], contrast(2).value(logits), atol=1e-9, err_msg=str(sender)
            )


@pytest.mark.parametrize("variant", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("mode", ["through_mlps", "direct"])
def test_frozen_norms_keep_the_unpatched_scales(variant: str, mode: str) -> None:
    model = decoder(variant)
    clean, corrupted = pairs([6], first=[1])
    sites = [Site.MLP_SCALE, Site.FINAL_SCALE]
    if model.weights.blocks[0].mlp_post_norm is not None:
        sites.append(Site.MLP_POST_SCALE)
    scales = run(model, corrupted, keep=sites)
    ours, theirs = kept(model, corrupted), kept(model, clean)
    sender = Sender("mlp", 0)
    frozen = [
        Edit.replace(site, at, ours[site, at])
        for site in ([Site.ATTN_OUT] + ([Site.MLP_OUT] if mode == "direct" else []))
        for at in range(3)
    ]
    frozen += [Edit.replace(site, layer, x) for (site, layer), x in scales.values.items()]
    edits = [*frozen, said(model, corrupted, sender, ours, theirs)]
    logits = run(model, corrupted, edit=edits, logits="last").logits
    assert logits is not None
    found = path_patch(
        model,
        Pairs(clean, corrupted),
        contrast(1),
        senders=[sender],
        mode=mode,  # type: ignore[arg-type]
        norms="frozen",
    )
    np.testing.assert_allclose(found.raw.values[0], contrast(1).value(logits), atol=1e-9)
    recomputed = path_patch(
        model,
        Pairs(clean, corrupted),
        contrast(1),
        senders=[sender],
        mode=mode,  # type: ignore[arg-type]
    )
    assert np.abs(found.raw.values - recomputed.raw.values).max() > 1e-4


def test_a_frozen_norm_at_a_head() -> None:
    model = decoder()
    clean, corrupted = pairs([6], first=[1])
    ours, theirs = kept(model, corrupted), kept(model, clean)
    change = theirs[Site.MLP_OUT, 0] - ours[Site.MLP_OUT, 0]
    norm, x = model.weights.blocks[2].attn_norm, ours[Site.RESID_PRE, 2]
    assert norm is not None
    assert norm.weight is not None
    centred = change - change.mean(-1, keepdim=True)
    normed = apply_norm(model.config, norm, x)
    normed = normed + centred / norm_scale(model.config, x) * norm.weight
    attn = model.weights.blocks[2].attn
    assert attn.b_K is not None
    k = normed @ attn.W_K[1] + attn.b_K[1]
    edit = Edit.replace(Site.K, 2, k[:, :, None], head=[1])
    logits = run(model, corrupted, edit=[edit], logits="last").logits
    assert logits is not None
    found = path_patch(
        model,
        Pairs(clean, corrupted),
        contrast(1),
        Receiver("k", 2, 1),
        senders=[Sender("mlp", 0)],
        mode="direct",
        norms="frozen",
    )
    np.testing.assert_allclose(found.raw.values[0], contrast(1).value(logits), atol=1e-9)


def test_direct_effects_add_up_where_the_norm_is_frozen() -> None:
    """All senders together are the whole other stream, and a frozen norm is linear."""
    model = decoder()
    clean, corrupted = pairs([6, 4], first=[1, 0])
    found = path_patch(model, Pairs(clean, corrupted), contrast(2), mode="direct", norms="frozen")
    ours, theirs = kept(model, corrupted), kept(model, clean)
    old, new = ours.last(Site.FINAL_RESID), theirs.last(Site.FINAL_RESID)
    norm = model.weights.final_norm
    assert norm is not None
    assert norm.weight is not None
    change = (new - old) - (new - old).mean(-1, keepdim=True)
    change = change / norm_scale(model.config, old) * norm.weight
    expected = (change * contrast(2).directions(model.weights)).sum(-1)
    total = (found.raw.values - found.baselines.values[0]).sum(0)
    np.testing.assert_allclose(total, expected, atol=1e-9)


def test_paths_do_not_depend_on_the_block_of_prompts() -> None:
    model = decoder()
    clean, corrupted = pairs([5, 7] * 10)
    labels = tuple(map(str, range(20, 40)))
    both = Pairs(clean, corrupted, labels=labels)
    receiver = Receiver("v", 2, 0)
    whole = path_patch(model, both, contrast(20), receiver)
    parts = path_patch(model, both, contrast(20), receiver, budget=Budget(memory=1_000_000))
    assert len(parts.plan.blocks) > len(whole.plan.blocks)
    np.testing.assert_allclose(parts.raw.values, whole.raw.values, atol=1e-12)
    np.testing.assert_allclose(parts.baselines.values, whole.baselines.values, atol=1e-12)
    assert parts.raw.axis("prompt").labels == labels
    assert whole.raw.name == "paths.through_mlps.2.0.v.raw"
    assert whole.normalised.values.shape == (len(senders_before(model.config, receiver)),)


def test_a_function_of_the_logits_gets_the_right_prompts() -> None:
    model = decoder()
    clean, corrupted = pairs([5, 7] * 10)
    weighing = contrast(20)

    def metric(logits: Tensor, prompts: Tensor) -> Tensor:
        return weighing[prompts.tolist()].value(logits)

    for receiver in (LOGITS, Receiver("q", 1, 0)):
        both = Pairs(clean, corrupted)
        tight = Budget(memory=1_000_000)
        linear = path_patch(model, both, weighing, receiver, budget=tight)
        called = path_patch(model, both, metric, receiver, budget=tight)
        np.testing.assert_allclose(called.raw.values, linear.raw.values, atol=1e-9)


def test_senders_come_before_their_receiver() -> None:
    config = decoder().config
    assert len(senders_before(config, LOGITS)) == 1 + 3 * (N_HEADS + 1)
    assert len(senders_before(config, Receiver("q", 1, 0))) == 1 + N_HEADS + 1
    assert len(senders_before(config, Receiver("mlp", 1))) == 1 + N_HEADS + 1 + N_HEADS
    assert len(senders_before(decoder("neox").config, Receiver("mlp", 1))) == 1 + N_HEADS + 1


class TestBadInput:
    both = Pairs(*pairs([5]))

    def test_a_sender_after_its_receiver(self) -> None:
        with pytest.raises(
            SiteError, match=r"sender head 1\.0 does not come before receiver head 1\.2<q>"
        ):
            path_patch(
                decoder(),
                self.both,
                contrast(1),
                Receiver("q", 1, 2),
                senders=[Sender("head", 1, 0)],
            )

    @pytest.mark.parametrize(
        ("receiver", "message"),
        [
            (Receiver("q", 3, 0), "layer 3"),
            (Receiver("q", 1, 4), "head 4 of q"),
            (Receiver("k", 1, 2), "head 2 of k"),
            (Receiver("q"), "names no layer"),
            (Receiver("v", 1), "head None of v"),
        ],
    )
    def test_receivers_the_model_does_not_have(self, receiver: Receiver, message: str) -> None:
        with pytest.raises(SiteError, match=message):
            path_patch(decoder("llama"), self.both, contrast(1), receiver)

    @pytest.mark.parametrize(
        "sender", [Sender("head", 0, 4), Sender("head", 3, 0), Sender("mlp"), Sender("head", 0)]
    )
    def test_senders_the_model_does_not_have(self, sender: Sender) -> None:
        with pytest.raises(SiteError, match="Allowed: 0 to"):
            path_patch(decoder(), self.both, contrast(1), senders=[sender])

    def test_pairs_that_do_not_match(self) -> None:
        clean, corrupted = pairs([5])
        shorter = Tokens.of([clean.rows()[0][:4]])
        with pytest.raises(MeasureError, match="unequal length"):
            path_patch(decoder(), Pairs(shorter, corrupted), contrast(1))
        with pytest.raises(MeasureError, match="identical"):
            path_patch(decoder(), Pairs(clean, clean), contrast(1))

    def test_nan_in_a_run(self) -> None:
        model = decoder(dtype=torch.float32)
        model.weights.W_E[int(self.both.clean.ids[0, 0])] = float("nan")
        with pytest.raises(MeasureError, match="NaN"):
            path_patch(model, self.both, contrast(1))
