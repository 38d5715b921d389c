"""What gives greedy answers: llama.cpp, torch where each request is to be stretched for itself, or an endpoint.

All cut prompts with the tokenizer of a local model. A prompt carries what is asked beside its ids: an engine of this
process takes the ids, an endpoint the text or the messages.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Protocol

from yayan.engine.choose import positions_of
from yayan.engine.gguf import find_gguf
from yayan.engine.llamacpp import LlamaCpp, Message, open_model
from yayan.engine.sampling import Sampling
from yayan.model.folder import Context
from yayan.template import encode_prompt
from yayan.tokenizer import Tokenizer, load_tokenizer
from yayan.weights.ggml import read_header

if TYPE_CHECKING:  # torch takes two seconds, which llama.cpp does not need
    from yayan.engine.torch import TorchEngine


SMALL_CONTEXT = 256  # tokens of a cache that nothing is read into


@dataclass(frozen=True)
class Prompt:
    """What is asked, a text to go on with or the messages of a chat, and the ids that the local model sees of it."""

    asked: str | list[Message]
    ids: list[int]


@dataclass(frozen=True)
class Said:
    """An answer; `complete` is False where the limit cut it."""

    text: str
    tokens: int
    complete: bool


class Cutter(Protocol):
    """The tokenizer and the template of a local model."""

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """What the model sees of a chat before it answers."""

    def text_ids(self, text: str) -> list[int]:
        """Ids of a text behind BOS, where the model wants one; what looks like a special token is text."""

    def text_of(self, ids: Sequence[int]) -> str:
        """Ids as text."""


class Answerer(Cutter, Protocol):
    """What answers, and cuts texts as the local model does."""

    name: str
    origin: dict[str, str]
    """What answered, as results say it: `engine`, and where that is an endpoint, which one and the name asked there."""

    def answer(self, prompt: Prompt, new_tokens: int) -> Said:
        """The likeliest tokens, so many at most. Several threads may ask at once."""

    def close(self) -> None:
        """End what is being answered."""


class LlamaCppAnswerer:
    """Through llama.cpp's server."""

    def __init__(self, engine: LlamaCpp) -> None:
        self.engine, self.name, self.close = engine, engine.name, engine.close
        self.origin = {"engine": "llama.cpp"}

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        return self.engine.prompt_ids(messages)

    def text_ids(self, text: str) -> list[int]:
        body = {"content": text, "add_special": True, "parse_special": False}
        return self.engine.ask("/tokenize", body)["tokens"]

    def text_of(self, ids: Sequence[int]) -> str:
        return self.engine.ask("/detokenize", {"tokens": list(ids)})["content"]

    def answer(self, prompt: Prompt, new_tokens: int) -> Said:
        body = {"prompt": prompt.ids, "n_predict": new_tokens, "temperature": 0, "cache_prompt": False}
        reply = self.engine.ask("/completion", body)
        return Said(reply["content"], reply["tokens_predicted"], reply["stop_type"] == "eos")


class FolderCutter:
    """The tokenizer of a model folder."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        return encode_prompt(self.tokenizer, messages)

    def text_ids(self, text: str) -> list[int]:
        return self.tokenizer.begin + self.tokenizer.encode(text)

    def text_of(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids)


class TorchAnswerer(FolderCutter):
    """Through the torch engine, one answer at a time."""

    def __init__(self, engine: "TorchEngine") -> None:
        super().__init__(engine.tokenizer)
        self.engine, self.name = engine, engine.name
        self.origin = {"engine": "torch"}
        self.alone, self.closed = Lock(), False

    def answer(self, prompt: Prompt, new_tokens: int) -> Said:
        text, tokens, reason = "", 0, None
        with self.alone:
            self.engine.forget()  # an answer must not depend on which came before it, not even in the last bits
            for piece in self.engine.generate(prompt.ids, Sampling(temperature=0, max_tokens=new_tokens)):
                if self.closed:
                    break
                text += piece.text
                tokens += len(piece.ids)
                reason = piece.finish_reason
        return Said(text, tokens, reason == "stop")

    def close(self) -> None:
        self.closed = True


@dataclass(frozen=True)
class Asked:
    """What is known of a model before it is opened: how many tokens it sees at once, and whether it chats."""

    context: int
    chat: bool


def look_at(model: Path, context: Context = None) -> Asked:
    """Raises UserError if there is no model folder and no GGUF file, or for a context that it does not have."""
    path = model if (model / "config.json").is_file() else find_gguf(model)
    return Asked(positions_of(path, context), template_of(model) is not None)


def template_of(model: Path) -> str | None:
    """The chat template of a model folder or of a GGUF file, found without opening the model."""
    if (model / "config.json").is_file():
        return load_tokenizer(model).template
    return read_header(find_gguf(model)).template


@contextmanager
def open_answerer(
    model: Path, context: Context = None, *, threads: int | None = None, slots: int = 1
) -> Generator[Answerer]:
    """The model, with `slots` answers at once: by torch if each is to be stretched for itself, else by llama.cpp."""
    if context == "auto":
        from yayan.engine.torch import TorchEngine

        with TorchEngine(model, context=context, threads=threads) as engine:
            yield TorchAnswerer(engine)
    else:
        with open_model(model, context=context, threads=threads, parallel=slots) as running:
            yield LlamaCppAnswerer(running)


@contextmanager
def open_cutter(model: Path) -> Generator[Cutter]:
    """The tokenizer of a model alone; a GGUF file is cut by llama.cpp, which maps it and gives it next to no cache."""
    if (model / "config.json").is_file():
        yield FolderCutter(load_tokenizer(model))
    else:
        with open_model(model, context=min(SMALL_CONTEXT, look_at(model).context), threads=1) as running:
            yield LlamaCppAnswerer(running)
