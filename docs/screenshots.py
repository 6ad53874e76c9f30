"""Take the pictures of docs/images from studies' reports and from the explorer.

    python docs/screenshots.py STUDY CORPUS PUBLISHED

STUDY is a finished `casestudy run full-stop-capitals --model tiny`, CORPUS one of 1,000 mined
contexts (docs/recipes/a-corpus.md), PUBLISHED the flagship on `smollm2`. Needs playwright and
Debian's chromium, as the browser tests do. Takes seconds.
"""

from __future__ import annotations

import base64
import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from playwright.sync_api import sync_playwright

from casestudy.show.report import write_report

IMAGES = Path(__file__).with_name("images")
ARGUMENTS = ("--no-sandbox", "--disable-background-networking", "--no-first-run")
PAIR = """<style>
body {{ margin: 0; padding: 28px; background: {back}; display: flex; gap: 28px }}
body {{ width: max-content }}
img {{ display: block; border: 1px solid {rule}; border-radius: 4px; height: 1040px }}
</style><img src="{left}"><img src="{right}">"""


FIGURES = {
    "ledger": "The ledger: every term",
    "patching": "Patching resid_pre by role",
    "groups": "The same difference by group",
}
"""Single figures, by the beginning of their titles."""
EXPLORED = {
    "prompt": "It was late. The dog slept.",
    "corrupted": "it was late. the dog slept.",
    "answer": " The",
    "counterpart": " the",
}


def main(study: str, corpus: str, published: str) -> None:
    """Write every picture."""
    report, mined = (write_report(folder).resolve().as_uri() for folder in (study, corpus))
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=list(ARGUMENTS))
        for scheme, back, rule in (
            ("light", "#efece4", "#dcd9d1"),
            ("dark", "#0b0c0e", "#36373b"),
        ):
            page = browser.new_page(viewport={"width": 860, "height": 1040}, color_scheme=scheme)
            page.goto(report)
            left = _shown(page, "main", 0)
            right = _shown(page, "#who", 16)
            sheet = browser.new_page(viewport={"width": 1830, "height": 1100})
            sheet.set_content(PAIR.format(back=back, rule=rule, left=left, right=right))
            sheet.locator("img").last.wait_for()
            name = "report.png" if scheme == "light" else "report-dark.png"
            sheet.locator("body").screenshot(path=IMAGES / name)
        _head(browser, published)
        phone = browser.new_page(
            viewport={"width": 390, "height": 844}, device_scale_factor=2, reduced_motion="reduce"
        )
        phone.goto(report)
        phone.evaluate("document.querySelector('#who').scrollIntoView()")
        phone.screenshot(path=IMAGES / "report-phone.png")
        page = browser.new_page(viewport={"width": 1100, "height": 760})
        page.goto(report)
        page.locator("button[data-head]").first.click()
        page.locator("dialog select").select_option(index=3)
        page.screenshot(path=IMAGES / "head.png")
        for name, title in FIGURES.items():
            for scheme in ("light", "dark"):
                page = browser.new_page(viewport={"width": 900, "height": 900}, color_scheme=scheme)
                page.goto(mined if name == "groups" else report)
                figure = page.locator("figure", has_text=title).first
                with page.expect_download() as waiting:
                    figure.locator("[data-do=svg]").click()
                waiting.value.save_as(IMAGES / f"{name}{'-dark' * (scheme == 'dark')}.svg")
        _explorer(browser)
        browser.close()


def _head(browser: Any, study: str) -> None:
    """The first screen of a published model's report."""
    page = browser.new_page(viewport={"width": 860, "height": 900})
    page.goto(write_report(study).resolve().as_uri())
    page.evaluate("document.querySelector('nav.rail').hidden = true")
    page.screenshot(path=IMAGES / "report-smollm2.png")


def _explorer(browser: Any) -> None:
    with _served() as address:
        for name, scheme, width, height in (
            ("explorer", "light", 1280, 1400),
            ("explorer-dark", "dark", 1280, 1400),
            ("explorer-phone", "dark", 390, 844),
            ("explorer-patch", "light", 900, 900),
        ):
            page = browser.new_page(
                viewport={"width": width, "height": height}, color_scheme=scheme
            )
            page.goto(f"{address}?{urlencode(EXPLORED)}")
            page.locator("#patch svg.plot").wait_for()
            page.wait_for_timeout(500)
            if name != "explorer-patch":
                page.screenshot(path=IMAGES / f"{name}.png")
                continue
            box = page.locator("section", has=page.locator("#patch")).bounding_box()
            around = {"x": 0, "y": box["y"] + 20, "width": width, "height": box["height"] - 8}
            page.screenshot(path=IMAGES / f"{name}.png", clip=around, full_page=True)


@contextlib.contextmanager
def _served() -> Iterator[str]:
    """The explorer's address, on the bundled model."""
    command = [sys.executable, "-c", "from casestudy.cli import main; main()"]
    process = subprocess.Popen(
        [*command, "serve", "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.terminate()
    process.wait()


def _shown(page: Any, place: str, above: int) -> str:
    """The window from the top of an element on, as a data address."""
    page.evaluate(
        "([q, above]) => { const y = document.querySelector(q).getBoundingClientRect().top;"
        " scrollTo({top: q === 'main' ? 0 : scrollY + y - above, behavior: 'instant'}); }",
        [place, above],
    )
    page.evaluate("document.querySelector('nav.rail').hidden = true")
    page.wait_for_timeout(200)
    picture = base64.b64encode(page.screenshot()).decode("ascii")
    return f"data:image/png;base64,{picture}"


if __name__ == "__main__":
    main(*sys.argv[1:4])
