"""Contract: the shards folder, read here with nothing of ours, and what `Shards.open` refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.tiny import make_tokenizer
from yayan import lineage
from yayan.corpus.pack import Pack
from yayan.corpus.shards import Shards
from yayan.errors import UserError
from yayan.stage import execute
from yayan.tokenizer import load_tokenizer

INDEX_KEYS = [
    "format",
    "kind",
    "template",
    "rule",
    "bos",
    "eos",
    "tokenizer",
    "settings",
    "sources",
    "dropped",
    "dtype",
    "documents",
    "tokens",
    "targets",
    "lengths",
]
SOURCE_KEYS = [
    *("name", "sha256", "documents", "characters", "bytes", "tokens", "tokens_per_character"),
    *("dropped", "rewritten", "bad", "bad_places"),
]
CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "bc"}]}


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    make_tokenizer(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.fixture
def shards(tmp_path: Path, tokenizer: Path) -> Path:
    (tmp_path / "a.txt").write_text("a bc\n\n你好")
    execute(Pack(tokenizer=tokenizer, corpus=[tmp_path / "a.txt"], out=tmp_path / "shards"))
    return tmp_path / "shards"


def test_documents(shards: Path, tokenizer: Path) -> None:
    assert sorted(file.name for file in shards.iterdir()) == ["index.json", "tokens.ids", "yayan.json"]
    index = json.loads((shards / "index.json").read_text(encoding="utf-8"))
    assert list(index) == INDEX_KEYS
    assert list(index["sources"][0]) == SOURCE_KEYS
    ids = np.fromfile(shards / "tokens.ids", "<u2").tolist()
    cut = load_tokenizer(tokenizer)
    first, second = [1, *cut.encode("a bc"), 2], [1, *cut.encode("你好"), 2]
    assert ids == first + second
    found = {name: index[name] for name in INDEX_KEYS if name not in ("tokenizer", "settings", "sources")}
    assert found == {
        "format": 1,
        "kind": "documents",
        "template": None,
        "rule": "<s> text </s>",
        "bos": 1,
        "eos": 2,
        "dropped": {"blank": 0},
        "dtype": "uint16",
        "documents": 2,
        "tokens": len(ids),
        "targets": len(ids) - 2,
        "lengths": [len(first), len(second)],
    }
    assert index["tokenizer"] == cut.sha256


def test_chats(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(CHAT) + "\n")
    out = tmp_path / "out"
    execute(Pack(tokenizer=tokenizer, chats=[tmp_path / "a.jsonl"], out=out))
    names = ["chat_template.jinja", "index.json", "tokens.ids", "tokens.mask", "yayan.json"]
    assert sorted(file.name for file in out.iterdir()) == names
    index = json.loads((out / "index.json").read_text(encoding="utf-8"))
    assert list(index) == INDEX_KEYS
    assert index["kind"] == "chats"
    assert index["template"] == lineage.sha256_of(out / "chat_template.jinja")
    ids, mask = np.fromfile(out / "tokens.ids", "<u2"), np.fromfile(out / "tokens.mask", np.uint8)
    answer = load_tokenizer(tokenizer).encode("bc")
    assert len(ids) == len(mask) == index["lengths"][0]
    assert mask.tolist() == [0] * (len(ids) - len(answer) - 1) + [1] * (len(answer) + 1)
    assert ids[mask == 1].tolist() == [*answer, 2]
    assert index["targets"] == len(answer) + 1


def test_the_same_texts_elsewhere_are_the_same_shards(tmp_path: Path, shards: Path, tokenizer: Path) -> None:
    again = tmp_path / "again"
    execute(Pack(tokenizer=tokenizer, corpus=[tmp_path / "a.txt"], out=again))
    assert lineage.sha256_of(again) == lineage.sha256_of(shards)
    assert str(tmp_path) not in (again / "index.json").read_text(encoding="utf-8")


def test_other_shards_are_refused(tmp_path: Path, shards: Path) -> None:
    with pytest.raises(UserError, match="not a shards folder"):
        Shards.open(tmp_path)
    with pytest.raises(UserError, match="packed with another tokenizer"):
        Shards.open(shards, tokenizer="another")
    short = tmp_path / "short"
    shutil.copytree(shards, short)
    (short / "tokens.ids").write_bytes((shards / "tokens.ids").read_bytes()[:-2])
    with pytest.raises(UserError, match="bytes, not the .* that the index tells"):
        Shards.open(short)
    (short / "tokens.ids").unlink()
    with pytest.raises(UserError, match="has 0 bytes"):
        Shards.open(short)
    index = json.loads((short / "index.json").read_text(encoding="utf-8"))
    (short / "index.json").write_text(json.dumps(index | {"format": 2}))
    with pytest.raises(UserError, match="not of format 1"):
        Shards.open(short)
    (short / "index.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        Shards.open(short)
