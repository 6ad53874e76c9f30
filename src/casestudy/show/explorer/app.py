"""Which address gives which answer?

`/` is the page, complete without JavaScript; `/panels` all panels of one run except patching;
`/patch` a patch grid, sent again line by line while it is computed; `/pattern` one head's attention
pattern; `/part` a part's card, line by line as it is made, and `/card` the same as a page of its
own; `/study.toml` the page's state as a behaviour file for `casestudy run`. All take the query
string of the page.
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

from casestudy.errors import CasestudyError, PromptError, SiteError
from casestudy.show.explorer import page_state as asking
from casestudy.show.explorer.guard import Guard
from casestudy.show.explorer.page_state import PageState, Refusal
from casestudy.show.explorer.panels import PLACES, TITLES, problem
from casestudy.show.explorer.patches import Line
from casestudy.show.explorer.questions import Questions
from casestudy.show.explorer.study_prompts import StudyPrompts
from casestudy.show.explorer.worker import Busy, Job, Pause, Stopped, Worker
from casestudy.show.page import FONT, TEMPLATES, environment, font_face, template_text
from casestudy.show.report import frame
from casestudy.show.text import clean

T = TypeVar("T")

PAGE_KEY = "x-page"
"""The header that identifies the page that sent a request."""
WITHDRAWN = "The request was withdrawn, or its page has asked something newer."
RETRY = 1
"""Seconds after which a refused request may be sent again."""
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
        questions: runs the model for a page.
        worker: the thread that the model runs in.
        picks: a study's prompts to choose from.
    """

    questions: Questions
    worker: Worker
    picks: StudyPrompts | None = None

    def application(self, hosts: list[str], started: Callable[[], None] = lambda: None) -> Guard:
        """The ASGI application.

        Args:
            hosts: the Host headers of this server.
            started: called when it is ready to answer.
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
            Route("/part", self.answer_part),
            Route("/card", self.answer_card),
            Route("/study.toml", self.answer_study),
            Route("/static/{name}", self.static),
        ]
        handlers: dict[Any, Any] = {
            Refusal: refused,
            SiteError: lacking,
            CasestudyError: wrong,
            Exception: broken,
        }
        app = Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)
        return Guard(app, hosts)

    # The answers.

    async def page(self, request: Request) -> Response:
        """The page, with its panels filled, for browsers without JavaScript."""
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
        """The state of a page without a query: the study's first prompt and its pair."""
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
        """All panels except patching: HTML by the name of the place on the page."""
        page_state = asking.read(request.query_params.multi_items())
        html, state = await self.ask(request, lambda _: self.questions.panels(page_state))
        return JSONResponse({"html": html, "state": state})

    async def answer_pattern(self, request: Request) -> Response:
        """One head's attention pattern: the tokens, and one byte per entry."""
        page_state = asking.read(request.query_params.multi_items())
        return JSONResponse(await self.ask(request, lambda _: self.questions.pattern(page_state)))

    async def answer_study(self, request: Request) -> Response:
        """A file to download."""
        page_state = asking.read(request.query_params.multi_items())
        text = await self.ask(request, lambda _: self.questions.study_file(page_state))
        headers = {"content-disposition": 'attachment; filename="explored.toml"'}
        return Response(text, media_type="application/toml", headers=headers)

    async def answer_patch(self, request: Request) -> Response:
        """A patch grid while it is computed: one JSON object per line."""
        page_state = asking.read(request.query_params.multi_items())
        if not page_state.corrupted:
            raise PromptError("There is nothing to patch with", hint="Type a corrupted prompt")
        return self.stream(
            request, lambda pause, tell: self.questions.grid(page_state, pause, tell)
        )

    async def answer_part(self, request: Request) -> Response:
        """The card of a part, after lines on its progress."""
        page_state = asking.read(request.query_params.multi_items())
        self.questions.check_part(page_state)
        return self.stream(
            request, lambda pause, tell: self.questions.part(page_state, pause, tell)
        )

    async def answer_card(self, request: Request) -> Response:
        """The card of a part as a page of its own, which runs its own script and style alone."""
        page_state = asking.read(request.query_params.multi_items())
        page = await self.ask(request, lambda pause: self.questions.part_page(page_state, pause))
        policy = f"{frame()['policy']}; frame-ancestors 'none'"
        return HTMLResponse(page, headers={"content-security-policy": policy})

    def stream(
        self, request: Request, work: Callable[[Pause, Callable[[Line], None]], Line]
    ) -> Response:
        """Lines while something is computed, and its result as the last: a JSON object each.

        Raises: Refusal where the queue is full.
        """
        newest = Newest()
        job = self.queue(lambda pause: work(pause, newest.put), request)
        return StreamingResponse(_lines(job, newest), media_type="application/x-ndjson")

    @cached_property
    def version(self) -> str:
        """A hash of the static files, so that a browser does not use old ones."""
        return sha256(b"".join(_static(name) for name in STATIC)).hexdigest()[:12]

    async def static(self, request: Request) -> Response:
        """Styles, scripts and the typeface."""
        name = request.path_params["name"]
        if name not in STATIC:
            raise Refusal(404, "There is no such file.")
        headers = {"cache-control": "max-age=31536000, immutable"}
        return Response(_static(name), media_type=STATIC[name], headers=headers)

    # Requests to the model.

    def queue(self, work: Callable[[Pause], T], request: Request) -> Job[T]:
        """Put work into the model's queue, in place of the page's older request to this address.

        Raises: Refusal where it is full.
        """
        try:
            key = request.headers.get(PAGE_KEY, "")
            return self.worker.ask(work, page=f"{key}{request.url.path}" if key else "")
        except Busy as busy:
            why = "Too many questions at once; this one can be asked again in a second."
            raise Refusal(429, why, retry_after=RETRY) from busy

    async def ask(self, request: Request, work: Callable[[Pause], T]) -> T:
        """The result of the work; the work is cancelled when the client disconnects.

        Raises: Refusal where the queue is full or the request was withdrawn; whatever the work
        raises.
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
    """A job's answer as a future of the event loop; its exception need not be retrieved."""
    answer = asyncio.wrap_future(job.answer)
    answer.add_done_callback(lambda done: done.cancelled() or done.exception())
    return answer


async def _first(*futures: asyncio.Future[Any]) -> None:
    """Return once one of them is done."""
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


async def _gone(request: Request) -> None:
    """Return when the client has disconnected."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Newest:
    """Passes lines from the model's thread to a connection; only the newest line waits."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._line: Line | None = None
        self._there = asyncio.Event()

    def put(self, line: Line) -> None:
        """Called in the model's thread."""
        with contextlib.suppress(RuntimeError):  # the server has stopped
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
    """The lines sent to the page, until the grid is finished or the client disconnects."""
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
        except Refusal as refusal:
            yield _json_line({"problem": refusal.why})
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
    """A refusal as JSON for the page's script."""
    assert isinstance(refusal, Refusal)
    return JSONResponse({"problem": refusal.why}, refusal.status, refusal.headers)


def lacking(request: Request, error: Exception) -> Response:
    """A request for a head, neuron or layer that the model lacks."""
    return JSONResponse({"problem": clean(error)}, 400)


def wrong(request: Request, error: Exception) -> Response:
    """An error about the prompt: the answer has status 200, since the request itself was valid."""
    return JSONResponse({"problem": clean(error)})


def broken(request: Request, error: Exception) -> Response:
    """An unexpected error, by its type only; the server's terminal shows the rest."""
    why = f"The explorer met an error of its own ({type(error).__name__}); its terminal has more."
    return JSONResponse({"problem": why}, 500)
