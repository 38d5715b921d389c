"""The fastest way from text to the very ids of a tokenizer, in one thread: sentencepiece, tiktoken, or tokenizers.

An encoder is chosen, and proven, once; what it loads is loaded in the process that uses it, to which it is sent.

All give the ids of `Tokenizer.encode`: a way is taken only where that is known, and a text of which it is not known
goes to `tokenizers` itself.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import sentencepiece

from yayan.corpus.shards import DTYPES, dtype_of
from yayan.corpus.tiktoken_bpe import TiktokenBpe, open_tiktoken
from yayan.errors import UserError
from yayan.tokenizer import (
    Tokenizer,
    convert_sentencepiece,
    deciding_hash,
    load_tokenizer,
    read_sentencepiece,
)

COMPARISON_PAYS_BYTES = 8 << 20  # of text: to see whether tokenizer.model decides the same takes a second
PROOF_PAYS_BYTES = 32 << 20  # a proof takes some seconds, in which tokenizers cut about 10 MB


class Encoder(Protocol):
    """Texts to ids: none is added, and text that looks like a special token stays text."""

    name: str

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts back to back [N], uint16 or uint32 as in shards, and the lengths of the texts [D], int64."""


class Native:
    """The library that the tokenizer is written for."""

    name = "tokenizers"

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        """`tokenizer`: that of the folder, as it is loaded in this process; another one loads it when it needs it."""
        self.folder, self.tokenizer, self.dtype = folder, tokenizer, DTYPES[dtype_of(tokenizer.size)]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.folder)

    def __getstate__(self) -> dict[str, object]:
        return {"folder": self.folder, "dtype": self.dtype}

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return joined([np.array(ids, self.dtype) for ids in self.tokenizer.encode_batch(texts)], self.dtype)


class SentencePiece:
    """Google's own library, for a model that decides the same ids."""

    name = "sentencepiece"

    def __init__(self, model: bytes, dtype: np.dtype) -> None:
        self.model, self.dtype = model, dtype

    @cached_property
    def processor(self) -> sentencepiece.SentencePieceProcessor:
        return sentencepiece.SentencePieceProcessor(model_proto=self.model)

    def __getstate__(self) -> dict[str, object]:
        return {"model": self.model, "dtype": self.dtype}

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        # 1.6 times as fast as lists
        found = [self.processor.encode(text, out_type="numpy") for text in texts]
        return joined([ids.astype(self.dtype) for ids in found], self.dtype)


class Tiktoken:
    """OpenAI's library, for a byte-level BPE that it was proven to cut alike; other texts go to `tokenizers`."""

    name = "tiktoken"

    def __init__(self, bpe: TiktokenBpe, native: Native) -> None:
        self.bpe, self.native = bpe, native

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        parts = []
        for text in texts:
            ids = self.bpe.encode(text)
            parts.append(
                self.native.encode_batch([text])[0] if ids is None else ids.astype(self.native.dtype)
            )
        return joined(parts, self.native.dtype)


def joined(parts: Sequence[np.ndarray], dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    lengths_D = np.array([len(part) for part in parts], np.int64)
    return (np.concatenate(parts) if parts else np.empty(0, dtype)), lengths_D


def open_encoder(folder: Path, tokenizer: Tokenizer | None = None, *, text_bytes: int) -> Encoder:
    """The fastest exact encoder for the tokenizer of a folder. `text_bytes`: how much it will have to do."""
    tokenizer = tokenizer or load_tokenizer(folder)
    native = Native(folder, tokenizer)
    if text_bytes >= COMPARISON_PAYS_BYTES and (folder / "tokenizer.model").is_file():
        try:
            model = read_sentencepiece(folder)
            if deciding_hash(convert_sentencepiece(model, where=folder)) == tokenizer.sha256:
                return SentencePiece(model.SerializeToString(), native.dtype)
        except UserError:
            pass  # a model that tokenizer.json does not come from
    if text_bytes >= PROOF_PAYS_BYTES and (bpe := open_tiktoken(tokenizer)) is not None:
        return Tiktoken(bpe, native)
    return native
