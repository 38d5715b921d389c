"""`eval speed`: what is timed is what was asked, memory is told apart, and a draft changes nothing but the time."""

import json
import mmap
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import quietly
from tests.sentencepiece_model import make_chat_model
from yayan.engine.llamacpp import refuse_other_vocabulary
from yayan.errors import UserError
from yayan.evaluate import timing
from yayan.evaluate.report import EvalReport
from yayan.evaluate.speed import EvalSpeed, prompts_of
from yayan.evaluate.timing import Question, lengthen, measure, measure_here
from yayan.evaluate.words import describe
from yayan.model.load import load_model
from yayan.stage import execute
from yayan.tokenizer import load_tokenizer
from yayan.weights.gguf_file import write_gguf

SHORT: dict[str, Any] = {"prompt_tokens": 24, "answer_tokens": 12, "repeats": 2, "prompts": 2, "threads": [1]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("speed") / "model")


@pytest.fixture(scope="module")
def gguf(model: Path) -> Path:
    write_gguf(model, model.parent / "model.gguf", "F16")
    return model.parent / "model.gguf"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    texts = ["The old man went to the river with his net. " * 4, "", "从前，河边有一座小房子。" * 5, "x"]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def greedy(model: Path, ids: list[int], count: int) -> list[int]:
    """What the model itself answers, without any cache."""
    network, out = load_model(model), list(ids)
    with torch.no_grad():
        for _ in range(count):
            out.append(int(network(torch.tensor([out])).logits[0, -1].argmax()))
    return out[len(ids) :]


@pytest.mark.parametrize("engine", ["float32", "llama.cpp"])
def test_what_is_timed_is_the_models_own_answer(model: Path, tmp_path: Path, engine: timing.Engine) -> None:
    """Also a second time, on a prompt longer than llama.cpp reads at once."""
    write_gguf(model, tmp_path / "f32.gguf", "F32")
    ids = [1, *load_tokenizer(model).encode("The old man 从前，河边 " * 9)][:60]
    path = model if engine == "float32" else tmp_path / "f32.gguf"
    with timing.opener_of(Question(path, engine, 1, tuple(ids), 8, 1))() as answering:
        if isinstance(answering, timing.LlamaAnswering):
            answering.network.batch = 25
        for _ in range(2):
            out = [answering.read_prompt(ids)]
            while len(out) < 8:
                out.append(answering.read_token(out[-1]))
            assert out == greedy(model, ids, 8)


def test_a_repeat_is_a_median_and_the_first_does_not_count(
    gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(
        [0, 100, 200, 0, 1, 2, 0, 2, 6, 0, 30, 90]
    )  # seconds at which a pass begins, has read, has answered
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    found = measure_here(Question(gguf, "llama.cpp", 1, (1, 2, 3, 4), 2, 3))
    assert found.prompt_ms == [250, 500, 7500]
    assert found.answer_ms == [500, 2000, 30000]
    row = found.row()
    assert (row["prompt_ms_per_token"], row["answer_ms_per_token"]) == (500, 2000)
    assert (row["prompt_tokens_per_second"], row["answer_tokens_per_second"]) == (2, 0.5)


@pytest.mark.skipif(not timing.STATUS.is_file(), reason="memory is told on Linux only")
def test_memory_without_a_file_behind_it_is_told_apart() -> None:
    before = timing.memory()
    # pages of its own: the allocator may have as much at hand, freed by earlier tests
    pages = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    held = np.frombuffer(pages, np.uint8)
    held[:] = 1
    after = timing.memory()
    assert 60 << 20 < after["anonymous_bytes"] - before["anonymous_bytes"] < 80 << 20
    assert after["mapped_bytes"] - before["mapped_bytes"] < 8 << 20
    assert held.all()


def test_weights_of_a_gguf_file_are_mapped(tmp_path: Path) -> None:
    """A file of 27 MB in a process of its own: its pages are the file's, the cache is anonymous."""
    sizes: dict[str, Any] = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8}
    big = make_chat_model(tmp_path / "big", **sizes)
    write_gguf(big, tmp_path / "big.gguf", "F16")
    found = measure(Question(tmp_path / "big.gguf", "llama.cpp", 1, tuple(range(64)), 2, 1))
    assert found.device == "cpu"
    if timing.STATUS.is_file():
        assert found.mapped_bytes is not None
        assert found.anonymous_bytes is not None
        assert found.mapped_bytes > (tmp_path / "big.gguf").stat().st_size * 0.9
        assert found.anonymous_bytes < found.mapped_bytes


def test_a_gpu_is_hidden_from_what_is_asked_of_the_cpu(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    question = Question(model, "float32", 1, (1, 2, 3), 2, 1)
    assert measure_here(question).device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    timing.opener_of(replace(question, on_cpu=True))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_a_folder_and_what_the_report_says(
    model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A process of its own that imports torch."""
    stage = EvalSpeed(out=tmp_path / "speed", model=model, text=text, dtype=["bfloat16"], **SHORT)
    record = execute(stage, quietly)
    (row,) = record["metrics"]["rows"]
    assert (row["engine"], row["threads"], row["device"]) == ("bfloat16", 1, "cpu")
    results = json.loads((tmp_path / "speed" / "results.json").read_text())
    assert [len(item["prompt_ms"]) for item in results["repeats"]] == [2]
    stage.tell(record)
    assert "bfloat16" in capsys.readouterr().out
    assert "ms/token with 1 thread" in describe(record)
    execute(EvalReport(out=tmp_path / "report", folders=[tmp_path / "speed"]), quietly)
    assert "<h2>Speed</h2>" in (tmp_path / "report" / "report.html").read_text()


def test_a_draft_changes_no_answer(
    model: Path, gguf: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The model as its own draft is accepted throughout; with noise on its weights, in part."""
    noisy = tmp_path / "noisy"
    make_chat_model(noisy)
    tensors = load_file(noisy / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for tensor in tensors.values():
        tensor += (
            0.1 * tensor.std() * torch.randn(tensor.shape, generator=generator) if tensor.dim() > 1 else 0
        )
    save_file(tensors, noisy / "model.safetensors", metadata={"format": "pt"})
    rows = {}
    for name, draft in {"itself": gguf, "noisy": noisy}.items():
        stage = EvalSpeed(
            out=tmp_path / f"{name}-out", model=gguf, text=text, draft=draft, draft_tokens=4, **SHORT
        )
        record = execute(stage, quietly)
        (rows[name],) = record["metrics"]["draft"]
    for row in rows.values():
        assert row["answers"] == row["same_answers"] == 4
        assert row["draft_tokens"] == 4
        assert row["speed_up"] == pytest.approx(row["ms_per_token_without"] / row["ms_per_token"], rel=0.01)
        assert row["draft_ms_per_token"] > 0
    assert rows["itself"]["acceptance"] == 1
    assert 0 < rows["noisy"]["accepted"] < rows["noisy"]["proposed"]
    stage.tell(record)
    assert "same answers" in capsys.readouterr().out
    execute(EvalReport(out=tmp_path / "report", folders=[tmp_path / "noisy-out"]), quietly)
    assert "tokens of the draft accepted" in (tmp_path / "report" / "report.md").read_text()


def test_prompts_begin_documents_and_one_prompt_has_its_length(model: Path, gguf: Path, text: Path) -> None:
    own = list(prompts_of(model, text, 10))
    assert own == list(prompts_of(gguf, text, 10))
    assert [len(ids) for ids in own] == [10, 10, len(load_tokenizer(model).encode("x")) + 1]
    assert all(ids[0] == 1 for ids in own)
    assert lengthen([[1, 2], [3]], 7) == (1, 2, 3, 1, 2, 3, 1)


def test_a_busy_machine_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 9, 9))
    assert timing.warn_if_busy() == 0.1
    assert not capsys.readouterr().err
    monkeypatch.setattr(os, "getloadavg", lambda: (3.21, 9, 9))
    assert timing.warn_if_busy() == 3.21
    assert "load 3.2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"prompt_tokens": 0}, "prompt_tokens is 0"),
        ({"repeats": -1}, "repeats is -1"),
        ({"threads": [1, 0]}, "a number of threads"),
        ({"dtype": []}, "a number of threads or a type"),
        ({"prompt_tokens": 512}, "do not fit"),
        ({"model": Path("no-such-model")}, "no-such-model"),
        ({"draft": Path("no-such-draft")}, "no-such-draft"),
        ({"text": Path("no-such-text.jsonl")}, "no-such-text"),
        ({"draft": Path(__file__)}, "not a GGUF file"),
        pytest.param(
            {"device": "cuda"},
            "torch sees no GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_a_wrong_question_writes_nothing(
    model: Path, text: Path, tmp_path: Path, options: dict, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        execute(EvalSpeed(**{"out": tmp_path / "out", "model": model, "text": text} | options), quietly)
    assert not (tmp_path / "out").exists()


def test_a_file_is_computed_on_the_cpu(gguf: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="computed on the CPU here"):
        execute(EvalSpeed(out=tmp_path / "out", model=gguf, text=text, device="cuda", **SHORT), quietly)


def test_a_draft_with_another_vocabulary(
    gguf: Path, model_folder: Path, model: Path, text: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.gguf"
    write_gguf(model_folder, other, "F16")
    with pytest.raises(UserError, match="another vocabulary"):
        execute(EvalSpeed(out=tmp_path / "out", model=gguf, text=text, draft=other, **SHORT), quietly)
    padded = make_chat_model(
        tmp_path / "padded", padding=12
    )  # rows without tokens are none of the vocabulary
    write_gguf(padded, tmp_path / "padded.gguf", "F16")
    refuse_other_vocabulary(gguf, tmp_path / "padded.gguf")
    refuse_other_vocabulary(tmp_path / "padded.gguf", gguf)


def test_an_empty_text(model: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"text": ""}\n')
    with pytest.raises(UserError, match="all its documents are empty"):
        execute(EvalSpeed(out=tmp_path / "out", model=model, text=empty), quietly)
