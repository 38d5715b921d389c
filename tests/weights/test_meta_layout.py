"""Meta's layout: turned and split as it wants, and back again bit for bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import quietly
from tests.sentencepiece_model import make_chat_model
from tests.weights.test_merge import make_adapter
from yayan.errors import UserError
from yayan.stage import execute
from yayan.weights import meta_layout
from yayan.weights.merge import Merge
from yayan.weights.meta_layout import parameters
from yayan.weights.stream import open_tensors

GROUPED: dict[str, Any] = {
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "hidden_size": 32,
    "intermediate_size": 40,
}


def turned_back(matrix: torch.Tensor, heads: int) -> torch.Tensor:
    """As `transformers` reads Meta's weights (convert_llama_weights_to_hf.py, permute)."""
    rows, columns = matrix.shape
    return matrix.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("tied", [False, True])
def test_every_weight_comes_back(ranks: int, tied: bool, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(meta_layout.RANKS_OF_WIDTH, 32, ranks)
    make_chat_model(tmp_path / "base", **GROUPED, tie_word_embeddings=tied)
    adapter = make_adapter(tmp_path / "base", tmp_path / "adapter")
    base = tmp_path / "base"
    execute(Merge(base=base, adapter=[adapter], out=tmp_path / "plain"), quietly)
    execute(Merge(base=base, adapter=[adapter], format="pth", out=tmp_path / "pth"), quietly)
    wanted = open_tensors(tmp_path / "plain")
    files = sorted((tmp_path / "pth").glob("*.pth"))
    assert [file.name for file in files] == [f"consolidated.{rank:02}.pth" for rank in range(ranks)]
    parts = [torch.load(file, weights_only=True) for file in files]
    whole = {
        name: value if value.dim() == 1 else torch.cat([part[name] for part in parts], axis_of(name))
        for name, value in parts[0].items()
    }
    for layer in range(3):
        for ours, theirs, heads in (("q_proj", "wq", 8), ("k_proj", "wk", 2)):
            found = turned_back(whole.pop(f"layers.{layer}.attention.{theirs}.weight"), heads)
            assert torch.equal(found, wanted.read(f"model.layers.{layer}.self_attn.{ours}.weight"))
        for ours, theirs in (("mlp.down_proj", "feed_forward.w2"), ("self_attn.o_proj", "attention.wo")):
            found = whole.pop(f"layers.{layer}.{theirs}.weight")
            assert torch.equal(found, wanted.read(f"model.layers.{layer}.{ours}.weight"))
    head = "model.embed_tokens" if tied else "lm_head"
    assert torch.equal(whole.pop("output.weight"), wanted.read(f"{head}.weight"))
    assert torch.equal(whole.pop("tok_embeddings.weight"), wanted.read("model.embed_tokens.weight"))
    assert torch.equal(whole.pop("norm.weight"), wanted.read("model.norm.weight"))
    assert len(whole) == 3 * 5  # two norms, wv, w1 and w3 of each layer
    said = json.loads((tmp_path / "pth" / "params.json").read_text())
    assert said["n_kv_heads"] == 2
    assert not list((tmp_path / "pth").glob("*.safetensors"))
    assert (tmp_path / "pth" / "tokenizer.json").is_file()
    assert files[0].name in (tmp_path / "pth" / "README.md").read_text()


def axis_of(name: str) -> int:
    return 1 if name.split(".")[-2] in ("tok_embeddings", "wo", "w2") else 0


@pytest.mark.parametrize(("width", "inner"), [(4096, 11008), (8192, 28672), (96, 130), (64, 1)])
def test_the_inner_width_is_what_metas_formula_gives(width: int, inner: int) -> None:
    config = {"hidden_size": width, "intermediate_size": inner, "num_attention_heads": 8}
    said = parameters(config | {"num_hidden_layers": 1, "rms_norm_eps": 1e-5})
    hidden = int(said.get("ffn_dim_multiplier", 1) * int(2 * 4 * width / 3))
    assert -(-hidden // said["multiple_of"]) * said["multiple_of"] == inner


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ({"family": "qwen2"}, "no model of type qwen2"),
        ({"attention_bias": True}, "no place for model.layers.0.self_attn"),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
            "cannot say RoPE of type linear",
        ),
    ],
)
def test_what_the_layout_cannot_say_is_refused(shape: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    make_chat_model(tmp_path / "base", **shape)
    adapter = make_adapter(tmp_path / "base", tmp_path / "adapter")
    with pytest.raises(UserError, match=sentence):
        execute(Merge(base=tmp_path / "base", adapter=[adapter], format="pth", out=tmp_path / "out"), quietly)
    assert not (tmp_path / "out").exists()
