"""The engines as `chat` uses them: messages in, text out, one chat or many."""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from yayan.engine.choose import Engine, KvCache, choose_engine
from yayan.engine.draft_trial import open_llamacpp
from yayan.engine.llamacpp import LlamaCpp, Message, RefusedError
from yayan.engine.sampling import Sampling
from yayan.errors import WorkError, YayanError
from yayan.model.folder import Context
from yayan.serve.jobs import CHAT, Job, told_memory
from yayan.serve.proxy import body_of, refusal_of

TORCH_BATCH = 32  # chats that torch answers together


@dataclass(frozen=True)
class Reply:
    """An answer; or `error`, why there is none."""

    answer: str | None
    tokens: int = 0
    finish_reason: str | None = None
    error: str | None = None


class Speaker(Protocol):
    """An engine with a chat model in it."""

    name: str
    memory: str
    """What its context takes, in a sentence."""
    tokens: int
    """Of the answer that was last streamed."""

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Generator[str]: ...
    def many(self, chats: Sequence[list[Message]], sampling: Sampling) -> Iterator[Reply]: ...


@contextmanager
def open_speaker(
    engine: Engine,
    model: Path,
    *,
    context: Context = None,
    kv_cache: KvCache | None = None,
    draft: Path | None = None,
    threads: int | None,
    parallel: int,
) -> Iterator[Speaker]:
    """The engine for a model. Raises UserError for a base model, and for what the engine cannot open."""
    if choose_engine(model, engine, context=context, kv_cache=kv_cache, draft=draft).engine == "torch":
        from yayan.engine.torch import TorchEngine  # imports torch, which llama.cpp does not need

        with TorchEngine(model, context=context, draft=draft, threads=threads) as here:
            here.refuse_base_model()
            yield TorchSpeaker(here)
    else:
        given = {
            "context": context,
            "kv_cache": kv_cache or "16bit",
            "threads": threads,
            "parallel": parallel,
        }
        with open_llamacpp(model, draft, **given) as running:
            running.refuse_base_model()
            yield LlamaCppSpeaker(running, parallel)


class LlamaCppSpeaker:
    """Through llama.cpp's server: `parallel` chats at once."""

    def __init__(self, engine: LlamaCpp, parallel: int) -> None:
        self.engine, self.parallel, self.name, self.tokens = engine, parallel, engine.name, 0
        self.memory = told_memory(engine.context, engine.cache_bytes)

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        """llama.cpp's refusals as the server words them."""
        try:
            yield
        except RefusedError as error:
            refusal = refusal_of(error.status, error.content, self.engine.context)
            raise WorkError(str(refusal), where=self.name) from error

    def _body(self, messages: Sequence[Message], sampling: Sampling) -> dict[str, Any]:
        return body_of(Job(self.name, CHAT, list(messages), sampling, 0, True))

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Generator[str]:
        """The answer in pieces; closing it stops the model. Raises WorkError with llama.cpp's reason."""
        self.tokens = 0
        body = self._body(messages, sampling) | {"stream_options": {"include_usage": True}}
        with self._in_words(), closing(self.engine.events(CHAT, body)) as events:
            for event in events:
                self.tokens = (event.get("usage") or {}).get("completion_tokens", self.tokens + 1)
                for choice in event["choices"]:  # the last event tells the usage, and has none
                    yield choice["delta"].get("content") or ""

    def many(self, chats: Sequence[list[Message]], sampling: Sampling) -> Iterator[Reply]:
        """Answers in the order of the chats, some chats ahead of the one whose turn it is."""
        waiting: deque[Future[Reply]] = deque()
        following = iter(chats)
        with ThreadPoolExecutor(self.parallel) as clients:
            for chat in islice(following, 2 * self.parallel):
                waiting.append(clients.submit(self.reply, chat, sampling))
            while waiting:
                yield waiting.popleft().result()
                for chat in islice(following, 1):
                    waiting.append(clients.submit(self.reply, chat, sampling))

    def reply(self, messages: Sequence[Message], sampling: Sampling) -> Reply:
        """One answer, whole."""
        try:
            with self._in_words():
                found = self.engine.ask(CHAT, self._body(messages, sampling))
        except YayanError as error:
            return Reply(None, error=str(error))
        choice = found["choices"][0]
        return Reply(
            choice["message"]["content"], found["usage"]["completion_tokens"], choice["finish_reason"]
        )


class TorchSpeaker:
    """Through the torch engine: many chats in one batch."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.name, self.tokens = engine, engine.name, 0
        self.memory = told_memory(engine.context, engine.cache_bytes)

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Generator[str]:
        """The answer in pieces; closing it stops the model. Raises UserError for what cannot be asked."""
        self.tokens = 0
        negative = self.engine.negative_ids(messages, sampling)
        for piece in self.engine.generate(self.engine.prompt_ids(messages), sampling, negative):
            self.tokens += len(piece.ids)
            yield piece.text

    def many(self, chats: Sequence[list[Message]], sampling: Sampling) -> Iterator[Reply]:
        """Answers in the order of the chats, a batch at a time."""
        for first in range(0, len(chats), TORCH_BATCH):
            yield from self.batch(chats[first : first + TORCH_BATCH], sampling)

    def batch(self, chats: Sequence[list[Message]], sampling: Sampling) -> list[Reply]:
        """Answers to so many chats at once."""
        replies: list[Reply] = []
        prompts, negatives, places = [], [], []
        for place, chat in enumerate(chats):
            try:
                prompt, negative = self.engine.prompt_ids(chat), self.engine.negative_ids(chat, sampling)
                self.engine.check(prompt, sampling, negative)
            except YayanError as error:
                replies.append(Reply(None, error=str(error)))
                continue
            replies.append(Reply(None))
            prompts.append(prompt)
            negatives.append(negative)
            places.append(place)
        for number, found in self.engine.generate_many(prompts, sampling, negatives, TORCH_BATCH):
            replies[places[number]] = Reply(found.text, len(found.ids), found.finish_reason)
        return replies
