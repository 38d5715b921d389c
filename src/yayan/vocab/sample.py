"""Parts of documents from all over a corpus, kept while it is read."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

SAMPLE_CHARACTERS = 1_000_000
DOCUMENT_CHARACTERS = SAMPLE_CHARACTERS // 100
HELD_OUT = 50  # one document in so many


@dataclass
class Sample:
    """The beginnings of every n-th document. With `held_out` those documents are kept from the reader of the corpus."""

    held_out: bool = False
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
        self.texts.append(text[:DOCUMENT_CHARACTERS])
        self._kept += len(self.texts[-1])
        if self._kept > SAMPLE_CHARACTERS:
            self.texts, self._stride = self.texts[::2], self._stride * 2
            self._kept = sum(map(len, self.texts))
