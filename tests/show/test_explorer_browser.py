"""The live page in a real browser: typed into, clicked through, reloaded, and silent."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

from tests.show import studies
from tests.show.serving import Served
from tests.show.test_browser import CUT_OFF, OVERFLOWING, QUIET, SIZES

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium"),
]

PAIR = {
    "prompt": "It was late. The dog slept.",
    "corrupted": "it was late. the dog slept.",
    "answer": " The",
    "counterpart": " the",
}
GRID = "#patch svg.plot"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as p:
        made = p.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield made
        made.close()


@pytest.fixture
def visit(browser: Any, served: Served) -> Iterator[Callable[..., Any]]:
    """Open the page and hold it, at the end, to silence: no message, no request to another."""
    contexts, said, asked = [], [], []

    def open_at(width: int = 1280, scheme: str = "light", options: Any = None, **state: str) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, **(options or {})
        )
        contexts.append(context)
        context.set_default_timeout(120_000)  # of a busy machine
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{served.address}/?{urlencode(state)}")
        return page

    yield open_at
    for context in contexts:
        context.close()
    assert said == []
    assert [u for u in asked if not u.startswith((f"{served.address}/", "data:", "blob:"))] == []


def state(page: Any) -> dict[str, str]:
    """What the address says."""
    query = parse_qs(urlsplit(page.url).query, keep_blank_values=True)
    return {name: values[-1] for name, values in query.items()}


def until(page: Any, expression: str) -> None:
    """Wait for it; as a function, since the page's policy lets no string be evaluated."""
    page.wait_for_function(f"() => {expression}")


def patched(page: Any) -> Any:
    """The grid, once it is whole."""
    until(
        page,
        "document.querySelector('#patch svg') && !document.querySelector('#progress').textContent"
        " && !document.querySelector('#patch.stale')",
    )
    return page.locator(GRID)


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_the_page_fits_and_nothing_is_cut_off(
    visit: Callable[..., Any], width: int, scheme: str
) -> None:
    page = visit(width, scheme, **PAIR)
    patched(page)
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OVERFLOWING) == []
    assert page.evaluate(CUT_OFF) == []
    sizes = page.evaluate("[...document.querySelectorAll('.place')].map((n) => n.clientHeight)")
    assert min(sizes) > 20
    assert page.evaluate("window.ran") is None


@pytest.mark.parametrize(("width", "scheme"), [SIZES[0], SIZES[-1]])
def test_axe_finds_no_serious_violation(visit: Callable[..., Any], width: int, scheme: str) -> None:
    pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    page = visit(width, scheme, {"reduced_motion": "reduce", "bypass_csp": True}, **PAIR)
    patched(page)
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    script = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    page.evaluate(script)

    def serious() -> list[Any]:
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        return [
            (v["id"], v["impact"], v["nodes"][0]["html"][:200], v["nodes"][0]["failureSummary"])
            for v in found["violations"]
            if v["impact"] in ("serious", "critical")
        ]

    assert serious() == []
    page.locator("#heads rect[data-head]").first.click()
    page.locator("dialog[open]").wait_for()
    assert serious() == []


def test_typing_updates_every_panel_and_the_address(visit: Callable[..., Any]) -> None:
    page = visit()
    before = page.locator("#ledger").inner_html()
    page.locator("#prompt").fill("The dog was tired. She")
    page.wait_for_function(
        "(before) => document.querySelector('#ledger').innerHTML !== before", arg=before
    )
    chips = page.locator("#tokens-0 .tok").all_inner_texts()
    assert "".join(chips) == "<|endoftext|>The·dog·was·tired.·She"
    assert state(page) == {"prompt": "The dog was tired. She"}
    assert int(page.locator("#status").get_attribute("data-took")) < 5000


def test_clicks_choose_answer_and_counterpart(visit: Callable[..., Any]) -> None:
    page = visit(prompt=PAIR["prompt"])
    rows = page.locator("#predictions tbody tr")
    texts = rows.locator(".tok").all_inner_texts()
    chips = page.locator("#outcome .tok")
    for row, name, place in ((3, "answer", 0), (2, "counterpart", 1)):
        rows.nth(row).locator(f"button[name={name}]").click()
        chips.nth(place).get_by_text(texts[row], exact=True).wait_for()
    chosen = [texts[3], texts[2]]
    assert chips.all_inner_texts() == chosen
    asked = state(page)
    assert [asked[name].replace(" ", "·") for name in ("answer", "counterpart")] == chosen
    focused = page.evaluate("document.activeElement.name + document.activeElement.value")
    assert focused == "counterpart" + asked["counterpart"]
    page.get_by_role("button", name="Let the model choose both").click()
    until(page, "!new URLSearchParams(location.search).has('answer')")


def test_any_token_can_be_typed_and_none_says_why(visit: Callable[..., Any]) -> None:
    page = visit(prompt=PAIR["prompt"])
    page.locator("textarea[name=answer]").fill(" Nobody knows")
    notice = page.locator("#outcome .notice")
    notice.wait_for()
    assert "give both" in notice.inner_text()
    assert page.locator("#save").is_hidden()
    page.locator("textarea[name=answer]").fill(" He")
    notice.wait_for(state="detached")
    assert page.locator("#outcome .tok").first.inner_text() == "·He"
    assert page.locator("#save").is_visible()


def test_a_token_is_read_at_by_keyboard_and_left_again(visit: Callable[..., Any]) -> None:
    page = visit(prompt=PAIR["prompt"])
    tokens = page.locator("#tokens-0 .tok")
    assert page.locator("#last").is_hidden()
    page.locator("#tokens-0 button[aria-pressed=true]").focus()
    for key in ("Home", "ArrowRight", "ArrowRight", "Enter"):  # behind BOS: It, was, late
        page.keyboard.press(key)
    until(page, "new URLSearchParams(location.search).get('readout') === '3'")
    page.locator("#outcome").get_by_text("read up to").wait_for()
    assert tokens.nth(3).get_attribute("aria-pressed") == "true"
    assert page.evaluate("document.activeElement.value") == "3"
    assert "unread" in str(tokens.nth(4).get_attribute("class"))
    tokens.nth(5).click()
    until(page, "new URLSearchParams(location.search).get('readout') === '5'")
    page.get_by_role("button", name="Read after the last token").click()
    until(page, "!new URLSearchParams(location.search).has('readout')")
    page.locator("#tokens-0 .unread").first.wait_for(state="detached")
    page.locator("textarea[name=answer]").fill(" The dog slept")
    page.locator("textarea[name=counterpart]").fill(" the")
    assert page.locator("#outcome table.steps tbody tr").nth(2).inner_text().split()[:2] == [
        "3",
        "·slept",
    ]


def test_a_pair_is_patched_and_the_grid_follows_the_controls(visit: Callable[..., Any]) -> None:
    page = visit(prompt=PAIR["prompt"], answer=" The", counterpart=" the")
    assert page.locator(GRID).count() == 0
    page.get_by_role("button", name="sentence starts lowered").click()
    assert patched(page).locator("rect[data-i]").count() == 6 * 9
    assert state(page)["corrupted"] == PAIR["corrupted"]
    page.get_by_label("Exchange").select_option("z")
    until(page, "document.querySelectorAll('#patch rect[data-head]').length === 48")
    page.get_by_label("Panels about").select_option("corrupted")
    page.locator("#predictions thead").get_by_text("after the clean prompt").first.wait_for()
    assert state(page)["view"] == "corrupted"
    page.locator("#corrupted").fill("late.")
    page.locator("select[name=by]").select_option("position")
    page.locator("#patch .notice").wait_for()
    assert "unequal length" in page.locator("#patch .notice").inner_text()


def test_the_address_brings_everything_back(visit: Callable[..., Any]) -> None:
    page = visit(**PAIR, site="attn_out", direction="noising", view="corrupted")
    patched(page)
    places = "[...document.querySelectorAll('.place')].map((n) => n.innerText).join('\\n')"
    before, address = page.evaluate(places), page.url
    page.reload()
    patched(page)
    assert page.url == address
    assert page.evaluate(places) == before
    assert page.get_by_label("Exchange").input_value() == "attn_out"


def test_a_head_opens_its_pattern_from_anywhere_and_from_the_address(
    visit: Callable[..., Any],
) -> None:
    page = visit(**PAIR, site="z")
    patched(page)
    for place in ("#heads", "#attention", "#patch"):
        mark = page.locator(f"{place} rect[data-head]").nth(3)
        name = mark.get_attribute("data-head")
        mark.click()
        dialog = page.locator("dialog[open]")
        dialog.wait_for()
        assert dialog.locator("h2").inner_text() == f"Where head {name} looks"
        assert state(page)["head"] == name
        page.keyboard.press("Escape")
        until(page, "!new URLSearchParams(location.search).has('head')")
    page.locator("#heads rect[data-head='2.5']").click()
    dialog = page.locator("dialog[open]")
    dialog.locator("select").select_option("corrupted")
    until(page, "document.querySelector('dialog .toks').textContent.includes('it')")
    page.reload()
    dialog.wait_for()
    assert dialog.locator("h2").inner_text() == "Where head 2.5 looks"
    assert dialog.locator(".toks button").count() == 9


def test_a_part_opens_its_card_from_anywhere_and_from_the_address(
    visit: Callable[..., Any],
) -> None:
    page = visit(390, **PAIR)
    patched(page)
    card = page.locator("#part > p").first
    page.locator("#ledger [data-part='mlp 0']").dispatch_event("click")
    page.locator("#part td a[data-part]").first.click()
    card.wait_for()
    assert state(page)["part"].startswith("neuron 0.")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("#heads [data-head]").first.dispatch_event("click")
    page.locator("dialog a[data-part]").click()
    until(page, "document.querySelector('#part-h').textContent.includes('head 0.0')")
    until(page, "!document.querySelector('#part-progress').textContent")
    assert state(page)["part"] == "head 0.0"
    page.locator("#prompt").fill("It was cold.")
    until(page, "!document.querySelector('#part-again').hidden")
    page.locator("#part-again").click()
    until(page, "document.querySelector('#part').textContent.includes('It was cold.')")
    page.reload()
    card.wait_for()
    page.locator("#part-close").click()
    assert "part" not in state(page)


def test_a_long_prompts_pattern_is_a_picture(visit: Callable[..., Any]) -> None:
    page = visit(prompt="It was late. " * 20 + "Then", head="1.1", scheme="dark")
    canvas = page.locator("dialog[open] canvas")
    canvas.wait_for()
    colours = canvas.evaluate(
        "(c) => new Set(new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height)"
        ".data.buffer)).size"
    )
    assert colours > 10


def test_a_newer_question_withdraws_the_older(visit: Callable[..., Any]) -> None:
    page = visit(
        prompt="The quick brown fox. " * 8 + "Go", corrupted="the quick brown fox. " * 8 + "Go"
    )
    until(page, "document.querySelector('#progress').textContent.includes(' of ')")
    page.locator("#prompt").fill(PAIR["prompt"])
    page.locator("#corrupted").fill(PAIR["corrupted"])
    until(page, "document.querySelectorAll('#patch rect[data-i]').length === 54")
    patched(page)
    assert page.locator("#status.wrong").count() == 0


def test_everything_is_reached_and_done_by_keyboard(visit: Callable[..., Any]) -> None:
    page = visit(**PAIR)
    patched(page)
    everything = page.evaluate(
        "[...document.querySelectorAll('a, button, summary, select, textarea, svg.plot')]"
        ".filter((n) => n.checkVisibility() && !n.closest('dialog') && n.tabIndex >= 0)"
        ".map((n) => [...document.querySelectorAll('*')].indexOf(n))"
    )
    reached = set()
    for _ in range(len(everything) + 40):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("[...document.querySelectorAll('*')].indexOf(document.activeElement)")
        )
    assert set(everything) <= reached
    page.locator("#predictions tbody tr:nth-child(2) button[name=answer]").first.focus()
    page.keyboard.press("Enter")
    until(page, "new URLSearchParams(location.search).get('answer') === ' He'")
    page.locator("#heads svg.plot").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.locator("dialog[open]").wait_for()
    assert page.locator("dialog h2").inner_text() == "Where head 1.0 looks"


def test_what_is_typed_never_runs(visit: Callable[..., Any]) -> None:
    hostile = "<img src=x onerror='window.ran = 1'><script>window.ran = 1</script>{{ 7 * 7 }}"
    page = visit(prompt=hostile)
    assert page.locator("#prompt").input_value() == hostile
    page.locator("#corrupted").fill(hostile + "</textarea>")
    page.locator("#tokens-1 .tok").first.wait_for()
    page.locator("#picks").select_option(index=5)
    until(page, "location.search.includes('window.ran')")
    assert page.evaluate("window.ran") is None
    assert page.locator("main img").count() == 0


def test_a_megabyte_pasted_is_refused_on_the_page(visit: Callable[..., Any]) -> None:
    page = visit(options={"permissions": ["clipboard-read", "clipboard-write"]})
    page.evaluate("navigator.clipboard.writeText('a'.repeat(1_000_000))")
    page.locator("#prompt").focus()
    page.keyboard.press("Control+V")
    page.locator("#status.wrong").wait_for()
    assert "1,000,000 characters" in page.locator("#status").inner_text()
    assert page.locator("#prompt").input_value() == "This is a sentence."
    page.locator("#prompt").fill("It was late. " * 200)
    until(page, "document.querySelector('#status').textContent.includes('at most 256')")
    page.locator("#prompt").fill("Go.")
    until(page, "!document.querySelector('.stale')")
    assert page.locator("#status").inner_text() == ""


def test_a_studys_prompts_can_be_picked_and_what_it_lacks_is_said(
    visit: Callable[..., Any],
) -> None:
    page = visit()
    assert "no tables/answers.parquet" in page.locator(".notice").first.inner_text()
    page.locator("#picks").select_option(index=2)
    until(page, "location.search.includes('Hello')")
    assert page.locator("#prompt").input_value() == studies.TEXTS[1]
    page.locator("#picks").select_option(index=1)  # the same as the page's own example
    page.locator("#tokens-0").get_by_text("·sentence").wait_for()
    assert page.locator("#prompt").input_value() == studies.TEXTS[0]


def test_the_study_file_and_the_link_can_be_taken_away(
    visit: Callable[..., Any], tmp_path: Path
) -> None:
    options = {"accept_downloads": True, "permissions": ["clipboard-read", "clipboard-write"]}
    page = visit(options=options, **PAIR)
    with page.expect_download() as waiting:
        page.get_by_role("link", name="Save as study").click()
    assert waiting.value.suggested_filename == "explored.toml"
    assert 'corrupted = "it was late. the dog slept."' in Path(waiting.value.path()).read_text()
    page.get_by_role("button", name="Copy link").click()
    until(page, "document.querySelector('#status').textContent.includes('copied')")
    assert page.evaluate("navigator.clipboard.readText()") == page.url


def test_it_works_without_script(visit: Callable[..., Any]) -> None:
    page = visit(options={"java_script_enabled": False}, prompt=PAIR["prompt"])
    assert page.locator("#ledger svg").is_visible()
    page.locator("#prompt").fill("It was late.\nThen")
    page.get_by_role("button", name="Show").click()
    assert page.locator("#tokens-0 .tok").nth(5).inner_text() == "↵"
    third = page.locator("#predictions tbody tr:nth-child(3) button[name=answer]").first
    token = third.get_attribute("value")
    third.click()
    pressed = page.locator("#predictions button[name=answer][aria-pressed=true]")
    assert pressed.get_attribute("value") == token


def test_a_busy_server_is_asked_again_and_a_gone_one_is_said(browser: Any, served: Served) -> None:
    page = browser.new_page()
    page.goto(f"{served.address}/")
    refusals = [1, 1]

    def busy(route: Any) -> None:
        if refusals:
            refusals.pop()
            answer = {"status": 429, "headers": {"retry-after": "0"}, "body": '{"problem": "busy"}'}
            route.fulfill(**answer)
        else:
            route.continue_()

    page.route("**/panels?*", busy)
    page.locator("#prompt").fill("The dog slept.")
    page.locator("#tokens-0").get_by_text("·dog").wait_for()
    assert refusals == []
    assert page.locator("#status").inner_text() == ""
    page.route("**/panels?*", lambda route: route.abort())
    page.locator("#prompt").fill("The cat slept.")
    page.locator("#status.wrong").wait_for()
    assert "Is it still running?" in page.locator("#status").inner_text()
    page.close()
