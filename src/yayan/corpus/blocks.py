"""Records of a corpus -> token ids, a block at a time: what the worker processes of `pack` do.

Legend: D documents of a block, N tokens of all of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from dataclasses import field as value
from pathlib import Path
from typing import Literal

import numpy as np

from yayan.corpus.bad import Bad, BadLineError
from yayan.corpus.chats import Chat, chat_of
from yayan.corpus.clean import Cleaner, Cleaning
from yayan.corpus.counts import Tally
from yayan.corpus.decontaminate import Decontaminator
from yayan.corpus.duplicates import exact_key, near_bands
from yayan.corpus.encoders import Encoder, Native
from yayan.corpus.read import text_of
from yayan.corpus.records import Record
from yayan.corpus.rewriting import Change
from yayan.errors import UserError
from yayan.template import encode_chats

EXCERPT_CHARACTERS = 60
Duplicates = Literal["exact", "near"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is done to every record; sent to the workers once."""

    native: Native  # the tokenizer: for chats, whose template has special tokens
    encoder: Encoder  # for documents
    bos: int | None
    eos: int
    field: str | None = None
    skip_bad: bool = False
    template: str | None = None  # chats are packed with it, documents without
    system: str | None = None
    cleaning: Cleaning = value(default_factory=Cleaning)
    decontaminator: Decontaminator | None = None
    duplicates: Duplicates | None = None

    @property
    def cleans(self) -> bool:
        """Whether documents are dropped for more than being empty."""
        return bool(self.cleaning.filters or self.decontaminator or self.duplicates)


@dataclass
class Block:
    """Records of one source that follow each other."""

    source: int
    path: Path
    records: list[Record] = value(default_factory=list)
    bad: Bad = value(default_factory=lambda: Bad(skip=False))  # what could not be read so far
    position: int = 0  # bytes of the file up to its end, as it lies on the disk
    earlier: bool = False  # nothing to do, the source is copied from an earlier packing
    last: bool = False


@dataclass
class Dropped:
    """A document that was left out: by what, and why."""

    line: int
    by: str
    because: str
    excerpt: str


@dataclass
class Item:
    """A document or chat on its way: its texts as they were cleaned."""

    line: int
    texts: list[str]
    chat: Chat | None = None

    @property
    def whole(self) -> str:
        return "\n".join(self.texts)

    @property
    def excerpt(self) -> str:
        return " ".join("".join(text[:EXCERPT_CHARACTERS] for text in self.texts).split())[
            :EXCERPT_CHARACTERS
        ]


@dataclass
class Packed:
    """What became of a block."""

    source: int
    records: int
    bad: Bad
    position: int = 0
    earlier: bool = False
    last: bool = False
    ids_N: np.ndarray = value(default_factory=lambda: np.empty(0, np.uint32))
    mask_N: np.ndarray | None = None
    lengths_D: np.ndarray = value(default_factory=lambda: np.empty(0, np.int64))
    characters_D: np.ndarray = value(default_factory=lambda: np.empty(0, np.int64))
    bytes_D: np.ndarray = value(default_factory=lambda: np.empty(0, np.int64))
    # Where duplicates are looked for:
    exact_D: list[int] = value(default_factory=list)
    near_D: np.ndarray | None = None
    heads_D: list[tuple[int, str]] = value(default_factory=list)  # line and excerpt
    dropped: list[Dropped] = value(default_factory=list)
    rewritten: Tally = value(default_factory=Tally)


class Packer:
    """One worker: a tokenizer and the cleaning, ready."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.cleaner = Cleaner(job.cleaning)

    def pack(self, block: Block) -> Packed:
        packed = Packed(
            block.source, len(block.records), block.bad, block.position, block.earlier, block.last
        )
        if not block.records:
            return packed
        items = list(self._cleaned(self._items(block, packed), block.path, packed))
        if self.job.decontaminator:
            items = self._unseen(items, self.job.decontaminator, packed)
        if self.job.template is None:
            self._encode_documents(items, packed)
        else:
            items = self._encode_chats(items, self.job.template, packed)
        packed.characters_D = np.array([sum(map(len, item.texts)) for item in items], np.int64)
        packed.bytes_D = np.array([sum(len(t.encode()) for t in item.texts) for item in items], np.int64)
        if self.job.duplicates:
            whole = [item.whole for item in items]
            packed.exact_D = [exact_key(text) for text in whole]
            packed.near_D = near_bands(whole) if self.job.duplicates == "near" else None
            packed.heads_D = [(item.line, item.excerpt) for item in items]
        return packed

    def _items(self, block: Block, packed: Packed) -> Iterator[Item]:
        for record in block.records:
            if self.job.template is None:
                text = text_of(record, block.path, self.job.field, packed.bad)
                if text is None:
                    continue
                if text.strip():
                    yield Item(record.line, [text])
                else:
                    packed.dropped.append(Dropped(record.line, "blank", "there is nothing in it", ""))
            elif (chat := chat_of(record, block.path, packed.bad)) is not None:
                item = Item(record.line, [message["content"] for message in chat.messages], chat)
                if any(m["role"] == "assistant" and m["content"].strip() for m in chat.messages):
                    yield item
                else:
                    why = "no turn of the assistant says anything"
                    packed.dropped.append(Dropped(record.line, "without_answer", why, item.excerpt))

    def _cleaned(self, items: Iterator[Item], path: Path, packed: Packed) -> Iterator[Item]:
        for item in items:
            changes: dict[str, Change] = {}
            for i, text in enumerate(item.texts):
                item.texts[i], found = self.cleaner.rewrite(text)
                changes |= {change.step: change for change in found}
            for name, change in changes.items():
                shown = f"{path.name}:{item.line}: “{change.before}” became “{change.after}”"
                packed.rewritten.add(name, shown)
            if objection := self.cleaner.objection(item.whole):
                packed.dropped.append(Dropped(item.line, *objection, item.excerpt))
            elif item.whole.strip():
                yield item
            else:
                packed.dropped.append(Dropped(item.line, "blank", "nothing is left of it", ""))

    @staticmethod
    def _unseen(items: list[Item], known: Decontaminator, packed: Packed) -> list[Item]:
        """The items that share no long n-gram with the evaluation sets."""
        kept = []
        for item, match in zip(items, known.find_all([item.whole for item in items]), strict=True):
            if match is None:
                kept.append(item)
            else:
                because = f"it shares {match.pieces} words or characters with {match.place}"
                packed.dropped.append(Dropped(item.line, "evaluation", because, match.shared))
        return kept

    def _encode_documents(self, items: Sequence[Item], packed: Packed) -> None:
        """`BOS text EOS`, without the BOS where the tokenizer has none."""
        ids_N, lengths_D = self.job.encoder.encode_batch([item.texts[0] for item in items])
        bos, eos = self.job.bos, self.job.eos
        before = 0 if bos is None else 1
        whole_D = lengths_D.astype(np.int64) + before + 1
        last_D = np.cumsum(whole_D) - 1
        first_D = last_D + 1 - whole_D
        out = np.empty(int(whole_D.sum()), ids_N.dtype)
        text = np.ones(len(out), bool)
        text[last_D] = False
        out[last_D] = eos
        if bos is not None:
            text[first_D] = False
            out[first_D] = bos
        out[text] = ids_N
        packed.ids_N, packed.lengths_D = out, whole_D

    def _encode_chats(self, items: Sequence[Item], template: str, packed: Packed) -> list[Item]:
        """As the template renders them. Returns the chats that it renders; the others are bad lines."""
        dialogues = []
        for item in items:
            assert item.chat is not None
            roles = [message["role"] for message in item.chat.messages]
            messages = [{"role": r, "content": t} for r, t in zip(roles, item.texts, strict=True)]
            if self.job.system is not None and roles[0] != "system":
                messages = [{"role": "system", "content": self.job.system}, *messages]
            dialogues.append(messages)
        kept, ids, masks = [], [], []
        for item, result in zip(
            items, encode_chats(self.job.native.tokenizer, dialogues, template), strict=True
        ):
            if isinstance(result, UserError):
                assert item.chat is not None
                where = f"{item.chat.source}:{item.line}"
                what = str(result).removesuffix(".")
                packed.bad.take(BadLineError("template", what, where=where, cure="mend or remove it"))
                continue
            kept.append(item)
            ids.append(np.array(result[0], np.uint32))
            masks.append(np.array(result[1], np.uint8))
        packed.lengths_D = np.array([len(part) for part in ids], np.int64)
        packed.ids_N = np.concatenate(ids) if ids else np.empty(0, np.uint32)
        packed.mask_N = np.concatenate(masks) if masks else np.empty(0, np.uint8)
        return kept


_packer: Packer | None = None


def prepare(job: Job) -> None:
    """Ready this process for `pack_block`."""
    global _packer
    _packer = Packer(job)


def pack_block(block: Block) -> Packed:
    """A block as the worker that was readied here packs it. Raises UserError for what cannot be read."""
    assert _packer is not None
    return _packer.pack(block)
