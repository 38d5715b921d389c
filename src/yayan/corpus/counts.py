"""What a source of a corpus gave, lost and had rewritten: counted while it is packed, added up for the report."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from yayan.corpus.bad import SHOWN_PLACES, Bad

SHOWN_EXAMPLES = 3
SIZES = ("documents", "characters", "bytes", "tokens")


def source_name(path: Path) -> str:
    """What a source is called in the index and the report: its file and folder, nothing of where they lie."""
    return "/".join(path.parts[-2:])


@dataclass
class Tally:
    """Documents by the name of what happened to them, with the first few examples of each."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def add(self, name: str, example: str | None = None, count: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + count
        if example is not None and len(shown := self.examples.setdefault(name, [])) < SHOWN_EXAMPLES:
            shown.append(example)

    def add_all(self, other: "Tally") -> None:
        for name, count in other.counts.items():
            self.add(name, count=count)
            for example in other.examples.get(name, []):
                self.add(name, example, count=0)


@dataclass
class Counts:
    """A source, or several together. `characters` and `bytes` (UTF-8) are of the texts that were packed."""

    documents: int = 0
    characters: int = 0
    bytes: int = 0
    tokens: int = 0
    dropped: Tally = field(default_factory=Tally)
    rewritten: Tally = field(default_factory=Tally)
    bad: dict[str, int] = field(default_factory=dict)  # records that could not be read, by reason
    bad_places: list[str] = field(default_factory=list)

    @property
    def read(self) -> int:
        """Documents that came in: those that were packed and those that were dropped."""
        return self.documents + self.dropped.total

    @property
    def empty(self) -> bool:
        return not self.read and not self.bad

    def take_bad(self, bad: Bad, path: Path) -> None:
        """Count what could not be read; its places are named without the folder."""
        self.bad = dict(Counter(self.bad) + bad.reasons)
        places = [path.name + place.removeprefix(str(path)) for place in bad.places]
        self.bad_places = [*self.bad_places, *places][:SHOWN_PLACES]

    def add(self, other: "Counts") -> None:
        for name in SIZES:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.dropped.add_all(other.dropped)
        self.rewritten.add_all(other.rewritten)
        self.bad = dict(Counter(self.bad) + Counter(other.bad))
        self.bad_places = [*self.bad_places, *other.bad_places][:SHOWN_PLACES]

    def figures(self) -> dict[str, Any]:
        """The sizes, for the metrics."""
        ratio = round(self.tokens / max(self.characters, 1), 4)
        return {name: getattr(self, name) for name in SIZES} | {"tokens_per_character": ratio}

    def as_json(self) -> dict[str, Any]:
        """Everything, as it stands in the index and the journal."""
        return self.figures() | {name: value for name, value in asdict(self).items() if name not in SIZES}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Counts":
        """What `as_json` made, with other keys beside it."""
        own = {name: values[name] for name in (*SIZES, "bad", "bad_places")}
        return cls(**own, dropped=Tally(**values["dropped"]), rewritten=Tally(**values["rewritten"]))


def total(counts: Iterable[Counts]) -> Counts:
    """All sources together."""
    whole = Counts()
    for item in counts:
        whole.add(item)
    return whole
