"""Tokenizers times texts: how finely they cut, what they cannot say, and which of their ids no text produces."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from yayan import lineage
from yayan.corpus.bad import Bad
from yayan.corpus.files import text_files
from yayan.corpus.read import Document, documents
from yayan.errors import UserError
from yayan.evaluate import cuts
from yayan.evaluate.dead import Census, take_census
from yayan.evaluate.encoders import Encoder, open_tokenizer
from yayan.evaluate.page import markdown_table
from yayan.evaluate.results import Protocol, write_results
from yayan.pictures import standalone
from yayan.progress import Progress
from yayan.stage import InputPath, Stage

PROTOCOL = Protocol("tokens", "plain-text", 1)
BATCH_CHARACTERS = 1 << 18
FIRST_FAILURES = 5


@dataclass(frozen=True, kw_only=True)
class EvalTokens(Stage):
    """How tokenizers cut texts: tokens per character, bytes per token, round trip, and ids that no text produces.

    Each document is encoded alone as plain text, without BOS or EOS. OUT/tokens.md holds the tables, OUT/tokens.svg
    the picture, OUT/results.json every dead id.
    """

    tokenizer: dict[str, InputPath]
    """By name: --tokenizer.base DIR (a model or tokenizer folder, a tokenizer.json, or a SentencePiece .model)."""
    text: dict[str, InputPath]
    """By name: --text.zh FILE --text.en FILE (txt or jsonl, compressed or not, or folders)."""
    limit: int | None = None
    """Bytes of each text to read, in whole documents from its beginning; all by default."""
    skip_bad: bool = False
    """Leave out broken lines of a text, and count them, instead of stopping there."""

    def check(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UserError(f"a limit of {self.limit} bytes", cure="give at least 1, or leave it out for all")
        if not self.tokenizer:
            raise UserError("no tokenizer is given", cure="name one: --tokenizer.base DIR")
        if not self.text:
            raise UserError("no text is given", cure="name one: --text.zh FILE")
        for path in self.tokenizer.values():
            open_tokenizer(path)
        for path in self.text.values():
            text_files([path])

    def run(self, work: Path) -> dict[str, object]:
        encoders = {name: open_tokenizer(path) for name, path in self.tokenizer.items()}
        with Progress("eval tokens: dead ids", unit="texts") as bar:
            censuses = {name: take_census(encoder, bar.advance) for name, encoder in encoders.items()}
        texts = {
            name: measure_text(path, encoders, self.limit, Bad(skip=self.skip_bad), f"eval tokens {name}")
            for name, path in self.text.items()
        }
        kept = {name: describe(encoders[name], census) for name, census in censuses.items()}
        metrics: dict[str, object] = {"limit_bytes": self.limit, "tokenizers": kept, "texts": texts}
        full = {
            name: lineage.by_content(self.tokenizer[name])
            | row
            | {"dead": list_ids(encoders[name], censuses[name])}
            for name, row in kept.items()
        }
        write_results(work, PROTOCOL, None, metrics | {"tokenizers": full})
        tables = [markdown_table(table) for table in cuts.tables(metrics)]
        (work / "tokens.md").write_text("\n\n".join(tables) + "\n", encoding="utf-8")
        (work / "tokens.svg").write_text(standalone(cuts.picture(metrics)), encoding="utf-8")
        return metrics

    def tell(self, record: dict) -> None:
        for table in cuts.tables(record["metrics"]):
            cuts.show(table)


@dataclass
class Size:
    """What was read of a text; `complete` is False where the limit stopped it."""

    documents: int = 0
    characters: int = 0
    bytes: int = 0
    complete: bool = True


def batches(path: Path, limit_bytes: int | None, bad: Bad, size: Size) -> Iterator[list[Document]]:
    """Whole documents from the beginning of a corpus, as many as `limit_bytes` holds but at least one, empty ones
    left out; `size` counts them.
    """
    batch: list[Document] = []
    held = 0
    for document in documents([path], bad=bad):
        if not document.text:
            continue
        length = len(document.text.encode("utf-8"))
        if limit_bytes is not None and size.documents and size.bytes + length > limit_bytes:
            size.complete = False
            break
        size.documents += 1
        size.characters += len(document.text)
        size.bytes += length
        batch.append(document)
        held += len(document.text)
        if held >= BATCH_CHARACTERS:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


class Cut:
    """What one tokenizer makes of one text, counted up batch by batch."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        tokens = encoder.tokens
        self.is_partial_V = np.array([token is not None and token.text is None for token in tokens])
        self.is_unknown_V = np.array([token is not None and token.kind == "unknown" for token in tokens])
        self.tokens = self.partial = self.unknown = self.failures = 0
        self.first_failures: list[str] = []

    def add(self, batch: Sequence[Document]) -> None:
        ids = self.encoder.encode_batch([document.text for document in batch])
        ids_T = np.fromiter(itertools.chain.from_iterable(ids), dtype=np.int64)
        self.tokens += len(ids_T)
        self.partial += int(self.is_partial_V[ids_T].sum())
        self.unknown += int(self.is_unknown_V[ids_T].sum())
        for document, text in zip(batch, self.encoder.decode_batch(ids), strict=True):
            if text != document.text:
                self.failures += 1
                if len(self.first_failures) < FIRST_FAILURES:
                    self.first_failures.append(f"{document.source.name}:{document.line}")

    def figures(self, size: Size) -> dict[str, object]:
        """`byte_fallback_share`: of all tokens, those that are only a part of a character."""
        some = max(self.tokens, 1)
        return {
            "tokens": self.tokens,
            "tokens_per_character": self.tokens / size.characters,
            "bytes_per_token": size.bytes / some,
            "partial_tokens": self.partial,
            "byte_fallback_share": self.partial / some,
            "unknown_tokens": self.unknown,
            "round_trip_failures": self.failures,
            "first_failures": self.first_failures,
        }


def measure_text(
    path: Path, encoders: dict[str, Encoder], limit_bytes: int | None, bad: Bad, label: str
) -> dict[str, object]:
    """One pass over a text with all tokenizers -> its size, the lines left out, and the figures of each tokenizer."""
    size, found = Size(), {name: Cut(encoder) for name, encoder in encoders.items()}
    done = 0
    with Progress(label, unit="MB") as bar:
        for batch in batches(path, limit_bytes, bad, size):
            for cut in found.values():
                cut.add(batch)
            bar.advance((size.bytes - done) / 1e6)
            done = size.bytes
    if not size.documents:
        raise UserError("no document in it holds text", where=path, cure="give another")
    rows = {name: cut.figures(size) for name, cut in found.items()}
    return vars(size) | {"skipped": bad.figures(), "tokenizers": rows}


def describe(encoder: Encoder, census: Census) -> dict[str, object]:
    return {
        "kind": encoder.kind,
        "ids": census.ids,
        "special_ids": census.special,
        "unreachable_bytes": len(census.unreachable_bytes),
        "dead_ids": len(census.dead),
    }


def list_ids(encoder: Encoder, census: Census) -> list[dict[str, object]]:
    """The dead ids with their pieces."""
    tokens = ((number, encoder.tokens[number]) for number in census.dead)
    return [{"id": number, "piece": token.piece} for number, token in tokens if token]
