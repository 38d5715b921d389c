"""`eval quant`: the files are those that `gguf` writes, the figures those that other evaluations give, gone on with."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SHARED, needs_shared, quietly
from tests.sentencepiece_model import make_chat_model
from yayan.cli import parse
from yayan.errors import UserError
from yayan.evaluate import quant
from yayan.evaluate.bench import Bench
from yayan.evaluate.bits import EvalBits
from yayan.evaluate.choices import EvalCeval
from yayan.evaluate.quant import EvalQuant
from yayan.evaluate.report import EvalReport
from yayan.stage import execute
from yayan.weights.gguf import Gguf

from .test_questions import LAW, LAW_EXAMPLES, write_csv

TEXTS = [
    "The old man went to the river with his net.",
    "从前，河边有一座小房子，房子里住着一位老人。",
    "河水 river " * 60,
]
WIDE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 352,
    "num_attention_heads": 8,
    "initializer_range": 0.05,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """352 is no multiple of 256: the down projection falls back, as that of the real base does."""
    return make_chat_model(tmp_path_factory.mktemp("quant") / "model", **WIDE)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ceval")
    write_csv(folder, "val", "law", LAW)
    write_csv(folder, "dev", "law", LAW_EXAMPLES)
    return folder


@pytest.fixture(scope="module")
def done(model: Path, text: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whole run; a process for the speed of each type."""
    out = tmp_path_factory.mktemp("out") / "quant"
    kinds: list[quant.Kind] = ["Q4_K_M", "Q2_K"]
    stage = EvalQuant(
        out=out, model=model, text={"a": text}, types=kinds, choices=questions, shots=1, threads=1, keep=True
    )
    execute(stage, quietly)
    return out


def record_of(folder: Path) -> dict:
    return json.loads((folder / "yayan.json").read_text())


def test_files_and_sizes_are_those_of_gguf(done: Path, model: Path, tmp_path: Path) -> None:
    types = record_of(done)["metrics"]["types"]
    made = execute(Gguf(out=tmp_path / "gguf", model=model, type=["F16", "Q4_K_M", "Q2_K"]), quietly)
    assert list(types) == ["F16", "Q4_K_M", "Q2_K"]
    for kind, row in types.items():
        other = made["metrics"]["files"][f"model-{kind}.gguf"]
        assert (row["bytes"], row["bits_per_weight"]) == (other["bytes"], other["bits_per_weight"])
        assert (done / f"model-{kind}.gguf").read_bytes() == (
            tmp_path / "gguf" / f"model-{kind}.gguf"
        ).read_bytes()
    assert "Q5_0" in types["Q4_K_M"]["tensors"]  # what llama.cpp takes where a row is no multiple of 256
    names = {file.name for file in done.iterdir()} - {f"model-{kind}.gguf" for kind in types}
    assert names == {"quant.md", "results.json", "yayan.json"}


def test_bits_are_those_of_eval_bits(done: Path, text: Path, tmp_path: Path) -> None:
    for kind, row in record_of(done)["metrics"]["types"].items():
        stage = EvalBits(out=tmp_path / kind, model=done / f"model-{kind}.gguf", text={"a": text})
        alone = execute(stage, quietly)["metrics"]["texts"]["a"]
        assert row["texts"]["a"]["bits_per_byte"] == pytest.approx(alone["bits_per_byte"], rel=1e-6)
        assert row["texts"]["a"]["interval"] == pytest.approx(alone["interval"], rel=1e-6)
        assert row["engine"] == "llama.cpp, float32 cache"


def test_coarser_types_lie_farther_from_f16(done: Path) -> None:
    types = record_of(done)["metrics"]["types"]
    f16, q4, q2 = (types[kind]["texts"]["a"] for kind in ("F16", "Q4_K_M", "Q2_K"))
    assert f16["kl_mean"] == 0 < q4["kl_mean"] < q2["kl_mean"] < q2["kl_999"]
    assert f16["top1_agreement"] == 1 > q4["top1_agreement"] > q2["top1_agreement"]
    assert q4["positions_compared"] == q4["tokens"] == f16["tokens"]
    for row in types.values():
        assert row["prompt_ms_per_token"] > 0 < row["answer_ms_per_token"]


def test_answers_are_those_of_eval_ceval(done: Path, model: Path, questions: Path, tmp_path: Path) -> None:
    execute(EvalCeval(out=tmp_path / "ceval", model=model, data=questions, shots=1), quietly)
    items = json.loads((tmp_path / "ceval" / "results.json").read_text())["items"]
    found = record_of(done)["metrics"]["types"]["F16"]["choices"]
    assert found["predictions"] == "".join(item["prediction"] for item in items)
    assert found["asked"] == len(LAW)


def test_results_hold_every_document(done: Path) -> None:
    for row in json.loads((done / "results.json").read_text())["types"].values():
        figures = row["texts"]["a"]
        bits = sum(item["nats"] for item in figures["items"]) / math.log(2)
        assert bits == pytest.approx(figures["bits_per_byte"] * figures["bytes"])
        assert [item["place"] for item in figures["items"]] == [f"text.jsonl:{line}" for line in (1, 2, 3)]


def test_it_goes_on_behind_the_last_type(
    done: Path, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in its third type, it does not compute the first two again; the files are gone in the end."""
    stage = EvalQuant(
        out=tmp_path / "quant", model=model, text={"a": text}, types=["Q4_0", "Q2_K"], threads=1
    )
    measured: list[str] = []
    real = Bench.measure

    def measure(self: Bench, kind: quant.Kind) -> dict:
        measured.append(kind)
        if measured == ["F16", "Q4_0", "Q2_K"]:
            raise KeyboardInterrupt
        return real(self, kind)

    monkeypatch.setattr(Bench, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        execute(stage, quietly)
    types = execute(stage, quietly)["metrics"]["types"]
    assert measured == ["F16", "Q4_0", "Q2_K", "Q2_K"]
    assert list(types) == ["F16", "Q4_0", "Q2_K"]
    whole = record_of(done)["metrics"]["types"]["Q2_K"]["texts"]["a"]
    assert types["Q2_K"]["texts"]["a"] == whole
    assert {file.name for file in (tmp_path / "quant").iterdir()} == {
        "quant.md",
        "results.json",
        "yayan.json",
    }


def test_the_table_and_the_report_say_all(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    EvalQuant(out=done, model=done, text={}).tell(record_of(done))
    told = capsys.readouterr().out
    written = (done / "quant.md").read_text().replace("\\_", "_")
    for word in ("F16", "Q4_K_M", "Q2_K", "llama.cpp, float32 cache", "KL, a", "accuracy"):
        assert word in told
        assert word in written
    execute(EvalReport(out=tmp_path / "report", folders=[done]), quietly)
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<h2>Quantised</h2>" in page
    assert "same first token, a" in page
    assert "<svg" in page


@pytest.mark.slow  # bitsandbytes in processes of its own
def test_eight_and_four_bits_of_transformers(model: Path, text: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    stage = EvalQuant(out=tmp_path / "quant", model=model, text={"a": text}, types=["int8", "nf4"], threads=1)
    types = execute(stage, quietly)["metrics"]["types"]
    eight, four = types["int8"], types["nf4"]
    assert eight["engine"] == four["engine"] == "torch, bfloat16, bitsandbytes"
    assert 0 < eight["texts"]["a"]["kl_mean"] < four["texts"]["a"]["kl_mean"] < 1
    assert four["bytes"] < eight["bytes"] < types["F16"]["bytes"]
    assert types["F16"]["texts"]["a"]["bits_per_byte"] == pytest.approx(
        eight["texts"]["a"]["bits_per_byte"], rel=0.05
    )


def test_without_bitsandbytes_they_are_left_out(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quant.importlib.util, "find_spec", lambda name: None)
    stage = EvalQuant(out=tmp_path / "quant", model=model, text={"a": text}, types=["nf4", "Q8_0"])
    assert stage.kinds() == ["F16", "Q8_0"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"types": []}, "each type must be named once"),
        ({"types": ["Q8_0", "Q8_0"]}, "each type must be named once"),
        ({"limit": 0}, "limit is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"text": {}}, "no text is given"),
        ({"text": {"a": Path("no-such-text.jsonl")}}, "no-such-text"),
        ({"context": 513}, "a context of 513"),
        ({"context": 32}, "a context of 32"),
        ({"model": Path("no-such-model")}, "no-such-model"),
        ({"model": Path(__file__)}, "this is a file"),
        ({"choices": Path(__file__).parent}, "no question of the split"),
    ],
)
def test_a_wrong_question_writes_nothing(
    model: Path, text: Path, tmp_path: Path, options: dict, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        execute(
            EvalQuant(**{"out": tmp_path / "out", "model": model, "text": {"a": text}} | options), quietly
        )
    assert not (tmp_path / "out").exists()


def test_questions_longer_than_the_context(model: Path, text: Path, questions: Path, tmp_path: Path) -> None:
    stage = EvalQuant(
        out=tmp_path / "out", model=model, text={"a": text}, choices=questions, shots=0, context=40
    )
    with pytest.raises(UserError, match="no question fits into 40 positions"):
        execute(stage, quietly)


def test_an_unknown_type_and_an_empty_text(model: Path, tmp_path: Path) -> None:
    words = ["eval", "quant", "--model", str(model), "--text.a", "x", "--out", "o", "--types", "Q4_X"]
    with pytest.raises(UserError, match="Q4_X"):
        parse(words)
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"text": ""}\n')
    with pytest.raises(UserError, match="all its documents are empty"):
        execute(EvalQuant(out=tmp_path / "out", model=model, text={"a": empty}), quietly)


def test_a_model_without_its_weights(model: Path, text: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    with (broken / "model.safetensors").open("r+b") as stream:
        stream.truncate(1000)
    with pytest.raises(UserError, match="model"):
        execute(EvalQuant(out=tmp_path / "out", model=broken, text={"a": text}), quietly)


@needs_shared
@pytest.mark.slow  # 21 M parameters, two types
def test_the_real_base_falls_back_as_llamacpp_does(tmp_path: Path) -> None:
    stage = EvalQuant(
        out=tmp_path / "quant",
        model=SHARED / "base" / "en-base-21m",
        text={"zh": SHARED / "data" / "zh-lctt-tech" / "heldout.jsonl.xz"},
        types=["Q4_K_M"],
        limit=3000,
        threads=1,
    )
    types = execute(stage, quietly)["metrics"]["types"]
    assert types["Q4_K_M"]["tensors"].keys() >= {"Q4_K", "Q6_K", "Q5_0"}
    assert 0 < types["Q4_K_M"]["texts"]["zh"]["kl_mean"] < 0.1
