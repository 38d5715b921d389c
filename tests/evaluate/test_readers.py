"""A GGUF file reads a text as the folder that it was made from: the same ids, the same bytes, the same nats."""

import json
from pathlib import Path

import pytest
import torch

from tests.sentencepiece_model import make_chat_model
from yayan.engine.choose import positions_of
from yayan.errors import UserError
from yayan.evaluate.choices import EvalCeval
from yayan.evaluate.letter_scores import accuracy, letter_prompts, letter_scores
from yayan.evaluate.readers import LLAMA_CPP, TORCH, FolderReader, GgufReader, open_reader
from yayan.model.score import windows_of
from yayan.stage import execute
from yayan.weights.gguf_file import write_gguf

from .test_choices import data as data

TEXTS = [
    "the cat sat on the mat, and A. B. C. D.",
    "请选出其中的正确答案。",
    " a 🐈 sat\n\n",
    "<s>not a token</s>",
    "以下是 law " * 40,
    "x",
]


@pytest.fixture(scope="module", params=["byte-level", "SentencePiece"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, model_folder: Path
) -> tuple:
    """A model folder and its F32 file."""
    folder = tmp_path_factory.mktemp("readers")
    model = make_chat_model(folder / "model") if request.param == "SentencePiece" else model_folder
    write_gguf(model, folder / "model.gguf", "F32")
    return FolderReader(model), GgufReader(folder / "model.gguf", threads=1)


def test_both_read_the_same_ids_and_bytes(pair: tuple) -> None:
    folder, file = pair
    assert (folder.engine, file.engine) == (TORCH, LLAMA_CPP)
    ids = folder.encode(TEXTS)
    assert file.encode(TEXTS) == ids
    assert (file.before, file.unknown) == (folder.before, folder.unknown)
    sizes, theirs = folder.token_bytes(), file.token_bytes()
    for text, own in zip(TEXTS, ids, strict=True):
        assert sum(sizes[i] for i in own) == sum(theirs[i] for i in own)
        assert (
            0 <= sum(sizes[i] for i in own) - len(text.encode()) <= 1
        )  # the space before a SentencePiece text


@pytest.mark.parametrize(("context", "stride"), [(128, None), (33, 7), (20, 20)])
def test_both_give_the_same_nats(pair: tuple, context: int, stride: int | None) -> None:
    folder, file = pair
    sequences = [[folder.before, *ids] for ids in folder.encode(TEXTS)]
    windows = windows_of(sequences, context, stride)
    own = {(window.sequence, window.offset): nats_N for window, nats_N in folder.score(windows)}
    for window, nats_N in file.score(windows):
        assert len(nats_N) == window.count
        assert torch.allclose(nats_N, own.pop((window.sequence, window.offset)), atol=1e-3)
    assert not own


def test_logits_are_those_behind_the_nats(pair: tuple) -> None:
    for reader in pair:
        windows = windows_of([[reader.before, *ids] for ids in reader.encode(TEXTS)], 33, 7)
        nats = {(window.sequence, window.offset): nats_N for window, nats_N in reader.score(windows)}
        for window, at, logits_NV in reader.logits(windows):
            count = len(logits_NV)
            targets_N1 = torch.tensor(window.targets[at : at + count])[:, None]
            own_N = -logits_NV.double().log_softmax(-1).gather(1, targets_N1)[:, 0]
            assert torch.allclose(own_N, nats[window.sequence, window.offset][at : at + count], atol=1e-4)


def test_letters_score_as_eval_ceval_scores_them(model_folder: Path, data: Path, tmp_path: Path) -> None:
    """The same prompts, the same answers; what prompts begin with alike is read once by llama.cpp."""
    write_gguf(model_folder, tmp_path / "model.gguf", "F32")
    prompts = letter_prompts(model_folder, data, [], 0, 128)
    stage = EvalCeval(model=model_folder, data=data, shots=0, out=tmp_path / "out")
    execute(stage)
    found_items = json.loads((stage.out / "results.json").read_text())["items"]
    items = [item for item in found_items if item["prediction"]]
    assert prompts
    assert len(items) == len(prompts)
    for reader in (FolderReader(model_folder), GgufReader(tmp_path / "model.gguf", threads=1)):
        done: list[int] = []
        scores = letter_scores(reader, prompts, done.append)
        for row, item in zip(scores, items, strict=True):
            assert row == pytest.approx(list(item["scores"].values()), abs=1e-3)
        found = accuracy(prompts, scores)
        assert found["predictions"] == "".join(item["prediction"] for item in items)
        assert found["right"] == sum(item["prediction"] == item["answer"] for item in items)
        assert sum(done) >= len(prompts)


def test_positions_and_what_is_no_model(pair: tuple, tmp_path: Path) -> None:
    folder, file = pair
    assert positions_of(file.path, None) == positions_of(folder.model, None)
    assert positions_of(file.path, 7) == 7
    with pytest.raises(UserError, match="a context of 0"):
        positions_of(file.path, 0)
    with pytest.raises(UserError, match="nothing is there"):
        positions_of(tmp_path / "nothing", None)
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(UserError, match="not a GGUF file"):
        open_reader(tmp_path / "empty.gguf")
