"""The front: OpenAI's endpoints before an engine. It validates, limits and queues; the engine answers."""

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from yayan import __version__
from yayan.engine.sampling import LARGEST_SEED, Sampling
from yayan.errors import UserError, YayanError
from yayan.serve.api import MOST_CHOICES, ChatForm, CompletionForm, EmbeddingForm, Form
from yayan.serve.choices import event_of, merged_answer, merged_events, passes_through, together
from yayan.serve.door import Door, Refusal
from yayan.serve.jobs import CHAT, COMPLETION, Backend, Job
from yayan.serve.metrics import metrics_text
from yayan.serve.queue import Queue

SMALLEST_BODY_LIMIT = 1 << 20
LONGEST_ECHO = 100  # characters of a request that come back in an error
BYTES_PER_TOKEN = 32  # of JSON, more than any text needs


def make_front(backend: Backend, *, defaults: Sampling, parallel: int, waiting: int, keys: list[str]) -> Door:
    """The whole application. `defaults`: of sampling; `parallel` answers at once, `waiting` requests besides."""
    app = FastAPI(
        title="yayan", version=__version__, docs_url=None, redoc_url=None, lifespan=closing(backend)
    )
    queue, created = Queue(parallel, waiting), int(time.time())
    door = Door(app, keys=keys, most_bytes=SMALLEST_BODY_LIMIT + BYTES_PER_TOKEN * backend.context)
    refuse_in_openais_form(app)
    front = Front(backend, queue, defaults)

    @app.post(CHAT, openapi_extra=described(ChatForm))
    async def chat(request: Request) -> Response:
        return await front.generate(CHAT, ChatForm.model_validate_json(await request.body()))

    @app.post(COMPLETION, openapi_extra=described(CompletionForm))
    async def complete(request: Request) -> Response:
        return await front.generate(COMPLETION, CompletionForm.model_validate_json(await request.body()))

    @app.post("/v1/embeddings", openapi_extra=described(EmbeddingForm))
    async def embed(request: Request) -> Response:
        return await front.embed(EmbeddingForm.model_validate_json(await request.body()))

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        told = {"object": "model", "created": created, "owned_by": "yayan"}
        return {"object": "list", "data": [{"id": name} | told for name in backend.models]}

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> str:
        return await metrics_text(door, queue, backend)

    return door


def described(form: type[Form]) -> dict[str, Any]:
    """A form for /openapi.json. (We parse bodies: pydantic refuses half surrogates, Python's json does not.)"""
    return {"requestBody": {"content": {"application/json": {"schema": form.model_json_schema()}}}}


def closing(backend: Backend) -> Any:
    """A lifespan that closes the way to the engine."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await backend.close()

    return lifespan


class Front:
    """From forms to answers."""

    def __init__(self, backend: Backend, queue: Queue, defaults: Sampling) -> None:
        self.backend, self.queue, self.defaults = backend, queue, defaults

    async def generate(self, path: str, form: ChatForm | CompletionForm) -> JSONResponse | StreamingResponse:
        """The answer to a form, whole or as events. Raises Refusal or UserError."""
        self.refuse_unknown_model(form.model)
        if path == CHAT and not self.backend.models[form.model]:
            what = "this is a base model, it continues text and cannot chat: use /v1/completions"
            raise Refusal(what, code="model_cannot_chat")
        jobs = self.jobs(path, form)
        if not form.stream:
            return JSONResponse(await self.whole(jobs))
        events = self.events(jobs)
        first = await anext(events)  # an error before the first event still has a status
        return EventStream(first, events)

    def jobs(self, path: str, form: ChatForm | CompletionForm) -> list[Job]:
        """One job a choice: `n` for each prompt, each with a seed of its own."""
        sampling, count = form.sampling(self.defaults), form.n or 1
        prompts = [prompt for prompt in form.prompts() for _ in range(count)]
        if len(prompts) > MOST_CHOICES:
            raise Refusal(f"{len(prompts)} choices, {MOST_CHOICES} are possible at most", param="n")
        tells_usage = form.tells_usage
        seeds = [None if sampling.seed is None else (sampling.seed + i) % LARGEST_SEED for i in range(count)]
        return [
            Job(form.model, path, prompt, replace(sampling, seed=seeds[i % count]), i, tells_usage)
            for i, prompt in enumerate(prompts)
        ]

    async def whole(self, jobs: list[Job]) -> dict[str, Any]:
        """One response of all jobs' answers."""

        async def answer(job: Job) -> dict[str, Any]:
            async with self.queue.slots:
                return await self.backend.answer(job)

        with self.queue.place():
            return merged_answer(jobs, await together(answer(job) for job in jobs))

    async def events(self, jobs: list[Job]) -> AsyncGenerator[bytes]:
        """Server-sent events: one job's as they come, several jobs' as they come from any of them."""

        async def stream(job: Job) -> AsyncGenerator[bytes]:
            async with self.queue.slots, aclosing(self.backend.stream(job)) as chunks:
                async for chunk in chunks:
                    yield chunk

        with self.queue.place():
            if passes_through(jobs):
                one = stream(jobs[0])
            else:
                one = merged_events(jobs, [stream(replace(job, tells_usage=True)) for job in jobs])
            async with aclosing(one) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def embed(self, form: EmbeddingForm) -> JSONResponse:
        """Vectors, one for each input."""
        self.refuse_unknown_model(form.model)
        if form.model != self.backend.name:
            what = f"an adapter has no embeddings, ask {self.backend.name!r} for them"
            raise Refusal(what, param="model", code="model_cannot_embed")
        with self.queue.place():
            async with self.queue.slots:
                return JSONResponse(await self.backend.embed(form.inputs(), form.encoding_format or "float"))

    def refuse_unknown_model(self, name: str) -> None:
        if name not in self.backend.models:
            served = ", ".join(map(repr, self.backend.models))
            verb = "is" if len(self.backend.models) == 1 else "are"
            what = f"the model {name[:LONGEST_ECHO]!r} does not exist, {served} {verb} served"
            raise Refusal(what, 404, param="model", code="model_not_found")


class EventStream(StreamingResponse):
    """Events, the first of which is there; however it ends, their source is closed."""

    def __init__(self, first: bytes, events: AsyncGenerator[bytes]) -> None:
        self.events = events
        super().__init__(
            self.all(first), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )

    async def all(self, first: bytes) -> AsyncIterator[bytes]:
        yield first
        try:
            async for event in self.events:
                yield event
        except (Refusal, YayanError) as error:  # too late for a status
            yield event_of({"error": {"message": str(error), "type": "server_error"}})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self.events):
            await super().__call__(scope, receive, send)


def refuse_in_openais_form(app: FastAPI) -> None:
    """Whatever goes wrong is told as OpenAI does."""

    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> JSONResponse:
        return refusal.response()

    @app.exception_handler(ValidationError)
    async def invalid(_: Request, error: ValidationError) -> JSONResponse:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = ".".join(map(str, first["loc"]))[:LONGEST_ECHO] or None
        return Refusal(f"{param or 'the body'}: {first['msg']}", param=param).response()

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> JSONResponse:
        where = f"{request.method} {request.url.path[:LONGEST_ECHO]}"
        return Refusal(f"{error.detail} ({where})", error.status_code).response()

    @app.exception_handler(YayanError)
    async def wrong(_: Request, error: YayanError) -> JSONResponse:
        return Refusal(str(error), 400 if isinstance(error, UserError) else 500).response()

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return Refusal(f"the server failed, {type(error).__name__}", 500).response()
