"""The packing itself: files -> blocks -> workers -> shards, in order, with a journal to go on from.

Legend: D documents of a block, N tokens of all of them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType

import numpy as np

from yayan import lineage
from yayan.corpus.bad import Bad
from yayan.corpus.blocks import Block, Dropped, Job, Packed, pack_block, prepare
from yayan.corpus.counts import Counts, source_name, total
from yayan.corpus.earlier import Earlier
from yayan.corpus.journal import Journal, Place
from yayan.corpus.records import Record, Records, Split
from yayan.corpus.seen import Seen
from yayan.corpus.shards import DROPPED_NAME, ShardWriter, holds, open_at
from yayan.errors import UserError
from yayan.progress import Progress
from yayan.workers import ordered

BLOCK_BYTES = 1 << 20
BLOCK_RECORDS = 1 << 12


@dataclass(frozen=True, kw_only=True)
class Packing:
    """What is packed, and how."""

    files: Sequence[Path]
    job: Job
    split: Split
    size: int  # ids that the tokenizer has
    workers: int
    earlier: Earlier | None = None


def pack_files(work: Path, packing: Packing, about: Mapping[str, object]) -> tuple[list[Counts], int]:
    """Write shards of all files; returns the counts of each and the number of targets.

    What an interrupted call left in `work` is gone on with. `about`: goes into the index, before what is found here.
    Raises UserError for what cannot be read, for a file without any document, and if nothing is left to pack.
    """
    hashes = [lineage.sha256_of(path) for path in packing.files]
    with Journal(work) as journal, Writing(work, packing, hashes, journal) as writing:
        blocks = read_blocks(packing, hashes, writing.place)
        for packed in ordered(pack_block, blocks, packing.workers, prepare, (packing.job,)):
            writing.take(packed)
            if journal.due:
                writing.save()
        counts = writing.finish(about)
        journal.remove()
    return counts, writing.writer.written.targets


def read_blocks(packing: Packing, hashes: Sequence[str], place: Place) -> Iterator[Block]:
    """Blocks of all sources from a place on; the last block of each says so, and brings what broke in reading it."""
    for number in range(place.source, len(packing.files)):
        path = packing.files[number]
        if packing.earlier and hashes[number] in packing.earlier.spans:
            yield Block(number, path, position=path.stat().st_size, earlier=True, last=True)
            continue
        bad = Bad(packing.job.skip_bad)
        reading = Records(path, packing.split, bad, packing.job.field)
        found = islice(reading, place.records if number == place.source else 0, None)
        block, size = Block(number, path, bad=Bad(bad.skip)), 0
        for record in found:
            block.records.append(record)
            size += size_of(record)
            if size >= BLOCK_BYTES or len(block.records) == BLOCK_RECORDS:
                block.position = reading.position()
                yield block
                block, size = Block(number, path, bad=Bad(bad.skip)), 0
        yield Block(number, path, block.records, bad, path.stat().st_size, last=True)


def size_of(record: Record) -> int:
    """Bytes of a record, roughly where it is no line of a file."""
    return len(record.raw) if isinstance(record.raw, bytes) else len(str(record.raw))


class Writing:
    """The main process's part: what comes back from the workers is counted, compared and written, in order."""

    def __init__(self, work: Path, packing: Packing, hashes: Sequence[str], journal: Journal) -> None:
        self.packing, self.hashes, self.journal = packing, hashes, journal
        masked = packing.job.template is not None
        self.place, self.sources = journal.place(), journal.sources()
        if not holds(work, self.place.written, size=packing.size, masked=masked):
            journal.clear()
            self.place, self.sources = Place(), {}
        self.writer = ShardWriter(work, size=packing.size, masked=masked, written=self.place.written)
        self.cleaned = packing.job.cleans
        self.dropped = open_at(work / DROPPED_NAME, self.place.dropped_bytes) if self.cleaned else None
        self.seen = Seen(journal.database) if packing.job.duplicates else None
        # Bytes of the files before each, and at last of all
        self.before = np.cumsum([0, *(path.stat().st_size for path in packing.files)])
        self.bar = Progress("pack", total=self.before[-1] / 1e6, unit="MB")
        self.bar.resume(self._read_megabytes())
        self._changed: set[int] = set()

    def __enter__(self) -> "Writing":
        self.bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.__exit__(kind, error, trace)
        self.writer.__exit__(kind, error, trace)
        if self.dropped:
            self.dropped.close()

    def take(self, packed: Packed) -> None:
        """Write a block, without its duplicates."""
        number = packed.source
        path = self.packing.files[number]
        self._changed.add(number)
        if packed.earlier:
            self._copy(number)
        else:
            counts = self.sources.setdefault(number, Counts())
            self._write(packed, counts, self._without_duplicates(packed))
            counts.rewritten.add_all(packed.rewritten)
            counts.take_bad(packed.bad, path)
            for document in packed.dropped:
                self._drop(number, document)
        if packed.last and self.sources[number].empty:
            raise UserError("there is nothing to pack in this file", where=path, cure="leave it out")
        self.place.source = number + packed.last
        self.place.records = 0 if packed.last else self.place.records + packed.records
        self.place.position = 0 if packed.last else packed.position
        self.bar.note(f"{self.writer.written.documents:,} documents")
        self.bar.advance(self._read_megabytes() - self.bar.done)

    def _read_megabytes(self) -> float:
        """Of all files, as they lie on the disk."""
        return float(self.before[self.place.source] + self.place.position) / 1e6

    def _copy(self, number: int) -> None:
        assert self.packing.earlier is not None
        sha256 = self.hashes[number]
        self.sources[number] = self.packing.earlier.copy(sha256, self.writer)
        for entry in self.packing.earlier.dropped(sha256):
            self._list({**entry, "source": number})

    def _without_duplicates(self, packed: Packed) -> np.ndarray:
        """Which documents [D] stay: none that was seen before."""
        keep_D = np.ones(len(packed.lengths_D), bool)
        if self.seen is None:
            return keep_D
        keep_D &= ~np.array(self.seen.duplicates_exact(packed.exact_D), bool)
        reasons = np.where(keep_D, "", "it stands in the corpus already")
        if packed.near_D is not None:
            left_D = np.flatnonzero(keep_D)
            near = left_D[np.array(self.seen.duplicates_near(packed.near_D[left_D]), bool)]
            keep_D[near] = False
            reasons[near] = "it is much like one before"
        for d in np.flatnonzero(~keep_D):
            line, excerpt = packed.heads_D[d]
            packed.dropped.append(Dropped(line, "duplicates", str(reasons[d]), excerpt))
        return keep_D

    def _write(self, packed: Packed, counts: Counts, keep_D: np.ndarray) -> None:
        ids_N, mask_N, lengths_D = packed.ids_N, packed.mask_N, packed.lengths_D
        if not keep_D.all():
            keep_N = np.repeat(keep_D, lengths_D)
            ids_N, lengths_D = ids_N[keep_N], lengths_D[keep_D]
            mask_N = None if mask_N is None else mask_N[keep_N]
        self.writer.add_many(ids_N, lengths_D, mask_N)
        counts.documents += len(lengths_D)
        counts.tokens += len(ids_N)
        counts.characters += int(packed.characters_D[keep_D].sum())
        counts.bytes += int(packed.bytes_D[keep_D].sum())

    def _drop(self, number: int, document: Dropped) -> None:
        name = self.packing.files[number].name
        because = f"{document.because}, “{document.excerpt}”" if document.excerpt else document.because
        self.sources[number].dropped.add(document.by, f"{name}:{document.line}: {because}")
        entry = {"name": name, "line": document.line, "by": document.by}
        self._list({"source": number, **entry, "because": document.because, "text": document.excerpt})

    def _list(self, entry: dict[str, object]) -> None:
        if self.dropped:
            self.dropped.write((json.dumps(entry, ensure_ascii=False) + "\n").encode())

    def save(self) -> None:
        """Everything up to here is on the disk, and the journal knows."""
        self.writer.flush()
        if self.dropped:
            self.dropped.flush()
            self.place.dropped_bytes = self.dropped.tell()
        self.place.written = self.writer.written
        self.journal.save(self.place, {number: self.sources[number] for number in self._changed})
        self._changed.clear()

    def finish(self, about: Mapping[str, object]) -> list[Counts]:
        """Write the index; returns the counts of the sources."""
        counts = [self.sources[number] for number in range(len(self.packing.files))]
        whole = total(counts)
        if not whole.documents:
            cure = f"all {whole.dropped.total:,} were dropped, look at them"
            raise UserError("no document is left to pack", cure=cure)
        sources = [
            {"name": source_name(path), "sha256": sha256, **found.as_json()}
            for path, sha256, found in zip(self.packing.files, self.hashes, counts, strict=True)
        ]
        always = {"without_answer" if self.packing.job.template is not None else "blank": 0}
        self.writer.finish({**about, "sources": sources, "dropped": always | whole.dropped.counts})
        return counts
