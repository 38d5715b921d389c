"""Letters taken from what a model wrote, as the reference takes them; replies of a tiny chat model by llama.cpp."""

import json
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
import torch
from transformers import LlamaForCausalLM

from yayan.evaluate import thoughts
from yayan.evaluate.answerers import open_answerer
from yayan.evaluate.answers import NOT_EXTRACTED
from yayan.evaluate.choices import EvalCeval
from yayan.evaluate.thoughts import extract
from yayan.stage import execute
from yayan.template import encode_prompt
from yayan.tokenizer import load_tokenizer

from ..conftest import quietly
from ..sentencepiece_model import make_chat_model
from .test_questions import write_csv

OPTIONS = ("甲方", "乙方.*", "丙", "")


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("所以答案是A。再想：所以答案是C。", "C"),
        ("所以答案是甲。但是B是正确的", "B"),  # a conclusion that is no letter does not count
        ("A不对。选项D正确", "D"),
        ("A不对。答案为B", "B"),
        ("A不对。答案是C", "C"),
        ("C。答案是B。D是正确的", "D"),  # the order of the patterns, not of the text
        ("A不对。答案：D", "D"),
        ("A不对。选择答案C", "C"),
        ("选择B", "B"),
        ("我想是 C 吧，不是 A", "C"),
        ("应当是丙", "C"),
        ("就是乙方.*", "B"),
        ("乙方啊", NOT_EXTRACTED),  # an option's text is no pattern
        ("不知道", NOT_EXTRACTED),
        ("", NOT_EXTRACTED),
    ],
)
def test_letters_are_taken_as_the_reference_does(reply: str, letter: str) -> None:
    assert extract(reply, OPTIONS) == letter


@pytest.mark.parametrize("context", [None, "auto"])
def test_a_model_reasons_and_its_letter_is_taken(
    context: Literal["auto"] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By llama.cpp, and to be stretched by torch."""
    monkeypatch.setattr(thoughts, "open_answerer", partial(open_answerer, threads=1))
    model = make_chat_model(tmp_path / "chat")
    data = tmp_path / "data"
    write_csv(data, "val", "law", ["河边,old,man,1,2,B", "长" * 9999 + ",1,2,3,4,A"])
    asked: dict = {"model": model, "data": data, "shots": 0, "protocol": "cla2", "cot": True, "max_tokens": 7}
    metrics = execute(EvalCeval(out=tmp_path / "out", context=context, **asked), quietly)["metrics"]
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert (results["protocol"], results["protocol_version"], results["prompt"]) == ("cla2-cot", 1, "chat")
    first, too_long = results["items"]
    question = "河边\nA. old\nB. man\nC. 1\nD. 2\n答案是什么？让我们一步一步思考，\n1."
    assert first["reply"].replace("\ufffd", "") == greedy(model, question, 7)  # bytes of no character
    assert first["prediction"] == extract(first["reply"], ("old", "man", "1", "2"))
    assert (too_long["prediction"], too_long["reply"]) == (None, None)
    assert (metrics["asked"], metrics["too_long"]) == (1, 1)
    assert metrics["not_extracted"] == (first["prediction"] == NOT_EXTRACTED)


def greedy(folder: Path, prompt: str, tokens: int) -> str:
    """What transformers writes, one token after the other, byte by byte."""
    network = LlamaForCausalLM.from_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    ids = encode_prompt(tokenizer, [{"role": "user", "content": prompt}])
    raw = b""
    for _ in range(tokens):
        with torch.no_grad():
            best = int(network(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if best == tokenizer.eos_id:
            break
        ids = [*ids, best]
        piece = tokenizer.token(best)
        raw += bytes([int(piece[3:5], 16)]) if piece.startswith("<0x") else piece.replace("▁", " ").encode()
    return raw.decode(errors="ignore")
