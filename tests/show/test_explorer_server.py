"""The explorer over a socket: bounds, names, many at once, and an end without a fuss."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest
from typer.testing import CliRunner

from casestudy import cli
from casestudy.errors import ModelError, ServeError, StudyError
from tests.show import studies
from tests.show.serving import Served, serving

pytestmark = pytest.mark.slow

ASKED = {"prompt": "It was late. He slept.", "corrupted": "It was late, he slept."}
WORDS = ("It", "was", "late", "the", "dog", "slept", "and", "He", "She", "went", "home", ".", ",")


def raw(served: Served, request: bytes, *, waits: bool = True) -> bytes:
    """What comes back for these bytes, to one who waits for an answer or hangs up."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=300) as line:
        line.sendall(request)
        if not waits:
            line.shutdown(socket.SHUT_WR)
        pieces = []
        while piece := line.recv(65536):
            pieces.append(piece)
    return b"".join(pieces)


def test_it_answers_by_its_own_names_only(served: Served) -> None:
    for name in ("127.0.0.1", "localhost", "[::1]"):
        head = f"GET /panels HTTP/1.1\r\nHost: {name}:{served.port}\r\nConnection: close\r\n\r\n"
        assert raw(served, head.encode()).startswith(b"HTTP/1.1 200")
    for name in (
        "evil.example",
        f"evil.example:{served.port}",
        "127.0.0.1",
        f"127.0.0.1:{served.port}.",
    ):
        head = f"GET /panels HTTP/1.1\r\nHost: {name}\r\n\r\n"
        assert raw(served, head.encode()).startswith(b"HTTP/1.1 421")
    assert raw(served, b"GET /panels HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 421")


def test_a_megabyte_is_refused_wherever_it_stands(served: Served) -> None:
    host = f"Host: 127.0.0.1:{served.port}\r\n".encode()
    big = b"a" * 1_000_000
    for request in (
        b"GET /panels?prompt=" + big + b" HTTP/1.1\r\n" + host + b"\r\n",
        b"GET /panels HTTP/1.1\r\n" + host + b"X: " + big + b"\r\n\r\n",
        b"POST /panels HTTP/1.1\r\n" + host + b"Content-Length: 1000000\r\n\r\n" + big,
    ):
        try:
            status = raw(served, request).split()[1]
        except ConnectionError:
            continue  # it was closed while we were still sending
        assert status in (b"400", b"405", b"414", b"431")
    assert httpx2.get(f"{served.address}/panels").status_code == 200


def test_what_is_not_http_is_refused(served: Served) -> None:
    for request in (b"\x16\x03\x01", b"GET\r\n\r\n", b"\x00" * 100, b"GET / HTTP/9\r\n\r\n"):
        assert raw(served, request, waits=False)[:12] in (b"", b"HTTP/1.1 400")
    assert httpx2.get(f"{served.address}/").status_code == 200


def test_a_grid_arrives_before_it_is_finished(served: Served) -> None:
    clean = "The quick brown fox jumped over the lazy dog and ran away. " * 4 + "It was late."
    asked = {"prompt": clean, "corrupted": clean.replace("The quick", "the quick", 1)}
    with httpx2.stream("GET", f"{served.address}/patch", params=asked, timeout=300) as answer:
        told = [json.loads(line) for line in answer.iter_lines()]
    assert len(told) > 1
    assert told[0]["done"] < told[-1]["done"] == told[-1]["total"]


def test_what_cannot_be_served_is_said_before_anything_is(tmp_path: Path) -> None:
    for arguments, error in (
        ([str(tmp_path)], StudyError),
        (["--model", "no-such-model"], ModelError),
        (["--host", "0.0.0.0", "--port", "0"], ServeError),
    ):
        ended = CliRunner().invoke(cli.app, ["serve", *arguments])
        assert isinstance(ended.exception, error)
        assert ended.stdout == ""


def test_a_study_whose_model_was_a_folder_elsewhere_asks_for_its_path(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    studies.write(folder, model={"name": "my-checkpoint"})
    ended = CliRunner().invoke(cli.app, ["serve", str(folder)])
    assert isinstance(ended.exception, ModelError)
    for words in ("the study's model 'my-checkpoint'", "keeps no path", "--model PATH"):
        assert words in str(ended.exception)


@dataclass
class Load:
    """What some users at once got.

    Attributes:
        statuses: how often each came.
        seconds: each answer took, by path.
        memory: of the server, over time.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    memory: list[int] = field(default_factory=list)


async def load(served: Served, users: int, seconds: float, answers: int = 0) -> Load:
    """So many people who type, look at a head, and patch, as fast as they are answered.

    On a busy machine they go on until they have so many answers, for at most five minutes.
    """
    found, begun_at = Load(), time.monotonic()

    def going_on() -> bool:
        passed = time.monotonic() - begun_at
        return passed < seconds or (found.statuses[200] < answers and passed < 300)

    limits = httpx2.Limits(max_connections=users, max_keepalive_connections=users)

    async def user(client: httpx2.AsyncClient, seed: int) -> None:
        rng = random.Random(seed)
        while going_on():
            words = rng.choices(WORDS, k=rng.randint(1, 30))
            text = " ".join(words)
            asked = {"prompt": text, "corrupted": text.lower() + " x", "head": "1.1", "by": "last"}
            path = rng.choices(["/panels", "/", "/pattern", "/patch"], [8, 1, 2, 2])[0]
            begun = time.monotonic()
            answer = await client.get(path, params=asked)
            found.statuses[answer.status_code] += 1
            if answer.status_code == 429:
                await asyncio.sleep(float(answer.headers["retry-after"]))
            else:
                found.seconds.setdefault(path, []).append(time.monotonic() - begun)

    async def watch() -> None:
        while going_on():
            found.memory.append(served.memory())
            await asyncio.sleep(0.5)

    async with httpx2.AsyncClient(base_url=served.address, limits=limits, timeout=300) as client:
        await asyncio.gather(watch(), *(user(client, seed) for seed in range(users)))
    return found


def test_many_at_once_are_answered_or_told_to_come_again(served: Served) -> None:
    found = asyncio.run(load(served, users=40, seconds=1.5, answers=6))
    assert set(found.statuses) <= {200, 429}
    assert found.statuses[200] > 5


@pytest.mark.large
def test_fifty_users_for_a_minute() -> None:
    with serving() as served:
        asyncio.run(load(served, users=50, seconds=10))  # what is allocated once, is
        found = asyncio.run(load(served, users=50, seconds=60))
    print({"statuses": dict(found.statuses), "MB": [m / 1e6 for m in found.memory[::20]]})
    for path, seconds in found.seconds.items():
        seconds.sort()
        print(path, len(seconds), "median", seconds[len(seconds) // 2], "longest", seconds[-1])
    assert set(found.statuses) <= {200, 429}
    assert found.statuses[200] > 100
    tenth = len(found.memory) // 10
    before, after = max(found.memory[:tenth]), min(found.memory[-tenth:])
    assert after < before * 1.05


@pytest.mark.large
def test_ten_thousand_requests() -> None:
    with serving() as served, httpx2.Client(base_url=served.address, timeout=300) as client:
        before = None
        for i in range(10_000):
            asked = {**ASKED, "prompt": f"It was {i}."} if i % 10 == 0 else {"nonsense": str(i)}
            status = client.get("/panels", params=asked).status_code
            assert status == (200 if i % 10 == 0 else 400)
            if i == 1000:
                before = served.memory()
        assert before is not None
        assert served.memory() < before * 1.05
