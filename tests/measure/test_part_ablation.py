"""A part's ablation is that of a full forward pass with the part replaced by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from casestudy.behaviour.windows import Window, Windows
from casestudy.measure.part_ablation import ablate_on_corpus, ablate_on_prompts
from casestudy.measure.part_activity import Activity
from casestudy.measure.parts import HeadPart, NeuronPart, read_part
from casestudy.measure.patching import donors
from casestudy.model.decoder import run
from casestudy.model.edits import Edit
from casestudy.model.model import Model
from casestudy.model.tokens import Tokens
from tests.measure.batches import rows
from tests.measure.cards import corpus, only_activity, speaking
from tests.measure.worlds import VARIANTS, contrast, decoder

Part = HeadPart | NeuronPart
LENGTHS = [5, 3, 6, 5]
PARTS: tuple[Part, ...] = (HeadPart(1, 2), NeuronPart(1, 7))


def put(part: Part, values: Tensor) -> Edit:
    """In the whole model, at every position."""

    def replaced(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, : values.shape[1], part.index] = values
        return x

    return Edit(part.site, part.layer, replaced)


@pytest.mark.parametrize("variant", sorted(VARIANTS))
@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_on_prompts_it_is_a_plain_forward_pass(variant: str, part: Part) -> None:
    model, tokens = decoder(variant), Tokens.of(rows(LENGTHS))
    weighed = contrast(len(LENGTHS))
    found = None
    if variant == "gpt2":
        found = only_activity(
            model, part, Windows(corpus(), speaking("gpt2").tokenizer, 9), k=1, most_windows=1
        )
    grid = ablate_on_prompts(model, part, tokens, weighed, labels=tuple("abcd"), found=found)
    output = part.output(run(model, tokens, keep=[part.site.at(part.layer)]))
    by_hand = {"zero": torch.zeros_like(output), "mean": output.clone(), "resample": output.clone()}
    for p in range(max(LENGTHS)):
        there = [i for i, n in enumerate(LENGTHS) if p < n]
        by_hand["mean"][:, p] = output[there, p].mean(0)
    for i, donor in enumerate(donors(len(LENGTHS), 0)):
        for p in range(LENGTHS[i]):
            q = 0 if p == 0 else max(1, p + LENGTHS[donor] - LENGTHS[i])
            by_hand["resample"][i, p] = output[donor, q]
    if found is not None:
        assert found.mean_output is not None
        assert found.first_output is not None
        by_hand["corpus mean"] = found.mean_output.expand_as(output).clone()
        by_hand["corpus mean"][:, 0] = found.first_output
    assert grid.axis("kind").labels == tuple(by_hand)
    clean = run(model, tokens, logits="last").logits
    assert clean is not None
    for kind, values in by_hand.items():
        logits = run(model, tokens, edit=put(part, values), logits="last").logits
        assert logits is not None
        expected = (weighed.value(logits) - weighed.value(clean)).numpy()
        np.testing.assert_allclose(grid.select(kind=kind).values, expected, atol=1e-9)


def test_one_prompt_has_no_other_to_resample_from() -> None:
    model = decoder()
    grid = ablate_on_prompts(
        model, HeadPart(0, 1), Tokens.of(rows([4])), contrast(1), labels=("0",)
    )
    assert grid.axis("kind").labels == ("zero", "mean")


def losses(model: Model, row: list[int], edit: list[Edit]) -> Tensor:
    logits = run(model, [row], edit=edit, logits="all").logits
    assert logits is not None
    return F.cross_entropy(logits[0, :-1].float(), torch.tensor(row[1:]), reduction="none")


@pytest.mark.parametrize("variant", ["gpt2", "gemma2", "neox"])
@pytest.mark.parametrize("name", ["head 1.2", "neuron 2.7"])
def test_on_a_corpus_the_loss_is_that_of_plain_forward_passes(variant: str, name: str) -> None:
    model = speaking(variant)
    part = read_part(model, name)
    windows = list(Windows(corpus(5, 21), model.tokenizer, 8))
    found = only_activity(model, part, windows, k=3, most_windows=6, seed=2)
    table = ablate_on_corpus(model, found, seed=2)
    chosen = [window for _, _, window in sorted(found.chosen, key=lambda c: c[1])]
    assert len(chosen) == 6
    assert len({len(window.ids) for window in chosen}) == 2  # one is shorter
    outputs = outputs_of(model, part, windows)
    mean = torch.cat([row[1:] for row in outputs]).mean(0)
    first = torch.stack([row[0] for row in outputs]).mean(0)
    own = outputs_of(model, part, chosen)
    cycle = donors(6, 2)
    expected: dict[str, list[float]] = {kind: [] for kind in ("zero", "mean", "resample")}
    clean = []
    for i, window in enumerate(chosen):
        n = len(window.ids)
        donor = own[cycle[i]]
        averaged = mean.expand_as(own[i]).clone()
        averaged[0] = first
        places = [p if p < len(donor) else 1 + (p - 1) % (len(donor) - 1) for p in range(n)]
        values = {"zero": own[i] * 0, "mean": averaged, "resample": donor[places]}
        before = losses(model, list(window.ids), [])
        clean += before.tolist()
        for kind, one in values.items():
            after = losses(model, list(window.ids), [put(part, one[None])])
            expected[kind] += (after - before).tolist()
    rows_of = {row["kind"]: row for row in table.rows()}
    for kind, values_of in expected.items():
        row = rows_of[kind]
        assert row["difference"] == pytest.approx(float(np.mean(values_of)), abs=1e-6)
        assert row["loss"] == pytest.approx(float(np.mean(clean)), abs=1e-6)
        assert row["n"] == len(values_of)
        assert row["units"] == 6
        assert row["lower"] < row["difference"] < row["upper"]


def outputs_of(model: Model, part: Part, windows: list[Window]) -> list[Tensor]:
    keep = [part.site.at(part.layer)]
    return [part.output(run(model, [list(w.ids)], keep=keep))[0] for w in windows]


def test_the_loss_does_not_depend_on_what_is_run_together(monkeypatch: pytest.MonkeyPatch) -> None:
    model = speaking("llama")

    def table(found: Activity) -> list[float]:
        return list(ablate_on_corpus(model, found).columns["difference"])

    windows = list(Windows(corpus(), model.tokenizer, 9))
    part = read_part(model, "head 1.2")
    together = table(only_activity(model, part, windows, k=1, most_windows=5))
    monkeypatch.setattr("casestudy.measure.part_ablation.AT_ONCE", 9)
    alone = table(only_activity(model, part, windows, k=1, most_windows=5))
    assert together == pytest.approx(alone, abs=1e-6)
