"""How a byte-level BPE cuts text into words before it merges, and the name that llama.cpp gives to each way.

A definition is a list of steps as `tokenizer.json` writes them. Those in the table do exactly what llama.cpp does under
the name, which is not always what the first model of that name was published with. With each character of Unicode 14
in the middle of a text the ids were equal; letters and digits that are newer may be known to one program only.
"""

import json
from typing import Any

import tokenizers
from tokenizers import Regex, pre_tokenizers

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# The letters with case, as DeepSeek's tokenizer and llama.cpp list them
CASED = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5"
    "\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba"
    "\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45"
    "\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe"
    "\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06"
    "\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"
    "\U0001e900-\U0001e943"
)
# llama.cpp takes every white space beyond ASCII for one control character, so that ranges do not contain it
EAST_ASIAN = "[[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]&&\\S]+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
EXPRESSIONS = {
    "gpt-2": [GPT2],
    "llama-bpe": [LLAMA3],
    "qwen2": [LLAMA3.replace("{1,3}", "")],
    "deepseek-llm": [
        r"[\r\n]",
        rf"\s?[{CASED}]+",
        "\\s?[[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]&&\\S]+",
        r"\s+\z",
        EAST_ASIAN,
        r"\p{N}+",
    ],
    "deepseek-coder": [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", EAST_ASIAN, r"\p{N}"],
}
TAKES_WORDS = "llama-bpe"  # under this name alone llama.cpp looks for a whole word before it merges

PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
# The letter that stands for each byte in a byte-level vocabulary (GPT-2, Radford et al. 2019) -> the byte: one that is
# printable in Latin-1 stands for itself, the others are numbered from U+0100.
BYTE_OF = {chr(byte): byte for byte in PRINTABLE} | {
    chr(0x100 + number): byte for number, byte in enumerate(sorted(set(range(256)) - set(PRINTABLE)))
}


def pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer | None:
    """What llama.cpp does to a text under a name (`tokenizer.ggml.pre`) before it merges; None for an unknown name."""
    if name not in EXPRESSIONS:
        return None
    if name == "gpt-2":  # the same in the form that is usual, and native
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    splits = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in EXPRESSIONS[name]]
    return pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def pre_name_of(fast: tokenizers.Tokenizer) -> str | None:
    """The name under which llama.cpp cuts as this byte-level tokenizer does before merging; None if none is known."""
    steps = _steps(json.loads(fast.to_str())["pre_tokenizer"])
    for name, expressions in EXPRESSIONS.items():
        if steps == [*map(_isolated, expressions), BYTES]:
            return name
    return None


def splitting_of(definition: dict[str, Any] | None) -> str | None:
    """The one regular expression by which a byte-level tokenizer cuts, as `tokenizer.json` defines it; else None."""
    match _steps(definition):
        case [{"type": "Split", "pattern": {"Regex": expression}} as split, last] if last == BYTES:
            return expression if split == _isolated(expression) else None
    return None


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}


def _isolated(expression: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


def _steps(definition: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A definition in one way of several that mean the same: no nesting, GPT-2's expression as a step of its own."""
    if definition is None:
        return []
    if definition["type"] == "Sequence":
        return [step for part in definition["pretokenizers"] for step in _steps(part)]
    step = {key: value for key, value in definition.items() if key != "trim_offsets"}
    if step["type"] != "ByteLevel" or not step["use_regex"]:
        return [step]
    if step["add_prefix_space"]:
        return [step]
    return [_isolated(GPT2), BYTES]
