"""One type of a model's weights after the other on the same texts and questions; an interrupted run goes on behind
the last one that was finished.
"""

import json
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from yayan.evaluate.bits import Cost, Text, item_of, stride_of, summarise
from yayan.evaluate.divergence import Read, positions_kept, read_text, reference_file
from yayan.evaluate.divergence import summarise as summarise_divergence
from yayan.evaluate.letter_scores import accuracy, letter_scores
from yayan.evaluate.prompts import Prompt
from yayan.evaluate.readers import FolderReader, GgufReader
from yayan.evaluate.scorer import refuse_nonsense
from yayan.evaluate.timing import Question, lengthen, measure
from yayan.model.folder import INPUT_END
from yayan.model.load import Quantization
from yayan.model.score import Window, windows_of
from yayan.progress import Progress
from yayan.tokenizer import load_tokenizer
from yayan.weights.gguf_file import Importance, write_gguf
from yayan.weights.quantize import FileType
from yayan.weights.stream import open_tensors

Kind = Literal[FileType, Quantization]
REFERENCE: FileType = "F16"
IN_TORCH = get_args(Quantization)
PROMPT_TOKENS, ANSWER_TOKENS, REPEATS = 256, 32, 3  # of the speeds
SUMMARY = ("documents", "bytes", "tokens", "bits_per_byte", "interval", "perplexity_per_token")


@dataclass(frozen=True)
class Encoded:
    """A text ready to be read: its documents, their ids, their windows, and the position at which each begins."""

    texts: list[Text]
    ids: list[list[int]]
    windows: list[Window]
    starts: list[int]

    @property
    def positions(self) -> int:
        """Tokens of all documents."""
        return sum(map(len, self.ids))


def encode(model: Path, texts: dict[str, list[Text]], context: int) -> dict[str, Encoded]:
    """Cut texts with the tokenizer of a folder, once for all types: GGUF files of it cut them the same."""
    tokenizer, encoded = load_tokenizer(model), {}
    for name, read in texts.items():
        ids = tokenizer.encode_batch([text.text for text in read])
        windows = windows_of([[tokenizer.before, *own] for own in ids], context, stride_of(context, None))
        encoded[name] = Encoded(read, ids, windows, [0, *accumulate(map(len, ids))][:-1])
    return encoded


@dataclass(frozen=True)
class Bench:
    """All that every type is measured with; `work` is where files, references and finished rows lie."""

    work: Path
    model: Path
    context: int
    threads: int
    texts: dict[str, Encoded]
    prompts: list[Prompt]
    importance: Importance | None
    keep: bool

    def row(self, kind: Kind) -> dict[str, Any]:
        """The figures of a type, from an earlier, interrupted run if it had them. F16 must come first."""
        saved = self.work / "rows" / f"{kind}.json"
        if not saved.is_file():
            row = self.measure(kind)
            saved.parent.mkdir(exist_ok=True)
            draft = saved.with_suffix(".part")
            draft.write_text(json.dumps(row), encoding="utf-8")
            draft.replace(saved)
            if not self.keep:
                self.file(kind).unlink(missing_ok=True)
        return json.loads(saved.read_text(encoding="utf-8"))

    def measure(self, kind: Kind) -> dict[str, Any]:
        reader, size = self.open(kind)
        row: dict[str, Any] = {"engine": reader.engine, **size}
        total = sum(text.positions for text in self.texts.values())
        with Progress(f"eval quant {kind}", total=total, unit="tokens") as bar:
            row["texts"] = {name: self.measure_text(reader, kind, name, bar) for name in self.texts}
        if self.prompts:
            with Progress(f"eval quant {kind}", total=len(self.prompts), unit="questions") as bar:
                row["choices"] = accuracy(self.prompts, letter_scores(reader, self.prompts, bar.advance))
        del reader
        return row | {"threads": self.threads} | measure(self.question(kind)).row()

    def file(self, kind: Kind) -> Path:
        return self.work / f"model-{kind}.gguf"

    def open(self, kind: Kind) -> tuple[FolderReader | GgufReader, dict[str, Any]]:
        """A type made and opened, and how large it is."""
        if kind == "int8" or kind == "nf4":
            reader = FolderReader(self.model, kind)
            weights = sum(spec.elements for spec in open_tensors(self.model).specs.values())
            return reader, {"bytes": reader.bytes, "bits_per_weight": round(8 * reader.bytes / weights, 3)}
        size = write_gguf(self.model, self.file(kind), kind, self.importance)
        return GgufReader(self.file(kind), self.threads), size

    def measure_text(
        self, reader: FolderReader | GgufReader, kind: Kind, name: str, bar: Progress
    ) -> dict[str, Any]:
        text, is_reference = self.texts[name], kind == REFERENCE
        reference_KV = self.reference(name, new=is_reference)
        read = read_text(
            reader, text.windows, text.starts, reference_KV, keep=is_reference, on_read=bar.advance
        )
        items = [
            item_of(t, cost, reader.unknown) for t, cost in zip(text.texts, costs_of(text, read), strict=True)
        ]
        refuse_nonsense((item.nats for item in items), self.model)
        figures = summarise(items)
        found: dict[str, Any] = {name: figures[name] for name in SUMMARY}
        found |= {"positions_compared": len(reference_KV), "items": list(map(asdict, items))}
        return found | summarise_divergence(read, text.starts, list(map(len, text.ids)))

    def reference(self, name: str, *, new: bool) -> np.ndarray:
        """The logits of F16 at the positions of a text that are compared, as many as the disk has room for."""
        path = self.work / f"reference-{list(self.texts).index(name)}.f32"
        rows = open_tensors(self.model).shape(INPUT_END)[0]
        if not new:
            return reference_file(path, path.stat().st_size // (4 * rows), rows, new=False)
        path.unlink(missing_ok=True)
        share = positions_kept([text.positions for text in self.texts.values()], rows, self.work)
        return reference_file(path, share[list(self.texts).index(name)], rows, new=True)

    def question(self, kind: Kind) -> Question:
        """What its speed is asked with: the beginning of the first text."""
        ids = lengthen(next(iter(self.texts.values())).ids, min(PROMPT_TOKENS, self.context - ANSWER_TOKENS))
        if kind == "int8" or kind == "nf4":
            return Question(self.model, kind, self.threads, ids, ANSWER_TOKENS, REPEATS)
        return Question(self.file(kind), "llama.cpp", self.threads, ids, ANSWER_TOKENS, REPEATS)

    def clean(self) -> None:
        """Take away what only the work needed."""
        for path in [*self.work.glob("reference-*.f32"), *self.work.glob("rows/*")]:
            path.unlink()
        (self.work / "rows").rmdir()


def costs_of(text: Encoded, read: Read) -> list[Cost]:
    return [
        Cost(ids, read.nats_N[start : start + len(ids)])
        for ids, start in zip(text.ids, text.starts, strict=True)
    ]
