"""Prompts to the character: lm-eval's, the reference's for base and for chat models; what fits of them."""

from pathlib import Path

import pytest

from yayan.errors import UserError
from yayan.evaluate.benchmarks import CEVAL, CMMLU, MMLU
from yayan.evaluate.prompts import (
    Asker,
    cla2_text,
    harness_text,
    llama2_text,
    split_ids,
    style_of,
    writes_as_llama2,
)
from yayan.evaluate.questions import Question, Subject
from yayan.template import LLAMA2_TEMPLATE, encode_prompt
from yayan.tokenizer import load_tokenizer

from ..tiny import make_tokenizer

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
EXAMPLES = [
    Question("law", 0, " 例一 ", ("甲", "乙", "丙", "丁"), "C"),
    Question("law", 1, "例二", ("1", "2", "3", "4"), "B"),
]
ASKED = Question("law", 0, " 何者？", ("a", " b", "c ", "d"), "A")
LAW = Subject("law", "法学", ("Humanities",), [ASKED], EXAMPLES)
DEFAULT = "<<SYS>>\nYou are a helpful assistant. 你是一个乐于助人的助手。\n<</SYS>>\n\n"


def test_harness_is_as_lm_eval_writes_it() -> None:
    assert harness_text(CEVAL, LAW, EXAMPLES, ASKED) == (
        "以下是中国关于法学的单项选择题，请选出其中的正确答案。\n\n"
        "例一\nA. 甲\nB. 乙\nC. 丙\nD. 丁\n答案： C\n\n"
        "例二\nA. 1\nB. 2\nC. 3\nD. 4\n答案： B\n\n"
        "何者？\nA. a\nB.  b\nC. c \nD. d\n答案："
    )
    assert harness_text(CMMLU, LAW, [], ASKED) == (
        "以下是关于法学的单项选择题，请直接给出正确答案的选项。\n\n何者？\nA. a\nB.  b\nC. c \nD. d\n答案："
    )
    algebra = Subject("abstract_algebra", "abstract algebra", ("STEM",), [ASKED], EXAMPLES)
    assert harness_text(MMLU, algebra, EXAMPLES[1:], ASKED) == (
        "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
        "例二\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: B\n\n"
        "何者？\nA. a\nB.  b\nC. c \nD. d\nAnswer:"
    )


def test_cla2_is_as_the_reference_writes_it() -> None:
    question = " 何者？\nA. a\nB.  b\nC. c \nD. d\n答案："
    header = "以下是中国关于法学考试的单项选择题，请选出其中的正确答案。\n\n"
    assert cla2_text(LAW, [], ASKED) == question
    assert (
        cla2_text(LAW, EXAMPLES[1:], ASKED) == f"{header}例二\nA. 1\nB. 2\nC. 3\nD. 4\n答案：B\n\n{question}"
    )
    assert llama2_text(LAW, [], ASKED) == f"[INST] {DEFAULT}{question} [/INST]"
    assert llama2_text(LAW, EXAMPLES[1:], ASKED) == (
        f"[INST] {DEFAULT}{header} [/INST]好的，我会结合法学相关知识回答"
        "[INST] 例二\nA. 1\nB. 2\nC. 3\nD. 4\n答案：[/INST]B\n"
        f"[INST] {DEFAULT}{question} [/INST]"
    )


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    make_tokenizer(tmp_path / "llama")
    (tmp_path / "llama" / "chat_template.jinja").write_text(LLAMA2_TEMPLATE, encoding="utf-8")
    return tmp_path / "llama"


def test_a_chat_prompt_of_llama2_is_what_the_served_model_sees(llama: Path) -> None:
    tokenizer = load_tokenizer(llama)
    assert writes_as_llama2(tokenizer)
    alone = Subject("law", "法学", ("Humanities",), [ASKED], [])
    (prompt,) = Asker(CEVAL, "cla2", "chat", tokenizer, 1024).ready(alone)
    messages = [{"role": "user", "content": " 何者？\nA. a\nB.  b\nC. c \nD. d\n答案："}]
    assert prompt.context_ids == encode_prompt(tokenizer, messages)
    (prompt,) = Asker(CEVAL, "cla2", "chat", tokenizer, 4096).ready(LAW)
    assert tokenizer.decode(prompt.context_ids).strip() == llama2_text(LAW, EXAMPLES, ASKED)


def test_a_model_that_reasons_is_let_and_has_room_for_it(llama: Path) -> None:
    tokenizer = load_tokenizer(llama)
    (whole,) = Asker(CEVAL, "cla2-cot", "chat", tokenizer, 4096, room=50).ready(LAW)
    text = tokenizer.decode(whole.context_ids).strip()
    assert text == llama2_text(LAW, EXAMPLES, ASKED).removesuffix("答案： [/INST]") + (
        "答案是什么？让我们一步一步思考，\n1. [/INST]"
    )
    for spare, dropped in ((50, 0), (49, 1)):
        context = len(whole.context_ids) + spare
        (prompt,) = Asker(CEVAL, "cla2-cot", "chat", tokenizer, context, room=50).ready(LAW)
        assert prompt.dropped == dropped


def test_another_template_writes_the_same_turns(llama: Path) -> None:
    (llama / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    tokenizer = load_tokenizer(llama)
    assert not writes_as_llama2(tokenizer)
    (prompt,) = Asker(CEVAL, "cla2", "chat", tokenizer, 4096).ready(LAW)
    text = tokenizer.decode(prompt.context_ids)
    assert text.count("<|user|>") == 1 + len(EXAMPLES) + 1
    assert "<|assistant|>好的，我会结合法学相关知识回答\n<|user|> 例一 \nA. 甲" in text
    assert text.endswith("答案：\n<|assistant|>")


def test_a_letter_has_two_forms_in_cla2(llama: Path) -> None:
    tokenizer = load_tokenizer(llama)
    asker = Asker(CEVAL, "cla2", "base", tokenizer, 4096)
    assert len(asker.forms) == 8
    assert [tokenizer.token(ids[0]) for ids in asker.forms[:4]] == [
        "▁"
    ] * 4  # no piece "▁A" in this vocabulary
    assert [tokenizer.token(ids[0]) for ids in asker.forms[4:]] == [f"<0x{ord(x):02X}>" for x in "ABCD"]
    (prompt,) = asker.ready(LAW)
    assert prompt.letter_scores([1, 2, 3, 4, 10, 20, 30, 40]) == {"A": 11, "B": 22, "C": 33, "D": 44}


def test_examples_go_from_the_far_end_until_it_fits(llama: Path) -> None:
    tokenizer = load_tokenizer(llama)
    long = Question("law", 1, "长" * 40, ("1", "2", "3", "4"), "D")
    endless = Question("law", 2, "长" * 999, ("1", "2", "3", "4"), "D")
    subject = Subject("law", "法学", ("Humanities",), [ASKED, long, endless], EXAMPLES)
    lengths = [
        len(split_ids(tokenizer, [harness_text(CEVAL, subject, EXAMPLES[dropped:], ASKED)])[0][1])
        for dropped in range(3)
    ]
    assert lengths == sorted(lengths, reverse=True)
    for dropped, length in enumerate(lengths):
        for context, expected in ((length, dropped), (length + 1, dropped)):
            first, *_, last = Asker(CEVAL, "harness", "base", tokenizer, context + 1).ready(subject)
            assert (first.dropped, first.shots, first.fits) == (expected, 2 - expected, True)
            assert (
                first.context_ids
                == split_ids(tokenizer, [harness_text(CEVAL, subject, EXAMPLES[expected:], ASKED)])[0][1]
            )
            assert (last.dropped, last.fits, last.question) == (2, False, endless)
    assert not Asker(CEVAL, "harness", "base", tokenizer, lengths[2]).ready(subject)[0].fits


def test_letters_begin_where_the_encodings_part(llama: Path) -> None:
    """`bc` is one piece: the end of the text belongs to the letter then."""
    tokenizer = load_tokenizer(llama)
    ((text, before, letters),) = split_ids(tokenizer, ["b"])
    assert text == "b"
    assert before[0] == tokenizer.bos_id
    for letter, ids in zip("ABCD", letters, strict=True):
        assert tokenizer.decode([*before, *ids]).strip() == f"b {letter}"
        assert len(ids) >= 1


def test_the_style_follows_the_template(llama: Path, tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "base")
    base, tuned = load_tokenizer(tmp_path / "base"), load_tokenizer(llama)
    assert [style_of("cla2", "auto", tokenizer) for tokenizer in (base, tuned)] == ["base", "chat"]
    assert [style_of("cla2", wanted, tuned) for wanted in ("base", "chat")] == ["base", "chat"]
    assert [style_of("harness", wanted, tuned) for wanted in ("auto", "base")] == ["base", "base"]
    with pytest.raises(UserError, match="no chat template, chat prompts are asked for"):
        style_of("cla2", "chat", base)
    with pytest.raises(UserError, match="harness gives every model plain text"):
        style_of("harness", "chat", tuned)
