"""How fast a model reads and answers, and in how much memory; what a draft model adds to it."""

import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from yayan.corpus.read import documents
from yayan.engine.choose import positions_of
from yayan.engine.gguf import find_gguf
from yayan.engine.llama_c import all_threads
from yayan.engine.llamacpp import DRAFT_TOKENS, LlamaCpp, refuse_other_vocabulary
from yayan.errors import UserError, refuse_less_than_one
from yayan.evaluate.answerers import template_of
from yayan.evaluate.answering import check_endpoint
from yayan.evaluate.cuts import show
from yayan.evaluate.languages import say, titles
from yayan.evaluate.page import Table
from yayan.evaluate.readers import open_reader
from yayan.evaluate.results import Protocol, write_results
from yayan.evaluate.timing import Engine, Question, lengthen, measure, warn_if_busy
from yayan.evaluate.words import megabytes, percent, two
from yayan.progress import Progress
from yayan.stage import InputPath, Stage
from yayan.tokenizer import load_tokenizer

PROTOCOL = Protocol("speed", "greedy", 1)
Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class EvalSpeed(Stage):
    """How fast a model reads a prompt and answers, and in how much memory.

    A folder is computed by torch, on the GPU if there is one; a GGUF file by llama.cpp; a server answers as it does.
    Figures are medians over repeats, each model in a process of its own.
    """

    model: InputPath
    """Model folder, or GGUF file; with an endpoint its tokenizer and template say what is asked."""
    text: InputPath = Path("sample:en-heldout.jsonl")
    """Documents whose beginnings are the prompts."""
    threads: list[int] = field(default_factory=list)
    """Numbers of threads to try; all cores by default."""
    dtype: list[Dtype] = field(default_factory=lambda: ["float32", "bfloat16"])
    """Types in which a folder is computed."""
    device: Literal["cpu", "cuda"] | None = None
    """Where a folder is computed; on the GPU if there is one, by default."""
    prompt_tokens: int = 256
    """Tokens of the prompt."""
    answer_tokens: int = 64
    """Tokens of the answer, one by one."""
    repeats: int = 5
    """Times that each is measured, after one that does not count."""
    draft: InputPath | None = None
    """Smaller model (folder or GGUF file) of the same vocabulary that proposes tokens: llama.cpp's own speculation."""
    draft_tokens: int = DRAFT_TOKENS
    """Tokens that the draft proposes at a time."""
    prompts: int = 8
    """Documents that are continued with and without the draft."""
    endpoint: str | None = None
    """Time an OpenAI-compatible server: its URL, such as http://127.0.0.1:8000/v1 (key: OPENAI_API_KEY)."""
    endpoint_model: str | None = None
    """Name that the endpoint is asked for; the only one that it lists by default."""

    def check(self) -> None:
        counted = ("prompt_tokens", "answer_tokens", "repeats", "draft_tokens", "prompts")
        refuse_less_than_one(**{name: getattr(self, name) for name in counted})
        if any(number < 1 for number in self.threads) or not self.dtype:
            raise UserError("a number of threads or a type is missing", cure="--threads 1 2 --dtype float32")
        positions, wanted = positions_of(self.model, None), self.prompt_tokens + self.answer_tokens
        if wanted > positions:
            what = f"a prompt of {self.prompt_tokens} and an answer of {self.answer_tokens} tokens do not fit"
            raise UserError(what, where=self.model, cure=f"together they may have {positions}")
        if self.draft:
            positions_of(self.draft, None)
        if self.device == "cuda":
            self.refuse_without_gpu()
        if self.endpoint is not None:
            for name in ("threads", "draft", "device"):
                if getattr(self, name):
                    what = "an endpoint chooses its threads, its draft and its device itself"
                    raise UserError(what, where=name, cure="leave it out")
        check_endpoint(self.endpoint, self.endpoint_model)

    def refuse_without_gpu(self) -> None:
        """UserError unless this model can be computed on a GPU here."""
        if self.model.is_file():
            what, cure = "a GGUF file is computed on the CPU here", "leave --device out, or give a folder"
            raise UserError(what, where="device", cure=cure)
        import torch

        if not torch.cuda.is_available():
            raise UserError("torch sees no GPU", where="device", cure="leave --device out")

    def run(self, work: Path) -> dict[str, object]:
        load = warn_if_busy()
        if self.endpoint is not None:
            return self.time_endpoint(work, load)
        if self.draft:
            refuse_other_vocabulary(find_gguf(self.model), find_gguf(self.draft))
        threads = self.threads or [all_threads()]
        engines: list[Engine] = ["llama.cpp"] if self.model.is_file() else list(self.dtype)
        prompts = list(islice(prompts_of(self.model, self.text, self.prompt_tokens), self.prompts))
        ids = lengthen(prompts, self.prompt_tokens)
        questions = [
            Question(self.model, engine, number, ids, self.answer_tokens, self.repeats, self.device == "cpu")
            for engine in engines
            for number in threads
        ]
        rows, timings = [], []
        with Progress("eval speed", total=len(questions), unit="measurements") as bar:
            for question in questions:
                timing = measure(question)
                timings.append(asdict(timing))
                rows.append({"engine": question.engine, "threads": question.threads} | timing.row())
                bar.advance()
        metrics: dict[str, object] = {"load": load, "rows": rows}
        metrics |= {"prompt_tokens": self.prompt_tokens, "answer_tokens": self.answer_tokens}
        if self.draft:
            metrics["draft"] = [self.speculate(number, prompts) for number in threads]
        write_results(work, PROTOCOL, self.model, metrics | {"repeats": timings})
        return metrics

    def time_endpoint(self, work: Path, load: float) -> dict[str, object]:
        """The same, as a client of a server sees it."""
        from yayan.evaluate.endpoint import find_name, origin_of
        from yayan.evaluate.endpoint_timing import different_prompts, measure_endpoint

        assert self.endpoint is not None
        name = find_name(self.endpoint, self.endpoint_model)
        texts = list(islice(texts_of(self.text), self.prompts))
        prompts = different_prompts(self.model, texts, self.prompt_tokens, self.repeats + 1)
        asked: dict[str, Any] = {
            "chat": template_of(self.model) is not None,
            "answer_tokens": self.answer_tokens,
        }
        timing = measure_endpoint(self.endpoint, name, prompts, **asked)
        metrics: dict[str, object] = {
            **origin_of(self.endpoint, name),
            "load": load,
            "rows": [{"engine": "endpoint", "threads": None} | timing.row()],
            "prompt_tokens": self.prompt_tokens,
            "answer_tokens": self.answer_tokens,
        }
        write_results(work, PROTOCOL, self.model, metrics | {"repeats": [asdict(timing)]})
        return metrics

    def speculate(self, threads: int, prompts: list[list[int]]) -> dict[str, Any]:
        """The same answers with and without the draft, in turns."""
        assert self.draft
        target, draft = find_gguf(self.model), find_gguf(self.draft)
        room = self.prompt_tokens + self.answer_tokens + self.draft_tokens + 1
        settings: dict[str, Any] = {"threads": threads, "context": min(room, positions_of(target, None))}
        total = self.repeats * len(prompts)
        plain, helped = [], []
        with (
            LlamaCpp(target, **settings) as alone,
            LlamaCpp(target, draft=draft, draft_tokens=self.draft_tokens, **settings) as together,
            Progress("eval speed: draft", total=total, unit="answers") as bar,
        ):
            for _ in range(self.repeats):
                for ids in prompts:
                    plain.append(answer(alone, ids, self.answer_tokens))
                    helped.append(answer(together, ids, self.answer_tokens))
                    bar.advance()
        own = Question(draft, "llama.cpp", threads, tuple(prompts[0]), self.answer_tokens, self.repeats)
        return summarise_draft(plain, helped) | {
            "threads": threads,
            "draft_tokens": self.draft_tokens,
            "draft_ms_per_token": measure(own).row()["answer_ms_per_token"],
        }

    def tell(self, record: dict) -> None:
        for table in tables(record["metrics"]):
            show(table)


def prompts_of(model: Path, text: Path, tokens: int) -> Iterator[list[int]]:
    """The beginning of each document, BOS first, at most so many tokens. Raises UserError if there is no text."""
    reader = open_reader(model) if model.is_file() else None
    for beginning in texts_of(text):
        if reader:
            yield [reader.before, *reader.encode([beginning])[0]][:tokens]
        else:
            tokenizer = load_tokenizer(model)
            yield [*tokenizer.begin, *tokenizer.encode(beginning)][:tokens]


def texts_of(text: Path) -> Iterator[str]:
    """The documents that are not empty. Raises UserError if there is none."""
    found = False
    for document in documents([text]):
        if document.text:
            found = True
            yield document.text
    if not found:
        raise UserError("all its documents are empty", where=text, cure="give a text")


@dataclass(frozen=True)
class Reply:
    """What llama.cpp's server tells of an answer."""

    text: str
    tokens: int
    ms: float
    proposed: int
    accepted: int


def answer(engine: LlamaCpp, ids: list[int], tokens: int) -> Reply:
    body = {"prompt": ids, "n_predict": tokens, "temperature": 0, "cache_prompt": False}
    told = engine.ask("/completion", body)
    times = told["timings"]
    return Reply(
        text=told["content"],
        tokens=times["predicted_n"],
        ms=times["predicted_ms"],
        proposed=times.get("draft_n", 0),
        accepted=times.get("draft_n_accepted", 0),
    )


def summarise_draft(plain: list[Reply], helped: list[Reply]) -> dict[str, Any]:
    """Acceptance, and medians of milliseconds a token over the answers, with and without the draft."""
    alone, together = (
        statistics.median(r.ms / max(r.tokens, 1) for r in replies) for replies in (plain, helped)
    )
    proposed, accepted = sum(r.proposed for r in helped), sum(r.accepted for r in helped)
    return {
        "answers": len(helped),
        "same_answers": sum(one.text == other.text for one, other in zip(plain, helped, strict=True)),
        "proposed": proposed,
        "accepted": accepted,
        "acceptance": accepted / proposed if proposed else None,
        "ms_per_token": round(together, 4),
        "ms_per_token_without": round(alone, 4),
        "speed_up": round(alone / together, 3),
    }


def tables(metrics: dict[str, Any]) -> list[Table]:
    """The speeds, and what the draft adds: for the terminal and for the report."""
    rows = [
        [
            row["engine"],
            row["device"],
            str(row["threads"] or "–"),
            *(f"{row[f'{part}_ms_per_token']:.2f}" for part in ("prompt", "answer")),
            *(f"{row[f'{part}_tokens_per_second']:,.0f}" for part in ("prompt", "answer")),
            *(
                "–" if row[name] is None else megabytes(row[name])
                for name in ("anonymous_bytes", "mapped_bytes")
            ),
        ]
        for row in metrics["rows"]
    ]
    columns = titles("engine", "device", "threads", "prompt ms/token", "answer ms/token", "prompt tokens/s")
    columns += titles("answer tokens/s", "anonymous memory", "mapped")
    found = [Table(columns, rows, list(range(2, 9)))]
    if "draft" in metrics:
        columns = titles(
            "threads", "draft ms/token", "accepted", "ms/token", "without", "times", "same answers"
        )
        found.append(Table(columns, [draft_row(row) for row in metrics["draft"]], list(range(7))))
    return found


def draft_row(row: dict[str, Any]) -> list[str]:
    accepted = "–" if row["acceptance"] is None else percent(row["acceptance"])
    figures = [f"{row[name]:.2f}" for name in ("ms_per_token", "ms_per_token_without")]
    same = say("{part} of {whole}", part=row["same_answers"], whole=row["answers"])
    return [
        str(row["threads"]),
        two(row["draft_ms_per_token"]),
        accepted,
        *figures,
        two(row["speed_up"]),
        same,
    ]
