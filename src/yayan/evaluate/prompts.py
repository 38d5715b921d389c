"""How a question is put to a model: two protocols, each named and versioned, from questions to token ids.

harness   lm-eval's prompts as plain text, for base and chat models alike; the score of a letter is the log-likelihood
          of " A" behind the prompt.
cla2      the prompts of Chinese-LLaMA-Alpaca-2 (scripts/ceval, scripts/cmmlu) for base or for chat models, with the
          subject's Chinese name and, for chat models, the system prompt of training in both benchmarks; the score of
          a letter is the sum of the log-probabilities of its two tokens, that of "A" and that of "A" behind "：". No
          penalty, no sampling.
cla2-cot  the same chat prompts with the words that let the model reason; the letter is taken from its text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from yayan.engine.llamacpp import Message
from yayan.errors import UserError
from yayan.evaluate.answers import Item
from yayan.evaluate.benchmarks import Benchmark
from yayan.evaluate.questions import LETTERS, Question, Subject
from yayan.evaluate.results import Protocol
from yayan.template import DEFAULT_SYSTEM, encode_prompt, render
from yayan.tokenizer import Tokenizer

Rules = Literal["harness", "cla2", "cla2-cot"]
Style = Literal["base", "chat"]
Asked = str | list[Message]
VERSIONS = {"harness": 1, "cla2": 1, "cla2-cot": 1}
CLA2_HEADER = "以下是中国关于{}考试的单项选择题，请选出其中的正确答案。\n\n"
CLA2_ENDING, CLA2_REASON = "答案：", "答案是什么？让我们一步一步思考，\n1."
CLA2_AGREED = "好的，我会结合{}相关知识回答"
SYSTEM_BLOCK = f"<<SYS>>\n{DEFAULT_SYSTEM}\n<</SYS>>\n\n"


@dataclass(frozen=True)
class Prompt:
    """A question made ready: the tokens before the letter, and those of each letter, once or in two forms.

    `asked`: what the tokens before the letter stand for, the text or the messages of a chat.
    """

    question: Question
    asked: Asked
    context_ids: list[int]
    letter_ids: list[list[int]]
    shots: int
    dropped: int
    fits: bool

    @property
    def tokens(self) -> int:
        """That the model reads."""
        return tokens_read(self.context_ids, self.letter_ids)

    def letter_scores(self, scores: list[float]) -> dict[str, float]:
        """The scores of `letter_ids` by letter, its forms added up."""
        return {letter: sum(scores[i :: len(LETTERS)]) for i, letter in enumerate(LETTERS)}

    def item(self, prediction: str | None, scores: dict[str, float], reply: str | None = None) -> Item:
        """The question with what came of it."""
        asked = self.question
        counts = (self.shots, self.dropped)
        return Item(asked.subject, asked.number, asked.answer, prediction, scores, *counts, reply)


Encoded = tuple[Asked, list[int], list[list[int]]]  # a prompt, its tokens, tokens of its letters


def tokens_read(before: list[int], letters: list[list[int]]) -> int:
    """Tokens of a prompt and of its longest letter but the last, which is expected and not read."""
    return len(before) + max(map(len, letters)) - 1


class Asker:
    """Puts the questions of a benchmark to one model: `ready` gives the longest prompts that fit."""

    def __init__(
        self,
        benchmark: Benchmark,
        rules: Rules,
        style: Style,
        tokenizer: Tokenizer,
        context: int,
        room: int = 0,  # positions that an answer takes beyond the letter's own tokens
    ) -> None:
        self.benchmark, self.rules, self.style = benchmark, rules, style
        self.tokenizer, self.context, self.room = tokenizer, context, room
        self.ending = CLA2_REASON if rules == "cla2-cot" else CLA2_ENDING
        self.as_llama2 = style == "chat" and writes_as_llama2(tokenizer)
        self.forms = [[tokenizer.encode(letter)[0]] for letter in LETTERS]
        self.forms += [[tokenizer.encode(f"：{letter}")[-1]] for letter in LETTERS]

    @property
    def protocol(self) -> Protocol:
        return Protocol(self.benchmark.task, self.rules, VERSIONS[self.rules])

    def ready(self, subject: Subject) -> list[Prompt]:
        """A prompt for each question, with as many examples as fit: they go from the far end, the first one first."""
        found: dict[int, Prompt] = {}
        left = subject.questions
        for dropped in range(len(subject.examples) + 1):
            kept = subject.examples[dropped:]
            last = not kept
            encoded = self.encode([(subject, kept, question) for question in left])
            for question, (written, before, letters) in zip(left, encoded, strict=True):
                fits = tokens_read(before, letters) + self.room <= self.context
                if fits or last:
                    found[question.number] = Prompt(
                        question, written, before, letters, len(kept), dropped, fits
                    )
            left = [question for question in left if question.number not in found]
        return [found[question.number] for question in subject.questions]

    def encode(self, asked: Sequence[tuple[Subject, list[Question], Question]]) -> list[Encoded]:
        """Token ids of prompts and of their letters."""
        if self.rules == "harness":
            return split_ids(self.tokenizer, [harness_text(self.benchmark, *item) for item in asked])
        if self.style == "chat" and not self.as_llama2:
            chats = [chat(*item, self.ending) for item in asked]
            return [(messages, encode_prompt(self.tokenizer, messages), self.forms) for messages in chats]
        if self.as_llama2:
            texts = [llama2_text(*item, self.ending) for item in asked]
        else:
            texts = [cla2_text(*item) for item in asked]
        encoded = zip(texts, self.tokenizer.encode_batch(texts), strict=True)
        return [(text, self.tokenizer.begin + ids, self.forms) for text, ids in encoded]


def style_of(rules: Rules, wanted: Literal["auto", "base", "chat"], tokenizer: Tokenizer) -> Style:
    """Base or chat prompts: by whether the model has a chat template, unless it is said; harness knows none.

    Raises UserError for chat prompts that the protocol or the model does not have.
    """
    if rules == "harness":
        if wanted == "chat":
            cure = "pass --protocol cla2 for chat prompts"
            raise UserError("the protocol harness gives every model plain text", where="prompt", cure=cure)
        return "base"
    if wanted == "chat" and tokenizer.template is None:
        cure = "pass --prompt base, or name a model that was tuned on chats"
        raise UserError(
            "the model has no chat template, chat prompts are asked for", where="prompt", cure=cure
        )
    if wanted == "auto":
        return "base" if tokenizer.template is None else "chat"
    return wanted


def harness_text(benchmark: Benchmark, subject: Subject, examples: list[Question], question: Question) -> str:
    """Up to where the letter stands, a space before it."""

    def block(item: Question) -> str:
        return f"{item.question.strip()}\n{options(item)}\n{benchmark.ending}"

    worked = "".join(f"{block(example)} {example.answer}\n\n" for example in examples)
    return benchmark.header.format(subject.name) + worked + block(question)


def options(question: Question) -> str:
    return "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, question.options, strict=True))


def cla2_block(question: Question, ending: str = CLA2_ENDING) -> str:
    return f"{question.question}\n{options(question)}\n{ending}"


def cla2_text(subject: Subject, examples: list[Question], question: Question) -> str:
    """For base models; without examples the question alone."""
    worked = "".join(f"{cla2_block(example)}{example.answer}\n\n" for example in examples)
    return (CLA2_HEADER.format(subject.name) + worked if worked else "") + cla2_block(question)


def llama2_text(
    subject: Subject, examples: list[Question], question: Question, ending: str = CLA2_ENDING
) -> str:
    """For chat models with Llama 2's format, to the letter: no end tokens, the system block before the question too."""
    asked = f"[INST] {SYSTEM_BLOCK}{cla2_block(question, ending)} [/INST]"
    if not examples:
        return asked
    opened = (
        f"[INST] {SYSTEM_BLOCK}{CLA2_HEADER.format(subject.name)} [/INST]{CLA2_AGREED.format(subject.name)}"
    )
    worked = "".join(f"[INST] {cla2_block(example)}[/INST]{example.answer}\n" for example in examples)
    return opened + worked + asked


def chat(
    subject: Subject, examples: list[Question], question: Question, ending: str = CLA2_ENDING
) -> list[Message]:
    """The same turns as messages, for chat models with a format of their own."""
    turns: list[tuple[str, str]] = []
    if examples:
        turns.append((CLA2_HEADER.format(subject.name), CLA2_AGREED.format(subject.name)))
        turns += [(cla2_block(example), str(example.answer)) for example in examples]
    messages: list[Message] = [{"role": "system", "content": DEFAULT_SYSTEM}]
    for asked, answered in turns:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return [*messages, {"role": "user", "content": cla2_block(question, ending)}]


def writes_as_llama2(tokenizer: Tokenizer) -> bool:
    """Whether the template of a model writes a question as Chinese-LLaMA-Alpaca-2 does."""
    messages = [{"role": "system", "content": DEFAULT_SYSTEM}, {"role": "user", "content": "问"}]
    bos = "" if tokenizer.bos_id is None else tokenizer.token(tokenizer.bos_id)
    ends = {"bos": bos, "eos": tokenizer.token(tokenizer.eos_id)}
    text = render(messages, tokenizer.template or "", **ends, add_generation_prompt=True)
    return text == f"{bos}[INST] {SYSTEM_BLOCK}问 [/INST]"


def split_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Encoded]:
    """Tokens of each text and of each letter behind it, cut where the five encodings part (a token may join both)."""
    several = 1 + len(LETTERS)
    all_ids = tokenizer.encode_batch(
        [form for text in texts for form in (text, *(f"{text} {letter}" for letter in LETTERS))]
    )
    found: list[Encoded] = []
    for start in range(0, len(all_ids), several):
        alone, *whole = all_ids[start : start + several]
        shared = 0
        for column in zip(alone, *(ids[:-1] for ids in whole), strict=False):
            if len(set(column)) > 1:
                break
            shared += 1
        letters = [ids[shared:] for ids in whole]
        found.append((texts[start // several], tokenizer.begin + alone[:shared], letters))
    return found
