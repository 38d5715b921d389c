"""The shards folder: whole documents as token ids, back to back, nothing padded or cut.

`index.json`   format, kind (documents or chats), tokenizer and template (hashes), dtype, the rule for BOS and EOS, the
               sources with their counts, what was dropped, and last the lengths of all documents in tokens
`tokens.ids`   the ids, little-endian, uint16 where the tokenizer has at most 65,536 of them, else uint32
`tokens.mask`  chats only: one byte a token, 1 = a target
`dropped.jsonl`  where documents were filtered: one line for each that was left out, by what and why
"""

import hashlib
import json
import mmap
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from yayan.errors import UserError
from yayan.model.folder import read_json

FORMAT = 1
INDEX_NAME, IDS_NAME, MASK_NAME, DROPPED_NAME = "index.json", "tokens.ids", "tokens.mask", "dropped.jsonl"
DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
NEEDED_KEYS = ("kind", "tokenizer", "dtype", "documents", "tokens", "targets")
UINT16_IDS = 1 << 16
LENGTHS_NAME, LENGTHS_DTYPE = ".lengths", np.dtype("<u4")  # until the index is written
MOST_TOKENS = (1 << 32) - 1  # of one document
LENGTHS_AT_ONCE = 1 << 16
BYTES_AT_ONCE = 1 << 20


@dataclass
class Written:
    """How far a shards folder has been written."""

    documents: int = 0
    tokens: int = 0
    targets: int = 0


class ShardWriter:
    """Appends documents to a shards folder; holds nothing of them, their lengths wait in a file for the index.

    `with ShardWriter(folder, size=32000, masked=False) as writer: writer.add(ids); writer.finish(index)`
    """

    def __init__(self, folder: Path, *, size: int, masked: bool, written: Written | None = None) -> None:
        """`size`: number of ids that the tokenizer has. `written`: go on there, what stands behind it is cut off."""
        self.folder = folder
        self.dtype = dtype_of(size)
        self.written = written or Written()
        tokens, documents = self.written.tokens, self.written.documents
        self._ids = open_at(folder / IDS_NAME, tokens * DTYPES[self.dtype].itemsize)
        self._mask = open_at(folder / MASK_NAME, tokens) if masked else None
        self._lengths = open_at(folder / LENGTHS_NAME, documents * LENGTHS_DTYPE.itemsize)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in self._streams():
            stream.close()

    def _streams(self) -> list[BinaryIO]:
        return [stream for stream in (self._ids, self._mask, self._lengths) if stream is not None]

    def add(self, ids: Sequence[int], mask: Sequence[int] | None = None) -> None:
        """A document of at least one token."""
        flags = None if mask is None else np.array(mask, np.uint8)
        self.add_many(np.array(ids, DTYPES[self.dtype]), np.array([len(ids)]), flags)

    def add_many(self, ids_N: np.ndarray, lengths_D: np.ndarray, mask_N: np.ndarray | None = None) -> None:
        """Documents of at least one token each, back to back; the first token of each is no target."""
        if not len(lengths_D):
            return
        self._ids.write(ids_N.astype(DTYPES[self.dtype], copy=False).tobytes())
        if self._mask is not None and mask_N is not None:
            self._mask.write(mask_N.tobytes())
        self._lengths.write(lengths_D.astype(LENGTHS_DTYPE).tobytes())
        self.written.documents += len(lengths_D)
        self.written.tokens += len(ids_N)
        if mask_N is None:
            self.written.targets += len(ids_N) - len(lengths_D)
        else:
            first_D = np.cumsum(lengths_D) - lengths_D
            self.written.targets += int(mask_N.sum(dtype=np.int64) - mask_N[first_D].sum(dtype=np.int64))

    def flush(self) -> None:
        """Everything that was added is on the disk."""
        for stream in self._streams():
            stream.flush()
            os.fsync(stream.fileno())

    def finish(self, about: dict[str, object]) -> None:
        """Write the index: `about` and what the writer itself knows."""
        self._lengths.flush()
        head = {"format": FORMAT, **about, "dtype": self.dtype, **asdict(self.written)}
        lengths = self.folder / LENGTHS_NAME
        with (
            (self.folder / INDEX_NAME).open("w", encoding="utf-8") as stream,
            lengths.open("rb") as waiting,
        ):
            stream.write(json.dumps(head, ensure_ascii=False, indent=1).removesuffix("\n}"))
            separator = ',\n "lengths": ['
            while raw := waiting.read(LENGTHS_AT_ONCE * LENGTHS_DTYPE.itemsize):
                stream.write(separator + ",".join(map(str, np.frombuffer(raw, LENGTHS_DTYPE).tolist())))
                separator = ",\n"
            stream.write("]\n}\n")
        lengths.unlink()


def dtype_of(size: int) -> str:
    """Name of the dtype in which ids up to `size` are stored."""
    return "uint16" if size <= UINT16_IDS else "uint32"


def holds(folder: Path, written: Written, *, size: int, masked: bool) -> bool:
    """Whether a folder holds what was written there, before its index was."""
    width = DTYPES[dtype_of(size)].itemsize
    wanted = {IDS_NAME: width * written.tokens, LENGTHS_NAME: LENGTHS_DTYPE.itemsize * written.documents}
    if masked:
        wanted[MASK_NAME] = written.tokens
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size >= count
        for name, count in wanted.items()
        if count
    )


def open_at(path: Path, size: int) -> BinaryIO:
    """A file to append to after its first `size` bytes; the rest is cut off."""
    stream = path.open("ab")
    stream.truncate(size)
    return stream


@dataclass(frozen=True, eq=False)
class Shards:
    """An open shards folder: N tokens of D documents, the tokens mapped, not read."""

    folder: Path
    index: dict  # index.json without the lengths
    ids: np.ndarray  # [N] uint16 or uint32
    mask: np.ndarray | None  # [N] uint8, chats only
    lengths: np.ndarray  # [D] uint32, at least 1

    @classmethod
    def open(cls, folder: Path, *, tokenizer: str | None = None) -> "Shards":
        """Open a folder that `pack` made. `tokenizer`: the hash (`Tokenizer.sha256`) that its ids must come from.

        Raises UserError if it is no such folder, if files are missing or cut short, or if it has another tokenizer.
        """
        if not (folder / INDEX_NAME).is_file():
            raise UserError("this is not a shards folder", where=folder, cure="name a folder made by pack")
        index, lengths = _read_index(folder / INDEX_NAME)
        if index.get("format") != FORMAT:
            raise UserError(f"these shards are not of format {FORMAT}", where=folder, cure="pack them again")
        if missing := [key for key in NEEDED_KEYS if key not in index]:
            what = f"the index has no {missing[0]}"
            raise UserError(what, where=folder / INDEX_NAME, cure="pack the texts again")
        if tokenizer is not None and index["tokenizer"] != tokenizer:
            cure = "pack the texts again with the model's tokenizer"
            raise UserError("these shards were packed with another tokenizer", where=folder, cure=cure)
        if not len(lengths) or len(lengths) != index["documents"]:
            what = f"of {index['documents']} documents' lengths {len(lengths)} can be read"
            raise UserError(what, where=folder / INDEX_NAME, cure="pack the texts again")
        tokens = int(lengths.sum(dtype=np.int64))
        ids = _map(folder / IDS_NAME, DTYPES[index["dtype"]], tokens)
        mask = _map(folder / MASK_NAME, np.dtype(np.uint8), tokens) if index["kind"] == "chats" else None
        return cls(folder, index, ids, mask, lengths)

    @property
    def targets(self) -> int:
        """Tokens that are learned in one epoch."""
        return int(self.index["targets"])

    def name_of(self, document: int) -> str:
        """A document (counted from 0) as `FILE: document N of those packed`, N counted from 1 in its file."""
        number = document
        for source in self.index["sources"]:
            if number < source["documents"]:
                return f"{source['name']}: document {number + 1:,} of those packed"
            number -= source["documents"]
        return f"{self.folder}: document {document + 1:,}"

    @cached_property
    def sha256(self) -> str:
        """Hash of the index: of the tokenizer, of what the sources hold, of all lengths. The tokens are not read."""
        digest = hashlib.sha256(json.dumps(self.index, sort_keys=True).encode())
        digest.update(self.lengths.astype("<u4", copy=False).data)
        return digest.hexdigest()


def _read_index(path: Path) -> tuple[dict, np.ndarray]:
    """The index without the lengths, and the lengths, as far as they can be read.

    They stand last and are parsed apart: as JSON, those of 20 million documents take 4 s and 1 GB, so 0.5 s and 80 MB.
    """
    text = path.read_bytes()
    found = re.search(rb'"lengths"\s*:\s*\[', text)
    end = text.find(b"]", found.end()) if found else -1
    if found and end >= 0:
        try:
            index = json.loads(text[: found.end()] + text[end:])
        except ValueError:
            index = None
        if isinstance(index, dict):
            del index["lengths"]
            return index, _read_lengths(text, found.end(), end)
    return read_json(path), np.empty(0, np.uint32)


def _read_lengths(text: bytes, begin: int, end: int) -> np.ndarray:
    """The numbers between two places of a text, up to what is no length there."""
    pieces = [np.empty(0, np.uint32)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        while begin < end:
            stop = text.rfind(b",", begin, begin + BYTES_AT_ONCE) if end - begin > BYTES_AT_ONCE else end
            if stop < begin:
                break
            try:
                numbers = np.fromstring(text[begin:stop], np.int64, sep=",")
            except (ValueError, DeprecationWarning):
                break
            if numbers.min(initial=1) < 1 or numbers.max(initial=1) > MOST_TOKENS:
                break
            pieces.append(numbers.astype(np.uint32))
            begin = stop + 1
    return np.concatenate(pieces)


def _map(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    there = path.stat().st_size if path.is_file() else 0
    if there != count * dtype.itemsize:
        what = f"the file has {there:,} bytes, not the {count * dtype.itemsize:,} that the index tells"
        raise UserError(what, where=path, cure="pack the texts again")
    with path.open("rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    pages.madvise(
        mmap.MADV_RANDOM
    )  # else a piece of 1 kB reads as far ahead as 1.5 MB, and takes 20 times as long
    return np.frombuffer(pages, dtype)
