"""The stage `pack`: what stands in the shards is what the tokenizer says, and nothing is lost unsaid."""

import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from tests.conftest import SHARED, needs_shared
from tests.tiny import make_tokenizer
from yayan.corpus.pack import Pack
from yayan.corpus.read import documents
from yayan.corpus.shards import Shards, ShardWriter
from yayan.errors import UserError
from yayan.stage import execute
from yayan.template import LLAMA2_TEMPLATE, SYSTEM_PROMPTS, encode_chat
from yayan.tokenizer import load_tokenizer

CHATML = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    make_tokenizer(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def chat(user: str, *answers: str) -> dict[str, list[dict[str, str]]]:
    turns = [{"role": "user", "content": user}]
    for answer in answers:
        turns.append({"role": "assistant", "content": answer})
    return {"messages": turns}


def documents_of(shards: Shards) -> list[list[int]]:
    return [part.tolist() for part in np.split(shards.ids, np.cumsum(shards.lengths)[:-1])]


def test_documents_stand_whole_between_bos_and_eos(tmp_path: Path, tokenizer: Path) -> None:
    texts = ["a bc", "你好 <s>世界</s>", "  ", "é\n\n🙂", "x" * 3000]
    corpus = [write(tmp_path / "a.jsonl", *({"body": text} for text in texts)), tmp_path / "b.txt"]
    corpus[1].write_text("abc\n\nde")
    record = execute(Pack(tokenizer=tokenizer, corpus=corpus, field="body", out=tmp_path / "out"))
    cut = load_tokenizer(tokenizer)
    kept = [text for text in texts if text.strip()] + ["abc", "de"]
    shards = Shards.open(tmp_path / "out", tokenizer=cut.sha256)
    assert documents_of(shards) == [[1, *cut.encode(text), 2] for text in kept]
    assert 1 not in cut.encode("<s>")
    metrics = record["metrics"]
    assert metrics["documents"] + metrics["dropped"]["blank"] == len(texts) + 2
    assert metrics["characters"] == sum(map(len, kept))
    assert metrics["bytes"] == sum(len(text.encode()) for text in kept)
    assert metrics["tokens"] == len(shards.ids) == metrics["targets"] + metrics["documents"]
    assert [source["documents"] for source in metrics["sources"]] == [4, 2]
    assert sum(source["tokens"] for source in metrics["sources"]) == metrics["tokens"]
    assert record["tokenizer"] == cut.sha256


def test_a_tokenizer_without_bos_gives_none(tmp_path: Path, tokenizer: Path) -> None:
    settings = json.loads((tokenizer / "tokenizer_config.json").read_text())
    del settings["bos_token"]
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings))
    corpus = [write(tmp_path / "a.jsonl", {"text": "bc"})]
    execute(Pack(tokenizer=tokenizer, corpus=corpus, out=tmp_path / "out"))
    shards = Shards.open(tmp_path / "out")
    assert documents_of(shards) == [[*load_tokenizer(tokenizer).encode("bc"), 2]]
    assert (shards.index["rule"], shards.index["bos"], shards.index["eos"]) == ("text </s>", None, 2)


def test_many_ids_need_four_bytes(tmp_path: Path) -> None:
    for size, dtype in ((65_536, np.uint16), (65_537, np.uint32)):
        folder = tmp_path / str(size)
        folder.mkdir()
        with ShardWriter(folder, size=size, masked=False) as writer:
            writer.add([0, size - 1])
            writer.finish({"kind": "documents", "tokenizer": "x"})
        shards = Shards.open(folder)
        assert shards.ids.dtype == dtype
        assert shards.ids.tolist() == [0, size - 1]


def test_chats_stand_as_the_template_writes_them(tmp_path: Path, tokenizer: Path) -> None:
    alpaca = {"instruction": "a", "input": "b", "output": "c"}
    chats = [write(tmp_path / "a.jsonl", chat("你好", "世界"), chat("a"), chat("a", " "), alpaca)]
    record = execute(Pack(tokenizer=tokenizer, chats=chats, out=tmp_path / "out"))
    cut = load_tokenizer(tokenizer)
    shards = Shards.open(tmp_path / "out", tokenizer=cut.sha256)
    kept = (chat("你好", "世界"), chat("a\nb", "c"))
    wanted = [encode_chat(cut, turns["messages"], LLAMA2_TEMPLATE) for turns in kept]
    assert documents_of(shards) == [ids for ids, _ in wanted]
    assert shards.mask is not None
    assert shards.mask.tolist() == [flag for _, mask in wanted for flag in mask]
    assert shards.targets == shards.mask.sum() == record["metrics"]["targets"]
    assert record["metrics"]["dropped"] == {"without_answer": 2}
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == LLAMA2_TEMPLATE
    assert record["template"] == shards.index["template"]


def test_a_named_system_prompt_stands_where_there_is_none(tmp_path: Path, tokenizer: Path) -> None:
    own = chat("a", "b")
    own["messages"].insert(0, {"role": "system", "content": "de"})
    chats = [write(tmp_path / "a.jsonl", chat("a", "b"), own)]
    execute(Pack(tokenizer=tokenizer, chats=chats, system="long", out=tmp_path / "out"))
    cut = load_tokenizer(tokenizer)
    long = [{"role": "system", "content": SYSTEM_PROMPTS["long"]}, *chat("a", "b")["messages"]]
    wanted = [encode_chat(cut, turns, LLAMA2_TEMPLATE)[0] for turns in (long, own["messages"])]
    assert documents_of(Shards.open(tmp_path / "out")) == wanted


def test_the_template_is_the_one_given_or_the_tokenizer_s(tmp_path: Path, tokenizer: Path) -> None:
    chats = [write(tmp_path / "a.jsonl", chat("a", "b"))]
    given = tmp_path / "given.jinja"
    given.write_text(CHATML)
    execute(Pack(tokenizer=tokenizer, chats=chats, chat_template=given, out=tmp_path / "given"))
    (tokenizer / "chat_template.jinja").write_text(CHATML)
    execute(Pack(tokenizer=tokenizer, chats=chats, out=tmp_path / "own"))
    assert documents_of(Shards.open(tmp_path / "given")) == documents_of(Shards.open(tmp_path / "own"))
    assert (tmp_path / "own" / "chat_template.jinja").read_text() == CHATML


def test_wrong_questions_are_refused_before_anything_is_written(tmp_path: Path, tokenizer: Path) -> None:
    text, talk = write(tmp_path / "a.jsonl", {"text": "a"}), write(tmp_path / "b.jsonl", chat("a", "b"))
    bad = tmp_path / "bad.jinja"
    bad.write_text("{{ messages")
    questions = {
        "one of --corpus and --chats": Pack(tokenizer=tokenizer, out=tmp_path / "out"),
        "--corpus and --chats": Pack(tokenizer=tokenizer, corpus=[text], chats=[talk], out=tmp_path / "out"),
        "leave out --system": Pack(tokenizer=tokenizer, corpus=[text], system="long", out=tmp_path / "out"),
        "no tokenizer": Pack(tokenizer=tmp_path, corpus=[text], out=tmp_path.parent / "out"),
        "does not render": Pack(tokenizer=tokenizer, chats=[talk], chat_template=bad, out=tmp_path / "out"),
        "no such file": Pack(tokenizer=tokenizer, corpus=[tmp_path / "c.txt"], out=tmp_path / "out"),
    }
    for sentence, question in questions.items():
        with pytest.raises(UserError, match=sentence):
            execute(question)
    assert not list(tmp_path.glob("out*"))


def test_a_bad_line_is_named_and_nothing_finished(tmp_path: Path, tokenizer: Path) -> None:
    talk = write(tmp_path / "a.jsonl", chat("a", "b"), chat("a", "</s>"))
    given = tmp_path / "given.jinja"
    given.write_text(CHATML)
    with pytest.raises(UserError, match=r"special token </s>.*a\.jsonl:2"):
        execute(Pack(tokenizer=tokenizer, chats=[talk], chat_template=given, out=tmp_path / "out"))
    only = write(tmp_path / "b.jsonl", chat("a"), chat("b"))
    with pytest.raises(UserError, match="all 2 were dropped"):
        execute(Pack(tokenizer=tokenizer, chats=[only], out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@needs_shared
def test_real_text_gets_the_ids_of_sentencepiece(tmp_path: Path) -> None:
    base = SHARED / "base" / "en-base-21m"
    corpus = [SHARED / "data" / name / "heldout.jsonl.xz" for name in ("zh-docs-react", "en-tinystories")]
    execute(Pack(tokenizer=base, corpus=corpus, out=tmp_path / "out"))
    model = sentencepiece.SentencePieceProcessor(model_file=str(base / "tokenizer.model"))
    wanted = [[1, *model.encode(document.text), 2] for document in documents(corpus)]
    assert documents_of(Shards.open(tmp_path / "out")) == wanted
