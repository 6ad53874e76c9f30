"""Which requests come from the explorer's own page?

Any page open in a browser on this machine can reach a server on this machine: under another host
name that resolves to it (DNS rebinding), or by a cross-origin request. Therefore the Host header
must be the address served; the origin that a browser reports must be this origin, except for the
page itself, which shared links open from elsewhere; and requests larger than any the page sends are
refused. Every answer tells the browser to run and load only what this origin sends.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from casestudy.show.explorer.page_state import MOST_QUERY

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; style-src-attr 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
"""This origin only, and nothing inline except the style attributes that colour figures."""

HEADERS = (
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),  # a page's address holds the prompt
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cache-control", "no-store"),
)


class Guard:
    """An ASGI application that passes only allowed requests on to another.

    Args:
        app: the application that answers.
        hosts: the Host headers of this server, ports included.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self.app = app
        self.hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})

        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in message["headers"]}
                more = [(k.encode(), v.encode()) for k, v in HEADERS if k.encode() not in own]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        refused = self.refusal(scope)
        if refused is None:
            return await self.app(scope, receive, headed)
        status, why = refused
        body = why.encode()
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
        headers += [(b"content-length", str(len(body)).encode())]
        headers += [(b"allow", b"GET, HEAD")] if status == 405 else []
        await headed({"type": "http.response.start", "status": status, "headers": headers})
        return await headed({"type": "http.response.body", "body": body})

    def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Why a request is refused, with its status; None where it is not."""
        sent: dict[bytes, list[str]] = {}
        for name, value in scope["headers"]:
            sent.setdefault(name.lower(), []).append(value.decode("latin-1"))
        hosts = sent.get(b"host", [])
        if len(hosts) != 1 or hosts[0].lower() not in self.hosts:
            return 421, f"This server answers to {', '.join(sorted(self.hosts))} only.\n"
        if scope["method"] not in ("GET", "HEAD"):
            return 405, "Nothing here can be changed: only GET is answered.\n"
        if any(
            origin.lower() != f"http://{hosts[0].lower()}" for origin in sent.get(b"origin", [])
        ):
            return 403, "Requests from other origins are refused.\n"
        come_from = sent.get(b"sec-fetch-site", ["none"])[-1]
        opened = scope["path"] == "/" and sent.get(b"sec-fetch-dest", [""])[-1] == "document"
        if come_from in ("cross-site", "same-site") and not opened:
            return 403, "Requests from other origins are refused.\n"
        if len(scope["query_string"]) > MOST_QUERY:
            size = len(scope["query_string"])
            return 414, f"The address is {size:,} bytes long. Allowed: at most {MOST_QUERY:,}.\n"
        return None
