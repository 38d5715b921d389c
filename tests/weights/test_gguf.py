"""GGUF files: llama.cpp computes from them what `transformers` computes from the folder, and cuts text the same way."""

import json
import shutil
from pathlib import Path
from typing import Any, get_args

import gguf
import pytest
import torch
from gguf import TokenType
from safetensors.torch import load_file, save_file

from tests.conftest import SHARED, needs_shared
from tests.sentencepiece_model import TOKENS, make_chat_model
from yayan.engine.llamacpp import LlamaCpp
from yayan.errors import UserError, WorkError
from yayan.lineage import sha256_of
from yayan.model.load import load_model
from yayan.stage import execute
from yayan.tokenizer import load_tokenizer
from yayan.weights import gguf_proof
from yayan.weights.gguf import Gguf
from yayan.weights.gguf_file import write_gguf, write_gguf_files
from yayan.weights.gguf_plan import plan_file, weights_bytes
from yayan.weights.gguf_proof import Proof, probing_texts
from yayan.weights.importance import importance_of
from yayan.weights.quantize import FileType
from yayan.weights.stream import open_tensors

EN_BASE = SHARED / "base" / "en-base-21m"
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 5e5,
    "factor": 8.0,
    "original_max_position_embeddings": 64,
}
SHAPES: dict[str, dict[str, Any]] = {
    "grouped": {},
    "tied": {"tie_word_embeddings": True},
    "ungrouped, biases": {"num_key_value_heads": 6, "attention_bias": True, "mlp_bias": True},
    "one kv head, wide heads": {"num_key_value_heads": 1, "head_dim": 14},
    "rows without tokens": {"padding": 12},
    "RoPE base": {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}},
    "RoPE linear": {"rope_parameters": LINEAR},
    "RoPE yarn": {"rope_parameters": YARN},
    "Mistral": {"family": "mistral", "sliding_window": None},
    "Qwen 2": {"family": "qwen2"},
    "Qwen 2, tied": {"family": "qwen2", "tie_word_embeddings": True},
    "Qwen 3": {"family": "qwen3", "head_dim": 12},
}

WIDE: dict[str, Any] = {  # wide enough for blocks of 256 weights
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "initializer_range": 0.05,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("gguf") / "tiny")


def largest_difference(model: Path, path: Path, ids: list[int], positions: list[int]) -> tuple[float, float]:
    """Over the whole vocabulary: |log-probability of llama.cpp - that of torch|, and the spread of the latter."""
    with torch.no_grad():
        logprobs_TV = load_model(model)(torch.tensor([ids])).logits[0].log_softmax(-1)
    vocabulary = logprobs_TV.shape[-1]
    worst = 0.0
    with LlamaCpp(path, threads=1, exact=True) as engine:
        for position in positions:
            theirs = engine.next_logprobs(ids[: position + 1], vocabulary)
            assert len(theirs) == vocabulary
            worst = max(worst, *(abs(float(logprobs_TV[position, i]) - value) for i, value in theirs.items()))
    return worst, float(logprobs_TV.std())


@pytest.mark.parametrize("shape", SHAPES)
def test_f32_computes_what_transformers_computes(shape: str, tmp_path: Path) -> None:
    folder = make_chat_model(tmp_path / "model", **SHAPES[shape])
    write_gguf(folder, tmp_path / "model.gguf", "F32")
    ids = [
        1,
        *load_tokenizer(folder).encode("The old man went to the river 从前，河边有一座小房子 xyz " * 9),
    ][:150]
    worst, spread = largest_difference(folder, tmp_path / "model.gguf", ids, [0, 1, 5, 40, 149])
    assert spread > 1, "a flat distribution proves nothing"
    assert worst < 1e-3


@needs_shared
def test_f32_of_a_real_model_computes_what_transformers_computes(tmp_path: Path) -> None:
    write_gguf(EN_BASE, tmp_path / "model.gguf", "F32")
    text = "Once upon a time, there was a little girl who lived in a village near the forest. 你好 "
    ids = [1, *load_tokenizer(EN_BASE).encode(text * 3)]
    worst, _ = largest_difference(EN_BASE, tmp_path / "model.gguf", ids, [0, 3, 17, 59, len(ids) - 1])
    assert worst < 1e-3


@needs_shared
def test_a_real_tokenizer_cuts_the_same(tmp_path: Path) -> None:
    write_gguf(EN_BASE, tmp_path / "model.gguf", "Q8_0")
    tokenizer = load_tokenizer(EN_BASE)
    with LlamaCpp(tmp_path / "model.gguf", threads=1) as engine:
        for text in probing_texts(tokenizer)[:300]:
            assert engine.tokenize(text) == tokenizer.encode(text)


def test_several_types_in_one_pass_are_the_same_files(model: Path, tmp_path: Path) -> None:
    kinds: list[FileType] = ["F32", "Q8_0", "Q2_K"]
    together = write_gguf_files(model, {kind: tmp_path / f"{kind}.gguf" for kind in kinds})
    for kind in kinds:
        assert write_gguf(model, tmp_path / "alone.gguf", kind) == together[kind]
        assert (tmp_path / "alone.gguf").read_bytes() == (tmp_path / f"{kind}.gguf").read_bytes()


def test_the_stage_writes_each_type_and_says_what_was_checked(model: Path, tmp_path: Path) -> None:
    folder = make_chat_model(tmp_path / "wide", **WIDE)
    stage = Gguf(model=folder, type=["F16", "Q8_0", "Q4_K_M"], name="wide", out=tmp_path / "out")
    record = execute(stage)
    names = [f"wide-{kind}.gguf" for kind in ("F16", "Q8_0", "Q4_K_M")]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted([*names, "yayan.json"])
    f16, q8, q4 = (record["metrics"]["files"][name] for name in names)
    assert f16["bytes"] > q8["bytes"] > q4["bytes"] == (tmp_path / "out" / names[2]).stat().st_size
    assert q4["tensors"] == {"Q4_K": 20, "Q6_K": 3, "F32": 7}  # output, and two of layer 2
    assert 4.5 < q4["bits_per_weight"] < 6 < 8.4 < q8["bits_per_weight"] < 8.7
    for entry in (f16, q8, q4):
        assert entry["texts_with_equal_tokens"] > 10_000
        assert entry["chats_with_equal_prompts"] == 2
        assert entry["positions_compared"] == 100
    differences = [entry["largest_difference_of_logprobs"] for entry in (f16, q8, q4)]
    assert differences == sorted(differences)
    assert differences[0] < 0.02
    assert record["tokenizer"] == load_tokenizer(folder).sha256
    assert record["template"] == sha256_of(folder / "chat_template.jinja")


@pytest.mark.parametrize("kind", get_args(FileType))
def test_llama_cpp_reads_every_type(kind: FileType, tmp_path: Path) -> None:
    folder = make_chat_model(tmp_path / "wide", **WIDE)
    found = write_gguf(folder, tmp_path / "model.gguf", kind)
    ids = [1, *load_tokenizer(folder).encode("The old man went to the river 从前，河边有一座小房子 xyz")]
    worst, _ = largest_difference(folder, tmp_path / "model.gguf", ids, [3, len(ids) - 1])
    bounds = {
        "F32": 1e-3,
        "F16": 2e-2,
        "BF16": 0.1,
        "Q8_0": 0.2,
        "Q6_K": 0.5,
        "Q5": 0.9,
        "Q4": 1.6,
        "Q3": 2.5,
    }
    assert worst < bounds.get(kind, bounds.get(kind[:2], 4.0))
    vectors = 4 * sum(spec.elements for spec in open_tensors(folder).specs.values() if len(spec.shape) == 1)
    elements = sum(spec.elements for spec in open_tensors(folder).specs.values())
    said = float(str(found["bits_per_weight"])) * elements / 8
    forecast = weights_bytes(json.loads((folder / "config.json").read_text()), kind) + vectors
    assert said == pytest.approx(forecast, rel=1e-3)


def test_a_calibration_text_lowers_what_is_lost_on_its_like(tmp_path: Path) -> None:
    """Inputs whose columns differ by a factor of ten: errors are kept where the inputs are small."""
    folder = make_chat_model(tmp_path / "wide", **WIDE)
    scale = torch.where(torch.arange(256) % 3 == 0, 10.0, 0.5)
    change_weights(folder, lambda tensors: tensors.update(with_norms(tensors, scale)))
    (tmp_path / "text.txt").write_text("The old man went to the river 从前，河边有一座小房子 xyz " * 30)
    found = importance_of(folder, tmp_path / "text.txt", 300)
    query = found["model.layers.0.self_attn.q_proj.weight"]
    assert query[::3].mean() > 50 * query[1::3].mean()
    assert found.keys() == {name for name in open_tensors(folder).specs if "_proj" in name}
    lost = []
    for calibration in (None, tmp_path / "text.txt"):
        stage = Gguf(
            model=folder, type=["Q2_K"], out=tmp_path / f"out-{bool(calibration)}", calibration=calibration
        )
        execute(stage)
        ids = [1, *load_tokenizer(folder).encode("from the old house 房子 to the river")]
        lost.append(largest_difference(folder, stage.out / "model-Q2_K.gguf", ids, [3, 6, 9])[0])
    assert lost[1] < lost[0]


def with_norms(tensors: dict[str, torch.Tensor], scale: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: value * scale for name, value in tensors.items() if name.endswith("layernorm.weight")}


def test_the_file_says_what_the_tokenizer_is(model: Path, tmp_path: Path) -> None:
    folder = make_chat_model(tmp_path / "padded", padding=5)
    write_gguf(folder, tmp_path / "model.gguf", "F16")
    said = {name: field.contents() for name, field in gguf.GGUFReader(tmp_path / "model.gguf").fields.items()}
    pieces, kinds = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"]
    tokenizer = load_tokenizer(folder)
    assert pieces[:TOKENS] == [tokenizer.token(i) for i in range(TOKENS)]
    assert pieces[TOKENS:] == [f"[PAD{i}]" for i in range(TOKENS, TOKENS + 5)]
    assert kinds[:5] == [
        TokenType.UNKNOWN,
        TokenType.CONTROL,
        TokenType.CONTROL,
        TokenType.CONTROL,
        TokenType.BYTE,
    ]
    assert kinds.count(TokenType.BYTE) == 256
    assert set(kinds[260:TOKENS]) == {TokenType.NORMAL}
    assert kinds[TOKENS:] == [TokenType.UNUSED] * 5
    scores = said["tokenizer.ggml.scores"]
    assert all(left > right for left, right in zip(scores[260:TOKENS], scores[261:TOKENS], strict=False))
    special = {name: said[f"tokenizer.ggml.{name}_token_id"] for name in ("unknown", "bos", "eos", "padding")}
    assert special == {"unknown": 0, "bos": 1, "eos": 2, "padding": 3}
    assert said["tokenizer.ggml.add_bos_token"] is True
    assert said["tokenizer.ggml.add_eos_token"] is False
    assert said["tokenizer.chat_template"] == (folder / "chat_template.jinja").read_text()
    assert said["llama.context_length"] == 512


def change_weights(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_the_proof_fails_where_weights_differ(model: Path, tmp_path: Path) -> None:
    write_gguf(model, tmp_path / "model.gguf", "F16")
    other = shutil.copytree(model, tmp_path / "other")
    change_weights(other, lambda tensors: tensors["model.layers.1.self_attn.k_proj.weight"].neg_())
    same = Proof(model).compare(tmp_path / "model.gguf", "F16")["positions_with_same_first_token"]
    assert isinstance(same, int)
    assert same >= 98
    with pytest.raises(WorkError, match="log-probabilities"):
        Proof(other).compare(tmp_path / "model.gguf", "F16")


def test_the_proof_of_a_model_too_large_to_compute_fails_where_the_file_is_not_whole(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp looks each tensor up, though it reads none."""
    monkeypatch.setattr(gguf_proof, "LARGEST_REFERENCE_BYTES", 0)
    path = tmp_path / "model.gguf"
    write_gguf(model, path, "F16")
    proof, whole = Proof(model), path.read_bytes()
    assert proof.compare(path, "F16")["positions_compared"] == 0
    renamed = whole.replace(b"blk.1.attn_k.weight", b"blk.1.attn_x.weight")
    for broken in (whole[:-1000], renamed):
        path.write_bytes(broken)
        with pytest.raises(WorkError, match="cannot open"):
            proof.compare(path, "F16")


def test_the_proof_fails_where_tokens_differ(model: Path, tmp_path: Path) -> None:
    write_gguf(model, tmp_path / "model.gguf", "F16")
    other = shutil.copytree(model, tmp_path / "other")
    fast = json.loads((other / "tokenizer.json").read_text())
    fast["model"]["merges"].reverse()
    (other / "tokenizer.json").write_text(json.dumps(fast))
    with pytest.raises(WorkError, match="other tokens"):
        Proof(other).compare(tmp_path / "model.gguf", "F16")


def test_the_proof_fails_where_prompts_differ(model: Path, tmp_path: Path) -> None:
    write_gguf(model, tmp_path / "model.gguf", "F16")
    other = shutil.copytree(model, tmp_path / "other")
    template = (other / "chat_template.jinja").read_text()
    (other / "chat_template.jinja").write_text(template.replace("[/INST]", "[/inst]"))
    with pytest.raises(WorkError, match="another prompt"):
        Proof(other).compare(tmp_path / "model.gguf", "F16")


def set_config(folder: Path, **keys: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **keys}))


def swap_tokens(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    first, second = '"▁house"', '"▁river"'
    (folder / "tokenizer.json").write_text(
        text.replace(first, '"@"').replace(second, first).replace('"@"', second)
    )


BREAKS = {
    "no config.json": (lambda folder: (folder / "config.json").unlink(), "not a model folder"),
    "another family": (
        lambda folder: set_config(folder, model_type="qwen3"),
        "has no model.layers.0.self_attn.k_norm",
    ),
    "a window": (
        lambda folder: set_config(folder, model_type="mistral", sliding_window=64),
        "without its sliding window of 64",
    ),
    "another activation": (lambda folder: set_config(folder, hidden_act="gelu"), "cannot be written"),
    "no hidden size": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "llama"}'),
        "vocab_size is missing",
    ),
    "RoPE without its keys": (
        lambda folder: set_config(folder, rope_parameters={"rope_type": "llama3", "low_freq_factor": 1.0}),
        "RoPE of type llama3 without factor",
    ),
    "RoPE of another kind": (
        lambda folder: set_config(folder, rope_parameters={"rope_type": "longrope"}),
        "RoPE of type longrope is not supported",
    ),
    "byte-level tokenizer": (lambda folder: (folder / "tokenizer.model").unlink(), "no tokenizer.model"),
    "two tokenizers": (swap_tokens, "disagree about token"),
    "damaged tokenizer.model": (
        lambda folder: (folder / "tokenizer.model").write_bytes(b"no"),
        "not a SentencePiece model",
    ),
    "too few rows": (
        lambda folder: change_weights(
            folder,
            lambda tensors: tensors.update(
                {name: tensors[name][:-2].clone() for name in ("model.embed_tokens.weight", "lm_head.weight")}
            ),
        ),
        "500 tokens, the embedding 498 rows",
    ),
    "a missing tensor": (
        lambda folder: change_weights(
            folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight")
        ),
        "has no model.layers.1.mlp.up_proj.weight",
    ),
    "no head": (
        lambda folder: change_weights(folder, lambda tensors: tensors.pop("lm_head.weight")),
        "has no lm_head.weight",
    ),
    "an unknown tensor": (
        lambda folder: change_weights(folder, lambda tensors: tensors.update({"extra": torch.ones(2)})),
        "no place for the tensor extra",
    ),
    "truncated weights": (
        lambda folder: (folder / "model.safetensors").write_bytes(
            (folder / "model.safetensors").read_bytes()[:-100]
        ),
        "truncated or damaged",
    ),
}


@pytest.mark.parametrize("case", BREAKS)
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_written(
    case: str, model: Path, tmp_path: Path
) -> None:
    broken, out = shutil.copytree(model, tmp_path / "broken"), tmp_path / "out"
    change, sentence = BREAKS[case]
    change(broken)
    with pytest.raises(UserError, match=sentence):
        execute(Gguf(model=broken, out=out))
    assert not out.exists()
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    "options", [{"name": "a/b"}, {"name": ""}, {"name": ".."}, {"type": []}, {"type": ["F16", "F16"]}]
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        execute(Gguf(model=model, out=tmp_path / "out", **options))


def test_old_checkpoints_and_old_configurations(model: Path, tmp_path: Path) -> None:
    old = shutil.copytree(model, tmp_path / "old")
    inverse = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    change_weights(old, lambda tensors: tensors.update(inverse))
    config = json.loads((old / "config.json").read_text())
    del config["rope_parameters"], config["head_dim"]
    scaling = {"type": "linear", "factor": 4.0}
    (old / "config.json").write_text(json.dumps({**config, "rope_theta": 500.0, "rope_scaling": scaling}))
    names = {item.name for item in plan_file(old, "F16").tensors}
    assert names == {item.name for item in plan_file(model, "F16").tensors}
    write_gguf(old, tmp_path / "model.gguf", "F32")
    said = gguf.GGUFReader(tmp_path / "model.gguf").fields
    assert said["llama.rope.freq_base"].contents() == 500.0
    assert said["llama.rope.scaling.type"].contents() == "linear"
    assert said["llama.rope.scaling.factor"].contents() == 4.0
