"""What stands before every request: who may ask, from which page, how much and how often."""

from __future__ import annotations

import hmac
import json
import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
OPEN = ("/", "/healthz")  # and the page's own files: without them nobody could be asked for a token


class Guards:
    """ASGI middleware.

    Args:
        hosts: names under which the server may be asked; a page elsewhere that resolves its own name to this machine is refused.
        token: needed in `Authorization: Bearer ...` where it is set.
        requests: of one client in ten seconds.
    """

    def __init__(self, app: App, hosts: set[str], token: str | None, requests: int) -> None:
        self.app, self.hosts, self.token, self.requests = app, hosts, token, requests
        self.seen: dict[str, deque[float]] = {}

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await _answer(send, *refusal)
            return

        async def send_guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                have = {key.lower() for key, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *((key.encode(), value.encode()) for key, value in HEADERS.items() if key.encode() not in have),
                ]
            await send(message)

        await self.app(scope, receive, send_guarded)

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str, dict[str, str]] | None:
        host = _host(headers.get("host", ""))
        if host not in self.hosts:
            return 421, "this server is not asked by that name; open the address that it printed", {}
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
            return 403, "another page may not ask this server", {}
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and scope["path"] not in OPEN:
            return 403, "another page may not ask this server", {}
        if self._too_often((scope.get("client") or ("",))[0]):
            return 429, "too many requests; wait ten seconds", {"retry-after": "10"}
        if self.token is not None and scope["path"] not in OPEN and not scope["path"].startswith("/static/"):
            given = headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self.token.encode()):
                return (
                    401,
                    "this server wants its token; open the address that it printed",
                    {"www-authenticate": "Bearer"},
                )
        return None

    def _too_often(self, client: str) -> bool:
        now = time.monotonic()
        if len(self.seen) > 4096:
            self.seen = {name: times for name, times in self.seen.items() if times and now - times[-1] < 10}
        times = self.seen.setdefault(client, deque())
        while times and now - times[0] > 10:
            times.popleft()
        if len(times) >= self.requests * (10 if client in ("127.0.0.1", "::1") else 1):
            return True
        times.append(now)
        return False


def _host(value: str) -> str:
    """The name of a Host header without its port."""
    value = value.strip().lower()
    return value[: value.index("]") + 1] if value.startswith("[") and "]" in value else value.partition(":")[0]


async def _answer(send: Any, status: int, sentence: str, headers: dict[str, str]) -> None:
    body = json.dumps({"error": sentence}).encode()
    more = (
        HEADERS
        | {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        | headers
    )
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(k.encode(), v.encode()) for k, v in more.items()],
        }
    )
    await send({"type": "http.response.body", "body": body})
