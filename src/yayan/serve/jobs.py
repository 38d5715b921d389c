"""What an engine is asked: one answer to one prompt."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from yayan.engine.sampling import Sampling

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"


@dataclass(frozen=True)
class Job:
    """One choice of a response. `prompt`: messages of a chat; else a text or a list of ids to continue. `model`: the
    name that was asked for, the engine's or an adapter's.
    """

    model: str
    path: str
    prompt: Any
    sampling: Sampling
    index: int
    tells_usage: bool

    @property
    def is_chat(self) -> bool:
        return self.path == CHAT


class Backend(Protocol):
    """An engine, asked one job at a time for each of its slots."""

    name: str
    context: int
    cache_bytes: int  # of keys and values at most; 0: not known
    models: Mapping[
        str, bool
    ]  # names that can be asked for, its own and its adapters'; False: it cannot chat

    async def answer(self, job: Job) -> dict[str, Any]: ...
    def stream(self, job: Job) -> AsyncGenerator[bytes]: ...
    async def embed(self, inputs: list[Any], encoding: str) -> dict[str, Any]: ...
    async def metrics(self) -> str: ...
    async def tokens(self) -> dict[str, int]: ...
    async def close(self) -> None: ...


def told_memory(context: int, cache_bytes: int) -> str:
    """What keys and values take, in words."""
    size = f"; keys and values take up to {cache_bytes / 1e6:,.0f} MB altogether" if cache_bytes else ""
    return f"a context of {context:,} tokens{size}"
