"""The verb `serve`: llama.cpp's OpenAI server in this process, until it is told to stop."""

import json
import signal
import threading
from dataclasses import dataclass, field
from pathlib import Path

from yayan.engine.llamacpp import LOCAL_HOST, LlamaCpp, open_model
from yayan.errors import UserError
from yayan.stage import Command


@dataclass(frozen=True, kw_only=True)
class Serve(Command):
    """Serve a model to OpenAI clients (llama.cpp's own server) until Ctrl-C or SIGTERM."""

    model: Path = field(kw_only=False)
    """Model folder or GGUF file."""
    host: str = LOCAL_HOST
    """Address to listen on; 0.0.0.0 opens the model to the network."""
    port: int = 8080
    """Port to listen on; 0 takes a free one."""
    api_key: str | None = None
    """Key that clients must send."""
    parallel: int = 1
    """Conversations answered at the same time; others wait."""
    context: int | None = None
    """Tokens of one conversation (default: what the model was trained for)."""
    threads: int | None = None
    """Threads of the computation (default: the physical cores)."""

    def run(self) -> None:
        for name, value in (("parallel", self.parallel), ("threads", self.threads)):
            if value is not None and value < 1:
                raise UserError(f"--{name} {value} means nothing", cure="give at least 1")
        with open_model(
            self.model,
            host=self.host,
            port=self.port,
            api_key=self.api_key,
            parallel=self.parallel,
            context=self.context,
            threads=self.threads,
        ) as engine:
            if self.json:
                print(json.dumps({"url": engine.url, "model": engine.name}), flush=True)
            else:
                print(announcement(engine, with_key=bool(self.api_key)), flush=True)
            wait_for_a_signal()


def announcement(engine: LlamaCpp, *, with_key: bool) -> str:
    """Where the model is served, and a line to try it."""
    key = " -H 'Authorization: Bearer KEY'" if with_key else ""
    path, body = "chat/completions", '{"messages": [{"role": "user", "content": "你好"}]}'
    lines = [f"{engine.name} is served at {engine.url}/v1 for OpenAI clients; Ctrl-C stops it. Try it:"]
    if engine.header.template is None:
        lines[0] = f"{engine.name} is served at {engine.url}/v1; Ctrl-C stops it. It is a base model, which "
        lines[0] += "continues text and cannot chat. Try it:"
        path, body = "completions", '{"prompt": "Once upon a time", "max_tokens": 50}'
    lines.append(f"  curl {engine.url}/v1/{path} -H 'Content-Type: application/json'{key} -d '{body}'")
    return "\n".join(lines)


def wait_for_a_signal() -> None:
    """Return at Ctrl-C or SIGTERM, the ways in which a server is told that its work is done."""
    told = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: told.set())
    told.wait()
