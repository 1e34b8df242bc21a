# SPDX-License-Identifier: Apache-2.0
"""The gate before every route: browsers are refused, the token is compared, bodies are bounded.
Never looks at what a request asks for, so that no route can be forgotten."""

from __future__ import annotations

import hmac
import json

from starlette.types import ASGIApp, Message, Receive, Scope, Send

ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
MAX_BODY_BYTES = 64 * 1024


class Gate:
    """ASGI middleware. 403 for any Origin, 401 without the token, 413 and 415 for odd bodies.

    A page in the artist's browser can reach any loopback port. It always sends an Origin with a
    request that changes something, and it can never know the token; we refuse on both grounds.
    The Host check against DNS rebinding is starlette's TrustedHostMiddleware, outside of this.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no WebSocket routes exist
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if b"origin" in headers:
            await _refuse(send, 403, "requests from web pages are refused")
            return
        if not hmac.compare_digest(headers.get(b"authorization", b""), self._expected):
            await _refuse(send, 401, "the header 'Authorization: Bearer TOKEN' is missing or wrong")
            return
        body = await _read_body(headers, receive)
        if body is None:
            await _refuse(send, 413, f"the body is larger than {MAX_BODY_BYTES} bytes")
            return
        content_type = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if body and content_type != b"application/json":
            await _refuse(send, 415, "the body must be application/json")
            return
        await self.app(scope, _replay(body, receive), send)


async def _read_body(headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
    """The whole body, or None when it is over the limit (whatever its Content-Length says)."""
    declared = headers.get(b"content-length", b"0")
    if not declared.isdigit() or int(declared) > MAX_BODY_BYTES:
        return None
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return body
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            return None
        if not message.get("more_body", False):
            return body


def _replay(body: bytes, receive: Receive) -> Receive:
    """Hands the body to the application once, then whatever the connection says next."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _refuse(send: Send, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 413:
        headers.append((b"connection", b"close"))  # the rest of the body was not read
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
