"""Cleaning of single texts: steps that rewrite, then filters that drop. Each is optional; all of it runs in workers."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from yayan.corpus.characters import KINDS, LETTER, OTHER, SPACE, SYMBOL, codes_of, kinds, letters_of
from yayan.corpus.rewriting import (
    Change,
    Step,
    mojibake_step,
    normaliser,
    remove_invisible,
    rewrite,
    simplified_step,
)
from yayan.errors import UserError
from yayan.vocab.scripts import SCRIPTS, Script

LOST = ("\ufffd", "锟斤拷")  # U+FFFD, and what two of them become when their UTF-8 is read as GBK
OWN_LETTER = KINDS  # kind of a letter of the wanted scripts


@dataclass(frozen=True, kw_only=True)
class Cleaning:
    """What is to be done to each text, as the user asks for it. `Cleaning()` does nothing."""

    mojibake: bool = False
    """Mend text whose UTF-8 was once read as Latin-1 or the like (ä½\xa0å¥½ becomes 你好)."""
    control: bool = False
    """Take out control characters, zero-width and direction marks, private use; end lines with \\n."""
    normal_form: Literal["nfc", "nfkc"] | None = None
    """Unicode normal form. For Chinese take nfc: nfkc also turns ，：（） into ,:() and ① into 1, ㎡ into m2."""
    simplified: bool = False
    """Turn traditional characters into simplified ones (OpenCC); it would turn Japanese kanji, too."""
    min_characters: int | None = None
    """Drop texts with fewer characters."""
    max_characters: int | None = None
    """Drop texts with more characters."""
    max_symbols: float | None = None
    """Drop texts in which more than this share of the visible characters are symbols (0.3: 30 %)."""
    script: tuple[Script, ...] = ()
    """Scripts that texts are to be written in; see min_script."""
    min_script: float = 0.5
    """Drop texts in which less than this share of the letters belong to the scripts."""
    max_lost: float | None = None
    """Drop texts in which more than this share of the characters were lost to a wrong encoding (U+FFFD, 锟斤拷)."""

    @property
    def steps(self) -> list[str]:
        """Names of the rewriting steps, in their order."""
        wanted = {
            "mojibake": self.mojibake,
            "control": self.control,
            str(self.normal_form): self.normal_form is not None,
            "simplified": self.simplified,
        }
        return [name for name, is_wanted in wanted.items() if is_wanted]

    @property
    def filters(self) -> bool:
        """Whether it may drop texts."""
        limits = (self.min_characters, self.max_characters, self.max_symbols, self.max_lost)
        return bool(self.script) or any(limit is not None for limit in limits)

    def check(self) -> None:
        """Raise UserError for values that make no sense, and for a library that is missing."""
        for name in ("max_symbols", "min_script", "max_lost"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"{name} is {value}", cure="give a share from 0 to 1")
        for name in ("min_characters", "max_characters"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise UserError(f"{name} is {value}", cure="give a number of characters")
        if self.max_characters is not None and (self.min_characters or 0) > self.max_characters:
            what = f"no text has at least {self.min_characters} and at most {self.max_characters} characters"
            raise UserError(what, cure="let min_characters be the smaller")
        for script in self.script:
            if script not in SCRIPTS:
                raise UserError(f"the script {script!r} is unknown", cure=f"choose from {', '.join(SCRIPTS)}")
        if self.normal_form not in (None, "nfc", "nfkc"):
            raise UserError(f"the normal form {self.normal_form!r} is unknown", cure="choose nfc or nfkc")
        for name in self.steps:
            step_called(name)


@dataclass(frozen=True)
class Cleaned:
    """A text after cleaning, or why there is none."""

    text: str | None
    """The rewritten text; None if a filter dropped it."""
    changes: list[Change]
    """Of each step that changed the text, the first place."""
    filter: str | None = None
    """The filter that dropped it: lost, characters, symbols or script."""
    reason: str | None = None
    """Why, in words: `41 % of its characters are symbols`."""


class Cleaner:
    """Cleans texts as `cleaning` says. Make one in each process; raises UserError as `Cleaning.check` does."""

    def __init__(self, cleaning: Cleaning) -> None:
        cleaning.check()
        self.cleaning = cleaning
        self.steps = {name: step_called(name) for name in cleaning.steps}
        self._looks_at_kinds = cleaning.max_symbols is not None or bool(cleaning.script)

    def clean(self, text: str) -> Cleaned:
        """Rewrite a text, then ask the filters about what came of it; the first that objects drops it."""
        text, changes = self.rewrite(text)
        if objection := self.objection(text):
            return Cleaned(None, changes, *objection)
        return Cleaned(text, changes)

    def rewrite(self, text: str) -> tuple[str, list[Change]]:
        """The text after the steps, and the first change of each that changed it."""
        return rewrite(text, self.steps) if self.steps else (text, [])

    def objection(self, text: str) -> tuple[str, str] | None:
        """The first filter that drops a text, and why."""
        asked = self.cleaning
        lost = 0 if asked.max_lost is None else sum(len(sign) * text.count(sign) for sign in LOST)
        if asked.max_lost is not None and lost > asked.max_lost * len(text):
            return "lost", f"{percent(lost / len(text))} of its characters were lost to a wrong encoding"
        if asked.min_characters is not None and len(text) < asked.min_characters:
            return "characters", f"it has {plural(len(text))}"
        if asked.max_characters is not None and len(text) > asked.max_characters:
            return "characters", f"it has {plural(len(text))}"
        return self._objection_to_kinds(text) if self._looks_at_kinds else None

    def _objection_to_kinds(self, text: str) -> tuple[str, str] | None:
        count = np.bincount(self._kinds[codes_of(text)], minlength=OWN_LETTER + 1)
        symbols, visible = int(count[SYMBOL] + count[OTHER]), len(text) - int(count[SPACE])
        most = self.cleaning.max_symbols
        if most is not None and symbols > most * visible:
            return "symbols", f"{percent(symbols / visible)} of its characters are symbols"
        if not self.cleaning.script:
            return None
        own, letters = int(count[OWN_LETTER]), int(count[OWN_LETTER] + count[LETTER])
        if not letters:
            return "script", "it has no letters"
        if own < self.cleaning.min_script * letters:
            return (
                "script",
                f"{percent(own / letters)} of its letters are {' or '.join(self.cleaning.script)}",
            )
        return None

    @cached_property
    def _kinds(self) -> np.ndarray:
        """As `characters.kinds`, with OWN_LETTER for letters of the wanted scripts."""
        own = letters_of(self.cleaning.script) & (kinds() == LETTER)
        return np.where(own, np.uint8(OWN_LETTER), kinds())


def step_called(name: str) -> Step:
    """The rewriting step of a name in `Cleaning.steps`. Raises UserError if its library is missing."""
    if name == "mojibake":
        return mojibake_step()
    if name == "simplified":
        return simplified_step()
    return remove_invisible if name == "control" else normaliser(name.upper())


def percent(share: float) -> str:
    """`41 %`; below one percent `0.42 %`."""
    return f"{100 * share:.{2 if 0 < share < 0.01 else 0}f} %"


def plural(characters: int) -> str:
    return "1 character" if characters == 1 else f"{characters:,} characters"
