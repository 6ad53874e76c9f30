"""Does the page of a generated text show each token's account, and nothing that could run?"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import casestudy as cs
from casestudy.engine.generation import Generated
from casestudy.measure.generated import ledger_of_steps
from casestudy.model.model import Model
from casestudy.show.generated import generated_html, write_generated

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = "<script>window.ran = 1</script> {{ 7 * 7 }}"


@pytest.fixture(scope="module")
def found(toy: Callable[..., Model]) -> tuple[Generated, Any, Any]:
    model = toy(seed=5)
    generated = cs.generate(model, f"It was late. {HOSTILE}", n=6, temperature=2.0, seed=1)
    return generated, *ledger_of_steps(model, generated)


def test_each_token_is_a_link_to_its_account(found: tuple[Generated, Any, Any]) -> None:
    generated, ledger, _ = found
    page = generated_html(*found)
    links = re.findall(r'<a class="tok" href="#(token-\d+)" style="--t: ([\d.]+)"', page)
    assert [name for name, _ in links] == [f"token-{i}" for i in range(6)]
    shares = [step.prob for step in generated.steps]
    assert [float(share) for _, share in links] == pytest.approx(shares, abs=1e-4)
    accounts = re.findall(r'<section class="account" id="(token-\d+)"', page)
    assert accounts == [name for name, _ in links]
    sums = re.findall(r"Sum of the terms (\S+),", page)
    expected = ledger.values[0].sum(0)
    assert [float(s.replace("−", "-")) for s in sums] == pytest.approx(expected, abs=1e-4)


def test_texts_are_escaped(found: tuple[Generated, Any, Any]) -> None:
    page = generated_html(*found)
    assert "<script>window" not in page
    assert "&lt;script&gt;window.ran" in page
    assert "{{ 7 * 7 }}" in page
    named = replace(found[0], model="<b>m</b>")
    assert "<b>m" not in generated_html(named, *found[1:])


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
@pytest.mark.parametrize("script", [True, False])
def test_choosing_a_token_opens_its_account(
    found: tuple[Generated, Any, Any], tmp_path: Path, script: bool
) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    address = write_generated(*found, tmp_path / "page.html").resolve().as_uri()
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800}, java_script_enabled=script)
        page.goto(address)
        shown = page.locator(".account:visible h3")
        assert shown.all_inner_texts()[0].startswith("Token 1 of 6")
        page.locator(".strip a").nth(3).click()
        assert [text[:12] for text in shown.all_inner_texts()] == ["Token 4 of 6"]
        if script:
            assert page.locator(".strip a[aria-current]").get_attribute("href") == "#token-3"
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
        browser.close()
