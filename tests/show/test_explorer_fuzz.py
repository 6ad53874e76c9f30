"""Whatever is sent, the explorer answers or refuses: never a fault, never its inside."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casestudy.model.model import Model
from casestudy.show.explorer import page_state as asking
from casestudy.show.explorer.app import Explorer
from casestudy.show.explorer.questions import Questions
from casestudy.show.explorer.worker import Worker
from tests.show.asgi import HOST, request

PATHS = ("/", "/panels", "/patch", "/pattern", "/study.toml", "/static/explorer.js", "/static/x")
CHOICES = [*asking.VIEWS, *asking.SITES, *asking.PLACES, *asking.DIRECTIONS, "0.0", "1.3", "9.9"]
PROMPTS = ("It was late.", "it was late.", "He slept. He slept.", "Go", " ", "\n", "é ü\u2028x")
TOKENS = (
    " It",
    " it",
    " It was",
    " it is late",
    "id:1,2",
    "It",
    "\n",
    "",
    " the",
    "<|endoftext|>",
    "\ufffd",
)

text = st.one_of(
    st.sampled_from(PROMPTS),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=60),
    st.text(st.sampled_from("<>&\"'{}%$\\\x00\x7f\u202e\u0301😀 .aA"), max_size=30),
)
token = st.one_of(st.sampled_from(TOKENS), text)
known = st.fixed_dictionaries(
    {},
    optional={
        "prompt": text,
        "corrupted": text,
        "answer": token,
        "counterpart": token,
        **{
            name: st.sampled_from(CHOICES) | st.text(max_size=5)
            for name in ("view", "site", "by", "direction", "head", "readout")
        },
    },
).map(lambda entries: urlencode(entries).encode())
sensible = st.fixed_dictionaries(
    {"prompt": st.sampled_from(PROMPTS), "corrupted": st.sampled_from(PROMPTS)},
    optional={
        "answer": st.sampled_from(TOKENS),
        "counterpart": st.sampled_from(TOKENS),
        "view": st.sampled_from(list(asking.VIEWS)),
        "site": st.sampled_from(list(asking.SITES)),
        "by": st.sampled_from(list(asking.PLACES)),
        "direction": st.sampled_from(list(asking.DIRECTIONS)),
        "head": st.sampled_from(["0.0", "1.3", "7.7"]),
        "readout": st.sampled_from(["", "1", "-1", "3", "99", "BOS", "final full stop"]),
    },
).map(lambda entries: urlencode(entries).encode())
queries = st.one_of(sensible, known, st.binary(max_size=200))
header = st.tuples(
    st.sampled_from([b"origin", b"sec-fetch-site", b"accept", b"content-length", b"x", b"host"]),
    st.binary(max_size=30),
)
headers = st.lists(header, max_size=2).map(lambda more: [(b"host", HOST.encode()), *more])
paths = st.one_of(st.sampled_from(PATHS), st.text(max_size=12).map(lambda rest: f"/{rest}"))
methods = st.sampled_from(["GET"] * 12 + ["HEAD", "POST", "OPTIONS", "get", ""])


@pytest.fixture(scope="module")
def app(toy_model: Model) -> Any:
    return Explorer(Questions(toy_model), Worker()).application([HOST])


def check(app: Any, path: str, query: bytes, method: str, sent: list[tuple[bytes, bytes]]) -> None:
    answer = asyncio.run(request(app, path, query, method=method, headers=sent))
    assert 200 <= answer.status < 500
    assert "content-security-policy" in answer.headers
    assert b"Traceback" not in answer.body
    kind = answer.headers.get("content-type", "")
    if kind == "application/json" and method != "HEAD":
        found = json.loads(answer.body)
        assert found.get("problem") or answer.status == 200
        assert answer.status == 200 or found["problem"].strip()
    if kind == "application/x-ndjson" and method != "HEAD":
        *_, last = map(json.loads, answer.body.splitlines())
        assert last.get("problem") or last["finished"]


@given(paths, queries, methods, headers)
@settings(max_examples=50)
def test_any_request_is_answered_or_refused(
    app: Any, path: str, query: bytes, method: str, headers: list[tuple[bytes, bytes]]
) -> None:
    check(app, path, query, method, headers)


@given(st.sampled_from(PATHS[:5]), sensible)
@settings(max_examples=40)
def test_any_state_is_answered(app: Any, path: str, query: bytes) -> None:
    check(app, path, query, "GET", [(b"host", HOST.encode())])


@pytest.mark.large
@given(paths, queries, methods, headers)
@settings(max_examples=8000, suppress_health_check=[HealthCheck.too_slow])
def test_thousands_of_requests_are_answered_or_refused(
    app: Any, path: str, query: bytes, method: str, headers: list[tuple[bytes, bytes]]
) -> None:
    check(app, path, query, method, headers)
