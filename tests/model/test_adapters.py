"""Adapter folders as they are written: in blocks, read back, and never with a number that is none."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import make_base
from yayan.errors import WorkError
from yayan.model import adapters
from yayan.model.adapters import adapter_tensors, add_lora, lora_config, refuse_lost, save_adapter
from yayan.model.ends import TwoEnds
from yayan.model.load import load_model

NEW = 7


@pytest.fixture
def ends(tmp_path: Path) -> TwoEnds:
    size = make_base(tmp_path / "base")
    ends = TwoEnds(load_model(tmp_path / "base"), size - NEW)
    ends.move_old_rows(rank=3, scale=1.5)
    add_lora(ends, lora_config(rank=4, alpha=6, dropout=0.0), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in ends.old_rows.parameters():
            value.add_(0.3 * torch.randn(value.shape, generator=generator))
    return ends


def test_rows_are_made_in_blocks(ends: TwoEnds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "whole").mkdir()
    save_adapter(ends, lora_config(4, 6, 0.0), "base", tmp_path / "whole")
    (tmp_path / "blocks").mkdir()
    monkeypatch.setattr(adapters, "BLOCK_BYTES", 5 * 24 * 4)
    save_adapter(ends, lora_config(4, 6, 0.0), "base", tmp_path / "blocks")
    whole, blocks = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "blocks"))
    assert whole.keys() == blocks.keys()
    for name, value in whole.items():
        torch.testing.assert_close(blocks[name], value)
    matrix = ends.model.get_input_embeddings().weight
    update = ends.updates["embed_tokens"]
    moved = torch.cat([matrix[:-NEW] + 1.5 * update.u @ update.v, ends.embedding])
    stored = whole["base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"]
    torch.testing.assert_close(stored, moved.detach())


def test_what_is_not_finite_is_not_handed_out(ends: TwoEnds, tmp_path: Path) -> None:
    with torch.no_grad():
        ends.updates["lm_head"].u[3, 1] = torch.inf
    with pytest.raises(WorkError, match="lm_head.* is not finite.*lower learning rate"):
        save_adapter(ends, lora_config(4, 6, 0.0), "base", tmp_path)
    assert not (tmp_path / "adapter_config.json").exists()


def test_what_the_disk_lost_is_found(ends: TwoEnds, tmp_path: Path) -> None:
    save_adapter(ends, lora_config(4, 6, 0.0), "base", tmp_path)
    refuse_lost(adapter_tensors(ends), tmp_path)
    with (tmp_path / "adapter_model.safetensors").open("r+b") as file:
        file.seek(-5, 2)
        file.write(b"\x7f")
    with pytest.raises(WorkError, match="did not reach the disk"):
        refuse_lost(adapter_tensors(ends), tmp_path)
