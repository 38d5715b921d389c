"""Options of evaluations whose answers are generated: which model, and what answers in its name."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

from yayan.errors import UserError, refuse_less_than_one
from yayan.evaluate.answerers import Answerer, open_answerer
from yayan.evaluate.longbench_metrics import library
from yayan.model.folder import Context
from yayan.stage import InputPath, Stage


@dataclass(frozen=True, kw_only=True)
class Answers(Stage):
    """What `eval samples`, `eval longbench` and `eval needle` have in common."""

    model: InputPath
    """GGUF file, or model folder (converted to F16 once); with an endpoint its tokenizer and template cut prompts."""
    threads: int | None = None
    """Threads of the computation; all physical cores by default."""
    endpoint: str | None = None
    """Let an OpenAI-compatible server answer: its URL, such as http://127.0.0.1:8000/v1 (key: OPENAI_API_KEY)."""
    endpoint_model: str | None = None
    """Name that the endpoint is asked for; the only one that it lists by default."""

    def check(self) -> None:
        refuse_less_than_one(threads=self.threads)
        if self.endpoint is not None and self.threads is not None:
            raise UserError("an endpoint chooses its threads itself", where="threads", cure="leave them out")
        check_endpoint(self.endpoint, self.endpoint_model)

    def open(self, context: Context = None, slots: int = 1) -> AbstractContextManager[Answerer]:
        """What answers, `slots` at once, open."""
        if self.endpoint is None:
            return open_answerer(self.model, context, threads=self.threads, slots=slots)
        from yayan.evaluate.endpoint import open_endpoint

        return open_endpoint(self.model, self.endpoint, self.endpoint_model)


@dataclass(frozen=True, kw_only=True)
class LongAnswers(Answers):
    """The same for many prompts that may fill the context."""

    context: Context = None
    """Tokens of prompt and answer together: all positions of the model by default; auto: up to 8 times as many, each
    request stretched by what it needs (a model folder, which torch then answers)."""
    slots: int = 1
    """Answers at once. With more than one, near-ties may fall otherwise, and memory grows by a context for each."""

    def check(self) -> None:
        refuse_less_than_one(slots=self.slots)
        refuse_stretching(self.endpoint, self.context)
        super().check()


def check_endpoint(endpoint: str | None, name: str | None) -> None:
    """Ask an endpoint for its names. Raises UserError for a name without an endpoint, and what `find_name` raises."""
    if endpoint is None:
        if name is not None:
            cure = "name its URL with --endpoint"
            raise UserError("a name is given, and no endpoint", where="endpoint_model", cure=cure)
        return
    library("openai")
    from yayan.evaluate.endpoint import find_name

    find_name(endpoint, name)


def refuse_stretching(endpoint: str | None, context: Context) -> None:
    if endpoint is not None and context == "auto":
        cure = "say how many tokens it sees at once, or leave --context out"
        raise UserError("an endpoint is not stretched from here", where="context", cure=cure)
