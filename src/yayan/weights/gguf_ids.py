"""How llama.cpp itself cuts texts with the tokenizer of a folder: the proof that another program agrees with it.

llama.h's C functions through ctypes: no server, no thread, nothing is computed. The model around the vocabulary has one
layer of width 2, since llama.cpp ends the process when there is none.
"""

import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from gguf import GGUFWriter

from yayan.errors import UserError, WorkError
from yayan.progress import Progress
from yayan.weights.ggml import Pointer, Text, library, say_nothing
from yayan.weights.gguf_tokens import read_tokenizer, write_tokens

WIDTH = 2
# llama.cpp cuts some vocabularies' texts by std::regex, which recurses: 30,000 letters in a row ended the process
LONGEST_TEXT = 8192
Id = ctypes.c_int32


class ModelParameters(ctypes.Structure):
    """llama_model_params up to the last flag that is set here, and room for what stands behind it.

    Given by value, so its layout must be that of the wheel: `model_parameters` compares it with the known defaults.
    """

    _fields_ = (
        *((name, Pointer) for name in ("devices", "tensor_buft_overrides")),
        *((name, Id) for name in ("n_gpu_layers", "split_mode", "load_mode", "lazy_mode", "main_gpu")),
        *((name, Pointer) for name in ("tensor_split", "progress_callback", "user_data", "kv_overrides")),
        *(
            (name, ctypes.c_bool)
            for name in ("vocab_only", "check_tensors", "use_extra_bufts", "no_host", "no_alloc")
        ),
        ("room", ctypes.c_uint64 * 120),
    )


MODEL_DEFAULTS = {
    "n_gpu_layers": -1,
    "split_mode": 1,
    "load_mode": -1,
    "lazy_mode": 1,
    "main_gpu": 0,
    "tensor_split": None,
    "progress_callback": None,
    "kv_overrides": None,
    "vocab_only": False,
    "check_tensors": False,
    "use_extra_bufts": True,
    "no_host": False,
    "no_alloc": False,
}
NO_MAPPING = 0  # of load_mode: llama.cpp ends the process where it is to map a file and to hold nothing


@cache
def llama() -> ctypes.CDLL:
    """The shared library, with the signatures (llama.h) of the functions used here."""
    functions = library()
    signatures = {
        "llama_log_get": (None, [ctypes.POINTER(Pointer), ctypes.POINTER(Pointer)]),
        "llama_log_set": (None, [Pointer, Pointer]),
        "llama_model_default_params": (ModelParameters, []),
        "llama_model_load_from_file": (Pointer, [Text, ModelParameters]),
        "llama_model_free": (None, [Pointer]),
        "llama_model_get_vocab": (Pointer, [Pointer]),
        "llama_tokenize": (
            Id,
            [Pointer, Text, Id, ctypes.POINTER(Id), Id, ctypes.c_bool, ctypes.c_bool],
        ),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(functions, name)
        function.restype, function.argtypes = result, arguments
    return functions


def model_parameters(*, weights: bool = True) -> ModelParameters:
    """llama.cpp's defaults; without `weights` it looks each tensor up, and reads none.

    Raises WorkError if this wheel has others than those that are known here.
    """
    found = llama().llama_model_default_params()
    moved = [name for name, value in MODEL_DEFAULTS.items() if getattr(found, name) != value]
    if moved:
        what = f"this xllamacpp lays out {moved[0]} otherwise"
        raise WorkError(what, cure="install the version that yayan was tested with (requirements.lock)")
    if not weights:
        found.load_mode, found.no_alloc = NO_MAPPING, True
    return found


def llamacpp_ids(folder: Path, texts: Sequence[str], *, parse_specials: bool = False) -> list[list[int]]:
    """llama.cpp's own ids of texts, cut with the tokenizer of a folder (SentencePiece BPE or byte-level BPE).

    Means what `Tokenizer.encode` does: nothing is added, and special tokens in a text are text; `parse_specials` makes
    them tokens, as `Tokenizer.encode_with_specials` does. Texts must be Unicode without lone surrogates.
    Raises UserError as `read_tokenizer` does, and for a text of more than 8,192 characters; WorkError if llama.cpp does
    not open what was written.
    """
    longest = max(map(len, texts), default=0)
    if longest > LONGEST_TEXT:
        what = f"a text of {longest:,} characters is too long to be cut by llama.cpp"
        raise UserError(what, cure=f"compare pieces of at most {LONGEST_TEXT:,}")
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "vocabulary.gguf"
        write_vocabulary(folder, path)
        with opened_vocabulary(path) as vocabulary, Progress("llama.cpp", len(texts), "texts") as bar:
            found = []
            for text in texts:
                found.append(ids_of(vocabulary, text, parse_specials=parse_specials))
                bar.advance()
            return found


def write_vocabulary(folder: Path, path: Path) -> None:
    """Write the tokenizer of a folder as a GGUF file that llama.cpp opens."""
    tokenizer, table = read_tokenizer(folder)
    rows = len(table.tokens)
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(1)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDTH)
    writer.add_rope_dimension_count(WIDTH)
    writer.add_block_count(1)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    write_tokens(writer, tokenizer, table, rows)
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (rows, WIDTH), "output_norm": (WIDTH,)}
    shapes |= {f"blk.0.{name}_norm": (WIDTH,) for name in ("attn", "ffn")}
    matrices = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes |= {f"blk.0.{name}": (WIDTH, WIDTH) for name in matrices}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@contextmanager
def opened_vocabulary(path: Path) -> Iterator[int]:
    """llama.cpp's handle of the vocabulary of a whole model file, for `ids_of`. Raises WorkError if it is refused."""
    functions = llama()
    with quiet_llamacpp():
        model = functions.llama_model_load_from_file(os.fsencode(path), model_parameters(weights=False))
    if not model:
        raise WorkError("llama.cpp cannot open this file", where=path)
    try:
        yield functions.llama_model_get_vocab(model)
    finally:
        functions.llama_model_free(model)


def ids_of(vocabulary: int, text: str, *, parse_specials: bool = False) -> list[int]:
    """llama.cpp's ids of one text."""
    raw = text.encode()
    out = (Id * (len(raw) + 1))()  # a token for each byte, and the space that SentencePiece puts before
    count = llama().llama_tokenize(vocabulary, raw, len(raw), out, len(out), False, parse_specials)
    if count < 0:
        raise WorkError(f"llama.cpp does not cut {text[:40]!r}")
    return list(out[:count])


@contextmanager
def quiet_llamacpp() -> Iterator[None]:
    """Keep llama.cpp's log, which it has one of for the process, from stderr; --debug lets it through."""
    function, data = Pointer(), Pointer()
    llama().llama_log_get(ctypes.byref(function), ctypes.byref(data))
    if "--debug" not in sys.argv:
        llama().llama_log_set(ctypes.cast(say_nothing, Pointer), None)
    try:
        yield
    finally:
        llama().llama_log_set(function, data)
