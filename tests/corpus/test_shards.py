"""Opening shards: the lengths out of the index's text, damaged ones refused, and the hash that tells shards apart."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yayan.corpus import shards as module
from yayan.corpus.shards import Shards, ShardWriter
from yayan.errors import UserError

ABOUT: dict[str, object] = {
    "kind": "documents",
    "tokenizer": "t",
    "sources": [{"name": 'a "lengths": [7] 你好'}],
}


def write(folder: Path, lengths: list[int], tokenizer: str = "t", size: int = 32000) -> Path:
    folder.mkdir(exist_ok=True)
    with ShardWriter(folder, size=size, masked=False) as writer:
        for length in lengths:
            writer.add(range(length))
        writer.finish(ABOUT | {"tokenizer": tokenizer})
    return folder


@given(st.lists(st.integers(1, 4_000_000_000), min_size=1, max_size=300), st.integers(16, 200), st.booleans())
def test_lengths_are_those_that_json_reads(lengths: list[int], at_once: int, spaced: bool) -> None:
    text = json.dumps(lengths, separators=(",\n ", ":") if spaced else (",", ":")).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BYTES_AT_ONCE", at_once)
        found = module._read_lengths(text, 1, len(text) - 1)
    assert found.dtype == np.uint32
    assert found.tolist() == lengths


@pytest.mark.parametrize(("size", "dtype"), [(65536, "<u2"), (65537, "<u4")])
def test_what_was_written_is_there(tmp_path: Path, size: int, dtype: str) -> None:
    shards = Shards.open(write(tmp_path / "shards", [3, 1, 5], size=size), tokenizer="t")
    assert shards.lengths.tolist() == [3, 1, 5]
    assert shards.ids.dtype == np.dtype(dtype)
    assert shards.ids.tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 4]
    assert shards.index["sources"] == ABOUT["sources"]
    assert "lengths" not in shards.index


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("[3,1,5]", "[3,1]", "of 3 documents' lengths 2 can be read"),
        ("[3,1,5]", "[3,1,5,2]", "of 3 documents' lengths 4"),
        ("[3,1,5]", "[3,x,5]", "of 3 documents' lengths"),
        ("[3,1,5]", "[3,-1,5]", "of 3 documents' lengths"),
        ("[3,1,5]", "[3,1.0,5]", "of 3 documents' lengths"),
        ("[3,1,5]", "[3,,5]", "of 3 documents' lengths"),
        ("[3,1,5]", "[4,0,5]", "of 3 documents' lengths 0"),
        ("[3,1,5]", "[]", "of 3 documents' lengths 0"),
        ("[3,1,5]", "9", "of 3 documents' lengths 0"),
        ("[3,1,5]", "[3,2,5]", "18 bytes, not the 20"),
        ("[3,1,5]", "[4294967299,1,5]", "of 3 documents' lengths 0"),
        ("[3,1,5]\n}", "[3,1", "not JSON"),
        ("[3,1,5]\n}", "[3,1,5]\n", "not JSON"),
        ('"documents": 3,', "", "the index has no documents"),
        ('"format": 1,', '"format": 1', "not JSON"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path: Path, before: str, after: str, words: str) -> None:
    index = write(tmp_path / "shards", [3, 1, 5]) / "index.json"
    text = index.read_text(encoding="utf-8")
    assert before in text
    index.write_text(text.replace(before, after), encoding="utf-8")
    with pytest.raises(UserError, match=words):
        Shards.open(index.parent)


def test_an_empty_index_is_refused(tmp_path: Path) -> None:
    (write(tmp_path / "shards", [3]) / "index.json").write_bytes(b"")
    with pytest.raises(UserError, match="not JSON"):
        Shards.open(tmp_path / "shards")


def test_the_hash_tells_shards_apart_wherever_they_lie(tmp_path: Path) -> None:
    first = Shards.open(write(tmp_path / "a", [3, 1, 5])).sha256
    assert Shards.open(write(tmp_path / "b", [3, 1, 5])).sha256 == first
    others = [write(tmp_path / "c", [3, 5, 1]), write(tmp_path / "d", [3, 1, 5], tokenizer="u")]
    assert len({first, *(Shards.open(other).sha256 for other in others)}) == 3
