"""Scripts that a vocabulary can be continued into: which characters are theirs, and what a run of them is.

New pieces are made of letters of one run, or of punctuation marks of one run.
Ranges: Unicode 16, https://www.unicode.org/charts/. Blocks are taken whole where they can be, so that the first bytes
of a character stand for characters of the script alone.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

Script = Literal[
    "han", "kana", "hangul", "cyrillic", "greek", "arabic", "hebrew", "devanagari", "thai", "latin"
]
SCRIPTS: tuple[Script, ...] = get_args(Script)
ASCII = "A-Za-z"
# Letters and the signs that combine with them; no digits, so that none is joined.
LETTERS: dict[Script, str] = {
    "han": "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af",
    "kana": "\u3040-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff",
    "hangul": "\u1100-\u11ff\u3130-\u318f\uac00-\ud7ff",
    "cyrillic": "\u0400-\u052f\u1c80-\u1c8f",
    "greek": "\u0370-\u037d\u037f-\u0386\u0388-\u03ff\u1f00-\u1fff",
    "arabic": "\u0610-\u061a\u061c\u0620-\u065f\u066e-\u06d3\u06d5-\u06ef\u06fa-\u06ff\u0750-\u077f",
    "hebrew": "\u0590-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7-\u05ff",
    "devanagari": "\u0900-\u0963\u0971-\u097f",
    "thai": "\u0e00-\u0e3e\u0e40-\u0e4e",
    "latin": ASCII + "\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff",
}
# Punctuation and signs; digits, and the full-width Latin letters, get pieces, but are not joined.
CJK_MARKS = "\u3000-\u3020\u302a-\u303f\uff00-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff60\uffe0-\uffe6"
CJK_SINGLES = "\u3021-\u3029\uff10-\uff19\uff21-\uff3a\uff41-\uff5a"
MARKS: dict[Script, str] = {
    "han": CJK_MARKS,
    "kana": CJK_MARKS + "\u30a0\u30fb",
    "arabic": "\u060c\u061b\u061d-\u061f\u066a-\u066d\u06d4",
    "hebrew": "\u05be\u05c0\u05c3\u05c6",
    "devanagari": "\u0964\u0965\u0970",
    "thai": "\u0e3f\u0e4f\u0e5a\u0e5b",
}
SINGLES: dict[Script, str] = {
    "han": CJK_SINGLES,
    "kana": CJK_SINGLES,
    "arabic": "\u0660-\u0669\u06f0-\u06f9",
    "devanagari": "\u0966-\u096f",
    "thai": "\u0e50-\u0e59",
}
UNSPACED: tuple[Script, ...] = ("han", "kana", "thai")  # words follow each other without a space


@dataclass(frozen=True)
class Wanted:
    """Scripts to add: what of a text belongs to them, and which strings may become pieces."""

    scripts: tuple[Script, ...] = ("han",)

    @cached_property
    def parts(self) -> re.Pattern[str]:
        """Finds runs of letters (with the space before, where words have one), runs of marks, and single characters."""
        return re.compile("|".join([*(f"{run}+" for run in self._runs()), *self._class(SINGLES)]))

    @cached_property
    def _part(self) -> re.Pattern[str]:
        return re.compile("|".join([*(f"{run}*" for run in self._runs()), *self._class(SINGLES)]))

    @cached_property
    def _own(self) -> re.Pattern[str]:
        letters = {script: found.removeprefix(ASCII) for script, found in LETTERS.items()}
        return re.compile("|".join([*self._class(letters), *self._class(MARKS), *self._class(SINGLES)]))

    def _runs(self) -> list[str]:
        letters = [f"{self._space(script)}[{LETTERS[script]}]" for script in self.scripts]
        return [*letters, *self._class(MARKS)]

    def _class(self, table: Mapping[Script, str]) -> list[str]:
        """The characters that a table has of all scripts, as one class; nothing if it has none."""
        found = "".join(dict.fromkeys(table.get(script, "") for script in self.scripts))
        return [f"[{found}]"] if found else []

    @staticmethod
    def _space(script: Script) -> str:
        return "" if script in UNSPACED else " ?"

    def is_part_of_run(self, text: str) -> bool:
        """Whether a string may stand in one run, whole or in part."""
        return self._part.fullmatch(text) is not None

    def holds_own(self, text: str) -> bool:
        """Whether a string holds a character of the scripts, for Latin one outside ASCII: each new piece does."""
        return self._own.search(text) is not None

    def owns_prefix(self, start: bytes) -> bool:
        """Whether the bytes begin characters of the scripts, and no other assigned one: a piece of them is harmless."""
        found = [character for character in characters_of(start) if unicodedata.category(character) != "Cn"]
        return bool(found) and all(map(self.holds_own, found))


def characters_of(start: bytes) -> Iterator[str]:
    """All characters whose UTF-8 (RFC 3629) has more bytes than these, and begins with them."""
    lead = start[0] if start else 0
    length = 2 if 0xC2 <= lead < 0xE0 else 3 if 0xE0 <= lead < 0xF0 else 4 if 0xF0 <= lead < 0xF5 else 0
    missing = length - len(start)
    if missing < 1 or not all(0x80 <= byte < 0xC0 for byte in start[1:]):
        return
    code = lead & (0xFF >> (length + 1))
    for byte in start[1:]:
        code = code << 6 | byte & 0x3F
    least = {2: 0x80, 3: 0x800, 4: 0x10000}[length]
    for number in range(code << 6 * missing, (code + 1) << 6 * missing):
        if least <= number <= 0x10FFFF and not 0xD800 <= number < 0xE000:
            yield chr(number)
