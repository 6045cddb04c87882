"""The time that a request may take: after it, 504 with one sentence.

BentoML has such a limit too, outside of all middleware: its 504 has no request id, and neither a line in the log nor a
metric. Ours ends first, and BentoML's stays behind it.

What a route had begun in a thread goes on to its end, as no thread can be stopped: an event of a request that got 504
may be kept all the same. Sent again it counts once. An answer that has begun is not cut off.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from components.errors import InputError
from components.serving.guard import refuse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


class TooLongError(InputError):
    """The request took longer than a request may."""

    http_status = 504


class RequestDeadline:
    """ASGI middleware: ends a request that has no answer after `seconds`, the reading of its body included."""

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self.app, self._seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_in_time(message: Message) -> None:
            limit.reschedule(None)
            await send(message)

        try:
            async with asyncio.timeout(self._seconds) as limit:
                await self.app(scope, receive, send_in_time)
        except TimeoutError:
            if not limit.expired():  # somebody else's
                raise
            error = TooLongError("the request took too long", expected=f"{self._seconds:g} s at most", todo="Try again")
            await refuse(error)(scope, receive, send)
