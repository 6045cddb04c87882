"""What every request passes first: how many there are at once, the token, the media type, the size of the body.

ASGI middleware, because only there a body can be refused before it is read whole: a framework would hold 10 GB first.
"""

from __future__ import annotations

import asyncio
import hmac
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from components.errors import HstuflowError, InputError
from components.serving.pages import PAGE_FILES

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES = 4 * 1024 * 1024  # 10,000 events, exclusions and allowed items of 40 bytes each take 1.5 MB
# Whoever restarts us has no token; who opens the page is asked for it there.
_OPEN_PATHS = frozenset({"/livez", "/readyz", "/healthz", *PAGE_FILES})


class UnauthorizedError(InputError):
    """The token is missing or wrong."""

    http_status = 401


class TooManyError(InputError):
    """More requests are in flight than the service answers at once."""

    http_status = 429


class BodyTooLargeError(InputError):
    """The body is longer than MAX_BODY_BYTES."""

    http_status = 413


class MediaTypeError(InputError):
    """The body is not declared to be JSON."""

    http_status = 415


class ClientLeftError(Exception):
    """The client closed the connection in the middle of its request."""


class RequestGuard:
    """Refuses what is not ours to answer, with one sentence.

    It counts the requests in flight itself: BentoML would refuse too many before they have an id and a line in the log.
    """

    def __init__(self, app: ASGIApp, token: str | None = None, most_at_once: int = 64) -> None:
        self.app, self._token, self._most_at_once = app, token, most_at_once
        self._in_flight = 0  # of one event loop, so no lock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request and pass it on, its body read."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, is_open = Headers(scope=scope), scope["path"] in _OPEN_PATHS
        if self._in_flight >= self._most_at_once and not is_open:
            await refuse(TooManyError("too many requests at once", todo="Try again"))(scope, receive, send)
            return
        self._in_flight += 1
        try:
            await self._pass_on(scope, headers, receive, send)
        finally:
            self._in_flight -= 1

    async def _pass_on(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        try:
            self._check_token(scope["path"], headers)
            _check_path(scope)
            if scope["method"] in ("POST", "PUT", "PATCH"):
                _check_media_type(headers)
                receive = _replay(await _read_body(headers, receive), receive)
        except HstuflowError as error:
            await refuse(error)(scope, receive, send)
        except ClientLeftError:
            return  # there is nobody to answer
        else:
            await self._run(scope, receive, send)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run a route to its end, also where nobody waits for its answer any more: it counts as in flight until then.

        Its thread cannot be stopped. Were it not counted, requests that come faster than they are answered would pile
        up threads: 160 after two seconds of 45 requests/s that each take .1 s and end at .5 s.
        """
        is_wanted = True

        async def send_while_wanted(message: Message) -> None:
            if is_wanted:
                await send(message)

        route = asyncio.ensure_future(self.app(scope, receive, send_while_wanted))
        try:
            await asyncio.shield(route)
        except asyncio.CancelledError:
            is_wanted = False
            self._in_flight += 1
            route.add_done_callback(self._let_go)
            raise

    def _let_go(self, route: asyncio.Future[None]) -> None:
        self._in_flight -= 1
        if not route.cancelled():
            route.exception()  # read, or asyncio complains; the request's own line in the log says 504

    def _check_token(self, path: str, headers: Headers) -> None:
        if self._token is None or path in _OPEN_PATHS:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        # Compared in constant time: the time of == tells how many characters are right.
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token.encode()):
            raise UnauthorizedError("the token is missing or wrong", expected="Authorization: Bearer <HSTUFLOW_TOKEN>")


def refuse(error: HstuflowError) -> JSONResponse:
    """Answer with an error's sentence and status."""
    headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, UnauthorizedError) else None
    return JSONResponse({"error": str(error)}, status_code=error.http_status, headers=headers)


def _check_path(scope: Scope) -> None:
    """Refuse a path that is no UTF-8: servers turn /users/%ff into a user id that the client never gave."""
    raw: bytes = scope.get("raw_path") or b""
    try:
        unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        observed = ascii(raw.decode("latin-1"))[:80]
        raise InputError("the path is no text", observed=observed, expected="percent-encoded UTF-8") from None


def _check_media_type(headers: Headers) -> None:
    # curl -d declares a form unless told otherwise.
    media_type = headers.get("content-type", "nothing").split(";")[0].strip().lower()
    if media_type != "application/json":
        raise MediaTypeError("Content-Type is wrong", observed=media_type[:80], expected="application/json")


async def _read_body(headers: Headers, receive: Receive) -> bytes:
    """Read the whole body; raises BodyTooLargeError as soon as it is known to be too long."""
    declared = headers.get("content-length", "0")
    length = int(declared) if declared.isdecimal() else 0
    chunks, received, more = [], 0, True
    while more and length <= MAX_BODY_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        chunks.append(message.get("body", b""))
        more = message.get("more_body", False)
        received += len(chunks[-1])
        length = max(length, received)
    if length > MAX_BODY_BYTES:
        raise BodyTooLargeError("the body is too long", expected=f"at most {MAX_BODY_BYTES:,} bytes")
    body = b"".join(chunks)
    if b"\0" in body:  # Python's json reads UTF-16 and UTF-32, too, which have such bytes; JSON in UTF-8 has none
        raise InputError("the body is no JSON", observed="a zero byte", expected="UTF-8")
    return body


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives `body` once more, then what the client sends next (that it left)."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
