"""The torch engine: any model folder, with guidance and exact speculation; one answer at a time, or many together."""

import importlib.util
from collections.abc import Generator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

import torch

from yayan.engine.answers import Answer, Piece, pieces
from yayan.engine.batch import Finished, Question, answer_together
from yayan.engine.choose import LOOKUP, refuse_base_model
from yayan.engine.distribution import Chooser
from yayan.engine.lengths import DraftLengths
from yayan.engine.network import Branches, Network
from yayan.engine.sampling import Sampling
from yayan.engine.speculative import Draft, LookupDraft, ModelDraft, decode_plainly, decode_speculatively
from yayan.errors import UserError
from yayan.model.folder import GENERATION_FILE, Context, choose_context, context_of, read_json
from yayan.model.load import Quantization
from yayan.progress import Progress
from yayan.template import Messages, encode_prompt
from yayan.tokenizer import load_tokenizer

Quantize = Literal["8bit", "4bit"]
KINDS: dict[Quantize, Quantization] = {"8bit": "int8", "4bit": "nf4"}
ROWS = 32


class TorchEngine:
    """A model folder that answers. `with TorchEngine(folder) as engine: engine.stream(messages)`.

    `dtype`: auto (the file's), float32, bfloat16 or float16; `context`: tokens of prompt and answer together (default:
    all positions of the model; "auto": up to eight times as many, each request stretched by what it needs);
    `threads`: of torch, in the whole process; `quantize`: matrices in 8 or 4 bits by bitsandbytes; `draft`: a small
    model folder with the same tokenizer, or "lookup", that guesses ahead (speculation); `draft_length`: always so many
    guesses (default: what pays). Raises UserError for what cannot be.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str | None = None,
        dtype: str = "auto",
        context: Context = None,
        threads: int | None = None,
        quantize: Quantize | None = None,
        draft: Path | Literal["lookup"] | None = None,
        draft_length: int | None = None,
    ) -> None:
        stretching = context == "auto"
        self.context = context_of(folder, context)
        check_settings(threads, quantize, draft_length)
        self.name = name or folder.resolve().name
        self.tokenizer = load_tokenizer(folder)
        self.defaults = Sampling.for_model(folder)
        self.ends = end_tokens(folder, self.tokenizer.eos_id)
        if threads:
            torch.set_num_threads(threads)
        kind = KINDS[quantize] if quantize else None
        self.network = Network(folder, dtype, kind, stretching=stretching)
        self.network.longest = self.context
        self.draft: Network | str | None = None
        if draft == LOOKUP:
            self.draft = LOOKUP
        elif draft is not None:
            self.draft = open_draft(Path(draft), self, dtype, stretching=stretching)
        self.lengths = DraftLengths(draft_length)
        self.cache_bytes = self.network.cache(1).token_bytes * self.context
        """Of keys and values of an answer that fills the context; the room grows as it is needed."""

    def close(self) -> None:
        """Let go of the memory."""
        del self.network, self.draft

    def forget(self) -> None:
        """Let go of the keys and values of the last answer: the next one is computed from its first token on."""
        for network in (self.network, self.draft):
            if isinstance(network, Network):
                network.kept = None

    def __enter__(self) -> "TorchEngine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def refuse_base_model(self) -> None:
        """Raises UserError if the model has no chat template."""
        refuse_base_model(self.tokenizer.template, self.name)

    def prompt_ids(self, messages: Messages) -> list[int]:
        """What the model sees of a chat before it answers."""
        self.refuse_base_model()
        return encode_prompt(self.tokenizer, messages)

    def negative_ids(self, messages: Messages, sampling: Sampling) -> list[int]:
        """The same chat with the negative prompt as its system prompt; empty without one."""
        if sampling.negative_prompt is None:
            return []
        turns = [message for message in messages if message["role"] != "system"]
        return self.prompt_ids([{"role": "system", "content": sampling.negative_prompt}, *turns])

    def text_ids(self, text: str) -> list[int]:
        """Ids of a text to continue: BOS, where the model has one, and the text."""
        return self.tokenizer.begin + self.tokenizer.encode(text)

    def stream(self, messages: Messages, sampling: Sampling | None = None) -> Generator[str]:
        """The answer to a chat, piece by piece; closing the iterator stops the model. Errors as `generate`."""
        sampling = sampling or self.defaults
        negative = self.negative_ids(messages, sampling)
        for piece in self.generate(self.prompt_ids(messages), sampling, negative):
            if piece.text:
                yield piece.text

    def generate(
        self, prompt: Sequence[int], sampling: Sampling | None = None, negative: Sequence[int] = ()
    ) -> Generator[Piece]:
        """How a prompt goes on. `negative`: ids of the negative prompt (default: the text of the sampling's, if any).

        What a prompt begins with like the last one and its answer is not computed again, which changes logits by
        rounding alone; but where tokens are drawn with a seed all is computed anew. Raises UserError for options that
        mean nothing, for ids that the model does not have, and for a prompt that leaves no place for an answer in the
        context.
        """
        sampling = sampling or self.defaults
        return self._generate(self._question(0, prompt, sampling, negative or self._negative_text(sampling)))

    def _generate(self, question: Question) -> Generator[Piece]:
        chooser, limit = question.chooser, question.answer.left
        if drawn_with_a_seed(chooser.sampling):
            self.forget()
        branches = branches_of(self.network, question)
        draft = self._draft(question)
        try:
            if draft is None:
                choices = decode_plainly(branches, chooser, limit)
            else:
                choices = decode_speculatively(branches, chooser, limit, draft, self.lengths)
            yield from pieces(choices, question.answer)
        finally:  # left early as well
            branches.keep()
            if isinstance(draft, ModelDraft):
                draft.branches.keep()

    def _draft(self, question: Question) -> Draft | None:
        """What guesses ahead in this answer.

        A seed is to give the same answer again, and how many guesses pay is told by the clock: where tokens are drawn
        with a seed, nothing guesses unless the number of guesses is fixed.
        """
        if drawn_with_a_seed(question.chooser.sampling) and self.lengths.fixed is None:
            return None
        if isinstance(self.draft, Network):
            return ModelDraft(branches_of(self.draft, question), question.chooser)
        return LookupDraft() if self.draft else None

    def generate_many(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | None = None,
        negatives: Sequence[Sequence[int]] | None = None,
        rows: int = ROWS,
    ) -> Generator[tuple[int, Finished]]:
        """Answers to many prompts, at most `rows` at once, each with the number of its prompt, as they are finished.

        Each is what `generate` gives without a draft. In float32, greedy, that is the same ids, but where two logits
        agree to about six digits. Errors as `generate`, before anything is computed.
        """
        sampling = sampling or self.defaults
        if rows < 1:
            raise UserError(f"{rows} rows at once", cure="give at least 1")
        text = self._negative_text(sampling)
        questions = [
            self._question(number, prompt, sampling, negatives[number] if negatives else text)
            for number, prompt in enumerate(prompts)
        ]
        return self._generate_many(questions, rows, sampling.guidance_scale)

    def _generate_many(
        self, questions: list[Question], rows: int, scale: float
    ) -> Generator[tuple[int, Finished]]:
        self.forget()  # a batch takes the memory
        with Progress("answers", total=len(questions), unit="answers") as bar:
            for item in answer_together(self.network, questions, min(rows, max(len(questions), 1)), scale):
                yield item
                bar.advance()

    def _question(
        self, number: int, prompt: Sequence[int], sampling: Sampling, negative: Sequence[int]
    ) -> Question:
        """What is to be answered. Raises UserError as `check`."""
        limit = self.check(prompt, sampling, negative)
        prompt = list(prompt)
        chooser = Chooser(sampling, prompt, self.network.device)
        answer = Answer(self.tokenizer, self.ends, sampling, limit)
        tokens = max(len(prompt), len(negative)) + limit
        return Question(number, prompt, list(negative), chooser, answer, tokens)

    def _negative_text(self, sampling: Sampling) -> list[int]:
        return [] if sampling.negative_prompt is None else self.text_ids(sampling.negative_prompt)

    def check(self, prompt: Sequence[int], sampling: Sampling, negative: Sequence[int] = ()) -> int:
        """Tokens that an answer may have. Raises UserError for what `generate` refuses."""
        sampling.check()
        rows = self.network.rows
        if not prompt:
            raise UserError("the prompt is empty", cure="give at least one token")
        for ids, what in ((prompt, "the prompt"), (negative, "the negative prompt")):
            if len(ids) >= self.context:
                cure = f"shorten it: prompt and answer share a context of {self.context}"
                raise UserError(f"{what} has {len(ids)} tokens, which leaves none for an answer", cure=cure)
            if not all(0 <= token < rows for token in ids):
                raise UserError(f"{what} holds an id that is no token", cure=f"ids go from 0 to {rows - 1}")
        if not all(token < rows for token in sampling.logit_bias):
            raise UserError("logit_bias names an id that is no token", cure=f"ids go from 0 to {rows - 1}")
        return min(sampling.max_tokens, self.context - max(len(prompt), len(negative)))


def drawn_with_a_seed(sampling: Sampling) -> bool:
    """Whether the same question must get the same answer, though it is drawn."""
    return sampling.seed is not None and not sampling.greedy


def branches_of(network: Network, question: Question) -> Branches:
    """The sequences of a question, read by a network: the model, or what guesses for it."""
    scale = question.chooser.sampling.guidance_scale
    return Branches(network, question.prompt, question.negative, scale, question.tokens)


def check_settings(threads: int | None, quantize: str | None, draft_length: int | None) -> None:
    """UserError for settings that mean nothing or cannot be had."""
    for name, value in (("threads", threads), ("draft_length", draft_length)):
        if value is not None and value < 1:
            raise UserError(f"{name} {value} means nothing", cure="give at least 1")
    if quantize is not None and quantize not in KINDS:
        raise UserError(f"quantize {quantize} is not known", cure="take 8bit or 4bit")
    if quantize is not None and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("bitsandbytes is not installed", where="quantize", cure="pip install 'yayan[quant]'")


def end_tokens(folder: Path, eos: int) -> frozenset[int]:
    """Ids that end an answer: those of `generation_config.json`, and the tokenizer's."""
    path = folder / GENERATION_FILE
    found = read_json(path).get("eos_token_id") if path.is_file() else None
    listed = found if isinstance(found, list) else [found]
    return frozenset([eos, *(token for token in listed if isinstance(token, int))])


def open_draft(folder: Path, engine: TorchEngine, dtype: str, *, stretching: bool) -> Network:
    """A model that guesses for another one. Raises UserError if they do not have the same tokens, or the draft fewer
    positions.
    """
    if load_tokenizer(folder).sha256 != engine.tokenizer.sha256:
        cure = "take a smaller model with the same tokenizer, or lookup"
        raise UserError("the draft has another tokenizer than the model", where=folder, cure=cure)
    choose_context(context_of(folder, "auto" if stretching else None), engine.context, folder)
    draft = Network(folder, dtype, stretching=stretching)
    if draft.rows != engine.network.rows:
        what = f"the draft has {draft.rows} rows, the model {engine.network.rows}"
        raise UserError(what, where=folder, cure="pad both to the same number when they are grown")
    return draft
