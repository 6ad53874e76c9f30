"""Some layers of a model, run alone, compute what they do within the whole."""

import pytest
import torch

from casestudy.errors import SiteError
from casestudy.model.decoder import run
from casestudy.model.layers import from_stream, layers_of
from casestudy.model.sites import Site
from casestudy.model.tokens import Tokens
from tests.measure.batches import rows
from tests.measure.worlds import N_LAYERS, VARIANTS, decoder


@pytest.mark.parametrize("variant", sorted(VARIANTS))
@pytest.mark.parametrize("layer", range(N_LAYERS))
def test_the_layers_below_and_above_are_those_of_the_whole(variant: str, layer: int) -> None:
    model, tokens = decoder(variant), Tokens.of(rows([7, 4]))
    sites = (Site.RESID_PRE, Site.Z, Site.MLP_POST)
    whole = run(model, tokens, keep=[s.at(layer) for s in sites], logits="all")
    below = run(layers_of(model, 0, layer + 1), tokens, keep=[s.at(layer) for s in sites])
    for site in sites:
        torch.testing.assert_close(below[site, layer], whole[site, layer])
    above = layers_of(model, layer, N_LAYERS)
    stream = from_stream(whole[Site.RESID_PRE, layer])
    found = run(above, tokens, edit=stream, keep=[Site.Z.at(0)], logits="all")
    torch.testing.assert_close(found[Site.Z, 0], whole[Site.Z, layer])
    torch.testing.assert_close(found.logits, whole.logits)


@pytest.mark.parametrize("some", [(0, 0), (2, 1), (0, N_LAYERS + 1), (-1, 2)])
def test_layers_that_are_not_there_are_refused(some: tuple[int, int]) -> None:
    with pytest.raises(SiteError, match=f"some of 0 to {N_LAYERS - 1}"):
        layers_of(decoder(), *some)
