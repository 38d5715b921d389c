"""Patience with clients that hang, at a door with nothing but an echo behind it."""

import asyncio
from collections.abc import AsyncGenerator

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Scope

from yayan.serve.door import Door
from yayan.serve.front import EventStream

HEAD: Scope = {
    "type": "http",
    "method": "POST",
    "path": "/",
    "query_string": b"",
    "asgi": {"spec_version": "2.3"},
}
JSON = [(b"content-type", b"application/json")]


def door(*, closed: asyncio.Event | None = None) -> Door:
    async def echo(request: Request) -> Response:
        return Response(await request.body())

    async def endless(request: Request) -> Response:
        async def pieces() -> AsyncGenerator[bytes]:
            try:
                while True:
                    yield b"x"
                    await asyncio.sleep(0)
            finally:
                assert closed is not None
                closed.set()

        return EventStream(b"", pieces())

    app = Starlette(routes=[Route("/", echo, methods=["POST"]), Route("/endless", endless, methods=["POST"])])
    return Door(app, most_bytes=10, read_seconds=0.1, stall_seconds=0.1)


async def never() -> Message:
    await asyncio.sleep(60)
    raise AssertionError("waited")


async def talk(at: Door, path: str, *bodies: Message, takes: int = 99) -> list[Message]:
    """Send the messages, then nothing; take so many messages of the answer, then none."""
    coming, sent = iter(bodies), list[Message]()

    async def receive() -> Message:
        return next(coming, None) or await never()

    async def send(message: Message) -> None:
        if len(sent) == takes:
            await never()
        sent.append(message)

    await asyncio.wait_for(at({**HEAD, "path": path, "headers": JSON}, receive, send), 5)
    return sent


def part(body: bytes, *, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def test_a_body_in_parts() -> None:
    sent = asyncio.run(talk(door(), "/", part(b"12345", more=True), part(b"67890")))
    assert b"".join(message.get("body", b"") for message in sent) == b"1234567890"


def test_a_body_that_does_not_end() -> None:
    at = door()
    assert asyncio.run(talk(at, "/", part(b"12345", more=True)))[0]["status"] == 408
    assert at.requests == {408: 1}


def test_a_body_in_parts_that_are_too_many() -> None:
    assert (
        asyncio.run(talk(door(), "/", part(b"123456", more=True), part(b"78901", more=True)))[0]["status"]
        == 413
    )


@pytest.mark.parametrize("takes", [2, 30])
def test_a_client_that_takes_nothing_any_more(takes: int) -> None:
    async def run() -> None:
        closed = asyncio.Event()
        at = door(closed=closed)
        await talk(at, "/endless", part(b""), takes=takes)
        await asyncio.wait_for(closed.wait(), 5)
        assert at.requests == {499: 1}

    asyncio.run(run())


def test_a_client_that_leaves() -> None:
    async def run() -> None:
        closed = asyncio.Event()
        at = door(closed=closed)
        await talk(at, "/endless", part(b""), {"type": "http.disconnect"})
        await asyncio.wait_for(closed.wait(), 5)
        assert at.requests == {499: 1}
        await talk(at, "/", part(b"1", more=True), {"type": "http.disconnect"})
        assert at.requests == {499: 2}

    asyncio.run(run())
