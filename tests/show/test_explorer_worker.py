"""One question at a time: the newest of a page wins, and what waits is bounded."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from casestudy.model.model import Model
from casestudy.show.explorer.app import Explorer
from casestudy.show.explorer.page_state import PageState
from casestudy.show.explorer.questions import Questions
from casestudy.show.explorer.worker import Busy, Pause, Stopped, Worker
from tests.show.asgi import request
from tests.show.pages import Page

PAIR = {"prompt": "It was late. He slept.", "corrupted": "It was late, he slept."}
HERE = ["testserver"]
LONG = 300
"""Seconds until a test gives up, however busy the machine is."""


class Held:
    """A question that stays until it is let go."""

    def __init__(self) -> None:
        self.begun, self.free = threading.Event(), threading.Event()

    def __call__(self, pause: Pause) -> str:
        self.begun.set()
        assert self.free.wait(LONG)
        pause()
        return "done"


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker(most=2)
    yield worker
    worker.close()


def test_a_full_queue_refuses_and_a_stopped_question_makes_room(worker: Worker) -> None:
    held = Held()
    first = worker.ask(held)
    assert held.begun.wait(LONG)
    ran: list[int] = []
    waiting = [worker.ask(lambda pause, i=i: ran.append(i)) for i in range(2)]  # type: ignore[misc]
    with pytest.raises(Busy):
        worker.ask(lambda pause: ran.append(9))
    waiting[0].stop()
    last = worker.ask(lambda pause: ran.append(2))
    held.free.set()
    last.answer.result(LONG)
    assert first.answer.result(LONG) == "done"
    assert ran == [1, 2]


def test_the_newest_question_of_a_page_wins_and_others_keep_their_turn(worker: Worker) -> None:
    held, ran = Held(), []
    running = worker.ask(held, page="a")
    assert held.begun.wait(LONG)
    other = worker.ask(lambda pause: ran.append("b"), page="b")
    for word in ("old", "older", "new"):  # each takes the place of the one before
        newest = worker.ask(lambda pause, word=word: ran.append(word), page="a")  # type: ignore[misc]
    held.free.set()
    newest.answer.result(LONG)
    other.answer.result(LONG)
    assert ran == ["b", "new"]
    with pytest.raises(Stopped):  # it ran, and ended at its next step
        running.answer.result(LONG)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 99)), min_size=1, max_size=20))
@settings(max_examples=20, deadline=None)
def test_of_every_page_the_last_question_alone_is_answered(asked: list[tuple[str, int]]) -> None:
    worker, held = Worker(), Held()
    worker.ask(held)
    assert held.begun.wait(LONG)
    ran: list[tuple[str, int]] = []
    jobs = [worker.ask(lambda pause, q=q: ran.append(q), page=q[0]) for q in asked]  # type: ignore[misc]
    held.free.set()
    last = {page: i for i, (page, _) in enumerate(asked)}
    for i in last.values():
        jobs[i].answer.result(LONG)
    worker.close()
    assert ran == [asked[i] for i in sorted(last.values())]


def test_a_long_question_ends_at_its_next_step_once_it_is_stopped(worker: Worker) -> None:
    held = Held()
    job = worker.ask(held)
    assert held.begun.wait(LONG)
    job.stop()
    held.free.set()
    with pytest.raises(Stopped):
        job.answer.result(LONG)


def test_a_page_that_asks_again_withdraws_its_older_question(toy_model: Model) -> None:
    worker, held = Worker(), Held()
    client = TestClient(Explorer(Questions(toy_model), worker).application(HERE))
    worker.ask(held)
    assert held.begun.wait(LONG)
    with ThreadPoolExecutor() as pool:
        older = pool.submit(client.get, "/panels", headers={"x-page": "one"})
        until = time.monotonic() + LONG
        while not worker._waiting and time.monotonic() < until:
            time.sleep(0.01)
        newer = pool.submit(client.get, "/panels", headers={"x-page": "one"})
        assert older.result(LONG).status_code == 499
        held.free.set()
        assert newer.result(LONG).status_code == 200
    worker.close()


def test_a_question_that_fails_leaves_the_desk_open(worker: Worker) -> None:
    def fail(pause: Pause) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        worker.ask(fail).answer.result(LONG)
    assert worker.ask(lambda pause: 1).answer.result(LONG) == 1


def test_too_many_are_told_to_come_again(toy_model: Model) -> None:
    worker, held = Worker(most=0), Held()
    client = TestClient(Explorer(Questions(toy_model), worker).application(HERE))
    for path in ("/panels", "/pattern?head=0.0", "/study.toml", "/patch?corrupted=a"):
        answer = client.get(path)
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "1"
        assert "in a second" in answer.json()["problem"]
    page = client.get("/")
    assert page.status_code == 429
    assert page.headers["retry-after"] == "1"
    assert "in a second" in Page(page.text).text
    assert not held.begun.is_set()
    worker.close()


def test_a_patch_grid_stops_when_its_page_asks_for_another(
    toy_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = threading.Event()

    def endless(self: Questions, asked: PageState, pause: Pause, tell: Any) -> None:
        try:
            while True:
                tell({"html": "", "done": 0, "total": 1, "finished": False})
                pause()
        except Stopped:
            stopped.set()
            raise

    monkeypatch.setattr(Questions, "grid", endless)
    worker = Worker()
    app = Explorer(Questions(toy_model), worker).application(HERE)
    answer = asyncio.run(request(app, "/patch", PageState(**PAIR).query().encode(), leave_after=2))
    assert stopped.wait(LONG)
    assert answer.body.count(b"\n") >= 2
    assert worker.ask(lambda pause: "free").answer.result(LONG) == "free"
    worker.close()


def test_a_question_whose_page_has_gone_is_never_asked(
    toy_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[PageState] = []
    monkeypatch.setattr(Questions, "panels", lambda self, one: asked.append(one))
    worker, held = Worker(), Held()
    job = worker.ask(held)
    assert held.begun.wait(LONG)
    app = Explorer(Questions(toy_model), worker).application(HERE)
    asyncio.run(request(app, "/panels", leave_after=0))
    held.free.set()
    job.answer.result(LONG)
    worker.ask(lambda pause: None).answer.result(LONG)
    assert asked == []
    worker.close()
