"""Pre-tokenizers and llama.cpp's names for them."""

from collections.abc import Sequence

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from tests.byte_level import pairs_tokenizer
from yayan.pretokenizers import EXPRESSIONS, GPT2, pre_name_of, pre_tokenizer

BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def name_of(*steps: pre_tokenizers.PreTokenizer) -> str | None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps])
    return pre_name_of(tokenizer)


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_a_name_is_found_again(name: str) -> None:
    assert pre_name_of(pairs_tokenizer(name)) == name


def test_unknown_names_and_unknown_definitions() -> None:
    assert pre_tokenizer("default") is None
    assert pre_name_of(Tokenizer(models.BPE())) is None
    assert name_of(pre_tokenizers.Digits(individual_digits=True), BYTES) is None
    assert name_of(pre_tokenizers.Split(Regex(GPT2), "removed"), BYTES) is None
    assert name_of(pre_tokenizers.Split(Regex(GPT2), "isolated")) is None
    assert name_of(pre_tokenizers.ByteLevel(add_prefix_space=True)) is None


def test_ways_of_writing_the_same() -> None:
    assert name_of(pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)) == "gpt-2"
    assert name_of(pre_tokenizers.Split(Regex(GPT2), "isolated"), BYTES) == "gpt-2"
    inner = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(GPT2), "isolated")])
    assert name_of(inner, BYTES) == "gpt-2"


CUTS: list[tuple[str, str, Sequence[str]]] = [
    ("gpt-2", "I'm  12 a,b", ["I", "'m", "Ġ", "Ġ12", "Ġa", ",", "b"]),
    ("deepseek-llm", "ab 12,\n 3  ", ["ab", "Ġ", "12", ",", "Ċ", "Ġ", "3", "ĠĠ"]),
    ("deepseek-coder", "ab 12,\n 3  ", ["ab", "Ġ", "1", "2", ",", "Ċ", "Ġ", "3", "ĠĠ"]),
]


@pytest.mark.parametrize(("name", "text", "words"), CUTS)
def test_words_by_hand(name: str, text: str, words: Sequence[str]) -> None:
    cut = pre_tokenizer(name)
    assert cut is not None
    assert [word for word, _ in cut.pre_tokenize_str(text)] == words
