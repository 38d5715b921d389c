"""The verb `chat`: talk to a model in the terminal, or ask it once through a pipe."""

import json
import signal
import sys
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from yayan.engine.llamacpp import MAX_TOKENS, TEMPERATURE, LlamaCpp, Message, open_model
from yayan.errors import UserError, WorkError
from yayan.stage import Command
from yayan.template import SYSTEM_PROMPTS

with suppress(ImportError):
    import readline  # noqa: F401 (importing it gives input() line editing and history)

QUIT, CLEAR = "/quit", "/clear"
GREETING = f"{QUIT} or Ctrl-D leaves, {CLEAR} begins anew, Ctrl-C stops an answer."


@dataclass(frozen=True, kw_only=True)
class Chat(Command):
    """Talk to a model in the terminal; from a pipe it answers once, on standard output."""

    model: Path = field(kw_only=False)
    """Model folder or GGUF file."""
    system: str = "default"
    """System prompt: default, long, a file that holds one, or the text itself ('' for none)."""
    max_tokens: int = MAX_TOKENS
    """Longest answer, in tokens."""
    temperature: float = TEMPERATURE
    """0 always takes the likeliest token; 1 draws as the model was trained."""
    seed: int | None = None
    """Seed of the drawing; the same seed gives the same answers."""
    threads: int | None = None
    """Threads of the computation (default: the physical cores)."""

    def run(self) -> None:
        self.check()
        with open_model(self.model, threads=self.threads) as engine:
            engine.refuse_base_model()
            conversation = Conversation(engine, self, system_message(self.system))
            if sys.stdin.isatty():
                conversation.hold()
            else:
                question = decode(sys.stdin.buffer.read(), "standard input")
                conversation.answer_once(question, as_json=self.json)

    def check(self) -> None:
        """Raises UserError for a number that means nothing."""
        for name, value, least in (
            ("max-tokens", self.max_tokens, 1),
            ("temperature", self.temperature, 0),
            ("threads", self.threads, 1),
            ("seed", self.seed, 0),
        ):
            if value is not None and not value >= least:
                raise UserError(f"--{name} {value} means nothing", cure=f"give at least {least}")


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


class Conversation:
    """Turns of user and assistant after a system message."""

    def __init__(self, engine: LlamaCpp, options: Chat, system: Message) -> None:
        self.engine, self.options, self.system = engine, options, system
        self.turns: list[Message] = []

    def answer_once(self, question: str, *, as_json: bool) -> None:
        """Print the answer to one question, as it comes or as one JSON object."""
        if not question:
            raise UserError("nothing was asked", cure="pipe a question in, or start chat in a terminal")
        answer = self.ask(question, show=not as_json)
        if as_json:
            print(json.dumps({"question": question, "answer": answer}, ensure_ascii=False))

    def hold(self) -> None:
        """Turn by turn until the user leaves; Ctrl-C ends at most what is being said."""
        signal.signal(
            signal.SIGTERM, signal.SIG_DFL
        )  # the command line makes it a Ctrl-C, which does not leave here
        print(f"{self.engine.name}: {GREETING}")
        while True:
            try:
                line = input("\n> ").strip()
                if line == QUIT:
                    return
                self.take_turn(line)
            except KeyboardInterrupt:
                print(f"\n{GREETING}")
            except EOFError:
                print()
                return

    def take_turn(self, line: str) -> None:
        """A line of the user: a command, or a question, whose answer is shown as it comes."""
        if line == CLEAR:
            self.turns.clear()
        elif line:
            try:
                self.ask(line, show=True)
            except WorkError as error:
                print(f"{error} {CLEAR} begins anew.", file=sys.stderr)

    def ask(self, question: str, *, show: bool) -> str:
        """The answer, which becomes part of the conversation; in a terminal Ctrl-C ends it and keeps what was said."""
        asked: Message = {"role": "user", "content": question}
        answer = ""
        options = self.options
        pieces = self.engine.stream(
            [self.system, *self.turns, asked],
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            seed=options.seed,
        )
        with closing(pieces):
            try:
                for piece in pieces:
                    answer += piece
                    if show:
                        print(piece, end="", flush=True)
            except KeyboardInterrupt:
                if not sys.stdin.isatty():
                    raise
        if show:
            print()
        if answer:
            self.turns += [asked, {"role": "assistant", "content": answer}]
        return answer
