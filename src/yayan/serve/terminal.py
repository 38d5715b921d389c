"""The verb `chat`: talk to a model in the terminal, ask it once through a pipe, or answer a file of prompts."""

import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from yayan.engine.choose import Engine, KvCache, choose_engine
from yayan.engine.llamacpp import Message
from yayan.engine.sampling import Sampling
from yayan.errors import UserError, refuse_flags_below
from yayan.lineage import by_content
from yayan.model.folder import Context
from yayan.serve.conversation import Conversation
from yayan.serve.prompts import answer_file, read_prompts
from yayan.serve.speaker import open_speaker
from yayan.stage import Command, make_question
from yayan.template import SYSTEM_PROMPTS


@dataclass(frozen=True, kw_only=True)
class Chat(Command):
    """Talk to a model in the terminal; from a pipe it answers once, a file of prompts it answers one by one.

    A question of several lines begins and ends with three quotation marks; /help lists the commands.
    """

    model: Path = field(kw_only=False)
    """Model folder or GGUF file."""
    engine: Engine = "auto"
    """What computes: llamacpp, or torch for model folders that are not written as GGUF, and for guidance."""
    system: str = "default"
    """System prompt: default, long, a file that holds one, or the text itself ('' for none)."""
    max_tokens: int | None = None
    """Longest answer, in tokens (default: what the model's generation_config.json says, else 512)."""
    temperature: float | None = None
    """0 always takes the likeliest token; 1 draws as the model was trained (default: the model's, else 0.2)."""
    seed: int | None = None
    """Seed of the drawing; the same seed gives the same answers."""
    context: Context = None
    """Tokens of prompt and answer together (default: what the model was trained for); auto: up to 8 times as many, each
    request stretched by what it needs (torch), or twice as many, all stretched alike (llamacpp)."""
    kv_cache: KvCache | None = None
    """Bits of a number of keys and values (llamacpp: 16bit, 8bit or 4bit; torch keeps those it computes)."""
    draft: Path | None = None
    """A smaller model of the same tokenizer that guesses tokens; llamacpp tries for two seconds whether it gains."""
    threads: int | None = None
    """Threads of the computation (default: the physical cores)."""
    file: Path | None = None
    """Prompts to answer: a text file with one a line, or .jsonl with `prompt` or `messages`."""
    out: Path | None = None
    """Answers to the file, as .jsonl; a file that holds some of them is gone on with."""
    parallel: int = 4
    """Prompts of the file that are answered at the same time (llamacpp)."""

    def run(self) -> None:
        self.check()
        sampling, system = self.sampling(), system_message(self.system)
        prompts = read_prompts(self.file) if self.file else []
        parallel = min(self.parallel, len(prompts)) if prompts else 1
        given = {
            "context": self.context,
            "kv_cache": self.kv_cache,
            "draft": self.draft,
            "threads": self.threads,
            "parallel": parallel,
        }
        opening = open_speaker(self.engine, self.model, **given)  # type: ignore[arg-type]
        if self.out:
            question = self.question(sampling, system)
            new, failed = answer_file(opening, prompts, self.out, sampling, system, question)
            told = f"{new} of them new" if new else "finished before"
            print(f"chat: {len(prompts)} answers in {self.out}, {told}, {failed} errors", file=sys.stderr)
            return
        with opening as speaker:
            conversation = Conversation(speaker, sampling, system)
            if sys.stdin.isatty():
                conversation.hold()
            else:
                asked = decode(sys.stdin.buffer.read(), "standard input")
                conversation.answer_once(asked, as_json=self.json)

    def question(self, sampling: Sampling, system: Message) -> dict[str, Any]:
        """What the answers to a file depend on besides its prompts, in the form of a stage's question."""
        asked: dict[str, Any] = {"context": self.context, "kv_cache": self.kv_cache}
        engine = choose_engine(self.model, self.engine, draft=self.draft, **asked).engine
        inputs = {
            "model": by_content(self.model),
            "draft": self.draft and by_content(self.draft),
            "system prompt": {"sha256": sha256(system["content"].encode()).hexdigest()},
        }
        return make_question(type(self), {"engine": engine, **asked, **asdict(sampling)}, inputs)

    def check(self) -> None:
        """Raises UserError for a number that means nothing, and for a file without the other."""
        refuse_flags_below(
            ("max-tokens", self.max_tokens, 1),
            ("temperature", self.temperature, 0),
            ("threads", self.threads, 1),
            ("seed", self.seed, 0),
            ("parallel", self.parallel, 1),
        )
        if (self.file is None) != (self.out is None):
            raise UserError("--file and --out belong together", cure="give both")

    def sampling(self) -> Sampling:
        """The model's defaults, with what was asked for in their place."""
        asked = {"max_tokens": self.max_tokens, "temperature": self.temperature, "seed": self.seed}
        given = {name: value for name, value in asked.items() if value is not None}
        sampling = replace(Sampling.for_model(self.model), **given)  # type: ignore[arg-type]
        sampling.check()
        return sampling


def system_message(wanted: str) -> Message:
    """What `--system` means: the name of a prompt, a file that holds one, or the prompt itself."""
    if wanted in SYSTEM_PROMPTS:
        return {"role": "system", "content": SYSTEM_PROMPTS[wanted]}
    with suppress(OSError):  # a long text is no valid path
        if Path(wanted).is_file():
            wanted = decode(Path(wanted).read_bytes(), wanted)
    return {"role": "system", "content": wanted}


def decode(text: bytes, where: str) -> str:
    """UTF-8 without the space around it. Raises UserError for anything else."""
    try:
        return text.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise UserError("this is not UTF-8", where=where, cure="convert it (iconv does)") from error
