"""Do the rewrites leave every log-probability as it was, and refuse where they would not?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from casestudy.errors import RewriteError
from casestudy.model.config import ModelConfig, Rotary
from casestudy.model.decoder import run
from casestudy.model.folding import REWRITES, rewrite
from casestudy.model.loading import BUNDLED
from casestudy.model.model import Model
from casestudy.model.tokens import Tokenizer, Tokens
from casestudy.model.weights import MLP, Attention, Block, Norm, Weights

PROMPTS = ["The door was open . He left .", "A"]
TOLERANCE = {"float32": 1e-4, "float64": 1e-9}
NAMES = tuple(REWRITES)


def log_probabilities(model: Model) -> Tensor:
    trace = run(model, PROMPTS, logits="all")
    assert trace.logits is not None
    return trace.logits.log_softmax(-1)[trace.tokens.mask]


def unchanged(before: Model, after: Model, tolerance: float) -> None:
    torch.testing.assert_close(
        log_probabilities(after), log_probabilities(before), rtol=0, atol=tolerance
    )


class TestNothingChanges:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("dtype", TOLERANCE)
    def test_one_at_a_time(self, toy: Callable[..., Model], name: str, dtype: str) -> None:
        model = toy(dtype=dtype)
        after = rewrite(model, name)
        assert after.rewrites == (name,)
        assert after.dtype == model.dtype
        unchanged(model, after, TOLERANCE[dtype])

    @given(names=st.lists(st.sampled_from(NAMES), max_size=6))
    @example(names=list(NAMES))
    @example(names=list(reversed(NAMES)))
    @settings(max_examples=25)
    def test_together_in_any_order(self, toy: Callable[..., Model], names: list[str]) -> None:
        for dtype, tolerance in TOLERANCE.items():
            model = toy(dtype=dtype)
            after = rewrite(model, *names)
            assert after.rewrites == tuple(names)
            unchanged(model, after, tolerance)

    def test_the_given_model_is_left_alone(self, toy: Callable[..., Model]) -> None:
        model = toy(seed=3)
        before = model.weight_hash
        rewrite(model, *NAMES)
        assert Model.weight_hash.func(model) == before  # computed anew, not from its cache
        assert model.rewrites == ()
        assert model.weights.tied


class TestWhatEachIsFor:
    def test_fold_ln_leaves_norms_without_parameters(self, toy_model64: Model) -> None:
        folded = rewrite(toy_model64, "fold_ln")
        norms = [folded.weights.final_norm]
        for block in folded.weights.blocks:
            norms += [block.attn_norm, block.mlp_norm]
        assert norms == [Norm()] * 5
        assert not folded.weights.tied
        expected = toy_model64.weights.final_norm.bias @ toy_model64.weights.W_U
        torch.testing.assert_close(folded.weights.b_U, expected)
        for read in (folded.weights.W_U, folded.weights.blocks[1].attn.W_K):
            assert read.mean(-2).abs().max() < 1e-12

    def test_center_unembed(self, toy_model64: Model) -> None:
        centred = rewrite(toy_model64, "fold_ln", "center_unembed")
        logits = run(centred, PROMPTS, logits="last").logits
        assert logits is not None
        assert logits.mean(-1).abs().max() < 1e-12

    def test_center_writing_weights_centres_the_stream(self, toy_model64: Model) -> None:
        centred = rewrite(toy_model64, "center_writing_weights")
        trace = run(centred, PROMPTS, keep=["resid_post", "result", "mlp_out", "final_resid"])
        for value in trace.values.values():
            bias = centred.weights.blocks[0].attn.b_O
            assert value.mean(-1).abs().max() < 1e-12
            assert bias is not None
            assert abs(float(bias.mean())) < 1e-12

    def test_fold_value_biases(self, toy_model64: Model) -> None:
        folded = rewrite(toy_model64, "fold_value_biases")
        assert all(block.attn.b_V is None for block in folded.weights.blocks)
        assert folded.weights.tied
        before, after = (run(m, PROMPTS, keep=["attn_out", "z"]) for m in (toy_model64, folded))
        torch.testing.assert_close(after["attn_out", 1], before["attn_out", 1])
        b_V = toy_model64.weights.blocks[0].attn.b_V
        torch.testing.assert_close(after["z", 0] + b_V, before["z", 0])

    def test_refactored_products_are_the_same_and_sorted(self, toy_model64: Model) -> None:
        plain = rewrite(toy_model64, "fold_value_biases")
        after = rewrite(toy_model64, "refactor_factored_attn_matrices")
        for block, new in zip(plain.weights.blocks, after.weights.blocks, strict=True):
            torch.testing.assert_close(new.attn.W_V @ new.attn.W_O, block.attn.W_V @ block.attn.W_O)
            torch.testing.assert_close(
                new.attn.W_Q @ new.attn.W_K.mT, block.attn.W_Q @ block.attn.W_K.mT
            )
            eye = torch.eye(8, dtype=torch.float64).expand(4, 8, 8)
            torch.testing.assert_close(new.attn.W_O @ new.attn.W_O.mT, eye)
            sizes = new.attn.W_V.norm(dim=1)
            assert (sizes.diff(dim=-1) <= 1e-12).all()
        before, later = (run(m, PROMPTS, keep=["attn_scores"]) for m in (plain, after))
        torch.testing.assert_close(later["attn_scores", 0], before["attn_scores", 0])


def modern(**changes: Any) -> Model:
    """A random decoder of the Llama kind: RMS norms, grouped queries, a gated MLP."""
    rng = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64) * 0.4

    d, heads, kv_heads, d_head, d_mlp, vocab = 12, 4, 2, 6, 16, 8192
    config = ModelConfig(
        family="llama",
        n_layers=2,
        d_model=d,
        n_heads=heads,
        n_kv_heads=kv_heads,
        d_head=d_head,
        d_mlp=d_mlp,
        d_vocab=vocab,
        n_ctx=64,
        attn_scale=(d_head**-0.5,) * 2,
        norm="rms",
        norm_weight_offset=1.0,
        activation="silu",
        rotary=(Rotary((1.0, 0.1, 0.01)),) * 2,
    )
    blocks = tuple(
        Block(
            attn=Attention(
                W_Q=normal(heads, d, d_head),
                W_K=normal(kv_heads, d, d_head),
                W_V=normal(kv_heads, d, d_head),
                W_O=normal(heads, d_head, d),
                b_V=normal(kv_heads, d_head),
            ),
            mlp=MLP(W_in=normal(d, d_mlp), W_gate=normal(d, d_mlp), W_out=normal(d_mlp, d)),
            attn_norm=Norm(normal(d)),
            mlp_norm=Norm(normal(d)),
        )
        for _ in range(2)
    )
    weights = Weights(
        W_E=normal(vocab, d), blocks=blocks, W_U=normal(d, vocab), final_norm=Norm(normal(d))
    )
    if changes.pop("normless", False):
        bare = (replace(block, attn_norm=None, mlp_norm=None) for block in blocks)
        weights = replace(weights, blocks=tuple(bare), final_norm=None)
    weights = replace(weights, **{k: v for k, v in changes.items() if hasattr(weights, k)})
    config = replace(config, **{k: v for k, v in changes.items() if hasattr(config, k)})
    tokenizer = Tokenizer.from_directory(BUNDLED / "tiny", prepend_bos=True, n_ctx=64)
    return Model(config, weights, tokenizer, name="modern")


class TestOtherArchitectures:
    @pytest.mark.parametrize("name", ["fold_ln", "center_unembed", "fold_value_biases"])
    def test_allowed_for_rms_norms_and_grouped_queries(self, name: str) -> None:
        model, tokens = modern(), Tokens.of([[5, 9, 1, 700, 4], [3]])
        before = run(model, tokens, logits="all").logits
        after = run(rewrite(model, name), tokens, logits="all").logits
        assert before is not None
        assert after is not None
        mask = tokens.mask
        torch.testing.assert_close(
            after.log_softmax(-1)[mask], before.log_softmax(-1)[mask], rtol=0, atol=1e-9
        )

    @pytest.mark.parametrize(
        ("name", "changes", "reason"),
        [
            ("center_writing_weights", {}, "rms. do not subtract the mean"),
            ("center_unembed", {"final_softcap": 30.0}, "soft-capped"),
            ("refactor_factored_attn_matrices", {}, "a rotation stands between"),
            ("refactor_factored_attn_matrices", {"rotary": ()}, "share keys and values"),
            (
                "refactor_factored_attn_matrices",
                {"rotary": (), "qk_norm": "head"},
                "are normalised",
            ),
            ("fold_ln", {"final_norm": None}, "before the unembedding"),
            ("fold_ln", {"normless": True}, "it has no norms"),
        ],
    )
    def test_refused(self, name: str, changes: dict[str, object], reason: str) -> None:
        with pytest.raises(RewriteError, match=rf"{name} would change .*{reason}"):
            rewrite(modern(**changes), name)

    @pytest.mark.parametrize("name", ["fold_ln", "center_writing_weights"])
    def test_refused_where_a_layer_reads_the_bare_stream(self, toy_model: Model, name: str) -> None:
        blocks = toy_model.weights.blocks
        bare = (blocks[0], replace(blocks[1], mlp_norm=None))
        model = replace(toy_model, weights=replace(toy_model.weights, blocks=bare))
        with pytest.raises(RewriteError, match="no norm stands before layer 1's MLP"):
            rewrite(model, name)

    def test_refused_where_a_layer_writes_through_a_norm(self, toy_model: Model) -> None:
        blocks = tuple(replace(b, attn_post_norm=Norm()) for b in toy_model.weights.blocks)
        model = replace(toy_model, weights=replace(toy_model.weights, blocks=blocks))
        with pytest.raises(RewriteError, match="write through a norm"):
            rewrite(model, "center_writing_weights")

    def test_unknown_name(self, toy_model: Model) -> None:
        with pytest.raises(RewriteError, match=r"no rewrite is called 'fold'. Allowed: fold_ln"):
            rewrite(toy_model, "fold")
