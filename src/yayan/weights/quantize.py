"""Weights in the types of a GGUF file, and the mixtures of types that llama.cpp gives a name to.

Shapes: R rows, C columns (what ggml calls ne[0]: the axis along which a block lies).
"""

from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, LlamaFileType
from gguf import GGMLQuantizationType as BlockType

from yayan.ahead import ahead
from yayan.errors import UserError
from yayan.weights.ggml import quantize_rows

FileType = Literal[
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0",
    "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K",
]  # fmt: skip
FILE_TYPES = {
    name: LlamaFileType["ALL_F32" if name == "F32" else f"MOSTLY_{name}"] for name in get_args(FileType)
}
FLOAT_TYPES = {BlockType.F32: torch.float32, BlockType.F16: torch.float16, BlockType.BF16: torch.bfloat16}
# llama.cpp's substitutes (tensor_type_fallback) where a row is no multiple of 256: their blocks have 32 weights
FALLBACK = {
    BlockType.Q2_K: BlockType.Q4_0,
    BlockType.Q3_K: BlockType.Q4_0,
    BlockType.Q4_K: BlockType.Q5_0,
    BlockType.Q5_K: BlockType.Q5_1,
    BlockType.Q6_K: BlockType.Q8_0,
}
CHUNK_WEIGHTS = 1 << 20  # weights that a thread holds in float32 at once: 4 MiB, which stay in the cache


def block_type(
    name: str,
    columns: int,
    file_type: FileType,
    layers: int,
    *,
    tied: bool,
    shared_heads: int,
    weighted: bool = False,
) -> BlockType:
    """The type of one matrix (by its GGUF name) of a dense `llama` model in a file of `file_type`.

    Reproduces what llama.cpp decides (llama_tensor_get_type in src/llama-quant.cpp) without overrides. `tied`: the file
    has no output.weight; `shared_heads`: query heads for each key head; `weighted`: there is an importance matrix.
    """
    plain = BlockType["_".join(file_type.split("_")[:2])]  # Q4_K of Q4_K_M
    if plain in FLOAT_TYPES:
        return plain
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        wanted = plain if plain == BlockType.Q8_0 else BlockType.Q6_K
        wanted = wanted if _fits(columns, plain) else BlockType.Q8_0
    elif name == "token_embd.weight":
        wanted = plain
    else:
        layer, kind = int(name.split(".")[1]), name.split(".")[-2]
        wanted = _mixed(file_type, kind, plain, layer, layers, shared_heads, weighted=weighted)
    if _fits(columns, wanted):
        return wanted
    substitute = FALLBACK.get(wanted, BlockType.F16)
    return substitute if _fits(columns, substitute) else BlockType.F16


def _mixed(
    file_type: FileType,
    kind: str,
    plain: BlockType,
    layer: int,
    layers: int,
    shared_heads: int,
    *,
    weighted: bool,
) -> BlockType:
    """More bits where errors cost most: value, output and down projections, and some layers' more than others'."""
    wanted = plain
    match file_type, kind:
        case "Q2_K", "attn_v":
            wanted = BlockType.Q4_K if shared_heads >= 4 else BlockType.Q3_K
        case "Q2_K", "ffn_down" | "attn_output":
            wanted = BlockType.Q3_K
        case "Q3_K_M", "attn_v":
            wanted = BlockType.Q5_K if layer < 2 else BlockType.Q4_K
        case "Q3_K_M", "ffn_down":
            wanted = BlockType.Q5_K if layer < layers // 16 else BlockType.Q4_K
        case "Q3_K_M", "attn_output":
            wanted = BlockType.Q4_K
        case "Q3_K_L", "attn_v" | "ffn_down" | "attn_output":
            wanted = BlockType.Q5_K
        case "Q4_K_S", "attn_v" if layer < 4:
            wanted = BlockType.Q5_K
        case "Q4_K_S", "ffn_down" if layer < layers // 8:
            wanted = BlockType.Q5_K
        case "Q4_K_M" | "Q5_K_M", "attn_v" | "ffn_down" if _has_more_bits(layer, layers):
            wanted = BlockType.Q6_K
        case "Q4_0" | "Q5_0", "ffn_down" if weighted and layer < layers // 8:
            wanted = BlockType.Q4_1 if plain == BlockType.Q4_0 else BlockType.Q5_1
    # 80 layers with shared heads are taken for Llama 2 70B, whose attn_v is small: a bit more costs little there
    small = kind == "attn_v" and layers == 80 and shared_heads > 1
    return BlockType.Q5_K if small and wanted in (BlockType.Q3_K, BlockType.Q4_K) else wanted


def _has_more_bits(layer: int, layers: int) -> bool:
    """The first and the last eighth of the layers, and every third between (llama.cpp's use_more_bits)."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _fits(columns: int, kind: BlockType) -> bool:
    """Whether a row is a whole number of blocks."""
    return columns % GGML_QUANT_SIZES[kind][0] == 0


def row_bytes(columns: int, kind: BlockType) -> int:
    """Bytes of a row of `columns` weights."""
    block_columns, block_bytes = GGML_QUANT_SIZES[kind]
    return columns // block_columns * block_bytes


def quantize_blocks(
    weight_RC: torch.Tensor, kind: BlockType, importance_C: np.ndarray | None = None, workers: int = 1
) -> Iterator[np.ndarray]:
    """Weights of any float type -> values [n, C] in F32 or F16, or ggml's blocks (and BF16) as bytes of a row, uint8,
    some rows after the others, made by so many threads.

    Goes through float32. `importance_C`: float32, how much an error of each column counts. Raises UserError if a weight
    is not finite in the wanted type.
    """
    rows, columns = weight_RC.shape
    step = max(1, CHUNK_WEIGHTS // columns)

    def make(first: int) -> np.ndarray:
        part = weight_RC[first : first + step].to(FLOAT_TYPES.get(kind, torch.float32)).contiguous()
        if not all(end.isfinite() for end in torch.aminmax(part)):
            what = f"a weight is not a number, infinite, or too large for {kind.name}"
            raise UserError(what, cure="check the model, or choose another type")
        if kind in (BlockType.F32, BlockType.F16):
            return part.numpy()
        if kind == BlockType.BF16:
            return part.view(torch.uint8).numpy()
        out = np.empty((len(part), row_bytes(columns, kind)), np.uint8)
        quantize_rows(part.numpy(), out, kind, importance_C)
        return out

    return (block for block, _ in ahead(make, ((i, None) for i in range(0, rows, step)), workers))
