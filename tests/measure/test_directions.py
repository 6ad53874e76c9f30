"""A behaviour as a direction: exact interchange, the trained direction, steering, and the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from casestudy.behaviour.contrast import Contrast
from casestudy.errors import MeasureError, SiteError
from casestudy.measure.alignment_search import BOTH, Training, train_directions
from casestudy.measure.directions import DirectionCard, DirectionChoices, find_direction
from casestudy.measure.halves import Half
from casestudy.measure.metrics import NamedMetric, signed
from casestudy.measure.patching import Direction, Pairs, patch
from casestudy.measure.steering import steered, steered_loss, windows_of
from casestudy.measure.subspaces import (
    Spot,
    Subspace,
    differences,
    interchange,
    load_direction,
    orthonormal,
    random_directions,
)
from casestudy.model.decoder import run
from casestudy.model.edits import Edit
from casestudy.model.model import Model
from casestudy.model.sites import Site
from casestudy.model.tokens import Tokenizer, Tokens
from casestudy.results.result import Grid, Table
from tests.measure.worlds import D_MODEL, D_VOCAB, N_CTX, contrast, decoder, pairs

pytestmark = pytest.mark.slow

N = 16


def reading(model: Model) -> Model:
    """With a tokenizer that reads words between spaces."""
    words = HFTokenizer(WordLevel({f"w{i}": i for i in range(D_VOCAB)}, unk_token="w0"))
    words.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment]
    return replace(model, tokenizer=Tokenizer(words, None, None, False, N_CTX))


@cache
def linear() -> Model:
    """Its only layer writes nothing, and no norm follows: a contrast is a product with one
    direction of the embeddings."""
    model = decoder("linear", n_layers=1)
    (block,) = model.weights.blocks
    attn = replace(block.attn, W_O=0 * block.attn.W_O)
    mlp = replace(block.mlp, W_out=0 * block.mlp.W_out)
    weights = replace(model.weights, blocks=(replace(block, attn=attn, mlp=mlp),))
    return reading(replace(model, weights=weights))


END = Spot("resid_post", 0)


def alike(n: int) -> Contrast:
    """The same two tokens for every prompt."""
    return contrast(1, k=2)[[0] * n]


def planted() -> torch.Tensor:
    """The direction that the contrast reads."""
    one = alike(1)
    w: torch.Tensor = linear().weights.W_U[:, one.ids[0]] @ one.weights[0]
    return w


@cache
def world(n: int = N) -> Pairs:
    """Pairs that differ in their last token; the contrast is larger in the clean one."""
    lengths = [5 + i % 3 for i in range(n)]
    half = Half(Pairs(*pairs(lengths, first=[i - 1 for i in lengths])), alike(n))
    change = differences(linear(), half.pairs, END) @ planted()
    return half.turned(set((change < 0).nonzero()[:, 0].tolist())).pairs


def card(**options: object) -> DirectionCard:
    choices = DirectionChoices(END, training=Training(steps=60), random_sets=4)
    choices = replace(choices, **options)  # type: ignore[arg-type]
    texts = [("a", " ".join(f"w{i % 17}" for i in range(50))), ("b", "w1 w2 w3 w5 w8 w13 w4 w9 w2")]
    return find_direction(linear(), world(), alike(N), choices, other_text=texts)


@pytest.mark.parametrize("variant", ["gpt2", "llama", "gemma2", "neox"])
@pytest.mark.parametrize("way", BOTH)
def test_interchange_is_the_full_run_with_the_edit(variant: str, way: Direction) -> None:
    model, both, values = decoder(variant), world(4), contrast(4)
    roles = [{"here": (1, 3)}, {"here": (2, 4)}, {}, {"here": (0, 3)}]
    both = replace(both, roles=roles)
    u = random_directions(D_MODEL, 2, torch.Generator().manual_seed(0))
    for spot in (Spot("resid_pre", 1, "here"), Spot("mlp_out", 1, "here"), Spot("attn_out", 2)):
        found = interchange(model, both, values, [u, None], spot, direction=way)
        sides = both.sides(way)
        site, layer = spot.site, spot.layer
        new = run(model, sides.source, keep=site.at([layer]))[site, layer]
        for i, row in enumerate(roles):
            where = list(row.get("here", ())) if spot.role == "here" else [int(sides.base.last[i])]
            if not where:
                assert np.isnan(found.raw.values[:, i]).all()
                continue

            def put(
                x: torch.Tensor, new: torch.Tensor = new[i], where: list[int] = where
            ) -> torch.Tensor:
                x = x.clone()
                x[0, where] += (new[where] - x[0, where]) @ u @ u.T
                return x

            logits = run(model, sides.base[[i]], edit=Edit(site, layer, put), logits="last").logits
            assert logits is not None
            assert found.raw.values[0, i] == pytest.approx(
                float(values[[i]].value(logits)), abs=1e-9
            )


def test_the_whole_space_is_the_whole_site() -> None:
    model, both, values = decoder("gpt2"), world(4), contrast(4)
    whole = patch(model, both, values, "resid_post", by="last", layers=[1]).raw.values[0]
    everything = torch.eye(D_MODEL, dtype=torch.float64)
    found = interchange(model, both, values, [everything, None], Spot("resid_post", 1))
    np.testing.assert_allclose(found.raw.values, [whole, whole], atol=1e-9)


def test_shares_of_a_basis_sum_to_one_where_the_rest_is_linear() -> None:
    """So a random direction carries one d_model-th on average."""
    basis = random_directions(D_MODEL, D_MODEL, torch.Generator().manual_seed(3))
    found = interchange(linear(), world(), alike(N), list(basis.T[:, :, None]), END)
    assert found.normalised.values.sum() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("rank", [1, 3])
def test_training_finds_the_planted_direction(rank: int) -> None:
    training = Training(steps=60, rate=0.3)
    lengths = [3 + i % 2 for i in range(3 * N)]  # so many that differences have no main direction
    both, values = Pairs(*pairs(lengths, first=[i - 1 for i in lengths])), alike(3 * N)
    u = train_directions(linear(), both, values, END, rank=rank, training=training)
    np.testing.assert_allclose(u.T @ u, np.eye(rank), atol=1e-9)
    w = planted() / planted().norm()
    assert float((u.T @ w).norm()) > 0.99
    again = train_directions(linear(), both, values, END, rank=rank, training=training)
    assert torch.equal(u, again)
    other = replace(training, seed=1, steps=1)
    first = train_directions(linear(), both, values, END, rank=rank, training=other)
    assert not torch.allclose(u, first)


def test_training_needs_no_linear_metric_and_no_last_site() -> None:
    model, both = decoder("llama", n_layers=2), world(8)
    values = contrast(8)
    metric = NamedMetric("odds", "share", lambda logits, rows: values[rows.tolist()].value(logits))
    spot = Spot("resid_pre", 1, "all")
    some = [None, train_directions(model, both, metric, spot, rank=2, training=Training(40))]
    drawn = random_directions(D_MODEL, 2, torch.Generator().manual_seed(0))
    shares = interchange(model, both, metric, [*some, drawn], spot).raw.values
    target = values.value(run(model, both.clean, logits="last").logits).numpy()  # type: ignore[arg-type]
    whole, trained, random = np.square(shares - target).mean(1)
    assert whole == pytest.approx(0, abs=1e-12)  # the whole stream is the other run
    assert trained < 0.7 * random


def test_a_card_has_both_directions_beside_random_ones_and_the_whole_site() -> None:
    found = card()
    shares = found["direction.summary"]
    assert isinstance(shares, Table)
    rows = {(r["directions"], r["pairs"], r["way"]): r for r in shares.rows()}
    assert len(rows) == 4 * 2 * 2
    assert {row["n"] for row in rows.values()} == {N // 2}
    for way in BOTH:
        assert rows["whole site", "held out", way]["value"] == pytest.approx(1, abs=1e-9)
        trained = rows["trained", "held out", way]
        assert trained["value"] > 0.85
        assert trained["lower"] <= trained["value"] <= trained["upper"]
        random = rows["random", "held out", way]
        assert random["lower"] <= random["value"] <= random["upper"]
        assert random["value"] < 0.5 < trained["value"]
    assert found.about["n_turned"] == 0
    three = card(rank=3)["direction.summary"]
    assert isinstance(three, Table)
    assert {(r["directions"], r["rank"]) for r in three.rows()} == {
        *(("whole site", None), ("difference of means", 1), ("trained", 3)),
        *(("random", 1), ("random", 3)),
    }


def test_steering_is_linear_where_the_model_is() -> None:
    found = card(coefficients=(2.0, -1.0))
    grid, cost = found["direction.steering"], found["direction.cost"]
    assert isinstance(grid, Grid)
    assert isinstance(cost, Grid)
    assert grid.axes[-1].labels == ("-1", "0", "2")
    assert grid.axis("run").labels == ("clean", "corrupted")
    u = found.subspaces["trained"].directions
    means = found.about["length"] * found.subspaces["difference of means"].directions[:, 0]
    slope = float((u @ (u.T @ means)) @ planted())
    trained = grid.values[grid.axis("method").labels.index("trained")]
    np.testing.assert_allclose(trained - trained[:, [1]], [[-slope, 0, 2 * slope]] * 2, atol=1e-9)
    assert (cost.values[:, 1] == 0).all()
    assert (cost.n == 3).all()
    assert grid.lower is not None
    assert (grid.lower <= grid.values).all()


def test_no_other_text_leaves_the_cost_unmeasured() -> None:
    choices = DirectionChoices(END, training=Training(steps=1), random_sets=1)
    found = find_direction(linear(), world(), alike(N), choices)
    assert [result.name for result in found.results] == ["direction.summary", "direction.steering"]
    assert "cost" not in found.as_dict()


def test_steered_runs_are_runs_with_the_vector_added() -> None:
    model, both, values = reading(decoder("gpt2")), world(5), contrast(5)
    vector = torch.linspace(-1, 1, D_MODEL, dtype=torch.float64)
    found = steered(model, both.clean, values, Site.RESID_MID, 1, [vector, 0 * vector])
    for i, v in enumerate((vector, 0 * vector)):
        edit = Edit.add(Site.RESID_MID, 1, v)
        logits = run(model, both.clean, edit=edit, logits="last").logits
        assert logits is not None
        np.testing.assert_allclose(found[i], values.value(logits), atol=1e-9)
    text = [("a", "w1 w2 w3 w5 w8 w13 w4 w9 w2 w7")]
    windows, documents = windows_of(model, text, 3)
    assert documents == ("a",)
    loss = steered_loss(model, windows, Site.RESID_MID, 1, [vector])
    logits = run(model, windows, edit=Edit.add(Site.RESID_MID, 1, vector), logits="all").logits
    assert logits is not None
    plain = torch.nn.functional.cross_entropy(logits[0, :-1], windows.ids[0, 1:])
    assert loss[0, 0] == pytest.approx(float(plain), abs=1e-9)


def test_windows_are_cut_once_and_doubles_left_out() -> None:
    model = reading(decoder("gpt2"))  # 24 tokens of context
    text = " ".join(f"w{i % 17}" for i in range(60))
    windows, documents = windows_of(model, [("a", text), ("b", text)], 10)
    assert windows.lengths.tolist() == [24, 24, 12]
    assert documents == ("a",) * 3
    assert [x for row in windows.rows() for x in row] == [i % 17 for i in range(60)]
    assert len(windows_of(model, [("a", text)], 1)[0]) == 1


def mirrored() -> tuple[Pairs, Contrast]:
    """Each pair and its mirror, with the metric's sign turned."""
    one = world(N // 2)
    rows = [one.clean.rows(), one.corrupted.rows()]
    both = Pairs(Tokens.of(rows[0] + rows[1]), Tokens.of(rows[1] + rows[0]))
    signs = torch.tensor([1.0] * (N // 2) + [-1.0] * (N // 2))
    values = signed(alike(N), signs)
    assert isinstance(values, Contrast)
    return both, values


def test_mirrored_pairs_are_turned_to_one_side() -> None:
    both, values = mirrored()
    assert float(differences(linear(), both, END).mean(0).norm()) < 1e-9
    documents = [str(i % (N // 2)) for i in range(N)]
    choices = DirectionChoices(END, training=Training(steps=1), random_sets=1)
    found = find_direction(linear(), both, values, choices, documents=documents)
    assert found.about["n_turned"] == N // 2
    assert found.about["length"] > 0.1


def test_turned_pairs_are_measured_with_the_other_sign() -> None:
    both, values = mirrored()
    roles = [{"end": (n - 1,), "odd": (i,)} for i, n in enumerate([2] * N)]
    half = Half(replace(both, roles=roles, corrupted_roles=roles[::-1]), values)
    turned = half.turned({0, 3})
    for i in (0, 3, 5):
        sides = [half.pairs.clean, half.pairs.corrupted]
        theirs = [turned.pairs.clean, turned.pairs.corrupted][:: -1 if i in (0, 3) else 1]
        assert [s.rows()[i] for s in sides] == [s.rows()[i] for s in theirs]
        assert turned.pairs.roles is not None
        assert turned.pairs.roles[i]["odd"] == ((N - 1 - i,) if i in (0, 3) else (i,))
    logits = torch.randn(N, 17, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sign = torch.ones(N).double()
    sign[[0, 3]] = -1
    assert isinstance(turned.metric, Contrast)
    torch.testing.assert_close(turned.metric.value(logits), sign * values.value(logits))
    metric = signed(NamedMetric("m", "u", lambda x, rows: x[:, 0]), sign)
    assert callable(metric)
    torch.testing.assert_close(metric(logits, torch.arange(N)), sign * logits[:, 0])


def subspace(model: Model, u: torch.Tensor) -> Subspace:
    return Subspace(u, Spot("resid_mid", 2, "subject"), "trained", model.name, model.weight_hash)


def test_a_saved_direction_is_the_same(tmp_path: Path) -> None:
    model = decoder("gpt2")
    one = subspace(model, random_directions(D_MODEL, 2, torch.Generator().manual_seed(0)))
    one.save(tmp_path / "d.safetensors")
    found = load_direction(model, tmp_path / "d.safetensors")
    assert torch.equal(found.directions, one.directions)
    assert (found.spot, found.method, found.rank) == (one.spot, "trained", 2)
    assert load_file(tmp_path / "d.safetensors")["direction"].shape == (D_MODEL, 2)
    with pytest.raises(MeasureError, match=r"is a direction of random-gpt2, weights .*Allowed"):
        load_direction(decoder("gpt2", seed=1), tmp_path / "d.safetensors")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda u: u[:-1], r"directions of shape \(7, 2\)"),
        (lambda u: u * float("nan"), "NaN or infinity"),
        (lambda u: u * 2, "not orthonormal"),
        (lambda u: u[:, :0], "k from 1 to 8"),
    ],
)
def test_a_damaged_direction_is_refused(
    change: Callable[[torch.Tensor], torch.Tensor], match: str, tmp_path: Path
) -> None:
    model = decoder("gpt2")
    u = random_directions(D_MODEL, 2, torch.Generator().manual_seed(0))
    subspace(model, change(u)).save(tmp_path / "d.safetensors")
    with pytest.raises(MeasureError, match=match):
        load_direction(model, tmp_path / "d.safetensors")


def test_what_is_no_direction_is_refused(tmp_path: Path) -> None:
    model = decoder("gpt2")
    save_file({"W_E": torch.zeros(2)}, tmp_path / "w.safetensors")
    (tmp_path / "t.safetensors").write_bytes(b"text")
    for name, match in (("w", "holds no direction"), ("t", "cannot be read"), ("no", "cannot be")):
        with pytest.raises(MeasureError, match=match):
            load_direction(model, tmp_path / f"{name}.safetensors")


def test_a_card_is_saved_as_plain_data(tmp_path: Path) -> None:
    found = card()
    found.save(tmp_path / "card.json")
    data = json.loads((tmp_path / "card.json").read_text("utf-8"))
    assert data["card"] == 1
    assert (data["site"], data["layer"], data["role"]) == ("resid_post", 0, "last")
    assert {row["run"] for row in data["steering"]} == {"clean", "corrupted"}
    assert len(data["cost"]) == 3 * 9


def test_bad_input_is_named() -> None:
    model, both, values = linear(), world(), alike(N)
    one = Training(steps=1)
    choices = DirectionChoices(END, training=one)
    for rank in (0, 9):
        with pytest.raises(MeasureError, match=rf"rank {rank}.*1 to 8"):
            find_direction(model, both, values, replace(choices, rank=rank))
    few = both[[0, 1, 2]]
    with pytest.raises(MeasureError, match="3 pairs with as many tokens of 'last'"):
        find_direction(model, few, alike(3), choices)
    lone = ["one"] * (N - 1) + ["other"]
    with pytest.raises(MeasureError, match=r"16 pairs .* in halves of"):
        find_direction(model, both, values, choices, documents=lone)
    uneven = replace(both, roles=[{"s": (0,)}] * N, corrupted_roles=[{"s": (0, 1)}] * N)
    with pytest.raises(MeasureError, match="0 pairs with as many tokens of 's' on both sides"):
        find_direction(model, uneven, values, replace(choices, spot=Spot("resid_post", 0, "s")))
    named = replace(both, roles=[{"subject": (0,)}] * N)
    with pytest.raises(MeasureError, match=r"no prompt has 'subjet'.*Did you mean 'subject'"):
        find_direction(model, named, values, replace(choices, spot=Spot("resid_post", 0, "subjet")))
    with pytest.raises(SiteError, match="0 to 0"):
        find_direction(model, both, values, replace(choices, spot=Spot("resid_post", 7)))
    with pytest.raises(SiteError, match="a direction at z"):
        Spot("z", 0)
    late = Pairs(*pairs([5] * 4, first=[4] * 4), roles=[{"begin": (0,)}] * 4)
    with pytest.raises(MeasureError, match=r"the same resid_post of layer 0 at begin"):
        find_direction(model, late, alike(4), replace(choices, spot=Spot("resid_post", 0, "begin")))
    flat = NamedMetric("flat", "u", lambda logits, rows: 0 * logits[:, 0])
    with pytest.raises(MeasureError, match="the metric is the same"):
        find_direction(model, both, flat, choices)
    with pytest.raises(MeasureError, match="no text to measure"):
        find_direction(model, both, values, choices, other_text=[("a", "w1")])
    for wrong in ({"steps": 0}, {"rate": 0.0}):
        with pytest.raises(MeasureError):
            Training(**wrong)  # type: ignore[arg-type]
    with pytest.raises(MeasureError, match="finite numbers"):
        DirectionChoices(END, coefficients=(float("nan"),))
    u = orthonormal(torch.eye(D_MODEL, dtype=torch.float64)[:, :1])
    with pytest.raises(MeasureError, match="directions of shape"):
        interchange(model, both, values, [u[:4]], END)
