"""Bits per byte against the model's own loss, and what stands in the results."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaForCausalLM

from tests.conftest import quietly
from yayan.errors import UserError, WorkError
from yayan.evaluate.bits import EvalBits, read_texts
from yayan.evaluate.intervals import bootstrap_ratio, wilson
from yayan.evaluate.readers import unknown_id
from yayan.model.longer import choose_stretch, rope_applied
from yayan.stage import execute
from yayan.weights.gguf_file import write_gguf

TEXTS = ["the cat sat on the mat", "请选出其中的正确答案。", "", "a 🐈 sat"]


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    path = tmp_path / "held-out.jsonl"
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS))
    return path


def own_loss(folder: Path, text: str) -> tuple[float, int]:
    """Nats and tokens of a text by transformers' own loss over [BOS, text], in float64."""
    ids = [0, *Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids]
    network = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64)
    ids_BT = torch.tensor([ids])
    with torch.no_grad():
        return network(input_ids=ids_BT, labels=ids_BT).loss.item() * (len(ids) - 1), len(ids) - 1


def test_bits_per_byte_is_the_models_own_loss(model_folder: Path, held_out: Path, tmp_path: Path) -> None:
    record = execute(EvalBits(out=tmp_path / "bits", model=model_folder, text={"mixed": held_out}))
    row = record["metrics"]["texts"]["mixed"]
    texts = [text for text in TEXTS if text]
    losses = [own_loss(model_folder, text) for text in texts]
    nats, tokens = sum(nats for nats, _ in losses), sum(tokens for _, tokens in losses)
    size, characters = sum(len(text.encode()) for text in texts), sum(map(len, texts))
    assert row["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-6)
    assert row["bits_per_character"] == pytest.approx(nats / math.log(2) / characters, rel=1e-6)
    assert row["perplexity_per_token"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert row["tokens_per_character"] == pytest.approx(tokens / characters)
    assert (row["documents"], row["bytes"], row["tokens"], row["complete"]) == (3, size, tokens, True)
    assert row["interval"][0] < row["bits_per_byte"] < row["interval"][1]


def test_results_hold_every_document(model_folder: Path, held_out: Path, tmp_path: Path) -> None:
    record = execute(EvalBits(out=tmp_path / "bits", model=model_folder, text={"a": held_out}, context=9))
    results = json.loads((tmp_path / "bits" / "results.json").read_text())
    assert (results["task"], results["protocol"], results["protocol_version"]) == (
        "bits",
        "sliding-window",
        1,
    )
    assert results["model"]["sha256"] == record["inputs"]["model"]["sha256"]
    assert results["context"] == 9
    items = results["texts"]["a"].pop("items")
    assert results["texts"]["a"] == record["metrics"]["texts"]["a"]
    assert [item["place"] for item in items] == [f"held-out.jsonl:{line}" for line in (1, 2, 4)]
    assert sum(item["nats"] for item in items) / math.log(2) == pytest.approx(
        results["texts"]["a"]["bits_per_byte"] * results["texts"]["a"]["bytes"]
    )


@pytest.mark.parametrize(
    ("limit", "documents", "complete"), [(None, 3, True), (10**6, 3, True), (60, 2, False), (1, 1, False)]
)
def test_a_limit_takes_whole_documents(
    held_out: Path, limit: int | None, documents: int, complete: bool
) -> None:
    texts, all_of_it = read_texts(held_out, limit)
    assert (len(texts), all_of_it) == (documents, complete)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"context": 129}, "a context of 129"),
        ({"context": 0}, "a context of 0"),
        ({"limit": 0}, "a limit of 0 bytes"),
        ({"overlap": -1}, "an overlap of -1"),
        ({"context": 9, "overlap": 9}, "an overlap of 9"),
        ({"by_position": 0}, "0 parts of a document"),
        ({"text": {}}, "no text is given"),
        ({"model": Path("no-such-model")}, "no-such-model"),
        ({"model": Path(__file__)}, "not a GGUF file"),
        ({"text": {"zh": Path("no-such-text.jsonl")}}, "no-such-text"),
    ],
)
def test_a_wrong_question_writes_nothing(
    model_folder: Path, held_out: Path, tmp_path: Path, options: dict, sentence: str
) -> None:
    asked = {"model": model_folder, "text": {"zh": held_out}} | options
    with pytest.raises(UserError, match=sentence):
        execute(EvalBits(out=tmp_path / "bits", **asked))
    assert not (tmp_path / "bits").exists()


@pytest.mark.parametrize("settings", [{}, {"context": 7}, {"context": 7, "overlap": 2}])
def test_a_file_in_float32_measures_as_its_folder(
    model_folder: Path, held_out: Path, tmp_path: Path, settings: dict
) -> None:
    write_gguf(model_folder, tmp_path / "model.gguf", "F32")
    found = {}
    for model in (model_folder, tmp_path / "model.gguf"):
        stage = EvalBits(
            out=tmp_path / model.stem, model=model, text={"a": held_out}, by_position=3, **settings
        )
        execute(stage, quietly)
        found[model.stem] = json.loads((tmp_path / model.stem / "results.json").read_text())
    own, other = found[model_folder.stem], found["model"]
    assert (own["engine"], other["engine"]) == ("torch, float32", "llama.cpp, float32 cache")
    assert (own["context"], own["overlap"]) == (other["context"], other["overlap"])
    own, other = own["texts"]["a"], other["texts"]["a"]
    assert other["bits_per_byte"] == pytest.approx(own["bits_per_byte"], rel=1e-5)
    for mine, theirs in zip(own["items"], other["items"], strict=True):
        nats, costs = mine.pop("nats"), theirs.pop("nats")
        assert mine == theirs
        assert costs == pytest.approx(nats, rel=1e-4)
    for mine, theirs in zip(own["by_position"], other["by_position"], strict=True):
        assert mine["bits_per_byte"] == pytest.approx(theirs["bits_per_byte"], rel=1e-4)
        assert (mine["from_byte"], mine["bytes"]) == (theirs["from_byte"], theirs["bytes"])


def test_the_overlap_is_how_far_windows_move(model_folder: Path, held_out: Path, tmp_path: Path) -> None:
    """More overlap, more tokens before each: other figures; by default it is half of the context."""
    rows = {}
    for overlap in (0, 1, 3, None):
        stage = EvalBits(
            out=tmp_path / str(overlap), model=model_folder, text={"a": held_out}, context=6, overlap=overlap
        )
        metrics = execute(stage, quietly)["metrics"]
        rows[overlap] = metrics["texts"]["a"]["bits_per_byte"]
        assert metrics["overlap"] == (3 if overlap is None else overlap)
    assert rows[None] == rows[3]
    assert len(set(rows.values())) == 3


def test_by_position_leaves_a_picture(model_folder: Path, held_out: Path, tmp_path: Path) -> None:
    stage = EvalBits(out=tmp_path / "bits", model=model_folder, text={"a": held_out}, by_position=4)
    row = execute(stage, quietly)["metrics"]["texts"]["a"]
    assert sum(part["tokens"] for part in row["by_position"]) == row["tokens"]
    assert "<svg" in (tmp_path / "bits" / "by-position.svg").read_text()


def test_empty_documents_alone_are_no_text(model_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text('{"text": ""}\n')
    with pytest.raises(UserError, match=r"empty\.jsonl"):
        execute(EvalBits(out=tmp_path / "bits", model=model_folder, text={"zh": path}))


def test_a_model_without_numbers_is_refused(broken_folder: Path, held_out: Path, tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="no numbers"):
        execute(EvalBits(out=tmp_path / "bits", model=broken_folder, text={"zh": held_out}))


def test_unknown_tokens_are_known() -> None:
    with_unknown = Tokenizer(models.BPE(vocab={"a": 0, "<unk>": 1}, merges=[], unk_token="<unk>"))
    assert unknown_id(with_unknown) == 1
    assert unknown_id(Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))) == -1


def test_the_bootstrap_interval_is_that_of_many_resamples() -> None:
    generator = torch.Generator().manual_seed(1)
    costs = (torch.rand(200, generator=generator) * 3).tolist()
    interval = bootstrap_ratio(costs, [1.0] * 200)
    assert interval is not None
    mean, half = sum(costs) / 200, 1.96 * torch.tensor(costs).std().item() / math.sqrt(200)
    assert interval == pytest.approx([mean - half, mean + half], abs=0.02)
    assert interval == bootstrap_ratio(costs, [1.0] * 200)
    assert bootstrap_ratio([1.0], [1.0]) is None


@pytest.mark.parametrize(
    ("right", "total", "expected"),
    [
        (5, 10, [0.2366, 0.7634]),
        (0, 20, [0.0, 0.1611]),
        (20, 20, [0.8389, 1.0]),
    ],  # Wilson's published formula
)
def test_wilson(right: int, total: int, expected: list[float]) -> None:
    assert wilson(right, total) == pytest.approx(expected, abs=5e-5)
    assert wilson(0, 0) is None


def test_each_window_is_stretched_by_what_it_needs(
    model_folder: Path, held_out: Path, tmp_path: Path
) -> None:
    """Long documents are read in one pass with the frequencies of their step, short ones as ever."""
    folder = Path(shutil.copytree(model_folder, tmp_path / "short"))
    config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 4}
    (folder / "config.json").write_text(json.dumps(config))
    stage = EvalBits(out=tmp_path / "bits", model=folder, text={"mixed": held_out}, context="auto")
    metrics = execute(stage, quietly)["metrics"]
    assert (metrics["context"], metrics["stretching"]) == (32, True)
    found = json.loads((tmp_path / "bits" / "results.json").read_text())["texts"]["mixed"]["items"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    network = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    steps = set()
    for text, item in zip((text for text in TEXTS if text), found, strict=True):
        ids_BT = torch.tensor([[0, *tokenizer.encode(text).ids]])
        step = choose_stretch(config, ids_BT.shape[1] - 1)  # the last token is predicted, not read
        steps.add(step.times)
        with rope_applied(network, step.rope), torch.no_grad():
            nats = network(input_ids=ids_BT, labels=ids_BT).loss.item() * (ids_BT.shape[1] - 1)
        assert item["nats"] == pytest.approx(nats, rel=1e-5)
    assert len(steps) > 1
    write_gguf(model_folder, tmp_path / "model.gguf", "F32")
    with pytest.raises(UserError, match="as the file says"):
        EvalBits(
            out=tmp_path / "x", model=tmp_path / "model.gguf", text={"a": held_out}, context="auto"
        ).check()
