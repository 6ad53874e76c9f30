"""What is kept at the last positions alone is what a run of everything has there."""

import pytest
import torch

from casestudy.errors import SiteError
from casestudy.model.decoder import run
from casestudy.model.edits import Edit
from casestudy.model.sites import Site
from tests.measure.worlds import VARIANTS, decoder, pairs


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_every_site(variant: str) -> None:
    model, (tokens, _) = decoder(variant), pairs([5, 2, 7])
    full = run(model, tokens, keep=[Site.FINAL_NORMED], logits="all")
    assert full.logits is not None
    last = tokens.last[:, None, None].expand(-1, 1, full.logits.shape[-1])
    for site in Site:
        try:
            whole = run(model, tokens, keep=[site], logits="all")
        except SiteError:
            continue  # not of this architecture
        alone = run(model, tokens, keep=[site.at(last=True)], logits="last")
        assert not alone.values
        assert alone.logits is not None
        torch.testing.assert_close(alone.logits, full.logits.gather(1, last)[:, 0])
        for address, x in alone.lasts.items():
            site, layer = address
            expected = whole.last(site if layer is None else (site, layer))
            torch.testing.assert_close(x, expected, msg=f"{site.value} {layer}")


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_an_edit_past_z_is_seen_whole(layer: int) -> None:
    """An edit of the last layer's MLP gets every position, though only the last is asked for."""
    model, (tokens, _) = decoder("gpt2"), pairs([5, 2, 7])
    seen = []

    def look(x: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(x.shape[:2]))
        return x

    run(model, tokens, edit=[Edit(Site.MLP_POST, layer, look)], logits="last")
    assert seen == [(3, 7)]


def test_the_others_are_spared() -> None:
    """The reason for it: the last MLP is computed at one position per prompt."""
    model, (tokens, _) = decoder("gpt2"), pairs([5, 2, 7])
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True
    ) as profile:
        run(model, tokens, logits="last")
    activations = [e.input_shapes[0] for e in profile.events() if e.name == "aten::gelu"]
    assert [shape[:2] for shape in activations] == [[3, 7], [3, 7], [3, 1]]
