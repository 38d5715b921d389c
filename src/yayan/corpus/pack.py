"""Stage `pack`: documents or chats -> shards."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from yayan.corpus.read import CHAT_KINDS, Chat, Document, chats, documents, text_files
from yayan.corpus.shards import ShardWriter
from yayan.errors import UserError
from yayan.model.folder import TEMPLATE_FILE
from yayan.progress import Progress
from yayan.stage import InputPath, Stage
from yayan.template import LLAMA2_TEMPLATE, SYSTEM_PROMPTS, encode_chat
from yayan.tokenizer import Tokenizer, load_tokenizer

BATCH_CHARACTERS = 1 << 20
PROBE = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pack(Stage):
    """Tokenise documents or chats into shards: whole ones back to back, nothing padded or cut."""

    tokenizer: InputPath
    """Folder of the tokenizer."""
    corpus: list[InputPath] = dataclasses.field(default_factory=list)
    """Files or folders of documents: .txt (a document is a paragraph), .jsonl; also as .gz, .xz, .bz2."""
    field: str = "text"
    """Name of the text in the objects of a .jsonl file."""
    chats: list[InputPath] = dataclasses.field(default_factory=list)
    """Instead of a corpus: .jsonl files of chats (messages, Alpaca's or ShareGPT's form)."""
    system: Literal["default", "long"] | None = None
    """Named system prompt for chats without one (none: what the chat template does then)."""
    chat_template: InputPath | None = None
    """Jinja file to render chats with, instead of the tokenizer's own, or of Llama-2's where it has none."""

    def check(self) -> None:
        if bool(self.corpus) == bool(self.chats):
            raise UserError("documents or chats are packed", cure="give one of --corpus and --chats")
        if self.corpus and (self.system or self.chat_template):
            raise UserError("documents have no template", cure="leave out --system and --chat-template")
        tokenizer = load_tokenizer(self.tokenizer)
        if self.corpus:
            text_files(self.corpus)
        else:
            text_files(self.chats, CHAT_KINDS)
            encode_chat(tokenizer, PROBE, choose_template(tokenizer, self.chat_template))

    def run(self, work: Path) -> dict[str, object]:
        tokenizer = load_tokenizer(self.tokenizer)
        if self.corpus:
            return pack_documents(work, tokenizer, documents(self.corpus, self.field))
        template = choose_template(tokenizer, self.chat_template)
        system = SYSTEM_PROMPTS[self.system] if self.system else None
        return pack_chats(work, tokenizer, chats(self.chats), template, system)


@dataclasses.dataclass
class Counts:
    """What a source has given."""

    documents: int = 0
    characters: int = 0
    bytes: int = 0
    tokens: int = 0

    def add(self, texts: Iterable[str], tokens: int) -> None:
        self.documents += 1
        self.tokens += tokens
        for text in texts:
            self.characters += len(text)
            self.bytes += len(text.encode())

    def report(self) -> dict[str, object]:
        ratio = round(self.tokens / max(self.characters, 1), 4)
        return dataclasses.asdict(self) | {"tokens_per_character": ratio}


def pack_documents(folder: Path, tokenizer: Tokenizer, texts: Iterable[Document]) -> dict[str, object]:
    """Write documents as `BOS text EOS`, without the BOS where the tokenizer has none. Returns the metrics.

    A blank document is dropped and counted. Raises UserError if nothing is left.
    """
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    eos = [tokenizer.eos_id]
    sources: dict[Path, Counts] = {}
    dropped: Counter[str] = Counter(blank=0)
    with (
        ShardWriter(folder, size=tokenizer.size, masked=False) as writer,
        Progress("pack", unit="documents") as bar,
    ):
        for batch in _batches(texts, dropped):
            for document, ids in zip(batch, tokenizer.encode_batch([d.text for d in batch]), strict=True):
                writer.add(bos + ids + eos)
                counts = sources.setdefault(document.source, Counts())
                counts.add([document.text], len(bos) + len(ids) + len(eos))
            bar.advance(len(batch))
        rule = " ".join([*map(tokenizer.token, bos), "text", *map(tokenizer.token, eos)])
        ends = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id}
        about = {"kind": "documents", "template": None, "rule": rule, **ends}
        return _finish(writer, tokenizer, about, sources, dropped)


def pack_chats(
    folder: Path, tokenizer: Tokenizer, dialogues: Iterable[Chat], template: str, system: str | None
) -> dict[str, object]:
    """Write chats as the template renders them, with their mask, and the template. Returns the metrics.

    `system`: prompt for chats that have none. A chat without an answer is dropped and counted. Raises UserError for a
    chat that the template does not fit, or if nothing is left.
    """
    sources: dict[Path, Counts] = {}
    dropped: Counter[str] = Counter(without_answer=0)
    with (
        ShardWriter(folder, size=tokenizer.size, masked=True) as writer,
        Progress("pack", unit="chats") as bar,
    ):
        for chat in dialogues:
            bar.advance()
            if not any(turn["role"] == "assistant" and turn["content"].strip() for turn in chat.messages):
                dropped["without_answer"] += 1
                continue
            messages = chat.messages
            if system is not None and messages[0]["role"] != "system":
                messages = [{"role": "system", "content": system}, *messages]
            ids, mask = _encode(tokenizer, messages, template, f"{chat.source}:{chat.line}")
            writer.add(ids, mask)
            texts = [turn["content"] for turn in chat.messages]
            sources.setdefault(chat.source, Counts()).add(texts, len(ids))
        (folder / TEMPLATE_FILE).write_text(template, encoding="utf-8")
        sha256 = hashlib.sha256(template.encode()).hexdigest()
        rule = "as the template writes them"
        about = {"kind": "chats", "template": sha256, "rule": rule, "bos": None, "eos": None}
        return _finish(writer, tokenizer, about, sources, dropped)


def choose_template(tokenizer: Tokenizer, path: Path | None) -> str:
    """The template of a file, else the tokenizer's own, else Llama-2's."""
    if path is None:
        return tokenizer.template or LLAMA2_TEMPLATE
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the chat template cannot be read, {error}", where=path) from error


def _batches(texts: Iterable[Document], dropped: Counter[str]) -> Iterator[list[Document]]:
    """Documents together until they have BATCH_CHARACTERS: enough for all cores, little to hold."""
    batch: list[Document] = []
    characters = 0
    for document in texts:
        if not document.text.strip():
            dropped["blank"] += 1
            continue
        batch.append(document)
        characters += len(document.text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encode(
    tokenizer: Tokenizer, messages: Sequence[dict[str, str]], template: str, where: str
) -> tuple[list[int], list[int]]:
    try:
        return encode_chat(tokenizer, messages, template)
    except UserError as error:
        raise UserError(str(error).removesuffix("."), where=where) from error


def _finish(
    writer: ShardWriter,
    tokenizer: Tokenizer,
    about: Mapping[str, object],
    sources: dict[Path, Counts],
    dropped: Counter[str],
) -> dict[str, object]:
    """Write the index and return the metrics."""
    if not sources:
        raise UserError(
            "no document is left to pack", cure=f"all {dropped.total()} were dropped, look at them"
        )
    named = [{"name": "/".join(path.parts[-2:])} | counts.report() for path, counts in sources.items()]
    writer.finish({**about, "tokenizer": tokenizer.sha256, "sources": named, "dropped": dict(dropped)})
    whole = Counts(
        *(sum(getattr(c, name) for c in sources.values()) for name in dataclasses.asdict(Counts()))
    )
    return {
        "kind": about["kind"],
        **whole.report(),
        "targets": writer.targets,
        "dropped": dict(dropped),
        "sources": named,
        "tokenizer": tokenizer.sha256,
        "template": about["template"],
    }
