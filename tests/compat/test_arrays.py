"""Is a trace handed on under TransformerLens's names, number for number?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from casestudy.compat.transformer_lens.arrays import to_numpy
from casestudy.errors import SiteError
from casestudy.model.decoder import run
from casestudy.model.model import Model
from casestudy.model.sites import Site
from tests.model.test_families import pair_of

PROMPTS = ["It was late.", "He left"]


def test_names_and_numbers(toy_model: Model) -> None:
    keep = ["embed", "z", Site.Q_IN.at(1), Site.MLP_POST.at(last=True), "final_scale"]
    trace = run(toy_model, PROMPTS, keep=keep, logits="last")
    arrays = to_numpy(trace, toy_model)
    assert set(arrays) == {
        "hook_embed",
        "blocks.0.attn.hook_z",
        "blocks.1.attn.hook_z",
        "blocks.1.hook_q_input",
        "blocks.0.mlp.hook_post",
        "blocks.1.mlp.hook_post",
        "ln_final.hook_scale",
        "logits",
    }
    assert np.array_equal(arrays["blocks.1.attn.hook_z"], trace["z", 1].numpy())
    assert arrays["blocks.0.mlp.hook_post"].shape == (2, 128)
    assert trace.logits is not None
    assert np.array_equal(arrays["logits"], trace.logits.numpy())


def test_a_gated_mlp_has_its_gate_under_hook_pre() -> None:
    model = pair_of("llama").ours("float32")
    trace = run(model, PROMPTS, keep=["mlp_gate", "mlp_pre", "rot_q"])
    arrays = to_numpy(trace, model)
    assert np.array_equal(arrays["blocks.2.mlp.hook_pre"], trace["mlp_gate", 2].numpy())
    assert np.array_equal(arrays["blocks.2.mlp.hook_pre_linear"], trace["mlp_pre", 2].numpy())
    assert np.array_equal(arrays["blocks.0.attn.hook_rot_q"], trace["rot_q", 0].numpy())


def test_bfloat16_becomes_float32(toy: Callable[..., Model]) -> None:
    model = toy(dtype="bfloat16")
    trace = run(model, PROMPTS, keep=["embed"])
    embed = to_numpy(trace, model)["hook_embed"]
    assert embed.dtype == np.float32
    assert np.array_equal(embed, trace["embed"].float().numpy())


def test_what_has_no_name_is_said(toy_model: Model) -> None:
    trace = run(toy_model, PROMPTS, keep=["final_resid"])
    with pytest.raises(SiteError, match="no name for final_resid"):
        to_numpy(trace, toy_model)
