"""The verb `eval quant`: what quantising costs and saves."""

import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yayan.engine.choose import positions_of
from yayan.engine.llama_c import all_threads
from yayan.errors import UserError, refuse_less_than_one
from yayan.evaluate.bench import ANSWER_TOKENS, IN_TORCH, REFERENCE, Bench, Kind, encode
from yayan.evaluate.benchmarks import CEVAL
from yayan.evaluate.bits import read_texts
from yayan.evaluate.cuts import show
from yayan.evaluate.languages import listed, say, titles
from yayan.evaluate.letter_scores import letter_prompts
from yayan.evaluate.page import Table, markdown_table
from yayan.evaluate.questions import read_subjects
from yayan.evaluate.results import Protocol, write_results
from yayan.evaluate.timing import warn_if_busy
from yayan.evaluate.words import megabytes, percent, two
from yayan.stage import InputPath, Stage
from yayan.weights.gguf_plan import plan_file
from yayan.weights.importance import importance_of

PROTOCOL = Protocol("quant", "against-f16", 1)
USUAL: tuple[Kind, ...] = (
    "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K", "int8", "nf4"
)  # fmt: skip
CALIBRATION_TOKENS = 50_000


@dataclass(frozen=True, kw_only=True)
class EvalQuant(Stage):
    """What quantising costs and saves: each type of the weights beside F16, on the same texts.

    Size, bits per byte, Kullback-Leibler divergence from F16, agreement on the likeliest token, accuracy, speed. GGUF
    types are computed by llama.cpp, their cache in float32; int8 and nf4 by `transformers` with bitsandbytes.
    OUT/quant.md holds the table.
    """

    model: InputPath
    """Model folder."""
    text: dict[str, InputPath]
    """Held-out documents by name: --text.zh FILE --text.en FILE (txt or jsonl, compressed or not, or folders)."""
    types: list[Kind] = field(default_factory=lambda: list(USUAL))
    """Types of the weights; F16 is always among them. int8 and nf4 need `pip install yayan[quant]`."""
    calibration: InputPath | None = None
    """Text that shows which columns of a matrix count (an importance matrix), as in `gguf`."""
    context: int | None = None
    """Positions of one window; all that the model has by default."""
    limit: int = 100_000
    """Bytes of each text to read, in whole documents from its beginning."""
    choices: InputPath | None = None
    """Four-choice questions, in the forms of `eval ceval`; none by default."""
    shots: int = 5
    """Worked examples before each question."""
    subjects: list[str] = field(default_factory=list)
    """Subjects to ask; all by default."""
    threads: int | None = None
    """Threads; all cores by default."""
    keep: bool = False
    """Leave the GGUF files in OUT."""

    def check(self) -> None:
        if not self.types or len(set(self.types)) < len(self.types):
            raise UserError("each type must be named once", where="types", cure="Q8_0 Q4_K_M, for example")
        refuse_less_than_one(limit=self.limit, threads=self.threads)
        if not self.text:
            raise UserError("no text is given", cure="name one: --text.zh FILE")
        if self.model.is_file():
            raise UserError("this is a file", where=self.model, cure="name the folder that it was made from")
        context = positions_of(self.model, self.context)
        if context <= ANSWER_TOKENS:
            what = f"a context of {context}"
            raise UserError(what, where=self.model, cure=f"more than {ANSWER_TOKENS} are needed")
        for kind in self.kinds():
            if kind not in IN_TORCH:
                plan_file(self.model, kind)  # type: ignore[arg-type]  # mypy does not narrow by `in`
        if self.choices:
            read_subjects(CEVAL, self.choices, self.subjects, self.shots, "val")

    def kinds(self) -> list[Kind]:
        """F16 first, and only what can be computed here."""
        able = importlib.util.find_spec("bitsandbytes") is not None
        return [REFERENCE, *(k for k in self.types if k != REFERENCE and (able or k not in IN_TORCH))]

    def run(self, work: Path) -> dict[str, object]:
        load, kinds = warn_if_busy(), self.kinds()
        if left_out := [kind for kind in self.types if kind not in kinds]:
            what = f"{' and '.join(left_out)} left out, bitsandbytes is missing: pip install yayan[quant]"
            print(f"  {what}", file=sys.stderr, flush=True)
        bench = self.prepare(work)
        rows = {kind: bench.row(kind) for kind in kinds}
        settings: dict[str, object] = {"load": load, "context": bench.context, "limit_bytes": self.limit}
        settings |= {"left_out": left_out, "shots": self.shots if self.choices else None}
        write_results(work, PROTOCOL, self.model, settings | {"types": rows})
        metrics = settings | {"types": {kind: without_items(row) for kind, row in rows.items()}}
        (work / "quant.md").write_text(markdown_table(table(metrics)) + "\n", encoding="utf-8")
        bench.clean()
        return metrics

    def prepare(self, work: Path) -> Bench:
        """Texts, questions and the importance matrix: once, for all types."""
        context = positions_of(self.model, self.context)
        texts = {name: read_texts(path, self.limit)[0] for name, path in self.text.items()}
        prompts, importance = [], None
        if self.choices:
            prompts = letter_prompts(self.model, self.choices, self.subjects, self.shots, context)
        if self.calibration:
            importance = importance_of(self.model, self.calibration, CALIBRATION_TOKENS)
        return Bench(
            work=work,
            model=self.model,
            context=context,
            threads=self.threads or all_threads(),
            texts=encode(self.model, texts, context),
            prompts=prompts,
            importance=importance,
            keep=self.keep,
        )

    def tell(self, record: dict) -> None:
        show(table(record["metrics"]))


def without_items(row: dict[str, Any]) -> dict[str, Any]:
    """A type's figures without those of each document."""
    texts = {
        name: {key: value for key, value in figures.items() if key != "items"}
        for name, figures in row["texts"].items()
    }
    return row | {"texts": texts}


def table(metrics: dict[str, Any]) -> Table:
    """A row for each type: for the terminal, for quant.md and for the report."""
    types = metrics["types"]
    texts = list(types[REFERENCE]["texts"])
    columns = titles("type", "engine", "size", "bits a weight")
    for name in texts:
        figures = titles("bits per byte", "KL", "KL 99.9 %", "same first token")
        columns += [listed([figure, name]) for figure in figures]
    asked = "choices" in types[REFERENCE]
    columns += titles("accuracy") if asked else []
    columns += titles("prompt ms/token", "answer ms/token")
    rows = []
    for kind, row in types.items():
        cells = [kind, say(row["engine"]), megabytes(row["bytes"]), two(row["bits_per_weight"])]
        for name in texts:
            cells += text_cells(row["texts"][name], is_reference=kind == REFERENCE)
        cells += [percent(row["choices"]["accuracy"])] if asked else []
        cells += [two(row["prompt_ms_per_token"]), two(row["answer_ms_per_token"])]
        rows.append(cells)
    return Table(columns, rows, list(range(2, len(columns))))


def text_cells(figures: dict[str, Any], *, is_reference: bool) -> list[str]:
    cells = [f"{figures['bits_per_byte']:.4f}"]
    if is_reference:
        return [*cells, "–", "–", "–"]
    return [
        *cells,
        f"{figures['kl_mean']:.5f}",
        f"{figures['kl_999']:.4f}",
        percent(figures["top1_agreement"]),
    ]
