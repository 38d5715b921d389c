"""Blocks of quantised weights, made by ggml itself, and the mixtures of block types that llama.cpp gives a name to.

Shapes: R rows, C columns (C is what ggml calls ne[0]: the axis along which a block lies).
"""

import ctypes
from functools import cache
from typing import Literal

import numpy as np
import torch
import xllamacpp
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from yayan.errors import UserError

FileType = Literal["F32", "F16", "Q8_0", "Q4_K_M"]
BlockType = GGMLQuantizationType

FILE_TYPES = {
    "F32": LlamaFileType.ALL_F32,
    "F16": LlamaFileType.MOSTLY_F16,
    "Q8_0": LlamaFileType.MOSTLY_Q8_0,
    "Q4_K_M": LlamaFileType.MOSTLY_Q4_K_M,
}
# llama.cpp's substitutes (tensor_type_fallback) where a row is no multiple of the block; they have blocks of 32.
FALLBACK = {BlockType.Q4_K: BlockType.Q5_0, BlockType.Q5_K: BlockType.Q5_1, BlockType.Q6_K: BlockType.Q8_0}
CHUNK_WEIGHTS = 1 << 24  # weights held in float32 at once: 64 MiB


@cache
def ggml() -> ctypes.CDLL:
    """ggml's C functions: xllamacpp's extension module is one shared library that exports them all."""
    library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    return library


def block_type(name: str, columns: int, file_type: FileType, layers: int, *, tied: bool, grouped: bool) -> BlockType:
    """The type of one matrix (GGUF name) of a dense `llama` model in a file of `file_type`.

    Reproduces llama_tensor_get_type of llama.cpp (src/llama-quant.cpp), without importance matrix or overrides.
    `tied`: the file has no output.weight; `grouped`: fewer key-value heads than heads.
    """
    if file_type in ("F32", "F16"):
        return BlockType[file_type]
    if file_type == "Q8_0":
        return BlockType.F16 if columns % block_columns(BlockType.Q8_0) else BlockType.Q8_0
    wanted = _q4_k_m(name, columns, layers, tied=tied, grouped=grouped)
    if columns % block_columns(wanted) == 0:
        return wanted
    substitute = FALLBACK.get(wanted, BlockType.F16)
    return BlockType.F16 if columns % block_columns(substitute) else substitute


def _q4_k_m(name: str, columns: int, layers: int, *, tied: bool, grouped: bool) -> BlockType:
    """Q4_K, but more bits where errors cost most: the head, and value and down projections of some layers."""
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        return BlockType.Q8_0 if columns % block_columns(BlockType.Q4_K) else BlockType.Q6_K
    kind = name.split(".")[-2]
    if kind not in ("attn_v", "ffn_down"):
        return BlockType.Q4_K
    if _has_more_bits(int(name.split(".")[1]), layers):
        return BlockType.Q6_K
    # llama.cpp takes 80 grouped layers for the 70B, whose small attn_v deserves a bit more
    return BlockType.Q5_K if kind == "attn_v" and layers == 80 and grouped else BlockType.Q4_K


def _has_more_bits(layer: int, layers: int) -> bool:
    """The first and last eighth of the layers, and every third between (llama.cpp's use_more_bits)."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def block_columns(kind: BlockType) -> int:
    """Weights in one block."""
    return GGML_QUANT_SIZES[kind][0]


def row_bytes(columns: int, kind: BlockType) -> int:
    """Bytes of a row of `columns` weights."""
    block, size = GGML_QUANT_SIZES[kind]
    return columns // block * size


def quantize_blocks(weight_RC: torch.Tensor, kind: BlockType) -> np.ndarray:
    """Weights of any float type -> F32 or F16 values [R, C], or ggml's blocks as uint8 [R, bytes of a row].

    float32 in between, a chunk of rows at a time. Raises UserError if a weight is not finite in the wanted type.
    """
    rows, columns = weight_RC.shape
    float_type = {BlockType.F32: np.float32, BlockType.F16: np.float16}.get(kind)
    width = row_bytes(columns, kind) if float_type is None else columns
    out = np.empty((rows, width), float_type or np.uint8)
    step = max(1, CHUNK_WEIGHTS // columns)
    for first in range(0, rows, step):
        part = weight_RC[first : first + step].float().contiguous()
        _refuse_not_finite(part if float_type is not np.float16 else part.half(), kind)
        if float_type is None:
            _quantize_rows(part.numpy(), out[first : first + step], kind)
        else:
            out[first : first + step] = part.numpy()
    return out


def _refuse_not_finite(part: torch.Tensor, kind: BlockType) -> None:
    if not torch.isfinite(part).all():
        raise UserError(f"a weight is not finite or too large for {kind.name}", cure="check the model for NaN")


def _quantize_rows(part_RC: np.ndarray, out: np.ndarray, kind: BlockType) -> None:
    rows, columns = part_RC.shape
    written = ggml().ggml_quantize_chunk(
        kind.value, part_RC.ctypes.data, out.ctypes.data, 0, rows, columns, None
    )
    if written != out.nbytes:
        raise RuntimeError(f"ggml wrote {written} bytes of {kind.name} where {out.nbytes} were due")
