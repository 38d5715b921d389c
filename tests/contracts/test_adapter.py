"""Contract: an adapter folder is PEFT's own: plain `peft` loads it and computes the same logits."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.tiny import make_base
from yayan.model.adapters import add_lora, lora_config, save_adapter
from yayan.model.ends import TwoEnds
from yayan.model.load import load_model

NEW = 7


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rows", ["new", "all", "none", "low-rank", "low-rank of all"])
@pytest.mark.parametrize("dora", [False, True])
def test_plain_peft_loads_what_we_write(tmp_path: Path, tied: bool, rows: str, dora: bool) -> None:
    size = make_base(tmp_path / "base", tied=tied)
    first = {"new": size - NEW, "low-rank": size - NEW, "all": 0}.get(rows, size)
    ends = TwoEnds(load_model(tmp_path / "base"), first)
    if "low-rank" in rows:
        ends.move_old_rows(rank=3, scale=1.5)
    config = lora_config(rank=4, alpha=6, dropout=0.0, dora=dora)
    pairs = add_lora(ends, config, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in [*pairs.values(), *ends.trained_rows().values(), *ends.old_rows.parameters()]:
            value.add_(0.3 * torch.randn(value.shape, generator=generator))
    (tmp_path / "adapter").mkdir()
    save_adapter(ends, config, str(tmp_path / "base"), tmp_path / "adapter")

    ids = torch.arange(size - 40, size)[None]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    with torch.no_grad():
        ours = ends.logits(ends.hidden(ids)[0])
        torch.testing.assert_close(
            theirs(input_ids=ids).logits[0], ours, rtol=1e-5, atol=3e-5
        )  # sums in another order


@pytest.mark.parametrize("tied", [False, True])
def test_plain_peft_loads_rows_alone(tmp_path: Path, tied: bool) -> None:
    size = make_base(tmp_path / "base", tied=tied)
    ends = TwoEnds(load_model(tmp_path / "base"), size - NEW)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in ends.trained_rows().values():
            value.add_(0.3 * torch.randn(value.shape, generator=generator))
    (tmp_path / "adapter").mkdir()
    save_adapter(ends, None, str(tmp_path / "base"), tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["peft_type"] == "TRAINABLE_TOKENS"
    assert settings["token_indices"] == list(range(size - NEW, size))
    ids = torch.arange(size - 40, size)[None]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    with torch.no_grad():
        ours = ends.logits(ends.hidden(ids)[0])
        torch.testing.assert_close(theirs(input_ids=ids).logits[0], ours, rtol=1e-5, atol=3e-5)


def test_the_names_and_shapes_on_the_disk(tmp_path: Path) -> None:
    size = make_base(tmp_path / "base")
    ends = TwoEnds(load_model(tmp_path / "base"), size - NEW)
    config = lora_config(rank=4, alpha=6, dropout=0.0)
    add_lora(ends, config, seed=1)
    save_adapter(ends, config, "somewhere/base", tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    prefix = "base_model.model."
    for module in ("model.embed_tokens", "lm_head"):
        assert tensors[f"{prefix}{module}.token_adapter.trainable_tokens_delta"].shape == (NEW, 24)
    q = f"{prefix}model.layers.1.self_attn.q_proj"
    assert tensors[f"{q}.lora_A.weight"].shape == (4, 24)
    assert tensors[f"{q}.lora_B.weight"].shape == (24, 4)
    assert len(tensors) == 2 + 2 * 7 * 2, "two ends, and a pair for seven projections of two layers"
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["peft_type"] == "LORA"
    assert settings["base_model_name_or_path"] == "somewhere/base"
    indices = list(range(size - NEW, size))
    assert settings["trainable_token_indices"] == {"embed_tokens": indices, "lm_head": indices}
