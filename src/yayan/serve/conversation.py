"""A conversation in the terminal: turns, and commands about them."""

import difflib
import json
import signal
import sys
import time
from contextlib import closing, suppress
from dataclasses import asdict, fields, replace
from pathlib import Path

from yayan.corpus.chats import chats
from yayan.engine.llamacpp import Message
from yayan.engine.sampling import Sampling
from yayan.errors import UserError, YayanError
from yayan.serve.speaker import Speaker

with suppress(ImportError):
    import readline  # noqa: F401 (importing it gives input() line editing and history)

COMMANDS = {
    "/help": "this list",
    "/quit": "leave, as Ctrl-D does",
    "/clear": "begin anew",
    "/regen": "answer the last question again",
    "/undo": "forget the last question and its answer",
    "/system TEXT": "show or change the system prompt",
    "/set KEY=VALUE": "show or change how answers are drawn, such as temperature=0.7",
    "/save FILE": "write the conversation as .jsonl, as `yayan pack` reads it",
    "/load FILE": "go on with a conversation that was saved",
}
BLOCK = '"""'
GREETING = (
    f"/help lists the commands, {BLOCK} begins and ends a text of several lines, Ctrl-C stops an answer."
)


class Conversation:
    """Turns of user and assistant after a system message."""

    def __init__(self, speaker: Speaker, sampling: Sampling, system: Message) -> None:
        self.speaker, self.sampling, self.system = speaker, sampling, system
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
        print(f"{self.speaker.name}: {self.speaker.memory}\n{GREETING}")
        while True:
            try:
                text = read_turn()
                if text == "/quit":
                    return
                self.take_turn(text)
            except KeyboardInterrupt:
                print(f"\n{GREETING}")
            except EOFError:
                print()
                return

    def take_turn(self, text: str) -> None:
        """What the user typed: a command, or a question, whose answer is shown as it comes."""
        word, _, rest = text.partition(" ")
        try:
            if word.startswith("/"):
                self.obey(word, rest.strip())
            elif text:
                self.show_answer(text)
        except YayanError as error:
            print(f"{error} /clear begins anew.", file=sys.stderr)

    def obey(self, word: str, rest: str) -> None:
        """Carry out a command. Raises UserError for one that is none or that does not work."""
        commands = {
            "/help": lambda: print("\n".join(f"{name:16}{what}" for name, what in COMMANDS.items())),
            "/clear": self.turns.clear,
            "/regen": self.regenerate,
            "/undo": self.undo,
            "/system": lambda: self.change_system(rest),
            "/set": lambda: self.change_setting(rest),
            "/save": lambda: self.save(named(rest)),
            "/load": lambda: self.load(named(rest)),
        }
        if word not in commands:
            near = difflib.get_close_matches(word, [*commands, "/quit"], n=1)
            cure = f"did you mean {near[0]}?" if near else "/help lists them"
            raise UserError("there is no such command", where=word, cure=cure)
        commands[word]()

    def regenerate(self) -> None:
        """Another answer to the last question (the same one, where nothing is drawn or the seed is fixed); the last one
        stays where nothing is said.
        """
        before = list(self.turns)
        question = self.undo()
        try:
            self.show_answer(question)
        finally:
            if len(self.turns) < len(before):
                self.turns = before

    def undo(self) -> str:
        """Forget the last question and its answer; the question."""
        if len(self.turns) < 2:
            raise UserError("nothing was asked yet", cure="ask something")
        question = self.turns[-2]["content"]
        del self.turns[-2:]
        return question

    def change_system(self, text: str) -> None:
        if text:
            self.system = {"role": "system", "content": text}
        print(self.system["content"])

    def change_setting(self, text: str) -> None:
        if text:
            self.sampling = with_setting(self.sampling, text)
        print(" ".join(f"{name}={value}" for name, value in asdict(self.sampling).items()))

    def save(self, path: Path) -> None:
        messages = [self.system, *self.turns] if self.system["content"] else self.turns
        try:
            path.write_text(json.dumps({"messages": messages}, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(
                "the conversation cannot be written", where=path, cure="name another file"
            ) from error

    def load(self, path: Path) -> None:
        messages = next(chats([path])).messages
        system = messages[0]["role"] == "system"
        self.system = messages[0] if system else {"role": "system", "content": ""}
        self.turns = messages[1:] if system else messages
        if len(self.turns) % 2:  # a last question that nobody answered
            self.show_answer(self.turns.pop()["content"])

    def show_answer(self, question: str) -> None:
        """The answer, then how fast it came."""
        begun = time.monotonic()
        self.ask(question, show=True)
        seconds = max(time.monotonic() - begun, 1e-9)
        print(f"({self.speaker.tokens} tokens, {self.speaker.tokens / seconds:.1f} tokens/s)")

    def ask(self, question: str, *, show: bool) -> str:
        """The answer, which becomes part of the conversation; in a terminal Ctrl-C ends it and keeps what was said."""
        asked: Message = {"role": "user", "content": question}
        answer = ""
        with closing(self.speaker.stream([self.system, *self.turns, asked], self.sampling)) as pieces:
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


def read_turn() -> str:
    """A line, or the lines between two marks."""
    line = input("\n> ").strip()
    if not line.startswith(BLOCK):
        return line
    lines = [line.removeprefix(BLOCK)]
    while not lines[-1].rstrip().endswith(BLOCK):
        lines.append(input("... "))
    lines[-1] = lines[-1].rstrip().removesuffix(BLOCK)
    return "\n".join(lines).strip()


def named(text: str) -> Path:
    """The file that a command names."""
    if not text:
        raise UserError("no file is named", cure="name one after the command, such as talk.jsonl")
    return Path(text)


def with_setting(sampling: Sampling, text: str) -> Sampling:
    """A setting written KEY=VALUE in the place of what was. Raises UserError for one that means nothing."""
    name, _, written = (part.strip() for part in text.partition("="))
    known = [item.name for item in fields(Sampling)]
    if name not in known or not written:
        raise UserError(f"{text!r} sets nothing", cure=f"write KEY=VALUE with one of {', '.join(known)}")
    try:
        value = json.loads(written)
    except ValueError:
        value = written
    if name == "stop":
        value = tuple(value) if isinstance(value, list) else (written,)
    if name == "logit_bias" and isinstance(value, dict):
        value = {int(token) if token.isdecimal() else token: bias for token, bias in value.items()}
    changed = replace(sampling, **{name: value})
    changed.check()
    return changed
