"""The torch engine behind the front: one answer at a time, on a thread of its own, told in OpenAI's form."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

from yayan.engine.answers import Logprob, Piece
from yayan.engine.torch import TorchEngine
from yayan.serve.choices import LAST_EVENT, event_of
from yayan.serve.door import Refusal
from yayan.serve.jobs import Job


class Local:
    """Answers of a model in this process."""

    def __init__(self, engine: TorchEngine) -> None:
        self.engine, self.name = engine, engine.name
        self.context, self.cache_bytes = engine.context, engine.cache_bytes
        self.models: Mapping[str, bool] = {engine.name: engine.tokenizer.template is not None}
        self.thread = ThreadPoolExecutor(1)  # what torch does, one thing after the other
        self.counts = {"prompt": 0, "generated": 0}

    async def begin(self, job: Job) -> tuple[int, AsyncGenerator[Piece]]:
        """Tokens of the prompt, and the answer. Raises UserError for what cannot be asked, Refusal if too long."""
        loop = asyncio.get_running_loop()
        length, source = await loop.run_in_executor(self.thread, self.ask, job)
        self.counts["prompt"] += length
        return length, self.pieces(source)

    async def pieces(self, source: Generator[Piece]) -> AsyncGenerator[Piece]:
        """The pieces of an answer. Left early, the model stops."""
        loop = asyncio.get_running_loop()
        try:
            while (piece := await loop.run_in_executor(self.thread, next, source, None)) is not None:
                self.counts["generated"] += len(piece.ids)
                yield piece
        finally:
            self.thread.submit(source.close)  # after the step that may be under way

    def ask(self, job: Job) -> tuple[int, Generator[Piece]]:
        """What the model sees, as ids, and what it says to that."""
        negative: list[int] = []
        if job.is_chat:
            prompt = self.engine.prompt_ids(job.prompt)
            negative = self.engine.negative_ids(job.prompt, job.sampling)
        else:
            prompt = self.engine.text_ids(job.prompt) if isinstance(job.prompt, str) else job.prompt
        if len(prompt) >= self.context:
            what = f"the prompt has {len(prompt)} tokens, {self.context - 1} are possible at most"
            raise Refusal(what, code="context_length_exceeded")
        return len(prompt), self.engine.generate(prompt, job.sampling, negative)

    async def answer(self, job: Job) -> dict[str, Any]:
        """One answer, whole."""
        text, told, generated, reason = "", list[Logprob](), 0, None
        length, source = await self.begin(job)
        async with aclosing(source) as pieces:
            async for piece in pieces:
                text += piece.text
                told += piece.logprobs
                generated += len(piece.ids)
                reason = piece.finish_reason
        said = {"message": {"role": "assistant", "content": text}} if job.is_chat else {"text": text}
        return self.head(job, "chat.completion") | {
            "choices": [self.choice(job, said, told, reason)],
            "usage": usage_of(length, generated),
        }

    async def stream(self, job: Job) -> AsyncGenerator[bytes]:
        """One answer as server-sent events."""
        head, generated = self.head(job, "chat.completion.chunk"), 0
        length, source = await self.begin(job)
        async with aclosing(source) as pieces:
            async for piece in pieces:
                said: dict[str, Any] = {"text": piece.text}
                if job.is_chat:
                    said = {"delta": ({} if generated else {"role": "assistant"}) | {"content": piece.text}}
                generated += len(piece.ids)
                choice = self.choice(job, said, piece.logprobs, piece.finish_reason)
                yield event_of(head | {"choices": [choice]})
        if job.tells_usage:
            yield event_of(head | {"choices": [], "usage": usage_of(length, generated)})
        yield LAST_EVENT

    def head(self, job: Job, kind: str) -> dict[str, Any]:
        """What every event of an answer, or the whole of it, says first."""
        name = f"chatcmpl-{secrets.token_hex(12)}"
        kind = kind if job.is_chat else "text_completion"
        return {"id": name, "object": kind, "created": int(time.time()), "model": self.name}

    def choice(
        self, job: Job, said: dict[str, Any], told: list[Logprob], reason: str | None
    ) -> dict[str, Any]:
        """A choice in OpenAI's form."""
        choice: dict[str, Any] = {"index": job.index, **said, "logprobs": None, "finish_reason": reason}
        if job.sampling.logprobs is not None:
            choice["logprobs"] = {"content": [self.logprob(item) for item in told]}
        return choice

    def logprob(self, told: Logprob) -> dict[str, Any]:
        """The log-probability of a token and of the likeliest ones there."""
        top = [{**self.token(token), "logprob": value} for token, value in told.top.items()]
        return {**self.token(told.token), "logprob": told.logprob, "top_logprobs": top}

    def token(self, number: int) -> dict[str, Any]:
        """A token's text."""
        text = self.engine.tokenizer.decode([number])
        return {"token": text, "bytes": list(text.encode())}

    async def embed(self, inputs: list[Any], encoding: str) -> dict[str, Any]:
        raise Refusal("the torch engine makes no embeddings: serve with --engine llamacpp")

    async def metrics(self) -> str:
        return ""

    async def tokens(self) -> dict[str, int]:
        """Tokens read and generated so far."""
        return dict(self.counts)

    async def close(self) -> None:
        self.thread.shutdown()


def usage_of(prompt: int, generated: int) -> dict[str, int]:
    """Tokens read and generated."""
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}
