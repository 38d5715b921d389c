"""Sample answers: what a chat model says to given prompts, greedily, through llama.cpp or an endpoint."""

import time
from dataclasses import dataclass
from pathlib import Path

from yayan.errors import UserError
from yayan.evaluate.answerers import Answerer, Prompt, look_at
from yayan.evaluate.answering import Answers
from yayan.evaluate.results import Protocol, write_results
from yayan.progress import Progress
from yayan.template import SYSTEM_PROMPTS

PROTOCOL = Protocol("samples", "greedy", 1)


@dataclass(frozen=True, kw_only=True)
class EvalSamples(Answers):
    """Greedy answers to given prompts, each a conversation of its own."""

    prompt: list[str]
    """What to ask; may be given several times."""
    system: str = "default"
    """Name of the system prompt: default or long."""
    max_tokens: int = 128
    """Tokens of an answer at most."""

    def check(self) -> None:
        super().check()
        if not self.prompt or not all(prompt.strip() for prompt in self.prompt):
            raise UserError("a prompt is missing or empty", cure='ask something: --prompt "你好"')
        if self.system not in SYSTEM_PROMPTS:
            names = ", ".join(SYSTEM_PROMPTS)
            raise UserError(f"there is no system prompt {self.system}", cure=f"take one of {names}")
        if self.max_tokens < 1:
            raise UserError(f"answers of {self.max_tokens} tokens", cure="give at least 1")
        if not look_at(self.model).chat:
            cure = "tune it on chats first (yayan sft), or name a tuned model"
            raise UserError(
                "a base model has no chat template and cannot answer", where=self.model, cure=cure
            )

    def run(self, work: Path) -> dict[str, object]:
        with (
            self.open() as engine,
            Progress("eval samples", total=len(self.prompt), unit="answers") as bar,
        ):
            answers, context = [], look_at(self.model).context
            for prompt in self.prompt:
                answers.append(ask(engine, prompt, SYSTEM_PROMPTS[self.system], self.max_tokens, context))
                bar.advance()
        settings = engine.origin | {"system": self.system, "max_tokens": self.max_tokens}
        write_results(work, PROTOCOL, self.model, settings | {"items": answers})
        tokens, seconds = sum(item.tokens for item in answers), sum(item.seconds for item in answers)
        return {
            **engine.origin,
            "answers": len(answers),
            "tokens": tokens,
            "answer_seconds": round(seconds, 3),
            "tokens_per_second": round(tokens / seconds, 1),
        }


@dataclass(frozen=True)
class Answer:
    """An answer with what it took; `complete` is False where it was cut at `max_tokens`."""

    prompt: str
    answer: str
    tokens: int
    seconds: float
    complete: bool


def ask(engine: Answerer, prompt: str, system: str, max_tokens: int, context: int) -> Answer:
    """One greedy answer; the time is that of the whole request, prompt included."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
    asked = Prompt(messages, engine.prompt_ids(messages))
    started = time.monotonic()
    said = engine.answer(asked, max(1, min(max_tokens, context - len(asked.ids))))
    return Answer(
        prompt=prompt,
        answer=said.text.strip(),
        tokens=said.tokens,
        seconds=round(time.monotonic() - started, 3),
        complete=said.complete,
    )
