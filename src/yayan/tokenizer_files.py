"""Byte-level BPE tokenizers in the forms in which they are published: `tokenizer.json`, GPT-2's pair of files, GGUF.

All become a `tokenizers.Tokenizer` with the ids of the original. GPT-2's pair comes from
https://github.com/openai/gpt-2 (encoder.json, vocab.bpe), Hugging Face calls the files vocab.json and merges.txt.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from gguf import TokenType
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from yayan.errors import UserError
from yayan.model.folder import read_json
from yayan.pretokenizers import EXPRESSIONS, TAKES_WORDS, pre_name_of, pre_tokenizer
from yayan.tokenizer import read_fast, read_template, special_ids_of_folder
from yayan.weights.gguf_vocabulary import Vocabulary, read_vocabulary

VOCAB, MERGES = "vocab.json", "merges.txt"
# What is taken for BOS and EOS where no file beside the tokenizer declares them, if it has them as special tokens
USUAL = {"bos": ("<s>", "<|endoftext|>"), "eos": ("</s>", "<|endoftext|>")}
PAIR_CLASSES = (None, "GPT2Tokenizer", "GPT2TokenizerFast")
KINDS = {"llama": "SentencePiece BPE", "bert": "WordPiece", "t5": "Unigram"}  # llama.cpp's names
SUPPORTED = "a byte-level BPE is: tokenizer.json, vocab.json with merges.txt, or a GGUF file"


@dataclass(frozen=True)
class ByteLevelTokenizer:
    """A byte-level BPE as published."""

    fast: tokenizers.Tokenizer
    """It parses special tokens in a text."""
    special_ids: dict[str, int]
    """Ids of bos, eos and pad, as far as they are declared or usual."""
    template: str | None

    @property
    def pre_name(self) -> str | None:
        """llama.cpp's name for the pre-tokenizer, if it has one."""
        return pre_name_of(self.fast)


def read_byte_level(path: Path) -> tokenizers.Tokenizer:
    """The native tokenizer of `open_byte_level`."""
    return open_byte_level(path).fast


def open_byte_level(path: Path) -> ByteLevelTokenizer:
    """A byte-level BPE: of a folder, a `tokenizer.json`, a `vocab.json` with `merges.txt` beside it, or a GGUF file.

    Files may have a prefix (`gpt2.vocab.json`, `gpt2.merges.txt`). Raises UserError, naming the kind, for another kind
    of tokenizer, and for files that are damaged or contradict each other.
    """
    if not path.exists():
        raise UserError("there is no such file or folder", where=path, cure="check the path")
    if path.suffix == ".gguf":
        return _of_gguf(path)
    if path.is_dir() and (path / "tokenizer.json").is_file():
        return _of_json(path / "tokenizer.json")
    if path.is_dir():
        return _of_pair(path / VOCAB, path / MERGES)
    for own in (VOCAB, MERGES):
        if path.name.endswith(own):
            stem = path.name.removesuffix(own)
            return _of_pair(path.with_name(stem + VOCAB), path.with_name(stem + MERGES))
    return _of_json(path)


def require_byte_level(fast: tokenizers.Tokenizer, where: object) -> None:
    """Raises UserError, naming the kind, unless a tokenizer is a plain byte-level BPE that can write every text."""
    parts = json.loads(fast.to_str())
    model, kind = parts["model"], parts["model"]["type"]
    bytewise = '"ByteLevel"' in json.dumps(parts["pre_tokenizer"])
    missing = utf8_letters() - model["vocab"].keys() if kind == "BPE" and bytewise else set()
    refusals = {
        f"a tokenizer of kind {kind} is no byte-level BPE": kind != "BPE",
        "a tokenizer of kind BPE without bytes is no byte-level BPE": not bytewise,
        f"a byte-level BPE without tokens for {len(missing)} of the bytes cannot write every text": bool(
            missing
        ),
        "a byte-level BPE with dropout is not supported": bool(model.get("dropout")),
        "a byte-level BPE that marks parts of words is not supported": bool(
            model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
        ),
    }
    for what, refused in refusals.items():
        if refused:
            raise UserError(what, where=where, cure=SUPPORTED)


def utf8_letters() -> set[str]:
    """The letters of a byte-level vocabulary for the 243 bytes that occur in UTF-8."""
    text = "".join(map(chr, [*range(0x800), *range(0x800, 0xD800, 0x40), *range(0xE000, 0x110000, 0x1000)]))
    encoded = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return {letter for piece, _ in encoded for letter in piece}


def _of_json(file: Path) -> ByteLevelTokenizer:
    fast = read_fast(file)
    require_byte_level(fast, file)
    folder = file.parent if file.name == "tokenizer.json" else None
    return _declared(fast, folder)


def _declared(fast: tokenizers.Tokenizer, folder: Path | None) -> ByteLevelTokenizer:
    """With the special tokens that the small files of its folder declare, or else with the usual ones."""
    ids = special_ids_of_folder(folder, fast) if folder else {}
    special = {
        token.content: number for number, token in fast.get_added_tokens_decoder().items() if token.special
    }
    for kind, names in USUAL.items():
        found = [special[name] for name in names if name in special]
        if found:
            ids.setdefault(kind, found[0])
    return ByteLevelTokenizer(fast, ids, read_template(folder) if folder else None)


def _of_pair(vocab_file: Path, merges_file: Path) -> ByteLevelTokenizer:
    """GPT-2's form, which says nothing of the pre-tokenizer: it is GPT-2's."""
    for file in (vocab_file, merges_file):
        if not file.is_file():
            raise UserError(f"there is no {file.name}", where=file.parent, cure=SUPPORTED)
    folder = vocab_file.parent if vocab_file.name == VOCAB else None
    settings: dict = {}
    if folder:
        _refuse_other_class(folder)
        if (folder / "tokenizer_config.json").is_file():
            settings = read_json(folder / "tokenizer_config.json")
    vocab = read_json(vocab_file)
    specials = [name for name in dict.fromkeys([*USUAL["bos"], *USUAL["eos"]]) if name in vocab]
    fast = _build(vocab, read_merges(merges_file), vocab_file)
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=bool(settings.get("add_prefix_space")), use_regex=True
    )
    fast.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in specials])
    require_byte_level(fast, vocab_file)
    return _declared(fast, folder)


def _refuse_other_class(folder: Path) -> None:
    cure = "take the folder with its tokenizer.json"
    if (folder / "added_tokens.json").is_file():
        what = "tokens added beside vocab.json and merges.txt are not supported"
        raise UserError(what, where=folder / "added_tokens.json", cure=cure)
    file = folder / "tokenizer_config.json"
    name = read_json(file).get("tokenizer_class") if file.is_file() else None
    if name not in PAIR_CLASSES:
        what = f"{name} cuts text in a way that vocab.json and merges.txt do not tell"
        raise UserError(what, where=file, cure=cure)


def read_merges(file: Path) -> list[tuple[str, str]]:
    """The merges of a `merges.txt`, best first. A first line `#version: ...` is none; others may begin with `#`."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError("this file is not UTF-8", where=file, cure="fetch it again") from error
    if lines[0].startswith("#version"):
        lines[0] = ""
    merges = []
    for number, line in enumerate(lines, 1):
        parts = line.removesuffix("\r").split(" ")
        if parts == [""]:
            continue
        if len(parts) != 2 or "" in parts:
            raise UserError(
                "this is not a merge of two pieces", where=f"{file}:{number}", cure="fetch it again"
            )
        merges.append((parts[0], parts[1]))
    return merges


def _build(vocab: dict[str, int], merges: list[tuple[str, str]], where: Path) -> tokenizers.Tokenizer:
    """A byte-level BPE, still without its pre-tokenizer."""
    try:
        fast = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    except Exception as error:  # the native library raises the bare class
        what = f"tokens and merges do not fit together, {' '.join(str(error).split())}"
        raise UserError(what, where=where, cure="take the files of one model") from error
    fast.decoder = decoders.ByteLevel()
    return fast


def _of_gguf(path: Path) -> ByteLevelTokenizer:
    """The vocabulary of a GGUF file. Rows that are named `[PADn]`, as rows without a token are, are left out."""
    found = read_vocabulary(path)
    if found.model != "gpt2":
        kind = KINDS.get(found.model, found.model or "unknown")
        what = f"a GGUF vocabulary of kind {kind} is no byte-level BPE"
        raise UserError(what, where=path, cure=SUPPORTED)
    cut = pre_tokenizer(found.pre)
    if cut is None:
        what = f"the pre-tokenizer {found.pre or 'without a name'} is not supported"
        raise UserError(what, where=path, cure=f"{', '.join(EXPRESSIONS)} are")
    names = {index: token for index, token in enumerate(found.tokens) if token != f"[PAD{index}]"}
    vocab = {token: index for index, token in names.items()}
    if len(vocab) < len(names):
        raise UserError("this vocabulary has a token twice", where=path, cure="take another file")
    merges = [tuple(merge.split(" ", 1)) for merge in found.merges]
    fast = _build(vocab, merges, path)  # type: ignore[arg-type]
    fast.pre_tokenizer = cut
    fast.model.ignore_merges = found.pre == TAKES_WORDS
    _add_tokens(fast, found, names)
    require_byte_level(fast, path)
    return ByteLevelTokenizer(fast, found.special_ids, found.template)


def _add_tokens(fast: tokenizers.Tokenizer, found: Vocabulary, names: dict[int, str]) -> None:
    """Tokens that are cut out of a text before all else; llama.cpp takes special ones only if it is asked to."""
    added: dict[TokenType, list[AddedToken]] = {TokenType.CONTROL: [], TokenType.USER_DEFINED: []}
    for index, token in names.items():
        kind = TokenType(found.types[index])
        if kind in added:
            special = kind == TokenType.CONTROL
            added[kind].append(AddedToken(token, normalized=False, special=special))
    fast.add_special_tokens(added[TokenType.CONTROL])
    fast.add_tokens(added[TokenType.USER_DEFINED])
