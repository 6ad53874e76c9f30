"""The live page's answers: the measurements' own numbers, in bounds, to this origin alone."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import QueryParams
from starlette.testclient import TestClient
from typer.testing import CliRunner

from casestudy import cli
from casestudy.behaviour.files import load_behaviour
from casestudy.behaviour.prompts import Prompt
from casestudy.errors import ServeError, StudyError
from casestudy.measure.attention import attention_pattern
from casestudy.measure.patching_prompts import patch_prompts
from casestudy.measure.quick_look import probe
from casestudy.model.model import Model
from casestudy.show.explorer import page_state as asking
from casestudy.show.explorer import patches
from casestudy.show.explorer.app import Explorer
from casestudy.show.explorer.page_state import PageState, Refusal, read
from casestudy.show.explorer.questions import Questions
from casestudy.show.explorer.server import hosts, listen
from casestudy.show.explorer.study_prompts import StudyPrompts, study_prompts_of
from casestudy.show.explorer.worker import Worker
from casestudy.show.text import signed, visible
from tests.show import studies
from tests.show.pages import Page

PAIR = {"prompt": "It was late. He slept.", "corrupted": "It was late, he slept."}
HERE = ["testserver"]


@pytest.fixture(scope="module")
def explorer(toy_model: Model) -> Explorer:
    return Explorer(Questions(toy_model), Worker())


@pytest.fixture(scope="module")
def client(explorer: Explorer) -> Iterator[TestClient]:
    with TestClient(explorer.application(HERE)) as client:
        yield client


def lines(client: TestClient, **asked: str) -> list[dict[str, Any]]:
    answer = client.get("/patch", params=asked)
    assert answer.status_code == 200
    return [json.loads(line) for line in answer.text.splitlines()]


def figure(html: str) -> dict[str, Any]:
    (found,) = Page(html).figures
    return found


# What the panels show.


def test_every_panel_shows_what_the_probe_measured(client: TestClient, toy_model: Model) -> None:
    asked = {**PAIR, "answer": " It", "counterpart": " it"}
    found = probe(toy_model, list(PAIR.values()), answer=" It", counterpart=" it")
    for row, view in enumerate(("clean", "corrupted")):
        html = client.get("/panels", params={**asked, "view": view}).json()["html"]
        ledger = found.grids["ledger"].values[0, :, row]
        drawn = figure(html["ledger"])["columns"]["value"]
        kept = ledger[np.isfinite(ledger)]
        difference = found.grids["logit_difference"].values[0]
        np.testing.assert_allclose(drawn, [*kept, difference[row]], rtol=1e-5, atol=1e-5)
        heads = figure(html["heads"])["columns"]["value"]
        shares = found.grids["attribution.head"].values[0, :, :, row].ravel()
        np.testing.assert_allclose(heads, shares, rtol=1e-5, atol=1e-6)
        masses = figure(html["classes"])["columns"]["value"]
        known = found.classes.values[:, row]
        np.testing.assert_allclose(masses, known[np.isfinite(known)], rtol=1e-5, atol=1e-9)
        curve = figure(html["lens"])["columns"]["value"]
        both = [
            *found.grids["lens"].values[0, :-1, row],
            *found.grids["lens.own_norm"].values[0, :, row],
        ]
        np.testing.assert_allclose(curve, both, rtol=1e-5, atol=1e-5)
        said = Page(html["outcome"]).text
        assert all(signed(float(value)) in said for value in difference)
        tops = [r["token"] for r in found.predictions.rows() if r["prompt"] == row]
        buttons = [b["value"] for b in Page(html["predictions"]).all("button") if "value" in b]
        assert set(buttons) <= set(tops)
        assert Page(html[f"tokens-{row}"]).text.count("·") >= 3


def test_without_script_the_page_itself_has_every_panel(client: TestClient) -> None:
    page = Page(client.get("/", params=PAIR).text)
    panels = client.get("/panels", params=PAIR).json()["html"]
    assert len(page.alts) == 5
    for name, html in panels.items():
        assert Page(html).text.strip() in page.text, name


def test_a_pattern_is_the_heads_own(client: TestClient, toy_model: Model) -> None:
    asked = {**PAIR, "head": "1.3"}
    for view, text in zip(("clean", "corrupted"), PAIR.values(), strict=True):
        found = client.get("/pattern", params={**asked, "view": view}).json()
        whole = attention_pattern(toy_model, text)
        data = np.frombuffer(base64.b64decode(found["bytes"]), dtype=np.uint8) / 255
        rows, cols = np.tril_indices(len(found["tokens"]))
        np.testing.assert_allclose(data, whole.values[1, 3][rows, cols], atol=0.5 / 255 + 1e-6)
    lacking = client.get("/pattern", params={**PAIR, "head": "1.9"})
    assert lacking.status_code == 400
    assert "head 9" in lacking.json()["problem"]
    assert client.get("/pattern", params=PAIR).status_code == 400


def test_of_a_long_prompt_the_tokens_looked_at_most_are_shown(
    client: TestClient, toy_model: Model
) -> None:
    text = " ".join("abcdefghij" * 6)
    html = client.get("/panels", params={"prompt": text}).json()["html"]
    shown = figure(html["attention"])
    positions = [int(label.partition(":")[0]) for label in shown["axes"][1][1]]
    assert len(positions) == 48
    assert positions == sorted(set(positions))
    assert "tokens that get the least attention are left out" in html["attention"]
    # 8 heads in all, so every one of them is among the first ten
    most = probe(toy_model, [text]).grids["attention.0"].values.max((0, 1))
    assert min(most[positions]) >= max(np.delete(most, positions))


@pytest.mark.parametrize("site", list(asking.SITES))
@pytest.mark.parametrize("direction", list(asking.DIRECTIONS))
def test_a_patch_grid_is_the_sweeps_own(
    client: TestClient, toy_model: Model, site: str, direction: str
) -> None:
    asked = {**PAIR, "answer": " It", "counterpart": " it", "site": site, "direction": direction}
    told = lines(client, **asked)
    prompt = Prompt(PAIR["prompt"], answer=" It", counterpart=" it", corrupted=PAIR["corrupted"])
    whole = patch_prompts(toy_model, [prompt], site, direction=direction)  # type: ignore[arg-type]
    drawn = figure(told[-1]["html"])["columns"]["value"]
    np.testing.assert_allclose(drawn, whole.normalised.values.ravel(), rtol=1e-4, atol=1e-5)
    assert told[-1]["finished"]
    assert told[-1]["done"] == told[-1]["total"] == whole.raw.values.size


def test_a_patch_grid_between_runs_that_hardly_differ_is_in_logits(
    client: TestClient, toy_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("casestudy.measure.patched.LEAST", 1e6)
    asked = {**PAIR, "answer": " It", "counterpart": " it", "site": "attn_out"}
    last = lines(client, **asked)[-1]["html"]
    prompt = Prompt(PAIR["prompt"], answer=" It", counterpart=" it", corrupted=PAIR["corrupted"])
    effect = patch_prompts(toy_model, [prompt], "attn_out").effect.values.ravel()
    np.testing.assert_allclose(figure(last)["columns"]["value"], effect, rtol=1e-4, atol=1e-5)
    assert "too nearly the same for shares" in last
    assert "the largest change in logits is" in last


@pytest.mark.parametrize("small", [{"ROWS": 6}, {"OPERATIONS": 1.0, "FEWEST_ROWS": 6}])
def test_a_patch_grid_streams_and_fills(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, small: dict[str, float]
) -> None:
    # a large model has small climbs: rows are limited by what they cost, too
    for name, most in {**small, "EVERY": 0.0}.items():
        monkeypatch.setattr(patches, name, most)
    told = lines(client, **PAIR)
    done = [line["done"] for line in told]
    assert len(told) >= 2  # the first climb, and the end; between them as often as time allows
    assert done == sorted(done)
    assert done[0] < done[-1]
    assert [line["finished"] for line in told] == [False] * (len(told) - 1) + [True]


@pytest.mark.parametrize("place", [p for p in asking.PLACES if p != "position"])
def test_prompts_of_unequal_length_are_patched_where_they_can_be(
    client: TestClient, place: str
) -> None:
    told = lines(client, prompt="It was late. He slept.", corrupted="he slept.", by=place)
    if place in ("", "role", "last"):
        assert told[-1]["finished"]
    else:
        assert "unequal length" in told[-1]["problem"]


def test_what_cannot_be_patched_says_why(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = lines(client, prompt="It was late.", corrupted="he slept a lot.", by="position")
    assert "unequal length" in said[-1]["problem"]
    assert "no counterpart" not in said[-1]
    same = lines(client, prompt="It was late.", corrupted="It was late.")
    assert "problem" in same[-1]
    bad = lines(client, **{**PAIR, "answer": "no token at all"})
    assert "tokens" in bad[-1]["problem"]
    assert "Type a corrupted prompt" in client.get("/patch").json()["problem"]
    monkeypatch.setattr(patches, "MOST_PLACES", 3)
    assert "at most 3" in lines(client, **PAIR)[-1]["problem"]
    monkeypatch.setattr(patches, "MOST_CELLS", 16)
    told = lines(client, **PAIR, site="z", by="position")
    assert "at most 2 for z" in told[-1]["problem"]


# The state is the address.

texts = st.text(max_size=40).map(lambda text: text.replace("\r\n", "\n"))
states = st.builds(
    PageState,
    prompt=texts,
    corrupted=texts,
    answer=texts,
    counterpart=texts,
    view=st.sampled_from(list(asking.VIEWS)),
    site=st.sampled_from(list(asking.SITES)),
    by=st.sampled_from(list(asking.PLACES)),
    direction=st.sampled_from(list(asking.DIRECTIONS)),
    head=st.sampled_from(["", "0.0", "11.3"]),
    readout=st.sampled_from(["", "4", "-2", "final full stop"]),
)


@given(states)
def test_an_address_gives_its_state_back(asked: PageState) -> None:
    try:
        query = asked.query()
    except UnicodeEncodeError:
        return  # a lone surrogate has no address
    assert read(QueryParams(query).multi_items()) == asked


def test_the_page_shows_the_state_of_its_address(client: TestClient) -> None:
    asked = {
        **PAIR,
        "answer": " It",
        "site": "z",
        "by": "all",
        "direction": "noising",
        "view": "corrupted",
        "special": "parsed",
    }
    page = Page(client.get("/", params=asked).text)
    assert "It was late. He slept." in page.text
    chosen = {option["value"] for option in page.all("option") if "selected" in option}
    assert chosen == {"z", "all", "noising", "corrupted", "parsed", ""}  # no conversation
    (link,) = [a for a in page.all("a") if a.get("id") == "save"]
    assert "answer=+It" in link["href"]


def test_of_two_answers_the_pressed_button_counts() -> None:
    assert read([("answer", ""), ("answer", " It")]).answer == " It"


def test_a_line_end_of_a_form_is_one_of_a_script() -> None:
    assert read([("prompt", "a\r\nb")]).prompt == "a\nb"


# Save as study.


@pytest.mark.slow
def test_a_saved_study_runs_and_finds_the_same(
    client: TestClient, toy_folder: Callable[..., Path], tmp_path: Path
) -> None:
    asked = {**PAIR, "answer": " It", "counterpart": " it"}
    answer = client.get("/study.toml", params=asked)
    assert answer.headers["content-disposition"] == 'attachment; filename="explored.toml"'
    file = tmp_path / "explored.toml"
    file.write_bytes(answer.content)
    (prompt,) = load_behaviour(file).prompts
    assert (prompt.text, prompt.corrupted) == tuple(PAIR.values())
    assert (prompt.answer, prompt.counterpart) == (" It", " it")
    run = CliRunner().invoke(
        cli.app,
        ["run", str(file), "--model", str(toy_folder()), "--out", str(tmp_path / "s"), "--json"],
    )
    assert run.exit_code == 0, run.output
    html = client.get("/panels", params=asked).json()["html"]
    total = figure(html["ledger"])["columns"]["value"][-1]
    assert json.loads(run.stdout)["logit_difference"] == pytest.approx(total, abs=1e-4)


def test_special_tokens_are_read_as_the_page_asks_and_saved_so(
    client: TestClient, toy_model: Model, tmp_path: Path
) -> None:
    asked = {"prompt": "<|endoftext|>Go.", "corrupted": "<|endoftext|>No.", "special": "parsed"}
    html = client.get("/panels", params=asked).json()["html"]
    shown = Page(html["tokens-0"]).text
    assert shown.count("<|endoftext|>") == 1
    assert shown.endswith(f"{len(toy_model.tokenize('Go.').rows()[0])} tokens")
    plain = client.get("/panels", params=asked | {"special": ""}).json()["html"]
    assert "special token" in Page(plain["outcome"]).text
    assert "special token" not in Page(html["outcome"]).text
    file = tmp_path / "explored.toml"
    file.write_bytes(client.get("/study.toml", params=asked).content)
    assert load_behaviour(file).parse_special
    assert lines(client, **asked)[-1]["done"]
    with pytest.raises(Refusal):
        read([("special", "perhaps")])


def test_an_empty_prompt_is_bos_alone(client: TestClient, toy_model: Model) -> None:
    html = client.get("/panels", params={"prompt": ""}).json()["html"]
    top = probe(toy_model, [""]).predictions.rows()[0]
    assert visible(top["token"]) in Page(html["predictions"]).text
    assert Page(html["tokens-0"]).text.endswith("1 token")
    without = Explorer(Questions(toy_model.with_bos(False)), Worker())
    with TestClient(without.application(HERE)) as other:
        assert "empty" in other.get("/panels", params={"prompt": ""}).json()["problem"]


@given(st.text(min_size=1, max_size=30), st.text(max_size=10))
@settings(max_examples=40)
def test_any_saved_study_can_be_read(
    tmp_path_factory: pytest.TempPathFactory, explorer: Explorer, text: str, other: str
) -> None:
    try:
        asked = read([("prompt", text), ("corrupted", other)])
        (text + other).encode()
    except (Refusal, UnicodeEncodeError):
        return
    file = tmp_path_factory.getbasetemp() / "any.toml"
    file.write_text(explorer.questions.study_file(asked), encoding="utf-8", newline="")
    (prompt,) = load_behaviour(file).prompts
    assert (prompt.text, prompt.corrupted or "") == (asked.prompt, asked.corrupted)


# Bad input.


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "</textarea><img src=x onerror=alert(1)>",
        "{{ 7 * 7 }} {% raw %} ${7*7} #{7*7}",
        "' onfocus='alert(1)' autofocus '",
        "\u202eright to left\u202c \x00\x1b[31m",
    ],
)
def test_what_is_typed_stays_text(client: TestClient, text: str) -> None:
    asked = {"prompt": text, "corrupted": text + ".", "answer": text, "counterpart": text}
    plain = Page(client.get("/", params={"prompt": "It was late."}).text)
    page = Page(client.get("/", params=asked).text)
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in plain.tags} | {"br"}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.text.count(text) >= 3
    answer = client.get("/panels", params={"prompt": text})
    for html in answer.json()["html"].values():
        tags = {tag for tag, _ in Page(html).tags}
        assert not tags & {"img", "iframe", "object", "style", "link", "base", "form", "input"}
        assert all(a.get("type") == "application/json" for a in Page(html).all("script"))


def test_prompts_out_of_bounds_get_a_sentence(client: TestClient) -> None:
    long = client.get("/panels", params={"prompt": "a b " * 100})
    assert long.status_code == 200
    assert re.search(r"2\d\d tokens long\. Allowed: at most 64", long.json()["problem"])
    page = client.get("/", params={"prompt": "a b " * 100})
    assert page.status_code == 200
    assert "at most 64" in Page(page.text).text
    longer = client.get("/panels", params={"prompt": "a" * 20_000})
    assert longer.status_code == 413
    assert "at most 16,000" in longer.json()["problem"]
    book = client.get("/panels", params={"prompt": "a" * 60_000})
    assert book.status_code == 414
    assert "60,007 bytes" in book.text


def test_an_unknown_token_costs_the_contrast_alone(client: TestClient) -> None:
    found = client.get("/panels", params={"prompt": "Go.", "answer": "xyzzy plugh"}).json()
    assert "is exactly one token" in Page(found["html"]["outcome"]).text
    assert "needs an answer and a counterpart" in found["html"]["ledger"]
    assert figure(found["html"]["classes"])
    assert found["state"]["weighed"] is False
    saved = client.get("/study.toml", params={"prompt": "Go.", "answer": "xyzzy plugh"})
    assert "content-disposition" not in saved.headers
    assert "one token" in saved.json()["problem"]


@pytest.mark.parametrize(
    "query", ["nonsense=1", "view=sideways", "site=resid", "by=word", "direction=up", "head=a.b"]
)
@pytest.mark.parametrize("path", ["/", "/panels", "/patch", "/pattern", "/study.toml"])
def test_what_means_nothing_is_refused_with_what_would(
    client: TestClient, path: str, query: str
) -> None:
    answer = client.get(f"{path}?{query}")
    assert answer.status_code == 400
    assert "Allowed:" in (Page(answer.text).text if path == "/" else answer.json()["problem"])


def test_a_fault_of_ours_is_said_without_its_inside(
    explorer: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Questions, asked: PageState) -> None:
        raise RuntimeError("a secret path")

    monkeypatch.setattr(Questions, "panels", fail)
    client = TestClient(explorer.application(HERE), raise_server_exceptions=False)
    answer = client.get("/panels")
    assert answer.status_code == 500
    assert "RuntimeError" in answer.json()["problem"]
    assert "secret" not in answer.text


# A study's prompts.


def test_a_study_offers_its_prompts_with_their_answers(
    tmp_path: Path, toy_model: Model, explorer: Explorer
) -> None:
    studies.write(tmp_path / "s", studies.full())
    found = study_prompts_of(tmp_path / "s")
    assert (found.model, found.dtype, found.bos) == ("toy", "float32", True)
    assert found.prompts[0][0] == f"0: {studies.TEXTS[0]}"
    client = TestClient(Explorer(Questions(toy_model), explorer.worker, found).application(HERE))
    page = Page(client.get("/").text)
    queries = [o["value"] for o in page.all("option") if o["value"].startswith("prompt=")]
    assert len(queries) >= len(studies.TEXTS) - 1
    state = client.get(f"/panels?{queries[-1]}").json()["state"]
    token = toy_model.tokenizer.token
    pair = [token(state[side]).label for side in ("answer", "counterpart")]
    assert pair == [" It", " it"]


def test_on_a_study_the_page_opens_with_its_first_prompt_pair_and_partner(
    tmp_path: Path, toy_model: Model, explorer: Explorer
) -> None:
    results = studies.full()
    columns = next(r for r in results if r.name == "prompts").columns  # type: ignore[union-attr]
    columns["corrupted"] = ["This is a word.", *[None] * (len(studies.TEXTS) - 1)]
    families = {"patching.z.all": "all lowered"}
    studies.write(tmp_path / "s", results, patch_families=families)
    found = study_prompts_of(tmp_path / "s")
    states = [read(parse_qsl(query, keep_blank_values=True)) for _, query in found.prompts]
    pair = [f"id:{toy_model.tokenizer.token(text).id}" for text in (" It", " it")]
    assert states[0] == PageState(studies.TEXTS[0], "This is a word.", *pair)
    assert states[1].corrupted == studies.TEXTS[1].lower(), "by the edit that the study patched"
    client = TestClient(Explorer(Questions(toy_model), explorer.worker, found).application(HERE))
    page = Page(client.get("/").text)
    chosen = [o for o in page.all("option") if "selected" in o and "prompt=" in o["value"]]
    assert [o["value"] for o in chosen] == [found.prompts[0][1]]
    assert "This is a word." in page.text
    assert "activations of one run" not in client.get("/panels?" + found.prompts[0][1]).text


@pytest.mark.parametrize(
    "wrong",
    [
        {"view": "sideways"},
        {"nonsense": "1"},
        {"answer": "x" * 3000},
        {"readout": "x" * 200},
        {"head": "first"},
    ],
)
def test_what_is_typed_survives_a_refusal(client: TestClient, wrong: dict[str, str]) -> None:
    typed = {"prompt": "Some words typed here.", "corrupted": "Other words typed here."}
    answer = client.get("/?" + urlencode(typed | wrong))
    assert answer.status_code >= 400
    assert all(text in Page(answer.text).text for text in typed.values())


def test_a_study_that_lacks_a_table_says_so_on_the_page(
    tmp_path: Path, toy_model: Model, explorer: Explorer
) -> None:
    for lost, said in (("answers", "without answers"), ("prompts", "none of its prompts")):
        folder = tmp_path / lost
        studies.write(folder, studies.full(), format=99)
        (folder / "tables" / f"{lost}.parquet").unlink()
        found = study_prompts_of(folder)
        assert bool(found.prompts) == (lost == "answers")
        page = TestClient(
            Explorer(Questions(toy_model), explorer.worker, found).application(HERE)
        ).get("/")
        assert page.status_code == 200
        text = Page(page.text).text
        assert f"no tables/{lost}.parquet" in text
        assert said in text
        assert "format 99" in text
        (folder / "tables" / f"{lost}.parquet").write_bytes(b"not a table")
        assert f"{lost}.parquet cannot be read" in " ".join(study_prompts_of(folder).notices)
    with pytest.raises(StudyError, match="holds no study"):
        study_prompts_of(tmp_path)


# Who is answered.


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "TESTSERVER"}, 200),
        ({"host": "evil.example"}, 421),
        ({"host": "testserver.evil.example"}, 421),
        ({"host": "testserver:80"}, 421),
        ({"host": ""}, 421),
        ({"origin": "http://testserver"}, 200),
        ({"origin": "https://testserver"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-dest": "document"}, 403),
    ],
)
def test_only_this_origin_is_answered(
    client: TestClient, headers: dict[str, str], status: int
) -> None:
    answer = client.get("/panels", headers=headers)
    assert answer.status_code == status
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")


def test_a_link_from_elsewhere_opens_the_page_and_nothing_else(client: TestClient) -> None:
    come = {"sec-fetch-site": "cross-site", "sec-fetch-dest": "document"}
    assert client.get("/", headers=come).status_code == 200
    framed = {"sec-fetch-site": "cross-site", "sec-fetch-dest": "iframe"}
    assert client.get("/", headers=framed).status_code == 403


def test_nothing_but_get_is_answered(client: TestClient) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        answer = client.request(method, "/panels", content=b"x" * 100_000)
        assert answer.status_code == 405
        assert answer.headers["allow"] == "GET, HEAD"


def test_every_answer_tells_the_browser_to_keep_to_this_origin(client: TestClient) -> None:
    for path in ("/", "/panels", "/static/figures.js", "/nowhere", "/patch?view=x"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "script-src 'self';" in policy
        assert "connect-src 'self';" in policy
        assert "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
    page = Page(client.get("/").text)
    loaded = [entry for entry in page.loads if not entry.startswith("a ")]
    assert loaded
    for entry in loaded:
        assert re.search(r"=(/static/[\w.-]+\?v=\w+|data:,|/)$", entry), entry
    for script in page.all("script"):
        assert script.get("src", "").startswith("/static/") or script["type"] == "application/json"


def test_static_files_are_those_named_and_no_others(client: TestClient) -> None:
    css = client.get("/static/explorer.css")
    assert css.headers["content-type"].startswith("text/css")
    assert "svg.plot" in css.text
    assert client.get("/static/source-serif-4.woff2").content[:4] == b"wOF2"
    for name in ("report.html", "..%2fpage.py", "../page.py", "explorer.html", "", "%00"):
        assert client.get(f"/static/{name}").status_code == 404


def test_the_address_served_is_loopback_and_its_names() -> None:
    assert hosts("127.0.0.1", 8017) == ["127.0.0.1:8017", "localhost:8017", "[::1]:8017"]
    assert hosts("192.0.2.7", 80) == ["192.0.2.7:80", "192.0.2.7"]
    for everywhere in ("0.0.0.0", "::"):
        with pytest.raises(ServeError, match="every address"):
            listen(everywhere, 0)
    with pytest.raises(ServeError, match="cannot be listened on"):
        listen("192.0.2.7", 0)
    with pytest.raises(ServeError, match="has no address"):
        listen("no such host", 0)
    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(ServeError, match="--port"):
            listen("127.0.0.1", taken.getsockname()[1])


def test_a_studys_tokens_are_texts_where_a_text_is_one_token(toy_model: Model) -> None:
    tokenizer = toy_model.tokenizer
    ids = [tokenizer.token(text).id for text in (" It", " it")]
    query = PageState(prompt="Go.", answer=f"id:{ids[0]}", counterpart=f"id:{ids[1]}").query()
    offered = StudyPrompts("s", "m", "float32", True, [("0: Go.", query)])
    ((_, written),) = offered.written_by(tokenizer).prompts
    assert written == PageState(prompt="Go.", answer=" It", counterpart=" it").query()
