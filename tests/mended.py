"""llama.cpp's vocabulary files as they were before somebody saved them as text.

In the copies in ../shared each byte that is no UTF-8 has become U+FFFD: low bytes of lengths, counts and ids. The
tokens, types and merges themselves are whole, and the ends of texts are found by the zeros of the next length.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gguf import GGUFValueType, GGUFWriter

from tests.conftest import SHARED

FOLDER = SHARED / "data" / "tokenizers"
LOST = "\N{REPLACEMENT CHARACTER}".encode()
SPECIALS = {
    "gpt-2": ("<|endoftext|>", "<|endoftext|>"),
    "deepseek-llm": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "deepseek-coder": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
}
SIZES = {
    GGUFValueType.UINT32: 4,
    GGUFValueType.INT32: 4,
    GGUFValueType.FLOAT32: 4,
    GGUFValueType.BOOL: 1,
}


class Damaged:
    """A reader that goes on where a number is lost."""

    def __init__(self, path: Path) -> None:
        self.raw, self.at = path.read_bytes(), 24

    def number(self, size: int) -> int | None:
        found: list[int | None] = []
        for _ in range(size):
            lost = self.raw.startswith(LOST, self.at)
            found.append(None if lost else self.raw[self.at])
            self.at += len(LOST) if lost else 1
        return None if None in found else int.from_bytes(bytes(byte or 0 for byte in found), "little")

    def text(self) -> str:
        length, start = self.number(8), self.at
        self.at = start + length if length is not None else self._next_length()
        return self.raw[start : self.at].decode()

    def _next_length(self) -> int:
        zeros = self.raw.index(bytes(7), self.at)
        return zeros - (len(LOST) if self.raw.endswith(LOST, 0, zeros) else 1)

    def texts(self, count: int | None) -> Iterator[str]:
        while count is None or count > 0:
            start, text = self.at, self.text()
            if count is None and text.startswith("tokenizer.ggml."):
                self.at = start
                return
            yield text
            count = count - 1 if count is not None else None

    def fields(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while self.at < len(self.raw):
            key, kind = self.text(), self.number(4)
            if kind == GGUFValueType.STRING:
                found[key] = self.text()
            elif kind == GGUFValueType.ARRAY:
                inner, count = self.number(4), self.number(8)
                if inner == GGUFValueType.STRING:
                    found[key] = list(self.texts(count))
                else:
                    found[key] = [self.number(4) for _ in found["tokenizer.ggml.tokens"]]
            else:
                found[key] = self.number(SIZES[GGUFValueType(kind)])
        return found


def mend(name: str, path: Path) -> dict[str, Any]:
    """Write the vocabulary of `ggml-vocab-NAME.gguf` as a whole GGUF file; its fields are returned."""
    fields = Damaged(FOLDER / f"ggml-vocab-{name}.gguf").fields()
    tokens = fields["tokenizer.ggml.tokens"]
    bos, eos = map(tokens.index, SPECIALS[name])
    writer = GGUFWriter(path, fields["general.architecture"])
    writer.add_tokenizer_model(fields["tokenizer.ggml.model"])
    writer.add_tokenizer_pre(fields["tokenizer.ggml.pre"])
    writer.add_token_list(tokens)
    writer.add_token_types(fields["tokenizer.ggml.token_type"])
    writer.add_token_merges(fields["tokenizer.ggml.merges"])
    writer.add_bos_token_id(bos)
    writer.add_eos_token_id(eos)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return fields


def vectors(name: str) -> list[tuple[str, list[int]]]:
    """llama.cpp's texts and the ids that it wants of them."""
    between = "\n__ggml_vocab_test__\n"
    raw = (FOLDER / f"ggml-vocab-{name}.gguf.inp").read_bytes().decode()
    lines = (FOLDER / f"ggml-vocab-{name}.gguf.out").read_text().removesuffix("\n").split("\n")
    texts = raw.removesuffix(between).split(between)
    return [(text, [*map(int, line.split())]) for text, line in zip(texts, lines, strict=True)]
