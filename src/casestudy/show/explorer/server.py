"""How is the live page served, and who can reach it?

This machine can: the socket is on the loopback address unless another is given, and only requests
whose Host header is that address are answered (see `guard`). There is one process and one thread
for the model. Small models compute on one core, since a second core would mostly wait for the
first.
"""

from __future__ import annotations

import contextlib
import ipaddress
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

from casestudy.errors import CasestudyError, ServeError
from casestudy.show.explorer.part_cards import PartCards
from casestudy.show.explorer.study_prompts import StudyPrompts

if TYPE_CHECKING:
    import uvicorn

    from casestudy.model.model import Model

PORT = 8017


def serve(
    model: Model,
    *,
    picks: StudyPrompts | None = None,
    cards: PartCards | None = None,
    host: str = "127.0.0.1",
    port: int = PORT,
    started: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve the explorer until it is interrupted, which raises KeyboardInterrupt.

    Args:
        model: the model.
        picks: a study's prompts to choose from.
        cards: of the model's parts: a study's, and the text over which others are made.
        host: the address to listen on, and the host name of requests; loopback by default.
        port: to listen on; 0 takes a free one.
        started: called with the page's address when requests are answered.

    Raises: ServeError where the address cannot be listened on.
    """
    import uvicorn

    from casestudy.engine.threads import adapt
    from casestudy.show.explorer.app import Explorer
    from casestudy.show.explorer.page_state import PageState
    from casestudy.show.explorer.questions import Questions
    from casestudy.show.explorer.worker import Pause, Worker

    listening, name = listen(host, port), _bracketed(host)
    port = listening.getsockname()[1]
    questions, worker = Questions(model, cards or PartCards()), Worker()

    def ready(pause: Pause) -> None:
        adapt(model)
        # Fills caches before the first request; a model that cannot run this prompt reports it
        # when a request comes.
        with contextlib.suppress(CasestudyError):
            questions.panels(PageState())

    worker.ask(ready).answer.result()
    explorer = Explorer(questions, worker, picks and picks.written_by(model.tokenizer))
    config = uvicorn.Config(
        explorer.application(hosts(host, port), lambda: started(f"http://{name}:{port}/")),
        http="h11",  # which bounds a request's head before anything of it is kept
        h11_max_incomplete_event_size=65536,
        ws="none",
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=2,
    )
    with listening:
        _run(uvicorn.Server(config), listening)


def _run(server: uvicorn.Server, listening: socket.socket) -> None:
    """Serve until a signal, finish within the configured time, and raise the signal once.

    At a second Ctrl-C, uvicorn's own handlers interrupt the shutdown with tracebacks, and they
    raise every signal that came.
    """
    came: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        came.append(number)
        server.should_exit = True

    @contextlib.contextmanager
    def signals() -> Iterator[None]:
        handled = signal.SIGINT, signal.SIGTERM
        before = {number: signal.signal(number, stop) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    if threading.current_thread() is threading.main_thread():  # elsewhere nobody may handle signals
        server.capture_signals = signals  # type: ignore[method-assign]
    server.run(sockets=[listening])
    if came:
        signal.raise_signal(came[0])


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to an address.

    Raises: ServeError where the address is every one, is not this machine's, or the port is taken.
    """
    try:
        (family, _, _, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, OverflowError) as error:
        raise ServeError(f"host {host!r} has no address: {error}") from error
    if ipaddress.ip_address(str(address[0]).partition("%")[0]).is_unspecified:
        raise ServeError(
            f"host {host} stands for every address of this machine",
            allowed="one address or name, which requests have to be sent to by that name",
        )
    # Named, the protocol is TCP to asyncio too, which then sends at once; without it a small
    # answer's second packet waits 40 ms for the first to be acknowledged.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)  # clients that connect before the first answer is ready wait for it
    except OSError as error:
        listening.close()
        raise ServeError(
            f"{_bracketed(host)}:{port} cannot be listened on: {error.strerror}",
            hint="Choose another with --port",
        ) from error
    return listening


def hosts(host: str, port: int) -> list[str]:
    """The Host headers of requests to this address; loopback has three names."""
    loopback = ["127.0.0.1", "localhost", "[::1]"]
    names = loopback if _bracketed(host) in loopback else [_bracketed(host)]
    return [f"{name}:{port}" for name in names] + (names if port == 80 else [])


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
