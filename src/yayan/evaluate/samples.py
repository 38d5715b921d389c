"""Sample answers: what a chat model says to given prompts, greedily, through the engine that serves it."""

import time
from dataclasses import dataclass
from pathlib import Path

from yayan.engine.gguf import find_gguf
from yayan.engine.llamacpp import LlamaCpp, open_model
from yayan.errors import UserError
from yayan.evaluate.results import Protocol, write_results
from yayan.progress import Progress
from yayan.stage import InputPath, Stage
from yayan.template import SYSTEM_PROMPTS
from yayan.tokenizer import load_tokenizer
from yayan.weights.ggml import read_header

PROTOCOL = Protocol("samples", "greedy", 1)


@dataclass(frozen=True, kw_only=True)
class EvalSamples(Stage):
    """Greedy answers to given prompts, each a conversation of its own."""

    model: InputPath
    """GGUF file, or model folder (converted to F16 once)."""
    prompt: list[str]
    """What to ask; may be given several times."""
    system: str = "default"
    """Name of the system prompt: default or long."""
    max_tokens: int = 128
    """Tokens of an answer at most."""
    threads: int | None = None
    """Threads of llama.cpp; all physical cores by default."""

    def check(self) -> None:
        if not self.prompt or not all(prompt.strip() for prompt in self.prompt):
            raise UserError("a prompt is missing or empty", cure='ask something: --prompt "你好"')
        if self.system not in SYSTEM_PROMPTS:
            names = ", ".join(SYSTEM_PROMPTS)
            raise UserError(f"there is no system prompt {self.system}", cure=f"take one of {names}")
        if self.max_tokens < 1:
            raise UserError(f"answers of {self.max_tokens} tokens", cure="give at least 1")
        if self.threads is not None and self.threads < 1:
            raise UserError(f"{self.threads} threads", cure="give at least 1")
        if template_of(self.model) is None:
            cure = "tune it on chats first (yayan sft), or name a tuned model"
            raise UserError(
                "a base model has no chat template and cannot answer", where=self.model, cure=cure
            )

    def run(self, work: Path) -> dict[str, object]:
        with (
            open_model(self.model, threads=self.threads) as engine,
            Progress("eval samples", total=len(self.prompt), unit="answers") as bar,
        ):
            answers = []
            for prompt in self.prompt:
                answers.append(ask(engine, prompt, SYSTEM_PROMPTS[self.system], self.max_tokens))
                bar.advance()
        settings = {"system": self.system, "max_tokens": self.max_tokens}
        write_results(work, PROTOCOL, self.model, settings | {"items": answers})
        tokens, seconds = sum(item.tokens for item in answers), sum(item.seconds for item in answers)
        return {
            "answers": len(answers),
            "tokens": tokens,
            "answer_seconds": round(seconds, 3),
            "tokens_per_second": round(tokens / seconds, 1),
        }


def template_of(model: Path) -> str | None:
    """The chat template of a model folder or of a GGUF file, found without opening the model."""
    if (model / "config.json").is_file():
        return load_tokenizer(model).template
    return read_header(find_gguf(model)).template


@dataclass(frozen=True)
class Answer:
    """An answer with what it took; `complete` is False where it was cut at `max_tokens`."""

    prompt: str
    answer: str
    tokens: int
    seconds: float
    complete: bool


def ask(engine: LlamaCpp, prompt: str, system: str, max_tokens: int) -> Answer:
    """One greedy answer; the time is that of the whole request, prompt included."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
    started = time.monotonic()
    body = {"messages": messages, "max_tokens": min(max_tokens, engine.context), "temperature": 0}
    reply = engine.ask("/v1/chat/completions", body)
    choice = reply["choices"][0]
    return Answer(
        prompt=prompt,
        answer=choice["message"]["content"].strip(),
        tokens=reply["usage"]["completion_tokens"],
        seconds=round(time.monotonic() - started, 3),
        complete=choice["finish_reason"] == "stop",
    )
