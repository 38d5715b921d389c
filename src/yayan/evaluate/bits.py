"""Bits per byte of held-out texts: the one measure of a language model that does not depend on its vocabulary."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from yayan.corpus.read import documents
from yayan.engine.choose import positions_of
from yayan.errors import UserError
from yayan.evaluate import positions
from yayan.evaluate.intervals import bootstrap_ratio
from yayan.evaluate.readers import Reader, open_reader
from yayan.evaluate.results import Protocol, write_results
from yayan.evaluate.scorer import refuse_nonsense
from yayan.model.folder import Context
from yayan.model.score import bits_per_byte, windows_of
from yayan.pictures import standalone
from yayan.progress import Progress
from yayan.stage import InputPath, Stage

PROTOCOL = Protocol("bits", "sliding-window", 1)
MOST_PARTS = 1000


@dataclass(frozen=True, kw_only=True)
class EvalBits(Stage):
    """Bits per byte of held-out texts.

    Each document is scored alone, from BOS on; its end token is not counted. A document longer than the context is
    read in windows that overlap. A folder is computed by torch in float32; a GGUF file by llama.cpp, its cache in
    float32, so that the two can be compared.
    """

    model: InputPath
    """Model folder, or GGUF file."""
    text: dict[str, InputPath]
    """Held-out documents by name: --text.zh FILE --text.en FILE (txt or jsonl, compressed or not, or folders)."""
    context: Context = None
    """Positions of one window; all that the model has by default; auto: up to 8 times as many, each window stretched by
    what it needs (a model folder)."""
    overlap: int | None = None
    """Positions of a window that the one before has scored already; half of it by default."""
    by_position: int | None = None
    """Also measure by position in the document, in so many equal parts of the longest one (OUT/by-position.svg)."""
    limit: int | None = None
    """Bytes of each text to read, in whole documents from its beginning; all by default."""

    def check(self) -> None:
        stride_of(positions_of(self.model, self.context), self.overlap)
        if self.limit is not None and self.limit < 1:
            raise UserError(f"a limit of {self.limit} bytes", cure="give at least 1, or leave it out for all")
        if self.by_position is not None and not 1 <= self.by_position <= MOST_PARTS:
            raise UserError(f"{self.by_position} parts of a document", cure=f"give 1 to {MOST_PARTS}")
        if not self.text:
            raise UserError("no text is given", cure="name one: --text.zh FILE")

    def run(self, work: Path) -> dict[str, object]:
        texts = {name: read_texts(path, self.limit) for name, path in self.text.items()}
        reader, context = open_reader(self.model, self.context), positions_of(self.model, self.context)
        stride = stride_of(context, self.overlap)
        table: dict[str, dict] = {}
        items: dict[str, list[Item]] = {}
        for name, (read, complete) in texts.items():
            costs = read_costs(reader, read, context, stride, label=f"eval bits {name}")
            items[name] = [
                item_of(text, cost, reader.unknown) for text, cost in zip(read, costs, strict=True)
            ]
            refuse_nonsense((item.nats for item in items[name]), self.model)
            table[name] = summarise(items[name]) | {"complete": complete}
            if self.by_position:
                placed = positions.place(read, costs, reader.token_bytes())
                table[name]["by_position"] = positions.summarise(placed, self.by_position)
        if self.by_position:
            svg = positions.picture({name: row["by_position"] for name, row in table.items()})
            (work / positions.PICTURE_NAME).write_text(standalone(svg), encoding="utf-8")
        settings: dict[str, object] = {"context": context, "overlap": context - stride}
        settings |= {"stretching": self.context == "auto", "limit_bytes": self.limit, "engine": reader.engine}
        full = {name: row | {"items": items[name]} for name, row in table.items()}
        write_results(work, PROTOCOL, self.model, settings | {"texts": full})
        return settings | {"texts": table}


@dataclass(frozen=True)
class Text:
    """A document to score and where it stands (`FILE:LINE`)."""

    text: str
    place: str


@dataclass(frozen=True)
class Item:
    """What one document cost."""

    place: str
    bytes: int
    characters: int
    tokens: int
    unknown_tokens: int
    nats: float


def read_texts(path: Path, limit_bytes: int | None) -> tuple[list[Text], bool]:
    """Whole documents from the beginning of a corpus, as many as `limit_bytes` holds but at least one, empty ones
    left out -> the documents, and whether these are all.
    """
    texts: list[Text] = []
    total = 0
    for document in documents([path]):
        if not document.text:
            continue
        total += len(document.text.encode("utf-8"))
        if texts and limit_bytes is not None and total > limit_bytes:
            return texts, False
        texts.append(Text(document.text, f"{document.source.name}:{document.line}"))
    if not texts:
        raise UserError("all its documents are empty", where=path, cure="give a text")
    return texts, True


@dataclass(frozen=True)
class Cost:
    """A document's tokens and what each of them cost: `ids` and `nats` (float64) are of one length."""

    ids: list[int]
    nats: np.ndarray


def stride_of(context: int, overlap: int | None) -> int:
    """How far a window moves. Raises UserError for an overlap that leaves nothing to be scored."""
    if overlap is None:
        return max(context // 2, 1)
    if not 0 <= overlap < context:
        raise UserError(f"an overlap of {overlap} tokens", cure=f"give 0 to {context - 1}")
    return context - overlap


def read_costs(reader: Reader, texts: list[Text], context: int, stride: int, label: str) -> list[Cost]:
    """Read each document from BOS (or EOS) on; neither that nor the end token is counted."""
    encoded = reader.encode([text.text for text in texts])
    costs = [Cost(ids, np.zeros(len(ids))) for ids in encoded]
    windows = windows_of([[reader.before, *ids] for ids in encoded], context, stride)
    with Progress(label, total=sum(map(len, encoded)), unit="tokens") as bar:
        for window, nats_N in reader.score(windows):
            first = window.offset - 1
            costs[window.sequence].nats[first : first + len(nats_N)] = nats_N.numpy()
            bar.advance(len(nats_N))
    return costs


def item_of(text: Text, cost: Cost, unknown: int) -> Item:
    size, count = len(text.text.encode("utf-8")), len(cost.ids)
    return Item(text.place, size, len(text.text), count, cost.ids.count(unknown), float(cost.nats.sum()))


def summarise(items: list[Item]) -> dict[str, object]:
    """The figures of one text: sums over its documents, and a 95 % interval of bits per byte over documents."""
    total = {
        name: sum(getattr(item, name) for item in items)
        for name in ("bytes", "characters", "tokens", "unknown_tokens", "nats")
    }
    nats = total.pop("nats")
    interval = bootstrap_ratio(
        [bits_per_byte(item.nats, 1) for item in items], [item.bytes for item in items]
    )
    return {
        "documents": len(items),
        **total,
        "bits_per_byte": bits_per_byte(nats, total["bytes"]),
        "interval": interval,
        "bits_per_character": bits_per_byte(nats, total["characters"]),
        "tokens_per_character": total["tokens"] / total["characters"],
        "perplexity_per_token": math.exp(nats / max(total["tokens"], 1)),
    }
