"""Texts of several corpora in one fixed order, as many bytes as are wanted."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from yayan.corpus.read import documents


def mixture_of(paths: Sequence[Path]) -> Iterator[str]:
    """Texts of several files: the next one always of the file that has given the fewest bytes."""
    sources = {path: (document.text for document in documents([path])) for path in paths}
    given = dict.fromkeys(sources, 0)
    while sources:
        path = min(sources, key=lambda path: given[path])
        text = next(sources[path], None)
        if text is None:
            del sources[path]
        elif text.strip():
            given[path] += len(text.encode())
            yield text


def take(texts: Iterator[str], size_bytes: int) -> Iterator[str]:
    """Texts of just so many bytes together (a few less where a character would be cut): the last is cut short."""
    left = size_bytes
    while left > 0:
        raw = next(texts, "").encode()
        if not raw:
            sys.exit(f"the corpora end {left:,} bytes too early: ask for fewer bytes")
        text = raw[:left].decode(errors="ignore")
        if text.strip():
            yield text
        left -= len(raw)


def write_texts(path: Path, texts: Iterator[str]) -> None:
    lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
    path.write_text("".join(lines), encoding="utf-8")
