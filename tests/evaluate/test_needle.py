"""Planted facts: the instrument sees a model that reads, one that does not, and the same one beyond its length."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import copying
from tests.conftest import quietly
from tests.sentencepiece_model import TEXTS, make_chat_model
from yayan.errors import UserError
from yayan.evaluate.answerers import open_answerer
from yayan.evaluate.greedy import Answer
from yayan.evaluate.haystack import FACTS, Fact, Haystack, make_fact, read_haystack
from yayan.evaluate.long_prompts import PromptMaker
from yayan.evaluate.needle import NEW_TOKENS, EvalNeedle, Item, Place, look_for, summarise
from yayan.evaluate.words import describe
from yayan.stage import execute
from yayan.template import encode_prompt
from yayan.tokenizer import load_tokenizer

LISBON = Fact(FACTS["en"], "Lisbon", 48213)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("chat") / "tiny")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "hay.txt"
    path.write_text("\n".join(TEXTS * 8), encoding="utf-8")
    return path


@pytest.mark.slow  # trains a model: 30 s
def test_a_model_that_copies_is_seen_to_find_and_beyond_its_length_to_fail(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    model = copying.form_model(tmp_path / "formed")
    path = tmp_path / "hay.txt"
    path.write_text(copying.hay(300), encoding="utf-8")
    options: dict[str, Any] = {"text": path, "depths": [0, 20, 50, 80, 100], "facts": 4, "threads": 1}
    before = execute(EvalNeedle(out=tmp_path / "before", model=model, lengths=[44, 64], **options), quietly)
    assert before["metrics"]["found"] == 0
    copying.train(model)
    record = execute(
        EvalNeedle(out=tmp_path / "after", model=model, lengths=[44, 64, 400], **options), quietly
    )
    m = record["metrics"]
    trained = [cell for row in m["cells"] for cell in row[:2]]
    beyond = [row[2] for row in m["cells"]]
    assert sum(cell["asked"] for cell in trained) == 40
    assert all(cell["found"] == cell["asked"] for cell in trained)
    assert sum(cell["found"] for cell in beyond) <= 1  # of 20
    assert m["control_found"] == 0
    assert m["control_asked"] == 12
    assert describe(record).startswith(f"{m['found']} of 60 found")
    svg = (tmp_path / "after" / "needle.svg").read_text(encoding="utf-8")
    assert svg.count(">100 %</text>") == len(trained) + 1  # and the depth of that name
    assert "#a1000" not in svg


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("form", ["chat", "base"])
def test_a_prompt_is_text_fact_text_question(
    chat: Path, text: Path, tmp_path: Path, language: str, form: str
) -> None:
    model = chat
    if form == "base":
        model = make_chat_model(tmp_path / "base", template=None)
    tokenizer = load_tokenizer(model)
    haystack = read_haystack(text, 400)
    fact = make_fact(language, 1, seed="", unlike=haystack)
    turned = haystack.sentences[3:] + haystack.sentences[:3]
    with open_answerer(model, threads=1) as engine:
        maker = PromptMaker(engine)
        for length, depth in ((200, 0), (300, 50), (301, 75), (400, 100), (250, None)):
            ids = haystack.prompt(maker, fact, length, depth, 3, chat=form == "chat").ids
            assert length - 60 < len(ids) <= length
            shown = engine.text_of(ids)
            body = shown.removeprefix("<s> ").rpartition("<</SYS>>\n\n")[2].removesuffix(" [/INST]")
            assert body.endswith(fact.ask(chat=form == "chat"))
            body = body.removesuffix(fact.ask(chat=form == "chat"))
            if depth is not None:
                before, after = body.split(fact.sentence)
                body = before + after
                middle = len(haystack_until(turned, before)) / len(haystack_until(turned, body))
                assert middle == pytest.approx(depth / 100, abs=0.1)
            assert haystack_until(turned, body)
            assert str(fact.number) not in body
            if form == "chat":
                content = shown.rpartition("<</SYS>>\n\n")[2].removesuffix(" [/INST]")
                assert encode_prompt(tokenizer, [{"role": "user", "content": content}]) == ids
            else:
                assert ids == [tokenizer.bos_id, *tokenizer.encode(shown.removeprefix("<s> "))]


def haystack_until(sentences: list[str], text: str) -> list[str]:
    """The sentences that give a text, from the first on."""
    for count in range(len(sentences) + 1):
        if "".join(sentences[:count]) == text:
            return sentences[:count]
    raise AssertionError(f"no sentences give {text!r}")


def test_sentences_give_the_text_again(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    whole = "One. Two! 3.14 is no end?  Four.\n雅言。“诗书！”礼\nlast"
    path.write_text(whole, encoding="utf-8")
    haystack = read_haystack(path, 100)
    assert "".join(haystack.sentences) == whole
    assert haystack.sentences == [
        "One.",
        " Two!",
        " 3.14 is no end?",
        "  Four.",
        "\n",
        "雅言。",
        "“诗书！”",
        "礼\n",
        "last",
    ]
    assert len(read_haystack(path, 0).sentences) == len(haystack.sentences)  # whole documents


def test_a_number_of_the_text_is_not_drawn(tmp_path: Path) -> None:
    held = " ".join(map(str, range(10_000, 99_999)))
    assert make_fact("en", 0, seed="a", unlike=Haystack([held], tmp_path)).number == 99_999
    with pytest.raises(UserError, match="holds every number of 5 digits"):
        make_fact("en", 0, seed="a", unlike=Haystack([held, " 99999"], tmp_path))


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (" 48213.", True),
        ("答案是48213。", True),
        (" 4 8 2 1 3", False),
        (" 482137", False),
        (" 148213", False),
        ("", False),
        (" 48,213", False),
    ],
)
def test_what_counts_as_found(answer: str, found: bool) -> None:
    place = Place(100, 50, 0, LISBON)
    assert look_for(place, Answer("", answer, 90, False, 5, True)).found is found


def test_what_is_found_without_the_fact_is_told_apart() -> None:
    def item(length: int, depth: int | None, found: bool) -> Item:
        return Item(length, depth, LISBON.sentence, "", found, length)

    items = [
        item(10, 0, True),
        item(10, 0, False),
        item(20, 0, True),
        item(10, None, True),
        item(20, None, False),
    ]
    m = summarise(items, [10, 20], [0])
    assert m["cells"] == [[{"found": 1, "asked": 2}, {"found": 1, "asked": 1}]]
    assert m["control"] == [{"found": 1, "asked": 1}, {"found": 0, "asked": 1}]
    assert (m["found"], m["asked"], m["control_found"], m["control_asked"]) == (2, 3, 1, 2)


def test_the_same_question_gives_the_same_results(text: Path, tmp_path: Path) -> None:
    long = make_chat_model(tmp_path / "long", max_position_embeddings=1024)
    for name in ("one", "two"):
        stage = EvalNeedle(out=tmp_path / name, model=long, text=text, facts=1, depths=[50], threads=1)
        record = execute(stage, quietly)
        assert record["metrics"]["lengths"] == [(1024 - NEW_TOKENS) * step // 5 for step in range(1, 6)]
    one, two = ((tmp_path / name / "results.json").read_bytes() for name in ("one", "two"))
    assert one == two
    results = json.loads(one)
    assert (results["task"], results["protocol"], results["protocol_version"]) == (
        "needle",
        "planted-number",
        1,
    )
    assert len(results["items"]) == 10
    assert len({item["fact"] for item in results["items"]}) == 10


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"facts": 0}, "0 facts"),
        ({"facts": 11}, r"11 facts \(facts\): give 1 to 10"),
        ({"depths": []}, "depths are"),
        ({"depths": [101]}, "depths are"),
        ({"slots": 0}, "slots is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"lengths": [0]}, "a prompt of 0 tokens"),
        ({"lengths": [481]}, r"a prompt of 481 tokens .*: of 512 tokens the answer takes 32, give 1 to 480"),
        ({"lengths": [30]}, "30 tokens do not hold a sentence, the fact and the question"),
        ({"model": Path("nowhere")}, "nowhere"),
        ({"text": Path("nowhere.txt")}, "nowhere"),
    ],
)
def test_a_wrong_question_writes_nothing(
    chat: Path, text: Path, tmp_path: Path, options: dict, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        execute(
            EvalNeedle(**{"out": tmp_path / "out", "model": chat, "text": text, "threads": 1, **options}),
            quietly,
        )
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [("", "there is no document"), ("河边有人。", "the text has fewer tokens than a prompt of 480")],
)
def test_a_text_that_is_too_short(chat: Path, tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "short.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=sentence):
        execute(EvalNeedle(out=tmp_path / "out", model=chat, text=path, lengths=[480], threads=1), quietly)
    assert not list(tmp_path.glob("out*"))


def test_a_model_with_less_than_an_answer_is_refused(text: Path, tmp_path: Path) -> None:
    model = make_chat_model(tmp_path / "short", max_position_embeddings=32)
    with pytest.raises(UserError, match="answers of 32 tokens, and the model sees 32 at once"):
        execute(EvalNeedle(out=tmp_path / "out", model=model, text=text), quietly)
