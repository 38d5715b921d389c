"""`yayan vocab`: continue a base tokenizer's merges into other scripts, or begin a tokenizer from nothing."""

import dataclasses
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from yayan.corpus.bad import Bad
from yayan.corpus.files import text_files
from yayan.corpus.read import documents
from yayan.errors import UserError
from yayan.inputs import sample_path
from yayan.stage import InputPath, Stage
from yayan.tokenizer import load_tokenizer
from yayan.vocab.base import Base
from yayan.vocab.bases import open_base
from yayan.vocab.begin import BYTES_AND_SPECIALS, begin
from yayan.vocab.continuation import Guard, Rules, candidates_of, choose
from yayan.vocab.count import (
    FORCED,
    UNIT,
    Parts,
    Source,
    count_source,
    trim_sources,
    weigh_runs,
    weigh_sources,
)
from yayan.vocab.curve import draw_curve, shape_of, tell_curve
from yayan.vocab.describe import describe, figures_of, prove, tell, write_witnesses
from yayan.vocab.extend import write_tokenizer
from yayan.vocab.sample import Sample
from yayan.vocab.scripts import Script, Wanted

LONGEST_CONTINUED, LONGEST_NEW = 8, 16
LARGEST_SIZE, LARGEST_LENGTH = 1 << 20, 1000  # beyond any tokenizer in use
RESERVE = 1.02  # candidates for each new token: a few cannot be produced
ENGLISH = Path("sample:en-train.jsonl")


@dataclass(frozen=True, kw_only=True)
class Vocab(Stage):
    """Learn a vocabulary: continue a base tokenizer into other scripts, or begin one from nothing."""

    base: InputPath | None = None
    """Tokenizer or model folder (or one file of a tokenizer) to continue; without it a new tokenizer is learnt."""
    corpus: list[InputPath]
    """Files or folders of documents to learn from; each is a source with a share of its own."""
    field: str | None = None
    """Name of the text in a .jsonl object."""
    size: int
    """Ids of the finished tokenizer, those of the base included (with --curve: the largest that is looked at)."""
    scripts: list[Script] = dataclasses.field(default_factory=lambda: ["han"])
    """Scripts to add to a base."""
    longest: int | None = None
    """Longest new piece in characters (8 with a base, 16 without)."""
    smallest_count: int = 2
    """How often the corpus must hold what becomes a new word (with a base; characters need only occur)."""
    weights: list[float] | None = None
    """Share of each source, in their order, instead of --temperature."""
    temperature: float = 2.0
    """Sources count as their size to the power of 1 / temperature: 1 leaves them as they are, more evens them out."""
    include: InputPath | None = None
    """Text file of words, one a line, that must become pieces of a base, with the space before them, too."""
    exclude: InputPath | None = None
    """Text file of words, one a line, that must not become pieces of a base, with a space before or without."""
    split_digits: bool = True
    """Make each digit a token of its own in a new tokenizer (what is added to a base joins none)."""
    base_text: list[InputPath] | None = None
    """Documents in the base's own language that must keep their ids (the sample's English by default)."""
    most_changed: float = 0.01
    """Largest share of those documents' tokens that may change."""
    curve: bool = False
    """Draw what each size costs and gives, and recommend one, instead of writing a tokenizer."""
    skip_bad: bool = False
    """Leave out lines that cannot be read, and count them."""

    def check(self) -> None:
        self._refuse_numbers()
        text_files(self.corpus)
        if self.base_text:
            text_files(self.base_text)
        if self.base is None:
            self._refuse_without_base()
            taken = BYTES_AND_SPECIALS
        else:
            base = open_base(self.base)
            taken = base.taken
            self._rules(base)
            if self.curve:
                shape_of(self.base)
        if self.size <= taken:
            what = f"size is {self.size}, but {taken} ids are taken before the first new piece"
            raise UserError(what, where=self.base, cure="ask for more")

    def run(self, work: Path) -> dict[str, object]:
        bad, sample = Bad(self.skip_bad), Sample(held_out=self.curve)
        texts = [sample.watch(self._texts([path], bad)) for path in self.corpus]
        if self.base is None:
            proto = begin(
                (text for source in texts for text in source),
                self.size,
                self.longest or LONGEST_NEW,
                split_digits=self.split_digits,
            )
            write_tokenizer(work, proto)
            metrics = self._finish(work, None, sample, {}, ())
        else:
            metrics = self._continue(work, open_base(self.base), texts, sample)
        return {"asked_size": self.size, **metrics, "left_out": bad.figures()}

    def tell(self, record: dict) -> None:
        (tell_curve if self.curve else tell)(record["metrics"])

    def _continue(
        self, work: Path, base: Base, texts: list[Iterator[str]], sample: Sample
    ) -> dict[str, object]:
        rules = self._rules(base)
        sources = [count_source(source, rules.wanted) for source in texts]
        trim_sources(sources)
        parts, shares = self._weigh(sources, rules.wanted)
        count = self.size - base.taken
        candidates = candidates_of(base, parts, rules, round(count * RESERVE) + 32)
        del parts
        if not candidates:
            what = "the corpus holds nothing that could become a new token"
            raise UserError(what, cure="give more texts of the wanted scripts")
        if self.curve:
            names = [candidate.name for candidate in candidates[:count]]
            return draw_curve(work, base, names, sample.texts, shape_of(self.base))
        guard = self._guard()
        chosen = choose(base, candidates, count, guard)
        base.write(work, list(chosen))
        write_witnesses(work, list(chosen.values()))
        metrics = self._finish(work, base, sample, chosen, guard.texts)
        metrics["words_left_out"] = self._left_out(base, chosen)
        return metrics | {"sources": figures_of(sources, shares, self.corpus)}

    def _finish(
        self,
        work: Path,
        base: Base | None,
        sample: Sample,
        chosen: Mapping[str, str],
        own_language: Sequence[str],
    ) -> dict[str, object]:
        metrics = describe(work, base, sample, chosen)
        proofs = prove(work, base, sample, chosen, own_language)
        size = load_tokenizer(work).size
        if size < self.size:
            what = f"the corpus holds enough for {size:,} ids, not for {self.size:,}"
            print(f"  vocab: {what}: the tokenizer is smaller than asked", file=sys.stderr)
        return metrics | {"proofs": proofs}

    def _left_out(self, base: Base, chosen: Mapping[str, str]) -> list[str]:
        """Words that must become pieces and did not: there were too few rows, or no text gives them."""
        there = set(map(base.text_of, [*base.plain.get_vocab(with_added_tokens=True), *chosen]))
        missing = [word for word in read_words(self.include) if word not in there]
        if missing:
            what = f"{len(missing)} words of {self.include} became no pieces, such as {missing[0]}"
            print(f"  vocab: {what}: ask for a larger size", file=sys.stderr)
        return missing

    def _texts(self, paths: list[Path], bad: Bad) -> Iterator[str]:
        return (document.text for document in documents(paths, self.field, bad))

    def _guard(self) -> Guard:
        paths = self.base_text or [sample_path(ENGLISH)]
        return Guard([document.text for document in documents(paths, self.field)], self.most_changed)

    def _weigh(self, sources: list[Source], wanted: Wanted) -> tuple[Parts, list[float]]:
        """All runs with their weights; words that must become pieces come first and weigh most."""
        factors = weigh_sources(sources, self.weights, self.temperature)
        parts = [(source.runs, weigh_runs(source, f)) for source, f in zip(sources, factors, strict=True)]
        total = sum(source.characters for source in sources)
        shares = [source.characters * f / total for source, f in zip(sources, factors, strict=True)]
        words = read_words(self.include)
        spaced = [f" {word}" for word in words if wanted.is_part_of_run(f" {word}")]
        runs = [*words, *spaced]
        forced = [("\n".join(runs), np.full(len(runs), FORCED, np.int32))] if runs else []
        return [*forced, *parts], shares

    def _rules(self, base: Base) -> Rules:
        wanted = Wanted(tuple(dict.fromkeys(self.scripts)))
        longest = self.longest or LONGEST_CONTINUED
        for word in read_words(self.include):
            if len(word) > longest or not (wanted.is_part_of_run(word) and wanted.holds_own(word)):
                what = f"{word} is no word of {' or '.join(wanted.scripts)} of at most {longest} characters"
                raise UserError(what, where=self.include, cure="remove it, or change --scripts or --longest")
        return Rules(wanted, longest, self.smallest_count * UNIT, frozenset(read_words(self.exclude)))

    def _refuse_numbers(self) -> None:
        for name, value, least, most in (
            ("longest", self.longest, 2, LARGEST_LENGTH),
            ("smallest_count", self.smallest_count, 1, None),
            ("size", self.size, 1, LARGEST_SIZE),
            ("temperature", self.temperature, 1, None),
            ("most_changed", self.most_changed, 0, 1),
        ):
            if value is not None and not value >= least:  # NaN is not, either
                raise UserError(f"{name} is {value}", cure=f"ask for {least} or more")
            if value is not None and most is not None and value > most:
                raise UserError(f"{name} is {value}", cure=f"ask for {most} or less")
        if self.weights is not None and len(self.weights) != len(self.corpus):
            what = f"there are {len(self.weights)} weights for {len(self.corpus)} sources"
            raise UserError(what, where="weights", cure="give one for each entry of --corpus")
        for weight in self.weights or ():
            if not 0 <= weight < math.inf:
                raise UserError(f"a weight is {weight}", where="weights", cure="ask for 0 or more")
        if not self.scripts:
            raise UserError("no script is named", where="scripts", cure="name at least one")

    def _refuse_without_base(self) -> None:
        """Options that say how a base is continued mean nothing without one."""
        given = {
            "scripts": self.scripts != ["han"],
            "weights": self.weights is not None,
            "temperature": self.temperature != Vocab.temperature,
            "include": self.include is not None,
            "exclude": self.exclude is not None,
            "base_text": self.base_text is not None,
            "curve": self.curve,
        }
        for name, there in given.items():
            if there:
                raise UserError(
                    f"{name} needs a base to continue", where=name, cure="name a --base, or leave it out"
                )


def read_words(path: Path | None) -> list[str]:
    """Words of a text file, one a line, each once."""
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"this is no text file in UTF-8, {error}", where=path, cure="give one word a line"
        ) from error
    return list(dict.fromkeys(word for line in lines if (word := line.strip())))
