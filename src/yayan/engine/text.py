"""Tokens to text as they come: never half a character, and no text that a stop string takes away again."""

from collections.abc import Sequence

from yayan.tokenizer import Tokenizer

BROKEN = "\ufffd"


class TextStream:
    """Text of one answer, token by token."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.held: list[int] = []  # tokens that may be part of a character
        self.before: list[
            int
        ] = []  # a token to stand before: decoders drop the space that a text begins with
        self.letter = tokenizer.encode("a")[-1:]

    def add(self, token: int) -> str:
        """The text that became certain with this token."""
        self.held.append(token)
        text = self._held_text()
        if text.endswith(BROKEN):
            return ""
        self.held.clear()
        if text:
            self.before = self.letter
        return text

    def finish(self) -> str:
        """What was held back, without half a character at its end."""
        return self._held_text().rstrip(BROKEN)

    def _held_text(self) -> str:
        decode = self.tokenizer.decode
        return decode([*self.before, *self.held])[len(decode(self.before)) :]


class StopFinder:
    """Lets text through up to the first stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = stops
        self.held = ""  # may be the beginning of a stop string
        self.found = False

    def add(self, text: str) -> str:
        """What may be shown. After a stop string (`found`) nothing more."""
        if self.found:
            return ""
        text = self.held + text
        places = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        if places:
            self.found, self.held = True, ""
            return text[: min(places)]
        kept = max((overlap(text, stop) for stop in self.stops), default=0)
        self.held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def finish(self) -> str:
        """What was held back, no stop string having come of it."""
        held, self.held = self.held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that a stop string begins with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
