"""The time that a request may take: after it, 504 with one sentence.

BentoML has such a limit too, outside of all middleware: its 504 has no request id, and neither a line in the log nor a
metric. Ours ends first, and BentoML's stays behind it.

What a route had begun in a thread goes on, as no thread can be stopped, until it would compute (turn.py): an event of a
request that got 504 may be kept all the same. Sent again it counts once. An answer that has begun is not cut off.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from components.serving.guard import refuse
from components.serving.turn import MUST_END, TooLongError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


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

        MUST_END.set(time.monotonic() + self._seconds)  # of this request's task and threads alone
        try:
            async with asyncio.timeout(self._seconds) as limit:
                await self.app(scope, receive, send_in_time)
        except TimeoutError:
            if not limit.expired():  # somebody else's
                raise
            error = TooLongError("the request took too long", expected=f"{self._seconds:g} s at most", todo="Try again")
            await refuse(error)(scope, receive, send)
