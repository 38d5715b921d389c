"""A server as a user starts it, in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import openai

from tests.sentencepiece_model import make_chat_model
from yayan.weights.gguf_file import write_gguf

ASK = [{"role": "user", "content": "河边住着谁？"}]


def make_gguf(folder: Path, **settings: object) -> Path:
    """A chat model as a GGUF file, so that each start is fast."""
    path = folder / "tiny.gguf"
    write_gguf(make_chat_model(folder / "tiny-chat", **settings), path, "F16")  # type: ignore[arg-type]
    return path


@dataclass
class Running:
    """A process that serves, and where."""

    process: subprocess.Popen[str]
    url: str
    model: str

    def openai(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def post(self, path: str, body: object, **settings: object) -> httpx2.Response:
        return httpx2.post(self.url + path, json=body, timeout=60, **settings)  # type: ignore[arg-type]

    def chat(self, **options: object) -> dict[str, object]:
        """The body of a short greedy chat."""
        return {"model": self.model, "messages": ASK, "max_tokens": 8, "temperature": 0} | options

    def metric(self, name: str) -> float:
        lines = httpx2.get(f"{self.url}/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith(f"{name} ")).split()[-1])

    def anonymous_bytes(self) -> int:
        """Memory of the process behind which no file stands."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))


def start(model: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "yayan", "serve", str(model), "--port", "0", "--threads", "1", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@contextmanager
def serving(model: Path, *options: str) -> Iterator[Running]:
    process = start(model, "--json", *options)
    try:
        assert process.stdout
        line = process.stdout.readline()
        assert line, process.stderr and process.stderr.read()
        yield Running(process, **json.loads(line))
    finally:
        process.kill()
        process.communicate()
