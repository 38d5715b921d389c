"""The card of a merged model says what its records say, and draws its road."""

import hashlib
import json
import re
from pathlib import Path

import yaml

from tests.conftest import quietly
from tests.tiny import make_base, make_tokenizer
from yayan.corpus.pack import Pack
from yayan.stage import execute
from yayan.train.pretrain import Pretrain
from yayan.vocab.grow import Grow
from yayan.weights.merge import Merge

NEW = ["你好", "世界"]


def test_a_merged_model_has_a_card(tmp_path: Path) -> None:
    size = make_base(tmp_path / "English base")
    make_tokenizer(tmp_path / "tokenizer", new=NEW)
    (tmp_path / "LICENSE").write_text("none")
    (tmp_path / "zh.jsonl").write_text(json.dumps({"text": "你好世界 abc " * 9}))
    base, grown, shards = tmp_path / "English base", tmp_path / "grown", tmp_path / "shards"
    execute(Grow(out=grown, model=base, tokenizer=tmp_path / "tokenizer"), quietly)
    execute(Pack(out=shards, tokenizer=grown, corpus=[tmp_path / "zh.jsonl"]), quietly)
    stage = Pretrain(
        out=tmp_path / "adapter",
        model=grown,
        shards=[shards],
        heldout={"zh": tmp_path / "zh.jsonl"},
        steps=2,
        rank=2,
        sequence_length=16,
    )
    execute(stage, quietly)
    execute(Merge(out=tmp_path / "chinese", base=grown, adapter=[stage.out]), quietly)
    card = (tmp_path / "chinese" / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["base_model"] == "English base"
    assert f"whose {size:,} tokens became {size + 2:,}" in card
    assert "this is a base model" in card
    assert "2 steps" in card
    assert "Held-out zh:" in card
    weights = (tmp_path / "chinese" / "model.safetensors").read_bytes()
    assert f"| {len(weights):,} | `{hashlib.sha256(weights).hexdigest()}` |" in card
    names = dict(re.findall(r'(n[0-9a-f]+)\["([^"]+)"\]', card))
    arrows = re.findall(r"(n[0-9a-f]+)\[.*?\] -->\|\"(.*?)\"\| (n[0-9a-f]+)", card)
    assert {(names[one], part, names[other]) for one, part, other in arrows} >= {
        ("English base", "grow", "grown"),
        ("tokenizer", "grow", "grown"),
        ("grown", "base", "chinese"),
        ("grown", "pretrain", "adapter"),
        ("zh.jsonl", "pack", "shards"),
        ("shards", "pretrain", "adapter"),
        ("adapter", "adapter", "chinese"),
    }
