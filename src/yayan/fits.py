"""Do these things fit together? Models, adapters, tokenizers, shards and GGUF files: each looked at, then all of them.

Nothing is trusted by its name: a tokenizer is what decides its ids, a template is its text, weights are read once for
what is not a number.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from yayan.corpus.shards import INDEX_NAME, Shards
from yayan.errors import UserError
from yayan.lineage import licences_of
from yayan.model.folder import INPUT_END, TEMPLATE_FILE, read_config, read_json
from yayan.model.sharding import empty_model
from yayan.progress import Progress
from yayan.tokenizer import load_tokenizer
from yayan.weights.adapter import read_adapter
from yayan.weights.ggml import read_header
from yayan.weights.stream import TensorSource, open_tensors, totals

NON_COMMERCIAL = ("-nc", "noncommercial", "non-commercial")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")


@dataclass(frozen=True)
class Thing:
    """What one path is, and what of it must agree with the others. `troubles`: sentences about itself alone."""

    path: Path
    kind: str
    tokenizer: str | None = None  # the hash of what decides its ids
    tokens: int | None = None
    rows: int | None = None
    template: str | None = None  # the hash of its text
    end: int | None = None  # the id that ends a text
    facts: dict[str, Any] = field(default_factory=dict)
    troubles: tuple[str, ...] = ()


def look(paths: Sequence[Path]) -> tuple[list[Thing], list[str]]:
    """Each thing, and in sentences what is wrong with one or between two of them.

    Raises UserError for a path that is nothing of the kind, or too broken to be looked at.
    """
    models = [path for path in paths if path.is_dir() and (path / "config.json").is_file()]
    things = [look_at(path, models) for path in paths]
    troubles = [f"{thing.path}: {trouble}" for thing in things for trouble in thing.troubles]
    for i, one in enumerate(things):
        for other in things[i + 1 :]:
            troubles += [f"{one.path} and {other.path}: {trouble}" for trouble in between(one, other)]
    return things, troubles


def look_at(path: Path, models: Sequence[Path]) -> Thing:
    """One path. `models`: model folders among the others, which an adapter is held against."""
    kinds: tuple[tuple[bool, Callable[[], Thing]], ...] = (
        (path.suffix == ".gguf", lambda: look_at_gguf(path)),
        ((path / "adapter_config.json").is_file(), lambda: look_at_adapter(path, models)),
        ((path / "config.json").is_file(), lambda: look_at_model(path)),
        ((path / INDEX_NAME).is_file(), lambda: look_at_shards(path)),
        (any((path / name).is_file() for name in TOKENIZER_FILES), lambda: look_at_tokenizer(path)),
    )
    for found, look_closer in kinds:
        if found:
            return look_closer()
    what = "this is no model, adapter, tokenizer, shards folder or GGUF file"
    raise UserError(what if path.exists() else "nothing is there", where=path, cure="check the path")


def look_at_model(path: Path) -> Thing:
    config = read_config(path)
    source = open_tensors(path)
    empty_model(path, torch.float32)  # refuses other tensors than the configuration asks for
    rows = source.shape(INPUT_END)[0]
    troubles = [f"{name} holds NaN or infinity: make it again" for name in not_finite(source)]
    common = tokenizer_of(path) if any((path / name).is_file() for name in TOKENIZER_FILES) else {}
    if not common:
        troubles.append("it has no tokenizer: copy its own into the folder")
    elif common["tokens"] > rows:
        troubles.append(f"the tokenizer has {common['tokens']} tokens for {rows} rows: grow the model")
    ends = config.get("eos_token_id")
    if common and ends is not None and common["end"] not in (ends if isinstance(ends, list) else [ends]):
        troubles.append(
            f"config.json ends a text with {ends}, the tokenizer with {common['end']}: correct config.json"
        )
    rope = config.get("rope_parameters") or config.get("rope_scaling") or "plain"
    facts = totals(source.specs) | {
        "positions": config["max_position_embeddings"],
        "rope": rope,
        "rows_without_tokens": rows - common.get("tokens", rows),
        "licences": licences_of(path),
    }
    return Thing(
        path, "model", rows=rows, facts=facts, troubles=tuple(troubles + licence_troubles(path)), **common
    )


def look_at_adapter(path: Path, models: Sequence[Path]) -> Thing:
    config = read_json(path / "adapter_config.json")
    source = open_tensors(path, "adapter_model")
    troubles = [f"{name} holds NaN or infinity: train it again" for name in not_finite(source)]
    for model in models:
        tied = bool(read_config(model).get("tie_word_embeddings"))
        try:
            read_adapter(path, open_tensors(model).specs, tied=tied)
        except UserError as error:
            troubles.append(f"{error} (with {model})")
    facts = totals(source.specs) | {"type": config.get("peft_type"), "rank": config.get("r")}
    common = tokenizer_of(path) if any((path / name).is_file() for name in TOKENIZER_FILES) else {}
    common.setdefault("template", text_hash(path / TEMPLATE_FILE))
    return Thing(path, "adapter", facts=facts, troubles=tuple(troubles + licence_troubles(path)), **common)


def look_at_tokenizer(path: Path) -> Thing:
    return Thing(path, "tokenizer", **tokenizer_of(path))


def look_at_shards(path: Path) -> Thing:
    shards = Shards.open(path)
    facts = {"kind": shards.index["kind"], "documents": len(shards.lengths), "tokens": len(shards.ids)}
    template = text_hash(path / TEMPLATE_FILE)
    troubles = tuple(licence_troubles(path))
    return Thing(path, "shards", shards.index["tokenizer"], template=template, facts=facts, troubles=troubles)


def look_at_gguf(path: Path) -> Thing:
    header = read_header(path)
    template = None if header.template is None else hashlib.sha256(header.template.encode()).hexdigest()
    facts = {"architecture": header.architecture, "positions": header.context}
    return Thing(path, "GGUF", template=template, end=header.eos, facts=facts)


def tokenizer_of(path: Path) -> dict[str, Any]:
    """What a folder's tokenizer says, as the fields of a Thing."""
    tokenizer = load_tokenizer(path)
    return {
        "tokenizer": tokenizer.sha256,
        "tokens": tokenizer.size,
        "end": tokenizer.eos_id,
        "template": None if tokenizer.template is None else text_hash_of(tokenizer.template),
    }


def text_hash(path: Path) -> str | None:
    return text_hash_of(path.read_text(encoding="utf-8")) if path.is_file() else None


def text_hash_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def not_finite(source: TensorSource) -> Iterator[str]:
    """Names of the tensors that hold NaN or infinity."""
    with Progress(f"read {source.folder}", total=len(source.specs), unit="tensors") as bar:
        for name, spec in source.specs.items():
            low, high = torch.aminmax(source.read(name)) if spec.elements else (torch.zeros(()),) * 2
            if not (low.isfinite() and high.isfinite()):
                yield name
            bar.advance()


def licence_troubles(path: Path) -> list[str]:
    """A licence in its lineage that forbids commercial use."""
    odd = [name for name in licences_of(path) if any(mark in name.lower() for mark in NON_COMMERCIAL)]
    return [f"it comes from something under {name}, which forbids commercial use" for name in odd]


def between(one: Thing, other: Thing) -> Iterator[str]:
    """What two things do not agree about."""
    if one.tokenizer and other.tokenizer and one.tokenizer != other.tokenizer:
        yield f"another tokenizer{sizes_of(one, other)}: pack or train again with the same one"
    if one.template and other.template and one.template != other.template:
        yield "another chat template: pack the chats with the model's, or serve it with theirs"
    if None not in (one.end, other.end) and one.end != other.end:
        yield f"texts end with {one.end} in one and with {other.end} in the other: use the same tokenizer"
    tokens, rows = (one.tokens, other.rows) if one.rows is None else (other.tokens, one.rows)
    brings_rows = "adapter" in (one.kind, other.kind)
    if tokens and rows and tokens > rows and not brings_rows:
        yield f"{tokens} tokens for {rows} rows: grow the model"


def sizes_of(one: Thing, other: Thing) -> str:
    return f" ({one.tokens} and {other.tokens} tokens)" if one.tokens and other.tokens else ""


def tell(things: Sequence[Thing], troubles: Sequence[str], *, as_json: bool) -> None:
    """Print what was found; raises UserError if something does not fit."""
    if as_json:
        rows = [vars(thing) | {"path": str(thing.path)} for thing in things]
        print(json.dumps({"things": rows, "troubles": list(troubles)}, default=str, ensure_ascii=False))
    else:
        console = Console(highlight=False)
        for thing in things:
            known = {name: getattr(thing, name) for name in ("rows", "tokens", "end")} | thing.facts
            words = ", ".join(
                f"{name} {value}" for name, value in known.items() if value not in (None, [], "")
            )
            console.print(f"{thing.kind} {escape(str(thing.path))}: {escape(words)}", soft_wrap=True)
        for trouble in troubles:
            console.print(f"  ! {escape(trouble)}", soft_wrap=True)
    if troubles:
        what = f"{len(troubles)} {'thing does' if len(troubles) == 1 else 'things do'} not fit"
        raise UserError(what, cure="each has its cure above")
    if not as_json:
        print("They fit together." if len(things) > 1 else "It is whole.")
