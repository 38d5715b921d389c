"""Parts of documents from all over a corpus, kept while it is read."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

SAMPLE_CHARACTERS = 1_000_000
LONGEST_SHARE = 100  # no document is more than a hundredth of a sample
HELD_OUT = 50  # one document in so many


@dataclass
class Sample:
    """The beginnings of every n-th document, of at most about `most_characters` together.

    n is 1 at first and doubles whenever the sample is full. With `held_out` one document in 50 is sampled, and kept
    from the reader of the corpus.
    """

    held_out: bool = False
    most_characters: int = SAMPLE_CHARACTERS
    texts: list[str] = field(default_factory=list)
    documents: int = 0
    characters: int = 0
    _stride: int = 1
    _kept: int = 0

    def watch(self, texts: Iterable[str]) -> Iterator[str]:
        """Hand on the documents of a corpus, and keep some."""
        for text in texts:
            number = self.documents
            self.documents += 1
            self.characters += len(text)
            if not self.held_out:
                self._keep(number, text)
            elif number % HELD_OUT == HELD_OUT - 1:
                self._keep(number // HELD_OUT, text)
                continue
            yield text

    def _keep(self, number: int, text: str) -> None:
        """Keep the n-th of the documents that may be kept, if it is one of those that are."""
        if number % self._stride:
            return
        self.texts.append(text[: self.most_characters // LONGEST_SHARE])
        self._kept += len(self.texts[-1])
        while self._kept > self.most_characters:
            self.texts, self._stride = self.texts[::2], self._stride * 2
            self._kept = sum(map(len, self.texts))
