"""Long prompts for a model that may be a GGUF file alone: its engine's own ids, a chat template where it is due, a cut
out of the middle of what is too long."""

from functools import cached_property

from yayan.evaluate.answerers import Answerer, Prompt

LEAST_KEPT = 2  # tokens: one of each half


class PromptMaker:
    """Texts to prompts of an open model. With `chat` a text is the first message of a chat."""

    def __init__(self, engine: Answerer) -> None:
        self.engine = engine

    def prompt(self, text: str, *, chat: bool) -> Prompt:
        """A plain text stands behind BOS where the model wants one, and what looks like a special token is text."""
        if chat:
            messages = [{"role": "user", "content": text}]
            return Prompt(messages, self.engine.prompt_ids(messages))
        return Prompt(text, self.engine.text_ids(text))

    def ids(self, text: str, *, chat: bool) -> list[int]:
        """The ids of the prompt."""
        return self.prompt(text, chat=chat).ids

    @cached_property
    def template_tokens(self) -> int:
        """What a chat template adds to a text."""
        return len(self.ids("a", chat=True)) - len(self.ids("a", chat=False))

    @cached_property
    def _begins(self) -> tuple[int, bool]:
        """How many special tokens stand before a text, and whether a space does that is not in it."""
        special = len(self.ids("", chat=False))
        return special, self.engine.text_of(self.ids("a", chat=False)[special:]) == " a"

    def cut(self, text: str, kept: int) -> str:
        """The first and the last `kept // 2` tokens of a text (special ones counted), each half as text again."""
        special, space = self._begins
        ids, half = self.ids(text, chat=False), kept // 2
        parts = [self.engine.text_of(part) for part in (ids[:half][special:], ids[len(ids) - half :])]
        return "".join(part.removeprefix(" ") if space else part for part in parts)

    def fit(self, text: str, *, chat: bool, room: int, length: int | None) -> tuple[Prompt, bool]:
        """The prompt of a text that takes `length` tokens at most (without a template; by default all of the `room`),
        and whether it was cut for that. LongBench's rule: halves are decoded, joined, and tokenised again.
        """
        prompt = self.prompt(text, chat=chat)
        if length is None:
            length = room - (self.template_tokens if chat else 0)
        plain = len(self.ids(text, chat=False)) if chat else len(prompt.ids)
        if plain <= length and len(prompt.ids) <= room:
            return prompt, False
        kept = min(length, plain)
        while kept >= LEAST_KEPT:
            prompt = self.prompt(self.cut(text, kept), chat=chat)
            if len(prompt.ids) <= room:  # a seam may be cut otherwise than before
                return prompt, True
            kept -= len(prompt.ids) - room
        raise ValueError(f"nothing of a text fits into {room} tokens")
