"""Tokenizers of this room's tests, learnt from the built-in sample in a moment."""

import json
from pathlib import Path

import pytest

import yayan
from yayan.vocab.begin import begin
from yayan.vocab.extend import extend, open_sentencepiece_base, write_tokenizer

SAMPLE = Path(yayan.__file__).parent / "sample"
NEW_PIECES = ["中", "国", "人", "民", "雅", "言", "中国", "人民", "雅言", "中国人民", "！", "𠀀"]


def texts_of(name: str) -> list[str]:
    lines = (SAMPLE / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


@pytest.fixture(scope="session")
def english(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer folder of 600 ids, learnt from English."""
    folder = tmp_path_factory.mktemp("english")
    write_tokenizer(folder, begin(texts_of("en-train.jsonl"), 600, longest=16))
    return folder


@pytest.fixture(scope="session")
def extended(english: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`english` with NEW_PIECES behind its own."""
    folder = tmp_path_factory.mktemp("extended")
    write_tokenizer(folder, extend(open_sentencepiece_base(english).proto, NEW_PIECES))
    return folder
