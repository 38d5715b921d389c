"""Milliseconds for each token of a prompt and of an answer, and the memory it takes, of one model on this machine.

Each measurement has a process of its own, so that its memory is that of the model and of what computes it.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

from yayan.engine.llama_c import Network
from yayan.workers import alone

Engine = Literal["llama.cpp", "float32", "bfloat16", "int8", "nf4"]
STATUS = Path("/proc/self/status")  # Linux; elsewhere nothing is known of memory
BUSY_LOAD = 0.5  # processes that computed, on the average of the last minute
PARTS = {"anonymous_bytes": "RssAnon", "mapped_bytes": "RssFile"}


@dataclass(frozen=True)
class Question:
    """What is to be timed: reading `ids`, then `answer_tokens` tokens one by one, greedily, `repeats` times.

    `on_cpu`: a folder too, where there is a GPU.
    """

    model: Path
    engine: Engine
    threads: int
    ids: tuple[int, ...]
    answer_tokens: int
    repeats: int
    on_cpu: bool = False


@dataclass(frozen=True)
class Timing:
    """Milliseconds a token, by repeat; what was added to the process's memory (None where it is not known)."""

    device: str
    prompt_ms: list[float]
    answer_ms: list[float]
    anonymous_bytes: int | None
    mapped_bytes: int | None

    def row(self) -> dict[str, object]:
        """Medians, as records hold them."""
        prompt, answer = statistics.median(self.prompt_ms), statistics.median(self.answer_ms)
        return {
            "device": self.device,
            "prompt_ms_per_token": round(prompt, 4),
            "prompt_tokens_per_second": round(1000 / prompt, 1),
            "answer_ms_per_token": round(answer, 4),
            "answer_tokens_per_second": round(1000 / answer, 1),
            "anonymous_bytes": self.anonymous_bytes,
            "mapped_bytes": self.mapped_bytes,
        }


class Answering(Protocol):
    """A model that answers greedily."""

    device: str

    def read_prompt(self, ids: Sequence[int]) -> int:
        """Read a prompt from the beginning -> the likeliest next id."""

    def read_token(self, token: int) -> int:
        """Go on with one token -> the likeliest next id."""


def measure(question: Question) -> Timing:
    """Time a model in a new process. Raises UserError or WorkError as opening it does."""
    return alone(measure_here, question)


def measure_here(question: Question) -> Timing:
    """Time a model in this process; a first pass, in which pages are read in, does not count."""
    open_model = opener_of(question)
    before = memory()
    with open_model() as model:
        times = [time_once(model, question) for _ in range(question.repeats + 1)][1:]
        after = memory()
    added = {name: after[name] - before[name] if after else None for name in PARTS}
    return Timing(model.device, [prompt for prompt, _ in times], [answer for _, answer in times], **added)


def time_once(model: Answering, question: Question) -> tuple[float, float]:
    """Milliseconds a token of the prompt, and of the answer."""
    begun = time.perf_counter()
    token = model.read_prompt(question.ids)
    read = time.perf_counter()
    for _ in range(question.answer_tokens):
        token = model.read_token(token)
    answered = time.perf_counter()
    return 1000 * (read - begun) / len(question.ids), 1000 * (answered - read) / question.answer_tokens


def memory() -> dict[str, int]:
    """Bytes of this process that no file stands behind, and of files that are mapped; empty where it is not told."""
    if not STATUS.is_file():
        return {}
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return {name: 1024 * int(lines[key].split()[0]) for name, key in PARTS.items()}


def opener_of(question: Question) -> Callable[[], AbstractContextManager[Answering]]:
    """What opens the model, all modules imported: they are none of its memory."""
    if question.engine == "llama.cpp":
        return partial(open_gguf, question)
    if question.on_cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # of this process, which has this one task
    # Here, since it imports torch: 4 s that a GGUF file does not need
    from yayan.evaluate.torch_timing import TorchAnswering

    return lambda: nullcontext(TorchAnswering(question.model, question.engine, question.threads))


@contextmanager
def open_gguf(question: Question) -> Iterator[Answering]:
    positions = len(question.ids) + question.answer_tokens
    with Network(question.model, positions=positions, threads=question.threads, exact=False) as network:
        yield LlamaAnswering(network)


class LlamaAnswering:
    """llama.cpp, with the cache and the attention that it serves with."""

    device = "cpu"

    def __init__(self, network: Network) -> None:
        self.network = network

    def read_prompt(self, ids: Sequence[int]) -> int:
        self.network.forget()
        size = self.network.batch
        for start in range(0, len(ids), size):
            logits_NV = self.network.read(ids[start : start + size])
        return int(logits_NV[-1].argmax())

    def read_token(self, token: int) -> int:
        return int(self.network.read([token])[-1].argmax())


def warn_if_busy() -> float:
    """The load of the last minute, said where it spoils the figures."""
    load = os.getloadavg()[0]
    if load > BUSY_LOAD:
        what = f"other work runs here (load {load:.1f}), so times are longer than they need to be"
        print(f"  {what}", file=sys.stderr, flush=True)
    return round(load, 2)


def lengthen(prompts: list[list[int]], tokens: int) -> tuple[int, ...]:
    """One prompt of exactly so many tokens: documents one after the other, from the first on again if need be."""
    joined = [token for ids in prompts for token in ids]
    return tuple((joined * (tokens // len(joined) + 1))[:tokens])
