"""LongBench end to end by llama.cpp (one thread) on items in the official form: every task, every kind of bad data."""

import hashlib
import json
import lzma
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.conftest import SHARED, needs_shared, quietly
from tests.sentencepiece_model import TEXTS, make_chat_model
from yayan.errors import UserError
from yayan.evaluate.answerers import Prompt, open_answerer
from yayan.evaluate.greedy import JOURNAL_NAME
from yayan.evaluate.long_prompts import PromptMaker
from yayan.evaluate.longbench import EvalLongbench, columns
from yayan.evaluate.longbench_items import read_items
from yayan.evaluate.longbench_metrics import METRICS
from yayan.evaluate.longbench_tasks import COLUMNS, TASKS
from yayan.evaluate.words import describe
from yayan.model.folder import Context
from yayan.stage import execute
from yayan.template import encode_prompt
from yayan.tokenizer import load_tokenizer
from yayan.weights.gguf_file import write_gguf

# Of THUDM/LongBench's config/dataset2prompt.json: json.dumps(..., sort_keys=True, ensure_ascii=False)
PROMPTS_SHA256 = "e7d865d712fe45e2455f5e864ac474001d7758d68d349e76ffbcdd382483358f"
NEW_TOKENS = {32: 7, 64: 6, 128: 4, 512: 4}  # how many tasks have answers of at most so many tokens
RIGHT = {
    "passage_retrieval_en": ["Paragraph 2"],
    "passage_retrieval_zh": ["段落2"],
    "passage_count": ["2"],
    "trec": ["Human"],
    "lsht": ["体育"],
}
CLASSES = {"trec": ["Human", "Location"], "lsht": ["体育", "教育"]}


def official(name: str, context: str = TEXTS[0], **changes: Any) -> dict[str, Any]:
    """An item in the form of the official files."""
    return {
        "input": "谁住在河边？" if TASKS[name].language == "zh" else "Who lived by the river?",
        "context": context,
        "answers": RIGHT.get(name, ["an old man", "老人"]),
        "all_classes": CLASSES.get(name),
        "length": 100,
        "dataset": name,
        "language": "zh" if TASKS[name].language == "zh" else "en",
        "_id": "0",
    } | changes


def write_task(folder: Path, name: str, rows: list[dict[str, Any]], suffix: str = ".jsonl") -> Path:
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path = folder / f"{name}{suffix}"
    path.write_bytes(lzma.compress(text.encode()) if suffix.endswith(".xz") else text.encode())
    return path


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("chat") / "tiny", max_position_embeddings=768)


@pytest.fixture(scope="module")
def base(chat: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model without a template, as a GGUF file."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    shutil.copytree(chat, folder)
    (folder / "chat_template.jinja").unlink()
    write_gguf(folder, folder.with_suffix(".gguf"), "F16")
    return folder.with_suffix(".gguf")


@pytest.fixture(scope="module")
def all_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two items of each task, one of them too long for 768 tokens; every other file is compressed."""
    folder = tmp_path_factory.mktemp("data") / "longbench"
    for number, name in enumerate(TASKS):
        rows = [official(name), official(name, "。".join(TEXTS * 12))]
        write_task(folder, name, rows, ".jsonl.xz" if number % 2 else ".jsonl")
    write_task(folder, "notes", [{"text": "no task of LongBench"}])
    return folder


def test_the_protocol_is_the_published_one() -> None:
    prompts = {name: task.prompt for name, task in TASKS.items()}
    text = json.dumps(prompts, sort_keys=True, ensure_ascii=False)
    assert hashlib.sha256(text.encode()).hexdigest() == PROMPTS_SHA256
    limits = [task.new_tokens for task in TASKS.values()]
    assert {limit: limits.count(limit) for limit in set(limits)} == NEW_TOKENS
    assert {task.metric for task in TASKS.values()} == set(METRICS)
    assert {name for name, task in TASKS.items() if not task.chat} == {
        *("trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p")
    }
    assert TASKS["samsum"].scored_part("\n\nfirst\nsecond") == "first"
    assert TASKS["vcsum"].scored_part("\n\nfirst\nsecond") == "\n\nfirst\nsecond"


def test_columns_are_means_of_whole_columns() -> None:
    scores = {name: float(number) for number, name in enumerate(TASKS)}
    for language, count in (("zh", 1), ("en", 2)):
        found = columns(scores, language)["columns"]
        assert isinstance(found, dict)
        for column in COLUMNS:
            own = [
                s
                for n, s in scores.items()
                if TASKS[n].column == column and TASKS[n].language in (language, "code")
            ]
            assert len(own) >= count
            assert found[column] == pytest.approx(sum(own) / len(own))
        assert columns(scores, language)["average"] == pytest.approx(sum(found.values()) / 6)
    del scores["lcc"]
    less = columns(scores, "zh")
    assert less["average"] is None
    assert less["columns"] == {**columns({**scores, "lcc": 0.0}, "zh")["columns"], "code": None}  # type: ignore[dict-item]


@pytest.mark.slow  # 42 answers of up to 512 tokens: 10 s
def test_every_task_is_asked_as_the_protocol_wants(chat: Path, all_tasks: Path, tmp_path: Path) -> None:
    record = execute(EvalLongbench(out=tmp_path / "out", model=chat, data=all_tasks, threads=1), quietly)
    m = record["metrics"]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["task"], results["protocol"], results["protocol_version"]) == ("longbench", "official", 1)
    assert list(m["tasks"]) == list(TASKS)
    assert m["chat"]
    assert not (tmp_path / "out" / JOURNAL_NAME).exists()
    tokenizer = load_tokenizer(chat)
    for item in results["items"]:
        task = TASKS[item["task"]]
        row = read_items(next(all_tasks.glob(f"{task.name}.jsonl*")), task, None)[item["number"]]
        part = task.scored_part(item["answer"])
        assert item["score"] == max(METRICS[task.metric](part, right, row.classes) for right in row.answers)
        assert item["tokens"] <= task.new_tokens
        assert item["prompt_tokens"] <= 768 - task.new_tokens
        if not item["truncated"]:
            text = task.prompt.format(context=row.context, input=row.input)
            chatted = encode_prompt(tokenizer, [{"role": "user", "content": text}])
            assert item["prompt_tokens"] == len(chatted if task.chat else [1, *tokenizer.encode(text)])
    for name, row in m["tasks"].items():
        own = [item["score"] for item in results["items"] if item["task"] == name]
        assert row["score"] == pytest.approx(100 * sum(own) / 2)
        assert row["truncated"] in (1, 2)
        assert row["interval"][0] <= row["score"] <= row["interval"][1]
    assert m["languages"]["zh"]["average"] is not None
    assert describe(record).endswith(
        f"; 42 items, {sum(r['truncated'] for r in m['tasks'].values())} cut in the middle"
    )


def greedy(folder: Path, ids: list[int], tokens: int) -> str:
    """What `transformers` answers, as text byte by byte: runs of byte tokens need not be whole characters."""
    network = LlamaForCausalLM.from_pretrained(folder)
    whole = network.generate(torch.tensor([ids]), max_new_tokens=tokens, do_sample=False, pad_token_id=3)
    pieces = [load_tokenizer(folder).token(number) for number in whole[0, len(ids) :].tolist() if number > 3]
    raw = (bytes([int(p[3:5], 16)]) if p.startswith("<0x") else p.replace("▁", " ").encode() for p in pieces)
    return b"".join(raw).decode(errors="ignore")


def test_an_answer_is_what_transformers_gives(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [official("hotpotqa", text) for text in TEXTS]
    write_task(tmp_path / "data", "hotpotqa", rows)
    stage = EvalLongbench(out=tmp_path / "one", model=base, data=tmp_path / "data", threads=1)
    record = execute(stage, quietly)
    folder = base.with_suffix("")
    for item, row in zip(
        json.loads((tmp_path / "one" / "results.json").read_text())["items"], rows, strict=True
    ):
        text = TASKS["hotpotqa"].prompt.format(context=row["context"], input=row["input"])
        expected = greedy(folder, [1, *load_tokenizer(folder).encode(text)], 32)
        assert item["answer"].replace("\N{REPLACEMENT CHARACTER}", "") == expected
    assert not record["metrics"]["chat"]
    stage.tell(record)
    assert "hotpotqa" in capsys.readouterr().out


def test_several_slots_and_the_first_items(base: Path, tmp_path: Path) -> None:
    write_task(tmp_path / "data", "hotpotqa", [official("hotpotqa", text) for text in TEXTS])
    stage = EvalLongbench(
        out=tmp_path / "out", model=base, data=tmp_path / "data", threads=1, slots=3, limit=4
    )
    assert execute(stage, quietly)["metrics"]["tasks"]["hotpotqa"]["items"] == 4
    items = json.loads((tmp_path / "out" / "results.json").read_text())["items"]
    assert [item["number"] for item in items] == list(range(4))


@pytest.mark.parametrize("context", [None, "auto"])
def test_what_is_too_long_keeps_its_first_and_last_half(base: Path, chat: Path, context: Context) -> None:
    with open_answerer(base.with_suffix("") if context else base, context, threads=1) as engine:
        maker = PromptMaker(engine)
        tokenizer = load_tokenizer(chat)
        text = "".join(TEXTS * 3)
        ids = [1, *tokenizer.encode(text)]
        for kept in (2, 3, 40, 101):
            half = kept // 2
            expected = tokenizer.decode(ids[:half]) + tokenizer.decode(ids[-half:])
            assert maker.cut(text, kept) == expected
        assert maker.fit(text, chat=False, room=len(ids), length=None) == (Prompt(text, ids), False)
        assert maker.fit(text, chat=False, room=len(ids), length=len(ids) - 1)[1]
        for room in range(20, 120, 7):
            fitted, cut = maker.fit(text, chat=False, room=room, length=None)
            assert cut
            assert room - 8 <= len(fitted.ids) <= room
        assert abs(len(maker.fit(text, chat=False, room=500, length=60)[0].ids) - 60) < 8
        with pytest.raises(ValueError, match="nothing of a text fits"):
            maker.fit(text, chat=False, room=1, length=None)
    with open_answerer(chat, context, threads=1) as engine:
        maker = PromptMaker(engine)
        whole = encode_prompt(tokenizer, [{"role": "user", "content": text}])
        assert maker.ids(text, chat=True) == whole
        prompt = maker.prompt(text, chat=True)
        assert maker.fit(text, chat=True, room=len(whole), length=None) == (prompt, False)
        fitted, cut = maker.fit(text, chat=True, room=len(whole) - 1, length=None)
        assert cut
        assert len(whole) - 9 <= len(fitted.ids) < len(whole)


@pytest.mark.parametrize(
    ("name", "row", "sentence"),
    [
        ("lcc", {"context": None}, r"'context' is a NoneType, not text .*lcc\.jsonl:1"),
        ("lcc", {"input": 3}, "'input' is a int, not text"),
        ("lcc", {"answers": "x = 1"}, "'answers' is a str"),
        ("lcc", {"answers": []}, "an item without a right answer"),
        ("lcc", {"answers": [1]}, "'answers' is a int, not text"),
        ("lcc", {"dataset": "trec"}, "this item is one of trec"),
        ("trec", {"all_classes": None}, "an item without classes"),
        ("passage_retrieval_zh", {"answers": ["第二段"]}, "names no paragraph"),
        ("passage_retrieval_en", {"answers": ["2"]}, "names no paragraph"),
    ],
)
def test_broken_items_are_named(base: Path, tmp_path: Path, name: str, row: dict, sentence: str) -> None:
    write_task(tmp_path / "data", name, [official(name, **row)])
    refused(sentence, tmp_path, model=base)


def test_a_nul_character_is_read_as_it_is(base: Path, tmp_path: Path) -> None:
    """The official data holds some."""
    write_task(tmp_path / "data", "lcc", [official("lcc", "x = 1\0\ny = 2\n")])
    execute(EvalLongbench(out=tmp_path / "out", model=base, data=tmp_path / "data", threads=1), quietly)
    item = json.loads((tmp_path / "out" / "results.json").read_text())["items"][0]
    with open_answerer(base, threads=1) as engine:
        text = TASKS["lcc"].prompt.format(context="x = 1\0\ny = 2\n")
        assert item["prompt_tokens"] == len(PromptMaker(engine).ids(text, chat=False))
        assert set(PromptMaker(engine).cut("\0" * 10, 6)) == {"\0"}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "there is no item in this file"),
        (b"\n \n", "there is no item in this file"),
        (b"{", "this line is not JSON"),
        (b"[1]", "this line is a list"),
        (b'{"input": "a"}\n', "an item without 'context', it has input"),
        ('{"input": "雅言"}'.encode("gb18030"), "this is not UTF-8"),
    ],
)
def test_broken_files_are_named(base: Path, tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "lcc.jsonl").write_bytes(content)
    refused(sentence, tmp_path, model=base)


def refused(sentence: str, tmp_path: Path, **options: Any) -> None:
    """UserError with this sentence, and nothing written."""
    with pytest.raises(UserError, match=sentence):
        execute(EvalLongbench(**{"out": tmp_path / "out", "data": tmp_path / "data", **options}), quietly)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tasks": ["lccc"]}, r"LongBench has no task lccc: did you mean lcc\?"),
        ({"tasks": ["qqq"]}, "LongBench has no task qqq: its tasks are narrativeqa, "),
        ({"tasks": ["qasper"]}, r"there is no qasper\.jsonl in this folder .*: it has lcc"),
        ({"limit": 0}, "limit is 0"),
        ({"slots": 0}, "slots is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"length": 1}, r"prompts of 1 tokens: of 768, lcc leaves 704 \(length\): give 2 to 704"),
        ({"length": 705}, "prompts of 705 tokens"),
        ({"data": Path("nowhere")}, "nowhere"),
        ({"model": Path("nowhere")}, "nowhere"),
    ],
)
def test_a_wrong_question_writes_nothing(base: Path, tmp_path: Path, options: dict, sentence: str) -> None:
    write_task(tmp_path / "data", "lcc", [official("lcc")])
    refused(sentence, tmp_path, **{"model": base, **options})


def test_a_folder_without_tasks_is_refused(base: Path, tmp_path: Path) -> None:
    write_task(tmp_path / "data", "lcc_e", [official("lcc")])
    refused("this folder holds no task of LongBench", tmp_path, model=base)


def test_a_model_with_less_than_an_answer_is_refused(tmp_path: Path) -> None:
    model = make_chat_model(tmp_path / "short", max_position_embeddings=64)
    write_task(tmp_path / "data", "lcc", [official("lcc")])
    refused("lcc wants answers of 64 tokens, and the model sees 64 at once", tmp_path, model=model)


def test_a_template_that_leaves_no_room_for_the_length_is_refused(chat: Path, tmp_path: Path) -> None:
    write_task(tmp_path / "data", "hotpotqa", [official("hotpotqa")])
    refused("prompts of 736 tokens: of 768, hotpotqa leaves", tmp_path, model=chat, length=736)


@needs_shared
@pytest.mark.slow  # an item of each of the three real tasks on a real model: 15 s
def test_the_real_data_on_a_real_model(tmp_path: Path) -> None:
    stage = EvalLongbench(
        out=tmp_path / "out",
        model=SHARED / "base" / "en-base-21m",
        data=SHARED / "data" / "eval-longbench",
        limit=1,
        threads=1,
    )
    m = execute(stage, quietly)["metrics"]
    assert list(m["tasks"]) == ["multifieldqa_zh", "multi_news", "passage_retrieval_zh"]
    assert m["tasks"]["passage_retrieval_zh"]["truncated"] == 1
    for name in m["tasks"]:
        assert (
            len(read_items(SHARED / "data" / "eval-longbench" / f"{name}.jsonl.xz", TASKS[name], None)) == 200
        )
