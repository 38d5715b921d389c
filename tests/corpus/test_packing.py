"""Packing: interrupted anywhere it goes on to the same bytes, a changed file repacks only itself, nothing is lost."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny import make_tokenizer
from yayan.corpus import journal, packing
from yayan.corpus.pack import Pack
from yayan.corpus.records import Record, Records
from yayan.corpus.shards import Shards
from yayan.errors import UserError
from yayan.lineage import sha256_of
from yayan.stage import execute, question_of
from yayan.tokenizer import load_tokenizer


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    make_tokenizer(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Three files of 40 documents, of which some are blank, broken, long or there before."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in "abc":
        rows = [json.dumps({"text": text_of(name, i)}, ensure_ascii=False) for i in range(40)]
        rows[7], rows[9] = "{", '{"text": " "}'
        rows[30] = json.dumps({"text": text_of("a", 3)}, ensure_ascii=False)
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def text_of(name: str, i: int) -> str:
    return f"{name} {i} 你好世界 " * (i % 5 + 1)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "filtered": {"min_characters": 20, "control": True},
    "exact": {"duplicates": "exact"},
    "near": {"duplicates": "near", "max_characters": 60},
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few documents, each saved."""
    monkeypatch.setattr(packing, "BLOCK_BYTES", 150)
    monkeypatch.setattr(journal, "SAVE_SECONDS", 0)


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.usefixtures("small")
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    tmp_path: Path, tokenizer: Path, corpus: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stage(name: str) -> Pack:
        out = tmp_path / name
        return Pack(tokenizer=tokenizer, corpus=[corpus], skip_bad=True, out=out, **OPTIONS[case])

    whole = execute(stage("whole"))["metrics"]
    expected = sha256_of(tmp_path / "whole")
    assert whole["read"] == whole["documents"] + sum(whole["dropped"].values()) == 3 * 39
    assert whole["bad"] == {"not JSON": 3}
    for number, after in ((1, "take"), (2, "take"), (5, "save"), (9, "take"), (17, "save"), (25, "take")):
        out = f"{after}-{number}"
        with monkeypatch.context() as patch:
            interrupt(patch, after, number)
            with pytest.raises(KeyboardInterrupt):
                execute(stage(out))
        assert not (tmp_path / out).exists()
        assert execute(stage(out))["metrics"] == whole
        assert sha256_of(tmp_path / out) == expected


def interrupt(patch: pytest.MonkeyPatch, after: str, number: int) -> None:
    """Ctrl-C behind the `number`-th call of a method of the writing side."""
    method: Callable[..., None] = getattr(packing.Writing, after)
    calls = iter(range(1, 1000))

    def called(self: packing.Writing, *arguments: object) -> None:
        method(self, *arguments)
        if next(calls) == number:
            self.writer.flush()  # what is written behind the last save must be cut off
            raise KeyboardInterrupt

    patch.setattr(packing.Writing, after, called)


@pytest.mark.usefixtures("small")
def test_what_was_lost_of_a_partial_folder_is_made_again(
    tmp_path: Path, tokenizer: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Pack(tokenizer=tokenizer, corpus=[corpus], skip_bad=True, out=tmp_path / "whole")
    execute(whole)
    again = Pack(tokenizer=tokenizer, corpus=[corpus], skip_bad=True, out=tmp_path / "again")
    with monkeypatch.context() as patch:
        interrupt(patch, "save", 5)
        with pytest.raises(KeyboardInterrupt):
            execute(again)
    (tmp_path / "again.partial" / "tokens.ids").write_bytes(b"")
    execute(again)
    assert sha256_of(tmp_path / "again") == sha256_of(tmp_path / "whole")


@pytest.mark.parametrize("case", ["plain", "filtered", "exact"])
def test_a_changed_file_repacks_only_itself(
    tmp_path: Path, tokenizer: Path, corpus: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stage(name: str, **more: Any) -> Pack:
        options = {"tokenizer": tokenizer, "corpus": [corpus], "skip_bad": True, **OPTIONS[case], **more}
        return Pack(out=tmp_path / name, **options)

    execute(stage("out"))
    with (corpus / "b.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"text": "one more document of some length"}\n')
    (corpus / "d.jsonl").write_text('{"text": "a file that was not there before"}\n')
    with pytest.raises(UserError, match="corpus is another one"):
        execute(stage("out"))
    read: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(packing, "Records", watched(read))
        record = execute(stage("out", again=True))
    assert read == (
        ["b.jsonl", "d.jsonl"] if case != "exact" else ["a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl"]
    )
    assert execute(stage("fresh"))["metrics"] == record["metrics"]
    assert sha256_of(tmp_path / "fresh") == sha256_of(tmp_path / "out")
    read.clear()
    with monkeypatch.context() as patch:
        patch.setattr(packing, "Records", watched(read))
        execute(stage("out", again=True, field="text"))
    assert len(read) == 4


def watched(read: list[str]) -> type[Records]:
    class Watched(Records):
        def __iter__(self) -> Iterator[Record]:
            read.append(self.path.name)
            return super().__iter__()

    return Watched


def test_processes_change_nothing_but_the_time(
    tmp_path: Path, tokenizer: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Pack(tokenizer=tokenizer, corpus=[corpus], skip_bad=True, out=tmp_path / "one", workers=1)
    two = Pack(tokenizer=tokenizer, corpus=[corpus], skip_bad=True, out=tmp_path / "two", workers=2)
    monkeypatch.setattr("yayan.corpus.pack.WORKERS_FROM_BYTES", 0)
    monkeypatch.setattr(packing, "BLOCK_RECORDS", 3)
    assert execute(one)["metrics"] == execute(two)["metrics"]
    assert sha256_of(tmp_path / "one") == sha256_of(tmp_path / "two")
    assert question_of(one) == question_of(two)
    with (corpus / "c.jsonl").open("a") as stream:
        stream.write("[]\n")
    strict = Pack(tokenizer=tokenizer, corpus=[corpus], out=tmp_path / "strict", workers=2)
    with pytest.raises(UserError, match=r"not JSON.*a\.jsonl:8.*--skip-bad\.$"):
        execute(strict)
    assert not list(tmp_path.glob("strict*"))


def test_each_filter_drops_what_it_says_and_lists_it(tmp_path: Path, tokenizer: Path) -> None:
    evaluation = tmp_path / "exam.csv"
    evaluation.write_text("question,A,B\n下列四个选项中哪一个不是我国古代四大发明之一请选出来,你好,世界\n")
    texts = {
        "kept": "你好世界，这是一篇正常的文章。" * 3,
        "duplicates": "你好世界，这是一篇正常的文章。" * 3,
        "characters": "短",
        "symbols": "★☆◆◇■□▲△" * 9 + "你好你好你好你好",
        "script": "this is an English text of some length, it is kept elsewhere",
        "lost": "锟斤拷" * 20,
        "evaluation": "问：下列四个选项中哪一个不是我国古代四大发明之一请选出来？答：你好你好。",
        "blank": "  \n ",
    }
    corpus = tmp_path / "a.jsonl"
    corpus.write_text("".join(json.dumps({"content": text}) + "\n" for text in texts.values()))
    record = execute(
        Pack(
            tokenizer=tokenizer,
            corpus=[corpus],
            out=tmp_path / "out",
            min_characters=10,
            max_symbols=0.5,
            max_lost=0.1,
            script=["han"],
            duplicates="exact",
            decontaminate=[evaluation],
        )
    )
    lines = (tmp_path / "out" / "dropped.jsonl").read_text(encoding="utf-8").splitlines()
    listed = {entry["by"]: entry for entry in map(json.loads, lines)}
    names = list(texts)
    assert {by: entry["line"] for by, entry in listed.items()} == {
        name: names.index(name) + 1 for name in names if name != "kept"
    }
    assert record["metrics"]["dropped"] == dict.fromkeys(listed, 1)
    assert "exam.csv:2" in listed["evaluation"]["because"]
    cut = load_tokenizer(tokenizer)
    assert Shards.open(tmp_path / "out").ids.tolist() == [1, *cut.encode(texts["kept"]), 2]


def test_a_document_is_rewritten_first_and_the_change_is_shown(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "a.txt").write_text("漢字\u200b轉換\n\ne\u0301\n\n\u200b", encoding="utf-8")
    stage = Pack(
        tokenizer=tokenizer,
        corpus=[tmp_path / "a.txt"],
        out=tmp_path / "out",
        control=True,
        normal_form="nfc",
        simplified=True,
    )
    metrics = execute(stage)["metrics"]
    cut = load_tokenizer(tokenizer)
    expected = [[1, *cut.encode(text), 2] for text in ("汉字转换", "é")]
    shards = Shards.open(tmp_path / "out")
    found = np.split(shards.ids, np.cumsum(shards.lengths)[:-1])
    assert [part.tolist() for part in found] == expected
    assert metrics["rewritten"] == {"control": 2, "simplified": 1, "nfc": 1}
    assert metrics["dropped"]["blank"] == 1
    assert "汉字" in metrics["rewritten_examples"]["simplified"][0]
