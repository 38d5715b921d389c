"""Block types against the counts that llama.cpp prints for known files; blocks against gguf's own Python code."""

from collections import Counter

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as BlockType

from yayan.errors import UserError
from yayan.weights import quantize
from yayan.weights.quantize import FileType, block_type, quantize_blocks, row_bytes

MODULES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def mixture(
    layers: int, width: int, feed_forward: int, file_type: FileType = "Q4_K_M", *, tied: bool, grouped: bool
) -> dict[str, BlockType]:
    columns = {f"blk.{i}.{module}.weight": width for i in range(layers) for module in MODULES}
    columns |= {name: feed_forward for name in columns if "ffn_down" in name}
    columns |= {"token_embd.weight": width} if tied else {"token_embd.weight": width, "output.weight": width}
    return {
        name: block_type(name, wide, file_type, layers, tied=tied, grouped=grouped)
        for name, wide in columns.items()
    }


@pytest.mark.parametrize(
    ("layers", "width", "feed_forward", "tied", "grouped", "printed"),
    [
        # "llama_model_loader: - type q4_K: 193 tensors" and so on, of published Q4_K_M files
        pytest.param(32, 4096, 11008, False, False, {"Q4_K": 193, "Q6_K": 33}, id="Llama 2 7B"),
        pytest.param(22, 2048, 5632, False, True, {"Q4_K": 135, "Q6_K": 21}, id="TinyLlama 1.1B"),
        pytest.param(16, 2048, 8192, True, True, {"Q4_K": 96, "Q6_K": 17}, id="Llama 3.2 1B"),
        pytest.param(80, 8192, 28672, False, True, {"Q4_K": 441, "Q5_K": 40, "Q6_K": 81}, id="Llama 2 70B"),
    ],
)
def test_q4_k_m_is_the_mixture_of_published_files(
    layers: int, width: int, feed_forward: int, tied: bool, grouped: bool, printed: dict[str, int]
) -> None:
    found = mixture(layers, width, feed_forward, tied=tied, grouped=grouped)
    assert Counter(kind.name for kind in found.values()) == printed


def test_which_tensors_of_a_small_model_get_more_bits() -> None:
    found = mixture(6, 256, 768, tied=False, grouped=False)
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
        ("output.weight", 256, "Q8_0", BlockType.Q8_0),
        ("blk.0.attn_q.weight", 100, "Q8_0", BlockType.F16),
        ("blk.0.attn_q.weight", 100, "F16", BlockType.F16),
        ("output.weight", 256, "F32", BlockType.F32),
    ],
)
def test_types_where_rows_are_no_whole_blocks(
    name: str, columns: int, file_type: FileType, kind: BlockType
) -> None:
    assert block_type(name, columns, file_type, 6, tied=False, grouped=False) == kind


def weights(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)).mul(0.05).to(dtype)


@pytest.mark.parametrize("kind", [BlockType.Q8_0, BlockType.Q5_0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_blocks_are_those_of_the_reference_implementation(kind: BlockType, dtype: torch.dtype) -> None:
    weight = weights(13, 96, dtype)
    assert np.array_equal(quantize_blocks(weight, kind), gguf.quantize(weight.float().numpy(), kind))


@pytest.mark.parametrize(
    ("kind", "relative_error"),
    [(BlockType.Q4_K, 0.08), (BlockType.Q5_K, 0.04), (BlockType.Q6_K, 0.02), (BlockType.Q8_0, 0.006)],
)
def test_blocks_decode_to_what_went_in(kind: BlockType, relative_error: float) -> None:
    weight = weights(7, 512)
    blocks = quantize_blocks(weight, kind)
    assert blocks.shape == (7, row_bytes(512, kind))
    back = torch.from_numpy(gguf.dequantize(blocks, kind))
    assert relative_error / 4 < (back - weight).norm() / weight.norm() < relative_error


@pytest.mark.parametrize("kind", [BlockType.F32, BlockType.F16])
def test_floats_are_rounded_as_torch_does(kind: BlockType) -> None:
    weight = weights(5, 33, torch.bfloat16)
    wanted = weight.to(torch.float32 if kind == BlockType.F32 else torch.float16)
    assert np.array_equal(quantize_blocks(weight, kind), wanted.numpy())


@pytest.mark.parametrize("kind", [BlockType.F16, BlockType.Q4_K])
def test_chunks_do_not_show(kind: BlockType, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = weights(11, 256)
    whole = quantize_blocks(weight, kind)
    monkeypatch.setattr(quantize, "CHUNK_WEIGHTS", 3 * 256)
    assert np.array_equal(quantize_blocks(weight, kind), whole)


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
        quantize_blocks(weight, kind)
