"""llama.cpp's own server as the engine behind the front: requests go to its private port, answers come as they are."""

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx2

from yayan.engine.llamacpp import LlamaCpp
from yayan.engine.sampling import llamacpp_options
from yayan.serve.choices import LAST_EVENT, event_of, parsed
from yayan.serve.door import Refusal
from yayan.serve.embeddings import Embedder
from yayan.serve.jobs import Job

TOO_LONG = "exceed_context_size_error"
COUNTERS = {"prompt": "llamacpp:prompt_tokens_total", "generated": "llamacpp:tokens_predicted_total"}


class Proxy:
    """Answers of a running llama.cpp. `key`: the one that it asks for."""

    def __init__(self, engine: LlamaCpp, key: str, embedder: Embedder) -> None:
        self.engine, self.name = engine, engine.name
        self.models: Mapping[str, bool] = {
            name: template is not None for name, template in engine.templates.items()
        }
        self.context, self.cache_bytes = engine.context, engine.cache_bytes
        self.embedder = embedder
        self.client = httpx2.AsyncClient(
            base_url=engine.url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=None,  # the door has a patience; an answer may take long
            # One that is kept may be closed by llama.cpp just when it is used again: 2 of 8,000 requests failed
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
            trust_env=False,  # no proxy of the environment between us
        )

    async def answer(self, job: Job) -> dict[str, Any]:
        """One answer, whole, in OpenAI's form."""
        async with self._posted(job.path, self.body(job)) as response:
            await response.aread()
            return response.json() | {"model": job.model}

    async def stream(self, job: Job) -> AsyncGenerator[bytes]:
        """One answer as server-sent events, cut anywhere; a reader that leaves ends it in llama.cpp."""
        body = self.body(job) | {"stream": True, "stream_options": {"include_usage": job.tells_usage}}
        async with self._posted(job.path, body) as response:
            if job.model == self.name:
                async for chunk in response.aiter_raw():
                    yield chunk
                return
            async for event in parsed(response.aiter_raw()):  # llama.cpp tells one name for all
                yield event_of(event | {"model": job.model})
            yield LAST_EVENT

    def body(self, job: Job) -> dict[str, Any]:
        """What llama.cpp is asked, and of whom."""
        return body_of(job) | self.engine.asked_of(job.model)

    @asynccontextmanager
    async def _posted(self, path: str, body: dict[str, Any]) -> AsyncIterator[httpx2.Response]:
        with reachable():
            async with self.client.stream("POST", path, json=body) as response:
                if response.is_error:
                    raise refusal_of(response.status_code, await response.aread(), self.context)
                yield response

    async def embed(self, inputs: list[Any], encoding: str) -> dict[str, Any]:
        """Vectors of texts or of lists of ids, in OpenAI's form."""
        body = {"model": self.name, "input": inputs, "encoding_format": encoding}
        with reachable():
            response = await self.embedder.post(self.client, body)
        if response.is_error:
            raise refusal_of(response.status_code, response.content, self.embedder.tokens)
        return response.json()

    async def metrics(self) -> str:
        """llama.cpp's own, in Prometheus's text format."""
        return (await self.client.get("/metrics")).text

    async def tokens(self) -> dict[str, int]:
        """Tokens read and generated so far."""
        found = dict(re.findall(r"^(llamacpp:\w+) ([0-9.e+]+)$", await self.metrics(), re.MULTILINE))
        return {kind: round(float(found[name])) for kind, name in COUNTERS.items()}

    async def close(self) -> None:
        await self.client.aclose()
        self.embedder.close()


@contextmanager
def reachable() -> Iterator[None]:
    """Refusal (500) for a server that hangs up."""
    try:
        yield
    except httpx2.TransportError as error:
        raise Refusal(f"llama.cpp's server has gone, {error}", 500) from error


def refusal_of(status: int, content: bytes, context: int) -> Refusal:
    """llama.cpp's error as OpenAI would put it; `context`: the tokens that are possible."""
    error = json.loads(content)["error"]
    message, kind = error["message"], error.get("type")
    if kind == TOO_LONG or "too large to process" in message:
        count = re.search(r"\((\d+) tokens\)", message)
        what = f"the prompt has {count[1] if count else 'more'} tokens, {context} are possible at most"
        return Refusal(what, code="context_length_exceeded")
    reason = message.rpartition("Jinja Exception: ")[2]
    return Refusal(f"llama.cpp refuses, {reason}", status if status < 500 else 500)


def body_of(job: Job) -> dict[str, Any]:
    """What llama.cpp is asked."""
    prompt = {"messages" if job.is_chat else "prompt": job.prompt}
    options = llamacpp_options(job.sampling)
    if job.sampling.logprobs is not None:  # of no likeliest token llama.cpp would tell nothing at all
        options["top_logprobs" if job.is_chat else "logprobs"] = max(1, job.sampling.logprobs)
    return prompt | options
