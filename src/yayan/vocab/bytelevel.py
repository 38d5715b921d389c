"""A byte-level BPE tokenizer (GPT-2's family, Radford et al. 2019) as a base: new tokens and merges behind its own.

Its vocabulary writes each byte of UTF-8 as one printable character, its merge list names the pairs that are joined.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import tokenizers

from yayan.errors import UserError
from yayan.model.folder import TEMPLATE_FILE, write_json
from yayan.pretokenizers import BYTE_OF
from yayan.vocab.base import PAD, Base
from yayan.vocab.scripts import Wanted


def bytes_of(name: str) -> bytes | None:
    """The bytes of a token's name; None if it is none of the byte alphabet (special tokens)."""
    try:
        return bytes([BYTE_OF[letter] for letter in name])
    except KeyError:
        return None


@dataclass(frozen=True, eq=False)
class ByteLevelBase(Base):
    """`parts`: its `tokenizer.json`, every added token in the vocabulary, too; `specials`: ids of bos, eos and pad."""

    parts: dict
    specials: Mapping[str, int]

    @property
    def taken(self) -> int:
        return self.size + ("pad" not in self.specials)

    @cached_property
    def _names(self) -> dict[int, str]:
        return {number: name for name, number in self.parts["model"]["vocab"].items()}

    @cached_property
    def _added(self) -> set[str]:
        return {item["content"] for item in self.parts["added_tokens"]}

    def text_of(self, name: str) -> str | None:
        raw = bytes_of(name)
        if raw is None or name in self._added:
            return None
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return None

    def bytes_of(self, name: str) -> bytes:
        raw = None if name in self._added else bytes_of(name)
        return name.encode("utf-8") if raw is None else raw

    def joinable(self, token_id: int) -> bool:
        return self._names.get(token_id) not in self._added

    def may_join(self, name: str, wanted: Wanted, longest: int) -> bool:
        """Also the first bytes of a character, if all characters that begin with them are of the scripts."""
        text = self.text_of(name)
        if text is not None:
            short = len(text.strip(" ")) <= longest
            return short and wanted.holds_own(text) and wanted.is_part_of_run(text)
        raw = bytes_of(name) or b""
        return wanted.owns_prefix(raw.removeprefix(b" ") if wanted.is_part_of_run(" ") else raw)

    def missing_characters(self, weights: Mapping[str, int]) -> dict[str, int]:
        return {}

    def extended(self, names: Sequence[str]) -> tokenizers.Tokenizer:
        fast = tokenizers.Tokenizer.from_str(json.dumps(self._extended_parts(names)))
        fast.encode_special_tokens = True
        return fast

    def _extended_parts(self, names: Sequence[str]) -> dict:
        parts = json.loads(json.dumps(self.parts))
        vocab = parts["model"]["vocab"]
        if "pad" not in self.specials:
            if PAD in vocab:
                what = f"{PAD} is an ordinary token of this tokenizer"
                raise UserError(what, cure="declare another pad_token in its tokenizer_config.json")
            vocab[PAD] = self.size
            parts["added_tokens"].append(added_token(PAD, self.size))
        vocab |= {name: self.taken + number for number, name in enumerate(names)}
        for name in names:
            cuts = ((name[:cut], name[cut:]) for cut in range(1, len(name)))
            parts["model"]["merges"] += [
                [left, right] for left, right in cuts if left in vocab and right in vocab
            ]
        return parts

    def write(self, folder: Path, names: Sequence[str]) -> None:
        """Write `tokenizer.json`, `tokenizer_config.json` and the chat template, if there is one."""
        parts = self._extended_parts(names)
        tokenizers.Tokenizer.from_str(json.dumps(parts)).save(str(folder / "tokenizer.json"), pretty=False)
        named = {number: name for name, number in parts["model"]["vocab"].items()}
        ids = {"pad": self.size, **self.specials}
        config: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        config |= {f"{kind}_token": named[number] for kind, number in ids.items()}
        config["clean_up_tokenization_spaces"] = False
        if self.model_max_length is not None:
            config["model_max_length"] = self.model_max_length
        write_json(folder / "tokenizer_config.json", config)
        if self.template is not None:
            (folder / TEMPLATE_FILE).write_text(self.template, encoding="utf-8")


def added_token(content: str, number: int) -> dict[str, object]:
    """A special token as `tokenizer.json` writes it."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": number, "content": content, **flags}


def make_byte_level_base(
    fast: tokenizers.Tokenizer,
    specials: Mapping[str, int],
    *,
    template: str | None = None,
    model_max_length: int | None = None,
) -> ByteLevelBase:
    """A base of a native byte-level tokenizer. A padding token that is also the end of a text is none."""
    parts = json.loads(fast.to_str())
    for item in parts["added_tokens"]:
        parts["model"]["vocab"].setdefault(item["content"], item["id"])
    special = {item["content"]: item["id"] for item in parts["added_tokens"] if item["special"]}
    kept = dict(specials)
    if kept.get("pad") in (None, kept.get("bos"), kept.get("eos")) or kept["pad"] not in special.values():
        kept.pop("pad", None)
        if PAD in special:
            kept["pad"] = special[PAD]
    plain = tokenizers.Tokenizer.from_str(json.dumps(parts))
    plain.encode_special_tokens = True
    size = max(parts["model"]["vocab"].values()) + 1
    return ByteLevelBase(plain, size, template, model_max_length, parts, kept)
