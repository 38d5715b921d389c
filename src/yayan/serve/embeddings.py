"""Embeddings: the mean of a text's last hidden states, by a second llama.cpp that starts when first asked.

Not by the one that chats: a mean needs the whole text in one physical batch, for which llama.cpp holds the logits of
all its tokens (0.4 GB for 1,612 tokens and 32,000 rows). Who never asks for embeddings does not pay for them.
"""

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import xllamacpp

from yayan.engine.llamacpp import hang_up, quiet_settings
from yayan.errors import WorkError

MOST_TOKENS = 2048  # of one text


class Embedder:
    """Starts a server of its own on `gguf`; the weights are mapped and held once."""

    def __init__(self, gguf: Path, *, name: str, context: int, threads: int | None) -> None:
        self.gguf, self.name, self.threads = gguf, name, threads
        self.tokens = min(context, MOST_TOKENS)
        self._server: xllamacpp.Server | None = None
        self._starting = asyncio.Lock()

    async def post(self, client: httpx2.AsyncClient, body: dict[str, Any]) -> httpx2.Response:
        """The answer to a body in OpenAI's form. Raises WorkError if llama.cpp cannot start."""
        async with self._starting:
            server: xllamacpp.Server = self._server or await asyncio.to_thread(self._start)
            self._server = server
        return await client.post(f"{server.listening_address}/v1/embeddings", json=body)

    def _start(self) -> xllamacpp.Server:
        settings = quiet_settings(self.gguf)
        settings.model_alias = {self.name}
        settings.embedding = True
        settings.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        settings.n_parallel, settings.n_ctx = 1, self.tokens
        settings.n_batch = settings.n_ubatch = self.tokens
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = self.threads or -1
        try:
            server = xllamacpp.Server(settings)
        except RuntimeError as error:
            cure = "free some memory; --debug shows its reasons"
            raise WorkError("llama.cpp cannot open this model again", where=self.gguf, cure=cure) from error
        server.handle_metrics()  # its loop runs when this returns
        return server

    def close(self) -> None:
        if self._server is not None:
            hang_up(urlsplit(self._server.listening_address).port)
            self._server = None
