"""Several choices as one response, whole or as events; a single one passes as its engine tells it."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterable
from contextlib import aclosing
from typing import Any

from yayan.serve.jobs import Job

LAST_EVENT = b"data: [DONE]\n\n"
USAGE = ("prompt_tokens", "completion_tokens", "total_tokens")
EVENTS_AHEAD = 64  # of all choices, that nobody has taken yet


def passes_through(jobs: list[Job]) -> bool:
    """Whether an engine's events are already those of the response."""
    return len(jobs) == 1 and (jobs[0].is_chat or jobs[0].sampling.logprobs is None)


async def together(coroutines: Iterable[Coroutine[None, None, Any]]) -> list[Any]:
    """Results of all; the first error ends the others."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def merged_answer(jobs: list[Job], answers: list[dict[str, Any]]) -> dict[str, Any]:
    """The first answer with the choices of all, and the usage of all: a prompt counts once for all its choices."""
    choices = [indexed(job, answer["choices"][0]) for job, answer in zip(jobs, answers, strict=True)]
    usage = merged_usage(jobs, [answer["usage"] for answer in answers])
    return answers[0] | {"choices": choices, "usage": usage}


def merged_usage(jobs: list[Job], usages: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums; of a prompt that several choices answer the tokens count once."""
    if len(jobs) == 1:
        return usages[0]
    prompts = {id(job.prompt): usage["prompt_tokens"] for job, usage in zip(jobs, usages, strict=True)}
    read, written = sum(prompts.values()), sum(usage["completion_tokens"] for usage in usages)
    return dict(zip(USAGE, (read, written, read + written), strict=True))


def indexed(job: Job, choice: dict[str, Any]) -> dict[str, Any]:
    """A choice with its place in the response, and log-probabilities in the form of its endpoint."""
    choice = choice | {"index": job.index}
    told = choice.get("logprobs")
    if told and not job.is_chat and "content" in told:
        choice["logprobs"] = as_of_completions(told["content"])
    return choice


def as_of_completions(content: list[dict[str, Any]]) -> dict[str, Any]:
    """Log-probabilities of the chat's form in the older form of completions (without offsets into the text)."""
    return {
        "tokens": [item["token"] for item in content],
        "token_logprobs": [item["logprob"] for item in content],
        "top_logprobs": [{top["token"]: top["logprob"] for top in item["top_logprobs"]} for item in content],
        "text_offset": [],
    }


async def merged_events(jobs: list[Job], streams: list[AsyncGenerator[bytes]]) -> AsyncGenerator[bytes]:
    """Events of several streams, each as it comes; at the end one usage, if it is asked for, and the last event."""
    first: dict[str, Any] = {}
    usages: dict[int, dict[str, Any]] = {}
    async for job, event in mixed(jobs, streams):
        first = first or event
        usages[job.index] = event.pop("usage", None) or usages.get(job.index, {})
        if event.get("choices") == []:
            continue
        if "choices" in event:  # else it tells an error
            event |= {"id": first["id"], "choices": [indexed(job, choice) for choice in event["choices"]]}
        yield event_of(event)
    if jobs[0].tells_usage:
        usage = merged_usage(jobs, [usages[job.index] for job in jobs])
        yield event_of(first | {"choices": [], "usage": usage})
    yield LAST_EVENT


async def mixed(
    jobs: list[Job], streams: list[AsyncGenerator[bytes]]
) -> AsyncGenerator[tuple[Job, dict[str, Any]]]:
    """Parsed events of several streams as they come, with their jobs. Raises what a stream raises."""
    queue: asyncio.Queue[tuple[Job, dict[str, Any] | Exception | None]] = asyncio.Queue(EVENTS_AHEAD)

    async def pump(job: Job, stream: AsyncGenerator[bytes]) -> None:
        try:
            async with aclosing(stream):
                async for event in parsed(stream):
                    await queue.put((job, event))
            await queue.put((job, None))
        except Exception as error:
            await queue.put((job, error))

    pumps = [asyncio.ensure_future(pump(*pair)) for pair in zip(jobs, streams, strict=True)]
    running = len(pumps)
    try:
        while running:
            job, event = await queue.get()
            if isinstance(event, Exception):
                raise event
            if event is None:
                running -= 1
            else:
                yield job, event
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def parsed(chunks: AsyncIterator[bytes]) -> AsyncGenerator[dict[str, Any]]:
    """The JSON events of server-sent bytes that are cut anywhere, without the one that says that all is said."""
    rest = b""
    async for chunk in chunks:
        *events, rest = (rest + chunk).split(b"\n\n")
        for event in events:
            if event.startswith(b"data: {"):
                yield json.loads(event.removeprefix(b"data: "))


def event_of(content: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(content, ensure_ascii=False).encode() + b"\n\n"
