"""ggml's own C functions through ctypes: quantised blocks, and the header of a GGUF file without reading the rest.

xllamacpp's extension module is one shared library (`.so` on Linux and macOS alike) that exports them all.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import xllamacpp
from gguf import GGMLQuantizationType, GGUFValueType

from yayan.errors import UserError

MAGIC = b"GGUF"
Pointer, Text, Index = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64
LogFunction = ctypes.CFUNCTYPE(None, ctypes.c_int, Text, Pointer)


class InitParameters(ctypes.Structure):
    """gguf_init_params: without allocation only the header is read."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("context", Pointer))


@cache
def library() -> ctypes.CDLL:
    """The shared library, with the signatures (ggml.h, gguf.h) of the functions used here."""
    functions = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    signatures = {
        "ggml_quantize_chunk": (
            ctypes.c_size_t,
            [ctypes.c_int, Pointer, Pointer, Index, Index, Index, Pointer],
        ),
        "ggml_log_set": (None, [LogFunction, Pointer]),
        "gguf_init_from_file": (Pointer, [Text, InitParameters]),
        "gguf_free": (None, [Pointer]),
        "gguf_find_key": (Index, [Pointer, Text]),
        "gguf_get_kv_type": (ctypes.c_int, [Pointer, Index]),
        "gguf_get_arr_type": (ctypes.c_int, [Pointer, Index]),
        "gguf_get_arr_n": (ctypes.c_size_t, [Pointer, Index]),
        "gguf_get_arr_str": (Text, [Pointer, Index, ctypes.c_size_t]),
        "gguf_get_arr_data": (Pointer, [Pointer, Index]),
        "gguf_get_val_u32": (ctypes.c_uint32, [Pointer, Index]),
        "gguf_get_val_str": (Text, [Pointer, Index]),
        "gguf_get_n_tensors": (Index, [Pointer]),
        "gguf_get_data_offset": (ctypes.c_size_t, [Pointer]),
        "gguf_get_tensor_offset": (ctypes.c_size_t, [Pointer, Index]),
        "gguf_get_tensor_size": (ctypes.c_size_t, [Pointer, Index]),
        "ggml_get_first_tensor": (Pointer, [Pointer]),
        "ggml_get_next_tensor": (Pointer, [Pointer, Pointer]),
        "ggml_get_name": (Text, [Pointer]),
        "ggml_n_dims": (ctypes.c_int, [Pointer]),
        "ggml_nrows": (Index, [Pointer]),
        "ggml_nelements": (Index, [Pointer]),
        "ggml_free": (None, [Pointer]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(functions, name)
        function.restype, function.argtypes = result, arguments
    return functions


def quantize_rows(
    weight_RC: np.ndarray, out: np.ndarray, kind: GGMLQuantizationType, importance_C: np.ndarray | None = None
) -> None:
    """Fill `out` (uint8, R rows of blocks) with the blocks of `weight_RC` (float32, contiguous).

    `importance_C`: float32, how much an error of each column counts (the same for all rows); None: ggml's own idea.
    """
    rows, columns = weight_RC.shape
    importance = None if importance_C is None else importance_C.ctypes.data
    written = library().ggml_quantize_chunk(
        kind.value, weight_RC.ctypes.data, out.ctypes.data, 0, rows, columns, importance
    )
    if written != out.nbytes:
        raise RuntimeError(f"ggml wrote {written} bytes of {kind.name} where {out.nbytes} were due")


@dataclass(frozen=True)
class Header:
    """What a GGUF file says about itself."""

    architecture: str
    context: int
    """Tokens that the model was trained to see at once."""
    template: str | None
    eos: int
    """The token that ends a text."""
    head_width: int
    """Numbers of a head's key; 0 where the file tells several, or none."""
    cache_width: int
    """Numbers of the keys and values of one token in all layers; 0 likewise."""


@LogFunction
def say_nothing(level: int, text: bytes, data: int | None) -> None:
    """ggml writes to stderr unless it is given a function; the caller's error says enough."""


@contextmanager
def opened(path: Path, tensors: ctypes.c_void_p | None = None) -> Iterator[int]:
    """ggml's handle of a file's header; `tensors` takes that of its tensors without their values.

    Raises UserError if the file is no GGUF or its header is damaged.
    """
    with path.open("rb") as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            raise UserError("this is not a GGUF file", where=path, cure="name a .gguf file or a model folder")
    functions = library()
    functions.ggml_log_set(say_nothing, None)
    where = None if tensors is None else ctypes.addressof(tensors)
    handle = functions.gguf_init_from_file(os.fsencode(path), InitParameters(True, where))
    if not handle:
        raise UserError("the header of this GGUF file is damaged", where=path, cure="fetch or make it again")
    try:
        yield handle
    finally:
        functions.gguf_free(handle)


def read_header(path: Path) -> Header:
    """The header of a GGUF file. Raises UserError if the file is no GGUF, damaged, or cut short."""
    with opened(path) as handle:
        header, size = _header_of(handle), _size_of(handle)
    if path.stat().st_size < size:
        what = f"this GGUF file is cut short: it has {path.stat().st_size} of {size} bytes"
        raise UserError(what, where=path, cure="fetch or make it again")
    return header


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a file's tensors, (rows, columns) of a matrix. Raises UserError as `opened`."""
    functions, context = library(), Pointer()
    shapes: dict[str, tuple[int, ...]] = {}
    with opened(path, context):
        tensor = functions.ggml_get_first_tensor(context)
        while tensor:
            rows, numbers = functions.ggml_nrows(tensor), functions.ggml_nelements(tensor)
            name = functions.ggml_get_name(tensor).decode()
            shapes[name] = (numbers,) if functions.ggml_n_dims(tensor) == 1 else (rows, numbers // rows)
            tensor = functions.ggml_get_next_tensor(context, tensor)
        functions.ggml_free(context)
    return shapes


def _header_of(handle: int) -> Header:
    functions = library()

    def text(key: str) -> str | None:
        index = functions.gguf_find_key(handle, key.encode())
        return functions.gguf_get_val_str(handle, index).decode() if index >= 0 else None

    def number(key: str) -> int:
        index = functions.gguf_find_key(handle, key.encode())
        single = index >= 0 and functions.gguf_get_kv_type(handle, index) == GGUFValueType.UINT32
        return functions.gguf_get_val_u32(handle, index) if single else 0

    architecture = text("general.architecture") or "unknown"
    layers, heads, width = (
        number(f"{architecture}.{key}") for key in ("block_count", "attention.head_count", "embedding_length")
    )
    head_width = number(f"{architecture}.attention.key_length") or width // max(heads, 1)
    key_heads = number(f"{architecture}.attention.head_count_kv")
    return Header(
        architecture=architecture,
        context=number(f"{architecture}.context_length"),
        template=text("tokenizer.chat_template"),
        eos=number("tokenizer.ggml.eos_token_id"),
        head_width=head_width,
        cache_width=2 * layers * key_heads * head_width,
    )


def _size_of(handle: int) -> int:
    """Bytes that the whole file must have: the end of the last tensor."""
    functions = library()
    ends = [
        functions.gguf_get_tensor_offset(handle, index) + functions.gguf_get_tensor_size(handle, index)
        for index in range(functions.gguf_get_n_tensors(handle))
    ]
    return functions.gguf_get_data_offset(handle) + max(ends, default=0)
