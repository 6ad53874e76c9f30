"""The report in a real browser: nothing asked of anybody, nothing cut off, everything reachable."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

import casestudy.show.plotly_figures as figures
from casestudy.show.report import write_report
from tests.show import studies

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium"),
]

QUIET = (
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-quic",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
)
HOSTILE = (
    "<script>window.ran = 1</script>.",
    "<img src=x onerror='window.ran = 1'> {{ 7 * 7 }}.",
    "A long word: " + "a" * 300 + ".",
    "\u202eright to left \u0645\u0631\u062d\u0628\u0627 \x00.",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as p:
        made = p.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield made
        made.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = studies.TEXTS + HOSTILE
    folder = tmp_path_factory.mktemp("study") / "s"
    return write_report(studies.write(folder, studies.full(texts), texts=texts))


@pytest.fixture
def visit(browser: Any, report: Path) -> Iterator[Callable[..., Any]]:
    """Open the report and hold it, at the end, to silence: no message, no request but its own."""
    contexts, said, asked = [], [], []

    def open_at(width: int = 1280, scheme: str = "light", **options: Any) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, **options
        )
        contexts.append(context)
        context.set_default_timeout(120_000)  # of a busy machine
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(report.as_uri())
        return page

    yield open_at
    for context in contexts:
        context.close()
    assert said == []
    own = report.as_uri()
    assert [u for u in asked if not u.startswith((own, "data:", "blob:"))] == []


SIZES = [(w, scheme) for w in (1280, 390) for scheme in ("light", "dark")]

OVERFLOWING = """() => {
  const wide = [];
  for (const node of document.querySelectorAll('main *, nav *')) {
    if (node.closest('.scroll, .cells, details:not([open]), svg, pre')) continue;
    const box = node.getBoundingClientRect();
    if (box.width && (box.right > innerWidth + 1 || box.left < -1) && !node.matches('.skip'))
      wide.push(`${node.tagName}.${node.className} ${Math.round(box.right)}`);
  }
  return wide;
}"""

CUT_OFF = """() => {
  const cut = [];
  for (const svg of document.querySelectorAll('.scroll > svg.plot')) {
    const around = svg.closest('.scroll').getBoundingClientRect();
    if (!around.width) continue;
    const end = svg.getBoundingClientRect();
    for (const text of svg.querySelectorAll('text')) {
      const box = text.getBoundingClientRect();
      if (!box.width) continue;
      if (box.left < end.left - 1.5 || box.right > end.right + 1.5 || box.bottom > end.bottom + 1.5)
        cut.push(text.textContent + ' in ' + svg.getAttribute('aria-label').slice(0, 40));
    }
  }
  return cut;
}"""


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_the_page_fits_and_nothing_is_cut_off(
    visit: Callable[..., Any], width: int, scheme: str
) -> None:
    page = visit(width, scheme)
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OVERFLOWING) == []
    assert page.evaluate(CUT_OFF) == []
    assert page.evaluate("window.ran") is None


@pytest.mark.parametrize(("width", "scheme"), [SIZES[0], SIZES[-1]])
def test_axe_finds_no_serious_violation(visit: Callable[..., Any], width: int, scheme: str) -> None:
    pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    page = visit(width, scheme, reduced_motion="reduce")
    page.evaluate("document.querySelectorAll('details.one').forEach((d, i) => d.open = i < 2)")
    script = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    page.evaluate(script)
    assert _serious(page) == []
    page.locator("button[data-head]").first.click()
    assert _serious(page) == [], "with a head's pattern open"


def _serious(page: Any) -> list[Any]:
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        (v["id"], v["impact"], v["nodes"][0]["html"][:200], v["nodes"][0]["failureSummary"])
        for v in found["violations"]
        if v["impact"] in ("serious", "critical")
    ]


def test_a_value_shows_on_hover_and_under_the_arrow_keys(visit: Callable[..., Any]) -> None:
    page = visit()
    fall = page.locator("svg.plot", has=page.locator("rect.bar.total")).first
    fall.scroll_into_view_if_needed()
    fall.locator("rect.hit").nth(2).hover()
    assert page.locator(".tip").inner_text().startswith("term attn 0\n")
    page.mouse.move(2, 2)
    fall.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.locator(".said").inner_text().startswith("term pos_embed")
    page.keyboard.press("End")
    assert page.locator(".said").inner_text().startswith("term logit difference")
    page.keyboard.press("Escape")
    assert page.locator(".tip").is_hidden()


def test_arrows_down_and_up_stay_in_their_column_where_cells_are_missing(
    visit: Callable[..., Any],
) -> None:
    page = visit()
    plot = page.locator("figure", has_text="The direct share of every attention head").locator(
        "svg.plot"
    )
    plot.evaluate("(svg) => svg.querySelector('[data-i=\"6\"]').remove()")  # as a cell not drawn
    plot.focus()
    for key in ("Home", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    at = page.locator(".said").inner_text()
    assert at.startswith("layer 1 head 0"), "the nearest that is there"
    page.keyboard.press("ArrowDown")
    assert page.locator(".said").inner_text().startswith("layer 2 head 0")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    assert page.locator(".said").inner_text().startswith("layer 0 head 0")


def test_a_node_of_a_circuit_shows_its_own_edges(visit: Callable[..., Any]) -> None:
    page = visit()
    node = page.locator("[data-node]").first
    node.scroll_into_view_if_needed()
    node.hover(force=True)
    own, edges = node.get_attribute("data-node"), page.locator("[data-ends]")
    ends = edges.evaluate_all("all => all.map(e => [e.dataset.ends, e.classList.contains('dim')])")
    assert {dim for _, dim in ends} == {True, False}
    assert all(dim == (own not in pair.split()) for pair, dim in ends)


def test_data_csv_svg_and_png_come_out(visit: Callable[..., Any], tmp_path: Path) -> None:
    page = visit(accept_downloads=True)
    figure = page.locator("figure", has=page.locator("rect.bar.total")).first
    saved = {}
    for kind in ("csv", "svg", "png"):
        with page.expect_download() as waiting:
            figure.locator(f"[data-do={kind}]").click()
        saved[kind] = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(saved[kind])
    rows = list(csv.DictReader(saved["csv"].read_text(encoding="utf-8").splitlines()))
    terms = [row for row in rows if row["term"] != "logit difference"]
    total = next(row for row in rows if row["term"] == "logit difference")
    assert sum(float(row["value"]) for row in terms) == pytest.approx(
        float(total["value"]), abs=1e-5
    )
    svg = saved["svg"].read_text(encoding="utf-8")
    assert "final norm bias" in svg
    assert "var(" not in svg
    assert "oklab" not in svg
    assert saved["png"].read_bytes().startswith(b"\x89PNG")
    figure.locator("[data-do=data]").click()
    assert figure.locator(".cells tbody tr").count() == len(rows)


def test_a_table_comes_out_as_csv_with_unrounded_numbers(visit: Callable[..., Any]) -> None:
    page = visit(accept_downloads=True)
    assert page.locator(".listing:has(table.stack, .num):not(:has([data-do=csv]))").count() == 0
    neurons = page.locator(".listing", has_text="The neurons with the largest direct share")
    with page.expect_download() as waiting:
        neurons.locator("[data-do=csv]").click()
    assert waiting.value.suggested_filename.endswith("direct-share.csv")
    text = Path(waiting.value.path()).read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == 12, "the ten that are shown, and the others"
    shown = neurons.locator("tbody td:nth-child(2)").first.inner_text().replace("\u2212", "-")
    assert float(shown) == pytest.approx(float(rows[0]["mean"]), abs=6e-4)
    assert len(rows[0]["mean"]) > 6


def test_csv_cells_cannot_become_formulas(visit: Callable[..., Any]) -> None:
    page = visit()
    data = "{axes: [['prompt', ['0']]], columns: {value: [-1.5]}, unit: '=1+1'}"
    # The figure's own data is swapped for a hostile one before its first use.
    page.evaluate(
        "const s = document.querySelector('figure script.data');"
        f"s.textContent = JSON.stringify({data})"
    )
    with page.expect_download() as waiting:
        page.locator("figure [data-do=csv]").first.click()
    text = Path(waiting.value.path()).read_text(encoding="utf-8")
    assert "-1.5" in text
    assert "'=1+1" in text


def test_escape_closes_what_enter_opened(visit: Callable[..., Any]) -> None:
    page = visit()
    button = page.locator("figure [data-do=data]").first
    button.focus()
    page.keyboard.press("Enter")
    assert page.locator(".cells").count() == 1
    page.keyboard.press("Tab")
    page.keyboard.press("Escape")
    assert page.locator(".cells").count() == 0
    assert button.evaluate("node => node === document.activeElement")
    assert button.get_attribute("aria-expanded") == "false"


def test_a_head_opens_its_pattern_and_tokens_walk_through_it(visit: Callable[..., Any]) -> None:
    page = visit()
    page.locator("button[data-head]").first.focus()
    page.keyboard.press("Enter")
    dialog = page.locator("dialog[open]")
    assert dialog.locator("h2").inner_text().startswith("Where head ")
    assert "%" in dialog.locator(".caption").inner_text()
    dialog.locator(".toks button").nth(1).hover()
    assert "(position 1)" in dialog.locator(".caption").inner_text()
    page.keyboard.press("Escape")
    assert dialog.count() == 0
    page.locator("rect[data-head]").first.click()
    assert page.locator("dialog[open]").count() == 1
    page.locator("dialog .close").click()
    assert page.locator("dialog[open]").count() == 0


def test_everything_is_reached_by_keyboard(visit: Callable[..., Any]) -> None:
    page = visit()
    wanted = page.locator("a, button:visible, summary:visible, svg.plot:visible").count()
    reached = set()
    for _ in range(wanted + 60):
        page.keyboard.press("Tab")
        place = page.evaluate(
            "(() => { const a = document.activeElement, all = [...document.querySelectorAll('*')];"
            " return a === document.body ? -1 : all.indexOf(a); })()"
        )
        if place in reached:
            break
        reached.add(place)
    everything = page.evaluate(
        "[...document.querySelectorAll('a, button, summary, svg.plot')]"
        ".filter((n) => n.checkVisibility() && !n.closest('dialog'))"
        ".map((n) => [...document.querySelectorAll('*')].indexOf(n))"
    )
    assert set(everything) <= reached


def test_the_theme_can_be_turned(visit: Callable[..., Any]) -> None:
    page = visit(scheme="light")
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    page.locator(".theme").click()
    assert page.evaluate(paper) != light
    page.locator(".theme").click()
    assert page.evaluate(paper) == light


def test_a_link_to_a_prompt_opens_it(visit: Callable[..., Any]) -> None:
    page = visit()
    page.locator("a[href='#prompt-2']").first.click()
    assert page.locator("#prompt-2").evaluate("(d) => d.open")


def test_attention_in_notebooks_works_offline(browser: Any, tmp_path: Path) -> None:
    pytest.importorskip("circuitsvis", reason="circuitsvis is not installed")
    grid = next(r for r in studies.full(HOSTILE) if r.name == "pattern.0")
    view = figures.attention_heads(grid, layer="1")._repr_html_()
    (tmp_path / "view.html").write_text(f"<meta charset=utf-8>{view}", encoding="utf-8")
    page = browser.new_page()
    said, asked = [], []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((tmp_path / "view.html").as_uri())
    page.get_by_text("head 3").first.wait_for()
    assert page.evaluate("window.ran") is None
    assert said == []
    assert asked == [(tmp_path / "view.html").as_uri()]
    page.close()


def test_it_reads_without_script(visit: Callable[..., Any]) -> None:
    page = visit(java_script_enabled=False)
    assert page.locator("figure svg").first.is_visible()
    assert page.locator(".tools").first.is_hidden()
    assert "logits" in page.locator("#answer").inner_text()
