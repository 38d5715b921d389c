"""What llama.cpp's own quantiser makes of small models, written down once in llama_quantize.json.

`python -m tests.weights.llama_quantize FOLDER` makes the record again. FOLDER holds libllama and ggml's libraries, made
from the source of llama-cpp-python 0.3.36 (cmake -DBUILD_SHARED_LIBS=ON -DGGML_NATIVE=OFF -DGGML_AVX2=ON, GCC 12): no
wheel exports `llama_model_quantize` (llama.h).
"""

import ctypes
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tests.sentencepiece_model import make_chat_model
from yayan.model.folder import OUTPUT_END
from yayan.weights.gguf_file import Importance, write_gguf
from yayan.weights.gguf_plan import gguf_name
from yayan.weights.quantize import FILE_TYPES, FileType

RECORD = Path(__file__).with_suffix(".json")
VERSION = "llama-cpp-python 0.3.36"
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8}
SHAPES: dict[str, dict[str, Any]] = {
    "grouped": {**WIDE, "num_key_value_heads": 4, "num_hidden_layers": 9},
    "grouped, tied": {
        **WIDE,
        "num_key_value_heads": 1,
        "num_hidden_layers": 8,
        "tie_word_embeddings": True,
    },
    "rows of no whole block": {
        "hidden_size": 288,
        "intermediate_size": 704,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "num_hidden_layers": 4,
    },
    "80 layers": {**WIDE, "intermediate_size": 256, "num_key_value_heads": 4, "num_hidden_layers": 80},
    "qwen2": {"family": "qwen2", **WIDE, "num_key_value_heads": 2, "num_hidden_layers": 8},
    "weighted": {**WIDE, "num_key_value_heads": 8, "num_hidden_layers": 8},
}


def kinds_of(shape: str) -> list[FileType]:
    """The types that are recorded: of 80 layers only those that treat them otherwise."""
    kinds = [kind for kind in get_args(FileType) if kind != "F32"]
    return [kind for kind in kinds if "_K_" in kind] if shape == "80 layers" else kinds


def make_model(folder: Path, shape: str) -> tuple[Path, Importance | None]:
    """A model of numpy's random values, which no version of torch changes, and its importance matrix if it has one."""
    make_chat_model(folder, **SHAPES[shape])
    rng = np.random.default_rng(0)
    tensors = {
        name: torch.from_numpy(rng.standard_normal(tensor.shape, np.float32) * np.float32(0.05))
        for name, tensor in sorted(load_file(folder / "model.safetensors").items())
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if shape != "weighted":
        return folder, None
    inside = [name for name, tensor in tensors.items() if tensor.dim() == 2 and ".layers." in name]
    names = [name for name in inside if name != OUTPUT_END]
    return folder, {name: rng.random(tensors[name].shape[1], np.float32) + 0.1 for name in names}


def digest(path: Path) -> str:
    """One hash of all tensors: names, types and bytes."""
    found = hashlib.sha256()
    for tensor in sorted(gguf.GGUFReader(path).tensors, key=lambda tensor: tensor.name):
        found.update(f"{tensor.name} {tensor.tensor_type.name} {list(tensor.shape)}\n".encode())
        found.update(tensor.data.tobytes())
    return found.hexdigest()[:16]


class QuantizeParameters(ctypes.Structure):
    """llama_model_quantize_params of that version."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("threads", "ftype", "output_type", "embedding_type")),
        *((name, ctypes.c_bool) for name in ("requantize", "output", "copy", "pure", "split", "dry")),
        *((name, ctypes.c_void_p) for name in ("imatrix", "overrides", "tensor_overrides", "prune")),
        ("max_buffer_bytes", ctypes.c_size_t),
    )


class ImportanceData(ctypes.Structure):
    """llama_model_imatrix_data; one without a name ends the list."""

    _fields_ = (("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("size", ctypes.c_size_t))


def open_llama(folder: Path) -> ctypes.CDLL:
    for name in ("ggml-base", "ggml-cpu", "ggml"):
        ctypes.CDLL(str(folder / f"lib{name}.so"), mode=ctypes.RTLD_GLOBAL)
    llama = ctypes.CDLL(str(folder / "libllama.so"))
    llama.llama_model_quantize_default_params.restype = QuantizeParameters
    return llama


def quantize(
    llama: ctypes.CDLL, source: Path, out: Path, kind: FileType, importance: Importance | None
) -> None:
    """Let llama.cpp write `out` from an F32 file."""
    settings = llama.llama_model_quantize_default_params()
    settings.ftype, settings.threads = int(FILE_TYPES[kind]), 1
    entries = [
        ImportanceData(gguf_name(name).encode(), values.ctypes.data, values.size)
        for name, values in (importance or {}).items()
    ]
    data = (ImportanceData * (len(entries) + 1))(*entries)
    if importance:
        settings.imatrix = ctypes.addressof(data)
    if llama.llama_model_quantize(bytes(source), bytes(out), ctypes.byref(settings)):
        raise RuntimeError(f"llama.cpp does not write {kind}")


def main(libraries: Path) -> None:
    llama = open_llama(libraries)
    record: dict[str, Any] = {"version": VERSION}
    for shape in SHAPES:
        with tempfile.TemporaryDirectory() as work:
            model, importance = make_model(Path(work) / "model", shape)
            source, out = Path(work) / "source.gguf", Path(work) / "out.gguf"
            write_gguf(model, source, "F32")
            record[shape] = {}
            for kind in kinds_of(shape):
                quantize(llama, source, out, kind, importance)
                record[shape][kind] = digest(out)
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
