"""One request to an application, byte by byte, with whatever a browser or anybody else may send."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

HOST = "testserver"
Headers = Sequence[tuple[bytes, bytes]]
OWN: Headers = ((b"host", HOST.encode()),)


@dataclass
class Answer:
    """What came back."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    pieces: int = 0


async def request(
    app: Any,
    path: str,
    query: bytes = b"",
    *,
    method: str = "GET",
    headers: Headers = OWN,
    body: bytes = b"",
    leave_after: int | None = None,
) -> Answer:
    """Send a request and collect its answer.

    Args:
        app: the application.
        path, query: of the address, the query as it is sent.
        method, headers, body: of the request.
        leave_after: hang up after so many pieces of the answer, 0 at once; None waits for all.
    """
    answer = Answer()
    left = asyncio.Event()
    if leave_after == 0:
        left.set()
    begun = False

    async def receive() -> dict[str, Any]:
        nonlocal begun
        if not begun:
            begun = True
            return {"type": "http.request", "body": body, "more_body": False}
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {k.decode(): v.decode() for k, v in message["headers"]}
        else:
            answer.body += message.get("body", b"")
            answer.pieces += 1
            if answer.pieces == leave_after or not message.get("more_body", False):
                left.set()

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("utf-8", "replace"),
        "root_path": "",
        "query_string": query,
        "headers": list(headers),
        "server": (HOST, 80),
        "client": ("testclient", 1),
    }
    await app(scope, receive, send)
    return answer
