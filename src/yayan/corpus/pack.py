"""Stage `pack`: documents or chats -> shards."""

import dataclasses
import hashlib
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from yayan.corpus.blocks import Duplicates, Job
from yayan.corpus.clean import Cleaning
from yayan.corpus.decontaminate import DEFAULT_CHARACTERS, DEFAULT_WORDS, Decontaminator, record_text
from yayan.corpus.earlier import find_earlier
from yayan.corpus.encoders import Native, open_encoder
from yayan.corpus.files import CHAT_KINDS, kind_of, text_files
from yayan.corpus.packing import Packing, pack_files
from yayan.corpus.read import object_of, text_of
from yayan.corpus.records import Records, Split
from yayan.corpus.report import metrics_of, tell
from yayan.errors import UserError
from yayan.model.folder import TEMPLATE_FILE
from yayan.stage import InputPath, Stage
from yayan.template import LLAMA2_TEMPLATE, SYSTEM_PROMPTS, encode_chat
from yayan.tokenizer import Tokenizer, load_tokenizer
from yayan.vocab.scripts import Script

PROBE = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
WORKERS_FROM_BYTES = 8 << 20  # of files: a process takes a second to start, in which one packs about 10 MB


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pack(Stage):
    """Tokenise documents or chats into shards: whole ones back to back, nothing padded or cut."""

    tokenizer: InputPath
    """Folder of the tokenizer."""
    corpus: list[InputPath] = dataclasses.field(default_factory=list)
    """Documents: files, folders, patterns or - (standard input); txt, jsonl, json, parquet, csv; gz, xz, zst, bz2."""
    field: str | None = None
    """Name of the field that holds the text (none: text, content and the like, or the only one that is text)."""
    split: Split = "paragraph"
    """What is a document in a .txt file: a paragraph (up to a blank line), a line, or the whole file."""
    chats: list[InputPath] = dataclasses.field(default_factory=list)
    """Instead of a corpus: files of chats (messages, Alpaca's or ShareGPT's form)."""
    system: Literal["default", "long"] | None = None
    """Named system prompt for chats without one (none: what the chat template does then)."""
    chat_template: InputPath | None = None
    """Jinja file to render chats with, instead of the tokenizer's own, or of Llama-2's where it has none."""
    skip_bad: bool = False
    """Leave out lines that cannot be read, and chats that the template does not fit, and count them."""
    mojibake: bool = False
    """Mend text whose UTF-8 was once read as Latin-1 or the like (ftfy)."""
    control: bool = False
    """Take out control characters, zero-width and direction marks, private use; end lines alike."""
    normal_form: Literal["nfc", "nfkc"] | None = None
    """Unicode normal form. For Chinese take nfc: nfkc also turns full-width commas into ASCII ones."""
    simplified: bool = False
    """Turn traditional characters into simplified ones (OpenCC)."""
    min_characters: int | None = None
    """Drop documents with fewer characters."""
    max_characters: int | None = None
    """Drop documents with more characters."""
    max_symbols: float | None = None
    """Drop documents in which more than this share of the characters are symbols: no letter, digit or space."""
    script: list[Script] = dataclasses.field(default_factory=list)
    """Drop documents that are not written in these scripts: see --min-script."""
    min_script: float = 0.5
    """Drop documents in which less than this share of the letters belongs to the scripts."""
    max_lost: float | None = None
    """Drop documents in which more than this share of the characters was lost to a wrong encoding."""
    duplicates: Duplicates | None = None
    """Drop documents that were there before: exact ones, or near ones as well (MinHash)."""
    decontaminate: list[InputPath] = dataclasses.field(default_factory=list)
    """Evaluation sets: documents that share long n-grams with them are dropped and listed."""
    shared_characters: int = DEFAULT_CHARACTERS
    """Length of these n-grams in texts of a script without spaces."""
    shared_words: int = DEFAULT_WORDS
    """Length of these n-grams in other texts."""
    workers: int | None = None
    """Processes that do the work (none: one for each core)."""

    def check(self) -> None:
        if bool(self.corpus) == bool(self.chats):
            raise UserError("documents or chats are packed", cure="give one of --corpus and --chats")
        if self.corpus and (self.system or self.chat_template):
            raise UserError("documents have no template", cure="leave out --system and --chat-template")
        if self.workers is not None and self.workers < 1:
            raise UserError(f"workers is {self.workers}", where="workers", cure="give at least 1")
        self.cleaning().check()
        tokenizer = load_tokenizer(self.tokenizer)
        self.files()
        if self.decontaminate:
            text_files(self.decontaminate)
        if self.chats:
            encode_chat(tokenizer, PROBE, choose_template(tokenizer, self.chat_template))

    def files(self) -> list[Path]:
        return text_files(self.corpus) if self.corpus else text_files(self.chats, CHAT_KINDS)

    def cleaning(self) -> Cleaning:
        own = {field.name for field in dataclasses.fields(Cleaning)}
        return Cleaning(**{name: _tuple(value) for name, value in vars(self).items() if name in own})

    def run(self, work: Path) -> dict[str, object]:
        files, tokenizer = self.files(), load_tokenizer(self.tokenizer)
        template = choose_template(tokenizer, self.chat_template) if self.chats else None
        evaluation = evaluation_of(self.decontaminate, self.shared_characters, self.shared_words)
        size = sum(file.stat().st_size for file in files)
        job = Job(
            native=Native(self.tokenizer, tokenizer),
            encoder=open_encoder(self.tokenizer, tokenizer, text_bytes=0 if self.chats else size),
            bos=tokenizer.bos_id,
            eos=tokenizer.eos_id,
            field=self.field,
            skip_bad=self.skip_bad,
            template=template,
            system=SYSTEM_PROMPTS[self.system] if self.system else None,
            cleaning=self.cleaning(),
            decontaminator=evaluation,
            duplicates=self.duplicates,
        )
        settings = settings_of(job, tokenizer, self.split)
        packing = Packing(
            files=files,
            job=job,
            split=self.split,
            size=tokenizer.size,
            workers=1 if size < WORKERS_FROM_BYTES else self.workers or os.cpu_count() or 1,
            # which documents are duplicates depends on all that come before
            earlier=None if self.duplicates else find_earlier(self.out, settings),
        )
        about = about_of(tokenizer, template)
        counts, targets = pack_files(
            work, packing, {**about, "tokenizer": tokenizer.sha256, "settings": settings}
        )
        if template is not None:
            (work / TEMPLATE_FILE).write_text(template, encoding="utf-8")
        metrics = metrics_of(files, counts, targets)
        return metrics | {"kind": about["kind"], "tokenizer": tokenizer.sha256, "template": about["template"]}

    def tell(self, record: dict) -> None:
        tell(record["metrics"])


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def choose_template(tokenizer: Tokenizer, path: Path | None) -> str:
    """The template of a file, else the tokenizer's own, else Llama-2's."""
    if path is None:
        return tokenizer.template or LLAMA2_TEMPLATE
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the chat template cannot be read, {error}", where=path) from error


def evaluation_of(paths: list[Path], characters: int, words: int) -> Decontaminator | None:
    """The n-grams of evaluation sets; None if there are no sets."""
    if not paths:
        return None

    def texts() -> Iterator[tuple[str, str]]:
        for file in text_files(paths):
            for record in Records(file, "line"):
                place = f"{file.name}:{record.line}"
                if kind_of(file) == ".txt":
                    yield place, text_of(record, file, None, None) or ""
                else:
                    yield place, record_text(object_of(record, place))

    return Decontaminator(texts(), characters, words)


def settings_of(job: Job, tokenizer: Tokenizer, split: Split) -> str:
    """Hash (hex) of all that decides what becomes of a file, whatever stands beside it."""
    deciding = {
        "tokenizer": tokenizer.sha256,
        "ends": [tokenizer.bos_id, tokenizer.eos_id],
        "field": job.field,
        "split": split,
        "skip_bad": job.skip_bad,
        "template": job.template,
        "system": job.system,
        "cleaning": dataclasses.asdict(job.cleaning),
        "evaluation": None
        if job.decontaminator is None
        else hashlib.sha256(pickle.dumps(job.decontaminator)).hexdigest(),
        "duplicates": job.duplicates,
    }
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def about_of(tokenizer: Tokenizer, template: str | None) -> dict[str, object]:
    """What the index says of the documents' form."""
    if template is not None:
        sha256 = hashlib.sha256(template.encode()).hexdigest()
        rule = "as the template writes them"
        return {"kind": "chats", "template": sha256, "rule": rule, "bos": None, "eos": None}
    ends = [] if tokenizer.bos_id is None else [tokenizer.token(tokenizer.bos_id)]
    rule = " ".join([*ends, "text", tokenizer.token(tokenizer.eos_id)])
    return {
        "kind": "documents",
        "template": None,
        "rule": rule,
        "bos": tokenizer.bos_id,
        "eos": tokenizer.eos_id,
    }
