"""What a corpus holds of the wanted scripts: each different run once, with what it counts.

Memory is that of the different runs, not of the corpus: past a limit the rarest are forgotten (lossy counting, Manku
and Motwani 2002), which a vocabulary does not notice, and which is said.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yayan.errors import UserError
from yayan.progress import Progress
from yayan.vocab.scripts import Wanted

UNIT = (
    64  # a run that was seen once weighs this much before its source is weighted: weights are whole numbers
)
HEAVIEST = (1 << 30) - 1
FORCED = 1 << 30  # what a word weighs that must become a piece: more than any that was counted
LINE_BREAK = 0x0A
MOST_RUNS = 4_000_000  # different ones of one source; about 600 MB as Python's strings
MOST_CHARACTERS = 64_000_000  # of all different runs together: about 3 GB while they are joined

Parts = Sequence[tuple[str, NDArray[np.int32]]]
"""Runs joined by line breaks, and what each of them weighs."""


@dataclass
class Source:
    """One corpus: its runs, each once, behind each other with a line break between, and how often each was seen."""

    runs: str
    counts: NDArray[np.int64]
    characters: int
    """All that stand in its runs."""
    forgotten: int
    """How often a rare run was dropped."""


def count_source(texts: Iterable[str], wanted: Wanted) -> Source:
    """Count the runs and marks of one corpus."""
    counts: Counter[str] = Counter()
    find, forgotten = wanted.parts.findall, 0
    with Progress("count runs", unit="docs") as bar:
        for text in texts:
            counts.update(find(text))
            if len(counts) > MOST_RUNS:
                before = len(counts)
                counts = forget_rarest(counts)
                forgotten += before - len(counts)
            bar.advance()
    numbers = np.fromiter(counts.values(), np.int64, len(counts))
    lengths = np.fromiter(map(len, counts), np.int64, len(counts))
    return Source("\n".join(counts), numbers, int(numbers @ lengths), forgotten)


def forget_rarest(counts: Counter[str]) -> Counter[str]:
    """At most half of MOST_RUNS: without those seen once, then twice, ... as often as is needed."""
    rare = 0
    while len(counts) > MOST_RUNS // 2:
        rare += 1
        counts = Counter({run: count for run, count in counts.items() if count > rare})
    return counts


def trim_sources(sources: Sequence[Source], most_characters: int = MOST_CHARACTERS) -> None:
    """Drop the rarest runs of the source that holds most, again and again, until all hold no more than the limit."""
    while sum(len(source.runs) for source in sources) > most_characters:
        source = max(sources, key=lambda source: len(source.runs))
        kept = source.counts > source.counts.min()
        runs = [run for run, keep in zip(source.runs.split("\n"), kept, strict=True) if keep]
        source.forgotten += len(kept) - len(runs)
        source.runs, source.counts = "\n".join(runs), source.counts[kept]


def weigh_sources(
    sources: Sequence[Source], weights: Sequence[float] | None, temperature: float
) -> list[float]:
    """What a run of each source counts; over all characters the mean is 1.

    With `weights`, a source's share of the whole is as its weight. Without, it is as its size to the power of
    1 / temperature (Arivazhagan et al. 2019): 1 leaves the sources as they are, more brings them nearer to each other.
    Raises UserError if no source holds a run.
    """
    sizes = np.array([source.characters for source in sources], np.float64)
    if not sizes.sum():
        raise UserError("the corpus has no character of the wanted scripts", cure="give texts that hold some")
    shares = np.array(weights, np.float64) if weights else sizes ** (1 / temperature)
    shares = np.where(sizes > 0, shares, 0)
    if not shares.sum():
        raise UserError(
            "only sources of weight 0 hold the wanted scripts", where="weights", cure="weigh them"
        )
    return list(shares / shares.sum() * sizes.sum() / np.maximum(sizes, 1))


def weigh_runs(source: Source, weight: float) -> NDArray[np.int32]:
    """Each run's count times the weight of its source, in units, at least 1 if the source counts at all."""
    if not weight:
        return np.zeros(len(source.counts), np.int32)
    return np.clip(np.rint(source.counts * (weight * UNIT)), 1, HEAVIEST).astype(np.int32)


def character_weights(parts: Parts) -> dict[str, int]:
    """What each character weighs in all runs."""
    total = np.zeros(0x110000)
    for runs, weights in parts:
        codes = np.frombuffer(runs.encode("utf-32-le"), np.uint32)
        breaks = codes == LINE_BREAK
        run = np.cumsum(breaks, dtype=np.int32)
        run -= breaks  # a break belongs to the run before it
        total += np.bincount(codes, weights=weights[run], minlength=len(total))
    total[LINE_BREAK] = 0
    return {chr(code): int(total[code]) for code in np.flatnonzero(total)}
