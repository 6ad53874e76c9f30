"""What is answered at which address?

`/` is the page, complete without script; `/panels` every quick panel of one run; `/patch` a grid,
line by line as it is computed; `/pattern` one head's pattern; `/study.toml` the state as a
behaviour file that `casestudy run` accepts. All take the page's own query string.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from markupsafe import Markup
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from casestudy.errors import CasestudyError, PromptError
from casestudy.show.explorer import page_state as asking
from casestudy.show.explorer.guard import Guard
from casestudy.show.explorer.page_state import PageState, Refusal
from casestudy.show.explorer.panels import PLACES, TITLES, problem
from casestudy.show.explorer.patches import Line
from casestudy.show.explorer.questions import Questions
from casestudy.show.explorer.study_prompts import StudyPrompts
from casestudy.show.explorer.worker import Busy, Job, Pause, Stopped, Worker
from casestudy.show.page import FONT, TEMPLATES, environment, font_face, template_text
from casestudy.show.text import clean

T = TypeVar("T")

PAGE_KEY = "x-page"
"""The header by which a page's questions are told from another's."""
WITHDRAWN = "The request was withdrawn, or its page has asked something newer."
RETRY = 1
"""Seconds after which somebody who was refused may come again."""
STATIC = {
    "explorer.css": "text/css",
    "figures.js": "text/javascript",
    "explorer.js": "text/javascript",
    FONT: "font/woff2",
}


@dataclass(frozen=True)
class Explorer:
    """The page and its answers, for one model.

    Attributes:
        questions: what the model is asked.
        worker: whose thread runs it.
        picks: a study's prompts to choose from.
    """

    questions: Questions
    worker: Worker
    picks: StudyPrompts | None = None

    def application(self, hosts: list[str], started: Callable[[], None] = lambda: None) -> Guard:
        """What a server runs.

        Args:
            hosts: the Host headers that are this server.
            started: called once it will answer.
        """

        @contextlib.asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            started()
            yield
            self.worker.close()

        routes = [
            Route("/", self.page),
            Route("/panels", self.answer_panels),
            Route("/patch", self.answer_patch),
            Route("/pattern", self.answer_pattern),
            Route("/study.toml", self.answer_study),
            Route("/static/{name}", self.static),
        ]
        handlers: dict[Any, Any] = {Refusal: refused, CasestudyError: wrong, Exception: broken}
        app = Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)
        return Guard(app, hosts)

    # What is answered.

    async def page(self, request: Request) -> Response:
        """The page, its panels filled for those who have no script."""
        entries = request.query_params.multi_items() or self.first
        page_state, refusal = asking.readable(entries), None
        html: dict[str, Markup] = {}
        state: dict[str, Any] = {}
        try:
            page_state = asking.read(entries)
            html, state = await self.ask(request, lambda _: self.questions.panels(page_state))
        except Refusal as why:
            refusal, html = why, {"outcome": problem(why.why)}
        except CasestudyError as error:
            html, state = {"outcome": problem(str(error))}, {"problem": True}
        status, headers = (200, {}) if refusal is None else (refusal.status, refusal.headers)
        return HTMLResponse(self.render(page_state, html, state), status, headers)

    @property
    def first(self) -> list[tuple[str, str]]:
        """What a page shows that nobody asked anything: the study's first prompt with its pair."""
        offered = self.picks.prompts if self.picks is not None else []
        return parse_qsl(offered[0][1], keep_blank_values=True) if offered else []

    def render(self, page_state: PageState, html: dict[str, Markup], state: dict[str, Any]) -> str:
        """The page's HTML."""
        return (
            environment()
            .get_template("explorer.html")
            .render(
                page_state=page_state,
                model=self.questions.model,
                html=dict.fromkeys(PLACES, Markup("")) | html,
                state=state,
                titles=TITLES,
                sites=asking.SITES,
                places=asking.PLACES,
                directions=asking.DIRECTIONS,
                views=asking.VIEWS,
                special=asking.SPECIAL,
                chat=asking.CHAT,
                picks=self.picks,
                limits={"text": asking.MOST_TEXT, "tokens": self.questions.most_tokens},
                version=self.version,
                shared={"prompts": {}, "patterns": {}},
            )
        )

    async def answer_panels(self, request: Request) -> Response:
        """Every quick panel, as HTML by the name of its place."""
        page_state = asking.read(request.query_params.multi_items())
        html, state = await self.ask(request, lambda _: self.questions.panels(page_state))
        return JSONResponse({"html": html, "state": state})

    async def answer_pattern(self, request: Request) -> Response:
        """One head's pattern: its tokens, and its entries a byte each."""
        page_state = asking.read(request.query_params.multi_items())
        return JSONResponse(await self.ask(request, lambda _: self.questions.pattern(page_state)))

    async def answer_study(self, request: Request) -> Response:
        """A file to download."""
        page_state = asking.read(request.query_params.multi_items())
        text = await self.ask(request, lambda _: self.questions.study_file(page_state))
        headers = {"content-disposition": 'attachment; filename="explored.toml"'}
        return Response(text, media_type="application/toml", headers=headers)

    async def answer_patch(self, request: Request) -> Response:
        """A grid as it is computed, a JSON object a line."""
        page_state = asking.read(request.query_params.multi_items())
        if not page_state.corrupted:
            raise PromptError("There is nothing to patch with", hint="Type a corrupted prompt")
        newest = Newest()

        def work(pause: Pause) -> Line:
            return self.questions.grid(page_state, pause, newest.put)

        job = self.queue(work, request)
        return StreamingResponse(_lines(job, newest), media_type="application/x-ndjson")

    @cached_property
    def version(self) -> str:
        """What the static files are now, so that a browser keeps no older ones."""
        return sha256(b"".join(_static(name) for name in STATIC)).hexdigest()[:12]

    async def static(self, request: Request) -> Response:
        """Styles, scripts and the typeface."""
        name = request.path_params["name"]
        if name not in STATIC:
            raise Refusal(404, "There is no such file.")
        headers = {"cache-control": "max-age=31536000, immutable"}
        return Response(_static(name), media_type=STATIC[name], headers=headers)

    # The way to the model and back.

    def queue(self, work: Callable[[Pause], T], request: Request) -> Job[T]:
        """A place in the model's queue, instead of the page's older question at this address.

        Raises: Refusal where it is full.
        """
        try:
            key = request.headers.get(PAGE_KEY, "")
            return self.worker.ask(work, page=f"{key}{request.url.path}" if key else "")
        except Busy as busy:
            why = "Too many questions at once; this one can be asked again in a second."
            raise Refusal(429, why, retry_after=RETRY) from busy

    async def ask(self, request: Request, work: Callable[[Pause], T]) -> T:
        """What the work gives; it is dropped once the one who asked has gone.

        Raises: Refusal where the queue is full or nobody waits; whatever the work raises.
        """
        job = self.queue(work, request)
        answer = _awaited(job)
        gone = asyncio.ensure_future(_gone(request))
        try:
            await _first(answer, gone)
            if not answer.done() or answer.cancelled():
                raise Refusal(499, WITHDRAWN)
            return await answer
        except Stopped as stopped:
            raise Refusal(499, WITHDRAWN) from stopped
        finally:
            gone.cancel()
            job.stop()


def _awaited(job: Job[T]) -> asyncio.Future[T]:
    """A job's answer for the event loop, which nobody has to collect."""
    answer = asyncio.wrap_future(job.answer)
    answer.add_done_callback(lambda done: done.cancelled() or done.exception())
    return answer


async def _first(*futures: asyncio.Future[Any]) -> None:
    """Return once one of them is done."""
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


async def _gone(request: Request) -> None:
    """Return once the other side has hung up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Newest:
    """The newest of some lines, from the model's thread to a connection; older ones are dropped."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._line: Line | None = None
        self._there = asyncio.Event()

    def put(self, line: Line) -> None:
        """From the model's thread."""
        with contextlib.suppress(RuntimeError):  # the server has stopped, and nobody listens
            self._loop.call_soon_threadsafe(self._take, line)

    def _take(self, line: Line) -> None:
        self._line = line
        self._there.set()

    async def get(self) -> Line:
        """The next line; the newest, if several came meanwhile."""
        await self._there.wait()
        self._there.clear()
        assert self._line is not None
        return self._line


async def _lines(job: Job[Line], newest: Newest) -> AsyncIterator[bytes]:
    """What the page is told, until the grid is finished or nobody listens."""
    answer, line = _awaited(job), asyncio.ensure_future(newest.get())
    try:
        while not answer.done():
            await _first(answer, line)
            if line.done() and not answer.done():
                yield _json_line(line.result())
                line = asyncio.ensure_future(newest.get())
        if answer.cancelled():
            return
        try:
            yield _json_line(await answer)
        except Stopped:
            return
        except CasestudyError as error:
            yield _json_line({"problem": clean(error)})
    finally:
        line.cancel()
        job.stop()


def _json_line(line: Line) -> bytes:
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


def _static(name: str) -> bytes:
    if name.endswith(".woff2"):
        return (TEMPLATES / name).read_bytes()
    if name == "explorer.css":
        sheets = ("plot.css", "report.css", name)
        return (font_face(FONT) + "".join(map(template_text, sheets))).encode()
    return template_text(name).encode()


def refused(request: Request, refusal: Exception) -> Response:
    """A refusal as what the page's script reads."""
    assert isinstance(refusal, Refusal)
    return JSONResponse({"problem": refusal.why}, refusal.status, refusal.headers)


def wrong(request: Request, error: Exception) -> Response:
    """What cannot be measured as asked: an answer about the prompt, not a fault of the request."""
    return JSONResponse({"problem": clean(error)})


def broken(request: Request, error: Exception) -> Response:
    """A fault of ours, said without its inside; the server's own output has that."""
    why = f"The explorer met an error of its own ({type(error).__name__}); its terminal has more."
    return JSONResponse({"problem": why}, 500)
