"""The verb `serve`: an engine behind the front, until it is told to stop."""

import json
import os
import secrets
import shlex
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from types import FrameType
from typing import Literal

import uvicorn

from yayan.engine.choose import Engine, KvCache, choose_engine
from yayan.engine.draft_trial import open_llamacpp
from yayan.engine.llamacpp import LOCAL_HOST, refuse_busy_port
from yayan.engine.sampling import Sampling
from yayan.errors import refuse_flags_below
from yayan.model.folder import Context
from yayan.serve.door import Door
from yayan.serve.embeddings import Embedder
from yayan.serve.front import make_front
from yayan.serve.jobs import Backend, told_memory
from yayan.serve.proxy import Proxy
from yayan.serve.vllm import launch, vllm_command
from yayan.stage import Command

KEY_VARIABLE = "YAYAN_API_KEY"


@dataclass(frozen=True, kw_only=True)
class Serve(Command):
    """Serve a model to OpenAI clients until Ctrl-C or SIGTERM, which lets answers under way end first."""

    model: Path = field(kw_only=False)
    """Model folder or GGUF file."""
    engine: Engine | Literal["vllm"] = "auto"
    """What computes: llamacpp, torch (one answer at a time), or vllm, which is started if it is installed."""
    host: str = LOCAL_HOST
    """Address to listen on; 0.0.0.0 opens the model to the network."""
    port: int = 8080
    """Port to listen on; 0 takes a free one."""
    api_key: list[str] = field(default_factory=list)
    """Keys, one of which clients must send; or name them, with spaces between, in YAYAN_API_KEY."""
    parallel: int = 4
    """Answers at the same time (llamacpp and vllm); each has the whole context."""
    queue: int = 64
    """Requests that may wait; more are sent away with status 429."""
    context: Context = None
    """Tokens of prompt and answer together (default: what the model was trained for); auto: up to 8 times as many, each
    request stretched by what it needs (torch), or twice as many, all stretched alike (llamacpp, vllm)."""
    kv_cache: KvCache | None = None
    """Bits of a number of keys and values (llamacpp: 16bit, 8bit or 4bit; vllm: 16bit or 8bit; torch keeps those it
    computes)."""
    threads: int | None = None
    """Threads of the computation (default: the physical cores)."""
    adapter: dict[str, Path] = field(default_factory=dict)
    """LoRA adapters of the model that clients ask for by name, beside it (llamacpp, vllm): --adapter.NAME FOLDER."""
    draft: Path | None = None
    """A smaller model of the same tokenizer that guesses tokens; llamacpp tries for two seconds whether it gains."""
    grace_seconds: int = 30
    """Time that answers under way have to end when the server is told to stop."""

    def run(self) -> None:
        self.check()
        keys = self.api_key or os.environ.get(KEY_VARIABLE, "").split()
        if self.engine == "vllm":
            launch(self.vllm_words(), keys)
        refuse_busy_port(self.host, self.port)
        choice = choose_engine(
            self.model,
            self.engine,
            draft=self.draft,
            context=self.context,
            kv_cache=self.kv_cache,
            adapters=self.adapter or None,
        )
        engine = choice.engine
        if not self.json:
            print(f"engine {engine}: {choice.why}", file=sys.stderr, flush=True)
        with opened(self, engine) as backend:
            defaults = Sampling.for_model(self.model)
            parallel = self.parallel if engine == "llamacpp" else 1
            front = make_front(backend, defaults=defaults, parallel=parallel, waiting=self.queue, keys=keys)
            with socket.create_server((self.host, self.port), family=family_of(self.host)) as listener:
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else 40 ms a small answer
                self.tell(backend, listener, with_key=bool(keys))
                listen(front, listener, self.grace_seconds)

    def vllm_words(self) -> list[str]:
        """The command line that serves the model as asked by vLLM."""
        name, place = self.model.resolve().name, {"host": self.host, "port": self.port}
        more: dict[str, object] = {"context": self.context, "kv_cache": self.kv_cache}
        more |= {"adapters": self.adapter, "draft": self.draft}
        return vllm_command(self.model, name=name, **place, parallel=self.parallel, **more)  # type: ignore[arg-type]

    def check(self) -> None:
        """Raises UserError for a number that means nothing."""
        refuse_flags_below(
            ("parallel", self.parallel, 1),
            ("threads", self.threads, 1),
            ("queue", self.queue, 0),
            ("grace-seconds", self.grace_seconds, 0),
        )

    def tell(self, backend: Backend, listener: socket.socket, *, with_key: bool) -> None:
        """Say where the model is served."""
        url = f"http://{address_of(listener)}"
        if self.json:
            print(json.dumps({"url": url, "model": backend.name}), flush=True)
            return
        print(announcement(backend, url, with_key=with_key), flush=True)
        if not with_key and not ip_address(listener.getsockname()[0]).is_loopback:
            print("anyone who reaches this address can use the model: give --api-key", file=sys.stderr)


@contextmanager
def opened(options: Serve, engine: str) -> Iterator[Backend]:
    """The engine behind the front, closed at the end."""
    if engine == "torch":
        from yayan.engine.torch import TorchEngine  # imports torch, which llama.cpp does not need
        from yayan.serve.local import Local

        settings = {"context": options.context, "threads": options.threads, "draft": options.draft}
        with TorchEngine(options.model, **settings) as here:  # type: ignore[arg-type]
            yield Local(here)
        return
    key = secrets.token_urlsafe()
    given: dict[str, object] = {"context": options.context, "kv_cache": options.kv_cache or "16bit"}
    given |= {"parallel": options.parallel, "threads": options.threads, "adapters": options.adapter}
    with open_llamacpp(options.model, options.draft, api_key=key, **given) as running:
        embedder = Embedder(running.gguf, name=running.name, context=running.context, threads=options.threads)
        yield Proxy(running, key, embedder)


def announcement(backend: Backend, url: str, *, with_key: bool) -> str:
    """Where the model is served, and a line to try it."""
    key = " -H 'Authorization: Bearer KEY'" if with_key else ""
    name = next((name for name, chats in backend.models.items() if chats), backend.name)
    more = ", ".join(list(backend.models)[1:])
    kind = f" Adapters by name: {more}." if more else ""
    if not backend.models[backend.name]:
        kind = " It is a base model, which continues text and cannot chat." + kind
    if backend.models[name]:
        path = "chat/completions"
        asked: dict[str, object] = {"messages": [{"role": "user", "content": "你好"}]}
    else:
        path = "completions"
        asked = {"prompt": "Once upon a time", "max_tokens": 50}
    body = json.dumps({"model": name, **asked}, ensure_ascii=False)
    return (
        f"{backend.name} is served at {url}/v1 for OpenAI clients; Ctrl-C stops it.{kind} "
        f"It has {told_memory(backend.context, backend.cache_bytes)}. Try it:\n"
        f"  curl {url}/v1/{path} -H 'Content-Type: application/json'{key} -d {shlex.quote(body)}"
    )


def listen(front: Door, listener: socket.socket, grace_seconds: int) -> None:
    """Answer until Ctrl-C or SIGTERM; then what is under way may end, and nothing new is taken."""
    config = uvicorn.Config(
        front,
        log_level="critical",
        lifespan="on",
        timeout_graceful_shutdown=grace_seconds,
        server_header=False,
    )
    server = uvicorn.Server(config)

    def leave(number: int, frame: FrameType | None) -> None:
        """For a signal before uvicorn listens to them; and again, when it is done and raises them once more."""
        server.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    server.run(sockets=[listener])


def family_of(host: str) -> socket.AddressFamily:
    """IPv4 or IPv6, as the name of a host says."""
    return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]


def address_of(listener: socket.socket) -> str:
    """HOST:PORT as it stands in a URL."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if listener.family == socket.AF_INET6 else f"{host}:{port}"
