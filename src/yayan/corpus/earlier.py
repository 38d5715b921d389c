"""Sources that an earlier packing holds already: the same file, packed in the same way, is copied."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from yayan.corpus.counts import Counts
from yayan.corpus.shards import DROPPED_NAME, Shards, ShardWriter
from yayan.errors import UserError

DOCUMENTS_AT_ONCE = 1 << 12


@dataclass(frozen=True)
class Span:
    """Where a source stands in the earlier shards."""

    number: int
    first_document: int
    first_token: int
    counts: Counts


@dataclass(frozen=True)
class Earlier:
    """An earlier packing of the same settings."""

    shards: Shards
    spans: dict[str, Span]  # by the hash of the file

    def copy(self, sha256: str, writer: ShardWriter) -> Counts:
        """Append a source to new shards; returns what it gave."""
        span = self.spans[sha256]
        token, last = span.first_token, span.first_document + span.counts.documents
        for start in range(span.first_document, last, DOCUMENTS_AT_ONCE):
            lengths_D = self.shards.lengths[start : min(start + DOCUMENTS_AT_ONCE, last)]
            end = token + int(lengths_D.sum())
            mask = self.shards.mask
            writer.add_many(self.shards.ids[token:end], lengths_D, None if mask is None else mask[token:end])
            token = end
        return span.counts

    def dropped(self, sha256: str) -> Iterator[dict]:
        """The entries of its dropped documents."""
        number = self.spans[sha256].number
        listed = self.shards.folder / DROPPED_NAME
        if self.spans[sha256].counts.dropped.total and listed.is_file():
            with listed.open(encoding="utf-8") as stream:
                yield from (entry for entry in map(json.loads, stream) if entry["source"] == number)


def find_earlier(folder: Path, settings: str) -> Earlier | None:
    """The shards of a folder, if they are whole and were packed with these settings (their hash)."""
    try:
        shards = Shards.open(folder)
    except UserError:
        return None
    if shards.index.get("settings") != settings:
        return None
    spans: dict[str, Span] = {}
    document = token = 0
    for number, entry in enumerate(shards.index["sources"]):
        counts = Counts.from_json(entry)
        spans.setdefault(entry["sha256"], Span(number, document, token, counts))
        document += counts.documents
        token += counts.tokens
    whole = document == len(shards.lengths) and token == int(np.sum(shards.lengths))
    return Earlier(shards, spans) if whole else None
