"""The vocabulary in the header of a GGUF file: tokens, types, merges and special ids as they are written there."""

import ctypes
from dataclasses import dataclass
from pathlib import Path

from gguf import GGUFValueType, TokenType

from yayan.errors import UserError
from yayan.weights.ggml import library, opened

SPECIAL_KEYS = {"bos": "bos", "eos": "eos", "pad": "padding"}


@dataclass(frozen=True)
class Vocabulary:
    """llama.cpp's description of a tokenizer."""

    model: str
    """The kind: `llama` for SentencePiece, `gpt2` for byte-level BPE, and others; empty if there is none."""
    pre: str
    """The name of the pre-tokenizer, or an empty text."""
    tokens: list[str]
    types: list[int]
    """`gguf.TokenType` of each token."""
    merges: list[str]
    special_ids: dict[str, int]
    """Ids of bos, eos and pad, where they are said."""
    template: str | None


def read_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary of a GGUF file; no tensor is needed or read.

    Raises UserError if the file is no GGUF, damaged, or holds a vocabulary that contradicts itself.
    """
    with opened(path) as handle:
        fields = _Fields(handle, path)
        tokens = fields.texts("tokenizer.ggml.tokens")
        types = fields.numbers("tokenizer.ggml.token_type") or [TokenType.NORMAL] * len(tokens)
        ids = {kind: fields.number(f"tokenizer.ggml.{name}_token_id") for kind, name in SPECIAL_KEYS.items()}
        vocabulary = Vocabulary(
            model=fields.text("tokenizer.ggml.model") or "",
            pre=fields.text("tokenizer.ggml.pre") or "",
            tokens=tokens,
            types=types,
            merges=fields.texts("tokenizer.ggml.merges"),
            special_ids={kind: number for kind, number in ids.items() if number is not None},
            template=fields.text("tokenizer.chat_template"),
        )
    outside = [number for number in vocabulary.special_ids.values() if number >= len(tokens)]
    if len(types) != len(tokens) or outside:
        raise UserError(
            "the vocabulary of this GGUF file contradicts itself", where=path, cure="fetch it again"
        )
    return vocabulary


class _Fields:
    """Values of an open header by their keys. ggml ends the process if it is asked for another type than is there."""

    def __init__(self, handle: int, path: Path) -> None:
        self.handle, self.path, self.functions = handle, path, library()

    def _find(self, key: str, kind: GGUFValueType, of: GGUFValueType | None = None) -> int | None:
        """The index of a key, None if it is not there. Raises UserError if its value has another type."""
        index = self.functions.gguf_find_key(self.handle, key.encode())
        if index < 0:
            return None
        found = self.functions.gguf_get_kv_type(self.handle, index)
        if found != kind or (of is not None and self.functions.gguf_get_arr_type(self.handle, index) != of):
            raise UserError(f"{key} has a wrong type", where=self.path, cure="fetch or make it again")
        return index

    def _decode(self, raw: bytes, key: str) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{key} is not UTF-8", where=self.path, cure="fetch or make it again") from error

    def text(self, key: str) -> str | None:
        index = self._find(key, GGUFValueType.STRING)
        if index is None:
            return None
        return self._decode(self.functions.gguf_get_val_str(self.handle, index), key)

    def number(self, key: str) -> int | None:
        index = self._find(key, GGUFValueType.UINT32)
        return None if index is None else self.functions.gguf_get_val_u32(self.handle, index)

    def numbers(self, key: str) -> list[int]:
        index = self._find(key, GGUFValueType.ARRAY, GGUFValueType.INT32)
        if index is None:
            return []
        count = self.functions.gguf_get_arr_n(self.handle, index)
        data = self.functions.gguf_get_arr_data(self.handle, index)
        return list((ctypes.c_int32 * count).from_address(data)) if count else []

    def texts(self, key: str) -> list[str]:
        index = self._find(key, GGUFValueType.ARRAY, GGUFValueType.STRING)
        if index is None:
            return []
        read, count = self.functions.gguf_get_arr_str, self.functions.gguf_get_arr_n(self.handle, index)
        return [self._decode(read(self.handle, index, item), key) for item in range(count)]
