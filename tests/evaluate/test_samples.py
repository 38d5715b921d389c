"""Sample answers by llama.cpp (one thread) from a tiny chat model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from yayan.errors import UserError
from yayan.evaluate.samples import EvalSamples
from yayan.stage import execute
from yayan.template import SYSTEM_PROMPTS, encode_prompt
from yayan.tokenizer import load_tokenizer
from yayan.weights.gguf_file import write_gguf

from ..sentencepiece_model import make_chat_model


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("chat"))


def greedy(folder: Path, prompt: str, tokens: int) -> list[int]:
    """What transformers answers, one token after the other."""
    network = LlamaForCausalLM.from_pretrained(folder)
    messages = [
        {"role": "system", "content": SYSTEM_PROMPTS["default"]},
        {"role": "user", "content": prompt},
    ]
    ids = encode_prompt(load_tokenizer(folder), messages)
    answer: list[int] = []
    while len(answer) < tokens and answer[-1:] != [2]:
        with torch.no_grad():
            answer.append(int(network(input_ids=torch.tensor([ids + answer])).logits[0, -1].argmax()))
    return answer


def text_of(folder: Path, ids: list[int]) -> str:
    """Text of tokens byte by byte; `tokenizers` gives up whole runs of byte tokens where one is not UTF-8."""
    pieces = [load_tokenizer(folder).token(number) for number in ids if number != 2]
    raw = [
        bytes([int(piece[3:5], 16)]) if piece.startswith("<0x") else piece.replace("▁", " ").encode()
        for piece in pieces
    ]
    return b"".join(raw).decode(errors="ignore").strip()


def test_answers_are_the_models_own(chat_folder: Path, tmp_path: Path) -> None:
    prompts = ["the old man", "河边"]
    record = execute(
        EvalSamples(out=tmp_path / "samples", model=chat_folder, prompt=prompts, max_tokens=12, threads=1)
    )
    results = json.loads((tmp_path / "samples" / "results.json").read_text())
    assert (results["task"], results["protocol"], results["protocol_version"]) == ("samples", "greedy", 1)
    assert [item["prompt"] for item in results["items"]] == prompts
    for item in results["items"]:
        expected = greedy(chat_folder, item["prompt"], 12)
        assert item["answer"].replace("\N{REPLACEMENT CHARACTER}", "").strip() == text_of(
            chat_folder, expected
        )
        assert item["tokens"] == len(expected)
        assert item["complete"] == (expected[-1] == 2)
        assert item["seconds"] > 0
    assert record["metrics"]["tokens"] == sum(item["tokens"] for item in results["items"])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"prompt": []}, "a prompt is missing"),
        ({"prompt": ["  "]}, "a prompt is missing or empty"),
        ({"system": "kind"}, "no system prompt kind"),
        ({"max_tokens": 0}, "answers of 0 tokens"),
        ({"model": Path("no-such-model")}, "no-such-model"),
    ],
)
def test_a_wrong_question_writes_nothing(
    chat_folder: Path, tmp_path: Path, options: dict, sentence: str
) -> None:
    asked = {"model": chat_folder, "prompt": ["hello"]} | options
    with pytest.raises(UserError, match=sentence):
        execute(EvalSamples(out=tmp_path / "out", **asked))
    assert not (tmp_path / "out").exists()


def test_a_base_model_is_refused(chat_folder: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(chat_folder, base)
    (base / "chat_template.jinja").unlink()
    write_gguf(base, tmp_path / "base.gguf", "F16")
    for model in (base, tmp_path / "base.gguf"):
        with pytest.raises(UserError, match="base model"):
            execute(EvalSamples(out=tmp_path / "out", model=model, prompt=["hello"]))
    assert not list(tmp_path.glob("out*"))
