"""Encoders: the ids of the tokenizer itself, whichever library makes them, or that library is not taken."""

import json
import pickle
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from tests.conftest import SHARED, needs_shared
from tests.sentencepiece_model import make_chat_model
from yayan.corpus import encoders, tiktoken_bpe
from yayan.corpus.encoders import Encoder, open_encoder
from yayan.corpus.read import documents
from yayan.pretokenizers import BYTE_OF
from yayan.tokenizer import Tokenizer, load_tokenizer
from yayan.tokenizer_files import open_byte_level

LETTERS = list(BYTE_OF)
PARTS = [
    "a",
    "b",
    "ab",
    " ",
    "  ",
    "\n",
    "\t",
    "1",
    "23",
    "你好",
    "世界，",
    "é",
    "'s",
    "'LL",
    "🙂",
    "<s>",
    "</s>",
]
PARTS += [
    "<|endoftext|>",
    "▁",
    "\u3000",
    "\u200b",
    "ไทย",
    "한국어",
    "...",
    "\x7f",
    "\U0001f468\u200d\U0001f469",
]
TEXTS = st.lists(st.sampled_from(PARTS) | st.text(max_size=3), max_size=12).map("".join)
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def make_byte_level(
    folder: Path,
    merges: Sequence[tuple[str, str]],
    *,
    pattern: str | None = None,
    added: Sequence[str] = (),
    ignore_merges: bool = False,
    unmade: Sequence[str] = (),
) -> Path:
    """A byte-level BPE whose ids are in the order of the merges, then tokens that no merge makes."""
    folder.mkdir(parents=True, exist_ok=True)
    names = dict.fromkeys([*LETTERS, *(left + right for left, right in merges), *unmade])
    vocab = {name: number for number, name in enumerate(names)}
    fast = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=list(merges), ignore_merges=ignore_merges))
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    split = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")] if pattern else []
    fast.pre_tokenizer = pre_tokenizers.Sequence([*split, whole])
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken("</s>", special=True, normalized=False)])
    fast.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    fast.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    return folder


def trained_merges(pattern: str | None = None) -> list[tuple[str, str]]:
    """A few hundred merges, learnt from mixed text."""
    fast = tokenizers.Tokenizer(models.BPE())
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    split = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")] if pattern else []
    fast.pre_tokenizer = pre_tokenizers.Sequence([*split, whole])
    chooser = random.Random(0)
    words = ["hello", "world's", "世界你好", "ab" * 5, "12345", "\n\n", "    ", "可以", "aaaa", "über", "🙂"]
    texts = [" ".join(chooser.choices(words, k=30)) for _ in range(200)]
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=700, initial_alphabet=letters, show_progress=False)
    fast.train_from_iterator(texts, trainer)
    return [tuple(merge) for merge in json.loads(fast.to_str())["model"]["merges"]]


def same(encoder: Encoder, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    ids, lengths = encoder.encode_batch(texts)
    wanted = [tokenizer.encode(text) for text in texts]
    assert lengths.tolist() == list(map(len, wanted))
    assert ids.tolist() == [number for part in wanted for number in part]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Encoder, Tokenizer]]:
    """Each kind of encoder, with the tokenizer that it must equal."""
    root = tmp_path_factory.mktemp("tokenizers")
    make_chat_model(root / "sentencepiece")
    make_byte_level(root / "gpt-2", trained_merges())
    make_byte_level(root / "llama-3", trained_merges(LLAMA3), pattern=LLAMA3, added=["<tool>"])
    make_byte_level(root / "whole words", trained_merges(), ignore_merges=True, unmade=["zqx"])
    found = {}
    for folder in root.iterdir():
        tokenizer = load_tokenizer(folder)
        found[folder.name] = open_encoder(folder, tokenizer, text_bytes=1 << 40), tokenizer
        found[f"{folder.name}, native"] = open_encoder(folder, text_bytes=0), tokenizer
    found |= {f"{name}, sent": (pickle.loads(pickle.dumps(item)), cut) for name, (item, cut) in found.items()}
    return found


def test_the_fastest_is_chosen(opened: dict[str, tuple[Encoder, Tokenizer]]) -> None:
    names = {name: encoder.name for name, (encoder, _) in opened.items() if "," not in name}
    tiktoken = dict.fromkeys(("gpt-2", "llama-3", "whole words"), "tiktoken")
    assert names == {"sentencepiece": "sentencepiece", **tiktoken}


@settings(max_examples=200, deadline=None)
@given(st.lists(TEXTS, max_size=4))
def test_ids_are_those_of_the_tokenizer(
    opened: dict[str, tuple[Encoder, Tokenizer]], texts: list[str]
) -> None:
    for encoder, tokenizer in opened.values():
        same(encoder, tokenizer, texts)


HARD = [
    "",
    "a" * 5000,
    " " * 40_000,
    "\n" * 40_000,
    "!" * 20_000,
    "你" * 5000,
    "zqx zqxa",
    "x<tool>y",
    "</s>",
    "\ue000a",
]


def test_long_runs_and_odd_characters(opened: dict[str, tuple[Encoder, Tokenizer]]) -> None:
    for encoder, tokenizer in opened.values():
        same(encoder, tokenizer, [*HARD, "\U0003fffd", "a\u0378b"])


UNEQUAL = {
    "a union by another pair": [("b", "c"), ("a", "b"), ("ab", "c")],  # bc goes first: a and bc, and no ab
    "a pair before its part": [("b", "a"), ("aa", "ba"), ("a", "a"), ("b", "b")],
    "pairs of a union apart": [("a", "b"), ("ab", "c"), ("b", "c"), ("a", "bc")],
}


@pytest.mark.parametrize("case", UNEQUAL)
def test_a_list_that_tiktoken_cannot_follow_is_left_to_tokenizers(tmp_path: Path, case: str) -> None:
    folder = make_byte_level(tmp_path / "tokenizer", UNEQUAL[case])
    tokenizer = load_tokenizer(folder)
    encoder = open_encoder(folder, tokenizer, text_bytes=1 << 40)
    assert encoder.name == "tokenizers"
    same(encoder, tokenizer, ["abc", "aabcbcab", "aaba"])


def test_a_token_that_no_merge_reaches_is_not_made(tmp_path: Path) -> None:
    folder = make_byte_level(tmp_path / "tokenizer", [("b", "c"), ("c", "d"), ("a", "b")], unmade=["abcd"])
    tokenizer = load_tokenizer(folder)
    encoder = open_encoder(folder, tokenizer, text_bytes=1 << 40)
    assert encoder.name == "tiktoken"
    same(encoder, tokenizer, ["abcd", "xabcdx", "abc", "bcd ab cd"])


def test_other_ways_of_cutting_are_left_to_tokenizers(tmp_path: Path) -> None:
    pattern = r"\p{L}+|[^\p{L}]"
    folder = make_byte_level(tmp_path / "tokenizer", [("a", "b")], pattern=pattern)
    parts = json.loads((folder / "tokenizer.json").read_text())
    parts["pre_tokenizer"]["pretokenizers"].insert(0, {"type": "Digits", "individual_digits": True})
    (folder / "tokenizer.json").write_text(json.dumps(parts))
    assert open_encoder(folder, text_bytes=1 << 40).name == "tokenizers"


def test_a_small_corpus_is_not_worth_a_proof(tmp_path: Path) -> None:
    folder = make_byte_level(tmp_path / "tokenizer", [("a", "b")])
    assert open_encoder(folder, text_bytes=1 << 20).name == "tokenizers"


@needs_shared
def test_real_tokenizers_on_real_text(tmp_path: Path) -> None:
    gpt2 = tmp_path / "gpt-2"
    gpt2.mkdir()
    open_byte_level(SHARED / "data" / "tokenizers" / "gpt2.vocab.json").fast.save(
        str(gpt2 / "tokenizer.json")
    )
    (gpt2 / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    names = ("zh-docs-react", "zh-poetry", "en-tinystories", "zh-lctt-tech")
    texts = [d.text for d in documents([SHARED / "data" / name / "heldout.jsonl.xz" for name in names])]
    for folder, wanted in ((gpt2, "tiktoken"), (SHARED / "base" / "en-base-21m", "sentencepiece")):
        tokenizer = load_tokenizer(folder)
        encoder = open_encoder(folder, tokenizer, text_bytes=1 << 40)
        assert encoder.name == wanted
        if isinstance(encoder, encoders.Tiktoken):
            assert sum(encoder.bpe.encode(text) is None for text in texts) < 0.02 * len(texts)
        same(encoder, tokenizer, texts[:600])


def test_the_rule_of_tiktoken() -> None:
    ranks = {b"a": 0, b"b": 1, b"c": 2, b"bc": 3, b"ab": 4, b"abc": 5}
    assert tiktoken_bpe.cut(b"abc", ranks) == [b"abc"]
    assert tiktoken_bpe.cut(b"abc", {key: rank for key, rank in ranks.items() if rank < 5}) == [b"a", b"bc"]
