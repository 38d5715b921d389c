"""Block types against the counts that llama.cpp prints for known files; blocks against gguf's own Python code."""

import json
from collections import Counter
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as BlockType

from tests.weights import llama_quantize
from yayan.errors import UserError
from yayan.weights import quantize
from yayan.weights.gguf_file import write_gguf_files
from yayan.weights.quantize import FileType, block_type, quantize_blocks, row_bytes

MODULES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def mixture(
    layers: int, width: int, feed_forward: int, file_type: FileType = "Q4_K_M", *, tied: bool, shared: int
) -> dict[str, BlockType]:
    columns = {f"blk.{i}.{module}.weight": width for i in range(layers) for module in MODULES}
    columns |= {name: feed_forward for name in columns if "ffn_down" in name}
    columns |= {"token_embd.weight": width} if tied else {"token_embd.weight": width, "output.weight": width}
    return {
        name: block_type(name, wide, file_type, layers, tied=tied, shared_heads=shared)
        for name, wide in columns.items()
    }


LLAMA_2_7B = (32, 4096, 11008, False, 1)


@pytest.mark.parametrize(
    ("shape", "file_type", "printed"),
    [
        # "llama_model_loader: - type q4_K: 193 tensors" and so on, of published files
        pytest.param(LLAMA_2_7B, "Q4_K_M", {"Q4_K": 193, "Q6_K": 33}, id="Llama 2 7B"),
        pytest.param((22, 2048, 5632, False, 8), "Q4_K_M", {"Q4_K": 135, "Q6_K": 21}, id="TinyLlama 1.1B"),
        pytest.param((16, 2048, 8192, True, 4), "Q4_K_M", {"Q4_K": 96, "Q6_K": 17}, id="Llama 3.2 1B"),
        pytest.param(
            (80, 8192, 28672, False, 8), "Q4_K_M", {"Q4_K": 441, "Q5_K": 40, "Q6_K": 81}, id="Llama 2 70B"
        ),
        pytest.param(LLAMA_2_7B, "Q3_K_M", {"Q3_K": 129, "Q4_K": 92, "Q5_K": 4, "Q6_K": 1}, id="Q3_K_M"),
        pytest.param(LLAMA_2_7B, "Q3_K_L", {"Q3_K": 129, "Q5_K": 96, "Q6_K": 1}, id="Q3_K_L"),
        pytest.param(LLAMA_2_7B, "Q3_K_S", {"Q3_K": 225, "Q6_K": 1}, id="Q3_K_S"),
        pytest.param(LLAMA_2_7B, "Q4_K_S", {"Q4_K": 217, "Q5_K": 8, "Q6_K": 1}, id="Q4_K_S"),
        pytest.param(LLAMA_2_7B, "Q5_K_M", {"Q5_K": 193, "Q6_K": 33}, id="Q5_K_M"),
        pytest.param(LLAMA_2_7B, "Q5_K_S", {"Q5_K": 225, "Q6_K": 1}, id="Q5_K_S"),
        pytest.param(LLAMA_2_7B, "Q6_K", {"Q6_K": 226}, id="Q6_K"),
        pytest.param(LLAMA_2_7B, "Q4_0", {"Q4_0": 225, "Q6_K": 1}, id="Q4_0"),
        pytest.param(LLAMA_2_7B, "Q4_1", {"Q4_1": 225, "Q6_K": 1}, id="Q4_1"),
        pytest.param(LLAMA_2_7B, "Q5_1", {"Q5_1": 225, "Q6_K": 1}, id="Q5_1"),
        pytest.param(LLAMA_2_7B, "Q8_0", {"Q8_0": 226}, id="Q8_0"),
        pytest.param(LLAMA_2_7B, "BF16", {"BF16": 226}, id="BF16"),
    ],
)
def test_types_are_the_mixtures_of_published_files(
    shape: tuple[int, int, int, bool, int], file_type: FileType, printed: dict[str, int]
) -> None:
    layers, width, feed_forward, tied, shared = shape
    found = mixture(layers, width, feed_forward, file_type, tied=tied, shared=shared)
    assert Counter(kind.name for kind in found.values()) == printed


@pytest.mark.parametrize(("shared", "values"), [(1, "Q3_K"), (4, "Q4_K")])
def test_the_smallest_type_keeps_more_of_what_many_heads_share(shared: int, values: str) -> None:
    found = mixture(32, 4096, 11008, "Q2_K", tied=False, shared=shared)
    by_module = {name.split(".")[-2]: kind.name for name, kind in found.items()}
    assert by_module == {
        "attn_q": "Q2_K",
        "attn_k": "Q2_K",
        "attn_v": values,
        "attn_output": "Q3_K",
        "ffn_gate": "Q2_K",
        "ffn_up": "Q2_K",
        "ffn_down": "Q3_K",
        "token_embd": "Q2_K",
        "output": "Q6_K",
    }


def test_which_tensors_of_a_small_model_get_more_bits() -> None:
    found = mixture(6, 256, 768, tied=False, shared=1)
    more = sorted(name for name, kind in found.items() if kind == BlockType.Q6_K)
    layers = [2, 5]  # every third, and the last eighth (from 7 * 6 // 8 = 5 on)
    assert more == sorted(
        ["output.weight", *(f"blk.{i}.{module}.weight" for i in layers for module in ("attn_v", "ffn_down"))]
    )


@pytest.mark.parametrize(
    ("name", "columns", "file_type", "kind"),
    [
        ("blk.0.ffn_down.weight", 704, "Q4_K_M", BlockType.Q5_0),  # Q4_K does not fit
        ("blk.2.ffn_down.weight", 704, "Q4_K_M", BlockType.Q8_0),  # Q6_K does not fit
        ("blk.0.ffn_down.weight", 100, "Q4_K_M", BlockType.F16),  # nothing fits
        ("output.weight", 288, "Q4_K_M", BlockType.Q8_0),
        ("output.weight", 100, "Q4_K_M", BlockType.F16),
        ("token_embd.weight", 288, "Q4_K_M", BlockType.Q5_0),
        ("blk.0.attn_q.weight", 288, "Q2_K", BlockType.Q4_0),
        ("output.weight", 288, "Q4_0", BlockType.Q8_0),  # Q6_K does not fit
        ("output.weight", 256, "Q8_0", BlockType.Q8_0),
        ("blk.0.attn_q.weight", 100, "Q8_0", BlockType.F16),
        ("blk.0.attn_q.weight", 100, "F16", BlockType.F16),
        ("output.weight", 256, "F32", BlockType.F32),
    ],
)
def test_types_where_rows_are_no_whole_blocks(
    name: str, columns: int, file_type: FileType, kind: BlockType
) -> None:
    assert block_type(name, columns, file_type, 6, tied=False, shared_heads=1) == kind


def quantized(weight: torch.Tensor, kind: BlockType, importance: np.ndarray | None = None) -> np.ndarray:
    """All blocks of rows, one after another."""
    return np.concatenate(list(quantize_blocks(weight, kind, importance, 2)))


def weights(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)).mul(0.05).to(dtype)


@pytest.mark.parametrize("kind", [BlockType.Q8_0, BlockType.Q5_0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_blocks_are_those_of_the_reference_implementation(kind: BlockType, dtype: torch.dtype) -> None:
    weight = weights(13, 96, dtype)
    assert np.array_equal(quantized(weight, kind), gguf.quantize(weight.float().numpy(), kind))


@pytest.mark.parametrize(
    ("kind", "relative_error"),
    [
        (BlockType.Q2_K, 0.35),
        (BlockType.Q3_K, 0.18),
        (BlockType.Q4_0, 0.12),
        (BlockType.Q4_1, 0.1),
        (BlockType.Q4_K, 0.08),
        (BlockType.Q5_K, 0.04),
        (BlockType.Q6_K, 0.02),
        (BlockType.Q8_0, 0.006),
    ],
)
def test_blocks_decode_to_what_went_in(kind: BlockType, relative_error: float) -> None:
    weight = weights(7, 512)
    blocks = quantized(weight, kind)
    assert blocks.shape == (7, row_bytes(512, kind))
    back = torch.from_numpy(gguf.dequantize(blocks, kind))
    assert relative_error / 4 < (back - weight).norm() / weight.norm() < relative_error


def test_bfloat16_is_torchs_bytes() -> None:
    weight = weights(5, 34)
    blocks = quantized(weight, BlockType.BF16)
    assert torch.equal(torch.from_numpy(blocks).view(torch.bfloat16), weight.to(torch.bfloat16))


@pytest.mark.parametrize("kind", [BlockType.Q4_K, BlockType.Q2_K, BlockType.Q4_0])
def test_importance_moves_errors_to_columns_that_count_little(kind: BlockType) -> None:
    weight = weights(64, 512)
    importance = np.where(np.arange(512) % 2, 1.0, 1e-3).astype(np.float32)
    errors = [
        (torch.from_numpy(gguf.dequantize(quantized(weight, kind, given), kind)) - weight).square().mean(0)
        for given in (None, importance)
    ]
    assert errors[1][1::2].mean() < 0.97 * errors[0][1::2].mean()
    assert errors[1][::2].mean() > errors[0][::2].mean()


@pytest.mark.parametrize("kind", [BlockType.F32, BlockType.F16])
def test_floats_are_rounded_as_torch_does(kind: BlockType) -> None:
    weight = weights(5, 33, torch.bfloat16)
    wanted = weight.to(torch.float32 if kind == BlockType.F32 else torch.float16)
    assert np.array_equal(quantized(weight, kind), wanted.numpy())


@pytest.mark.parametrize("kind", [BlockType.F16, BlockType.Q4_K])
def test_chunks_do_not_show(kind: BlockType, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = weights(11, 256)
    whole = quantized(weight, kind)
    monkeypatch.setattr(quantize, "CHUNK_WEIGHTS", 3 * 256)
    assert np.array_equal(quantized(weight, kind), whole)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (float("nan"), BlockType.F32),
        (float("nan"), BlockType.Q4_K),
        (float("inf"), BlockType.Q8_0),
        (1e5, BlockType.F16),
    ],
)
def test_a_weight_that_the_type_cannot_hold_is_refused(value: float, kind: BlockType) -> None:
    weight = weights(3, 256)
    weight[2, 200] = value
    with pytest.raises(UserError, match=kind.name):
        quantized(weight, kind)


@pytest.mark.slow
@pytest.mark.parametrize("shape", llama_quantize.SHAPES)
def test_files_are_those_of_llama_cpps_own_quantiser(shape: str, tmp_path: Path) -> None:
    """The same type for every tensor, and the same bytes."""
    model, importance = llama_quantize.make_model(tmp_path / "model", shape)
    paths = {kind: tmp_path / f"{kind}.gguf" for kind in llama_quantize.kinds_of(shape)}
    write_gguf_files(model, paths, importance)
    recorded = json.loads(llama_quantize.RECORD.read_text())[shape]
    assert {kind: llama_quantize.digest(path) for kind, path in paths.items()} == recorded
