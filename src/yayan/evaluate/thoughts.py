"""Answers as text: a chat model reasons, greedily, and its letter is taken from what it wrote; never guessed."""

import re
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from yayan.evaluate.answerers import Answerer, open_answerer
from yayan.evaluate.answerers import Prompt as Asked
from yayan.evaluate.answers import NOT_EXTRACTED, Item
from yayan.evaluate.prompts import Prompt
from yayan.evaluate.questions import LETTERS
from yayan.model.folder import Context
from yayan.progress import Progress

# Chinese-LLaMA-Alpaca-2, scripts/ceval/llama_evaluator.py: in this order, the last conclusion, then the first of each
CONCLUSION = re.compile(r"所以答案是(.+?)。")
PATTERNS = [
    re.compile(pattern)
    for pattern in (
        r"([ABCD])是正确的",
        r"选项([ABCD])正确",
        r"答案为([ABCD])",
        r"答案是([ABCD])",
        r"答案([ABCD])",
        r"选择([ABCD])",
        r"答案：([ABCD])",
        r"选择答案([ABCD])",
        r"([ABCD])",
    )
]


class Thinker:
    """A chat model, opened when the first question is asked: by llama.cpp (F16), to be stretched by torch.

    `endpoint`: an OpenAI-compatible server that answers in its place, and the name asked for there.
    """

    def __init__(
        self,
        model: Path,
        max_tokens: int,
        context: Context = None,
        endpoint: tuple[str, str | None] | None = None,
    ) -> None:
        self.model, self.max_tokens, self.context, self.endpoint = model, max_tokens, context, endpoint
        self.opening_seconds = 0.0
        self._opened = ExitStack()
        self._engine: Answerer | None = None

    def close(self) -> None:
        """Stop the engine."""
        self._opened.close()

    def engine(self) -> Answerer:
        if self._engine is None:
            begun = time.monotonic()
            if self.endpoint is None:
                opening: AbstractContextManager[Answerer] = open_answerer(self.model, self.context)
            else:  # here, since its client is imported for it alone
                from yayan.evaluate.endpoint import open_endpoint

                opening = open_endpoint(self.model, *self.endpoint)
            self._engine = self._opened.enter_context(opening)
            self.opening_seconds = time.monotonic() - begun
        return self._engine

    def answer(self, prompts: list[Prompt], bar: Progress) -> list[Item]:
        """Ask what fits, one question at a time, so that an answer does not depend on what was asked before."""
        items = []
        for prompt in prompts:
            if prompt.fits:
                asked = Asked(prompt.asked, prompt.context_ids)
                reply = self.engine().answer(asked, self.max_tokens).text
                items.append(prompt.item(extract(reply, prompt.question.options), {}, reply))
            else:
                items.append(prompt.item(None, {}))
            bar.advance()
        return items


def extract(reply: str, options: Sequence[str]) -> str:
    """The letter that a reply gives, or NOT_EXTRACTED: a conclusion, a phrase, a letter, or an option's own text."""
    conclusions = CONCLUSION.findall(reply)
    if conclusions and conclusions[-1] in LETTERS:
        return conclusions[-1]
    for pattern in PATTERNS:
        if found := pattern.search(reply):
            return found[1]
    texts = {text: letter for letter, text in zip(LETTERS, options, strict=True) if text}
    found = re.search("|".join(map(re.escape, texts)) or r"(?!)", reply)
    return texts[found[0]] if found else NOT_EXTRACTED
