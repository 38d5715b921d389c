"""A LoRA adapter as llama.cpp reads it beside a GGUF file: one small GGUF file of pairs, in float32.

PEFT's scale is in B, so that the file needs no alpha. Rows of B have the order of their tensor's rows in the file.
"""

import re
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFWriter

from yayan.errors import UserError
from yayan.model.folder import INPUT_END, OUTPUT_END
from yayan.weights.adapter import LORA_A, LORA_B, Adapter, brought_positions, read_adapter
from yayan.weights.ggml import read_header, read_shapes
from yayan.weights.gguf_file import interleave_halves
from yayan.weights.gguf_plan import ARCHITECTURES, INSIDE_LAYER, OUTSIDE_LAYERS, PAIRED, gguf_name
from yayan.weights.stream import TensorSpec

TURNED = ("attn_q", "attn_k")  # whose rows RoPE turns
MERGE = "merge it first (yayan merge) and serve the merged folder"


def write_gguf_adapter(folder: Path, gguf: Path, path: Path) -> None:
    """Write an adapter folder (PEFT's format) as a file for a model in a GGUF file.

    Raises UserError if it does not fit that model, or is more than LoRA pairs.
    """
    header = read_header(gguf)
    if header.architecture not in ARCHITECTURES.values():
        what = f"adapters are for {', '.join(sorted(set(ARCHITECTURES.values())))}, not {header.architecture}"
        raise UserError(what, where=gguf, cure="serve it without")
    base = named_as_in_folders(read_shapes(gguf))
    adapter = read_adapter(folder, base, tied=OUTPUT_END not in base)
    refuse_more_than_pairs(adapter)
    paired = header.architecture in PAIRED
    writer = GGUFWriter(path, header.architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    for name, stem in adapter.pairs.items():
        for half, told in ((LORA_A, "lora_a"), (LORA_B, "lora_b")):
            shape = adapter.tensors.shape(stem + half)
            size = np.dtype(np.float32).itemsize * prod(shape)
            writer.add_tensor_info(f"{gguf_name(name)}.{told}", shape, np.dtype(np.float32), size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in halves(adapter, header.head_width if paired else None):
        writer.write_tensor_data(tensor.contiguous().numpy())
    writer.close()


def halves(adapter: Adapter, head_width: int | None) -> Iterator[torch.Tensor]:
    """A [r, in] and s B [out, r] of each pair, float32. `head_width`: of heads whose rows llama.cpp has in pairs."""
    for name in adapter.pairs:
        a_RI, b_OR, scale = adapter.pair(name)
        b_OR = b_OR.float() * scale
        if head_width and gguf_name(name).split(".")[-2] in TURNED:
            b_OR = interleave_halves(b_OR, b_OR.shape[0] // head_width)
        yield a_RI.float()
        yield b_OR


def named_as_in_folders(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, TensorSpec]:
    """Tensors of a GGUF file by the names that a model folder has for them; others are left out."""
    outside = {gguf: name for name, gguf in OUTSIDE_LAYERS.items()}
    inside = {gguf: name for name, gguf in INSIDE_LAYER.items()}
    found = {}
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        layer = re.fullmatch(r"blk\.(\d+)\.(\w+)", module)
        known = (
            f"model.layers.{layer[1]}.{inside[layer[2]]}"
            if layer and layer[2] in inside
            else outside.get(module)
        )
        if known:
            found[f"{known}.weight"] = TensorSpec(shape, torch.float32)
    return found


def refuse_more_than_pairs(adapter: Adapter) -> None:
    """UserError for what llama.cpp cannot add while it computes."""
    more = {
        "rows of the two ends": bool(adapter.rows or adapter.whole),
        "lengths (DoRA)": adapter.with_lengths,
        "a pair for the input end": INPUT_END in adapter.pairs,
        "other positions": brought_positions(adapter.folder) is not None,
    }
    for what, there in more.items():
        if there:
            raise UserError(
                f"llama.cpp takes LoRA pairs alone, this adapter has {what}", where=adapter.folder, cure=MERGE
            )
