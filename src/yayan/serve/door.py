"""The door of the server: keys, sizes and patience, before anything of a request is looked at.

A body is read whole, within a limit of bytes and of seconds, then the request is handled; a client that leaves, or that
does not take what it is sent, ends the handling wherever it stands.
"""

import asyncio
import hmac
import time
from collections import Counter
from collections.abc import Awaitable, Sequence

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN_PATHS = {"/health"}
READ_SECONDS = 30.0  # for a whole body
STALL_SECONDS = 60.0  # for a client to take what it is sent
GONE = 499  # as nginx writes of a client that left
KINDS = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}


class Refusal(Exception):  # noqa: N818 (it is an answer)
    """An answer in OpenAI's form of errors."""

    def __init__(
        self,
        message: str,
        status: int = 400,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = {} if retry_seconds is None else {"Retry-After": str(retry_seconds)}

    def response(self) -> JSONResponse:
        error = {
            "message": str(self),
            "type": KINDS.get(self.status, "invalid_request_error"),
            "param": self.param,
            "code": self.code,
        }
        return JSONResponse({"error": error}, self.status, self.headers)


class Door:
    """An ASGI application around another one. `keys`: bearer tokens, any of which opens (none: open to all)."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Sequence[str] = (),
        most_bytes: int,
        read_seconds: float = READ_SECONDS,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self.app, self.keys = app, [key.encode() for key in keys]
        self.most_bytes, self.read_seconds, self.stall_seconds = most_bytes, read_seconds, stall_seconds
        self.requests: Counter[int] = Counter()  # by status
        self.seconds = 0.0  # of all requests together

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, exchange = time.monotonic(), Exchange(send, self.stall_seconds)
        try:
            self.check_head(scope)
            body = await self.read(scope, receive)
            await exchange.hold(self.app(scope, once(body, receive), exchange.deliver), receive)
        except Refusal as refusal:
            await refusal.response()(scope, receive, exchange.deliver)
        except ClientGoneError:
            exchange.status = GONE
        finally:
            self.requests[exchange.status] += 1
            self.seconds += time.monotonic() - begun

    def check_head(self, scope: Scope) -> None:
        """Raises Refusal unless one of the keys is sent (the time it takes tells nothing), and JSON as JSON.

        A browser lets pages of other sites send anything but JSON: so none of them uses a server without a key.
        """
        headers = dict(scope["headers"])
        sent = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        locked = self.keys and scope["path"] not in OPEN_PATHS
        if locked and not any(hmac.compare_digest(sent, key) for key in self.keys):
            raise Refusal("the API key is missing or wrong", 401, code="invalid_api_key")
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if scope["method"] == "POST" and kind != b"application/json":
            raise Refusal("the body must be JSON: send Content-Type: application/json", 415)

    async def read(self, scope: Scope, receive: Receive) -> bytes:
        """The body. Raises Refusal as soon as it is, or says it will be, too large, and if it does not come."""
        too_large = Refusal(f"the body is larger than {self.most_bytes} bytes", 413)
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if int(announced) > self.most_bytes:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self.read_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGoneError
                    body += message.get("body", b"")
                    if len(body) > self.most_bytes:
                        raise too_large
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            raise Refusal(f"the body did not come within {self.read_seconds:g} s", 408) from None


class ClientGoneError(Exception):
    """There is nobody to answer."""


def once(body: bytes, receive: Receive) -> Receive:
    """A body that was read, as if it came now; then what comes."""
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def again() -> Message:
        return next(messages, None) or await receive()

    return again


class Exchange:
    """What was answered so far, and whether somebody is there who takes it."""

    def __init__(self, send: Send, stall_seconds: float) -> None:
        self.send, self.stall_seconds = send, stall_seconds
        self.status, self.complete, self.gone = GONE, False, False

    async def deliver(self, message: Message) -> None:
        """Send a part of the answer. Raises ClientGoneError if it is not taken in time."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.complete = not message.get("more_body")
        try:
            async with asyncio.timeout(self.stall_seconds):
                await self.send(message)
        except TimeoutError:
            self.gone = True
            raise ClientGoneError from None

    async def hold(self, handling: Awaitable[None], receive: Receive) -> None:
        """Handle a request as long as its client is there. Raises ClientGoneError if it leaves."""
        work, leaving = asyncio.ensure_future(handling), asyncio.ensure_future(departure(receive))
        try:
            await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if work.done() or self.complete:
                await work
            if not self.complete:
                raise ClientGoneError
        except Exception as error:
            raise ClientGoneError if self.gone else error from None
        finally:
            for task in (work, leaving):
                task.cancel()
            await asyncio.gather(work, leaving, return_exceptions=True)


async def departure(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
