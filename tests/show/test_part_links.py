"""Where do names of parts open their cards, and where do they stay text?"""

from __future__ import annotations

import re

import pytest

from casestudy.show.part_links import linked

CARDS = {"head 0.2": "parts/head-0.2/card.html", "neuron 4.312": "parts/neuron-4.312/card.html"}


def names(html: str) -> list[str]:
    return re.findall(r'<a class="part" href="[^"]+" data-part="([^"]+)">\1</a>', html)


def test_every_name_with_a_card_is_a_link_and_no_other_text_changes() -> None:
    page = "<p>Of head 0.2, head 0.20, head 10.2 and neuron 4.312 &lt;q&gt;, mlp 3: mlp 3.</p>"
    found = linked(page, CARDS.get)
    assert names(found) == ["head 0.2", "neuron 4.312"]
    assert re.sub(r"</?a[^>]*>", "", found) == page
    assert names(linked(page, {"mlp 3": "#mlp"}.get)) == ["mlp 3", "mlp 3"]


@pytest.mark.parametrize(
    "page",
    [
        '<a href="#x">head 0.2</a>',
        "<button><b>head 0.2</b></button>",
        '<script type="application/json">["head 0.2"]</script>',
        "<pre><code>head 0.2</code></pre>",
        '<p title="head 0.2" data-part="head 0.2">this</p>',
        "<svg><title>head 0.2</title></svg>",
        "<!-- head 0.2 -->",
        "<bdi>head 0.2</bdi>",
        "<p>version head 0.2.1, ahead 0.2, head 0.25</p>",
    ],
)
def test_what_opens_something_else_or_is_quoted_stays(page: str) -> None:
    assert linked(page, CARDS.get) == page


def test_names_after_a_closed_element_are_found_again() -> None:
    assert names(linked("<pre>head 0.2</pre><td>head 0.2</td>", CARDS.get)) == ["head 0.2"]


def test_an_address_is_escaped() -> None:
    found = linked("<p>head 0.2</p>", lambda part: 'x"><script>')
    assert "<script>" not in found
    assert names(found) == ["head 0.2"]


def test_labels_of_figures_are_marked_and_no_links() -> None:
    drawing = '<svg role="img"><text x="1" class="l">neuron 4.312</text><rect/></svg>'
    found = linked(f"{drawing}<p>neuron 4.312</p>", CARDS.get)
    label = '<tspan class="part" data-part="neuron 4.312">neuron 4.312</tspan>'
    assert found.startswith(drawing.replace("neuron 4.312", label))
    assert names(found) == ["neuron 4.312"]
