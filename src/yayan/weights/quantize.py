"""Weights in the types of a GGUF file, and the mixtures of types that llama.cpp gives a name to.

Shapes: R rows, C columns (what ggml calls ne[0]: the axis along which a block lies).
"""

from typing import Literal

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, LlamaFileType
from gguf import GGMLQuantizationType as BlockType

from yayan.errors import UserError
from yayan.weights.ggml import quantize_rows

FileType = Literal["F32", "F16", "Q8_0", "Q4_K_M"]

FILE_TYPES = {
    "F32": LlamaFileType.ALL_F32,
    "F16": LlamaFileType.MOSTLY_F16,
    "Q8_0": LlamaFileType.MOSTLY_Q8_0,
    "Q4_K_M": LlamaFileType.MOSTLY_Q4_K_M,
}
FLOAT_TYPES = {BlockType.F32: torch.float32, BlockType.F16: torch.float16}
# llama.cpp's substitutes (tensor_type_fallback) where a row is no multiple of 256: their blocks have 32 weights
FALLBACK = {BlockType.Q4_K: BlockType.Q5_0, BlockType.Q5_K: BlockType.Q5_1, BlockType.Q6_K: BlockType.Q8_0}
CHUNK_WEIGHTS = 1 << 24  # weights that are held in float32 at once: 64 MiB


def block_type(
    name: str, columns: int, file_type: FileType, layers: int, *, tied: bool, grouped: bool
) -> BlockType:
    """The type of one matrix (by its GGUF name) of a dense `llama` model in a file of `file_type`.

    Reproduces what llama.cpp decides (llama_tensor_get_type in src/llama-quant.cpp) without importance matrix or
    overrides. `tied`: the file has no output.weight; `grouped`: fewer key-value heads than heads.
    """
    if file_type in ("F32", "F16"):
        return BlockType[file_type]
    wanted = BlockType.Q8_0
    if file_type == "Q4_K_M":
        wanted = _q4_k_m(name, columns, layers, tied=tied, grouped=grouped)
    if _fits(columns, wanted):
        return wanted
    substitute = FALLBACK.get(wanted, BlockType.F16)
    return substitute if _fits(columns, substitute) else BlockType.F16


def _q4_k_m(name: str, columns: int, layers: int, *, tied: bool, grouped: bool) -> BlockType:
    """Q4_K, but more bits where errors cost most: the head, the value and down projections of some layers."""
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        return BlockType.Q6_K if _fits(columns, BlockType.Q4_K) else BlockType.Q8_0
    kind = name.split(".")[-2]
    if kind not in ("attn_v", "ffn_down"):
        return BlockType.Q4_K
    if _has_more_bits(int(name.split(".")[1]), layers):
        return BlockType.Q6_K
    # 80 layers with grouped heads are taken for Llama 2 70B, whose attn_v is small: a bit more costs little there
    return BlockType.Q5_K if kind == "attn_v" and layers == 80 and grouped else BlockType.Q4_K


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


def quantize_blocks(weight_RC: torch.Tensor, kind: BlockType) -> np.ndarray:
    """Weights of any float type -> values [R, C] in F32 or F16, or ggml's blocks as uint8 [R, bytes of a row].

    Goes through float32, some rows at a time. Raises UserError if a weight is not finite in the wanted type.
    """
    rows, columns = weight_RC.shape
    float_type = FLOAT_TYPES.get(kind)
    shape = (rows, columns if float_type else row_bytes(columns, kind))
    out = np.empty(shape, torch.empty(0, dtype=float_type).numpy().dtype if float_type else np.uint8)
    step = max(1, CHUNK_WEIGHTS // columns)
    for first in range(0, rows, step):
        part = weight_RC[first : first + step].to(float_type or torch.float32).contiguous()
        if not torch.isfinite(part).all():
            what = f"a weight is not a number, infinite, or too large for {kind.name}"
            raise UserError(what, cure="check the model, or choose another type")
        if float_type:
            out[first : first + step] = part.numpy()
        else:
            quantize_rows(part.numpy(), out[first : first + step], kind)
    return out
