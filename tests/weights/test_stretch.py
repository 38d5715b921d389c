"""A stretched folder: plain `transformers` and llama.cpp compute the same from it, and training takes it on."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import quietly
from tests.sentencepiece_model import make_chat_model
from tests.weights.test_gguf import largest_difference
from yayan import lineage
from yayan.corpus.pack import Pack
from yayan.errors import UserError
from yayan.evaluate.words import describe
from yayan.model.folder import read_config, read_json
from yayan.model.rope import frequencies, head_width, rope_of
from yayan.stage import execute
from yayan.tokenizer import load_tokenizer
from yayan.train.pretrain import Pretrain
from yayan.weights.gguf import Gguf
from yayan.weights.gguf_file import write_gguf
from yayan.weights.merge import Merge
from yayan.weights.stretch import Stretch, link_or_copy

TRAINED, NEW = 64, 256
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 12},
}
METHODS = ("pi", "ntk", "yarn", "llama3")
TEXT = "The old man went to the river 从前，河边有一座小房子 xyz "


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        family: make_chat_model(root / family, family=family, max_position_embeddings=TRAINED, **settings)
        for family, settings in FAMILIES.items()
    }


@pytest.fixture
def model(models: dict[str, Path]) -> Path:
    return models["llama"]


def stretch(model: Path, out: Path, method: Any = "pi", to: int = NEW, alpha: float | None = None) -> Path:
    execute(Stretch(model=model, to=to, method=method, alpha=alpha, out=out), quietly)
    return out


@pytest.mark.parametrize("method", [*METHODS, "dynamic"])
@pytest.mark.parametrize("family", FAMILIES)
def test_plain_transformers_turns_by_the_same_frequencies(
    family: str, method: str, models: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = stretch(models[family], tmp_path / "out", method)
    rotary = AutoModelForCausalLM.from_pretrained(out).model.rotary_emb
    config = read_config(out)
    ours_K, attention = frequencies(rope_of(config), head_width(config), config["max_position_embeddings"])
    torch.testing.assert_close(rotary.inv_freq, ours_K, rtol=1e-6, atol=0)
    assert rotary.attention_scaling == pytest.approx(attention)
    assert not caplog.records


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_f32_gguf_computes_what_transformers_computes_below_and_above_the_old_limit(
    family: str, method: str, models: dict[str, Path], tmp_path: Path
) -> None:
    out = stretch(models[family], tmp_path / "out", method)
    if method == "llama3" and family.startswith("qwen"):
        with pytest.raises(UserError, match=f"Llama 3's kind in a model of type {family}.*yarn, ntk or pi"):
            write_gguf(out, tmp_path / "model.gguf", "F32")
        return
    write_gguf(out, tmp_path / "model.gguf", "F32")
    ids = [1, *load_tokenizer(out).encode(TEXT * 20)][:NEW]
    positions = [0, 5, TRAINED - 2, TRAINED - 1, TRAINED, 100, 200, NEW - 2]
    worst, spread = largest_difference(out, tmp_path / "model.gguf", ids, positions)
    assert spread > 1, "a flat distribution proves nothing"
    assert worst < 1e-3


def test_gguf_holds_the_settings(model: Path, tmp_path: Path) -> None:
    def said(method: str) -> dict[str, Any]:
        out = stretch(model, tmp_path / method, method)
        write_gguf(out, tmp_path / f"{method}.gguf", "F16")
        reader = gguf.GGUFReader(tmp_path / f"{method}.gguf")
        tensors = [tensor.name for tensor in reader.tensors]
        fields = {name.removeprefix("llama."): field.contents() for name, field in reader.fields.items()}
        return {name: value for name, value in fields.items() if "rope" in name} | {
            "context": fields["context_length"],
            "factors": tensors.count("rope_freqs.weight"),
        }

    common = {"rope.dimension_count": 8, "rope.freq_base": 10_000.0, "context": NEW, "factors": 0}
    scaling = {"rope.scaling.factor": 4.0}
    assert said("pi") == common | scaling | {"rope.scaling.type": "linear"}
    assert said("ntk") == common | {"rope.freq_base": pytest.approx(10_000 * 7 ** (8 / 6), rel=1e-6)}
    original = {"rope.scaling.original_context_length": TRAINED}
    assert said("yarn") == common | scaling | original | {"rope.scaling.type": "yarn"}
    assert said("llama3") == common | {"factors": 1}


def test_dynamic_ntk_is_no_gguf(model: Path, tmp_path: Path) -> None:
    out = stretch(model, tmp_path / "out", "dynamic")
    with pytest.raises(UserError, match="no RoPE that follows the length.*--method ntk"):
        execute(Gguf(model=out, out=tmp_path / "gguf"), quietly)
    assert not (tmp_path / "gguf").exists()


def test_the_weights_are_the_same_files_and_the_rest_is_a_folder_of_its_own(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = Stretch(model=model, to=NEW, method="pi", out=tmp_path / "out")
    record = execute(stage, quietly)
    stage.tell(record)
    told = capsys.readouterr().out
    assert "64 → 256 positions" in told
    assert "--max-model-len 256" in told
    assert describe(record) == "64 → 256 positions, RoPE of type linear, base 10,000, factor 4"
    metrics = record["metrics"]
    assert metrics["cache_bytes"] == 2 * 3 * 2 * 8 * NEW * 2  # keys and values, layers, heads, width, bytes
    weights = stage.out / "model.safetensors"
    assert weights.samefile(model / "model.safetensors")
    assert {file.name for file in stage.out.iterdir()} == {
        *(file.name for file in model.iterdir()),
        "README.md",
        lineage.RECORD_NAME,
    }
    for name in ("config.json", "tokenizer.json"):
        assert not (stage.out / name).samefile(model / name)
    before = {name: value for name, value in read_config(model).items() if "rope" not in name}
    after = {name: value for name, value in read_config(stage.out).items() if "rope" not in name}
    assert after == before | {"max_position_embeddings": NEW}
    shutil.rmtree(stage.out)
    assert (model / "model.safetensors").is_file()


def test_on_another_disk_the_weights_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    (tmp_path / "a").write_bytes(b"weights")
    (tmp_path / "b").write_bytes(b"of an earlier try")
    monkeypatch.setattr(os, "link", refuse)
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"weights"
    assert not (tmp_path / "a").samefile(tmp_path / "b")


def test_shorter_limits_elsewhere_are_raised(model: Path, tmp_path: Path) -> None:
    """Else tools would cut a long text at the old length, or stop an answer there."""
    copy = shutil.copytree(model, tmp_path / "copy")
    settings = read_json(copy / "tokenizer_config.json")
    (copy / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": TRAINED}))
    (copy / "generation_config.json").write_text(json.dumps({"max_length": TRAINED, "eos_token_id": 2}))
    out = stretch(copy, tmp_path / "out")
    assert read_json(out / "generation_config.json") == {"max_length": NEW, "eos_token_id": 2}
    assert AutoTokenizer.from_pretrained(out).model_max_length == NEW
    ids = AutoTokenizer.from_pretrained(out)(TEXT * 9, truncation=True)["input_ids"]
    assert len(ids) > TRAINED
    (copy / "generation_config.json").write_text(json.dumps({"max_length": None}))
    assert read_json(stretch(copy, tmp_path / "none") / "generation_config.json") == {"max_length": None}


def test_a_stretched_model_is_trained_merged_and_written_with_its_settings(
    model: Path, tmp_path: Path
) -> None:
    documents = [{"text": TEXT * n} for n in (12, 1, 9, 2)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    execute(Pack(out=tmp_path / "shards", tokenizer=model, corpus=[tmp_path / "texts.jsonl"]), quietly)
    long = stretch(model, tmp_path / "long", "yarn")
    settings: dict[str, Any] = {
        "shards": [tmp_path / "shards"],
        "steps": 2,
        "sequence_length": NEW,
        "batch_size": 1,
        "rank": 2,
        "checkpointing": True,
        "threads": 1,
    }
    with pytest.raises(UserError, match="sequences of 256 are longer than the model's 64 positions"):
        execute(Pretrain(out=tmp_path / "short", model=model, **settings), quietly)
    execute(Pretrain(out=tmp_path / "adapter", model=long, **settings), quietly)
    execute(Merge(out=tmp_path / "merged", base=long, adapter=[tmp_path / "adapter"]), quietly)
    execute(Pretrain(out=tmp_path / "full", model=long, train="full", **settings), quietly)
    for folder in (tmp_path / "merged", tmp_path / "full"):
        assert read_config(folder) == read_config(long)
    ids = torch.tensor([[1, *load_tokenizer(long).encode(TEXT * 9)]])[:, :NEW]
    with torch.no_grad():
        logits = [AutoModelForCausalLM.from_pretrained(tmp_path / n)(ids).logits for n in ("long", "merged")]
    assert logits[0].isfinite().all()
    assert not torch.allclose(logits[0], logits[1])


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "shorter": ({"to": 32}, "32 positions are no stretch, the model has 64 .to.: give more than 64"),
    "alpha of another": ({"method": "pi", "alpha": 2.0}, "pi has no alpha"),
    "alpha that shrinks": ({"alpha": 1.0}, "alpha is 1 .alpha.: give more than 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options_write_nothing(case: str, model: Path, tmp_path: Path) -> None:
    changes, sentence = BAD[case]
    options: dict[str, Any] = {"to": NEW, "method": "ntk"} | changes
    with pytest.raises(UserError, match=sentence):
        execute(Stretch(model=model, out=tmp_path / "out", **options), quietly)
    assert not list(tmp_path.iterdir())


def test_bad_folders_write_nothing(model: Path, tmp_path: Path) -> None:
    pickled = shutil.copytree(model, tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    torch.save({"lm_head.weight": torch.ones(2, 2)}, pickled / "pytorch_model.bin")
    broken = shutil.copytree(model, tmp_path / "broken")
    save_file({"a": torch.ones(3)}, broken / "model.safetensors")
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:-4])
    stretched = stretch(model, tmp_path / "stretched", "llama3")
    (tmp_path / "empty").mkdir()
    cases = [
        (tmp_path / "nothing", "no such file"),
        (tmp_path / "empty", "no config.json"),
        (pickled, "older .bin files"),
        (broken, "truncated or damaged"),
        (stretched, "stretched by llama3 before.*go on by llama3"),
    ]
    for folder, sentence in cases:
        with pytest.raises(UserError, match=sentence):
            stretch(folder, tmp_path / "elsewhere" / "out", "ntk", 512)
    assert not (tmp_path / "elsewhere").exists()
