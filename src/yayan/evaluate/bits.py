"""Bits per byte of held-out texts: the one measure of a language model that does not depend on its vocabulary."""

import math
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer as FastTokenizer

from yayan.corpus.read import documents
from yayan.errors import UserError
from yayan.evaluate.intervals import bootstrap_ratio
from yayan.evaluate.results import Protocol, write_results
from yayan.evaluate.scorer import Scorer, context_of, first_token, open_scorer
from yayan.model.score import bits_per_byte, score_sequences
from yayan.progress import Progress
from yayan.stage import InputPath, Stage

PROTOCOL = Protocol("bits", "sliding-window", 1)


@dataclass(frozen=True, kw_only=True)
class EvalBits(Stage):
    """Bits per byte of held-out texts.

    Each document is scored alone, from BOS on; its end token is not counted. A document longer than the context is
    read in windows that overlap by half.
    """

    model: InputPath
    """Model folder."""
    text: dict[str, InputPath]
    """Held-out documents by name: --text.zh FILE --text.en FILE (txt or jsonl, compressed or not, or folders)."""
    context: int | None = None
    """Positions of one window; all that the model has by default."""
    limit: int | None = None
    """Bytes of each text to read, in whole documents from its beginning; all by default."""

    def check(self) -> None:
        context_of(self.model, self.context)
        if self.limit is not None and self.limit < 1:
            raise UserError(f"a limit of {self.limit} bytes", cure="give at least 1, or leave it out for all")
        if not self.text:
            raise UserError("no text is given", cure="name one: --text.zh FILE")

    def run(self, work: Path) -> dict[str, object]:
        texts = {name: read_texts(path, self.limit) for name, path in self.text.items()}
        scorer = open_scorer(self.model, self.context)
        table, items = {}, {}
        for name, (read, complete) in texts.items():
            items[name] = score_texts(scorer, read, label=f"eval bits {name}")
            table[name] = summarise(items[name]) | {"complete": complete}
        settings = {"context": scorer.context, "limit_bytes": self.limit}
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


def score_texts(scorer: Scorer, texts: list[Text], label: str) -> list[Item]:
    """Score each document; neither BOS nor the end token is counted."""
    encoded = scorer.tokenizer.encode_batch([text.text for text in texts])
    before, unknown = first_token(scorer.tokenizer), unknown_id(scorer.tokenizer.fast)
    with Progress(label, total=sum(map(len, encoded)), unit="tokens") as bar:
        sequences = [[before, *ids] for ids in encoded]
        nats = score_sequences(
            scorer.body, scorer.head, sequences, context=scorer.context, on_scored=bar.advance
        )
    scorer.refuse_nonsense(nats)
    return [
        Item(text.place, len(text.text.encode("utf-8")), len(text.text), len(ids), ids.count(unknown), cost)
        for text, ids, cost in zip(texts, encoded, nats, strict=True)
    ]


def unknown_id(fast: FastTokenizer) -> int:
    """The id of text that the tokenizer cannot express, -1 if there is none.

    A text with such tokens looks cheaper than it is: its bits per byte are a lower bound.
    """
    token = getattr(fast.model, "unk_token", None)
    found = fast.token_to_id(token) if token else None
    return -1 if found is None else found


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
